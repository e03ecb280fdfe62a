//! What a person sees while a network trains: a bar on a terminal, a line an epoch elsewhere.

use crate::record::EpochMetrics;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Prints a line for the user on standard error. A closed pipe or a terminal that is gone is no error: training goes
/// on.
///
/// ```
/// zoo_train::progress::say(format_args!("{} epochs left", 3));
/// ```
pub fn say(line: impl Display) {
    writeln!(std::io::stderr(), "{line}").ok();
}

/// Progress over images, on standard error: a bar on a terminal, a line now and then elsewhere.
///
/// ```
/// let mut images = zoo_train::progress::Images::new("mlp", 10_000);
/// images.seen(250);
/// ```
#[derive(Debug)]
pub struct Images {
    name: String,
    total: usize,
    done: usize,
    /// Hidden where standard error is not a terminal.
    bar: ProgressBar,
    /// When the last line was written; `None` on a terminal.
    line: Option<Instant>,
}

impl Images {
    /// Time between two lines.
    const EVERY: Duration = Duration::from_secs(10);

    /// Starts at none of `total` images, under a name.
    pub fn new(name: &str, total: usize) -> Self {
        let (bar, terminal) =
            bar(name, total as u64, "{prefix} {bar:30} {pos} of {len} images · {elapsed} · {eta} left");
        Self { name: name.to_owned(), total, done: 0, bar, line: (!terminal).then(Instant::now) }
    }

    /// Counts so many more images.
    pub fn seen(&mut self, images: usize) {
        self.done += images;
        self.bar.inc(images as u64);
        if let Some(last) = self.line.as_mut().filter(|last| last.elapsed() >= Self::EVERY && self.done < self.total) {
            *last = Instant::now();
            say(format_args!("{}: {} of {} images", self.name, self.done, self.total));
        }
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Progress of downloads, one file after the other, on standard error.
#[derive(Debug, Default)]
pub struct Download {
    file: String,
    bar: Option<ProgressBar>,
    line: Option<Instant>,
}

impl Download {
    /// Shows that `done` bytes of a file are there, of so many where that is known.
    ///
    /// ```
    /// zoo_train::progress::Download::default().show("model.safetensors", 1 << 20, Some(46 << 20));
    /// ```
    pub fn show(&mut self, file: &str, done: u64, total: Option<u64>) {
        if self.file != file {
            self.end();
            let template = "{prefix} {bar:30} {bytes} of {total_bytes} · {bytes_per_sec} · {eta} left";
            let (bar, terminal) = bar(file, total.unwrap_or(0), template);
            let size = total.map_or(String::new(), |total| format!(", {}", indicatif::DecimalBytes(total)));
            if !terminal {
                say(format_args!("downloading {file}{size}"));
            }
            // What an earlier try left does not count in the speed.
            bar.set_position(done);
            bar.reset_eta();
            (self.file, self.bar, self.line) = (file.to_owned(), Some(bar), (!terminal).then(Instant::now));
        }
        self.bar.iter().for_each(|bar| bar.set_position(done));
        if let Some(last) = self.line.as_mut().filter(|last| last.elapsed() >= Images::EVERY) {
            *last = Instant::now();
            let of = total.map_or(String::new(), |total| format!(" of {}", indicatif::DecimalBytes(total)));
            say(format_args!("{file}: {}{of}", indicatif::DecimalBytes(done)));
        }
    }

    fn end(&self) {
        self.bar.iter().for_each(ProgressBar::finish_and_clear);
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        self.end();
    }
}

/// A bar on standard error, hidden where that is not a terminal, and whether it is one.
fn bar(name: &str, length: u64, template: &str) -> (ProgressBar, bool) {
    let terminal = std::io::stderr().is_terminal();
    let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(length), target);
    // The templates are constants; should one ever not parse, the default style shows progress as well.
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_prefix(name.to_owned());
    (bar, terminal)
}

/// Progress of one run, on standard error.
#[derive(Debug)]
pub struct Progress {
    name: String,
    epochs: usize,
    /// What epochs are measured on: `test` or `validation` images.
    measured_on: &'static str,
    /// Hidden where standard error is not a terminal.
    bar: ProgressBar,
    terminal: bool,
}

impl Progress {
    /// Starts a run called `name` with so many epochs and steps, whose epochs are measured on `test` or `validation` images.
    pub fn new(name: &str, epochs: usize, steps: u64, measured_on: &'static str) -> Self {
        let (bar, terminal) = bar(name, steps, "{prefix} {bar:30} {percent:>3} % · {elapsed} · {eta} left · {msg}");
        Self { name: name.to_owned(), epochs, measured_on, bar, terminal }
    }

    /// Continues a resumed run after so many steps, which took so long.
    pub fn resume(&self, steps: u64, seconds: f64) {
        self.bar.set_position(steps);
        // What is left is guessed from this session's steps alone.
        self.bar.reset_eta();
        self.bar.set_elapsed(std::time::Duration::from_secs_f64(seconds.max(0.0)));
    }

    /// Shows a step: its loss, how many images a second are trained on, and which share of the time waited for them.
    pub fn step(&self, epoch: usize, loss: f64, images_per_s: f64, wait_share: f64) {
        let waiting =
            if wait_share < 0.01 { String::new() } else { format!(" · {:.0} % waiting", 100.0 * wait_share) };
        self.bar.set_message(format!(
            "epoch {epoch}/{} · loss {loss:.3} · {images_per_s:.0} images/s{waiting}",
            self.epochs
        ));
        self.bar.inc(1);
    }

    /// Shows an epoch.
    pub fn epoch(&self, m: &EpochMetrics) {
        self.say(&format!(
            "{} epoch {:>3}/{}  train loss {:.4} acc {:.1} %  {} loss {:.4} acc {:.1} %  lr {:.3e}  {:.0} images/s  {:.1} s{}",
            self.name,
            m.epoch,
            self.epochs,
            m.train_loss,
            100.0 * m.train_acc,
            self.measured_on,
            m.test_loss,
            100.0 * m.test_acc,
            m.lr,
            m.images_per_s,
            m.seconds,
            if m.wait_share < 0.01 { String::new() } else { format!("  {:.0} % waiting for data", 100.0 * m.wait_share) }
        ));
    }

    /// Prints a line that stays.
    pub fn say(&self, line: &str) {
        if self.terminal {
            self.bar.println(line);
        } else {
            say(line);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
