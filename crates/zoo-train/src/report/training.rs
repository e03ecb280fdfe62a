//! How the runs were trained: every hyperparameter, and the course of the learning rate.

use maud::{Markup, html};

use super::Run;
use super::chart::{Axis, Chart, LARGE, Point, Series, Style, amount};
use super::rows::{Row, Section, ending};
use crate::recipe::{Length, Recipe};
use crate::record::{EpochMetrics, RunOverrides};

/// The training of a row's runs, as far as it is known.
enum Known {
    /// Their record says it.
    Recorded(Recipe),
    /// The record is older than its hyperparameters. They are those that its recipe and its overrides name today, and
    /// the learning rate of every epoch is the one that was measured.
    Named(Recipe),
    /// The record is older than its hyperparameters, and what it names is not the same any more or not enough.
    Unknown,
}

impl Known {
    fn of(run: &Run) -> Self {
        match (&run.record.hyperparameters, named(run)) {
            (Some(recipe), _) => Self::Recorded(recipe.clone()),
            (None, Some(recipe)) => Self::Named(recipe),
            (None, None) => Self::Unknown,
        }
    }

    fn recipe(&self) -> Option<&Recipe> {
        match self {
            Self::Recorded(recipe) | Self::Named(recipe) => Some(recipe),
            Self::Unknown => None,
        }
    }
}

/// The recipe that a record names, if it is exactly what the run followed.
fn named(run: &Run) -> Option<Recipe> {
    let record = &run.record;
    // The crop of this one goes by the size of the images, which a record does not tell.
    if record.recipe == "finetune" {
        return None;
    }
    // Neither whose figures pixels were normalised by nor what a run started from is a recipe's to say.
    let RunOverrides { recipe: changes, set, normalize: None, weights: None } = &record.overrides else { return None };
    if !set.is_empty() {
        return None;
    }
    let mut recipe = Recipe::named(&record.recipe).ok()?.adapted_to(&record.model).with(changes).ok()?;
    recipe.precision = record.precision;
    let images = record.data.train_images;
    recipe.drop_last |= recipe.leaves_one_image(images);
    let extent = recipe.step_count(images).ok()?;
    if extent.total_steps != record.epochs as u64 * extent.steps_per_epoch {
        recipe.length = Length::Epochs(record.epochs);
    }
    let rates = recipe.schedule.over(recipe.lr, recipe.step_count(images).ok()?);
    let measured = |epoch: &EpochMetrics| epoch.step.checked_sub(1).map(|step| rates.at(step)) == Some(epoch.lr);
    (recipe.batch == record.batch && !run.epochs.is_empty() && run.epochs.iter().all(measured)).then_some(recipe)
}

/// The run whose settings a row shows: all its runs differ in their seeds alone. A row of failed runs has one, too.
fn speaker<'a>(row: &Row<'a>) -> &'a Run {
    row.counted().first().copied().unwrap_or(row.runs[0])
}

/// Settings of a section's rows: those that all share, and those that differ.
pub(super) struct Settings<'a> {
    /// Names with their values.
    pub(super) shared: Vec<(&'static str, String)>,
    /// The names of what differs.
    pub(super) names: Vec<&'static str>,
    /// For every row that is known, in the table's order, what differs.
    pub(super) own: Vec<(Style, &'a str, Vec<String>)>,
    /// What must be said of rows that do not say it themselves.
    pub(super) notes: Vec<String>,
}

/// The settings of a section's rows.
pub(super) fn settings<'a>(section: &'a Section) -> Settings<'a> {
    let (mut named, mut unknown, mut rows) = (Vec::new(), Vec::new(), Vec::new());
    for (index, row) in section.rows.iter().enumerate() {
        let label = row.label.as_str();
        let known = Known::of(speaker(row));
        match known {
            Known::Recorded(_) => {}
            Known::Named(_) => named.push(label),
            Known::Unknown => unknown.push(label),
        }
        let told = known.recipe().map(|recipe| (Style::Series(index), label, recipe.hyperparameters()));
        rows.extend(told);
    }
    let names =
        rows.first().map_or_else(Vec::new, |(_, _, told)| told.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    let (mut shared, mut differing) = (Vec::new(), Vec::new());
    for (place, name) in names.into_iter().enumerate() {
        let value = |row: usize| &rows[row].2[place].1;
        if (1..rows.len()).all(|row| value(row) == value(0)) {
            shared.push((name, value(0).clone()));
        } else {
            differing.push((place, name));
        }
    }
    let own = rows.iter().map(|(style, label, told)| {
        let own = differing.iter().map(|&(place, _)| told[place].1.clone());
        (*style, *label, own.collect())
    });
    let own = if differing.is_empty() { Vec::new() } else { own.collect() };
    let note = |labels: Vec<&str>, text: &str| match labels.len() {
        0 => None,
        all if all == section.rows.len() => Some(format!("All runs: {text}")),
        _ => Some(format!("{}: {text}", labels.join("; "))),
    };
    let notes = [
        note(
            named,
            "the record is older than these settings. They are those of the recipe that it names; the learning rates that \
             were measured agree with it.",
        ),
        note(unknown, "not recorded."),
    ];
    Settings {
        shared,
        names: differing.iter().map(|(_, name)| *name).collect(),
        own,
        notes: notes.into_iter().flatten().collect(),
    }
}

/// The settings on the page.
pub(super) fn trained(section: &Section) -> Markup {
    let Settings { shared, names, own, notes } = settings(section);
    html! {
        @if !section.rows.is_empty() {
            h3 { "How they were trained" }
            @for note in notes { p.note { (note) } }
            dl { @for (name, value) in shared { dt { (name) } dd { (value) } } }
            @if !own.is_empty() {
                div.scroll tabindex="0" role="region" aria-label="Hyperparameters" {
                    table.settings {
                        thead { tr { th scope="col" { "Model" } @for name in names { th scope="col" { (name) } } } }
                        tbody {
                            @for (style, label, values) in own {
                                tr {
                                    th scope="row" { (style.swatch()) (label) }
                                    @for value in values { td { (value) } }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The learning rate along the runs: as the recipe has it at every step, else as it was measured at the epochs' ends.
pub(super) fn rates(rows: &[(Style, &Row)], title: String) -> Option<Chart> {
    /// Points of a curve, but for those where it jumps.
    const POINTS: u64 = 120;
    /// Rates further apart than this share no even axis.
    const APART: f64 = 20.0;
    let mut series = Vec::new();
    for (style, row) in rows {
        let run = speaker(row);
        let told =
            |x: f64, rate: f64| Point {
                x, y: rate, title: format!("{} · epoch {x:.1} · {}", row.label, amount(rate))
            };
        let known = Known::of(run);
        let extent =
            known.recipe().and_then(|recipe| Some((recipe, recipe.step_count(run.record.data.train_images).ok()?)));
        let points = match extent {
            Some((recipe, extent)) => {
                let rates = recipe.schedule.over(recipe.lr, extent);
                let steps = run.record.steps.min(extent.total_steps);
                let every = steps.div_ceil(POINTS).max(1);
                let jumps = |step: u64| {
                    let next = step + 1;
                    next < steps && (rates.at(next) / rates.at(step) - 1.0).abs() > 0.3
                };
                let shown = |&step: &u64| {
                    step % every == 0 || step + 1 == steps || jumps(step) || step.checked_sub(1).is_some_and(jumps)
                };
                let at = |step: u64| told((step + 1) as f64 / extent.steps_per_epoch as f64, rates.at(step));
                (0..steps).filter(shown).map(at).collect()
            }
            None => run.epochs.iter().map(|epoch| told(epoch.epoch as f64, epoch.lr)).collect::<Vec<_>>(),
        };
        let cut_off = ending(&run.record).is_some();
        series.push(Series { style: *style, points, spread: vec![], cut_off, thin: false, label: None });
    }
    let points = || series.iter().flat_map(|series| &series.points);
    let last = points().map(|point| point.x).filter(|x| x.is_finite()).reduce(f64::max)?.ceil() as usize;
    let largest = series.iter().filter_map(|series| series.points.iter().map(|point| point.y).reduce(f64::max));
    let (low, high) =
        largest.fold((f64::INFINITY, 0.0), |(low, high): (f64, f64), rate| (low.min(rate), high.max(rate)));
    let even = high <= low * APART;
    let rates = points().map(|point| point.y);
    let y = match even {
        true => Axis::from_zero(rates),
        // What falls to nothing would stretch the axis without end.
        false => Axis::log("", rates.map(|rate| rate.max(low / 100.0)), amount),
    };
    let title = if even { title } else { title.replacen("Learning rate", "Learning rate, logarithmic axis", 1) };
    Some(Chart { title, x: Axis::course(last), y, series, legend: vec![], notes: vec![], size: LARGE })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Overrides;
    use crate::record::Status;
    use crate::report::rows::sections;
    use crate::report::tests::run;
    use crate::report::{Additions, html, markdown};
    use zoo_core::Precision;

    /// A run whose epochs have the rates of the recipe that its record names.
    fn followed(model: &str, recipe: &str, epochs: usize) -> Run {
        let mut run = run(model, recipe, 1, 0.5);
        let changes = Overrides { epochs: Some(epochs), ..Overrides::NONE };
        let recipe = Recipe::named(recipe).unwrap().adapted_to(model).with(&changes).unwrap();
        let extent = recipe.step_count(50_000).unwrap();
        let rates = recipe.schedule.over(recipe.lr, extent);
        run.epochs.truncate(epochs);
        for epoch in &mut run.epochs {
            epoch.step = epoch.epoch as u64 * extent.steps_per_epoch;
            epoch.lr = rates.at(epoch.step - 1);
        }
        (run.record.epochs, run.record.epochs_done, run.record.steps) = (epochs, epochs, extent.total_steps);
        run.record.batch = recipe.batch;
        run
    }

    fn recorded(run: Run, recipe: Recipe) -> Run {
        let mut run = run;
        run.record.hyperparameters = Some(recipe);
        run
    }

    #[test]
    fn an_older_record_is_told_by_its_recipe_only_where_that_is_exact() {
        let old = followed("cifar_resnet20", "fast-15", 11);
        assert!(matches!(Known::of(&old), Known::Named(recipe) if recipe == Recipe::named("fast-15").unwrap()));
        let short = followed("cifar_resnet20", "modern-200", 20);
        assert!(matches!(Known::of(&short), Known::Named(recipe) if recipe.length == Length::Epochs(20)));

        let mut mixed = followed("cifar_resnet20", "fast-15", 11);
        mixed.record.precision = Precision::Bf16;
        assert!(matches!(Known::of(&mixed), Known::Named(recipe) if recipe.precision == Precision::Bf16));

        let unlike = |change: fn(&mut Run)| {
            let mut run = followed("cifar_resnet20", "fast-15", 11);
            change(&mut run);
            assert!(matches!(Known::of(&run), Known::Unknown));
        };
        unlike(|run| run.epochs[4].lr *= 1.000_001);
        unlike(|run| run.epochs.clear());
        unlike(|run| run.record.batch = 64);
        unlike(|run| run.record.recipe = "my-own".into());
        unlike(|run| run.record.overrides.normalize = Some("imagenet".into()));
        unlike(|run| run.record.overrides.weights = Some("net.pth".into()));
        unlike(|run| run.record.overrides.recipe.lr = Some(0.2));
    }

    /// The records kept in the tree are older than the field.
    #[test]
    fn the_kept_records_are_read_and_told_by_their_recipes() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../results");
        let (runs, warnings) = crate::report::load(folder.as_ref()).unwrap();
        assert!(warnings.is_empty() && runs.len() >= 7, "{warnings:?}");
        for run in runs.iter().filter(|run| run.record.hyperparameters.is_none()) {
            assert!(matches!(Known::of(run), Known::Named(_)), "{}", run.record.folder);
        }
    }

    #[test]
    fn what_all_share_is_said_once_and_the_rest_row_by_row() {
        let quick = Recipe::named("quick").unwrap();
        let other = quick.with(&Overrides { lr: Some(0.5), ..Overrides::NONE }).unwrap();
        let mut changed = recorded(run("template_cnn", "quick", 1, 0.4), other);
        changed.record.overrides.recipe.lr = Some(0.5);
        let runs = [
            recorded(run("mlp", "quick", 1, 0.5), quick.clone()),
            changed,
            run("cifar_plain20", "quick", 1, 0.3),
            followed("cifar_resnet20", "fast-15", 11),
        ];
        let few = sections(&runs[..2]);
        let told = settings(&few[0]);
        assert!(told.shared.contains(&("Optimizer", "SGD with Nesterov's momentum 0.9".into())), "{:?}", told.shared);
        assert_eq!((told.names, told.notes), (vec!["Learning rate"], vec![]));
        let own: Vec<(&str, Vec<String>)> = told.own.into_iter().map(|(_, label, own)| (label, own)).collect();
        assert_eq!(own, [("mlp", vec!["0.05".to_owned()]), ("template_cnn · lr=0.5", vec!["0.5".to_owned()])]);

        for text in [html(&runs, &Additions::NONE), markdown(&runs, &Additions::NONE)] {
            assert!(
                text.contains("not recorded.") && text.contains("the record is older than these settings"),
                "{text}"
            );
            assert!(text.contains("Nesterov") && text.contains("CIFAR-10's mean and deviation"), "{text}");
        }
    }

    #[test]
    fn the_course_of_the_rate_is_drawn_step_by_step() {
        let runs = [followed("cifar_resnet20", "modern-200", 20), followed("cifar_resnet32", "resnet-paper", 20)];
        let whole = sections(&runs);
        let rows: Vec<(Style, &Row)> = whole[0].rows.iter().map(|row| (Style::Muted, row)).collect();
        let chart = rates(&rows, "Learning rate · x".into()).unwrap();
        assert_eq!(chart.title, "Learning rate · x");
        for Series { points, .. } in &chart.series {
            assert!((100..300).contains(&points.len()), "{}", points.len());
            assert_eq!((points[0].y, points.last().unwrap().x), (0.1, 20.0));
        }
        // Where the rate falls to a tenth, both ends of the fall are points.
        let falls = |series: &Series| {
            series.points.windows(2).any(|pair| pair[1].y < 0.2 * pair[0].y && pair[1].x - pair[0].x < 0.01)
        };
        assert!(chart.series.iter().any(falls));

        let apart = [followed("cifar_resnet20", "modern-200", 20), followed("cifar_alexnet", "review-20", 20)];
        let page = html(&apart, &Additions::NONE);
        assert!(page.contains("<figcaption>Learning rate, logarithmic axis · CIFAR-10</figcaption>"), "{page}");
    }

    #[test]
    fn a_failed_run_says_how_it_was_trained() {
        let mut failed = recorded(run("mlp", "quick", 1, 0.1), Recipe::named("quick").unwrap());
        failed.record.status = Status::Failed { message: "loss is NaN".into() };
        (failed.record.epochs_done, failed.record.steps) = (0, 0);
        failed.epochs.clear();
        assert!(html(&[failed], &Additions::NONE).contains("<dt>Learning rate</dt><dd>0.05</dd>"));
    }
}
