//! What every network of the zoo offers, and how one is registered.

mod options;

use crate::layers::Classifier;
use crate::ops::cross_entropy;
pub use crate::preprocess::{ChannelOrder, Interpolation, Preprocess, PreprocessParts};
use crate::tape::{self, in_chunks, recorded};
use crate::trace::{self, Graph};
use crate::vars::{VarBuilder, VarStore};
use crate::weights::{Layout, LoadOptions, Rename};
use candle_core::{Result, Tensor, bail};
pub use candle_nn::ModuleT;
pub use options::{Choices, Dimensions, ModelOptions};

/// An image classifier of the zoo.
///
/// `forward_t(xs, train)` maps (b, in_chans, h, w) to logits (b, num_classes). With `train` true the forward pass
/// builds the autograd graph, normalises by the batch, updates running statistics and drops; with `train` false it
/// reads running statistics, drops nothing, and **builds no graph**: the weights enter detached.
///
/// The pass has three parts, `forward_features`, `pre_logits` and the classifier, as timm cuts it. A network states
/// these; the pass as a whole is the trait's.
pub trait Model: Send + Sync {
    /// (b, in_chans, h, w) -> logits (b, num_classes): on one tape in training, in evaluation
    /// [`evaluation_chunk`](Self::evaluation_chunk) images at a time.
    ///
    /// # Errors
    /// An input whose shape does not fit the network.
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        match self.evaluation_chunk() {
            Some(images) => in_chunks(xs, train, images, |xs| self.logits(xs, train)),
            None => recorded(xs, train, |xs| self.logits(xs, train)),
        }
    }

    /// How many images are evaluated together, so that what a layer makes is still in the cache when the next one reads
    /// it; `None` for all of a batch, where the weights are large beside the activations.
    fn evaluation_chunk(&self) -> Option<usize> {
        None
    }

    /// The steps of [`forward_t`](Self::forward_t). A network that needs fewer features for its logits than
    /// [`forward_features`](Self::forward_features) gives says so here.
    ///
    /// # Errors
    /// As [`forward_t`](Self::forward_t).
    fn logits(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.forward_head(&self.forward_features(xs, train)?, train)
    }

    /// The last features before pooling: (b, c, h, w) for a convolutional network, (b, tokens, c) for one on tokens,
    /// (b, c) for a perceptron.
    ///
    /// # Errors
    /// An input whose shape does not fit the network.
    fn forward_features(&self, xs: &Tensor, train: bool) -> Result<Tensor>;

    /// What the classifier reads, one vector an image: the pooled features, (b, c). An embedding to search or cluster
    /// with.
    ///
    /// # Errors
    /// Features of another network.
    fn pre_logits(&self, features: &Tensor, train: bool) -> Result<Tensor>;

    /// The last linear layer.
    fn classifier(&self) -> &Classifier;

    /// The last linear layer, to replace.
    fn classifier_mut(&mut self) -> &mut Classifier;

    /// Logits of features: [`Model::pre_logits`], then the classifier.
    ///
    /// # Errors
    /// Features of another network.
    fn forward_head(&self, features: &Tensor, train: bool) -> Result<Tensor> {
        self.classifier().forward_t(&self.pre_logits(features, train)?, train)
    }

    /// The maps that the stages of the network hand on, with their names, from the image upwards: what a detector or a
    /// style loss reads. A network without stages has none.
    ///
    /// # Errors
    /// As [`Model::forward_features`].
    fn forward_intermediates(&self, xs: &Tensor, train: bool) -> Result<Vec<(String, Tensor)>> {
        trace::stages(|| self.forward_features(xs, train))
    }

    /// What [`forward_intermediates`](Self::forward_intermediates) gives for images of this shape (channels, height, width),
    /// known beforehand: shapes are computed and nothing else, also for a network in a store of shapes only.
    ///
    /// ```
    /// use zoo_core::{Classifier, Model};
    /// # use candle_core::{Result, Tensor};
    /// # use zoo_core::{MaxPool2d, ModuleT, Sequential, Stages, VarStore, seq};
    /// # struct Net(Stages, Classifier);
    /// # impl Model for Net {
    /// #     fn forward_features(&self, xs: &Tensor, train: bool) -> Result<Tensor> { self.0.forward_t(xs, train) }
    /// #     fn pre_logits(&self, features: &Tensor, _: bool) -> Result<Tensor> { Ok(features.clone()) }
    /// #     fn classifier(&self) -> &Classifier { &self.1 }
    /// #     fn classifier_mut(&mut self) -> &mut Classifier { &mut self.1 }
    /// # }
    /// # let mut stages = Stages::default();
    /// # stages.push("layer1", seq![MaxPool2d::new(2, 2)]);
    /// # let net = Net(stages, Classifier::new(3, 2, VarStore::shapes_only().root())?);
    /// let stage = &net.feature_info([3, 64, 64])?[0];
    /// assert_eq!((stage.name.as_str(), stage.channels, stage.stride), ("layer1", 3, 2));
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// A shape that does not fit the network.
    fn feature_info(&self, image: [usize; 3]) -> Result<Vec<FeatureInfo>> {
        let [channels, height, width] = image;
        let mut maps = Vec::new();
        Graph::of(&[&[1, channels, height, width]], |inputs| {
            maps = self.forward_intermediates(&inputs[0], false)?;
            Ok(inputs[0].clone())
        })?;
        maps.into_iter().map(|(name, map)| FeatureInfo::of(name, map.dims(), [height, width])).collect()
    }

    /// The logits and, in training, those of auxiliary classifiers, each with its weight in the loss. Only GoogLeNet
    /// has such, and only if it is asked for.
    ///
    /// # Errors
    /// As [`Model::forward_features`].
    fn forward_auxiliary(&self, xs: &Tensor, train: bool) -> Result<(Tensor, Vec<Auxiliary>)> {
        Ok((self.forward_t(xs, train)?, Vec::new()))
    }

    /// What training makes small, with the logits (b, num_classes): the mean cross-entropy of the logits and, added to
    /// it, those of the auxiliary classifiers, each times its weight. `labels` are classes (b) or weights of the classes
    /// (b, num_classes); see [`cross_entropy`].
    ///
    /// # Errors
    /// As [`Model::forward_features`], and what [`cross_entropy`] refuses.
    fn training_loss(&self, xs: &Tensor, labels: &Tensor, label_smoothing: f64) -> Result<(Tensor, Tensor)> {
        let (logits, auxiliary) = self.forward_auxiliary(xs, true)?;
        let mut loss = cross_entropy(&logits, labels, label_smoothing)?;
        for head in auxiliary {
            let own = cross_entropy(&head.logits, labels, label_smoothing)?;
            loss = tape::foreign_op(&[&loss, &own], |terms| &terms[0] + (&terms[1] * head.loss_weight)?)?;
        }
        Ok((loss, logits))
    }

    /// Replaces the classifier by a new one of `num_classes`, in the store too; everything else stays as it is.
    ///
    /// # Errors
    /// No class.
    fn reset_classifier(&mut self, num_classes: usize) -> Result<()> {
        self.classifier_mut().reset(num_classes)
    }
}

/// A map that a stage of a network hands on, see [`Model::feature_info`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FeatureInfo {
    /// The stage's name.
    pub name: String,
    /// Its channels, or the width of its tokens.
    pub channels: usize,
    /// Pixels of the image between two neighbours of the map, rounded; of tokens, the side of their patches.
    pub stride: usize,
    /// Its shape without the batch: (c, h, w), or (tokens, c).
    pub shape: Vec<usize>,
}

impl FeatureInfo {
    fn of(name: String, dims: &[usize], [height, width]: [usize; 2]) -> Result<Self> {
        let (channels, places) = match *dims {
            [_, c, h, w] => (c, h * w),
            [_, tokens, c] => (c, tokens),
            _ => bail!("stage {name}: expected a map (b, c, h, w) or tokens (b, n, c), found {dims:?}"),
        };
        let stride = ((height * width) as f64 / places.max(1) as f64).sqrt().round() as usize;
        Ok(Self { name, channels, stride, shape: dims[1..].to_vec() })
    }
}

/// What an auxiliary classifier says in training.
#[derive(Debug, Clone)]
pub struct Auxiliary {
    /// (b, num_classes)
    pub logits: Tensor,
    /// Its loss counts this much.
    pub loss_weight: f64,
}

/// A network that maps two sequences to one, as an encoder and a decoder do.
pub trait SequenceModel: Send + Sync {
    /// Source (b, n, d) and target (b, m, d), embedded -> (b, m, d).
    ///
    /// # Errors
    /// Shapes that do not fit the network.
    fn forward_t(&self, source: &Tensor, target: &Tensor, train: bool) -> Result<Tensor>;
}

/// How a registered model is built inside a store.
pub type Builder = fn(&Dimensions, VarBuilder) -> Result<Box<dyn Model>>;

/// One row of the registry: a name, the facts about it, and how to build it.
#[derive(Debug, Clone, Copy)]
pub struct ModelInfo {
    /// The zoo's name, for example `cifar_resnet20`.
    pub name: &'static str,
    /// The crate that holds it, without the `zoo-`.
    pub family: &'static str,
    /// Trainable parameters at the default number of classes; a test holds it true.
    pub parameters: usize,
    /// The image it takes.
    pub preprocess: Preprocess,
    /// Default number of classes.
    pub num_classes: usize,
    /// Whose checkpoint keys the network speaks: `torchvision`, `timm` or `own`.
    pub keys: &'static str,
    /// Authors, year and arXiv id.
    pub paper: &'static str,
    /// What other files call this network's tensors; see [`crate::weights`].
    pub renames: &'static [Rename],
    /// Whose files it reads besides those of `keys`, and how those want their images.
    pub layouts: &'static [Layout],
    /// What timm calls the network; `None` where timm has none like it.
    pub timm: Option<Timm>,
    /// The name of the published weights that are usually meant, `hf:…` or an address; `None` where there are none.
    pub weights: Option<&'static str>,
    /// Which options it has besides sizes.
    pub choices: Choices,
    /// Builds the network inside a store; reached through [`ModelInfo::build`].
    pub builder: Builder,
}

/// A network of the zoo as timm knows it: what its weights need to be loaded there.
#[derive(Debug, Clone, Copy)]
pub struct Timm {
    /// timm's name of the network, for `timm.create_model`.
    pub architecture: &'static str,
    /// timm's name of the first convolution, which other channels are adapted in.
    pub first_conv: &'static str,
    /// timm's name of the classifier, which other classes replace.
    pub classifier: &'static str,
    /// Whether the network is made for one size of image, which timm has to be told.
    pub fixed_size: bool,
    /// timm's key of a tensor, from the network's own; where it is the same, or timm turns it itself, the same.
    pub key: fn(&str) -> String,
}

impl Timm {
    /// One whose keys are the network's own.
    pub const fn new(architecture: &'static str, first_conv: &'static str, classifier: &'static str) -> Self {
        Self { architecture, first_conv, classifier, fixed_size: false, key: str::to_owned }
    }

    /// The same, made for one size of image.
    pub const fn of_fixed_size(self) -> Self {
        Self { fixed_size: true, ..self }
    }
}

/// One row of the registry of [`SequenceModel`]s.
#[derive(Debug, Clone, Copy)]
pub struct SequenceInfo {
    /// The zoo's name.
    pub name: &'static str,
    /// The crate that holds it, without the `zoo-`.
    pub family: &'static str,
    /// Trainable parameters, without embeddings; a test holds it true.
    pub parameters: usize,
    /// Width of the sequences' elements.
    pub d_model: usize,
    /// Whose checkpoint keys the network speaks.
    pub keys: &'static str,
    /// Authors, year and arXiv id.
    pub paper: &'static str,
    /// What other files call this network's tensors.
    pub renames: &'static [Rename],
    /// Builds the network inside a store.
    pub builder: fn(VarBuilder) -> Result<Box<dyn SequenceModel>>,
}

impl ModelInfo {
    /// A network of 1000 classes for ImageNet's images that reads no files but its own; a row names its family and paper,
    /// and what else differs, over this.
    pub const fn new(name: &'static str, parameters: usize, builder: Builder) -> Self {
        let (preprocess, num_classes) = (Preprocess::IMAGENET, 1000);
        let (family, keys, paper, renames, layouts): (_, _, _, &[_], &[_]) = ("", "own", "", &[], &[]);
        Self {
            name,
            family,
            parameters,
            preprocess,
            num_classes,
            keys,
            paper,
            renames,
            layouts,
            timm: None,
            weights: None,
            choices: Choices::NONE,
            builder,
        }
    }

    /// The same for 32x32 images and ten classes.
    pub const fn cifar(self) -> Self {
        Self { preprocess: Preprocess::CIFAR10, num_classes: 10, timm: None, weights: None, ..self }
    }

    /// The same with published weights.
    pub const fn weights(self, name: &'static str) -> Self {
        Self { weights: Some(name), ..self }
    }

    /// The model's dimensions under `options`.
    pub fn dimensions(&self, options: &ModelOptions) -> Dimensions {
        Dimensions {
            num_classes: options.num_classes.unwrap_or(self.num_classes),
            in_chans: options.in_chans.unwrap_or(3),
            image_size: options.image_size.unwrap_or(self.preprocess.size),
            drop_rate: options.drop_rate,
            drop_path_rate: options.drop_path_rate,
            global_pool: options.global_pool,
        }
    }

    /// Builds the network in `vb`.
    ///
    /// # Errors
    /// A dimension of zero or beyond 10,000,000, an option that it does not have, or what the network itself refuses.
    pub fn build(&self, options: &ModelOptions, vb: VarBuilder) -> Result<Box<dyn Model>> {
        let dimensions = self.dimensions(options);
        // Far beyond every data set, and products of two still fit a usize.
        let sizes = [dimensions.num_classes, dimensions.in_chans, dimensions.image_size];
        if !sizes.iter().all(|size| (1..=10_000_000).contains(size)) {
            bail!(
                "{}: num_classes, in_chans and image_size must be from 1 to 10,000,000, got {dimensions:?}",
                self.name
            )
        }
        self.choices.check(self.name, options)?;
        (self.builder)(&dimensions, vb)
    }

    /// How this model reads a checkpoint: its renames and the foreign layouts, no part excepted.
    pub fn load_options(&self) -> LoadOptions<'static> {
        LoadOptions { renames: self.renames, layouts: self.layouts, ..LoadOptions::default() }
    }

    /// The image that files of a layout want, by the layout's name as a report gives it; `None` is the network's own.
    pub fn preprocess_of(&self, layout: Option<&str>) -> Preprocess {
        let found = self.layouts.iter().find(|known| Some(known.name) == layout);
        found.and_then(|layout| layout.preprocess).unwrap_or(self.preprocess)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tape::{recorded_all, value_and_grad};
    use crate::{Linear, relu};
    use candle_core::{DType, Device};

    /// A perceptron with an auxiliary head on its hidden values.
    struct Toy {
        trunk: Linear,
        aux: Linear,
        head: Classifier,
    }

    impl Model for Toy {
        fn forward_features(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
            relu(&self.trunk.forward_t(xs, train)?)
        }

        fn pre_logits(&self, features: &Tensor, _: bool) -> Result<Tensor> {
            Ok(features.clone())
        }

        fn classifier(&self) -> &Classifier {
            &self.head
        }

        fn classifier_mut(&mut self) -> &mut Classifier {
            &mut self.head
        }

        fn forward_auxiliary(&self, xs: &Tensor, train: bool) -> Result<(Tensor, Vec<Auxiliary>)> {
            let outputs = recorded_all(&[xs], train, |inputs| {
                let xs = &inputs[0];
                let features = self.forward_features(xs, train)?;
                Ok(vec![self.forward_head(&features, train)?, self.aux.forward_t(&features, train)?])
            })?;
            let [logits, aux] = &outputs[..] else { bail!("two outputs") };
            Ok((logits.clone(), vec![Auxiliary { logits: aux.clone(), loss_weight: 0.3 }]))
        }
    }

    /// The auxiliary head counts by its weight, and its gradients arrive, on the tape and by candle's backward pass.
    #[test]
    fn the_training_loss_has_the_auxiliary_heads_in_it() -> Result<()> {
        let store = VarStore::new(4, DType::F64, &Device::Cpu);
        let vb = store.root();
        let toy = Toy {
            trunk: Linear::new(3, 5, vb.pp("trunk"))?,
            aux: Linear::new(5, 4, vb.pp("aux"))?,
            head: Classifier::new(5, 4, vb.pp("head"))?,
        };
        let xs = Tensor::new(&[[0.5f64, -1.0, 2.0], [1.5, 0.25, -0.75]], &Device::Cpu)?;
        check(&toy, &store, &xs, &Tensor::new(&[1u32, 3], &Device::Cpu)?)?;
        let mixed = Tensor::new(&[[0.25f64, 0.75, 0.0, 0.0], [0.0, 0.5, 0.25, 0.5]], &Device::Cpu)?;
        check(&toy, &store, &xs, &mixed)
    }

    fn check(toy: &Toy, store: &VarStore, xs: &Tensor, labels: &Tensor) -> Result<()> {
        let (loss, logits) = toy.training_loss(xs, labels, 0.1)?;
        let aux = toy.aux.forward_t(&toy.forward_features(xs, false)?, false)?;
        let by_hand = (cross_entropy(&logits.detach(), labels, 0.1)? + (cross_entropy(&aux, labels, 0.1)? * 0.3)?)?;
        assert!((loss.to_scalar::<f64>()? - by_hand.to_scalar::<f64>()?).abs() < 1e-15);
        let want = loss.backward()?;
        let (value, got) = value_and_grad(xs, |xs| Ok(toy.training_loss(xs, labels, 0.1)?.0))?;
        assert_eq!(value.to_scalar::<f64>()?, loss.to_scalar::<f64>()?);
        for (key, var) in store.parameters() {
            let (got, want) = (got.get(&var).expect(&key), want.get(&var).expect(&key));
            assert!(want.abs()?.max_all()?.to_scalar::<f64>()? > 0.0, "{key}");
            assert!((got - want)?.abs()?.max_all()?.to_scalar::<f64>()? < 1e-15, "{key}");
        }
        Ok(())
    }
}
