//! `zoo report`: one page about runs, with their curves and mistakes.

use crate::text::print_line;
use anyhow::{Context, Result, bail, ensure};
use std::path::PathBuf;
use zoo_train::progress::say;
use zoo_train::record::RESULTS_FILE;
use zoo_train::report::{self, Additions};

/// Arguments of `report`.
#[derive(clap::Args)]
pub struct Args {
    /// Folders that `zoo train` left, or those of whole suites
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Folder for report.html and report.md. Default: that of the run, if it is one
    #[arg(long, short, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Overwrite a report that is in --output already
    #[arg(long)]
    force: bool,
}

/// Writes `report.html`, one file that needs nothing else, and `report.md`.
pub fn run(args: &Args) -> Result<()> {
    let out = match (&args.output, &args.runs[..]) {
        (Some(out), _) => out,
        (None, [run]) => run,
        _ => bail!("several runs have no folder in common: say where the report goes (-o DIR)"),
    };
    let mut runs = Vec::new();
    for folder in &args.runs {
        let (found, warnings) = match folder.join(RESULTS_FILE).exists() {
            true => report::load(folder)?,
            false => report::load_run(folder).map(|(run, warnings)| (vec![run], warnings))?,
        };
        warnings.iter().for_each(|warning| say(format_args!("warning: {warning}")));
        ensure!(!found.is_empty(), "{}: a suite without runs", folder.display());
        runs.extend(found);
    }
    std::fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    let page = out.join("report.html");
    // A run's own page is written anew, as training does it.
    let may_write = args.force || args.output.is_none() || !page.exists();
    ensure!(may_write, "{} is there already: choose another folder, or --force", page.display());
    report::write(out, &runs, &Additions::NONE)?;
    print_line(page.display())
}
