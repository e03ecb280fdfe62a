//! What `predict` and `eval` share: a network with its weights, and how its images are normalised.

use anyhow::Result;
use std::path::PathBuf;
use zoo::ModelInfo;
use zoo_train::augment::Normalize;
use zoo_train::machine::{device, set_threads};
use zoo_train::progress::say;
use zoo_train::trained::{Instead, Trained};

/// The arguments that name a trained network.
#[derive(clap::Args)]
pub struct Network {
    /// Name of the network
    model: String,
    /// Its weights: .safetensors, .pth, .pt or .th. What `zoo train` and the benchmark suite leave also says how images are cut and
    /// normalised and what the classes are called
    #[arg(long, value_name = "FILE")]
    weights: PathBuf,
    /// Mean and deviation that pixels are brought to zero and one with. Default: what the weights' file says, else `model`
    #[arg(long, value_enum, value_name = "WHOSE")]
    normalize: Option<Whose>,
    /// cpu, cuda:N or metal
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Threads, where they are not one a core
    #[arg(long)]
    threads: Option<usize>,
}

/// Whose mean and deviation.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Whose {
    /// The network's: what torchvision's or timm's checkpoints of it were trained with
    Model,
    /// CIFAR-10's
    Cifar10,
    /// ImageNet's
    Imagenet,
    /// A half each: pixels from -1 to 1
    Half,
}

impl Network {
    /// Opens the network for images of `image_size` pixels, or of what its file or the network itself says, and tells the user on
    /// standard error how it will look at them.
    pub fn open(&self, image_size: Option<usize>) -> Result<(&'static ModelInfo, Trained)> {
        set_threads(self.threads)?;
        let device = device(&self.device)?;
        let model = zoo::find(&self.model)?;
        let normalize = self.normalize.map(|whose| match whose {
            Whose::Model => Normalize::of(&model.input),
            Whose::Cifar10 => Normalize::CIFAR10,
            Whose::Imagenet => Normalize::IMAGENET,
            Whose::Half => Normalize::HALF,
        });
        let trained = Trained::open(model, &self.weights, &Instead { normalize, image_size }, &device)?;
        let (side, normalized) = (trained.framing().size, trained.normalize());
        say(format_args!(
            "{}: {} with {} classes; images of {side}x{side}, {normalized}",
            self.weights.display(),
            model.name,
            trained.num_classes()
        ));
        Ok((model, trained))
    }
}
