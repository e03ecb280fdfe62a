//! What a trained network does on the test images in detail: which class it takes for which, and the mistakes that it
//! is most confident of.
//!
//! [`write()`] leaves an [`ErrorAnalysis`] in a run's folder as `evaluation.json`, with the mistakes' images in
//! `mistakes.png`; [`read`] gives both to the report.

use crate::confusion::answer;
use crate::data::Split;
use crate::eval::{Evaluation, evaluate_parts};
use crate::loader::{Batch, Loader};
use crate::record::replace_file;
use anyhow::{Context, Result, ensure};
use candle_core::{DType, Tensor};
use image::imageops::{self, FilterType};
use image::{ImageFormat, Rgb, RgbImage};
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::fs;
use std::io::{Cursor, ErrorKind};
use std::path::Path;
use zoo_core::Model;

/// File of a run's folder that holds an [`ErrorAnalysis`].
pub const EVALUATION_FILE: &str = "evaluation.json";
/// File of a run's folder that holds the images of [`ErrorAnalysis::mistakes`], tile beside tile.
pub const MISTAKES_FILE: &str = "mistakes.png";

/// Mistakes that are kept.
const MISTAKES: usize = 24;
/// Tiles in a row of their sheet.
const COLUMNS: usize = 8;
/// A tile's longest side in pixels: enough to see what is on it, and a sheet stays a few hundred kilobytes.
const LARGEST_TILE: usize = 64;

/// What a network does on the test images. Classes are numbered by their place in [`classes`](Self::classes).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ErrorAnalysis {
    /// The names of the classes.
    pub classes: Vec<String>,
    /// Images looked at.
    pub images: usize,
    /// How many images of a class were taken for which: `confusion[true][predicted]`.
    pub confusion: Vec<Vec<u32>>,
    /// How many images of each class got no answer, for there was a NaN among their logits. They count as wrong.
    pub unanswered: Vec<u32>,
    /// The mistakes of the highest probability, highest first; of equals the lower index comes first.
    pub mistakes: Vec<Mistake>,
    /// Width and height in pixels of the sheet of mistakes.
    pub sheet: [u32; 2],
    /// Width and height in pixels of one tile of the sheet.
    pub tile: [u32; 2],
    /// The sheet as a PNG file, which stands beside the JSON; `None` where there is none.
    #[serde(skip)]
    pub picture: Option<Vec<u8>>,
}

/// One image that was classified wrong.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mistake {
    /// Where in the test split it stands.
    pub index: usize,
    /// Its class.
    pub label: usize,
    /// The class it was taken for.
    pub predicted: usize,
    /// How sure the network was of that: the softmax of its logits there, 0 to 1.
    pub probability: f64,
    /// The left edge of its tile in the sheet, in pixels.
    pub x: u32,
    /// The upper edge of its tile in the sheet, in pixels.
    pub y: u32,
}

/// So many images of one class were taken for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confusion {
    /// What they show.
    pub label: usize,
    /// What they were taken for.
    pub predicted: usize,
    /// How many.
    pub count: u32,
}

/// Leaves `analysis` in `folder`, which must exist: `evaluation.json` and, if there was a mistake to show,
/// `mistakes.png`. An earlier evaluation there is replaced.
///
/// # Errors
/// A file that cannot be written.
pub fn write(folder: &Path, analysis: &ErrorAnalysis) -> Result<()> {
    let path = folder.join(MISTAKES_FILE);
    match &analysis.picture {
        Some(picture) => replace_file(&path, picture)?,
        None => match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove the earlier {}", path.display()));
            }
            _ => {}
        },
    }
    // The sheet first: whoever finds this file finds its sheet too.
    replace_file(&folder.join(EVALUATION_FILE), &serde_json::to_vec(analysis)?)
}

/// What [`write()`] left in `folder`; `None` if it did not run there.
///
/// # Errors
/// A file that cannot be read or does not hold what it should; the error names it.
pub fn read(folder: &Path) -> Result<Option<ErrorAnalysis>> {
    let contents = |path: &Path| match fs::read(path) {
        Ok(contents) => Ok(Some(contents)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let path = folder.join(EVALUATION_FILE);
    let Some(json) = contents(&path)? else { return Ok(None) };
    let damaged = || format!("{} is damaged: remove it, or train the run again", path.display());
    let mut analysis: ErrorAnalysis = serde_json::from_slice(&json).with_context(damaged)?;
    analysis.check().with_context(damaged)?;
    analysis.picture = contents(&folder.join(MISTAKES_FILE))?;
    Ok(Some(analysis))
}

/// Runs `model` in evaluation over all batches of `loader`, which cuts up `split`: one pass for both, what
/// [`evaluate`](crate::eval::evaluate) sums up and what the network gets wrong.
///
/// # Errors
/// No images, a number of logits that is not the number of `classes`, or a loader of another split.
pub fn collect(
    model: &dyn Model,
    loader: &Loader,
    split: &Split,
    classes: &[String],
) -> Result<(Evaluation, ErrorAnalysis)> {
    let mut analysis = ErrorAnalysis::empty(classes);
    let evaluation =
        evaluate_parts(model, [Ok(loader.clone())], |batch, logits| analysis.count_batch(batch, logits, split))?;
    analysis.picture = analysis.draw(split)?;
    Ok((evaluation, analysis))
}

impl ErrorAnalysis {
    fn empty(classes: &[String]) -> Self {
        Self {
            classes: classes.to_vec(),
            images: 0,
            confusion: vec![vec![0; classes.len()]; classes.len()],
            unanswered: vec![0; classes.len()],
            mistakes: Vec::new(),
            sheet: [0; 2],
            tile: [0; 2],
            picture: None,
        }
    }

    /// Adds the images of a batch of `split` by the network's logits for them.
    fn count_batch(&mut self, batch: &Batch, logits: &Tensor, split: &Split) -> Result<()> {
        let logits = logits.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        for ((&index, &label), logits) in batch.indices.iter().zip(&batch.host_labels).zip(&logits) {
            ensure!(
                split.labels().get(index) == Some(&label),
                "the loader gave image {index} the label {label}, which it does not have in the split: both must be of \
                 the same images"
            );
            self.count(index, label as usize, logits)?;
        }
        self.keep_most_confident();
        Ok(())
    }

    /// Adds one image.
    fn count(&mut self, index: usize, label: usize, logits: &[f32]) -> Result<()> {
        let n = self.classes.len();
        ensure!(logits.len() == n, "the network gives {} logits for {n} classes", logits.len());
        ensure!(label < n, "image {index} has the label {label}, but there are {n} classes");
        self.images += 1;
        match answer(logits) {
            None => self.unanswered[label] += 1,
            Some(predicted) => {
                self.confusion[label][predicted] += 1;
                // Without a probability a mistake has no place among the others.
                if let (true, Some(probability)) = (predicted != label, probability(logits, predicted)) {
                    self.mistakes.push(Mistake { index, label, predicted, probability, x: 0, y: 0 });
                }
            }
        }
        Ok(())
    }

    fn keep_most_confident(&mut self) {
        self.mistakes.sort_by(|a, b| b.probability.total_cmp(&a.probability).then(a.index.cmp(&b.index)));
        self.mistakes.truncate(MISTAKES);
    }

    /// Gives each mistake its tile and draws the sheet; `None` without a mistake.
    fn draw(&mut self, split: &Split) -> Result<Option<Vec<u8>>> {
        let [channels, height, width] = split.shape();
        if self.mistakes.is_empty() || channels * height * width == 0 {
            return Ok(None);
        }
        let longest = height.max(width);
        let scaled = |side: usize| if longest > LARGEST_TILE { (side * LARGEST_TILE / longest).max(1) } else { side };
        let (columns, rows) = (self.mistakes.len().min(COLUMNS), self.mistakes.len().div_ceil(COLUMNS));
        self.tile = [scaled(width) as u32, scaled(height) as u32];
        self.sheet = [self.tile[0] * columns as u32, self.tile[1] * rows as u32];
        let mut sheet = RgbImage::new(self.sheet[0], self.sheet[1]);
        for (position, mistake) in self.mistakes.iter_mut().enumerate() {
            mistake.x = (position % COLUMNS) as u32 * self.tile[0];
            mistake.y = (position / COLUMNS) as u32 * self.tile[1];
            let bytes = split.image(mistake.index)?;
            let pixel = |x: u32, y: u32| {
                let at = y as usize * width + x as usize;
                // Three channels are colours; of any other number the first is shown in grey.
                Rgb([0, 1, 2].map(|channel| bytes[if channels == 3 { channel * height * width + at } else { at }]))
            };
            let mut image = RgbImage::from_fn(width as u32, height as u32, pixel);
            if longest > LARGEST_TILE {
                image = imageops::resize(&image, self.tile[0], self.tile[1], FilterType::Triangle);
            }
            imageops::replace(&mut sheet, &image, mistake.x.into(), mistake.y.into());
        }
        let mut png = Cursor::new(Vec::new());
        sheet.write_to(&mut png, ImageFormat::Png).context("cannot encode the sheet of mistakes as PNG")?;
        Ok(Some(png.into_inner()))
    }

    /// Whether everything that a reader indexes is there.
    fn check(&self) -> Result<()> {
        let n = self.classes.len();
        ensure!(
            self.confusion.len() == n && self.confusion.iter().all(|row| row.len() == n) && self.unanswered.len() == n,
            "the counts are not those of {n} classes"
        );
        ensure!(
            self.mistakes.iter().all(|mistake| mistake.label < n && mistake.predicted < n),
            "a mistake names a class beyond the {n} there are"
        );
        Ok(())
    }

    /// Images of a class.
    ///
    /// # Panics
    /// If there is no such class.
    pub fn images_of(&self, class: usize) -> u32 {
        self.confusion[class].iter().sum::<u32>() + self.unanswered[class]
    }

    /// Share of a class's images that were classified right, 0 to 1; `None` if it has no images.
    ///
    /// # Panics
    /// If there is no such class.
    pub fn class_accuracy(&self, class: usize) -> Option<f64> {
        let images = self.images_of(class);
        (images > 0).then(|| f64::from(self.confusion[class][class]) / f64::from(images))
    }

    /// Images classified right.
    pub fn correct(&self) -> usize {
        self.confusion.iter().enumerate().map(|(class, row)| row[class] as usize).sum()
    }

    /// Which class is taken for which other one, the most frequent confusion first.
    pub fn confusions(&self) -> Vec<Confusion> {
        let rows = self.confusion.iter().enumerate();
        let cells = rows.flat_map(|(label, row)| {
            row.iter().enumerate().map(move |(predicted, &count)| Confusion { label, predicted, count })
        });
        let mut found: Vec<Confusion> = cells.filter(|cell| cell.label != cell.predicted && cell.count > 0).collect();
        found.sort_by_key(|cell| (Reverse(cell.count), cell.label, cell.predicted));
        found
    }
}

/// The softmax of finite `logits` at `class`.
fn probability(logits: &[f32], class: usize) -> Option<f64> {
    let own = f64::from(logits[class]);
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - own).exp()).sum();
    logits.iter().all(|logit| logit.is_finite()).then_some(1.0 / sum)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::data::Synthetic;
    use crate::eval::evaluate;
    use candle_core::Device;
    use std::sync::Arc;
    use zoo::{ModelOptions, VarStore};
    use zoo_image::Normalize;

    /// Three images of each of `classes`: one right, one wrong and sure of it, one wrong and less sure. A sheet of
    /// 32x32 tiles.
    pub(crate) fn analysis(classes: &[&str]) -> ErrorAnalysis {
        let names: Vec<String> = classes.iter().map(|&name| name.to_owned()).collect();
        let n = names.len();
        let mut analysis = ErrorAnalysis::empty(&names);
        for index in 0..3 * n {
            let label = index % n;
            let mut logits = vec![0.0; n];
            logits[(label + index / n) % n] = 4.0 + (index % 7) as f32;
            analysis.count(index, label, &logits).unwrap();
        }
        analysis.keep_most_confident();
        let bytes = (0..3 * n * 3072).map(|byte| (byte % 251) as u8).collect();
        let labels = (0..3 * n as u32).map(|index| index % n as u32).collect();
        analysis.picture = analysis.draw(&Split::new(bytes, labels, [3, 32, 32]).unwrap()).unwrap();
        analysis
    }

    fn names(n: usize) -> Vec<String> {
        (0..n).map(|class| format!("class {class}")).collect()
    }

    fn eval(split: &Arc<Split>, batch: usize) -> Loader {
        let transform = split.transform(&Normalize::CIFAR10).unwrap();
        Loader::eval(split.clone(), transform.into(), batch, &Device::Cpu).unwrap()
    }

    fn mlp(classes: usize) -> Box<dyn Model> {
        let store = VarStore::new(1, DType::F32, &Device::Cpu);
        let options = ModelOptions { num_classes: Some(classes), ..ModelOptions::default() };
        zoo::find("mlp").unwrap().build(&options, store.root()).unwrap()
    }

    #[test]
    fn what_is_written_comes_back_and_agrees_with_the_evaluation() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), None);
        let data = Synthetic { train: 0, test: 60, seed: 0 }.generate();
        let net = mlp(10);
        let (evaluation, collected) = collect(net.as_ref(), &eval(&data.test, 16), &data.test, &data.classes).unwrap();
        write(dir.path(), &collected).unwrap();
        let found = read(dir.path()).unwrap().unwrap();
        assert_eq!(found, collected);
        assert_eq!((found.images, &found.classes), (60, &data.classes));
        let plain = evaluate(net.as_ref(), &eval(&data.test, 16)).unwrap();
        assert_eq!(Evaluation { seconds: 0.0, ..evaluation }, Evaluation { seconds: 0.0, ..plain });
        assert_eq!(found.correct(), plain.correct);
        // Six images of each class.
        assert!((0..10).all(|class| found.images_of(class) == 6));

        assert_eq!((found.mistakes.len(), found.tile, found.sheet), (24, [32, 32], [256, 96]));
        let sheet = image::load_from_memory(found.picture.as_deref().unwrap()).unwrap().to_rgb8();
        assert_eq!([sheet.width(), sheet.height()], found.sheet);
        for (position, mistake) in found.mistakes.iter().enumerate() {
            assert_eq!((mistake.x, mistake.y), (position as u32 % 8 * 32, position as u32 / 8 * 32));
            assert_eq!(data.test.labels()[mistake.index] as usize, mistake.label);
            assert!(mistake.predicted != mistake.label && (0.1..=1.0).contains(&mistake.probability));
            let image = data.test.image(mistake.index).unwrap();
            for (x, y) in [(0, 0), (31, 0), (5, 17)] {
                let at = y as usize * 32 + x as usize;
                let Rgb(pixel) = *sheet.get_pixel(mistake.x + x, mistake.y + y);
                assert_eq!(pixel, [image[at], image[1024 + at], image[2048 + at]]);
            }
        }
        assert!(found.mistakes.is_sorted_by(|a, b| a.probability >= b.probability));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing else is left in the folder");

        // The batch size changes nothing that a reader could tell.
        let (_, again) = collect(net.as_ref(), &eval(&data.test, 7), &data.test, &data.classes).unwrap();
        assert_eq!(again.confusion, found.confusion);
        let indices =
            |analysis: &ErrorAnalysis| analysis.mistakes.iter().map(|mistake| mistake.index).collect::<Vec<_>>();
        assert_eq!(indices(&again), indices(&found));
    }

    #[test]
    fn a_thousand_classes_are_counted_too() {
        let test = Synthetic { train: 0, test: 50, seed: 0 }.generate().test;
        let (_, found) = collect(mlp(1000).as_ref(), &eval(&test, 50), &test, &names(1000)).unwrap();
        assert_eq!((found.images, found.confusion.len(), found.images_of(0), found.images_of(999)), (50, 1000, 5, 0));
        assert_eq!((found.class_accuracy(999), found.mistakes.len()), (None, 24));
    }

    #[test]
    fn logits_that_are_not_finite_are_counted_and_not_ranked() {
        let mut analysis = ErrorAnalysis::empty(&names(3));
        analysis.count(0, 0, &[f32::NAN, 1.0, 2.0]).unwrap();
        analysis.count(1, 0, &[f32::NAN; 3]).unwrap();
        analysis.count(2, 1, &[f32::INFINITY, 1.0, 2.0]).unwrap();
        analysis.count(3, 1, &[f32::INFINITY; 3]).unwrap();
        analysis.count(4, 2, &[f32::NEG_INFINITY, 1.0, 0.0]).unwrap();
        analysis.count(5, 2, &[0.0, 0.0, 1.0]).unwrap();
        analysis.keep_most_confident();
        assert_eq!(analysis.unanswered, [2, 0, 0]);
        assert_eq!(analysis.confusion, [[0, 0, 0], [2, 0, 0], [0, 1, 1]]);
        assert_eq!(analysis.mistakes, []);
        assert_eq!((analysis.images, analysis.correct(), analysis.class_accuracy(2)), (6, 1, Some(0.5)));
    }

    #[test]
    fn the_most_confident_mistakes_come_first_and_ties_by_index() {
        let mut analysis = ErrorAnalysis::empty(&names(2));
        for (index, logit) in [1.0, 3.0, 1.0, 3.0, 2.0].into_iter().enumerate().rev() {
            analysis.count(index, 0, &[0.0, logit]).unwrap();
        }
        // Equal logits are class 0, which is right.
        analysis.count(9, 0, &[5.0, 5.0]).unwrap();
        analysis.keep_most_confident();
        let order: Vec<usize> = analysis.mistakes.iter().map(|mistake| mistake.index).collect();
        assert_eq!(order, [1, 3, 4, 0, 2]);
        assert!((analysis.mistakes[0].probability - 1.0 / (1.0 + (-3f64).exp())).abs() < 1e-12);
        assert_eq!(analysis.confusions(), [Confusion { label: 0, predicted: 1, count: 5 }]);
    }

    #[test]
    fn large_images_are_scaled_and_grey_ones_drawn() {
        let mut analysis = ErrorAnalysis::empty(&names(2));
        for index in 0..9 {
            analysis.count(index, 0, &[0.0, 1.0]).unwrap();
        }
        let split = Split::new(vec![77; 9 * 100 * 200], vec![0; 9], [1, 100, 200]).unwrap();
        let png = analysis.draw(&split).unwrap().unwrap();
        let sheet = image::load_from_memory(&png).unwrap().to_rgb8();
        assert_eq!((analysis.tile, analysis.sheet, sheet.dimensions()), ([64, 32], [512, 64], (512, 64)));
        assert_eq!((analysis.mistakes[8].x, analysis.mistakes[8].y), (0, 32));
        // The row's seven other tiles stay black.
        assert_eq!([sheet.get_pixel(0, 63).0, sheet.get_pixel(64, 63).0], [[77; 3], [0; 3]]);
    }

    #[test]
    fn a_network_without_mistakes_leaves_no_earlier_sheet() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(MISTAKES_FILE), "an earlier one").unwrap();
        // One class: whatever the network says is right.
        let test = Arc::new(Split::new(vec![0; 3072], vec![0], [3, 32, 32]).unwrap());
        let (_, collected) = collect(mlp(1).as_ref(), &eval(&test, 1), &test, &names(1)).unwrap();
        write(dir.path(), &collected).unwrap();
        let found = read(dir.path()).unwrap().unwrap();
        assert_eq!((found.correct(), found.picture, found.mistakes.len()), (1, None, 0));
    }

    #[test]
    fn what_does_not_fit_is_an_error_that_says_so() {
        let data = Synthetic { train: 0, test: 20, seed: 0 }.generate();
        let (net, loader) = (mlp(10), eval(&data.test, 8));
        let collected = |split: &Split, classes: &[String]| collect(net.as_ref(), &loader, split, classes);
        let error = |split: &Split, classes: &[String]| collected(split, classes).unwrap_err().to_string();
        assert_eq!(error(&data.test, &names(3)), "the network gives 10 logits for 3 classes");
        let other = Split::new(vec![0; 3072], vec![0], [3, 32, 32]).unwrap();
        assert!(error(&other, &data.classes).contains("image 1"), "{}", error(&other, &data.classes));

        let found = collected(&data.test, &data.classes).unwrap().1;
        let nowhere = write("absent/folder".as_ref(), &found).unwrap_err();
        assert!(format!("{nowhere:#}").contains("mistakes.png"), "{nowhere:#}");
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut damaged = analysis(&["cat", "dog"]);
        damaged.mistakes[0].predicted = 2;
        let json = serde_json::to_string(&damaged).unwrap();
        for text in ["{", "{}", &json] {
            fs::write(dir.path().join(EVALUATION_FILE), text).unwrap();
            let error = format!("{:#}", read(dir.path()).unwrap_err());
            assert!(error.contains("evaluation.json is damaged"), "{error}");
        }
    }
}
