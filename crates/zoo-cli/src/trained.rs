//! Arguments of `predict`, `embed`, `eval` and `export`: a network with its weights, and how photographs become its images.

use crate::network::{Wanted, no_image_options, weights_file};
use anyhow::{Context, Result, bail};
use candle_core::{DType, Device};
use std::path::PathBuf;
use zoo::{ModelInfo, SequenceInfo, SequenceModel, VarStore};
use zoo_core::weights::{LoadOptions, load};
use zoo_core::{ChannelOrder, Interpolation, Precision, PreprocessParts};
use zoo_image::{ImageClassifier, Normalize, Options, model_of};
use zoo_train::machine::{device, set_threads};
use zoo_train::progress::say;

/// Positional arguments: a network's name, if the weights do not say it, and pictures.
#[derive(clap::Args)]
pub struct Targets {
    /// Pictures: JPEG, PNG, WebP, BMP, GIF (the first frame) or TIFF. Folders are looked through, `-` is standard
    /// input: a picture, or a list of files and folders, a line each.
    /// Before them may stand the network's name (see `zoo list`), and must where the weights do not say it
    #[arg(required = true, value_name = "[MODEL] IMAGE")]
    targets: Vec<PathBuf>,
}

impl Targets {
    /// The network's name and the pictures.
    pub fn split<'a>(&'a self, network: &Network) -> Result<(Option<&'a str>, &'a [PathBuf])> {
        let (first, rest) = self.targets.split_first().context("an image is missing")?;
        let name = first.to_str().unwrap_or_default();
        if zoo::find(name).is_ok() && (!rest.is_empty() || !first.exists()) {
            if rest.is_empty() {
                let missing = format!("no images behind the network's name: expected {name} IMAGE...\n");
                clap::Error::raw(clap::error::ErrorKind::MissingRequiredArgument, missing).exit();
            }
            return Ok((Some(name), rest));
        }
        // A name that is mistyped, if nothing else says which network it is.
        let is_mistyped = !first.exists() && name != "-" && network.named()?.is_none();
        Ok(if is_mistyped { (Some(name), rest) } else { (None, &self.targets) })
    }
}

/// The arguments that name a trained network's weights, and how it looks at images.
#[derive(clap::Args)]
pub struct Network {
    /// Its weights: .safetensors, .pth, .pt, .th, a run's folder, hf:ORG/NAME[@REVISION][:FILE] of the Hugging Face
    /// hub, an address, or `default` for the network's published weights. What `zoo train` and the benchmark suite leave, and
    /// the config.json of timm and Hugging Face beside a file, also say how images are cut and normalised and what the
    /// classes are called
    #[arg(long, value_name = "FILE")]
    weights: PathBuf,
    #[command(flatten)]
    wanted: Wanted,
    /// Channels of the network's images: 3, or 1, for which pictures are turned grey. Default: 3
    #[arg(long, value_name = "N")]
    in_chans: Option<usize>,
    #[command(flatten)]
    images: Images,
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

/// The arguments that change how photographs become the network's images. What is not given is as the weights' file
/// says, a configuration beside it, or what is usual for files with these names of tensors.
#[derive(clap::Args)]
#[command(next_help_heading = "Images")]
struct Images {
    /// Side of the network's images in pixels
    #[arg(long, value_name = "N")]
    size: Option<usize>,
    /// Share of the resized photograph's side that is kept, from the middle: 0.875 cuts 224 from 256
    #[arg(long, value_name = "X")]
    crop: Option<f64>,
    /// What is resized: the shorter side, or both whatever the proportions
    #[arg(long, value_enum, value_name = "MODE")]
    crop_mode: Option<CropMode>,
    /// How photographs are resized: nearest, bilinear, bicubic or lanczos
    #[arg(long, value_name = "KIND")]
    interpolation: Option<Interpolation>,
    /// Mean that is taken off red, green and blue, on the scale 0 to 1: 0.485,0.456,0.406
    #[arg(long, value_name = "R,G,B", value_parser = colours, allow_hyphen_values = true)]
    mean: Option<[f64; 3]>,
    /// Deviation that they are divided by
    #[arg(long, value_name = "R,G,B", value_parser = colours)]
    std: Option<[f64; 3]>,
    /// Order in which the network reads the colours
    #[arg(long, value_enum, value_name = "ORDER")]
    channel_order: Option<Order>,
    /// Mean and deviation together, by whose they are
    #[arg(long, value_enum, value_name = "FROM")]
    normalize: Option<NormalizeFrom>,
}

/// What is resized of a photograph.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum CropMode {
    /// The shorter side; the longer one keeps the proportions
    Center,
    /// Both sides
    Squash,
}

/// The order of a pixel's colours.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Order {
    /// Red, green, blue
    Rgb,
    /// Blue, green, red
    Bgr,
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

/// Three numbers, for red, green and blue.
fn colours(text: &str) -> Result<[f64; 3], String> {
    let numbers: Result<Vec<f64>, _> = text.split(',').map(|number| number.trim().parse()).collect();
    match numbers.as_deref() {
        Ok(&[red, green, blue]) => Ok([red, green, blue]),
        _ => Err("expected three numbers, as 0.485,0.456,0.406".into()),
    }
}

impl Images {
    fn parts(&self) -> PreprocessParts {
        PreprocessParts {
            size: self.size,
            crop: self.crop,
            interpolation: self.interpolation,
            squash: self.crop_mode.map(|mode| matches!(mode, CropMode::Squash)),
            mean: self.mean,
            std: self.std,
            channel_order: self.channel_order.map(|order| match order {
                Order::Rgb => ChannelOrder::Rgb,
                Order::Bgr => ChannelOrder::Bgr,
            }),
        }
    }

    fn normalize(&self, model: &ModelInfo) -> Option<Normalize> {
        self.normalize.map(|from| match from {
            NormalizeFrom::Model => Normalize::of(&model.preprocess),
            NormalizeFrom::Cifar10 => Normalize::CIFAR10,
            NormalizeFrom::Imagenet => Normalize::IMAGENET,
            NormalizeFrom::Half => Normalize::HALF,
        })
    }
}

impl Network {
    /// Opens the network called `name`, or the one that the weights say, for images of `image_size` pixels, or of what its
    /// file or the network itself says, and tells the user on standard error how it will look at them.
    pub fn open(&self, name: Option<&str>, image_size: Option<usize>) -> Result<ImageClassifier> {
        set_threads(self.threads)?;
        let device = device(&self.device)?;
        let model = match name {
            Some(name) => zoo::find(name)?,
            None => match self.named()? {
                Some(model) => model,
                None => bail!(
                    "{}: it does not say which network it holds: name it first (`zoo list` has the names)",
                    self.weights.display()
                ),
            },
        };
        self.precision.check(&device).context("--precision")?;
        let mut options = Options::new().model(model).device(&device).precision(self.precision);
        options.normalize = self.images.normalize(model);
        options.preprocess = self.images.parts();
        options.image_size = image_size;
        options.in_chans = self.in_chans;
        options.selection = self.wanted.selection();
        let trained = options.open(weights_file(&self.weights, Some(model))?)?;
        for note in trained.notes() {
            say(format_args!("{}: {note}", self.weights.display()));
        }
        let in_precision = self.precision.unusual().map_or(String::new(), |precision| format!(" in {precision}"));
        say(format_args!(
            "{}: {} with {} classes{in_precision}; images of {}{}",
            self.weights.display(),
            model.name,
            trained.num_classes(),
            seen(&trained),
            why(&trained)
        ));
        Ok(trained)
    }

    /// The network on sequences that `info` is a row of, in a store with the weights' tensors.
    pub fn open_sequence(&self, info: &SequenceInfo) -> Result<(VarStore, Box<dyn SequenceModel>)> {
        no_image_options(info.name, self.in_chans.is_some() || self.images.parts() != PreprocessParts::default())?;
        let store = VarStore::for_loading(DType::F32, &Device::Cpu);
        let net = (info.builder)(store.root())?;
        let weights = self.wanted.open(&self.weights, None)?;
        let selection = self.wanted.selection();
        let options = selection.of(LoadOptions { renames: info.renames, ..LoadOptions::default() });
        load(&store, &weights, &options)?;
        Ok((store, net))
    }

    /// What the network is to compute in.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Whether arguments say how photographs are cut and resized.
    pub fn cuts_photographs(&self) -> bool {
        let Images { size, crop, crop_mode, interpolation, .. } = &self.images;
        size.is_some() || crop.is_some() || crop_mode.is_some() || interpolation.is_some()
    }

    /// The network that the weights say they are of.
    fn named(&self) -> Result<Option<&'static ModelInfo>> {
        Ok(model_of(&weights_file(&self.weights, None)?, &self.wanted.selection())?)
    }
}

/// How a photograph becomes the network's image.
fn seen(trained: &ImageClassifier) -> String {
    let text = trained.preprocess().to_string();
    match (trained.normalize(), text.rsplit_once("), ")) {
        (Normalize::PixelMean, Some((cut, _))) => format!("{cut}), {}", Normalize::PixelMean),
        _ => text,
    }
}

/// Who says so, in brackets, unless it is the file itself or the user.
fn why(trained: &ImageClassifier) -> String {
    match (trained.assumed(), trained.stated_by()) {
        (Some(why), _) => format!(" ({why})"),
        (None, []) => String::new(),
        (None, files) => format!(" (as {} beside it says)", files.join(" and ")),
    }
}
