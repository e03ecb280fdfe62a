//! Checkpoint files: every format gives the same tensors, and a file that lies gives an error that says where.

use candle_core::{DType, Device, Result, Tensor};
use std::path::{Path, PathBuf};
use zoo_core::weights::{
    self, KeyReport, Layout, LoadOptions, Rename, Source, Weights, save_safetensors, save_tensors,
};
use zoo_core::{Init, VarStore};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn open(name: &str) -> Weights {
    Weights::open(fixture(name)).unwrap()
}

fn refused(bytes: impl Into<Vec<u8>>) -> String {
    let error = Weights::from_bytes("some.file", bytes.into()).unwrap_err().to_string();
    assert!(error.starts_with("some.file: ") && error.contains("(at byte "), "{error}");
    error
}

fn refused_file(name: &str) -> String {
    Weights::open(fixture(name)).unwrap_err().to_string()
}

fn values(weights: &Weights, key: &str) -> Vec<f64> {
    let tensor = weights.tensor(key, &Device::Cpu).unwrap();
    assert_eq!((Some(tensor.dtype()), Some(tensor.shape())), (weights.dtype(key), weights.shape(key)), "{key}");
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn every_format_gives_the_same_tensors() {
    let expected = open("expected.safetensors");
    assert_eq!(expected.metadata()["format"], "pt");
    let keys: Vec<_> = expected.keys().collect();
    assert_eq!(keys.len(), 19);
    for file in ["zip.pt", "zip_protocol4.pt", "rezipped.pt", "legacy.pth"] {
        let weights = open(file);
        assert_eq!(weights.keys().collect::<Vec<_>>(), keys, "{file}");
        for key in &keys {
            assert_eq!(weights.dtype(key), expected.dtype(key), "{file} {key}");
            assert_eq!(weights.shape(key), expected.shape(key), "{file} {key}");
            assert_eq!(values(&weights, key), values(&expected, key), "{file} {key}");
        }
    }
}

/// Holds the expectation itself: the reference file could have been read wrong in the same way as the others.
#[test]
fn values_are_those_that_were_written() {
    let weights = open("zip.pt");
    assert_eq!(values(&weights, "transposed"), [-1.0, -0.625, -0.875, -0.5, -0.75, -0.375]);
    assert_eq!(values(&weights, "expanded"), [0.5, 0.5, 0.5, -2.0, -2.0, -2.0]);
    assert_eq!(values(&weights, "conv.bias"), [-0.375, -0.25]);
    assert_eq!(values(&weights, "every_other")[..3], [-0.875, -0.625, -0.375]);
    let last = values(&weights, "channels_last");
    assert!(last.iter().enumerate().all(|(i, &x)| x == i as f64 / 8.0 - 1.0), "{last:?}");
    assert_eq!(values(&weights, "f64"), [1.0 / 3.0, -1e300]);
    assert_eq!(values(&weights, "f16"), [f64::from(half::f16::from_f64(0.1)), -65504.0]);
    assert_eq!(values(&weights, "bf16")[0], f64::from(half::bf16::from_f64(0.1)));
    assert_eq!(weights.tensor("i64", &Device::Cpu).unwrap().to_vec1::<i64>().unwrap(), [-(1 << 62), 7]);
    assert_eq!(values(&weights, "i8"), [-128.0, 7.0]);
    assert_eq!(values(&weights, "u8"), [255.0, 7.0]);
    assert_eq!(values(&weights, "bool"), [1.0, 0.0, 1.0]);
    assert_eq!((weights.shape("scalar").unwrap().dims(), values(&weights, "scalar")), (&[][..], vec![3.25]));
    assert_eq!((weights.shape("empty").unwrap().dims(), values(&weights, "empty")), (&[0, 4][..], vec![]));
    let dtypes = ["f64", "f32", "f16", "bf16", "i64", "i32", "i16", "i16", "u8", "u8"];
    let keys = ["f64", "parameter", "f16", "bf16", "i64", "i32", "i16", "i8", "u8", "bool"];
    for (key, dtype) in keys.into_iter().zip(dtypes) {
        assert_eq!(weights.dtype(key).unwrap().as_str(), dtype, "{key}");
    }
}

#[test]
fn a_training_state_gives_its_weights_and_nothing_of_the_rest_is_run() {
    for file in ["training_zip.pt", "training_legacy.pth"] {
        let weights = open(file);
        let expected = ["0.bias", "0.weight", "1.bias", "1.num_batches_tracked"];
        assert_eq!(weights.keys().take(4).collect::<Vec<_>>(), expected, "{file}");
        // The script filled the tensors with their index.
        assert_eq!(values(&weights, "0.weight"), [0.0; 8], "{file}");
        assert_eq!(values(&weights, "1.running_var"), [5.0; 2], "{file}");
    }
    assert_eq!(open("hostile_beside.pt").keys().collect::<Vec<_>>(), ["weight"]);
    assert!(!Path::new("/tmp/zoo-hostile").exists());
}

#[test]
fn files_of_the_first_pytorch_open() {
    let weights = open("old_python.pth");
    assert_eq!(values(&weights, "weight"), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(values(&weights, "bias"), [4.0, 5.0]);
}

#[test]
fn refusals_name_their_reason() {
    for (file, reason) in [
        ("hostile_root.pth", "refuses to run code: `posix.system`"),
        ("hostile_weight.pt", "`weight`: refuses to run code: `posix.system`"),
        ("whole_module.pt", "refuses to run code: `torch.nn.modules.linear.Linear`"),
        ("big_endian.pt", "the file's byte order is `big`"),
        ("compressed.pt", "is compressed"),
        ("script.pt", "TorchScript"),
    ] {
        let error = refused_file(file);
        assert!(error.contains(reason) && error.contains(file) && error.contains("(at byte "), "{error}");
    }
    assert!(!Path::new("/tmp/zoo-hostile").exists());
    assert!(Weights::open(fixture("")).unwrap_err().to_string().contains("it is a directory, not a regular file"));
    assert!(refused_file("absent.pt").contains("absent.pt: "));
    assert!(refused([]).contains("empty"));
    assert!(refused(*b"GIF89a, and more of it").contains("begins with `GIF89a"));
    let mut tar = vec![b'x'; 512];
    tar[257..262].copy_from_slice(b"ustar");
    assert!(refused(tar).contains("tar archive"));
}

// ---- pickles that nobody's torch.save wrote ----

const MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// The old container around an object's pickle; `storages` is the pickled list of keys and what follows it.
fn legacy(object: &[u8], storages: &[u8]) -> Vec<u8> {
    [MAGIC, b"\x80\x02M\xe9\x03.", b"\x80\x02}.", object, storages].concat()
}

/// A state dict with one float tensor `w` in a storage called `k` that says to have `numel` elements.
fn one_tensor(offset: &[u8], shape: &[u8], strides: &[u8], numel: &[u8]) -> Vec<u8> {
    let storage: &[u8] = b"(U\x07storagectorch\nFloatStorage\nU\x01kU\x03cpu";
    [b"}U\x01wctorch._utils\n_rebuild_tensor_v2\n(", storage, numel, b"tQ", offset, shape, strides, b"\x89}tRs."]
        .concat()
}

/// Three floats under `k`.
fn storage_of_three() -> Vec<u8> {
    [b"]U\x01ka.".as_slice(), &3u64.to_le_bytes(), &[0; 12]].concat()
}

#[test]
fn a_tensor_must_lie_inside_its_storage() {
    let three = storage_of_three();
    let opened = |object: Vec<u8>| Weights::from_bytes("f", legacy(&object, &three));
    assert_eq!(opened(one_tensor(b"K\0", b"K\x03\x85", b"K\x01\x85", b"K\x03")).unwrap().len(), 1);
    // 2^62 elements in a row of 2^62, a stride of -1, an offset of -1, 2^33 times 2^33 elements, nine axes.
    let huge = b"\x8a\x08\0\0\0\0\0\0\0\x40";
    let minus = b"\x8a\x01\xff";
    let wide = b"\x8a\x05\0\0\0\0\x02";
    let pair = |a: &[u8], b: &[u8]| [a, b, b"\x86"].concat();
    let single = |a: &[u8]| [a, b"\x85"].concat();
    let nine = [b"(".as_slice(), &b"K\x01".repeat(9), b"t"].concat();
    for (object, reason) in [
        (one_tensor(b"K\x01", b"K\x03\x85", b"K\x01\x85", b"K\x03"), "leave its storage of 3 elements"),
        (one_tensor(b"K\0", b"K\x04\x85", b"K\x01\x85", b"K\x03"), "leave its storage of 3 elements"),
        (one_tensor(b"K\0", b"K\x02\x85", b"K\x03\x85", b"K\x03"), "leave its storage of 3 elements"),
        (one_tensor(b"K\0", &single(huge), b"K\0\x85", b"K\x03"), "views overlap"),
        (one_tensor(b"K\0", &pair(huge, huge), b"K\0K\0\x86", b"K\x03"), "more elements than can be counted"),
        (one_tensor(b"K\0", &pair(wide, wide), b"K\0K\0\x86", b"K\x03"), "more elements than can be counted"),
        (one_tensor(b"K\0", &pair(b"K\0", huge), b"K\0K\0\x86", b"K\x03"), ""),
        (one_tensor(b"K\0", b"K\x02\x85", &single(huge), b"K\x03"), "leave its storage"),
        (one_tensor(huge, b"K\x03\x85", b"K\x01\x85", b"K\x03"), "leave its storage"),
        (one_tensor(minus, b"K\x03\x85", b"K\x01\x85", b"K\x03"), "offset -1"),
        (one_tensor(b"K\0", b"K\x02\x85", &single(minus), b"K\x03"), "not a number of elements"),
        (one_tensor(b"K\0", b"K\x02\x85", b")", b"K\x03"), "differ in length"),
        (one_tensor(b"K\0", &nine, &nine, b"K\x03"), "more than 8 axes"),
        (one_tensor(b"K\0", b"K\x03\x85", b"K\x01\x85", b"K\x04"), "said to hold 4 elements and has 12 bytes"),
        (one_tensor(b"K\0", b"K\x03\x85", b"K\x01\x85", huge), "and has 12 bytes"),
        (one_tensor(b"K\0", b"U\x03abc", b"K\x01\x85", b"K\x03"), "not made of storage, offset, shape and strides"),
    ] {
        match opened(object) {
            Ok(weights) => assert!(reason.is_empty() && values(&weights, "w").is_empty()),
            Err(error) => assert!(!reason.is_empty() && error.to_string().contains(reason), "{reason}: {error}"),
        }
    }
}

#[test]
fn storages_must_lie_inside_the_file() {
    let object = one_tensor(b"K\0", b"K\x03\x85", b"K\x01\x85", b"K\x03");
    let with = |storages: &[u8]| refused(legacy(&object, storages));
    let count = |n: u64| [b"]U\x01ka.".as_slice(), &n.to_le_bytes(), &[0; 12]].concat();
    assert!(with(&count(4)).contains("16 bytes are announced here, but only 12 follow"));
    assert!(with(&count(u64::MAX)).contains("but only 12 follow"));
    assert!(with(&count(1 << 62)).contains("but only 12 follow"));
    assert!(with(b"].").contains("no storage `k`"));
    assert!(with(b"]U\x01xa.").contains("storage `x` belongs to no tensor"));
    assert!(with(b"N.").contains("a list of storages should follow"));
    assert!(with(b"").contains("bytes are announced"));
    let twice = [b"](U\x01kU\x01ke.".as_slice(), &0u64.to_le_bytes(), &0u64.to_le_bytes()].concat();
    assert!(with(&twice).contains("storage `k` occurs twice"));
}

#[test]
fn hostile_programs_are_errors() {
    let with = |object: &[u8]| refused(legacy(object, b"]."));
    for (object, reason) in [
        // The stack, the marks and the memo.
        (b".".as_slice(), "a value that it has not made"),
        (b"0.", "a value that it has not made"),
        (b"N(.", "a value that it has not made"),
        (b"N(\x85.", "a value that it has not made"),
        (b"t.", "a mark that it has not set"),
        (b"h\0.", "recalls value 0"),
        (b"j\xff\xff\xff\xff.", "recalls value 4294967295"),
        (b"}r\xff\xff\xff\xff.", "no tensor at the top"),
        (b"}(Nu.", "a key without a value"),
        (b"NNNs.", "a plain value is not a dictionary"),
        (b"Na.", "fills a container that it has not made"),
        // Lengths beyond the file.
        (b"\x95\xff\xff\xff\xff\xff\xff\xff\xff.", "a frame of 18446744073709551615 bytes"),
        (b"X\xff\xff\xff\xff.", "4294967295 bytes are announced"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.", "bytes are announced"),
        (b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff.", "bytes are announced"),
        (b"\x96\0\0\0\0\0\0\0\x80.", "bytes are announced"),
        (b"\x8a\xff.", "255 bytes are announced"),
        (b"\x8b\xff\xff\xff\x7f.", "2147483647 bytes are announced"),
        (b"cos", "a line begins here and never ends"),
        // Code, in its several spellings.
        (b"cos\nsystem\n(U\x04echotR.", "refuses to run code: `os.system`"),
        (b"U\x02osU\x06system\x93U\x04echo\x85R.", "refuses to run code: `os.system`"),
        (b"cos\nsystem\n.", "refuses to run code: `os.system`"),
        (b"c__main__\nNet\n)\x81.", "refuses to run code: `__main__.Net`"),
        (b"c__main__\nNet\n)}\x92.", "refuses to run code: `__main__.Net`"),
        (b"c__main__\nNet\n)\x81}U\x01xcos\nsystem\n)Rsb.", "refuses to run code: `__main__.Net`"),
        (b"cbuiltins\ngetattr\n)R)R.", "refuses to run code: `builtins.getattr`"),
        (b"ctorch._utils\n_rebuild_parameter\n(cos\nsystem\n)R\x88}tR.", "refuses to run code: `os.system`"),
        (b"}U\x01wcos\nsystem\n)Rs.", "`w`: refuses to run code: `os.system`"),
        (b"(ios\nsystem\n.", "`i` has no place in a checkpoint"),
        (b"(cos\nsystem\no.", "`o` has no place in a checkpoint"),
        (b"\x82\x01.", "0x82  has no place in a checkpoint"),
        (b"U\x01x)R.", "a text is called like a function"),
        (b"NQ.", "not a storage of torch.save's"),
        (b"\x80\x09.", "pickle protocol 9"),
        // Not a state dict.
        (b"].", "the file holds a list, not a state dict"),
        (b"}U\x05epochK\x03s.", "at the top there are: `epoch`: an integer"),
    ] {
        let error = with(object);
        assert!(error.contains(reason), "{}: {error}", object.escape_ascii());
    }
    // A dictionary inside itself, and a list inside itself as the list of pairs of a dictionary.
    assert!(with(b"}q\0U\x05modelh\0s.").contains("no tensor"));
    assert!(with(b"ccollections\nOrderedDict\n]q\0h\0a\x85R.").contains("not a state dict"));
}

#[test]
fn nesting_does_not_exhaust_the_stack() {
    let deep = 1_000_000;
    let nested_lists = [b"]".repeat(deep), b"a".repeat(deep - 1), b".".to_vec()].concat();
    let nested_tuples = [b")".to_vec(), b"\x85".repeat(deep), b".".to_vec()].concat();
    for object in [nested_lists, nested_tuples] {
        assert!(refused(legacy(&object, b"].")).contains("not a state dict"));
    }
    assert!(refused(legacy(&b"(".repeat(deep), b"")).contains("bytes are announced"));
    assert!(refused(legacy(&b"N".repeat(5_000_000), b"")).contains("more than 4194304 pickle instructions"));
}

#[test]
fn a_big_endian_file_of_the_old_format_is_refused() {
    let bytes = std::fs::read(fixture("legacy.pth")).unwrap();
    let at = bytes.windows(13).position(|w| w == b"little_endian").unwrap() + 13;
    let flag = at + bytes[at..].iter().position(|&b| b == 0x88).unwrap();
    let mut bytes = bytes;
    bytes[flag] = 0x89;
    assert!(refused(bytes).contains("big-endian"));
}

#[test]
fn every_truncation_of_every_file_is_an_error() {
    for name in ["expected.safetensors", "zip.pt", "rezipped.pt", "legacy.pth", "training_legacy.pth", "old_python.pth"]
    {
        let bytes = std::fs::read(fixture(name)).unwrap();
        for len in 0..bytes.len() {
            let cut = Weights::from_bytes(name, bytes[..len].to_vec());
            assert!(cut.is_err(), "{name} cut off at {len} of {} bytes opens", bytes.len());
        }
    }
}

// ---- zip archives that nobody's torch.save wrote ----

/// An archive of stored entries; `lie` may change an entry's header in the directory before it is written.
fn zip(entries: &[(&str, &[u8])], lie: impl Fn(usize, &mut [u8])) -> Vec<u8> {
    let mut file = Vec::new();
    let mut directory = Vec::new();
    for (i, (name, content)) in entries.iter().enumerate() {
        let offset = (file.len() as u32).to_le_bytes();
        let size = (content.len() as u32).to_le_bytes();
        let common = [&[0; 12][..], &size, &size, &(name.len() as u16).to_le_bytes(), &[0, 0]].concat();
        file.extend([&b"PK\x03\x04\x14\0"[..], &common, name.as_bytes(), content].concat());
        let mut header = [&b"PK\x01\x02\x14\0\x14\0"[..], &common, &[0; 10], &offset, name.as_bytes()].concat();
        lie(i, &mut header);
        directory.extend(header);
    }
    let count = (entries.len() as u16).to_le_bytes();
    let (offset, size) = ((file.len() as u32).to_le_bytes(), (directory.len() as u32).to_le_bytes());
    [&file[..], &directory, b"PK\x05\x06\0\0\0\0", &count, &count, &size, &offset, &[0, 0]].concat()
}

#[test]
fn lying_zip_archives_are_errors() {
    let program = one_tensor(b"K\0", b"K\x03\x85", b"K\x01\x85", b"K\x03");
    let entries: [(&str, &[u8]); 2] = [("a/data.pkl", &program), ("a/data/k", &[0; 12])];
    let honest = zip(&entries, |_, _| ());
    assert_eq!(Weights::from_bytes("f", honest.clone()).unwrap().keys().collect::<Vec<_>>(), ["w"]);
    let lies = |at: usize, lie: &'static [u8]| {
        refused(zip(&entries, |i, header| {
            if i == 1 {
                header[at..at + lie.len()].copy_from_slice(lie)
            }
        }))
    };
    for (error, reason) in [
        (lies(0, b"PQ"), "does not begin as one should"),
        (lies(8, &[1]), "is encrypted"),
        (lies(10, &[8]), "is compressed"),
        (lies(20, &[1, 0, 0, 0]), "is compressed"),
        // Sizes and offsets, plain and said to be in a zip64 field that is not there.
        (lies(20, &[0xFF, 0xFF, 0xFF, 0x7F, 0xFF, 0xFF, 0xFF, 0x7F]), "2147483647 bytes are announced"),
        (lies(20, &[0xFF; 8]), "4294967295 bytes are announced"),
        (lies(20, &[13, 0, 0, 0, 13, 0, 0, 0]), "13 bytes are announced here, but only 12 follow"),
        (lies(42, &[0xFF; 4]), "is not where the zip directory says"),
        (lies(42, &[0; 4]), "is described differently"),
        (lies(28, &[0xFF; 2]), "65535 bytes are announced"),
        (lies(30, &[0xFF; 2]), "65535 bytes are announced"),
        (lies(46, b"\xFF"), "is not UTF-8"),
        (lies(46, b"b"), "is described differently"),
        (refused(zip(&[entries[0], entries[1], entries[1]], |_, _| ())), "two entries called `a/data/k`"),
        (refused(zip(&[entries[0], ("b/data/k", &[0; 12])], |_, _| ())), "the archive has no storage `k`"),
        (refused(zip(&[("a/b", b"")], |_, _| ())), "it holds no NAME/data.pkl"),
        (refused(zip(&[entries[0], ("a/data/k", &[0; 11])], |_, _| ())), "said to hold 3 elements and has 11 bytes"),
    ] {
        assert!(error.contains(reason), "{reason}: {error}");
    }
    // One entry inside another: its local header is part of the other's content.
    let inner = zip(&[("a/data/k", &[0; 12])], |_, _| ());
    let outer = [("a/x", &inner[..50]), entries[0], ("a/data/k", &[0; 12])];
    let nested = zip(&outer, |i, header| {
        if i == 2 {
            header[42..46].copy_from_slice(&33u32.to_le_bytes())
        }
    });
    assert!(refused(nested).contains("overlap"));
    // The end record: entries, size and offset of the directory.
    let end = honest.len() - 22;
    for (at, lie, reason) in [
        (8, &[3u8, 0, 3, 0][..], "announces 3 entries and lists 2"),
        (12, &[0xFF; 4], "outside the file"),
        (16, &[0xFF; 4], "outside the file"),
        (4, &[1], "one part of several"),
        (20, &[1], "no zip directory at its end"),
    ] {
        let mut bytes = honest.clone();
        bytes[end + at..end + at + lie.len()].copy_from_slice(lie);
        assert!(refused(bytes).contains(reason), "{reason}");
    }
    // PyTorch always writes the zip64 records: a locator that points nowhere, a directory beyond the file.
    let torch = std::fs::read(fixture("zip.pt")).unwrap();
    let locator = torch.len() - 42;
    let record = locator - 56;
    for (at, reason) in
        [(locator + 8, "no zip64 directory record"), (record + 40, "outside the file"), (record + 48, "")]
    {
        for lie in [[0xFF; 8], [0x7F; 8], [0, 0, 0, 0, 0, 0, 0, 0x80]] {
            let mut bytes = torch.clone();
            bytes[at..at + 8].copy_from_slice(&lie);
            assert!(refused(bytes).contains(reason), "{reason}");
        }
    }
}

// ---- safetensors that nobody's writer wrote ----

fn safetensors(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; data]].concat()
}

#[test]
fn lying_safetensors_are_errors() {
    let one = |shape: &str, dtype: &str, begin: u64, end: u64| {
        format!(r#""w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
    };
    let deep = format!("{{\"w\":{{\"x\":{}", "[".repeat(100_000));
    let many_axes = format!("[{}1]", "1,".repeat(50_000));
    for (header, data, reason) in [
        (format!("{{{}}}", one("[2]", "F32", 0, 8)), 8, ""),
        (format!("{{{}}}   ", one("[0,9]", "F32", 0, 0)), 0, ""),
        ("{}".to_string(), 0, ""),
        (format!("{{{}}}", one("[2]", "F32", 0, 8)), 4, "takes bytes"),
        (format!("{{{}}}", one("[2]", "F32", 0, 8)), 12, "4 bytes behind the last tensor belong to nothing"),
        (format!("{{{}}}", one("[2]", "F32", 4, 12)), 12, "4 bytes before them belong to nothing"),
        (format!("{{{}}}", one("[2]", "F32", 8, 0)), 8, "end before they begin"),
        (format!("{{{}}}", one("[2]", "F32", 0, u64::MAX)), 8, "the file has 8"),
        (format!("{{{}}}", one("[2]", "F32", u64::MAX, u64::MAX)), 8, "the file has 8"),
        (format!("{{{}}}", one("[3]", "F32", 0, 8)), 8, "does not take 8 bytes"),
        (format!("{{{}}}", one("[4294967296,4294967296]", "F32", 0, 0)), 0, "more elements than can be counted"),
        (format!("{{{}}}", one("[0,4294967296,4294967296]", "F32", 0, 0)), 0, "more elements than can be counted"),
        (format!("{{{}}}", one("[4611686018427387904]", "F32", 0, 0)), 0, "does not take 0 bytes"),
        (format!("{{{}}}", one("[99999999999999999999]", "F32", 0, 8)), 8, "header is not what it should be"),
        (format!("{{{}}}", one("[-2]", "F32", 0, 8)), 8, "header is not what it should be"),
        (format!("{{{}}}", one("[2.0]", "F32", 0, 8)), 8, "header is not what it should be"),
        (format!("{{{}}}", one(&many_axes, "F32", 0, 4)), 4, "more than 8 axes"),
        (format!("{{{}}}", one("[1]", "U64", 0, 8)), 8, "type U64 has no equivalent"),
        (format!("{{{}}}", one("[2]", "F4", 0, 1)), 1, "type F4 has no equivalent"),
        (format!("{{{}}}", one("[2]", "Q7", 0, 1)), 1, "header is not what it should be"),
        (format!("{{{},{}}}", one("[2]", "F32", 0, 8), one("[2]", "F32", 0, 8)), 8, "overlap another"),
        (format!("{{{},{}}}", one("[2]", "F32", 0, 8), one("[1]", "F32", 8, 12)), 12, "two tensors are called `w`"),
        (r#"{"w":1}"#.to_string(), 0, "header is not what it should be"),
        (r#"{"__metadata__":{"a":1}}"#.to_string(), 0, "header is not what it should be"),
        ("{".to_string(), 0, "header is not what it should be"),
        (deep, 0, "EOF while parsing a list"),
    ] {
        match Weights::from_bytes("f", safetensors(&header, data)) {
            Ok(_) => assert!(reason.is_empty(), "opens: {header}"),
            Err(error) => {
                let error = error.to_string();
                let expected = error.contains(reason) || (reason == "takes bytes" && error.contains("the file has 4"));
                assert!(!reason.is_empty() && expected, "{reason}: {error}");
                assert!(error.len() < 500, "a message of {} bytes", error.len());
            }
        }
    }
    let mut bytes = safetensors("{}", 0);
    bytes[0] = 3;
    assert!(refused(bytes.clone()).contains("the header is said to be 3 bytes, and 2 follow"));
    bytes[..8].fill(0xFF);
    assert!(refused(bytes).contains("18446744073709551615 bytes"));
    assert!(refused(b"\x01\0\0\0\0\0\0\0{".to_vec()).contains("at byte 8"));
}

/// Why the reader does not lean on the crate's: it takes a file with two tensors of one name, and keeps one of them.
#[test]
fn the_safetensors_crate_checks_less() {
    let info = r#""w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    let file = safetensors(&format!("{{{info},{info}}}"), 4);
    assert!(::safetensors::SafeTensors::deserialize(&file).is_ok());
    refused(file);
}

// ---- writing ----

fn small_store(seed: u64) -> VarStore {
    let store = VarStore::new(seed, DType::F32, &Device::Cpu);
    let vb = store.root();
    vb.pp("conv1").param((2, 3, 2, 2), "weight", Init::HE_FAN_IN).unwrap();
    vb.pp("bn1").buffer(2, "running_mean", Init::HE_FAN_IN).ok();
    vb.pp("linear").param((4, 2), "weight", Init::HE_FAN_IN).unwrap();
    vb.pp("linear").param(4, "bias", Init::ONES).unwrap();
    store
}

fn bits(store: &VarStore) -> Vec<(String, Vec<f64>)> {
    let values = |slot: zoo_core::Slot| {
        let tensor = slot.var.unwrap().to_dtype(DType::F64).unwrap().flatten_all().unwrap();
        (slot.key, tensor.to_vec1().unwrap())
    };
    store.slots().into_iter().map(values).collect()
}

#[test]
fn what_is_saved_comes_back_and_the_bytes_are_the_same_each_time() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("net.safetensors");
    let metadata = (0..20).map(|i| (format!("key{i}"), format!("\"{i}\" \\ ü"))).collect();
    let store = small_store(1);
    let mut files = Vec::new();
    for _ in 0..3 {
        save_safetensors(&store, &path, &metadata).unwrap();
        files.push(std::fs::read(&path).unwrap());
    }
    assert!(files.windows(2).all(|pair| pair[0] == pair[1]));
    // The crate's own reader takes the file, and its data begins at a multiple of eight.
    let (header, _) = ::safetensors::SafeTensors::read_metadata(&files[0]).unwrap();
    assert_eq!(header % 8, 0);
    let other = small_store(2);
    assert_ne!(bits(&store), bits(&other));
    let weights = Weights::open(&path).unwrap();
    assert_eq!(weights.metadata(), &metadata);
    let report = weights::load(&other, &weights, &LoadOptions::default()).unwrap();
    assert_eq!((report.loaded.len(), report.initial.len(), report.passed_over.len()), (store.slots().len(), 0, 0));
    assert_eq!(bits(&store), bits(&other));
    // Nothing but the file is left behind.
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1);
}

#[test]
fn every_element_type_comes_back() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("types.safetensors");
    let source = open("zip.pt");
    let mut tensors: Vec<(&str, Tensor)> =
        source.keys().map(|key| Ok((key, source.tensor(key, &Device::Cpu)?))).collect::<Result<_>>()?;
    tensors.push(("u32", Tensor::new(&[u32::MAX, 1], &Device::Cpu)?));
    tensors.push(("strided", tensors[0].1.flatten_all()?.reshape((1, ()))?.t()?));
    save_tensors(tensors.iter().map(|(key, tensor)| (*key, tensor)), &path, &Default::default())?;
    let back = Weights::open(&path)?;
    assert_eq!(back.len(), tensors.len());
    for (key, tensor) in &tensors {
        assert_eq!((back.dtype(key), back.shape(key)), (Some(tensor.dtype()), Some(tensor.shape())), "{key}");
        let written: Vec<f64> = tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
        assert_eq!(values(&back, key), written, "{key}");
    }
    Ok(())
}

#[test]
fn a_failed_write_leaves_the_old_file_and_nothing_beside_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("net.safetensors");
    save_safetensors(&small_store(1), &path, &Default::default()).unwrap();
    let before = std::fs::read(&path).unwrap();
    let one = Tensor::ones(1, DType::F32, &Device::Cpu).unwrap();
    let error = save_tensors([("a", &one), ("a", &one)], &path, &Default::default()).unwrap_err();
    assert!(error.to_string().contains("the name is taken"), "{error}");
    assert!(save_tensors([("__metadata__", &one)], &path, &Default::default()).is_err());
    // A directory stands where the file should: the rename fails.
    let taken = directory.path().join("taken");
    std::fs::create_dir_all(taken.join("full")).unwrap();
    assert!(save_tensors([("a", &one)], &taken, &Default::default()).unwrap_err().to_string().contains("taken"));
    assert!(save_tensors([("a", &one)], directory.path().join("no/such"), &Default::default()).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), before);
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 2);
    let shapes = VarStore::shapes_only();
    shapes.root().param(1, "w", Init::ZEROS).unwrap();
    assert!(save_safetensors(&shapes, &path, &Default::default()).is_err());
}

// ---- loading ----

fn weights_of(tensors: &[(&str, &[usize])]) -> Weights {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("made.safetensors");
    let tensors: Vec<_> = tensors
        .iter()
        .map(|&(key, dims)| (key, Tensor::full(5f64, dims, &Device::Cpu).unwrap().to_dtype(DType::F16).unwrap()))
        .collect();
    save_tensors(tensors.iter().map(|(key, tensor)| (*key, tensor)), &path, &Default::default()).unwrap();
    Weights::from_bytes("made.safetensors", std::fs::read(&path).unwrap()).unwrap()
}

const FC: &[Rename] = &[Rename { from: "fc.*", to: "linear.*", reason: "a test" }];

#[test]
fn a_mismatch_lists_everything_and_changes_nothing() {
    let store = small_store(1);
    let before = bits(&store);
    let made: Vec<String> = (0..40).map(|i| format!("extra{i:02}.weight")).collect();
    let mut tensors: Vec<(&str, &[usize])> = made.iter().map(|key| (key.as_str(), &[1usize, 2][..])).collect();
    tensors.extend([("conv1.weight", &[2, 1, 2, 2][..]), ("linear.bias", &[4]), ("bn1.num_batches_tracked", &[])]);
    let weights = weights_of(&tensors);
    let report = weights::check(&store, &weights, &LoadOptions::default()).unwrap();
    assert_eq!((report.matching.len(), report.unexpected.len(), report.mis_shaped.len()), (1, 40, 1));
    assert!(report.missing.iter().any(|(key, shape)| key == "linear.weight" && shape.dims() == [4, 2]));
    assert!(report.unexpected.is_sorted_by(|a, b| a.0 < b.0));
    let error = weights::load(&store, &weights, &LoadOptions::default()).unwrap_err().to_string();
    for line in [
        "made.safetensors does not fit the network: 1 keys match, 1 missing, 40 unexpected, 1 mis-shaped\nmissing (in the network",
        "\n  linear.weight [4, 2]",
        "\n  extra00.weight [1, 2]",
        "\n  … and 35 more, which `zoo check` lists",
        "\n  conv1.weight: [2, 1, 2, 2] in the file, [2, 3, 2, 2] in the network",
    ] {
        assert!(error.contains(line), "{line:?} is not in:\n{error}");
    }
    assert!(!error.contains("extra05"));
    assert_eq!(bits(&store), before);
}

#[test]
fn renames_and_types_are_applied() {
    let store = VarStore::new(1, DType::F64, &Device::Cpu);
    let vb = store.root().pp("linear");
    vb.param((4, 2), "weight", Init::HE_FAN_IN).unwrap();
    vb.param(4, "bias", Init::ONES).unwrap();
    let weights = weights_of(&[("fc.weight", &[4, 2]), ("fc.bias", &[4])]);
    assert!(weights::load(&store, &weights, &LoadOptions::default()).is_err());
    let options = LoadOptions { renames: FC, ..Default::default() };
    weights::load(&store, &weights, &options).unwrap();
    assert!(bits(&store).iter().all(|(_, values)| values.iter().all(|&x| x == 5.0)));
    assert_eq!(store.slots()[0].var.as_ref().unwrap().dtype(), DType::F64);
    // The network's own spelling still loads; both at once is one too many.
    weights::load(&store, &weights_of(&[("linear.weight", &[4, 2]), ("fc.bias", &[4])]), &options).unwrap();
    let both = weights_of(&[("linear.weight", &[4, 2]), ("fc.weight", &[4, 2]), ("fc.bias", &[4])]);
    let error = weights::check(&store, &both, &options).unwrap_err().to_string();
    assert!(error.contains("both `fc.weight` and `linear.weight` would be the network's `linear.weight`"), "{error}");
    let lopsided = [Rename { from: "a.*", to: "b", reason: "a test" }];
    let error =
        weights::check(&store, &weights, &LoadOptions { renames: &lopsided, ..Default::default() }).unwrap_err();
    assert!(error.to_string().contains("different numbers of stars"), "{error}");
}

#[test]
fn rename_patterns() {
    let rename = |from, to, key: &str| Rename { from, to, reason: "a test" }.apply(key);
    let vit = rename("encoder.layers.encoder_layer_*.**", "blocks.*.**", "encoder.layers.encoder_layer_11.mlp.0.bias");
    assert_eq!(vit.as_deref(), Some("blocks.11.mlp.0.bias"));
    assert_eq!(rename("a.*", "b.*", "a.x.y"), None);
    assert_eq!(rename("a.*.y", "b.*", "a.x"), None);
    assert_eq!(rename("a.**", "b.**", "a"), None);
    assert_eq!(rename("a*", "b*", "a"), None);
    assert_eq!(rename("a", "b", "a").as_deref(), Some("b"));
    assert_eq!(rename("*.*", "*_*", "x.y").as_deref(), Some("x_y"));
}

#[test]
fn a_part_that_may_differ_stays_fresh_as_a_whole_or_loads() {
    let options = LoadOptions { may_differ: &["linear", "bn1", "aux"], ..Default::default() };
    let with_head = |classes: usize| {
        let linear = [classes, 2];
        weights_of(&[
            ("conv1.weight", &[2, 3, 2, 2]),
            ("linear.weight", &linear),
            ("linear.bias", &[4]),
            ("aux.w", &[1]),
        ])
    };
    let store = small_store(1);
    let before = bits(&store);
    let report = weights::load(&store, &with_head(10), &options).unwrap();
    assert_eq!(report.loaded, ["conv1.weight"]);
    assert!(report.initial.ends_with(&["linear.bias".to_string(), "linear.weight".to_string()]), "{report:?}");
    assert_eq!(report.passed_over, ["aux.w", "linear.bias", "linear.weight"]);
    assert!(report.to_string().contains("left at their initial values:\n"), "{report}");
    let after = bits(&store);
    assert!(after[0].1.iter().all(|&x| x == 5.0));
    assert_eq!(after[1..], before[1..]);

    let report = weights::load(&store, &with_head(4), &options).unwrap();
    assert!(report.loaded.contains(&"linear.weight".to_string()), "{report:?}");
    // A prefix is a part's name, not the beginning of one.
    let options = LoadOptions { may_differ: &["lin", "conv"], ..Default::default() };
    assert!(weights::load(&store, &with_head(10), &options).is_err());
}

#[test]
fn a_key_map_splits_and_joins() {
    fn split(weights: &Weights) -> Result<Vec<(String, Source)>> {
        let width = weights.shape("qkv").map_or(0, |shape| shape.dims()[0] / 3);
        let part = |i: usize| Source::Narrow { key: "qkv".into(), dim: 0, start: i * width, len: width };
        let joined = Source::Concat { keys: vec!["a".into(), "b".into()], dim: 1 };
        Ok(vec![("q".into(), part(0)), ("v".into(), part(2)), ("ab".into(), joined)])
    }
    let store = VarStore::new(1, DType::F32, &Device::Cpu);
    let vb = store.root();
    for (key, shape) in [("q", (2, 2)), ("v", (2, 2)), ("ab", (2, 3))] {
        vb.param(shape, key, Init::ZEROS).unwrap();
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("f.safetensors");
    let range = |n: u32, shape: (usize, usize)| {
        Tensor::arange(0f32, n as f32, &Device::Cpu).and_then(|t| t.reshape(shape)).unwrap()
    };
    let (qkv, a, b, stray) = (range(12, (6, 2)), range(2, (2, 1)), range(4, (2, 2)), range(1, (1, 1)));
    let layouts = [Layout { name: "split", sign: "qkv", renames: &[], key_map: Some(split), preprocess: None }];
    let options = LoadOptions { layouts: &layouts, ..Default::default() };
    save_tensors([("qkv", &qkv), ("a", &a), ("b", &b)], &path, &Default::default()).unwrap();
    weights::load(&store, &Weights::open(&path).unwrap(), &options).unwrap();
    let loaded = bits(&store);
    assert_eq!(loaded[0].1, [0.0, 1.0, 2.0, 3.0]);
    assert_eq!(loaded[1].1, [8.0, 9.0, 10.0, 11.0]);
    assert_eq!(loaded[2].1, [0.0, 0.0, 1.0, 1.0, 2.0, 3.0]);
    // What the map does not use is not lost from sight, and what it wants must be there.
    save_tensors([("qkv", &qkv), ("a", &a), ("b", &b), ("stray", &stray)], &path, &Default::default()).unwrap();
    let report = weights::check(&store, &Weights::open(&path).unwrap(), &options).unwrap();
    assert_eq!(report.unexpected[0].0, "stray");
    save_tensors([("qkv", &qkv)], &path, &Default::default()).unwrap();
    let error = weights::check(&store, &Weights::open(&path).unwrap(), &options).unwrap_err().to_string();
    assert!(error.contains("the key map asks for `a`"), "{error}");
}

#[test]
fn a_store_of_shapes_is_checked_but_not_loaded() {
    let store = VarStore::shapes_only();
    store.root().param((2, 3, 2, 2), "conv.weight", Init::ZEROS).unwrap();
    let weights = weights_of(&[("conv.weight", &[2, 3, 2, 2])]);
    let report = weights::check(&store, &weights, &LoadOptions::default()).unwrap();
    let mut expected = KeyReport::default();
    expected.matching.push("conv.weight".into());
    assert_eq!(report, expected);
    assert!(weights::load(&store, &weights, &LoadOptions::default()).is_err());
}

/// Sums and corners as `torch.load` gives them.
#[test]
fn published_checkpoints_read_as_in_pytorch() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/checkpoints");
    let expected = [
        (
            "resnet20-12fca82f.th",
            97,
            139.7826495598208,
            [-0.13818146288394928, 0.3087101876735687],
            -0.27025941014289856,
        ),
        (
            "resnet44-014dd654.th",
            217,
            1107.7914794927265,
            [0.06434207409620285, 0.002886692062020302],
            -0.08431301265954971,
        ),
    ];
    for (file, count, sum, [first, last], bias) in expected {
        let path = directory.join(file);
        if !path.exists() {
            println!("skipped: no published checkpoint at {}", path.display());
            continue;
        }
        let weights = Weights::open(path).unwrap();
        assert_eq!(weights.len(), count);
        let stem = values(&weights, "conv1.weight");
        assert_eq!((stem[0], stem[stem.len() - 1]), (first, last));
        assert_eq!(values(&weights, "linear.bias")[9], bias);
        let total: f64 = weights.keys().flat_map(|key| values(&weights, key)).sum();
        // The order of half a million additions in f64 is not PyTorch's.
        assert!((total - sum).abs() < 1e-8 * sum, "{file}: {total} and not {sum}");
    }
}
