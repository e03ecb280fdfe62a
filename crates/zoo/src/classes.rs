//! Names of the classes of the data sets that published weights were trained on.

use crate::{ModelInfo, core::Preprocess};
use std::sync::LazyLock;

/// ImageNet's thousand classes in the order of a network's outputs, by torchvision's names. Some names stand twice, as
/// `crane` does, a bird and a machine.
pub static IMAGENET: LazyLock<Vec<&'static str>> = LazyLock::new(|| include_str!("imagenet.txt").lines().collect());

/// CIFAR-10's ten classes.
pub static CIFAR10: &[&str] =
    &["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// The names of the classes that a network's published weights tell apart, if a file of it has as many outputs.
///
/// ```
/// let names = zoo::classes::usual(zoo::find("resnet50")?, 1000).expect("ImageNet's");
/// assert_eq!((names[0], names[291]), ("tench", "lion"));
/// assert!(zoo::classes::usual(zoo::find("resnet50")?, 5).is_none());
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn usual(info: &ModelInfo, num_classes: usize) -> Option<&'static [&'static str]> {
    let known: &'static [&'static str] = match info.preprocess == Preprocess::CIFAR10 {
        true => CIFAR10,
        false => &IMAGENET,
    };
    (known.len() == num_classes).then_some(known)
}
