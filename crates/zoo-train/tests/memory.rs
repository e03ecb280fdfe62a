//! Training keeps no memory: epoch after epoch and seed after seed the process stays as large as it was.

use candle_core::Device;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use zoo_train::checkpoint::Checkpoints;
use zoo_train::data::Synthetic;
use zoo_train::progress::say;
use zoo_train::recipe::{Overrides, Recipe};
use zoo_train::trainer::{Job, train};

/// As the commands do it: what they keep on purpose must be bounded as well.
#[global_allocator]
static ALLOCATOR: zoo_core::memory::CachingAllocator = zoo_core::memory::CachingAllocator;

/// Resident memory after every epoch, and after every run, in MB.
static RESIDENT: Mutex<Vec<f64>> = Mutex::new(Vec::new());

/// Resident memory of this process in MB (10^6 bytes), where `/proc` tells it.
fn resident_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0 / 1e6)
}

fn note() {
    RESIDENT.lock().unwrap().extend(resident_mb());
}

/// The first run shows once what a run needs, its files included; after its two epochs nothing may grow.
#[test]
fn twenty_epochs_of_several_seeds_keep_resident_memory_flat() {
    /// What varies is which blocks the threads happen to need at once: 1 MB. The least that could be kept
    /// by mistake is more: one batch an epoch (0.4 MB) makes 7 MB, a run's weights with Adam's averages 14 MB a seed.
    const TOLERANCE_MB: f64 = 4.0;
    if resident_mb().is_none() {
        let name = "twenty_epochs_of_several_seeds_keep_resident_memory_flat";
        say(format_args!("skipped: {name}: /proc/self/status does not tell this process's memory here"));
        return;
    }
    // Every thread has buffers of its own, which come by and by: two threads, however many cores there are.
    rayon::ThreadPoolBuilder::new().num_threads(2).build_global().unwrap();
    // Four batches of 32 and one of 12, and one of 50 to evaluate on: blocks of three sizes for everything.
    let data = Synthetic { train: 140, test: 50, seed: 0 }.generate();
    let folder = tempfile::tempdir().unwrap();
    let run = |seed: u64, epochs: usize| {
        let overrides = Overrides { epochs: Some(epochs), batch: Some(32), ..Overrides::default() };
        let recipe = Recipe::named("template-600").unwrap().with(&overrides).unwrap();
        let recipe = Recipe { drop_last: false, ..recipe };
        let mut job = Job::new(zoo::find("template_residual_cnn").unwrap(), recipe, seed, Device::Cpu);
        job.on_epoch = Some(zoo_train::trainer::Hook::new(|_| note()));
        let out = folder.path().join(seed.to_string());
        std::fs::create_dir(&out).unwrap();
        let outcome = train(&job, &data, &out, &Checkpoints::default(), &AtomicBool::new(false)).unwrap();
        assert_eq!(outcome.epochs.len(), epochs);
        note();
    };
    run(1, 2);
    (2..=4).for_each(|seed| run(seed, 6));
    let resident = RESIDENT.lock().unwrap();
    println!("resident memory after each epoch and run, in MB: {resident:.1?}");
    let most = |of: &[f64]| of.iter().copied().fold(0.0, f64::max);
    let (first, most) = (most(&resident[..3]), most(&resident[3..]));
    assert!(most - first < TOLERANCE_MB, "{first:.1} MB after 2 epochs, up to {most:.1} MB in 18 more: {resident:.1?}");
}
