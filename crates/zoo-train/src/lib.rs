//! Training the zoo's networks: data, augmentation, optimizers, schedules, recipes, the loop, and the report.
//!
//! ```
//! use candle_core::Device;
//! use std::sync::atomic::AtomicBool;
//! use zoo_train::checkpoint::Checkpoints;
//! use zoo_train::data::Synthetic;
//! use zoo_train::recipe::{Overrides, Recipe};
//! use zoo_train::trainer::{Job, train};
//!
//! let data = Synthetic { train: 256, test: 64, seed: 0 }.generate();
//! let recipe = Recipe::named("quick")?.with(&Overrides { epochs: Some(1), ..Overrides::default() })?;
//! let job = Job::new(zoo::find("mlp")?, recipe, 1, Device::Cpu);
//! let folder = std::env::temp_dir().join(format!("zoo-train-doc-{}", std::process::id()));
//! std::fs::create_dir_all(&folder)?;
//! let outcome = train(&job, &data, &folder, &Checkpoints::default(), &AtomicBool::new(false))?;
//! println!("test accuracy {:.1} %", 100.0 * outcome.epochs[0].test_acc);
//! # std::fs::remove_dir_all(&folder)?;
//! # Ok::<(), anyhow::Error>(())
//! ```
#![deny(missing_docs)]

pub mod augment;
pub mod average;
pub mod checkpoint;
pub mod confusion;
pub mod data;
pub mod error_analysis;
pub mod errors;
pub mod eval;
pub mod format;
pub mod loader;
pub mod lock;
pub mod loss;
pub mod machine;
pub mod optim;
pub mod progress;
pub mod recipe;
pub mod record;
pub mod report;
pub mod run_record;
pub mod samples;
pub mod schedule;
#[cfg(feature = "tensorboard")]
pub mod tensorboard;
pub mod trainer;
