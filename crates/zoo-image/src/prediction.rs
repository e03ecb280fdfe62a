//! What a network says of an image: a probability for each class, and the classes' names.

use crate::error::{Error, Result};
use std::fmt;
use std::sync::Arc;

/// The names of a network's classes.
#[derive(Debug, Clone)]
pub(crate) struct Names(Arc<[String]>);

impl From<Vec<String>> for Names {
    fn from(names: Vec<String>) -> Self {
        Self(names.into())
    }
}

impl Names {
    pub(crate) fn get(&self, class: usize) -> Option<&str> {
        self.0.get(class).map(String::as_str)
    }
}

/// The probabilities of an image's classes.
///
/// ```no_run
/// let classifier = zoo_image::ImageClassifier::pretrained("resnet50")?;
/// let prediction = classifier.classify("photo.jpg")?;
/// println!("{}", prediction.best()); // lion (93.1 %)
/// for class in prediction.top(5) {
///     println!("{:3} {:.3} {}", class.index, class.probability, class.name.unwrap_or("?"));
/// }
/// # Ok::<(), zoo_image::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Prediction {
    probabilities: Vec<f64>,
    names: Names,
}

/// One class of a [`Prediction`].
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Class<'a> {
    /// Its place among the network's outputs.
    pub index: usize,
    /// Its name, where one is known.
    pub name: Option<&'a str>,
    /// 0 to 1.
    pub probability: f64,
}

impl fmt::Display for Class<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = 100.0 * self.probability;
        match self.name {
            Some(name) => write!(f, "{name} ({percent:.1} %)"),
            None => write!(f, "class {} ({percent:.1} %)", self.index),
        }
    }
}

impl Prediction {
    /// The softmax of an image's `logits`.
    pub(crate) fn of(logits: &[f32], names: &Names) -> Result<Self> {
        Ok(Self { probabilities: softmax(logits)?, names: names.clone() })
    }

    /// The probability of every class, in the order of the network's outputs. They sum to 1.
    pub fn probabilities(&self) -> &[f64] {
        &self.probabilities
    }

    /// The `k` most probable classes, the most probable first; of equals the lower index comes first.
    pub fn top(&self, k: usize) -> Vec<Class<'_>> {
        let mut ranked: Vec<(usize, f64)> = self.probabilities.iter().copied().enumerate().collect();
        ranked.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        let class = |(index, probability)| Class { index, name: self.names.get(index), probability };
        ranked.into_iter().take(k).map(class).collect()
    }

    /// The most probable class.
    pub fn best(&self) -> Class<'_> {
        // A network has at least one class.
        self.top(1)[0]
    }
}

fn softmax(logits: &[f32]) -> Result<Vec<f64>> {
    if !logits.iter().all(|x| x.is_finite()) {
        return Err(Error::NotFinite);
    }
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = logits.iter().map(|&x| f64::from(x - largest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    Ok(powers.into_iter().map(|power| power / sum).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_probable_come_first_and_probabilities_sum_to_one() {
        let names = Names::from(["a", "b", "c"].map(str::to_owned).to_vec());
        let prediction = Prediction::of(&[1.0, 3.0, 3.0, -1000.0], &names).unwrap();
        assert!((prediction.probabilities().iter().sum::<f64>() - 1.0).abs() < 1e-12);
        let classes = |k| prediction.top(k).into_iter().map(|class| class.index).collect::<Vec<_>>();
        assert_eq!((classes(2), classes(9)), (vec![1, 2], vec![1, 2, 0, 3]));
        assert_eq!(prediction.best().to_string(), "b (46.8 %)");
        assert_eq!(prediction.top(4)[3].to_string(), "class 3 (0.0 %)");
        assert!(softmax(&[0.0, f32::NAN]).is_err() && softmax(&[f32::INFINITY, 0.0]).is_err());
    }
}
