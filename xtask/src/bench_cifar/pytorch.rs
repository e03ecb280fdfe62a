//! What the same recipe comes to in PyTorch, on the same images: whether a gap to a published figure is the data's or the code's.
//!
//! `tests/reference/train.py` writes the records, `results/pytorch.jsonl` keeps them.

use serde::Deserialize;
use std::sync::OnceLock;
use zoo_train::format::count;
use zoo_train::report::{Cell, Row};

/// A run of `tests/reference/train.py`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Reference {
    model: String,
    recipe: String,
    epochs: usize,
    /// What the images are called, as in our records.
    data: String,
    /// Share of the test images that are classified right after the last epoch.
    test_acc_last: f64,
}

/// All records of the tree.
fn kept() -> &'static [Reference] {
    static KEPT: OnceLock<Vec<Reference>> = OnceLock::new();
    KEPT.get_or_init(|| {
        let lines = include_str!("../../../results/pytorch.jsonl").lines();
        // A test holds every line readable.
        lines.filter_map(|line| serde_json::from_str(line).ok()).collect()
    })
}

/// PyTorch's accuracy for a row's network, recipe, epochs and images, over its seeds.
pub fn accuracy(row: &Row) -> Cell {
    of(row, kept())
}

fn of(row: &Row, references: &[Reference]) -> Cell {
    let record = row.record();
    // Our own changes of a recipe, and fewer images, are none of the reference's.
    let is_whole = record.overrides.is_empty() && record.data.test_images == 10_000;
    let like = references.iter().filter(|reference| {
        is_whole
            && reference.model == record.model
            && reference.recipe == record.recipe
            && reference.epochs == record.epochs
            && reference.data == record.data.name
    });
    let found: Vec<f64> = like.map(|reference| reference.test_acc_last).collect();
    if found.is_empty() {
        return Cell::new(None, None);
    }
    let n = found.len() as f64;
    let mean = found.iter().sum::<f64>() / n;
    let text = match found.len() {
        1 => row.accuracy(mean),
        seeds => {
            let sd = (found.iter().map(|acc| (acc - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
            format!("{:.2} ± {:.2} %, {}", mean * 100.0, sd * 100.0, count(seeds, "seed"))
        }
    };
    // What ours has more: code and data are the same, chance is not.
    let more = row.last().map(|ours| format!(" (ours {})", points(ours.mean - mean, row.decimals())));
    Cell::new(Some(text + &more.unwrap_or_default()), Some(mean))
}

/// A difference of accuracies in percentage points, with its sign.
pub fn points(difference: f64, decimals: usize) -> String {
    format!("{:+.decimals$}", difference * 100.0).replace('-', "−")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench_cifar::testing::run;
    use zoo_train::report::sections;

    #[test]
    fn every_record_reads() {
        let text = include_str!("../../../results/pytorch.jsonl");
        assert_eq!(kept().len(), text.lines().count());
        assert!(kept().iter().all(|reference| (0.0..=1.0).contains(&reference.test_acc_last)), "{:?}", kept());
    }

    #[test]
    fn only_the_same_run_stands_beside_ours() {
        let reference = Reference {
            model: "cifar_alexnet".into(),
            recipe: "review-20".into(),
            epochs: 20,
            data: "CIFAR-10".into(),
            test_acc_last: 0.66,
        };
        let beside = |references: &[Reference], change: &dyn Fn(&mut zoo_train::report::Run)| {
            let mut run = run("cifar_alexnet", "review-20", 1, 0.67);
            change(&mut run);
            of(&sections(&[run])[0].rows[0], references).text
        };
        let two = [reference.clone(), Reference { test_acc_last: 0.68, ..reference.clone() }];
        assert_eq!(beside(&two[..1], &|_| {}), "66.00 % (ours +1.00)");
        assert_eq!(beside(&two, &|_| {}), "67.00 ± 1.41 %, 2 seeds (ours +0.00)");
        assert_eq!(beside(&two, &|run| run.record.epochs = 5), "–");
        assert_eq!(beside(&two, &|run| run.record.data.name = "CIFAR-10, JPEG q75 copy".into()), "–");
        assert_eq!(beside(&two, &|run| run.record.overrides.recipe.lr = Some(0.5)), "–");
        assert_eq!(beside(&two, &|run| run.record.model = "cifar_vgg16_bn".into()), "–");
    }
}
