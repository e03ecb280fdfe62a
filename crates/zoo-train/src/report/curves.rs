//! Charts of a report's section: curves by epoch and by time, and accuracy against what a model costs.

use std::ptr;

use super::Run;
use super::chart::{Axis, Chart, LARGE, Point, Series, Style, amount};
use super::rows::{Row, Section, Stat, ending};
use super::training;
use crate::format::{compact, count, duration, giga, percent, significant, thousands};
use crate::record::{EpochMetrics, RunRecord};

/// The size of a chart of one model.
const SMALL: (f64, f64) = (360.0, 230.0);

/// The charts of a section.
pub(super) struct Charts {
    /// All models together.
    pub(super) together: Vec<Chart>,
    /// One a model, where there are several.
    pub(super) alone: Vec<Chart>,
}

/// The value of an epoch on a chart's y axis.
pub type Value = fn(&EpochMetrics) -> f64;
/// What a model costs, on a chart's x axis: its name, its value, the words of a tick and of a point, in the table's
/// unit.
struct Cost {
    name: &'static str,
    of: fn(&RunRecord) -> Option<u64>,
    tick: fn(f64) -> String,
    told: fn(u64) -> String,
}

const COSTS: [Cost; 2] = [
    Cost { name: "parameters", of: |record| Some(record.parameters), tick: compact, told: thousands },
    Cost { name: "GMACs", of: |record| record.macs, tick: |macs| amount(macs / 1e9), told: |macs| giga(macs as f64) },
];

/// The accuracy that an epoch is measured by, in percent.
pub fn test_acc(epoch: &EpochMetrics) -> f64 {
    epoch.test_acc * 100.0
}

fn train_acc(epoch: &EpochMetrics) -> f64 {
    epoch.train_acc * 100.0
}

/// The charts that the section's runs have points for.
pub(super) fn charts(section: &Section) -> Charts {
    let measured = section.measured_on();
    // A chart is looked at, copied and passed on without its page: its own title says what the data is.
    let title = |text: &str| format!("{text} · {}", section.name());
    let rows: Vec<(Style, &Row)> =
        section.rows.iter().enumerate().map(|(index, row)| (Style::Series(index), row)).collect();
    let curved: Vec<(Style, &Row)> =
        rows.iter().copied().filter(|(_, row)| row.runs.iter().any(|run| !run.epochs.is_empty())).collect();
    let mut charts = Charts { together: Vec::new(), alone: Vec::new() };
    if !curved.is_empty() {
        charts.together = by_epoch(section, &curved, title);
        let single = rows.len() == 1;
        let last = last_epoch(section);
        let accuracies = || epochs(section).flat_map(|epoch| [test_acc(epoch), train_acc(epoch)]);
        let alone = curved.iter().map(|&(style, row)| Chart {
            title: title(&if single { format!("{measured} accuracy, training in grey") } else { row.label.clone() }),
            x: Axis::epochs(last),
            y: Axis::percent(accuracies()),
            series: train_and_test(row, style),
            legend: vec![],
            notes: vec![],
            size: if single { LARGE } else { SMALL },
        });
        if single { charts.together.extend(alone) } else { charts.alone.extend(alone) }
    }
    if rows.len() > 1 {
        charts.together.extend(against_time(section, &curved, title(&format!("{measured} accuracy against time"))));
        for cost in &COSTS {
            charts.together.extend(against_cost(
                &rows,
                cost,
                title(&format!("{measured} accuracy against {}", cost.name)),
            ));
        }
    }
    charts
}

fn by_epoch(section: &Section, rows: &[(Style, &Row)], title: impl Fn(&str) -> String) -> Vec<Chart> {
    let chart = |name: &str, y: Axis, value: Value, text: fn(f64) -> String| Chart {
        title: title(name),
        x: Axis::epochs(last_epoch(section)),
        notes: not_shown(rows, &y, value),
        y,
        series: rows.iter().flat_map(|(style, row)| curve(row, *style, value, text)).collect(),
        legend: vec![],
        size: LARGE,
    };
    let measured = section.measured_on();
    let losses: [(_, Value); 2] =
        [("Training loss".to_owned(), |epoch| epoch.train_loss), (format!("{measured} loss"), |epoch| epoch.test_loss)];
    let losses = losses.map(|(name, value)| {
        let runs = rows.iter().flat_map(|(_, row)| &row.runs);
        let curves: Vec<Vec<f64>> = runs.map(|run| run.epochs.iter().map(value).collect()).collect();
        chart(&name, Axis::losses(&curves), value, |loss| format!("{loss:.4}"))
    });
    let accuracy =
        chart(&format!("{measured} accuracy"), Axis::percent(epochs(section).map(test_acc)), test_acc, percent);
    [accuracy].into_iter().chain(losses).chain(training::rates(rows, title("Learning rate"))).collect()
}

/// Notes on the values that a chart of curves leaves out: those above its axis, and those that are no number.
fn not_shown(rows: &[(Style, &Row)], axis: &Axis, value: Value) -> Vec<String> {
    let (mut above, mut none) = (Vec::new(), Vec::new());
    for (_, row) in rows {
        let values = || row.runs.iter().flat_map(|run| &run.epochs).map(value);
        let highest = values().filter(|&value| axis.cuts(value)).reduce(f64::max);
        above.extend(highest.map(|highest| format!("{} goes up to {}", row.label, amount(significant(highest)))));
        let lost = values().filter(|value| !value.is_finite()).count();
        if lost > 0 {
            none.push(format!("{} in {lost} of {}", row.label, count(values().count(), "epoch")));
        }
    }
    let above = (!above.is_empty())
        .then(|| format!("The axis ends at {}, triangles lie above it: {}.", axis.end(), above.join("; ")));
    let none = (!none.is_empty()).then(|| format!("No finite value: {}.", none.join("; ")));
    above.into_iter().chain(none).collect()
}

/// Each row's accuracy against the time that its epochs took, on average over its seeds.
fn against_time(section: &Section, rows: &[(Style, &Row)], title: String) -> Option<Chart> {
    let mut all = Vec::new();
    for (style, row) in rows {
        let counted = row.counted();
        let mut series = curve(row, *style, test_acc, percent).swap_remove(0);
        for point in &mut series.points {
            let until = |epoch: &&EpochMetrics| epoch.epoch as f64 <= point.x;
            let elapsed = counted.iter().map(|run| run.epochs.iter().filter(until).map(|epoch| epoch.seconds).sum());
            point.x = Stat::of(elapsed).map_or(f64::NAN, |elapsed| elapsed.mean);
            point.title = format!("{} · after {}", point.title, duration(point.x));
        }
        series.spread.clear();
        all.push(series);
    }
    let seconds: Vec<f64> = all.iter().flat_map(|series| &series.points).map(|point| point.x).collect();
    let chart = || {
        let (x, y) = (Axis::time(seconds.iter().copied()), Axis::percent(epochs(section).map(test_acc)));
        Chart { title, x, y, series: all, legend: vec![], notes: vec![], size: LARGE }
    };
    (!seconds.is_empty()).then(chart)
}

/// Each row's accuracy against what its model costs, if at least two rows can be compared.
fn against_cost(rows: &[(Style, &Row)], cost: &Cost, title: String) -> Option<Chart> {
    let Cost { name, of, tick, told } = *cost;
    let series: Vec<Series> = rows
        .iter()
        .filter_map(|(style, row)| {
            let (last, cost) = (row.last()?, of(row.record())?);
            let (x, y) = (cost as f64, last.mean * 100.0);
            let title = format!("{} · {} · {} {name}", row.label, percent(y), told(cost));
            Some(Series {
                style: *style,
                points: vec![Point { x, y, title }],
                spread: last.sd.map(|sd| (x, y - sd * 100.0, y + sd * 100.0)).into_iter().collect(),
                cut_off: row.is_cut_off(),
                thin: false,
                label: Some(row.label.clone()),
            })
        })
        .collect();
    let points = || series.iter().flat_map(|series| &series.points);
    let reach = series.iter().flat_map(|series| &series.spread).flat_map(|&(_, low, high)| [low, high]);
    let (x, y) = (
        Axis::log(name, points().map(|point| point.x), tick),
        Axis::percent(reach.chain(points().map(|point| point.y))),
    );
    (series.len() > 1).then_some(Chart { title, x, y, series, legend: vec![], notes: vec![], size: LARGE })
}

fn epochs<'a>(section: &'a Section) -> impl Iterator<Item = &'a EpochMetrics> {
    section.rows.iter().flat_map(|row| &row.runs).flat_map(|run| &run.epochs)
}

fn last_epoch(section: &Section) -> usize {
    epochs(section).map(|epoch| epoch.epoch).max().unwrap_or(1)
}

/// A row against the epoch: the mean of the counted runs within the range of their seeds, and a thin line for each
/// run that was cut off beside them.
pub fn curve(row: &Row, style: Style, value: Value, text: fn(f64) -> String) -> Vec<Series> {
    let counted = row.counted();
    let mut series = Vec::new();
    let longest = counted.iter().map(|run| run.epochs.len()).max().unwrap_or(0);
    let mut mean = Series { style, points: vec![], spread: vec![], cut_off: false, thin: false, label: None };
    for index in 0..longest {
        let epochs: Vec<&EpochMetrics> = counted.iter().filter_map(|run| run.epochs.get(index)).collect();
        let values: Vec<f64> = epochs.iter().map(|epoch| value(epoch)).filter(|value| value.is_finite()).collect();
        let Some(stat) = Stat::of(values.iter().copied()) else { continue };
        let (low, high) = (
            values.iter().copied().fold(f64::INFINITY, f64::min),
            values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        );
        let x = epochs[0].epoch as f64;
        let mut title = format!("{} · epoch {x} · {}", row.label, text(stat.mean));
        if values.len() > 1 {
            title.push_str(&format!(" (mean of {} seeds, {} to {})", values.len(), text(low), text(high)));
            mean.spread.push((x, low, high));
        }
        mean.points.push(Point { x, y: stat.mean, title });
    }
    mean.cut_off = row.is_cut_off();
    series.push(mean);
    // By their place in memory: a run with a NaN is not equal to itself.
    let left_out = |run: &&&Run| !counted.iter().any(|counted| ptr::eq(*counted, **run));
    for run in row.runs.iter().filter(left_out) {
        let end = ending(&run.record).unwrap_or_default();
        let points = run.epochs.iter().map(|epoch| {
            let (x, y) = (epoch.epoch as f64, value(epoch));
            let title = format!("{} · seed {} · epoch {x} · {} · {end}", row.label, run.record.seed, text(y));
            Point { x, y, title }
        });
        series.push(Series { style, points: points.collect(), spread: vec![], cut_off: true, thin: true, label: None });
    }
    series
}

/// A row alone: how far the accuracy on the images it trained on runs ahead of the accuracy on others.
fn train_and_test(row: &Row, style: Style) -> Vec<Series> {
    let train = curve(row, Style::Muted, train_acc, |acc| format!("{} in training", percent(acc)));
    let train = train.into_iter().map(|series| Series { spread: vec![], thin: true, cut_off: false, ..series });
    train.take(1).chain(curve(row, style, test_acc, percent)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::rows::sections;
    use crate::report::tests::run;

    fn diverged() -> Run {
        let mut diverged = run("mlp", "fast", 1, 0.1);
        diverged.epochs.iter_mut().for_each(|epoch| epoch.test_loss = 1.7e6);
        diverged.epochs[4].test_loss = f64::NAN;
        diverged
    }

    #[test]
    fn what_a_diverged_run_hides_is_said_on_the_chart() {
        let runs = [diverged(), run("cifar_resnet20", "fast", 1, 0.9), run("template_cnn", "fast", 1, 0.7)];
        let sections = sections(&runs);
        let charts = charts(&sections[0]).together;
        let chart = |name: &str| charts.iter().find(|chart| chart.title.starts_with(name)).unwrap();
        let loss = chart("Test loss");
        let notes = [
            "The axis ends at 2.5, triangles lie above it: mlp goes up to 1.7 M.",
            "No finite value: mlp in 1 of 20 epochs.",
        ];
        assert_eq!(loss.notes, notes);
        assert!(loss.figure().into_string().contains(notes[0]));
        assert!(chart("Training loss").notes.is_empty() && chart("Test accuracy").notes.is_empty());
    }

    /// Its NaN makes it unequal to itself; it is one line all the same, and ends without a cross.
    #[test]
    fn a_finished_run_with_a_nan_is_no_run_that_was_cut_off() {
        let runs = [diverged()];
        let sections = sections(&runs);
        let drawn = curve(&sections[0].rows[0], Style::Muted, test_acc, percent);
        assert_eq!(drawn.iter().map(|series| series.cut_off).collect::<Vec<_>>(), [false]);
    }

    #[test]
    fn the_chart_counts_macs_as_the_table_does() {
        let runs = [run("mlp", "fast", 1, 0.5), run("cifar_resnet20", "fast", 1, 0.9)];
        let sections = sections(&runs);
        let charts = charts(&sections[0]).together;
        let chart = charts.iter().find(|chart| chart.title == "Test accuracy against GMACs · CIFAR-10").unwrap();
        assert!(chart.series[0].points[0].title.ends_with(" · 0.0408 GMACs"), "{}", chart.series[0].points[0].title);
        let html = chart.figure().into_string();
        assert!(html.contains(">0.04<") && !html.contains(" M<"), "{html}");
    }
}
