//! Arguments of `predict` and `eval`: a network with its weights, and how its images are normalised.

use crate::network::Wanted;
use anyhow::{Context, Result};
use std::path::PathBuf;
use zoo::ModelInfo;
use zoo_core::{Interpolation, Precision};
use zoo_train::augment::Normalize;
use zoo_train::data::photo::Framing;
use zoo_train::machine::{device, set_threads};
use zoo_train::progress::say;
use zoo_train::trained::{Overrides, Trained};

/// The arguments that name a trained network.
#[derive(clap::Args)]
pub struct Network {
    /// Name of the network, see `zoo list`
    model: String,
    /// Its weights: .safetensors, .pth, .pt, .th or a run's folder. What `zoo train` and the benchmark suite leave also
    /// says how images are cut and normalised and what the classes are called
    #[arg(long, value_name = "FILE")]
    weights: PathBuf,
    #[command(flatten)]
    wanted: Wanted,
    /// Channels of the network's images: 3, or 1, for which pictures are turned grey. Default: 3
    #[arg(long, value_name = "N")]
    in_chans: Option<usize>,
    /// Mean and standard deviation by which pixels are normalised. Default: what the weights' file says, else `model`
    #[arg(long, value_enum, value_name = "FROM")]
    normalize: Option<NormalizeFrom>,
    /// What to compute in: f32, or bf16 for mixed precision (on the CPU), whichever the network was trained in
    #[arg(long, value_name = "f32|bf16", default_value_t)]
    precision: Precision,
    /// Device to compute on: cpu, cuda:N or metal
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Threads to compute with. Default: one for each processor core
    #[arg(long)]
    threads: Option<usize>,
}

/// Where the mean and deviation come from that pixels are normalised by.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum NormalizeFrom {
    /// Those of the network's published checkpoints (torchvision's or timm's)
    Model,
    /// Those of CIFAR-10's images
    Cifar10,
    /// Those of ImageNet's images
    Imagenet,
    /// 0.5 and 0.5: pixels from -1 to 1
    Half,
}

impl Network {
    /// Opens the network for images of `image_size` pixels, or of what its file or the network itself says, and tells
    /// the user on standard error how it will look at them.
    pub fn open(&self, image_size: Option<usize>) -> Result<(&'static ModelInfo, Trained)> {
        set_threads(self.threads)?;
        let device = device(&self.device)?;
        let model = zoo::find(&self.model)?;
        let normalize = self.normalize.map(|from| match from {
            NormalizeFrom::Model => Normalize::of(&model.input),
            NormalizeFrom::Cifar10 => Normalize::CIFAR10,
            NormalizeFrom::Imagenet => Normalize::IMAGENET,
            NormalizeFrom::Half => Normalize::HALF,
        });
        let overrides =
            Overrides { normalize, image_size, in_chans: self.in_chans, selection: self.wanted.selection() };
        self.precision.check(&device).context("--precision")?;
        let trained = Trained::open(model, &self.weights, &overrides, &device)?.with_precision(self.precision)?;
        for note in trained.notes() {
            say(format_args!("{}: {note}", self.weights.display()));
        }
        let (framing, normalized) = (cut(&trained.framing()), trained.normalize());
        let assumed = trained.assumed().map(|why| format!(" ({why})")).unwrap_or_default();
        let in_precision = self.precision.unusual().map_or(String::new(), |precision| format!(" in {precision}"));
        say(format_args!(
            "{}: {} with {} classes{in_precision}; images of {framing}, {normalized}{assumed}",
            self.weights.display(),
            model.name,
            trained.num_classes()
        ));
        Ok((model, trained))
    }
}

/// How a photograph becomes a square.
fn cut(framing: &Framing) -> String {
    let Framing { size, crop, interpolation, squash } = *framing;
    let how = match interpolation {
        Interpolation::Bilinear => "bilinear",
        Interpolation::Bicubic => "bicubic",
    };
    if squash {
        return format!("{size}x{size} whatever their proportions ({how})");
    }
    match (size as f64 / crop) as usize {
        resized if resized > size => format!("{size}x{size} cut from {resized} ({how})"),
        _ => format!("{size}x{size}"),
    }
}
