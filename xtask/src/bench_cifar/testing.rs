//! What the tests of this folder share: runs with round numbers, to alter, and the command line.

use super::Args;
use clap::Parser;
use std::collections::BTreeMap;

use zoo_core::Precision;
use zoo_train::record::{DataRecord, EpochMetrics, Platform, RunOverrides, RunRecord, Status};
use zoo_train::report::Run;

/// The suite's command line.
#[derive(Parser)]
pub struct Command {
    #[command(flatten)]
    args: Args,
}

/// What the suite is asked for with these arguments.
pub fn asked(arguments: &str) -> Args {
    Command::try_parse_from(["bench-cifar"].into_iter().chain(arguments.split_whitespace())).unwrap().args
}

/// The record of a finished run of 20 epochs that ends at the accuracy `acc`.
pub fn record(model: &str, recipe: &str, seed: u64, acc: f64) -> RunRecord {
    RunRecord {
        model: model.into(),
        recipe: recipe.into(),
        overrides: RunOverrides::default(),
        precision: Precision::F32,
        hyperparameters: None,
        seed,
        epochs: 20,
        epochs_done: 20,
        steps: 7820,
        status: Status::Finished,
        test_acc_last: Some(acc),
        test_acc_best: Some(acc + 0.01),
        best_epoch: Some(18),
        val_acc_best: None,
        kept: None,
        test_loss_last: Some(0.75),
        train_loss: Some(0.5),
        parameters: 269_722,
        macs: Some(40_813_184),
        batch: 128,
        images_per_s: Some(1000.0),
        seconds: 1000.0,
        peak_rss_mb: Some(512.0),
        data: DataRecord::cifar10("CIFAR-10 binary files, data", 50_000, 10_000),
        device: "cpu".into(),
        threads: 2,
        versions: BTreeMap::new(),
        commit: Some("0123456789ab".into()),
        command: format!("cargo xtask bench-cifar --models {model} --recipe {recipe} --seeds {seed}"),
        started: "2026-01-02T03:04:05Z".into(),
        platform: Platform { os: "linux".into(), arch: "x86_64".into(), cpu: None },
        folder: format!("{model}-{recipe}-{seed}"),
    }
}

/// Such a run with its epochs.
pub fn run(model: &str, recipe: &str, seed: u64, acc: f64) -> Run {
    let epoch = |epoch: usize| EpochMetrics {
        epoch,
        step: epoch as u64 * 391,
        lr: 0.1,
        train_loss: 2.3 / epoch as f64,
        train_acc: acc,
        test_loss: 2.4 / epoch as f64,
        test_acc: acc * (1.0 - 0.5 / epoch as f64) / 0.975,
        seconds: 50.0,
        images_per_s: 1000.0,
        wait_share: 0.01,
        rss_mb: None,
    };
    Run {
        record: record(model, recipe, seed, acc),
        epochs: (1..=20).map(epoch).collect(),
        analysis: None,
        samples: None,
    }
}

/// The same run on synthetic images.
pub fn synthetic(mut run: Run) -> Run {
    run.record.data = DataRecord::synthetic(0, 2_000, 500);
    run
}
