//! What every network of the zoo offers, and how one is registered.

use crate::vars::{VarBuilder, VarStore};
use crate::weights::Rename;
use candle_core::{Result, Tensor, bail};
pub use candle_nn::ModuleT;

/// An image classifier of the zoo.
///
/// `forward_t(xs, train)` maps (b, in_chans, h, w) to logits (b, num_classes). With `train` true the forward pass
/// builds the autograd graph, normalises by the batch, updates running statistics and drops; with `train` false it
/// reads running statistics, drops nothing, and **builds no graph**: the weights enter detached.
pub trait Model: ModuleT + Send + Sync {
    /// The features that the classifier head reads: (b, c), (b, c, h, w) or (b, tokens, c), as the network has them.
    ///
    /// # Errors
    /// An input whose shape does not fit the network.
    fn forward_features(&self, xs: &Tensor, train: bool) -> Result<Tensor>;
}

/// What a user may choose when building a registered model; `None` keeps the model's own default.
#[derive(Debug, Clone, Default)]
pub struct ModelOptions {
    /// Width of the classifier.
    pub num_classes: Option<usize>,
    /// Channels of the input image (3 if `None`).
    pub in_chans: Option<usize>,
}

/// One row of the registry: a name, the facts about it, and how to build it.
#[derive(Debug, Clone, Copy)]
pub struct ModelInfo {
    /// The zoo's name, for example `cifar_resnet20`.
    pub name: &'static str,
    /// The crate that holds it, without the `zoo-`.
    pub family: &'static str,
    /// Trainable parameters at the default number of classes; a test holds it true.
    pub parameters: usize,
    /// Side of the square input image in pixels.
    pub image_size: usize,
    /// Default number of classes.
    pub num_classes: usize,
    /// Whose checkpoint keys the network speaks: `torchvision`, `timm` or `own`.
    pub keys: &'static str,
    /// Authors, year and arXiv id.
    pub paper: &'static str,
    /// What other files call this network's tensors; see [`crate::weights`].
    pub renames: &'static [Rename],
    /// Builds the network inside a store; reached through [`ModelInfo::build`].
    pub builder: fn(&Dimensions, VarBuilder) -> Result<Box<dyn Model>>,
}

/// [`ModelOptions`] with every default filled in: what a model's builder reads.
#[derive(Debug, Clone, Copy)]
pub struct Dimensions {
    /// Width of the classifier.
    pub num_classes: usize,
    /// Channels of the input image.
    pub in_chans: usize,
    /// Side of the square input image in pixels.
    pub image_size: usize,
}

impl ModelInfo {
    /// The model's dimensions under `options`.
    pub fn dimensions(&self, options: &ModelOptions) -> Dimensions {
        Dimensions {
            num_classes: options.num_classes.unwrap_or(self.num_classes),
            in_chans: options.in_chans.unwrap_or(3),
            image_size: self.image_size,
        }
    }

    /// Builds the network in `vb`.
    ///
    /// # Errors
    /// A dimension of zero, or what the network itself refuses.
    pub fn build(&self, options: &ModelOptions, vb: VarBuilder) -> Result<Box<dyn Model>> {
        let dimensions = self.dimensions(options);
        if dimensions.num_classes == 0 || dimensions.in_chans == 0 {
            bail!("{}: num_classes and in_chans must be at least 1, got {dimensions:?}", self.name)
        }
        (self.builder)(&dimensions, vb)
    }

    /// Counts trainable parameters without allocating them.
    ///
    /// # Errors
    /// As [`ModelInfo::build`].
    pub fn count_parameters(&self, options: &ModelOptions) -> Result<usize> {
        let store = VarStore::shapes_only();
        self.build(options, store.root())?;
        Ok(store.parameter_count())
    }
}
