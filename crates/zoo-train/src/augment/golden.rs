//! Against torchvision, timm and Pillow: `tests/golden/augment.json`, which `augment.py` beside it makes.

use super::ResizedCrop;
use super::crop::sides;
use super::geometry::{Interpolation, Sampling};
use super::mix::{Mix, cutmix_region, kept, targets};
use super::ops::{Kind, Op};
use super::pixels::{Pixels, Region};
use super::policy::{AUTO_BINS, CIFAR10, Strength, WIDE, WIDE_BINS, searched_range, torchvision_op};
use super::rand_augment::{KINDS, op};
use base64::prelude::{BASE64_STANDARD, Engine};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::HashMap;

fn golden<T: DeserializeOwned>(pointer: &str) -> T {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/augment.json");
    let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    serde_json::from_value(golden.pointer(pointer).unwrap().clone()).unwrap()
}

/// The picture of `picture()` in augment.py.
fn picture(shape: [usize; 3], [span, low]: [usize; 2]) -> Pixels {
    let [channels, height, width] = shape;
    let byte =
        |x: usize, y: usize, c: usize| (31 * x + 17 * y + 73 * c + 5 * x * y + (3 * x * x + 7 * y * y) % 61) % 256;
    let mut data = vec![];
    for c in 0..channels {
        for y in 0..height {
            data.extend((0..width).map(|x| (low + byte(x, y, c) * span / 256) as u8));
        }
    }
    Pixels::new(data, shape).unwrap()
}

fn assert_bytes(ours: &Pixels, theirs: &str, what: &dyn std::fmt::Debug) {
    let theirs = BASE64_STANDARD.decode(theirs).unwrap();
    assert_eq!(ours.data().len(), theirs.len(), "{what:?}");
    let off = ours.data().iter().zip(&theirs).filter(|(a, b)| a != b).count();
    assert!(off == 0, "{off} of {} bytes differ: {what:?}\n{:?}\n{theirs:?}", theirs.len(), ours.data());
}

/// A name of torchvision's or timm's.
fn kind(name: &str) -> Kind {
    let name = name.trim_end_matches("Increasing").trim_end_matches("Rel");
    let all = WIDE.iter().map(|(kind, _)| *kind).chain(KINDS);
    all.into_iter().find(|kind| format!("{kind:?}") == name).unwrap()
}

#[derive(Debug, Deserialize)]
struct OpCase {
    name: String,
    argument: f64,
    shape: [usize; 3],
    span: [usize; 2],
    mode: Interpolation,
    fill: [u8; 3],
    bytes: String,
}

#[test]
fn operations_make_torchvisions_bytes() {
    let cases: Vec<OpCase> = golden("/ops");
    assert!(cases.len() > 200);
    for case in cases {
        let sampling = Sampling { interpolation: case.mode, fill: case.fill };
        let seen = torchvision_op(kind(&case.name), case.argument).apply(picture(case.shape, case.span), sampling);
        assert_bytes(&seen, &case.bytes, &case);
    }
}

#[derive(Debug, Deserialize)]
struct HueCase {
    factor: f64,
    shape: [usize; 3],
    span: [usize; 2],
    bytes: String,
}

#[test]
fn hues_turn_to_torchvisions_bytes() {
    for case in golden::<Vec<HueCase>>("/hue") {
        let seen = Op::Hue(case.factor).apply(picture(case.shape, case.span), Sampling::NEAREST);
        assert_bytes(&seen, &case.bytes, &case);
    }
}

#[derive(Debug, Deserialize)]
struct Values {
    values: Value,
    signed: bool,
}

/// Every strength of a table of torchvision's, to the last bit of its f32: of torch on a processor with FMA.
fn assert_strengths(theirs: &HashMap<String, Values>, bins: usize, ours: impl Fn(Kind) -> Strength) {
    for (name, Values { values, signed }) in theirs {
        let range = ours(kind(name));
        assert_eq!(matches!(range, Strength::Signed(..)), *signed, "{name}");
        match values.as_array() {
            None => assert_eq!(range, Strength::None, "{name}"),
            Some(values) => {
                let values: Vec<f64> = values.iter().map(|value| value.as_f64().unwrap()).collect();
                let ours: Vec<f64> = (0..bins).map(|bin| range.at(bin, bins)).collect();
                assert_eq!(ours, values, "{name}");
            }
        }
    }
}

#[test]
fn trivial_augment_has_torchvisions_table() {
    let theirs: HashMap<String, Values> = golden("/trivial_augment_wide");
    assert_eq!(theirs.len(), WIDE.len());
    assert_strengths(&theirs, WIDE_BINS, |kind| WIDE.iter().find(|(own, _)| *own == kind).unwrap().1);
}

#[test]
fn auto_augment_has_torchvisions_tables() {
    let theirs: Vec<[(String, f64, Option<usize>); 2]> = golden("/auto_augment/policies");
    assert_eq!(theirs.len(), CIFAR10.len());
    for (ours, theirs) in CIFAR10.iter().flatten().zip(theirs.iter().flatten()) {
        assert_eq!(*ours, (kind(&theirs.0), theirs.1, theirs.2.unwrap_or(0)));
        let range = searched_range(ours.0, [32, 32]);
        assert_eq!(theirs.2.is_none(), range == Strength::None, "{theirs:?}");
    }
    for (name, size) in [("32x32", [32, 32]), ("224x180", [224, 180])] {
        let theirs: HashMap<String, Values> = golden(&format!("/auto_augment/space/{name}"));
        assert_strengths(&theirs, AUTO_BINS, |kind| searched_range(kind, size));
    }
}

#[derive(Debug, Deserialize)]
struct Level {
    increasing: bool,
    level: f64,
    arguments: HashMap<String, [Vec<f64>; 2]>,
}

/// The argument of timm's function, if it has one.
fn argument(op: Op) -> Option<f64> {
    match op {
        Op::Rotate(a) | Op::ShearX(a) | Op::ShearY(a) | Op::Solarize(a) => Some(a),
        // timm says where a pixel comes from.
        Op::TranslateX(a) | Op::TranslateY(a) => Some(-a),
        Op::Color(a) | Op::Contrast(a) | Op::Brightness(a) | Op::Sharpness(a) | Op::Hue(a) => Some(a),
        Op::Posterize(a) | Op::SolarizeAdd(a) => Some(a.into()),
        Op::Identity | Op::AutoContrast | Op::Equalize | Op::Invert => None,
    }
}

#[test]
fn rand_augment_has_timms_arguments() {
    let levels: Vec<Level> = golden("/rand_augment/levels");
    assert_eq!(levels.len(), 14);
    for Level { increasing, level, arguments } in levels {
        assert_eq!(arguments.len(), KINDS.len());
        for (name, both) in arguments {
            for (negative, theirs) in [false, true].into_iter().zip(both) {
                // A side of 1, so that a share of it is itself.
                let ours = argument(op(kind(&name), level, increasing, negative, [1, 1]));
                assert_eq!(ours, theirs.first().copied(), "{name} {level} {increasing}");
            }
        }
    }
}

#[derive(Debug, Deserialize)]
struct Rand {
    name: String,
    increasing: bool,
    level: f64,
    negative: bool,
    mode: Interpolation,
    shape: [usize; 3],
    bytes: String,
}

#[test]
fn rand_augment_makes_timms_bytes() {
    for case in golden::<Vec<Rand>>("/rand_augment/images") {
        let [_, height, width] = case.shape;
        let op = op(kind(&case.name), case.level, case.increasing, case.negative, [height, width]);
        let sampling = Sampling { interpolation: case.mode, fill: [128; 3] };
        assert_bytes(&op.apply(picture(case.shape, [256, 0]), sampling), &case.bytes, &case);
    }
}

#[derive(Debug, Deserialize)]
struct Crop {
    shape: [usize; 3],
    #[serde(rename = "box")]
    region: [usize; 4],
    side: usize,
    mode: Interpolation,
    bytes: String,
}

/// (top, left, height, width)
fn region([top, left, height, width]: [usize; 4]) -> Region {
    Region { top, left, height, width }
}

#[test]
fn resized_crops_make_torchvisions_bytes() {
    for case in golden::<Vec<Crop>>("/resized_crops") {
        let crop = ResizedCrop { interpolation: case.mode, ..ResizedCrop::default() };
        let seen = crop.resize(&picture(case.shape, [256, 0]), region(case.region), case.side);
        assert_bytes(&seen, &case.bytes, &case);
    }
}

#[test]
fn regions_have_torchvisions_and_timms_sides() {
    for (area, ratio, first, second) in golden::<Vec<(f64, f64, usize, usize)>>("/sides") {
        assert_eq!(sides(area, ratio), [second, first], "{area} {ratio}");
    }
    for case in golden::<Vec<Value>>("/central_crops") {
        let size: [usize; 2] = serde_json::from_value(case["size"].clone()).unwrap();
        let theirs: [usize; 4] = serde_json::from_value(case["box"].clone()).unwrap();
        assert_eq!(ResizedCrop::default().central(size), region(theirs), "{size:?}");
    }
}

#[derive(Debug, Deserialize)]
struct Cut {
    size: [usize; 2],
    lam: f64,
    centre: [usize; 2],
    #[serde(rename = "box")]
    region: [usize; 4],
    kept: f64,
}

#[test]
fn cutmix_cuts_timms_boxes() {
    for case in golden::<Vec<Cut>>("/cutmix") {
        let ours = cutmix_region(case.lam, case.centre, case.size);
        assert_eq!(ours, region(case.region), "{case:?}");
        assert_eq!(kept(ours, case.size), case.kept, "{case:?}");
    }
}

#[derive(Debug, Deserialize)]
struct Targets {
    labels: Vec<u32>,
    classes: usize,
    lam: f32,
    smoothing: f64,
    targets: Vec<f32>,
}

fn assert_close(ours: &[f32], theirs: &[f32]) {
    // Sums of two products, which torch takes from shares in f64: a few last digits of f32.
    assert!(ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(a, b)| (a - b).abs() < 2e-6), "{ours:?}");
}

#[test]
fn targets_are_timms() {
    for case in golden::<Vec<Targets>>("/targets") {
        let partner = (0..case.labels.len()).rev().collect();
        let mix = Mix { partner, lambda: case.lam, region: None };
        assert_close(&mix.targets(&case.labels, case.classes, case.smoothing), &case.targets);
        if case.lam == 1.0 {
            assert_close(&targets(None, &case.labels, case.classes, case.smoothing), &case.targets);
        }
    }
}

#[derive(Debug, Deserialize)]
struct Batch {
    shape: [usize; 4],
    cuts: bool,
    lam: f64,
    centre: [usize; 2],
    kept: f64,
    images: Vec<f32>,
    mixed: Vec<f32>,
}

#[test]
fn batches_are_mixed_as_timm_mixes_them() {
    for case in golden::<Vec<Batch>>("/batches") {
        let size = [case.shape[2], case.shape[3]];
        let region = case.cuts.then(|| cutmix_region(case.lam, case.centre, size));
        assert_eq!(region.map_or(case.lam, |region| kept(region, size)), case.kept);
        let mix = Mix { partner: (0..case.shape[0]).rev().collect(), lambda: case.kept as f32, region };
        let mut images = case.images.clone();
        mix.apply(&mut images, case.shape);
        assert_close(&images, &case.mixed);
    }
}
