//! Ablation charts: each answers one question, what depth does, what a setting does, what a layer does, and is drawn
//! from rows that differ in this one thing.

use zoo_core::{InitRule, Precision};
use zoo_train::format::{duration, percent};
use zoo_train::recipe::Overrides;
use zoo_train::record::{RunOverrides, RunRecord};
use zoo_train::report::chart::{Axis, Chart, LARGE, Point, Series, Style};
use zoo_train::report::{ChartGroup, Row, Section, curve, test_acc};

/// The networks that differ in nothing but their depth: before and after the depth in their names, and what they are.
const FAMILIES: [(&str, &str, &str); 4] = [
    ("cifar_plain", "", "plain"),
    ("cifar_resnet", "", "residual, option A"),
    ("cifar_resnet", "_b", "residual, option B"),
    ("cifar_seresnet", "", "squeeze-and-excitation"),
];
/// The depths of He et al. 2015, section 4.2. `cifar_resnet18` and its like are other, wider networks.
const DEPTHS: [u32; 6] = [20, 32, 44, 56, 110, 1202];

/// A number that an override sets: its name, what it is, the value without the override, and where it stands.
struct Setting {
    name: &'static str,
    title: &'static str,
    default: f64,
    field: fn(&mut Overrides) -> &mut Option<f64>,
}

const SETTINGS: [Setting; 2] = [
    Setting {
        name: "bn_momentum",
        title: "Test accuracy against BatchNorm's momentum",
        default: 0.1,
        field: |overrides| &mut overrides.bn_momentum,
    },
    Setting {
        name: "bn_eps",
        title: "Test accuracy against BatchNorm's epsilon",
        default: 1e-5,
        field: |overrides| &mut overrides.bn_eps,
    },
];

/// The charts that the section has rows for, under their heading.
pub fn group(section: &Section) -> Option<ChartGroup> {
    let charts = charts(section);
    (!charts.is_empty()).then_some(ChartGroup {
        heading: "What one thing changes",
        note: "Runs of the same recipe that differ in nothing else. Each chart has colours of its own.",
        charts,
    })
}

fn charts(section: &Section) -> Vec<Chart> {
    let mut charts = by_depth(section);
    charts.extend(SETTINGS.iter().flat_map(|setting| by_setting(section, setting)));
    charts.extend(PAIRS.iter().flat_map(|pair| by_pair(section, pair)));
    charts.extend(frontier(section));
    charts
}

/// How rows were trained that may be compared, but for their model.
#[derive(PartialEq)]
struct Training<'a> {
    recipe: &'a str,
    epochs: usize,
    precision: Precision,
    batch: usize,
    device: &'a str,
    overrides: RunOverrides,
}

/// The training of a record, the overrides without what `leave_out` takes away.
fn training(record: &RunRecord, leave_out: impl Fn(&mut Overrides)) -> Training<'_> {
    let RunRecord { recipe, epochs, precision, batch, device, overrides, .. } = record;
    let mut overrides = overrides.clone();
    leave_out(&mut overrides.recipe);
    Training { recipe, epochs: *epochs, precision: *precision, batch: *batch, device, overrides }
}

/// `recipe, precision, overrides`, for titles; f32 is not said.
fn named(Training { recipe, precision, overrides, .. }: &Training) -> String {
    let settings = precision.unusual().map(str::to_owned).into_iter().chain(overrides.settings());
    settings.fold((*recipe).to_owned(), |name, setting| format!("{name}, {setting}"))
}

/// Puts items of equal keys together, in the order of their first ones.
fn grouped<K: PartialEq, T>(items: impl Iterator<Item = (K, T)>) -> Vec<(K, Vec<T>)> {
    let mut groups: Vec<(K, Vec<T>)> = Vec::new();
    for (key, item) in items {
        match groups.iter().position(|(other, _)| *other == key) {
            Some(index) => groups[index].1.push(item),
            None => groups.push((key, vec![item])),
        }
    }
    groups
}

/// One line: `y` of each row's accuracy in percent, with what `title` says about it.
fn line(
    index: usize,
    points: Vec<(f64, &Row)>,
    y: fn(f64) -> f64,
    title: impl Fn(f64, &Row, String) -> String,
) -> Series {
    let mut series = Series {
        style: Style::Series(index),
        points: vec![],
        spread: vec![],
        cut_off: false,
        thin: false,
        label: None,
    };
    for (x, row) in points {
        let Some(last) = row.last() else { continue };
        let value = y(last.mean * 100.0);
        series.points.push(Point { x, y: value, title: title(x, row, percent(value)) });
        series.spread.extend(last.sd.map(|sd| (x, value - sd * 100.0, value + sd * 100.0)));
        series.cut_off |= row.is_cut_off();
    }
    series
}

/// What the lines' y axis must reach.
fn reach(series: &[Series]) -> Axis {
    let spread = series.iter().flat_map(|series| &series.spread).flat_map(|&(_, low, high)| [low, high]);
    Axis::percent(spread.chain(series.iter().flat_map(|series| &series.points).map(|point| point.y)))
}

/// The family of a model and its depth.
fn family(model: &str) -> Option<(usize, u32)> {
    let depth = |(before, after, _): &(&str, &str, &str)| -> Option<u32> {
        model.strip_prefix(before)?.strip_suffix(after)?.parse().ok().filter(|depth| DEPTHS.contains(depth))
    };
    FAMILIES.iter().enumerate().find_map(|(index, family)| Some((index, depth(family)?)))
}

/// The degradation figure of He et al.: plain networks grow worse with depth, residual ones better.
fn by_depth(section: &Section) -> Vec<Chart> {
    let rows = section.rows.iter().filter(|row| row.last().is_some());
    let rows = rows.filter_map(|row| Some((training(row.record(), |_| ()), (family(&row.record().model)?, row))));
    let mut charts = Vec::new();
    for (training, mut rows) in grouped(rows) {
        rows.sort_by_key(|(place, _)| *place);
        let depths: Vec<f64> = rows.iter().map(|((_, depth), _)| f64::from(*depth)).collect();
        let lines = grouped(rows.into_iter().map(|((family, depth), row)| (family, (f64::from(depth), row))));
        if !lines.iter().any(|(_, points)| points.len() > 1) {
            continue;
        }
        let residual = lines.iter().any(|(family, _)| *family != 0);
        let question = match (lines[0].0, residual) {
            (0, true) => "Plain against residual networks: test error by depth",
            (0, false) => "Plain networks: test error by depth",
            _ => "Residual networks: test error by depth",
        };
        let legend = lines.iter().map(|&(family, _)| (Style::Series(family), FAMILIES[family].2.to_owned())).collect();
        let told = |_: f64, row: &Row, error: String| format!("{} · {error} of the test images wrong", row.label);
        let series: Vec<Series> =
            lines.into_iter().map(|(family, points)| line(family, points, |acc| 100.0 - acc, told)).collect();
        charts.push(Chart {
            title: format!("{question} · {} · {}", named(&training), section.name()),
            x: Axis::at("layers", depths.into_iter()),
            y: reach(&series),
            series,
            legend,
            notes: vec![],
            size: LARGE,
        });
    }
    charts
}

/// The value of `setting` in a record: what its override says, else the default.
fn value(record: &RunRecord, setting: &Setting) -> Option<f64> {
    let mut overrides = record.overrides.recipe;
    let value = (setting.field)(&mut overrides).unwrap_or(setting.default);
    // The axis is logarithmic.
    (value.is_finite() && value > 0.0).then_some(value)
}

/// Test accuracy against a setting, one line a model that was trained with at least two values of it.
fn by_setting(section: &Section, setting: &Setting) -> Vec<Chart> {
    let unset = |overrides: &mut Overrides| *(setting.field)(overrides) = None;
    let rows = section.rows.iter().filter(|row| row.last().is_some());
    let rows = rows.filter_map(|row| Some((training(row.record(), unset), (value(row.record(), setting)?, row))));
    let mut charts = Vec::new();
    for (training, mut rows) in grouped(rows) {
        rows.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut lines = grouped(rows.into_iter().map(|(value, row)| (row.record().model.as_str(), (value, row))));
        lines.iter_mut().for_each(|(_, points)| points.dedup_by_key(|(value, _)| *value));
        lines.retain(|(_, points)| points.len() > 1);
        lines.sort_by_key(|(model, _)| *model);
        if lines.is_empty() {
            continue;
        }
        let values: Vec<f64> = lines.iter().flat_map(|(_, points)| points).map(|(value, _)| *value).collect();
        let legend = lines.iter().enumerate().map(|(index, (model, _))| (Style::Series(index), (*model).to_owned()));
        let legend = legend.collect();
        let told = |value: f64, row: &Row, accuracy: String| {
            format!("{} · {} {} · {accuracy}", row.record().model, setting.name, short(value))
        };
        let lines = lines.into_iter().enumerate();
        let series: Vec<Series> = lines.map(|(index, (_, points))| line(index, points, |acc| acc, told)).collect();
        charts.push(Chart {
            title: format!("{} · {} · {}", setting.title, named(&training), section.name()),
            x: Axis::log(setting.name, values.into_iter(), short),
            y: reach(&series),
            series,
            legend,
            notes: vec![],
            size: LARGE,
        });
    }
    charts
}

/// A setting's value without a row of zeros: `0.01`, `1e-5`.
fn short(value: f64) -> String {
    if value < 0.001 { format!("{value:.0e}") } else { format!("{}", (value * 1e6).round() / 1e6) }
}

/// Two ways to train that differ in one choice.
struct Pair {
    /// What differs, for the title.
    title: &'static str,
    /// The recipe's own way and the changed one.
    names: [&'static str; 2],
    is_changed: fn(&Overrides) -> bool,
    unset: fn(&mut Overrides),
}

const PAIRS: [Pair; 2] = [
    Pair {
        title: "with and without BatchNorm",
        names: ["with BatchNorm", "without BatchNorm"],
        is_changed: |overrides| overrides.batch_norm == Some(false),
        unset: |overrides| overrides.batch_norm = None,
    },
    Pair {
        title: "from PyTorch's initial values and from its own",
        names: ["PyTorch's initial values", "the network's own"],
        is_changed: |overrides| overrides.init == Some(InitRule::Model),
        unset: |overrides| overrides.init = None,
    },
];

/// Test accuracy by epoch in both ways of a pair, a chart for each model that was trained so.
fn by_pair(section: &Section, pair: &Pair) -> Vec<Chart> {
    let is_changed = |row: &Row| (pair.is_changed)(&row.record().overrides.recipe);
    let mut charts = Vec::new();
    for changed in section.rows.iter().filter(|row| is_changed(row)) {
        let training = training(changed.record(), pair.unset);
        let model = &changed.record().model;
        let same = |row: &&Row| {
            !is_changed(row) && row.record().model == *model && self::training(row.record(), pair.unset) == training
        };
        let Some(own) = section.rows.iter().find(same) else { continue };
        let rows = [own, changed];
        let epochs = || rows.iter().flat_map(|row| &row.runs).flat_map(|run| &run.epochs);
        if rows.iter().any(|row| row.runs.iter().all(|run| run.epochs.is_empty())) {
            continue;
        }
        let lines = rows.iter().enumerate();
        let legend = pair.names.iter().enumerate();
        charts.push(Chart {
            title: format!("{model} {} · {} · {}", pair.title, named(&training), section.name()),
            x: Axis::epochs(epochs().map(|epoch| epoch.epoch).max().unwrap_or(1)),
            y: Axis::percent(epochs().map(test_acc)),
            series: lines.flat_map(|(index, row)| curve(row, Style::Series(index), test_acc, percent)).collect(),
            legend: legend.map(|(index, name)| (Style::Series(index), (*name).to_owned())).collect(),
            notes: vec![],
            size: LARGE,
        });
    }
    charts
}

/// What more time buys: test accuracy against the time of whole runs, one line a model that was trained under several
/// of the `fast` recipes.
fn frontier(section: &Section) -> Vec<Chart> {
    let rows = section.rows.iter().filter(|row| row.last().is_some() && is_fast(&row.record().recipe));
    let rows = rows.filter_map(|row| {
        // What is compared is how long a run is: of several recipes, and of any number of epochs.
        let training = Training { recipe: "fast", epochs: 0, ..training(row.record(), |_| ()) };
        Some((training, (row.seconds()?.mean, row)))
    });
    let mut charts = Vec::new();
    for (training, mut rows) in grouped(rows) {
        rows.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut lines = grouped(rows.into_iter().map(|(seconds, row)| (row.record().model.as_str(), (seconds, row))));
        lines.retain(|(_, points)| points.len() > 1);
        if lines.is_empty() {
            continue;
        }
        let seconds: Vec<f64> = lines.iter().flat_map(|(_, points)| points).map(|(seconds, _)| *seconds).collect();
        let legend = lines.iter().enumerate().map(|(index, (model, _))| (Style::Series(index), (*model).to_owned()));
        let legend = legend.collect();
        let told = |seconds: f64, row: &Row, accuracy: String| {
            let record = row.record();
            format!("{} · {} · {accuracy} after {}", record.model, record.recipe, duration(seconds))
        };
        let lines = lines.into_iter().enumerate();
        let series: Vec<Series> = lines.map(|(index, (_, points))| line(index, points, |acc| acc, told)).collect();
        charts.push(Chart {
            title: format!("Test accuracy against a run's time · {} · {}", named(&training), section.name()),
            x: Axis::time(seconds.into_iter()),
            y: reach(&series),
            series,
            legend,
            notes: vec![],
            size: LARGE,
        });
    }
    charts
}

/// Whether a recipe is one of ours that fill a given time.
pub fn is_fast(recipe: &str) -> bool {
    recipe == "fast" || recipe.starts_with("fast-") || recipe.starts_with("sprint-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench_cifar::testing::run;
    use zoo_train::record::Status;
    use zoo_train::report::{Run, sections};

    const WITHOUT_BATCH_NORM: Overrides = Overrides { batch_norm: Some(false), ..Overrides::NONE };

    fn momentum(momentum: f64) -> Overrides {
        Overrides { bn_momentum: Some(momentum), ..Overrides::NONE }
    }

    fn with(overrides: Overrides, mut run: Run) -> Run {
        run.record.overrides = overrides.into();
        run
    }

    #[test]
    fn the_frontier_goes_from_the_shortest_run_to_the_longest() {
        let lasting = |seconds: f64, mut run: Run| {
            run.record.seconds = seconds;
            run
        };
        let runs = [
            lasting(3300.0, run("cifar_resnet20", "fast-60", 1, 0.91)),
            lasting(280.0, run("cifar_resnet20", "fast-5", 1, 0.75)),
            lasting(850.0, run("cifar_resnet20", "fast-15", 1, 0.86)),
            lasting(850.0, run("mlp", "fast-15", 1, 0.55)),
            lasting(9000.0, run("mlp", "modern-200", 1, 0.60)),
        ];
        let told = drawn(&runs);
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].0, "Test accuracy against a run's time · fast · CIFAR-10");
        assert_eq!(told[0].1, ["cifar_resnet20"]);
        assert_eq!(told[0].2, [[(280.0, 75.0), (850.0, 86.0), (3300.0, 91.0)]]);
    }

    /// (title, names of the lines, their points)
    type Told = (String, Vec<String>, Vec<Vec<(f64, f64)>>);

    fn drawn(runs: &[Run]) -> Vec<Told> {
        let sections = sections(runs);
        let charts = charts(&sections[0]);
        let round = |value: f64| (value * 100.0).round() / 100.0;
        let points = |series: &Series| series.points.iter().map(|point| (point.x, round(point.y))).collect();
        charts
            .iter()
            .map(|chart| {
                let names = chart.legend.iter().map(|(_, name)| name.clone()).collect();
                (chart.title.clone(), names, chart.series.iter().map(points).collect())
            })
            .collect()
    }

    #[test]
    fn depth_is_drawn_family_by_family() {
        let runs = [
            run("cifar_plain56", "resnet-paper", 1, 0.86),
            run("cifar_plain20", "resnet-paper", 1, 0.90),
            run("cifar_resnet56", "resnet-paper", 1, 0.93),
            run("cifar_resnet20", "resnet-paper", 1, 0.91),
            run("cifar_resnet20", "resnet-paper", 2, 0.93),
            run("cifar_resnet20_b", "resnet-paper", 1, 0.92),
            run("cifar_seresnet20", "resnet-paper", 1, 0.925),
            // Other networks, and others' recipes, are no part of it.
            run("cifar_resnet50", "resnet-paper", 1, 0.95),
            run("cifar_resnet110", "modern-200", 1, 0.95),
            with(Overrides { lr: Some(0.01), ..Overrides::NONE }, run("cifar_resnet110", "resnet-paper", 1, 0.5)),
        ];
        let title = "Plain against residual networks: test error by depth · resnet-paper · CIFAR-10";
        let names = ["plain", "residual, option A", "residual, option B", "squeeze-and-excitation"].map(str::to_owned);
        let points = vec![
            vec![(20.0, 10.0), (56.0, 14.0)],
            vec![(20.0, 8.0), (56.0, 7.0)],
            vec![(20.0, 8.0)],
            vec![(20.0, 7.5)],
        ];
        assert_eq!(drawn(&runs), [(title.to_owned(), names.to_vec(), points)]);

        // One depth tells nothing, nor does a run without a result.
        assert_eq!(drawn(&[runs[0].clone(), runs[2].clone()]), []);
        let mut failed = runs[1].clone();
        failed.record.status = Status::Failed { message: "no memory".into() };
        assert_eq!(drawn(&[runs[0].clone(), failed]), []);
        assert!(drawn(&runs[2..4])[0].0.starts_with("Residual networks: test error by depth"));
    }

    #[test]
    fn a_setting_is_drawn_where_nothing_else_differs() {
        let runs = [
            with(momentum(0.01), run("cifar_vgg16_bn", "fast", 1, 0.88)),
            run("cifar_vgg16_bn", "fast", 1, 0.90),
            with(momentum(0.5), run("cifar_vgg16_bn", "fast", 1, 0.89)),
            with(momentum(1e-3), run("cifar_resnet20", "fast", 1, 0.80)),
            run("cifar_resnet20", "fast", 1, 0.91),
            with(Overrides { bn_eps: Some(0.001), ..Overrides::NONE }, run("cifar_resnet20", "fast", 1, 0.92)),
            // Two things differ, another recipe, no number that the axis could hold, nothing to compare with.
            with(Overrides { lr: Some(0.05), ..momentum(0.01) }, run("cifar_resnet20", "fast", 1, 0.5)),
            with(momentum(0.01), run("cifar_resnet20", "slow", 1, 0.5)),
            with(momentum(0.0), run("cifar_resnet20", "fast", 1, 0.5)),
            run("mlp", "fast", 1, 0.5),
        ];
        let by_momentum = (
            "Test accuracy against BatchNorm's momentum · fast · CIFAR-10".to_owned(),
            vec!["cifar_resnet20".to_owned(), "cifar_vgg16_bn".to_owned()],
            vec![vec![(0.001, 80.0), (0.1, 91.0)], vec![(0.01, 88.0), (0.1, 90.0), (0.5, 89.0)]],
        );
        let by_eps = (
            "Test accuracy against BatchNorm's epsilon · fast · CIFAR-10".to_owned(),
            vec!["cifar_resnet20".to_owned()],
            vec![vec![(1e-5, 91.0), (0.001, 92.0)]],
        );
        assert_eq!(drawn(&runs), [by_momentum, by_eps]);
        assert_eq!([1e-5, 5e-4, 0.001, 0.1].map(short), ["1e-5", "5e-4", "0.001", "0.1"]);
    }

    /// Runs of two precisions differ in two things: no line goes from one to the other.
    #[test]
    fn precisions_are_not_mixed() {
        let mixed = |mut run: Run| {
            run.record.precision = Precision::Bf16;
            run
        };
        let titles = |runs: &[Run]| drawn(runs).into_iter().map(|(title, ..)| title).collect::<Vec<_>>();
        let (slow, fast) = (run("cifar_resnet20", "fast-60", 1, 0.9), run("cifar_resnet20", "fast-5", 1, 0.8));
        let without = with(WITHOUT_BATCH_NORM, run("cifar_resnet20", "fast-60", 1, 0.7));
        let lower = with(momentum(0.01), run("cifar_resnet20", "fast-60", 1, 0.7));
        let deep = run("cifar_resnet56", "fast-60", 1, 0.9);
        for other in [&fast, &without, &lower, &deep] {
            assert_eq!(titles(&[slow.clone(), mixed(other.clone())]), [""; 0]);
            let same = titles(&[slow.clone(), other.clone()]);
            assert!(same.len() == 1 && !same[0].contains("bf16"), "{same:?}");
            let both = titles(&[mixed(slow.clone()), mixed(other.clone())]);
            assert!(both.len() == 1 && both[0].contains(", bf16 · CIFAR-10"), "{both:?}");
        }
    }

    #[test]
    fn batch_norm_is_drawn_with_and_without() {
        let mut other_length = with(WITHOUT_BATCH_NORM, run("cifar_vgg16_bn", "fast", 1, 0.2));
        other_length.record.epochs = 5;
        let runs = [
            run("cifar_resnet20", "fast", 1, 0.9),
            with(WITHOUT_BATCH_NORM, run("cifar_resnet20", "fast", 1, 0.7)),
            with(WITHOUT_BATCH_NORM, run("mlp", "fast", 1, 0.6)),
            run("cifar_vgg16_bn", "fast", 1, 0.9),
            other_length,
        ];
        let found = drawn(&runs);
        assert_eq!(found.len(), 1, "{found:?}");
        let (title, names, lines) = &found[0];
        assert_eq!(title, "cifar_resnet20 with and without BatchNorm · fast · CIFAR-10");
        assert_eq!(names[..], ["with BatchNorm", "without BatchNorm"]);
        assert_eq!((lines.len(), lines[0].len(), lines[0][19], lines[1][19]), (2, 20, (20.0, 90.0), (20.0, 70.0)));

        let mut unseen = runs[..2].to_vec();
        unseen[1].epochs.clear();
        assert_eq!(drawn(&unseen), []);

        let own = Overrides { init: Some(InitRule::Model), ..Overrides::NONE };
        let starts = [run("mobilenet_v1", "review-20", 1, 0.5), with(own, run("mobilenet_v1", "review-20", 1, 0.3))];
        let (title, names, _) = &drawn(&starts)[0];
        assert!(
            title.starts_with("mobilenet_v1 from PyTorch's initial values and from its own · review-20"),
            "{title}"
        );
        assert_eq!(names[..], ["PyTorch's initial values", "the network's own"]);
    }
}
