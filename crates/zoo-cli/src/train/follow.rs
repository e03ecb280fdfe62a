//! What follows a run as it goes.

use super::Args;
use crate::text::print_line;
use anyhow::Result;
use zoo_train::data::Dataset;
use zoo_train::record::{METRICS_FILE, METRICS_TABLE, RunRecord, metrics_csv, read_jsonl, replace_file};
use zoo_train::report;
use zoo_train::run_record::RunContext;
use zoo_train::trainer::{Hook, Job, Outcome};

/// What follows a run as it goes: its page, its table and, with --json, its lines.
pub fn follow(args: &Args, job: &Job, data: &Dataset, context: &RunContext) -> Hook {
    let (json, folder, job, data, context) = (args.json, args.out.clone(), job.clone(), data.clone(), context.clone());
    let measured_on = data.measured().1;
    Hook::new(move |metrics| {
        if json {
            // That standard output cannot be written to is no reason to end the training.
            print_line(serde_json::to_string(metrics).unwrap_or_default()).ok();
        }
        // Nor is a page that cannot be written: the run says so where it writes what it needs.
        let follow = || -> Result<()> {
            let epochs = read_jsonl(&folder.join(METRICS_FILE))?.values;
            replace_file(&folder.join(METRICS_TABLE), metrics_csv(&epochs, measured_on).as_bytes())?;
            let outcome = Outcome::running(epochs);
            report::write_page(&folder, RunRecord::of(&job, &data, &outcome, context.clone())?)
        };
        follow().ok();
    })
}
