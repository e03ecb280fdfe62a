//! What the commands share: numbers and shapes as people read them, and files that must not be overwritten.

use anyhow::{Result, ensure};
use std::fmt::Display;
use std::io::{self, Write};
use std::path::Path;

pub use zoo_train::format::thousands;
pub use zoo_train::run_record::quoted;

/// Three digits with a unit: 25.6 M.
pub fn short(n: u64) -> String {
    let (value, unit) = match n as f64 {
        x if x >= 1e9 => (x / 1e9, " G"),
        x if x >= 1e6 => (x / 1e6, " M"),
        x if x >= 1e3 => (x / 1e3, " K"),
        x => return x.to_string(),
    };
    let decimals = if value >= 100.0 { 0 } else { 3 - value.floor().to_string().len() };
    format!("{value:.decimals$}{unit}")
}

/// A shape without its batch dimension: 64×56×56.
pub fn shape(dims: &[usize]) -> String {
    dims.iter().skip(1).map(usize::to_string).collect::<Vec<_>>().join("×")
}

/// Refuses to replace a file unless the user said so.
pub fn may_write(path: &Path, force: bool) -> Result<()> {
    ensure!(force || !path.exists(), "{} exists already; --force replaces it", path.display());
    Ok(())
}

/// Ignores a closed pipe: in `zoo info vgg16 | head` the reader has seen enough.
pub fn until_closed(result: io::Result<()>) -> Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

/// A line on standard output, if that is still open.
pub fn print_line(line: impl Display) -> Result<()> {
    until_closed(writeln!(io::stdout(), "{line}"))
}

/// A text between commas (RFC 4180).
pub fn csv_cell(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_and_a_unit() {
        let numbers = [7, 1_234, 25_557_032, 138_357_544, 15_470_264_320];
        assert_eq!(numbers.map(short), ["7", "1.23 K", "25.6 M", "138 M", "15.5 G"]);
    }
}
