//! How a file's keys become a network's: renames, and the layouts that other libraries write.

use super::{Weights, shown};
use crate::preprocess::Preprocess;
use candle_core::{Device, Result, Shape, Tensor};

/// One rule that turns a file's key into the network's, with the reason why the two differ.
///
/// Patterns are matched against the whole key, part by part between the dots. A `*` stands for one or more characters
/// of a part, a final `**` for all parts that remain; what they matched goes where the same sign stands in `to`. The
/// first rule of a list that matches a key is the one that is applied.
///
/// ```
/// use zoo_core::weights::Rename;
/// const RENAMES: &[Rename] = &[
///     Rename { from: "fc.*", to: "linear.*", reason: "some CIFAR code calls the head as ImageNet code does" },
///     Rename {
///         from: "features.*.*.norm.*.*",
///         to: "features.*.*.norm*.*",
///         reason: "DenseNet checkpoints of before torchvision 0.2 put a dot there",
///     },
/// ];
/// assert_eq!(RENAMES[0].apply("fc.weight").as_deref(), Some("linear.weight"));
/// let old = "features.denseblock1.denselayer2.norm.1.bias";
/// assert_eq!(RENAMES[1].apply(old).as_deref(), Some("features.denseblock1.denselayer2.norm1.bias"));
/// assert_eq!(RENAMES[0].apply("fc1.weight"), None);
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Rename {
    /// Pattern of the file's key.
    pub from: &'static str,
    /// Pattern of the network's key, with as many stars; empty for a tensor that the network leaves out.
    pub to: &'static str,
    /// Why the two differ.
    pub reason: &'static str,
}

impl Rename {
    /// The network's key, if the rule matches `key`.
    pub fn apply(&self, key: &str) -> Option<String> {
        let mut captures = captures(self.from, key)?.into_iter();
        let mut renamed = String::with_capacity(key.len());
        let mut rest = self.to;
        while let Some(star) = rest.find('*') {
            renamed.push_str(&rest[..star]);
            renamed.push_str(captures.next().unwrap_or_default());
            rest = rest[star..].trim_start_matches('*');
        }
        renamed.push_str(rest);
        Some(renamed)
    }

    pub(super) fn is_balanced(&self) -> bool {
        let stars = |pattern: &str| pattern.replace("**", "*").matches('*').count();
        self.to.is_empty() || stars(self.from) == stars(self.to)
    }
}

/// What the stars of `pattern` stand for in `key`, if it matches.
fn captures<'k>(pattern: &str, key: &'k str) -> Option<Vec<&'k str>> {
    let mut captures = Vec::new();
    let mut rest = Some(key);
    for part in pattern.split('.') {
        let key = rest?;
        if part == "**" {
            captures.push(key);
            return Some(captures);
        }
        let (head, tail) = match key.split_once('.') {
            Some((head, tail)) => (head, Some(tail)),
            None => (key, None),
        };
        match part.split_once('*') {
            Some((before, after)) => {
                captures.push(head.strip_prefix(before)?.strip_suffix(after).filter(|middle| !middle.is_empty())?)
            }
            None if part == head => {}
            None => return None,
        }
        rest = tail;
    }
    rest.is_none().then_some(captures)
}

/// How a tensor of the network comes from tensors of a file, where names alone do not tell.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// The file's tensor of this key.
    Key(String),
    /// Several of the file's tensors, one behind the other: three projections that the network keeps as one.
    Concat {
        /// The file's keys, in order.
        keys: Vec<String>,
        /// The axis along which they follow each other.
        dim: usize,
    },
    /// A part of one of the file's tensors: one projection of three that the file keeps as one.
    Narrow {
        /// The file's key.
        key: String,
        /// The axis that is cut.
        dim: usize,
        /// Where the part begins on that axis.
        start: usize,
        /// How long it is there.
        len: usize,
    },
    /// One of the file's tensors in another shape: a linear layer that the file keeps as a convolution.
    Reshape {
        /// The file's key.
        key: String,
        /// The shape, of as many elements.
        dims: Vec<usize>,
    },
}

impl Source {
    pub(super) fn keys(&self) -> &[String] {
        match self {
            Self::Key(key) | Self::Narrow { key, .. } | Self::Reshape { key, .. } => std::slice::from_ref(key),
            Self::Concat { keys, .. } => keys,
        }
    }

    pub(super) fn shape(&self, weights: &Weights) -> Result<Shape> {
        let shape_of = |key: &String| match weights.shape(key) {
            Some(shape) => Ok(shape.clone()),
            None => bail!("{}: the key map asks for `{}`, which the file does not hold", weights.name(), shown(key)),
        };
        let (dim, len) = match self {
            Self::Key(key) => return shape_of(key),
            Self::Concat { keys, dim } => {
                let shapes: Vec<_> = keys.iter().map(shape_of).collect::<Result<_>>()?;
                (*dim, shapes.iter().map(|shape| shape.dims().get(*dim).copied().unwrap_or(0)).sum())
            }
            Self::Narrow { dim, len, .. } => (*dim, *len),
            Self::Reshape { key, dims } => {
                let (shape, wanted) = (shape_of(key)?, Shape::from(dims.as_slice()));
                // One of other elements stays as it is: it does not fit, and a report shows why.
                return Ok(if shape.elem_count() == wanted.elem_count() { wanted } else { shape });
            }
        };
        let Some(first) = self.keys().first() else { bail!("the key map makes a tensor of nothing") };
        let mut dims = shape_of(first)?.into_dims();
        match dims.get_mut(dim) {
            Some(axis) => *axis = len,
            None => bail!(
                "{}: the key map works on axis {dim} of `{}`, which has {}",
                weights.name(),
                shown(first),
                dims.len()
            ),
        }
        Ok(dims.into())
    }

    pub(super) fn read(&self, weights: &Weights) -> Result<Tensor> {
        match self {
            Self::Key(key) => weights.tensor(key, &Device::Cpu),
            Self::Concat { keys, dim } => {
                let parts: Vec<_> = keys.iter().map(|key| weights.tensor(key, &Device::Cpu)).collect::<Result<_>>()?;
                Tensor::cat(&parts, *dim)
            }
            Self::Narrow { key, dim, start, len } => {
                weights.tensor(key, &Device::Cpu)?.narrow(*dim, *start, *len)?.contiguous()
            }
            Self::Reshape { key, dims } => weights.tensor(key, &Device::Cpu)?.reshape(dims.as_slice()),
        }
    }
}

/// A model's own translation of a layout that renames cannot express: it looks at a file's keys and shapes and says,
/// for each tensor of the network, where it comes from. A file's tensor that nothing comes from counts as unexpected.
pub type KeyMap = fn(&Weights) -> Result<Vec<(String, Source)>>;

/// How another project's files of a network call its tensors, and how they want their images.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// Whose it is: `torchvision`, `timm`, `transformers`.
    pub name: &'static str,
    /// A key that files of no other layout hold, or the end of it from a dot on.
    pub sign: &'static str,
    /// Its names for the network's, applied to what `key_map` returns, or to the file's keys where there is none. The
    /// model's own list follows.
    pub renames: &'static [Rename],
    /// The translation of what renames cannot express.
    pub key_map: Option<KeyMap>,
    /// The image that its published files of the network were trained on, where that is not the model's own.
    pub preprocess: Option<Preprocess>,
}

impl Layout {
    pub(super) fn is_of(&self, weights: &Weights) -> bool {
        let is_sign =
            |key: &str| key.strip_suffix(self.sign).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        weights.keys().any(is_sign)
    }
}
