//! CIFAR-10 as the Hugging Face Hub keeps it, through `candle-datasets`.
//!
//! Behind the cargo feature `hub`, which is off by default: Parquet, TLS and the hub's client are some 280 crates that
//! take four times as long to compile as candle itself, for one download. Without it [`load`] says how to go on.

use super::{DataError, Dataset};

/// Loads the data set from the local hub cache (`$HF_HUB_CACHE`, else `$HF_HOME/hub`, else `~/.cache/huggingface/hub`),
/// or downloads it there (170 MB).
///
/// candle-datasets 0.11.1 hands the images out transposed, height for width; here they stand upright.
///
/// # Errors
/// No cached copy and no network, a damaged copy, or a build without the feature `hub`: each with the ways out.
#[cfg(feature = "hub")]
pub fn load() -> Result<Dataset, DataError> {
    use super::{DataSource, cifar10};

    // The loader unwraps what it decodes: a damaged file in the cache must end a command with a line, not a panic.
    let raw = std::panic::catch_unwind(candle_datasets::vision::cifar::load)
        .map_err(|_| DataError::Hub("the copy in the local cache is damaged".into()))?
        .map_err(|e| DataError::Hub(e.to_string().replace('\n', " ")))?;
    let train = upright(&raw.train_images, &raw.train_labels)?;
    let test = upright(&raw.test_images, &raw.test_labels)?;
    Dataset::new(train, test, cifar10::CLASSES.iter().copied().map(String::from).collect(), DataSource::Cifar10Hub)
}

/// Whether the data set lies in the local hub cache, so that [`load`] needs no network.
pub(super) fn is_cached() -> bool {
    use std::env::var_os;
    use std::path::PathBuf;
    // As hf-hub looks for it: the reference is written last.
    let path = |name: &str| var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || Some(path("HOME").or_else(|| path("USERPROFILE"))?.join(".cache/huggingface"));
    let cache = path("HF_HUB_CACHE").or_else(|| Some(path("HF_HOME").or_else(home)?.join("hub")));
    cfg!(feature = "hub")
        && cache.is_some_and(|cache| cache.join("datasets--cifar10/refs/refs/convert/parquet").is_file())
}

/// Fails: this build cannot reach the hub. With the feature `hub` it loads the data set from the local hub cache, or
/// downloads it there.
///
/// # Errors
/// Always, with the ways out.
#[cfg(not(feature = "hub"))]
pub fn load() -> Result<Dataset, DataError> {
    Err(DataError::Hub("this build has no hub access (add `--features hub`)".into()))
}

/// From candle-datasets' (n, c, w, h) f32 in 0..=1 to (n, c, h, w) u8.
#[cfg(any(feature = "hub", test))]
fn upright(images: &candle_core::Tensor, labels: &candle_core::Tensor) -> Result<super::Split, DataError> {
    /// Images at a time: the whole training split is 600 MB of f32, one copy of it is enough.
    const CHUNK: usize = 1000;
    let (n, c, w, h) = images.dims4()?;
    let mut bytes = Vec::with_capacity(n * c * h * w);
    for start in (0..n).step_by(CHUNK) {
        let chunk = images.narrow(0, start, CHUNK.min(n - start))?;
        let values = chunk.transpose(2, 3)?.flatten_all()?.to_vec1::<f32>()?;
        // Adding a half and truncating rounds.
        bytes.extend(values.into_iter().map(|value| (value * 255.0 + 0.5) as u8));
    }
    let labels = labels.to_vec1::<u8>()?.into_iter().map(u32::from).collect();
    super::Split::new(bytes, labels, [c, h, w])
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    /// `tests/hub.rs` holds the same on files that candle-datasets itself reads; that needs the feature.
    #[test]
    fn an_asymmetric_image_stands_upright() {
        // Pixel (y, x) of the true image is 10·y + x, two rows by three columns, in one channel; candle-datasets hands
        // out [x][y].
        let transposed: Vec<f32> = (0..3).flat_map(|x| (0..2).map(move |y| (10 * y + x) as f32 / 255.0)).collect();
        let images = Tensor::from_vec(transposed, (1, 1, 3, 2), &Device::Cpu).unwrap();
        let split = upright(&images, &Tensor::new(&[7u8], &Device::Cpu).unwrap()).unwrap();
        assert_eq!((split.shape(), split.labels()), ([1, 2, 3], &[7][..]));
        assert_eq!(*split.image(0).unwrap(), [0, 1, 2, 10, 11, 12]);
    }
}
