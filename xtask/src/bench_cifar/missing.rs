//! `bench-cifar --plan`: the rows of the published tables that no record has yet, and what they would cost on this machine.

use super::plan::{Planned, flags, plan};
use super::{Args, results_folder};
use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, Instant};
use zoo::{ModelOptions, VarStore};
use zoo_core::Precision;
use zoo_core::tape::value_and_grad;
use zoo_core::threads::in_pool;
use zoo_train::format::{count, duration, thousands};
use zoo_train::machine::{device, set_threads};
use zoo_train::progress::say;
use zoo_train::record::{CIFAR10, RunRecord, Status};
use zoo_train::report;

/// The published sets, in the order in which a missing row is worth most.
const SETS: &str = "resnet-paper,review-20,modern-200,vit-scratch,template-600";
/// CIFAR-10's.
const IMAGES: usize = 50_000;
/// How long a network is measured.
const MEASURED: Duration = Duration::from_secs(2);
/// Share of a run that is training; the rest is evaluation.
const TRAINING: f64 = 0.92;

/// A run that is missing, and how long it would take here.
struct Missing {
    planned: Planned,
    epochs: usize,
    images_per_s: f64,
    seconds: f64,
}

/// Prints the plan: nothing is trained but a few steps of each network, on random images, for its speed.
pub fn print(args: &Args) -> Result<()> {
    let threads = set_threads(args.threads)?;
    let device = device(&args.device)?;
    args.precision.iter().try_for_each(|precision| precision.check(&device)).context("--precision")?;
    let (runs, warnings) = report::load(&results_folder()?)?;
    warnings.iter().for_each(|warning| say(format_args!("warning: {warning}")));
    let records: Vec<&RunRecord> = runs.iter().map(|run| &run.record).collect();
    let all = plan(args, SETS, IMAGES)?;
    let (asked, missing) = (all.len(), missing(all, &records)?);
    say(format_args!("{asked} rows, {} of them not run yet; measuring the speed of their networks", missing.len()));

    let mut speeds: BTreeMap<(&str, &str, usize), f64> = BTreeMap::new();
    let mut rows = Vec::new();
    for (planned, epochs) in missing {
        let recipe = &planned.choice.recipe;
        let key = (planned.choice.model.name, recipe.precision.name(), recipe.batch);
        let images_per_s = match speeds.get(&key) {
            Some(speed) => *speed,
            None => {
                let speed = in_pool(|| training_speed(&planned, &device)).with_context(|| key.0.to_owned())?;
                *speeds.entry(key).or_insert(speed)
            }
        };
        let seconds = (epochs * recipe.train_images(IMAGES)) as f64 / images_per_s / TRAINING;
        rows.push(Missing { planned, epochs, images_per_s, seconds });
    }
    let out = &mut std::io::stdout().lock();
    rows.iter().try_for_each(|row| writeln!(out, "{}", line(row, args, threads)))?;
    let total: f64 = rows.iter().map(|row| row.seconds).sum();
    writeln!(
        out,
        "{}: {} here, {} core hours. A row that is run goes into the README as docs/train_cifar10.md says.",
        count(rows.len(), "missing row"),
        duration(total),
        hours(total, threads)
    )?;
    Ok(())
}

/// Those of `planned` that no record has, in either precision, with their epochs.
fn missing(planned: Vec<Planned>, records: &[&RunRecord]) -> Result<Vec<(Planned, usize)>> {
    let is_run = |planned: &Planned, epochs: usize| {
        records.iter().any(|record| {
            let data = &record.data;
            record.status == Status::Finished
                && !data.synthetic
                && data.name.starts_with(CIFAR10)
                && record.model == planned.choice.model.name
                && record.recipe == planned.choice.recipe.name
                && record.overrides.recipe.settings() == planned.choice.overrides.settings()
                && record.epochs == epochs
                && record.seed == planned.seed
        })
    };
    let with_epochs = planned.into_iter().map(|planned| {
        let epochs = planned.choice.recipe.epochs(IMAGES)?;
        Ok((planned, epochs))
    });
    let with_epochs = with_epochs.collect::<Result<Vec<_>>>()?;
    Ok(with_epochs.into_iter().filter(|(planned, epochs)| !is_run(planned, *epochs)).collect())
}

/// Images a second in training, the recipe's batch and optimizer: the median step of some seconds.
fn training_speed(planned: &Planned, device: &Device) -> Result<f64> {
    let recipe = &planned.choice.recipe;
    let store = VarStore::new(planned.seed, DType::F32, device);
    let net = planned.choice.model.build(&ModelOptions::for_data(10, 3, 32), store.root())?;
    let mut optimizer = recipe.optimizer.build(store.parameters(), recipe.lr * 1e-3, recipe.decay_all);
    let images = Tensor::randn(0f32, 1.0, (recipe.batch, 3, 32, 32), device)?.to_dtype(recipe.precision.dtype())?;
    let labels = Tensor::zeros(recipe.batch, DType::U32, device)?;
    let mut step = || -> Result<f64> {
        let begin = Instant::now();
        let (_, grads) = value_and_grad(&images, |images| Ok(net.training_loss(images, &labels, 0.0)?.0))?;
        optimizer.step(&grads)?;
        device.synchronize()?;
        Ok(begin.elapsed().as_secs_f64())
    };
    step()?;
    let (begin, mut times) = (Instant::now(), Vec::new());
    while begin.elapsed() < MEASURED || times.len() < 3 {
        times.push(step()?);
    }
    times.sort_unstable_by(f64::total_cmp);
    Ok(recipe.batch as f64 / times[times.len() / 2])
}

fn line(row: &Missing, args: &Args, threads: usize) -> String {
    let Missing { planned, epochs, images_per_s, seconds } = row;
    let precision = planned.choice.recipe.precision;
    format!(
        "{:11} {:>5} core h  {:>9} epochs of {:<4} {:>6} images/s  cargo xtask bench-cifar --models {}{} --out results --resume",
        duration(*seconds),
        hours(*seconds, threads),
        thousands(*epochs as u64),
        if precision == Precision::F32 { "f32" } else { precision.name() },
        thousands(images_per_s.round() as u64),
        planned.choice.model.name,
        flags(planned, args)
    )
}

/// With a digit behind the point.
fn hours(seconds: f64, threads: usize) -> String {
    format!("{:.1}", seconds * threads as f64 / 3600.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench_cifar::testing::{asked, record};

    #[test]
    fn rows_that_were_run_are_not_missing() {
        let args = asked("--precision bf16");
        let left = |records: &[RunRecord]| -> Vec<String> {
            let records: Vec<&RunRecord> = records.iter().collect();
            let missing = missing(plan(&args, SETS, IMAGES).unwrap(), &records).unwrap();
            missing
                .iter()
                .map(|(planned, epochs)| {
                    format!("{} {} {epochs}", planned.choice.model.name, planned.choice.recipe.name)
                })
                .collect()
        };
        let all = left(&[]);
        assert!(all.contains(&"cifar_resnet20 resnet-paper 182".to_owned()), "{all:?}");
        assert_eq!(all.iter().filter(|row| row.starts_with("mobilenet_v2 review-20")).count(), 2);
        // In f32 or on a copy of the images, it was run; cut off, on other images or in another length, it was not.
        let run = record("cifar_alexnet", "review-20", 1, 0.7);
        let mut copy = run.clone();
        copy.data.name = "CIFAR-10, JPEG q75 copy".into();
        for there in [run.clone(), copy] {
            assert_eq!(left(&[there]).len(), all.len() - 1);
        }
        let mut synthetic = run.clone();
        synthetic.data.synthetic = true;
        let others = [
            RunRecord { status: Status::Interrupted, ..run.clone() },
            RunRecord { epochs: 5, ..run.clone() },
            RunRecord { seed: 2, ..run.clone() },
            synthetic,
        ];
        assert_eq!(left(&others), all);
    }

    #[test]
    fn a_row_states_its_time_and_its_command() {
        let args = asked("--models mlp --epochs 2 --precision bf16");
        let planned = plan(&args, SETS, IMAGES).unwrap().remove(0);
        let row = Missing { planned, epochs: 2, images_per_s: 1234.5, seconds: 5400.0 };
        let told = line(&row, &args, 2);
        assert!(
            told.starts_with("1 h 30 min") && told.contains("3.0 core h") && told.contains("1,235 images/s"),
            "{told}"
        );
        let command = "cargo xtask bench-cifar --models mlp --recipe mlp-sgd --epochs 2 --precision bf16 --seeds 1 --out results --resume";
        assert!(told.ends_with(command), "{told}");
        assert!(training_speed(&row.planned, &Device::Cpu).unwrap() > 0.0);
    }
}
