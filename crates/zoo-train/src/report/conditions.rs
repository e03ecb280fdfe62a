//! Conditions of a report's runs: what all of them share, and what is each one's own.

use super::Run;
use super::rows::{MESSAGE, Section, Stat, ending};
use crate::format::{count, duration, shortened, thousands};
use crate::record::{DataRecord, EpochMetrics, RunRecord};

/// Under which conditions the runs ran: what all share, said once, and what is each one's own.
pub(super) struct Conditions<'a> {
    pub(super) shared: Vec<(&'static str, String)>,
    pub(super) own: Vec<RunConditions<'a>>,
}

/// One run's own conditions.
pub(super) struct RunConditions<'a> {
    pub(super) title: String,
    /// The conditions that not all runs share.
    pub(super) conditions: Vec<(&'static str, String)>,
    /// How it went.
    pub(super) course: Vec<(&'static str, String)>,
    /// The command that repeats the run.
    pub(super) command: &'a str,
}

type Fact = (&'static str, fn(&RunRecord) -> String);

/// The conditions that runs of a suite tend to share.
const FACTS: &[Fact] = &[
    ("Data", |record| {
        let DataRecord { source, train_images, test_images, .. } = &record.data;
        let (train, test) = (thousands(*train_images as u64), thousands(*test_images as u64));
        format!("{source}; {train} images to train on, {test} to test on")
    }),
    ("Batch", |record| record.batch.to_string()),
    ("Precision", |record| record.precision.to_string()),
    ("Device", |record| format!("{}, {}", record.device, count(record.threads, "thread"))),
    ("Platform", |record| record.platform.to_string()),
    ("Versions", |record| {
        let versions: Vec<String> = record.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        versions.join(", ")
    }),
    ("Commit", |record| record.commit.clone().unwrap_or_else(|| "not known".into())),
];

/// The conditions of all runs that the report shows.
pub(super) fn conditions<'a>(sections: &[Section<'a>]) -> Conditions<'a> {
    let rows = || sections.iter().flat_map(|section| &section.rows);
    let runs: Vec<&RunRecord> = rows().flat_map(|row| &row.runs).map(|run| &run.record).collect();
    let (shared, own): (Vec<&Fact>, Vec<&Fact>) =
        FACTS.iter().partition(|(_, fact)| runs.windows(2).all(|pair| fact(pair[0]) == fact(pair[1])));
    let told = |facts: &[&Fact], record: &RunRecord| facts.iter().map(|(name, fact)| (*name, fact(record))).collect();
    let own = rows().flat_map(|row| {
        row.runs.iter().map(|run| {
            let record = &run.record;
            let time = format!("{} for {}", duration(record.seconds), count(record.epochs_done, "epoch"));
            let mut course = vec![("Started", record.started.clone()), ("Time", time)];
            let wait = Stat::of(run.epochs.iter().map(|epoch| epoch.wait_share).filter(|share| share.is_finite()));
            course.extend(
                wait.map(|wait| ("Waited for data", format!("{:.1} % of the training time", wait.mean * 100.0))),
            );
            course.extend(memory(run).map(|memory| ("Resident memory", memory)));
            course.extend(ending(record).map(|ended| ("Ended", ended)));
            let settings = record.precision.unusual().map(str::to_owned).into_iter().chain(record.overrides.settings());
            let settings: String = settings.map(|setting| format!(" · {setting}")).collect();
            let title = format!("{} · {}{settings}", record.model, record.recipe);
            let title = format!("{} · seed {}", shortened(&title, MESSAGE), record.seed);
            RunConditions { title, conditions: told(&own, record), course, command: &record.command }
        })
    });
    Conditions { own: own.collect(), shared: runs.first().map_or_else(Vec::new, |record| told(&shared, record)) }
}

/// How the memory in use went from the first to the last epoch: a leak would show here, a peak would not tell.
fn memory(run: &Run) -> Option<String> {
    let mb = |epoch: Option<&EpochMetrics>| Some(format!("{} MB", thousands(epoch?.rss_mb?.round() as u64)));
    let (first, last) = (mb(run.epochs.first())?, mb(run.epochs.last())?);
    let epochs = count(run.epochs.len(), "epoch");
    Some(format!("{first} after the first epoch, {last} after the last ({epochs})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::rows::sections;
    use crate::report::tests::run;

    #[test]
    fn the_memory_is_told_at_both_ends() {
        let mut runs = [run("mlp", "fast", 1, 0.5), run("mlp", "fast", 2, 0.5), run("mlp", "fast", 3, 0.5)];
        runs[1].epochs[19].rss_mb = None;
        runs[2].epochs.clear();
        let sections = sections(&runs);
        let told = conditions(&sections)
            .own
            .into_iter()
            .map(|run| run.course.into_iter().find(|(name, _)| *name == "Resident memory").map(|(_, memory)| memory));
        let first = "501 MB after the first epoch, 520 MB after the last (20 epochs)".to_owned();
        assert_eq!(told.collect::<Vec<_>>(), [Some(first), None, None]);
    }

    #[test]
    fn shared_conditions_are_said_once() {
        let mut other = run("mlp", "fast", 2, 0.5);
        other.record.threads = 1;
        let runs = [run("mlp", "fast", 1, 0.5), other];
        let conditions = conditions(&sections(&runs));
        assert!(conditions.shared.contains(&("Commit", "0123456789ab".to_owned())), "{:?}", conditions.shared);
        let device = |index: usize| {
            conditions.own[index].conditions.iter().find(|(name, _)| *name == "Device").unwrap().1.as_str()
        };
        assert_eq!((device(0), device(1)), ("cpu, 2 threads", "cpu, 1 thread"));
        assert_eq!(conditions.own[1].title, "mlp · fast · seed 2");
        assert_eq!(conditions.own[1].command, runs[1].record.command);
    }
}
