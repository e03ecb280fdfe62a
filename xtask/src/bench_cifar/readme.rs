//! Results table of the README: every published figure with our run of it beside it, and our own runs beyond them.

use anyhow::{Result, bail};

use super::ablation_charts::is_fast;
use super::published::{self, Published};
use super::pytorch;
use zoo_train::format::{count, thousands};
use zoo_train::recipe::Length;
use zoo_train::record::{CIFAR10, RunRecord, Status};
use zoo_train::report::{Row, Run, Section, code, escape, sections};

/// What stands before the table in a README.
const BEGIN: &str = "<!-- results -->";
/// What stands behind it.
const END: &str = "<!-- results end -->";

const TITLES: [&str; 9] = [
    "model",
    "recipe",
    "ours: last epoch (best)",
    "PyTorch, same images",
    "published",
    "difference",
    "images/s",
    "core hours a run",
    "data",
];
/// Words to the left, numbers to the right.
const ALIGNMENT: &str = "|---|---|---:|---:|---:|---|---:|---:|---|";

/// Heads our own recipes' runs, the shortest first.
const FAST: &str = "**fast** and **sprint**: our own recipes, as many epochs as 5, 15 or 60 minutes of two cores allow, in f32 and in bf16: what accuracy \
     costs in time.";

/// What the template's rows need said. The figure is a share of images: of those the networks were trained on.
const TEMPLATE_600: &str = "Why not ≈ 98 %: without augmentation, networks of this size learn the 50,000 training images by \
    heart in 600 epochs; values like the template's are reached on those, not on images that they have not seen. Only the \
    order of the models compares.";

/// The results as Markdown: a table for each published set of figures, below it what has not been run, folded away, and one
/// table for our runs under other recipes. A line below each says under which conditions its runs ran.
pub fn table(runs: &[Run]) -> String {
    let sections = sections(runs);
    let mut rest: Vec<Ours> =
        sections.iter().flat_map(|section| section.rows.iter().map(move |row| Ours { section, row })).collect();
    let mut figures: Vec<&Published> = published::all().iter().collect();
    let mut groups = Vec::new();
    while let Some(first) = figures.first().copied() {
        let of_set = figures.extract_if(.., |figure| figure.recipe == first.recipe);
        let mut lines = Vec::new();
        let mut shown: Vec<Ours> = Vec::new();
        let (mut all, mut left) = (0, Vec::new());
        for figure in of_set {
            all += 1;
            let mut found: Vec<Ours> = rest.extract_if(.., |ours| ours.stands_beside(figure)).collect();
            found.sort_by_key(|ours| ours.section.data.name != CIFAR10);
            if found.is_empty() {
                left.push(not_run(figure));
            }
            lines.extend(found.iter().map(Ours::line));
            shown.extend(found);
        }
        // What was trained like them but has no figure of its own: other networks, other settings.
        let like: Vec<Ours> = rest.extract_if(.., |ours| ours.is_like(first)).collect();
        lines.extend(like.iter().map(Ours::line));
        shown.extend(like);
        let template = (first.recipe == "template-600").then(|| TEMPLATE_600.to_owned());
        let notes: Vec<String> = folded(&left, all).into_iter().chain(template).collect();
        groups.push(group(&format!("**{}**: {}.", first.recipe, first.note), &lines, &shown, &notes));
    }
    let mut fast: Vec<Ours> =
        rest.extract_if(.., |ours| is_fast(&ours.row.record().recipe) && ours.is_on_cifar10()).collect();
    fast.sort_by(|a, b| a.row.record().seconds.total_cmp(&b.row.record().seconds));
    if !fast.is_empty() {
        let lines: Vec<String> = fast.iter().map(Ours::line).collect();
        groups.push(group(FAST, &lines, &fast, &[]));
    }
    if !rest.is_empty() {
        let lines: Vec<String> = rest.iter().map(Ours::line).collect();
        groups.push(group("**Our other runs**", &lines, &rest, &[]));
    }
    groups.join("\n")
}

/// `text`, a README, with `table` in place of what stands between `<!-- results -->` and `<!-- results end -->`.
///
/// # Errors
/// A README without these two lines in this order.
pub fn splice(text: &str, table: &str) -> Result<String> {
    let parts = text.split_once(BEGIN).and_then(|(head, rest)| Some((head, rest.split_once(END)?.1)));
    let Some((head, tail)) = parts else {
        bail!("there is no place for the results: the text needs a line `{BEGIN}` and below it a line `{END}`");
    };
    Ok(format!("{head}{BEGIN}\n\n{}\n\n{END}{tail}", table.trim()))
}

fn group(heading: &str, lines: &[String], shown: &[Ours], notes: &[String]) -> String {
    let mut text = format!("{heading}\n");
    if !lines.is_empty() {
        text.push_str(&format!("\n| {} |\n{ALIGNMENT}\n", TITLES.join(" | ")));
        lines.iter().for_each(|line| text.push_str(line));
    }
    for paragraph in notes.iter().cloned().chain(conditions(shown)) {
        text.push_str(&format!("\n{paragraph}\n"));
    }
    text
}

/// The published rows that are not run yet, of so many, folded away.
fn folded(left: &[String], all: usize) -> Option<String> {
    let summary = format!("Not run yet: {} of {all} published rows", left.len());
    (!left.is_empty()).then(|| format!("<details><summary>{summary}</summary>\n\n{}\n\n</details>", left.join(" · ")))
}

/// The conditions of all rows in one line; `None` without a row.
fn conditions(shown: &[Ours]) -> Option<String> {
    let told = |name: &str, tell: &dyn Fn(&Section, &RunRecord) -> String| {
        let mut all: Vec<String> = Vec::new();
        for Ours { section, row } in shown {
            for run in &row.runs {
                let fact = escape(&tell(section, &run.record));
                if !all.contains(&fact) {
                    all.push(fact);
                }
            }
        }
        format!("{name}: {}", all.join("; "))
    };
    let facts = [
        told("Data", &|section, _| section.heading()),
        told("device", &|_, record| format!("{}, {}", record.device, count(record.threads, "thread"))),
        told("commit", &|_, record| record.commit.clone().unwrap_or_else(|| "not known".into())),
        told("processor", &|_, record| record.platform.to_string()),
    ];
    (!shown.is_empty()).then(|| format!("{}.", facts.join(" · ")))
}

fn not_run(figure: &Published) -> String {
    let length = match figure.length {
        Length::Epochs(epochs) => count(epochs, "epoch"),
        Length::Steps(steps) => format!("{} iterations", thousands(steps)),
    };
    format!("{}, {length}: published {}", code(figure.model), figure.text)
}

/// A row of ours with the section that says what its data is.
#[derive(Clone, Copy)]
struct Ours<'a> {
    section: &'a Section<'a>,
    row: &'a Row<'a>,
}

impl Ours<'_> {
    /// Whether this is our run of what `figure` is of, or of a part of it.
    fn stands_beside(&self, figure: &Published) -> bool {
        let record = self.row.record();
        self.is_like(figure)
            && record.overrides.is_empty()
            && record.model == figure.model
            && published::beside(record).first().is_some_and(|nearest| *nearest == figure)
    }

    /// Whether it was trained by the recipe of `figure` and on images of CIFAR-10.
    fn is_like(&self, figure: &Published) -> bool {
        self.row.record().recipe == figure.recipe && self.is_on_cifar10()
    }

    fn is_on_cifar10(&self) -> bool {
        let data = &self.row.record().data;
        !data.synthetic && data.name.starts_with(CIFAR10)
    }

    fn line(&self) -> String {
        let row = self.row;
        let cells = [
            self.training(),
            self.accuracy(),
            pytorch::accuracy(row).text,
            published::figures(row).text,
            self.difference(),
            row.images_per_s().text,
            row.core_hours().text,
            self.section.name(),
        ];
        let cells: Vec<String> = cells.iter().map(|cell| escape(cell)).collect();
        format!("| {} | {} |\n", code(&row.record().model), cells.join(" | "))
    }

    fn training(&self) -> String {
        let recipe = self.row.recipe().text;
        match self.row.counted().len() {
            0 | 1 => recipe,
            seeds => format!("{recipe}, {}", count(seeds, "seed")),
        }
    }

    fn accuracy(&self) -> String {
        let row = self.row;
        if row.last().is_none() {
            let failed = row.runs.iter().any(|run| matches!(run.record.status, Status::Failed { .. }));
            return if failed { "failed" } else { "interrupted" }.into();
        }
        let best = row.mean_and_sd(row.stat(|record| record.test_acc_best));
        format!("{} ({})", row.mean_and_sd(row.last()).text, best.text)
    }

    /// The difference from the published figure, or why there is none, or that the run was cut off.
    fn difference(&self) -> String {
        let row = self.row;
        if published::figures(row).value.is_some() || row.finished() {
            published::difference(row).text
        } else {
            row.status().text
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench_cifar::testing::{run, synthetic};
    use zoo_core::Precision;

    /// The lines of the table that name `model`.
    fn lines<'a>(text: &'a str, model: &str) -> Vec<&'a str> {
        let start = format!("| `{model}` | ");
        text.lines().filter_map(|line| line.strip_prefix(&start)).collect()
    }

    /// What the folded parts name.
    fn left(text: &str) -> Vec<&str> {
        let parts = text.split("</summary>\n\n").skip(1).filter_map(|rest| rest.split_once("\n\n</details>"));
        parts.flat_map(|(part, _)| part.split(" · ")).collect()
    }

    #[test]
    fn what_was_not_run_says_so() {
        let text = table(&[]);
        for figure in published::all() {
            assert!(left(&text).contains(&not_run(figure).as_str()), "{text}");
        }
        assert_eq!(left(&text).len(), published::all().len());
        assert!(text.matches("<details><summary>Not run yet: ").count() == 4 && !text.contains("|---|"), "{text}");
        assert!(left(&text).contains(&"`cifar_resnet56`, 64,000 iterations: published 93.03 %"), "{text}");
        assert!(text.starts_with("**review-20**: a review of networks on CIFAR-10"), "{text}");
        assert!(!text.contains("Data:") && text.contains("Why not ≈ 98 %"), "{text}");
    }

    #[test]
    fn our_runs_stand_beside_the_published_ones() {
        let mut long = run("mobilenet_v2", "review-20", 1, 0.59);
        (long.record.epochs, long.record.epochs_done) = (75, 75);
        let runs = [
            run("cifar_alexnet", "review-20", 1, 0.66),
            run("cifar_alexnet", "review-20", 2, 0.67),
            long,
            run("cifar_resnet101", "review-20", 1, 0.8),
        ];
        let text = table(&runs);
        assert_eq!(
            lines(&text, "cifar_alexnet"),
            [
                "review-20, 20 epochs, 2 seeds | 66.50 ± 0.71 % (67.50 ± 0.71 %) | – | 66.5 % | +0.00 | 1,000 | 0.6 | CIFAR-10 |"
            ]
        );
        assert_eq!(
            lines(&text, "mobilenet_v2"),
            ["review-20, 75 epochs | 59.00 % (60.00 %) | – | 60.4 % | −1.40 | 1,000 | 0.6 | CIFAR-10 |"]
        );
        assert!(left(&text).contains(&"`mobilenet_v2`, 20 epochs: published 46.9 %"), "{text}");
        assert!(text.contains("Not run yet: 7 of 9 published rows"), "{text}");
        // Trained like them, without a figure of its own: it stands in the same table.
        let review = text.split("**resnet-paper**").next().unwrap();
        assert_eq!(
            lines(review, "cifar_resnet101"),
            ["review-20, 20 epochs | 80.00 % (81.00 %) | – | – | – | 1,000 | 0.6 | CIFAR-10 |"]
        );
        let conditions = "\nData: CIFAR-10: 50,000 images to train on, 10,000 to test on · device: cpu, 2 threads · \
                          commit: 0123456789ab · processor: linux x86\\_64.\n";
        assert_eq!(text.matches(conditions).count(), 1, "{text}");
        assert!(!text.contains("Our other runs"));
    }

    #[test]
    fn only_like_is_compared_and_everything_is_shown() {
        let mut copy = run("cifar_resnet18", "modern-200", 1, 0.93);
        copy.record.data.name = "CIFAR-10, JPEG q75 copy".into();
        let mut ablation = run("cifar_resnet20", "modern-200", 1, 0.91);
        ablation.record.overrides.recipe.bn_eps = Some(0.001);
        let mut cut = run("cifar_densenet121", "modern-200", 1, 0.4);
        (cut.record.epochs, cut.record.epochs_done, cut.record.status) = (200, 7, Status::Interrupted);
        let mut failed = run("vit_tiny", "ours", 1, 0.1);
        failed.record.status = Status::Failed { message: "a | b".into() };
        let runs = [copy, ablation, cut, failed, synthetic(run("cifar_alexnet", "review-20", 1, 0.99))];
        let text = table(&runs);
        assert_eq!(
            lines(&text, "cifar_resnet18"),
            [
                "modern-200, 20 epochs | 93.00 % (94.00 %) | – | 95.5 % | not comparable: data: CIFAR-10, JPEG q75 copy | \
                 1,000 | 0.6 | CIFAR-10, JPEG q75 copy |"
            ]
        );
        // Another setting is not the published run, which is still to come.
        let resnet20 = lines(&text, "cifar_resnet20");
        assert_eq!(resnet20.len(), 1, "{text}");
        assert!(left(&text).contains(&"`cifar_resnet20`, 200 epochs: published 92.6 %"), "{text}");
        assert!(
            resnet20[0].contains("bn\\_eps=0.001 | 91.00 % (92.00 %) | – | 92.6 % | not comparable: bn\\_eps"),
            "{text}"
        );
        assert!(
            lines(&text, "cifar_densenet121")[0].contains("not comparable: interrupted, 7 of 200 epochs"),
            "{text}"
        );
        // Synthetic images and recipes of our own stand apart.
        let (published, others) = text.split_once("**Our other runs**").unwrap();
        assert!(lines(published, "cifar_alexnet").is_empty());
        assert!(
            lines(others, "cifar_alexnet")[0]
                .ends_with("not comparable: synthetic data | 1,000 | 0.6 | synthetic data |")
        );
        assert!(
            lines(others, "vit_tiny")[0].contains("| failed | – | – | failed after 20 of 20 epochs: a \\| b |"),
            "{others}"
        );
        assert!(others.contains("; Synthetic data, not CIFAR-10: 2,000 images"), "{others}");
        // Every line of the table has its nine cells.
        let cells = |line: &str| line.replace("\\|", "").matches('|').count();
        assert!(text.lines().filter(|line| line.starts_with('|')).all(|line| cells(line) == 10), "{text}");
    }

    /// Each precision has its line, neither is part of the other's mean, and both are ours beside what was published.
    #[test]
    fn precisions_have_lines_of_their_own() {
        let mut mixed = run("cifar_alexnet", "review-20", 2, 0.67);
        mixed.record.precision = Precision::Bf16;
        let text = table(&[run("cifar_alexnet", "review-20", 1, 0.66), mixed]);
        assert_eq!(
            lines(&text, "cifar_alexnet"),
            [
                "review-20, 20 epochs, bf16 | 67.00 % (68.00 %) | – | 66.5 % | +0.50 | 1,000 | 0.6 | CIFAR-10 |",
                "review-20, 20 epochs | 66.00 % (67.00 %) | – | 66.5 % | −0.50 | 1,000 | 0.6 | CIFAR-10 |"
            ]
        );
    }

    #[test]
    fn fast_runs_stand_by_their_time() {
        let lasting = |seconds: f64, recipe: &str| {
            let mut run = run("cifar_resnet20", recipe, 1, 0.8);
            run.record.seconds = seconds;
            run
        };
        let text = table(&[lasting(3300.0, "fast-60"), lasting(280.0, "fast-5"), synthetic(lasting(900.0, "fast-15"))]);
        let (fast, others) = text.split_once(FAST).unwrap().1.split_once("**Our other runs**").unwrap();
        let recipes: Vec<&str> = lines(fast, "cifar_resnet20").iter().map(|line| &line[..7]).collect();
        assert_eq!(recipes, ["fast-5,", "fast-60"]);
        assert!(lines(others, "cifar_resnet20")[0].starts_with("fast-15"));
    }

    #[test]
    fn the_table_takes_its_place_in_a_text() {
        let text = "# Zoo\n\n<!-- results -->\nold\n<!-- results end -->\n\nMore.\n";
        let once = splice(text, "| new |\n").unwrap();
        assert_eq!(once, "# Zoo\n\n<!-- results -->\n\n| new |\n\n<!-- results end -->\n\nMore.\n");
        assert_eq!(splice(&once, "| new |\n").unwrap(), once);
        for bad in ["", "<!-- results -->", "<!-- results end --> <!-- results -->"] {
            let error = splice(bad, "").unwrap_err().to_string();
            assert!(error.contains("`<!-- results -->`") && error.contains("`<!-- results end -->`"), "{error}");
        }
    }
}
