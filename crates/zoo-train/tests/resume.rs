//! A run that is killed at any moment and resumed comes to the same weights and metrics as one that nobody disturbed,
//! bit by bit.
//!
//! The run is a process of its own, this test binary again with [`CHILD`] in its environment, so that it can be killed
//! as a crash kills: anywhere, also inside the writing of a checkpoint. Its kernels give the same bits on any number of
//! threads.

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime};
use zoo::ModelInfo;
use zoo::mobile::mobilenet_v1::{Config, MobileNetV1};
use zoo_core::Precision;
use zoo_core::rng::Rng;
use zoo_train::augment::Augment;
use zoo_train::checkpoint::{self, Checkpoints};
use zoo_train::data::{Dataset, Synthetic};
use zoo_train::recipe::{Overrides, Recipe};
use zoo_train::record::{EpochMetrics, METRICS_FILE, Status, read_jsonl};
use zoo_train::trainer::{Job, train};

/// Names the folder in which the child trains.
const CHILD: &str = "ZOO_TEST_RESUME_FOLDER";
/// Names the precision in which it does.
const PRECISION: &str = "ZOO_TEST_RESUME_PRECISION";

fn data() -> Dataset {
    Synthetic { train: 480, test: 100, seed: 0 }.generate()
}

/// A network with dropout and running statistics, small enough to write a checkpoint after every step.
static NETWORK: ModelInfo = ModelInfo {
    family: "mobile",
    paper: "Howard et al. 2017, arXiv:1704.04861",
    ..ModelInfo::new("mobilenet_v1_020_dropout", 0, |dims, vb| {
        let config = Config { dropout: 0.3, num_classes: dims.num_classes, ..Config::new(0.2) };
        Ok(Box::new(MobileNetV1::new(&config, vb)?))
    })
    .cifar()
};

/// With momentum, warm-up, crop and flip: everything that a checkpoint has to hold or that has to come back without it.
fn job(precision: Precision) -> Result<Job> {
    let recipe = Recipe::named("quick")?.with(&Overrides {
        epochs: Some(3),
        batch: Some(16),
        lr: Some(0.02),
        ..Overrides::NONE
    })?;
    let recipe = Recipe { augment: Augment::STANDARD, precision, ..recipe };
    Ok(Job::new(&NETWORK, recipe, 7, Device::Cpu))
}

fn run(folder: &Path, precision: Precision) -> Result<()> {
    // A checkpoint after every step, so that many of the kills fall into the writing of one.
    let checkpoints = Checkpoints { every: Duration::ZERO, resume: true };
    let outcome = train(&job(precision)?, &data(), folder, &checkpoints, &AtomicBool::new(false))?;
    ensure!(outcome.status == Status::Finished, "{:?}", outcome.status);
    Ok(())
}

/// What the parent starts; on its own it does nothing.
#[test]
fn child() -> Result<()> {
    let Some(folder) = std::env::var_os(CHILD) else { return Ok(()) };
    run(Path::new(&folder), std::env::var(PRECISION)?.parse()?)
}

/// The child, training in `folder` on so many threads.
fn spawn(folder: &Path, precision: Precision, threads: &str) -> Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["child", "--exact", "--nocapture"]).env("RAYON_NUM_THREADS", threads);
    command.env(CHILD, folder).env(PRECISION, precision.name());
    Ok(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?)
}

/// What has to be the same: everything but the times.
fn result(folder: &Path) -> Result<(Vec<u8>, Vec<EpochMetrics>)> {
    let weights = fs::read(folder.join("model.safetensors")).context("the final weights")?;
    let metrics: Vec<EpochMetrics> = read_jsonl(&folder.join(METRICS_FILE))?.values;
    let timeless =
        |m: EpochMetrics| EpochMetrics { seconds: 0.0, images_per_s: 0.0, wait_share: 0.0, rss_mb: None, ..m };
    Ok((weights, metrics.into_iter().map(timeless).collect()))
}

fn newest_file(folder: &Path) -> Result<PathBuf> {
    let entries: Vec<PathBuf> = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    let resume = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("resume-"));
    entries.into_iter().filter(resume).max().context("no checkpoint")
}

#[test]
fn a_killed_run_comes_to_the_same_bits() -> Result<()> {
    comes_to_the_same_bits(Precision::F32, 12)
}

#[test]
fn a_killed_run_in_bf16_comes_to_the_same_bits() -> Result<()> {
    comes_to_the_same_bits(Precision::Bf16, 6)
}

/// A run on two threads that nobody disturbs, and one on one thread that is killed so often.
fn comes_to_the_same_bits(precision: Precision, wanted: usize) -> Result<()> {
    let (whole, killed) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let begin = Instant::now();
    let status = spawn(whole.path(), precision, "2")?.wait()?;
    ensure!(status.success(), "the undisturbed run failed");
    let length = begin.elapsed();

    // Kills at random moments of the way that a run has left: a random part of the whole run's time, a few times over.
    let seed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_nanos() as u64;
    let mut rng = Rng::new(seed, "kills");
    let (mut kills, mut inside) = (0, 0);
    while kills < wanted {
        let mut child = spawn(killed.path(), precision, "1")?;
        std::thread::sleep(length.mul_f64(rng.uniform() * 0.4));
        child.kill()?;
        let ended = child.wait()?;
        if ended.success() {
            // It was done before the kill came: begin again, so that every kill counts.
            eprintln!("done before kill {kills}; starting over");
            fs::remove_dir_all(killed.path())?;
            fs::create_dir(killed.path())?;
            continue;
        }
        let left = fs::read_dir(killed.path())?
            .filter(|e| e.as_ref().is_ok_and(|e| e.file_name().to_string_lossy().ends_with(".tmp")));
        inside += left.count();
        kills += 1;
        // Now and then the newest checkpoint is damaged as well: cut off, or with one bit turned.
        if checkpoint::is_in(killed.path()) && kills % 4 == 0 {
            let path = newest_file(killed.path())?;
            let mut bytes = fs::read(&path)?;
            if kills % 8 == 0 {
                bytes.truncate(bytes.len() / 2);
            } else {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
            }
            fs::write(&path, bytes)?;
        }
    }
    let output = spawn(killed.path(), precision, "1")?.wait_with_output()?;
    ensure!(output.status.success(), "the resumed run failed: {}", String::from_utf8_lossy(&output.stderr));
    println!("{precision}: {kills} kills with seed {seed}, {inside} of them inside a write");

    let ((weights, metrics), (resumed_weights, resumed_metrics)) = (result(whole.path())?, result(killed.path())?);
    ensure!(metrics.len() == 3);
    assert_eq!(metrics, resumed_metrics, "seed {seed}");
    assert!(weights == resumed_weights, "the weights differ; seed {seed}");
    Ok(())
}

#[test]
fn a_damaged_checkpoint_is_passed_over_and_said_so() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let stopped = AtomicBool::new(true);
    let every = Duration::ZERO;
    train(&job(Precision::F32)?, &data(), folder.path(), &Checkpoints { every, resume: false }, &stopped)?;
    let path = newest_file(folder.path())?;
    let whole = fs::read(&path)?;
    assert!(checkpoint::newest(folder.path())?.checkpoint.is_some());
    for at in [0, 9, whole.len() / 3, whole.len() / 2, whole.len() - 1] {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        fs::write(&path, &bytes)?;
        let found = checkpoint::newest(folder.path())?;
        assert!(found.checkpoint.is_none() && found.notes[0].contains("damaged"), "byte {at}: {:?}", found.notes);
    }
    fs::write(&path, &whole)?;
    assert!(checkpoint::newest(folder.path())?.notes.is_empty());
    Ok(())
}

#[test]
fn another_run_cannot_go_on_from_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let stopped = AtomicBool::new(true);
    let resume = Checkpoints { resume: true, ..Checkpoints::default() };
    train(&job(Precision::F32)?, &data(), folder.path(), &resume, &stopped)?;
    let mut other = job(Precision::F32)?;
    other.recipe.lr = 0.5;
    other.seed = 8;
    let error = format!("{:#}", train(&other, &data(), folder.path(), &resume, &stopped).unwrap_err());
    assert!(error.contains("recipe.lr: 0.02 there, 0.5 here") && error.contains("seed: 7 there, 8 here"), "{error}");
    let less = data().limit(470);
    let error = format!("{:#}", train(&job(Precision::F32)?, &less, folder.path(), &resume, &stopped).unwrap_err());
    assert!(error.contains("480 images") && error.contains("470 images"), "{error}");
    let mixed = format!("{:#}", train(&job(Precision::Bf16)?, &data(), folder.path(), &resume, &stopped).unwrap_err());
    assert!(mixed.contains(r#"recipe.precision: "f32" there, "bf16" here"#), "{mixed}");
    // Not even where only its checkpoints say which run it is.
    fs::remove_file(folder.path().join("run.json"))?;
    let mixed = format!("{:#}", train(&job(Precision::Bf16)?, &data(), folder.path(), &resume, &stopped).unwrap_err());
    assert!(mixed.contains(r#"recipe.precision: "f32" there, "bf16" here"#), "{mixed}");
    // Nor is it overwritten.
    let error = format!(
        "{:#}",
        train(&job(Precision::F32)?, &data(), folder.path(), &Checkpoints::default(), &stopped).unwrap_err()
    );
    assert!(error.contains("holds an earlier run"), "{error}");
    Ok(())
}

#[test]
fn a_folder_that_cannot_be_written_is_an_error_before_training() -> Result<()> {
    let absent = Path::new("absent/folder");
    let begin = Instant::now();
    let error =
        train(&job(Precision::F32)?, &data(), absent, &Checkpoints::default(), &AtomicBool::new(false)).unwrap_err();
    assert!(error.downcast_ref::<checkpoint::Unwritable>().is_some(), "{error:#}");
    assert!(format!("{error:#}").contains("absent/folder") && begin.elapsed() < Duration::from_secs(30));

    let folder = tempfile::tempdir()?;
    let error = checkpoint::ensure_room(folder.path(), 1 << 60).unwrap_err();
    assert!(format!("{error:#}").contains("MB are free"), "{error:#}");
    Ok(())
}
