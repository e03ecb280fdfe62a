//! What a program runs on: threads and device, as commands name them, memory, and the user at its keyboard.

use crate::progress::say;
use anyhow::{Context, Result, bail, ensure};
use candle_core::Device;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;

/// Sizes the pool of threads that the kernels run in by `--threads`, and returns how many threads it has; see
/// [`zoo_core::threads::set_threads`].
///
/// # Errors
/// No thread or more than 1024; a pool that has started already.
pub fn set_threads(threads: Option<usize>) -> Result<usize> {
    zoo_core::threads::set_threads(threads).context("--threads")
}

/// Replaces this process by the same program with `--threads` in its environment, where candle's own operations look
/// for their number of threads, unless it is there already. A program that runs cannot change its environment safely.
///
/// For the `main` of the zoo's binaries alone, before anything else: no other function calls it, so that a program that
/// uses this crate is never started again behind its back. Does nothing where the system cannot replace a process.
///
/// # Errors
/// A program that cannot be found or started any more.
pub fn restart_with_threads(threads: Option<usize>) -> Result<()> {
    #[cfg(unix)]
    if let Some(n) = threads.map(|n| n.to_string())
        && std::env::var("RAYON_NUM_THREADS").as_ref() != Ok(&n)
    {
        use std::os::unix::process::CommandExt;
        let program = std::env::current_exe().context("cannot find this program to start it with --threads")?;
        let mut command = std::process::Command::new(program);
        // Candle's other variable goes before this one.
        command.args(std::env::args_os().skip(1)).env("RAYON_NUM_THREADS", n).env_remove("CANDLE_NUM_THREADS");
        return Err(command.exec()).context("cannot start again with --threads");
    }
    #[cfg(not(unix))]
    let _ = threads;
    Ok(())
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

/// A request to stop the program: by Ctrl-C, by the system or by the program's own clock.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    flag: Arc<AtomicBool>,
    /// 0 until there was one.
    signal: Arc<AtomicI32>,
}

impl Stop {
    /// How long the work in hand may take before the user is told that it is being finished.
    const PATIENCE: Duration = Duration::from_secs(1);

    /// Listens for Ctrl-C, SIGTERM and SIGHUP from now on: the first one stops training after the current step, a
    /// second one ends the program at once. Under `nohup` the loss of the terminal has no effect.
    ///
    /// # Errors
    /// A program that watches for signals already, or a system that does not let it.
    pub fn on_signals() -> Result<Self> {
        let stop = Self::default();
        let seen = stop.clone();
        watch(move |signal| {
            if seen.signal.swap(signal, Ordering::Relaxed) != 0 {
                // What shells expect of a program that a signal ended.
                std::process::exit(128 + signal);
            }
            seen.now();
            // A step of a large network takes a while. Where it does not, the command's own last line says it all.
            std::thread::spawn(|| {
                std::thread::sleep(Self::PATIENCE);
                say("stopping after this step; press Ctrl-C again to stop at once");
            });
        })
        .context("cannot watch for Ctrl-C")?;
        Ok(stop)
    }

    /// Requests it.
    pub fn now(&self) {
        self.flag.store(true, Ordering::Relaxed);
    }

    /// True once a stop is requested.
    pub fn flag(&self) -> &AtomicBool {
        &self.flag
    }

    /// Whether a stop is requested.
    pub fn is_wished(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }

    /// The number of the signal that requested it; `None` for the program's own clock, and before any request.
    pub fn signal(&self) -> Option<i32> {
        Some(self.signal.load(Ordering::Relaxed)).filter(|&signal| signal != 0)
    }
}

/// Calls `on` in a thread of its own whenever the program is asked to end.
#[cfg(unix)]
fn watch(on: impl Fn(i32) + Send + 'static) -> std::io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    use signal_hook::iterator::Signals;
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    // A handler would undo what `nohup` has done.
    if !std::fs::read_to_string("/proc/self/status").is_ok_and(|status| is_ignored(SIGHUP, &status)) {
        signals.add_signal(SIGHUP)?;
    }
    std::thread::spawn(move || signals.forever().for_each(on));
    Ok(())
}

#[cfg(not(unix))]
fn watch(on: impl Fn(i32) + Send + 'static) -> Result<(), ctrlc::Error> {
    // The number that Ctrl-C has elsewhere.
    ctrlc::set_handler(move || on(2))
}

/// Whether a process was started without this signal, by its `/proc/PID/status`.
#[cfg(unix)]
fn is_ignored(signal: i32, status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// Bytes of memory that this process may still take without the system swapping or ending it: what the machine has free
/// or can free at once, or what the container's limit leaves, if that is less. `None` where the system does not tell.
pub fn available_memory() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let machine = bytes_available(&read("/proc/meminfo")?)?;
    let group = |file: &str| read(&format!("/sys/fs/cgroup/memory.{file}"));
    let left = || bytes_left(&group("max")?, &group("current")?, &group("stat")?);
    Some(left().map_or(machine, |left| left.min(machine)))
}

/// The available bytes by `/proc/meminfo`.
fn bytes_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The bytes that a control group (version 2) still leaves, by its files `memory.max`, `memory.current` and
/// `memory.stat`; `None` without a limit. Cached files that nobody has used lately count as used there; they are taken
/// off, for the system drops them at once where memory is short.
fn bytes_left(max: &str, current: &str, stat: &str) -> Option<u64> {
    let idle = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.trim().parse().ok()).unwrap_or(0);
    let used = current.trim().parse::<u64>().ok()?.saturating_sub(idle);
    Some(max.trim().parse::<u64>().ok()?.saturating_sub(used))
}

/// Refuses a run that needs far more memory than there is, and gives a warning for one that may not fit. The estimate
/// may be a third too high, see [`zoo_core::inspect::training_memory`].
pub(crate) fn ensure_memory(needed: u64, available: u64, batch: usize) -> Result<Option<String>> {
    let gb = |bytes: u64| bytes as f64 / 1e9;
    let text = format!(
        "training with a batch of {batch} needs about {:.1} GB of memory, and {:.1} GB are available",
        gb(needed),
        gb(available)
    );
    ensure!(needed / 4 * 3 <= available, "{text}: take a smaller batch");
    Ok((needed > available).then(|| format!("{text}: it may be ended by the system; a smaller batch would fit")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn ignored_signals_are_read_as_the_system_writes_them() {
        let status = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000002\n";
        assert!(is_ignored(1, status) && !is_ignored(2, status) && is_ignored(13, status));
        assert!(!is_ignored(1, "Name:\tzoo\n"));
    }

    #[test]
    fn memory_is_read_as_the_system_writes_it() {
        let meminfo = "MemTotal:       24576000 kB\nMemFree:         1000000 kB\nMemAvailable:   12288000 kB\n";
        assert_eq!(bytes_available(meminfo), Some(12_288_000 * 1024));
        assert_eq!(bytes_available("MemTotal: 24576000 kB\n"), None);
        let stat = "anon 700\ninactive_anon 5\ninactive_file 200\nactive_file 100\n";
        assert_eq!(bytes_left("4000\n", "1000\n", stat), Some(3200));
        assert_eq!(bytes_left("500\n", "1000\n", stat), Some(0));
        assert_eq!(bytes_left("max\n", "1000\n", stat), None);
        if cfg!(target_os = "linux") {
            let available = available_memory().unwrap();
            assert!((1 << 20..1 << 50).contains(&available), "{available}");
        }
    }

    #[test]
    fn a_run_that_would_not_fit_says_so_first() {
        let gb = 1_000_000_000;
        assert_eq!(ensure_memory(2 * gb, 8 * gb, 128).unwrap(), None);
        let warning = ensure_memory(9 * gb, 8 * gb, 128).unwrap().unwrap();
        assert!(warning.contains("a batch of 128 needs about 9.0 GB") && warning.contains("8.0 GB are"), "{warning}");
        let error = ensure_memory(80 * gb, 8 * gb, 128).unwrap_err().to_string();
        assert!(error.contains("80.0 GB") && error.contains("smaller batch"), "{error}");
    }
}
