//! Writes two curves as TensorBoard's event files: `cargo run --example events --features tensorboard -- FOLDER`.
//!
//! `tests/reference/event_files.py` reads them with TensorBoard itself.

use anyhow::{Context, Result};
use zoo_train::tensorboard::Events;

fn main() -> Result<()> {
    let folder = std::env::args_os().nth(1).context("usage: events FOLDER")?;
    let mut events = Events::create(folder.as_ref())?;
    for step in 0..100u64 {
        events.scalar("train/loss", step * 391, 2.5 / (1.0 + step as f64))?;
        events.scalar("test/accuracy", step * 391, step as f64 / 100.0)?;
    }
    println!("{}", events.path().display());
    Ok(())
}
