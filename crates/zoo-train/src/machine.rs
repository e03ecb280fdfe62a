//! What a program runs on: threads and device, as commands name them, and the user at its keyboard.

use anyhow::{Context, Result, bail, ensure};
use candle_core::Device;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What rayon and candle read when they start their threads.
#[cfg(unix)]
const THREADS_VARIABLE: &str = "RAYON_NUM_THREADS";

/// Sizes the pools that the kernels and candle's own operations run in; returns the number of threads. Call it first thing in
/// `main`: where a number is asked for, the program starts again with it in its environment.
///
/// # Errors
/// No thread, or pools that have started already.
pub fn set_threads(threads: Option<usize>) -> Result<usize> {
    ensure!(threads != Some(0), "--threads must be at least 1");
    // Candle sizes its pools by the environment alone, which a running program cannot change safely: start again with it.
    #[cfg(unix)]
    if let Some(n) = threads.map(|n| n.to_string())
        && std::env::var(THREADS_VARIABLE).as_ref() != Ok(&n)
    {
        use std::os::unix::process::CommandExt;
        let program = std::env::current_exe().context("cannot find this program to start it with --threads")?;
        let mut command = std::process::Command::new(program);
        command.args(std::env::args_os().skip(1)).env(THREADS_VARIABLE, n).env_remove("CANDLE_NUM_THREADS");
        return Err(command.exec()).context("cannot start again with --threads");
    }
    let builder = rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0));
    builder.build_global().context("cannot start the threads")?;
    Ok(rayon::current_num_threads())
}

/// The device called `cpu`, `cuda:N` or `metal`.
///
/// # Errors
/// Another name, or a device that this build or machine does not have.
pub fn device(name: &str) -> Result<Device> {
    match name.split_once(':').unwrap_or((name, "0")) {
        ("cpu", "0") => Ok(Device::Cpu),
        ("cuda", index) => {
            let index = index.parse().with_context(|| format!("--device {name}: `{index}` is no number"))?;
            Device::new_cuda(index).with_context(|| format!("--device {name} (build with `--features cuda,cudnn`)"))
        }
        ("metal", "0") => Device::new_metal(0).context("--device metal (build with `--features metal`)"),
        _ => bail!("--device {name}: expected cpu, cuda:N or metal"),
    }
}

/// A flag that Ctrl-C (or the system's wish that the program end) turns true, so that training stops after the step in hand. The
/// second time the program ends at once.
///
/// # Errors
/// A program that watches for Ctrl-C already.
pub fn stop_on_ctrl_c() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let handler = stop.clone();
    ctrlc::set_handler(move || {
        if handler.swap(true, Ordering::Relaxed) {
            // The second time the user means it. 130 is what shells expect of a program that was interrupted.
            std::process::exit(130);
        }
        eprintln!("stopping after this step; press Ctrl-C again to stop at once");
    })
    .context("cannot watch for Ctrl-C")?;
    Ok(stop)
}
