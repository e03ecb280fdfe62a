//! What follows a run as it goes.

use super::Args;
use crate::text::print_line;
use anyhow::{Result, ensure};
use std::path::Path;
use zoo_train::data::Dataset;
use zoo_train::progress::say;
use zoo_train::record::{EpochMetrics, METRICS_FILE, METRICS_TABLE, RunRecord, metrics_csv, read_jsonl, replace_file};
use zoo_train::report;
use zoo_train::run_record::RunContext;
use zoo_train::trainer::{Hook, Job, Outcome};

/// Folder of a run's folder with its event files.
pub const EVENTS: &str = "tensorboard";

/// What follows a run as it goes: its page, its table and, where they are asked for, its event file and its lines.
pub fn follow(args: &Args, job: &Job, data: &Dataset, context: &RunContext) -> Result<Hook> {
    let (json, folder, job, data, context) = (args.json, args.out.clone(), job.clone(), data.clone(), context.clone());
    let measured_on = job.recipe.measured_on(&data);
    let trained_on = job.recipe.train_images(data.train.len());
    let events = if args.tensorboard { Some(curves(&folder.join(EVENTS), measured_on)?) } else { None };
    Ok(Hook::new(move |metrics| {
        if json {
            // That standard output cannot be written to is no reason to end the training.
            print_line(serde_json::to_string(metrics).unwrap_or_default()).ok();
        }
        // Nor is a page that cannot be written: the run says so where it writes what it needs.
        let follow = || -> Result<()> {
            let epochs = read_jsonl(&folder.join(METRICS_FILE))?.values;
            replace_file(&folder.join(METRICS_TABLE), metrics_csv(&epochs, measured_on).as_bytes())?;
            let outcome = Outcome::running(epochs, job.recipe.keep, measured_on, trained_on);
            report::write_page(&folder, RunRecord::of(&job, &data, &outcome, context.clone())?)
        };
        follow().ok();
        if let Some(Err(error)) = events.as_ref().map(|events| events(metrics)) {
            say(format_args!("{error:#}"));
        }
    }))
}

/// Refuses event files where the program was built without them.
pub fn check(args: &Args) -> Result<()> {
    ensure!(
        !args.tensorboard || cfg!(feature = "tensorboard"),
        "--tensorboard: this program was built without event files; `cargo install --path crates/zoo-cli --locked --features \
         tensorboard` builds one that writes them. {METRICS_TABLE} has the same figures"
    );
    Ok(())
}

/// Takes the figures of an epoch.
type Curves = Box<dyn Fn(&EpochMetrics) -> Result<()> + Send + Sync>;

/// Writes every epoch's figures into an event file in `folder`.
#[cfg(feature = "tensorboard")]
fn curves(folder: &Path, measured_on: &'static str) -> Result<Curves> {
    use std::sync::Mutex;
    use zoo_train::tensorboard::Events;
    let events = Mutex::new(Events::create(folder)?);
    Ok(Box::new(move |metrics| {
        let mut events = events.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let [loss, accuracy] = ["loss", "accuracy"].map(|name| format!("{measured_on}/{name}"));
        let figures = [
            ("train/loss", metrics.train_loss),
            ("train/accuracy", metrics.train_acc),
            (&loss, metrics.test_loss),
            (&accuracy, metrics.test_acc),
            ("lr", metrics.lr),
            ("images_per_s", metrics.images_per_s),
        ];
        figures.into_iter().try_for_each(|(tag, value)| events.scalar(tag, metrics.step, value))
    }))
}

#[cfg(not(feature = "tensorboard"))]
fn curves(_: &Path, _: &'static str) -> Result<Curves> {
    Ok(Box::new(|_| Ok(())))
}
