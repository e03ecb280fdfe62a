//! The record of a run, put together from what was asked, what came out and where it ran: the same for every command
//! that trains.

use crate::checkpoint;
use crate::data::{DataSource, Dataset};
use crate::errors;
use crate::eval::Evaluation;
use crate::record::{
    DataRecord, EpochMetrics, Platform, RunOverrides, RunRecord, Status, git_commit, peak_rss_mb, versions,
};
use crate::trainer::{Job, Outcome};
use anyhow::{Error, Result};
use serde_json::json;
use std::path::Path;
use zoo::ModelOptions;
use zoo_core::inspect::model_macs;

/// The context of a run: what its record holds beyond its job, its data and its outcome.
#[derive(Debug, Clone)]
pub struct RunContext {
    /// Settings that differ from the named recipe, see
    /// [`Overrides::that_change`](crate::recipe::Overrides::that_change).
    pub overrides: RunOverrides,
    /// The device, as the user names it.
    pub device: String,
    /// Threads that the run was given.
    pub threads: usize,
    /// When it began, see [`now_utc`](crate::record::now_utc).
    pub started: String,
    /// The [`source_commit`] when it began: the tree may change while it trains.
    pub commit: Option<String>,
    /// The command that repeats it.
    pub command: String,
    /// Its folder, relative to the record's file.
    pub folder: String,
}

/// The commit of this program's source tree, where that tree is still there; see [`git_commit`]. `cargo xtask` and
/// `cargo run` build the tree first, so the commit is the program's own; a binary that was kept may name a later one.
pub fn source_commit() -> Option<String> {
    git_commit(Path::new(env!("CARGO_MANIFEST_DIR")))
}

/// An argument as a shell takes it: in quotes where it needs them.
///
/// ```
/// use zoo_train::run_record::quoted;
/// assert_eq!(quoted("my images"), "'my images'");
/// ```
pub fn quoted(argument: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./=:,+@%".contains(c);
    match !argument.is_empty() && argument.chars().all(plain) {
        true => argument.to_string(),
        false => format!("'{}'", argument.replace('\'', r"'\''")),
    }
}

impl RunRecord {
    /// Makes the record of `job`, trained on `data`, with its `outcome`. A checkpoint that it started from is listed
    /// among the overrides, so that nobody takes the run for one from scratch. The peak memory is the process's own
    /// since [`reset_peak_rss`](crate::record::reset_peak_rss).
    ///
    /// # Errors
    /// A recipe that makes no batch of the data, or a network that the data's classes and images do not fit.
    pub fn of(job: &Job, data: &Dataset, outcome: &Outcome, context: RunContext) -> Result<Self> {
        let RunContext { mut overrides, device, threads, started, commit, command, folder } = context;
        if let Some(start) = &job.start {
            overrides.weights = Some(start.file.display().to_string());
        }
        let [channels, height, _] = data.train.shape();
        let options = ModelOptions::for_data(data.classes.len(), channels, height);
        let mut recipe = job.recipe.clone();
        recipe.drop_last |= recipe.leaves_one_image(recipe.train_images(data.train.len()));
        let epochs = &outcome.epochs;
        let last = epochs.last();
        // The first of equals: a later epoch must do better to be called the best.
        let best = epochs.iter().reduce(|best, e| if e.test_acc > best.test_acc { e } else { best });
        // Where epochs are measured on validation images beside the test images, those are measured once.
        let by_validation = !data.is_validation && outcome.kept.as_ref().is_some_and(|kept| kept.measured_on != "test");
        let measured = |of: fn(&EpochMetrics) -> f64, once: fn(&Evaluation) -> f64| match by_validation {
            true => outcome.test.as_ref().map(once),
            false => last.map(of),
        };
        let mean = |f: fn(&EpochMetrics) -> f64| {
            (!epochs.is_empty()).then(|| epochs.iter().map(f).sum::<f64>() / epochs.len() as f64)
        };
        Ok(Self {
            model: job.model.name.into(),
            recipe: job.recipe.name.clone(),
            overrides,
            precision: recipe.precision,
            hyperparameters: Some(recipe),
            seed: job.seed,
            epochs: job.recipe.epochs(data.train.len())?,
            epochs_done: epochs.len(),
            steps: outcome.steps,
            status: outcome.status.clone(),
            test_acc_last: measured(|e| e.test_acc, Evaluation::top1),
            test_acc_best: best.filter(|_| !by_validation).map(|e| e.test_acc),
            best_epoch: best.map(|e| e.epoch),
            val_acc_best: best.filter(|_| by_validation).map(|e| e.test_acc),
            kept: outcome.kept.clone(),
            test_loss_last: measured(|e| e.test_loss, |test| test.loss),
            train_loss: last.map(|e| e.train_loss),
            parameters: job.model.count_parameters(&options)? as u64,
            macs: model_macs(job.model, &options).ok(),
            batch: job.recipe.batch,
            images_per_s: mean(|e| e.images_per_s),
            seconds: outcome.seconds,
            peak_rss_mb: peak_rss_mb(),
            data: DataRecord::of(data, outcome.train_images),
            device,
            threads,
            versions: versions(),
            commit,
            command,
            started,
            platform: Platform::current(),
            folder,
        })
    }
}

impl RunRecord {
    /// The differences between the recorded run and `job` on `data`, in the form of
    /// [`trainer::differences`](crate::trainer::differences): for folders without the file that says which run they
    /// hold. The path of the data is left out.
    ///
    /// # Errors
    /// A recipe that makes no batch of the data.
    pub fn differences(&self, job: &Job, data: &Dataset) -> Result<Vec<String>> {
        let ours = DataRecord::of(data, job.recipe.train_images(data.train.len()));
        let epochs = job.recipe.epochs(data.train.len())?;
        let told = |data: &DataRecord| {
            let DataRecord { name, train_images, test_images, .. } = data;
            json!({"name": name, "train_images": train_images, "test_images": test_images})
        };
        Ok(checkpoint::differences(
            &json!({
                "model": self.model, "recipe": self.recipe, "seed": self.seed, "epochs": self.epochs, "batch": self.batch,
                "precision": self.precision, "init": self.init(), "data": told(&self.data),
            }),
            &json!({
                "model": job.model.name, "recipe": job.recipe.name, "seed": job.seed, "epochs": epochs, "batch": job.recipe.batch,
                "precision": job.recipe.precision, "init": job.recipe.init, "data": told(&ours),
            }),
        ))
    }
}

impl Outcome {
    /// The outcome of a run that ended with an error before its first step.
    pub fn failed(error: &Error) -> Self {
        let message = errors::line(error);
        Self { status: Status::Failed { message }, ..Self::default() }
    }
}

impl DataRecord {
    /// The data of a run that trained on `train_images` of `data` and was tested on all of its test images.
    pub fn of(data: &Dataset, train_images: usize) -> Self {
        let (source, test_images) = (&data.source, data.test.len());
        match source {
            DataSource::Synthetic { seed } => Self::synthetic(*seed, train_images, test_images),
            DataSource::Cifar10Files { .. } | DataSource::Cifar10Hub => {
                Self::cifar10(source.label(), train_images, test_images)
            }
            DataSource::Altered { name, .. } => {
                Self { name: name.clone(), source: source.label(), synthetic: false, train_images, test_images }
            }
            DataSource::Other { label } => {
                Self { name: label.clone(), source: label.clone(), synthetic: false, train_images, test_images }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Synthetic;
    use crate::recipe::{Overrides, Recipe};
    use crate::record::tests::epoch;
    use candle_core::Device;
    use zoo_core::{InitRule, Precision};

    fn job(model: &str) -> Job {
        let recipe = Recipe::named("quick").unwrap();
        Job::new(zoo::find(model).unwrap(), recipe, 7, Device::Cpu)
    }

    fn context() -> RunContext {
        RunContext {
            overrides: Overrides { lr: Some(0.5), ..Overrides::NONE }.into(),
            device: "cpu".into(),
            threads: 2,
            started: "2026-01-02T03:04:05Z".into(),
            commit: source_commit(),
            command: "zoo train mlp".into(),
            folder: ".".into(),
        }
    }

    #[test]
    fn a_record_tells_what_was_asked_and_what_came_out() {
        let data = Synthetic { train: 64, test: 20, seed: 3 }.generate();
        let epochs = [0.5, 0.7, 0.7, 0.6].into_iter().zip(1..).map(|(accuracy, number)| epoch(number, accuracy));
        let outcome =
            Outcome { epochs: epochs.collect(), steps: 4, train_images: 64, seconds: 9.0, ..Outcome::default() };
        let record = RunRecord::of(&job("mlp").weights("net.pth", &["layers.2"]), &data, &outcome, context()).unwrap();
        assert_eq!(record.overrides.settings(), ["lr=0.5", "weights=net.pth"]);
        assert_eq!(record.hyperparameters, Some(job("mlp").recipe));
        assert_eq!((record.model.as_str(), record.recipe.as_str(), record.seed), ("mlp", "quick", 7));
        assert_eq!((record.epochs, record.epochs_done, record.steps), (4, 4, 4));
        assert_eq!((record.test_acc_last, record.test_acc_best, record.best_epoch), (Some(0.6), Some(0.7), Some(2)));
        assert_eq!((record.parameters, record.images_per_s), (1_707_274, Some(1000.0)));
        assert_eq!(record.data, DataRecord::synthetic(3, 64, 20));
    }

    #[test]
    fn a_record_tells_the_run_from_others() {
        let data = Synthetic { train: 64, test: 20, seed: 3 }.generate();
        let outcome = Outcome { steps: 4, train_images: 64, seconds: 9.0, ..Outcome::default() };
        let record = RunRecord::of(&job("mlp"), &data, &outcome, context()).unwrap();
        assert!(record.differences(&job("mlp"), &data).unwrap().is_empty());
        let mut other = job("mlp");
        other.seed = 8;
        let told = record.differences(&other, &data.clone().limit(30)).unwrap();
        assert_eq!(told, ["data.train_images: 64 there, 30 here", "seed: 7 there, 8 here"]);

        let mut mixed = job("mlp");
        mixed.recipe.precision = Precision::Bf16;
        assert_eq!(record.differences(&mixed, &data).unwrap(), [r#"precision: "f32" there, "bf16" here"#]);
        let recorded = RunRecord::of(&mixed, &data, &outcome, context()).unwrap();
        assert_eq!(recorded.precision, Precision::Bf16);
        assert!(recorded.differences(&mixed, &data).unwrap().is_empty());

        // A run of before the recipe stated other initial values is not taken for one of today.
        let mut started = job("mlp");
        started.recipe.init = InitRule::Torch;
        assert_eq!(record.differences(&started, &data).unwrap(), [r#"init: "model" there, "torch" here"#]);
    }

    #[test]
    fn an_error_makes_a_failed_record() {
        let data = Synthetic { train: 64, test: 20, seed: 0 }.generate();
        let outcome = Outcome::failed(&anyhow::anyhow!("two\nlines").context("mlp"));
        let record = RunRecord::of(&job("mlp"), &data, &outcome, context()).unwrap();
        assert_eq!(record.status, Status::Failed { message: "mlp: two lines".into() });
        assert_eq!((record.test_acc_last, record.epochs_done, record.images_per_s), (None, 0, None));
    }

    /// What the trainer changes by itself, it changes in the record too.
    #[test]
    fn a_last_batch_of_one_image_is_recorded_as_left_out() {
        let data = Synthetic { train: 257, test: 20, seed: 0 }.generate();
        let record = RunRecord::of(&job("mlp"), &data, &Outcome::failed(&anyhow::anyhow!("")), context()).unwrap();
        let followed = record.hyperparameters.unwrap();
        assert_eq!(followed, Recipe { drop_last: true, ..job("mlp").recipe });
    }

    #[test]
    fn only_what_a_shell_would_take_apart_is_quoted() {
        let words = ["--lr=0.1", "my/images", "my images", "it's", ""];
        assert_eq!(words.map(quoted), ["--lr=0.1", "my/images", "'my images'", r"'it'\''s'", "''"]);
    }

    /// A network for 224 pixels that is trained on smaller images costs what it costs there.
    #[test]
    fn macs_are_those_of_the_images_trained_on() {
        let data = Synthetic { train: 64, test: 20, seed: 0 }.generate();
        let record = RunRecord::of(&job("resnet18"), &data, &Outcome::failed(&anyhow::anyhow!("")), context());
        let macs = record.unwrap().macs.unwrap();
        let at_224 = model_macs(zoo::find("resnet18").unwrap(), &ModelOptions::default()).unwrap();
        assert!(macs > 0 && macs < at_224 / 40, "{macs} of {at_224}");
    }
}
