//! What a classifier takes: a path, bytes, a decoded picture or a tensor.

use crate::picture::Picture;
use candle_core::Tensor;
use std::path::Path;

/// A picture in any of the forms that a program has it in.
///
/// Wherever one is taken, what it is made from is too: `classifier.classify("photo.jpg")`, `classifier.classify(&body)`.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Input<'a> {
    /// A file: see [`picture`](crate::picture) for the kinds.
    Path(&'a Path),
    /// The bytes of a file.
    Bytes(&'a [u8]),
    /// A decoded picture, of any size.
    Picture(&'a Picture),
    /// With numbers of type u8, pixels of a picture of any size, (3, height, width). With others, what the network
    /// itself reads: (channels, size, size) in f32, normalised.
    Tensor(&'a Tensor),
}

impl<'a> From<&'a Path> for Input<'a> {
    fn from(path: &'a Path) -> Self {
        Self::Path(path)
    }
}

impl<'a> From<&'a std::path::PathBuf> for Input<'a> {
    fn from(path: &'a std::path::PathBuf) -> Self {
        Self::Path(path)
    }
}

impl<'a> From<&'a str> for Input<'a> {
    /// A path.
    fn from(path: &'a str) -> Self {
        Self::Path(path.as_ref())
    }
}

impl<'a> From<&'a [u8]> for Input<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::Bytes(bytes)
    }
}

impl<'a> From<&'a Vec<u8>> for Input<'a> {
    fn from(bytes: &'a Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

impl<'a> From<&'a Picture> for Input<'a> {
    fn from(picture: &'a Picture) -> Self {
        Self::Picture(picture)
    }
}

impl<'a> From<&'a Tensor> for Input<'a> {
    fn from(tensor: &'a Tensor) -> Self {
        Self::Tensor(tensor)
    }
}
