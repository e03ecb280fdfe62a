//! `zoo eval`: how good a trained network is on test images.

use crate::text::{csv_cell, print_line, until_closed};
use crate::{labels, pictures, trained};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use zoo_image::ImageClassifier;
use zoo_train::confusion::ConfusionMatrix;
use zoo_train::data::TestImages;
use zoo_train::eval::{eval_batch, evaluate_classifier};
use zoo_train::progress::{Images, say};

/// Arguments of `eval`.
#[derive(clap::Args)]
pub struct Args {
    /// Name of the network, see `zoo list`; the weights may say it
    model: Option<String>,
    #[command(flatten)]
    network: trained::Network,
    /// CIFAR-10's or CIFAR-100's binary files, or an image folder: val/CLASS/* or test/CLASS/*. Its test images are
    /// looked at
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    #[command(flatten)]
    size: pictures::Size,
    /// Part of an image folder: val, test or train. Default: val if it is there, else test
    #[arg(long, value_name = "NAME", value_parser = ["val", "test", "train"])]
    split: Option<String>,
    /// Batch size: images that go through the network together. Default: 250 up to 32 pixels, 32 of larger ones
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Which class of the network each class of the data is, where names differ or the data has fewer: a JSON object
    /// {"n01440764": 0, "goldfish": "goldfish, Carassius auratus"} with the network's numbers or names
    #[arg(long, value_name = "FILE")]
    class_map: Option<PathBuf>,
    /// Print each class too: images, precision, recall, F1 and what it is most often taken for
    #[arg(long)]
    per_class: bool,
    /// Print the classes as CSV, a line each, with a column for each class that its images were taken for
    #[arg(long, requires = "per_class", conflicts_with = "json")]
    csv: bool,
    /// Print one JSON object instead of text: images, correct, top1, top5, loss, images_per_s, left_out,
    /// precision; with --per-class also classes and confusion\[true\]\[predicted\]
    #[arg(long)]
    json: bool,
}

/// Prints the share of images that are classified right.
pub fn run(args: &Args) -> Result<()> {
    ensure!(args.batch != Some(0), "--batch must be at least 1");
    let side = TestImages::side(&args.data);
    if let Some(side) = side.filter(|_| args.network.cuts_photographs()) {
        bail!(
            "{}: its images are {side}x{side} pixels as they are: --size, --crop, --crop-mode and --interpolation are for photographs",
            args.data.display()
        )
    }
    let trained = args.network.open(args.model.as_deref(), side)?;
    let mapped = match &args.class_map {
        Some(path) => Some(class_map(&labels::text(path)?, &trained).with_context(|| path.display().to_string())?),
        None => None,
    };
    let known = mapped.as_deref().or(trained.classes());
    let limits = args.size.limits();
    let images = TestImages::open_split(&args.data, args.split.as_deref(), trained.framing(), known, limits)?;
    let batch = args.batch.unwrap_or_else(|| eval_batch(trained.framing().size));
    let mut progress = Images::new(trained.name(), images.len());
    let result = evaluate_classifier(&trained, &images, batch, |n| progress.seen(n));
    drop(progress);
    pictures::tell(&images.left_out());
    let (result, matrix) = result?;
    let by_class = ByClass { trained: &trained, names: images.classes(), matrix: &matrix };
    if args.json {
        let mut object = json!({
            "images": result.images,
            "correct": result.correct,
            "top1": result.top1(),
            "top5": result.top5(),
            "loss": result.loss,
            "images_per_s": result.images_per_s(),
            "left_out": images.left_out().len(),
            "precision": trained.precision(),
        });
        if args.per_class {
            by_class.add_to(&mut object);
        }
        return print_line(object);
    }
    if args.csv {
        return until_closed(by_class.csv(&mut io::stdout().lock()));
    }
    say(format_args!("{:.1} s, {:.0} images/s", result.seconds, result.images_per_s()));
    print_line(format_args!(
        "{} of {} images right: top-1 {:.2} %, top-5 {:.2} %, loss {:.4}",
        result.correct,
        result.images,
        100.0 * result.top1(),
        100.0 * result.top5(),
        result.loss
    ))?;
    if args.per_class {
        until_closed(by_class.table(&mut io::stdout().lock()))?;
    }
    Ok(())
}

/// The data's names of the network's classes: of those that the map has none for, the network's own.
fn class_map(text: &str, trained: &ImageClassifier) -> Result<Vec<String>> {
    let map: BTreeMap<String, Value> =
        serde_json::from_str(text).context("expected a JSON object of the data's names with the network's classes")?;
    let n = trained.num_classes();
    let own: Vec<String> = (0..n).map(|class| trained.class_name(class)).collect();
    let mut names: Vec<Option<String>> = vec![None; n];
    for (name, class) in map {
        let class = match &class {
            Value::Number(number) => number.as_u64().map(|class| class as usize).filter(|&class| class < n),
            Value::String(label) => {
                let found: Vec<usize> = (0..n).filter(|&class| own[class] == *label).collect();
                ensure!(found.len() < 2, "`{label}` is the name of {} classes: give the number of one", found.len());
                found.first().copied()
            }
            _ => None,
        }
        .with_context(|| format!("`{name}`: {class} is none of the network's {n} classes"))?;
        ensure!(names[class].is_none(), "class {class} stands twice");
        names[class] = Some(name);
    }
    // A name of the data's is no other class's.
    let taken: Vec<String> = names.iter().flatten().cloned().collect();
    let other = |class: usize| match taken.contains(&own[class]) {
        true => format!("class {class}"),
        false => own[class].clone(),
    };
    Ok(names.into_iter().enumerate().map(|(class, name)| name.unwrap_or_else(|| other(class))).collect())
}

/// What is told of single classes: those that the data has images of, or that images are taken for.
struct ByClass<'a> {
    trained: &'a ImageClassifier,
    /// The data's names.
    names: &'a [String],
    matrix: &'a ConfusionMatrix,
}

impl ByClass<'_> {
    fn classes(&self) -> impl Iterator<Item = usize> + Clone + '_ {
        let is_there = |&class: &usize| self.matrix.images(class) > 0 || self.matrix.precision(class).is_some();
        (0..self.names.len()).filter(is_there)
    }

    fn add_to(&self, object: &mut Value) {
        let matrix = self.matrix;
        let classes = self.classes().map(|class| {
            json!({
                "class": class,
                "name": self.names[class],
                "label": self.trained.label(class),
                "images": matrix.images(class),
                "correct": matrix.count(class, class),
                "precision": matrix.precision(class),
                "recall": matrix.recall(class),
                "f1": matrix.f1(class),
            })
        });
        object["classes"] = classes.collect();
        let n = self.names.len();
        let row = |class: usize| (0..n).map(|other| Value::from(matrix.count(class, other))).collect::<Value>();
        object["confusion"] = (0..n).map(row).collect();
    }

    fn csv(&self, out: &mut impl Write) -> io::Result<()> {
        let number = |share: Option<f64>| share.map_or(String::new(), |share| share.to_string());
        let columns: String = self.classes().map(|class| format!(",{}", csv_cell(&self.names[class]))).collect();
        writeln!(out, "class,name,images,correct,precision,recall,f1{columns}")?;
        for class in self.classes() {
            let (matrix, name) = (self.matrix, csv_cell(&self.names[class]));
            let counts: String = self.classes().map(|other| format!(",{}", matrix.count(class, other))).collect();
            writeln!(
                out,
                "{class},{name},{},{},{},{},{}{counts}",
                matrix.images(class),
                matrix.count(class, class),
                number(matrix.precision(class)),
                number(matrix.recall(class)),
                number(matrix.f1(class)),
            )?;
        }
        Ok(())
    }

    fn table(&self, out: &mut impl Write) -> io::Result<()> {
        let percent = |share: Option<f64>| share.map_or("-".into(), |share| format!("{:.1} %", 100.0 * share));
        let width = self.classes().map(|class| self.names[class].chars().count()).max().unwrap_or(0).clamp(5, 40);
        writeln!(
            out,
            "\n{:width$}  {:>7}  {:>9}  {:>7}  {:>7}  most often taken for",
            "class", "images", "precision", "recall", "F1"
        )?;
        for class in self.classes() {
            let matrix = self.matrix;
            let confused = matrix.most_confused(class);
            let confused = confused.map_or(String::new(), |(other, count)| format!("{} ({count})", self.names[other]));
            let line = format!(
                "{:width$}  {:>7}  {:>9}  {:>7}  {:>7}  {confused}",
                self.names[class],
                matrix.images(class),
                percent(matrix.precision(class)),
                percent(matrix.recall(class)),
                percent(matrix.f1(class)),
            );
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}
