//! Errors as the commands print them: `error: ` and one line, whatever the environment and however long a name in it
//! is.
//!
//! Candle's errors print a backtrace inside their message where `RUST_BACKTRACE=1` asks for one, as it does in many
//! containers. Here it is taken out; `ZOO_BACKTRACE=1` beside it prints the error in full below its line.

use crate::progress::say;
use anyhow::{Error, Result};
use std::process::ExitCode;

/// The environment variable that prints an error in full, with the backtrace that `RUST_BACKTRACE=1` collects.
pub const ZOO_BACKTRACE: &str = "ZOO_BACKTRACE";

/// Letters of a word that are shown: file names and keys are shorter, unless somebody means harm.
const WORD: usize = 300;
/// Letters of a line that are shown.
const LINE: usize = 2_000;
/// Lines that are shown.
const LINES: usize = 60;

/// A program's end before its work was done, requested by Ctrl-C or by the system.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Interrupted {
    /// The signal's number, see [`Stop::signal`](crate::machine::Stop::signal).
    pub signal: i32,
    /// What was done and how to go on, in one line.
    pub message: String,
}

/// What `main` returns: prints the error, if there is one, and gives its exit status. That is 1, or for [`Interrupted`]
/// what shells expect of a program that a signal ended: 130 for Ctrl-C, 143 for SIGTERM.
pub fn exit(result: Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    say(format_args!("error: {}", message(&error)));
    if std::env::var_os(ZOO_BACKTRACE).is_some_and(|value| value != "0") {
        say(format_args!("{error:?}"));
    }
    match error.downcast_ref::<Interrupted>() {
        Some(interrupted) => ExitCode::from(128 + interrupted.signal as u8),
        None => ExitCode::FAILURE,
    }
}

/// The error with its causes as a person reads it: one line, or one line and a list below it. A list is indented lines,
/// each of its headings a line that ends in a colon. Every other line break becomes a space, backtraces are left out,
/// letters that would move a terminal's cursor are written as escapes, and what is longer than anybody reads is cut.
///
/// ```
/// use zoo_train::errors::message;
/// let backtrace = "   0: candle_core::error::Error::bt\n             at src/error.rs:260:25\n";
/// let error = anyhow::anyhow!("no such key\n{backtrace}").context("net.pth");
/// assert_eq!(message(&error), "net.pth: no such key");
/// let error = anyhow::anyhow!("2 keys are missing\nmissing:\n  a.weight\n  a.bias");
/// assert_eq!(message(&error), "2 keys are missing\nmissing:\n  a.weight\n  a.bias");
/// ```
pub fn message(error: &Error) -> String {
    let text = format!("{error:#}");
    let mut kept: Vec<&str> = Vec::new();
    for line in text.lines().filter(|line| !is_frame(line)) {
        // candle prints a blank line and a heading where nothing was collected; neither tells anything.
        if !line.trim().is_empty() {
            kept.push(line);
        }
    }
    let mut out = String::new();
    for (index, line) in kept.iter().take(LINES).enumerate() {
        let is_item = |at: usize| kept.get(at).is_some_and(|line| line.starts_with("  "));
        let is_listed = index > 0 && (is_item(index) || line.ends_with(':') && is_item(index + 1));
        match (index, is_listed) {
            (0, _) => {}
            (_, true) => out.push('\n'),
            // What follows a backtrace may go on in the middle of a sentence.
            (_, false) if line.starts_with([',', ';', ':', '.']) => {}
            (_, false) => out.push(' '),
        }
        out += &bounded(if is_listed { line.trim_end() } else { line.trim() });
    }
    out
}

/// The message about wrong arguments, with long words and lines cut; `None` where little would be cut. An argument
/// parser repeats an argument that it does not know, however long that is.
pub fn shortened(text: &str) -> Option<String> {
    let short = text.lines().map(bounded).collect::<Vec<_>>().join("\n");
    (short.len() < text.len() / 2).then_some(short)
}

/// The error in one line, for a record or beside other text: as [`message`], without its list.
pub fn line(error: &Error) -> String {
    let message = message(error);
    message.lines().next().unwrap_or_default().to_owned()
}

/// Whether this is a line of a backtrace: `   3: function` or `             at file:line`.
fn is_frame(line: &str) -> bool {
    let rest = line.trim_start();
    let is_indented = rest.len() < line.len();
    let number = rest.split_once(": ").is_some_and(|(number, _)| number.bytes().all(|byte| byte.is_ascii_digit()));
    is_indented && (rest.starts_with("at ") || number && !rest.starts_with(": "))
}

/// A line without control characters, with its long words and the line itself cut in the middle.
fn bounded(line: &str) -> String {
    let visible: String =
        line.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.into() }).collect();
    let words: Vec<String> = visible.split(' ').map(|word| cut(word, WORD)).collect();
    cut(&words.join(" "), LINE)
}

/// The text, or its first two thirds and its end with an ellipsis between them, `most` letters in all.
fn cut(text: &str, most: usize) -> String {
    let letters = text.chars().count();
    if letters <= most {
        return text.to_owned();
    }
    let (head, tail) = (most * 2 / 3, most / 3 - 1);
    text.chars().take(head).chain(['…']).chain(text.chars().skip(letters - tail)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn an_error_is_one_line_whatever_it_holds() {
        let frames = "   0: candle_core::error::Error::bt\n             at /src/error.rs:260:25\n  10: <unknown>\n";
        let backtrace = format!("there is no model `x`\n{frames}");
        assert_eq!(message(&anyhow!("{backtrace}").context("--models")), "--models: there is no model `x`");
        let full =
            "no\n   0:     0x55d3 - std::backtrace::Backtrace::capture\n            at /rustc/x/backtrace.rs:296:13\n";
        assert_eq!(message(&anyhow!("{full}, and more")), "no, and more");
        assert_eq!(message(&anyhow!("two\nlines\r\nand a third")), "two lines and a third");
        assert_eq!(message(&anyhow!("red \x1b[31m, bell \x07")), r"red \u{1b}[31m, bell \u{7}");
        assert_eq!(line(&anyhow!("3 keys:\nmissing:\n  a")), "3 keys:");
    }

    #[test]
    fn a_message_is_bounded() {
        let key = "k".repeat(100_000);
        let text = message(&anyhow!("`{key}` is missing, take another file").context("net.pth"));
        assert!(text.starts_with("net.pth: `kkk") && text.ends_with("k` is missing, take another file"), "{text}");
        assert!(text.chars().count() < 400, "{}", text.len());
        assert!(message(&anyhow!("{}", "two words ".repeat(10_000))).chars().count() <= LINE);
        let list: String = (0..1000).map(|i| format!("\n  key{i}")).collect();
        assert_eq!(message(&anyhow!("many{list}")).lines().count(), LINES);
    }

    #[test]
    fn long_arguments_are_cut_and_others_stay_as_they_are() {
        let text =
            |value: &str| format!("error: invalid value '{value}' for '--recipe <NAME>'\n\n  tip: try '--help'\n");
        assert_eq!(shortened(&text("fastt")), None);
        let short = shortened(&text(&"n".repeat(100_000))).unwrap();
        assert!(short.len() < 500 && short.lines().count() == 3 && short.ends_with("tip: try '--help'"), "{short}");
    }

    #[test]
    fn an_interrupted_program_ends_as_shells_expect() {
        let interrupted = |signal| Error::from(Interrupted { signal, message: "stopped".into() }).context("mlp");
        assert_eq!(exit(Err(interrupted(2))), ExitCode::from(130));
        assert_eq!(exit(Err(interrupted(15))), ExitCode::from(143));
        assert_eq!(exit(Err(anyhow!("no"))), ExitCode::FAILURE);
        assert_eq!(exit(Ok(())), ExitCode::SUCCESS);
    }
}
