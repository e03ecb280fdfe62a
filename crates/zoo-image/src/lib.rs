//! Pictures in, names out: the zoo's networks as image classifiers, for programs and servers.
//!
//! ```no_run
//! use zoo_image::ImageClassifier;
//!
//! // Published weights by the network's name, `hf:ORG/NAME`, an address, a file, or the folder of a training run.
//! let classifier = ImageClassifier::pretrained("resnet50")?;
//! println!("{}", classifier.classify("photo.jpg")?.best()); // lion (93.1 %)
//!
//! // The file says which network it holds, how its images are made and what its classes are called.
//! let own = ImageClassifier::open("my-run")?;
//! let body: Vec<u8> = std::fs::read("photo.jpg")?; // what a web service is sent
//! for class in own.classify(&body)?.top(3) {
//!     println!("{class}");
//! }
//! let vector: Vec<f32> = own.embed("photo.jpg")?; // to search or cluster with
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A classifier is shared by threads as it is (`&self`, `Send + Sync`). [`Options`] changes what a file says or leaves
//! open. Preprocessing is the checkpoint's: Pillow's arithmetic, byte for byte, with the size, crop, interpolation, mean
//! and deviation that the file states, a configuration beside it, or that files with its names of tensors want.
//!
//! Below this crate there is no trainer, no plot and no terminal, and downloading is a feature, `download`.
#![deny(missing_docs)]

mod classifier;
mod config;
mod error;
mod framing;
mod grey;
mod input;
mod jpeg;
mod metadata;
mod notes;
mod options;
pub mod picture;
mod place;
mod prediction;
mod resample;
mod timm;
mod transform;

pub use classifier::ImageClassifier;
pub use error::{Error, Result};
pub use framing::Framing;
pub use grey::grey;
/// The decoders' crate, whose decoded images are taken too.
pub use image;
pub use input::Input;
pub use metadata::{BatchNormOverride, Kept, Metadata, carried, normalize_of};
pub use notes::taken;
pub use options::Options;
pub use picture::{Limits, Picture};
pub use place::{DEFAULT_WEIGHTS, WEIGHTS_FILE, model_of, weights_file};
pub use prediction::{Class, Prediction};
pub use resample::resize;
pub use transform::{Normalize, Transform, View};
/// The networks: `zoo::all`, `zoo::find`.
pub use zoo;
