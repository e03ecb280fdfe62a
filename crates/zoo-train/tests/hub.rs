//! The hub's copy of CIFAR-10, read from a local cache made here: no network. In a process of its own, because the
//! cache's place is an environment variable.
//!
//! `tests/hub/make.py` wrote the Parquet files and says what the pixels are.
#![cfg(feature = "hub")]

use std::fs;
use std::path::Path;
use zoo_train::data::{DataSpec, Dataset, Split};

/// Lays `train` and `test` out as hf-hub keeps a downloaded data set.
fn cache(root: &Path, train: &[u8], test: &[u8]) {
    const COMMIT: &str = "0123456789012345678901234567890123456789";
    let repo = root.join("datasets--cifar10");
    let snapshot = repo.join("snapshots").join(COMMIT).join("plain_text");
    for (split, bytes) in [("train", train), ("test", test)] {
        fs::create_dir_all(snapshot.join(split)).unwrap();
        fs::write(snapshot.join(split).join("0000.parquet"), bytes).unwrap();
    }
    fs::create_dir_all(repo.join("refs/refs/convert")).unwrap();
    fs::write(repo.join("refs/refs/convert/parquet"), COMMIT).unwrap();
}

/// Image `index` of `split` must be the one that make.py drew as number `i`, upright.
fn check(split: &Split, index: usize, i: usize) {
    let image = split.image(index).unwrap();
    for (at, &byte) in image.iter().enumerate() {
        let (c, y, x) = (at / 1024, at / 32 % 32, at % 32);
        assert_eq!(
            usize::from(byte),
            (7 * y + x + 40 * c + 100 * i) % 256,
            "image {i}, channel {c}, row {y}, column {x}"
        );
    }
}

/// One test: the environment belongs to the whole process.
#[test]
fn the_hub_copy_stands_upright_and_its_failures_have_a_line() {
    let (train, test) = (include_bytes!("hub/train.parquet"), include_bytes!("hub/test.parquet"));
    let [good, damaged, empty] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let set = |name: &str, value: &Path| {
        // SAFETY: no other thread of this process reads or writes the environment now.
        unsafe { std::env::set_var(name, value) }
    };

    cache(good.path(), train, test);
    set("HF_HUB_CACHE", good.path());
    let data = Dataset::load(&DataSpec::Hub).unwrap();
    assert_eq!(data.train.labels(), [6, 9]);
    assert_eq!(data.test.labels(), [3]);
    check(&data.train, 0, 0);
    check(&data.train, 1, 1);
    check(&data.test, 0, 2);
    assert_eq!(data.classes[6], "frog");
    assert_eq!(data.source.label(), "CIFAR-10 from the hub");

    // A file that is no Parquet, and one whose images are no PNG (candle-datasets unwraps those).
    cache(damaged.path(), b"not parquet", test);
    set("HF_HUB_CACHE", damaged.path());
    let error = Dataset::load(&DataSpec::Hub).unwrap_err().to_string();
    assert!(error.starts_with("CIFAR-10 from the hub: Parquet error"), "{error}");
    let at = train.windows(4).position(|bytes| bytes == b"\x89PNG").unwrap();
    let mut spoilt = train.to_vec();
    spoilt[at] = 0;
    cache(damaged.path(), &spoilt, test);
    let error = Dataset::load(&DataSpec::Hub).unwrap_err().to_string();
    assert!(error.starts_with("CIFAR-10 from the hub: the copy in the local cache is damaged"), "{error}");

    // Nothing cached, and an endpoint that refuses every connection.
    set("HF_HUB_CACHE", empty.path());
    set("HF_ENDPOINT", Path::new("http://127.0.0.1:1"));
    let error = Dataset::load(&DataSpec::Hub).unwrap_err().to_string();
    assert!(error.contains("--data DIR") && error.contains("--data synthetic"), "{error}");
    assert_eq!(error.lines().count(), 1);
}
