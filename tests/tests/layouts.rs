//! The keys and shapes of the reference's checkpoints, for every full-size network that torchvision or timm has:
//! `golden/layouts.py` writes them.

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use tests::golden_json;
use zoo::{ModelOptions, VarStore};
use zoo_core::model::Interpolation;
use zoo_core::weights::{Weights, check};
use zoo_core::{ChannelOrder, Preprocess, VarKind};

type Layout = Vec<(String, Vec<usize>)>;

fn layout(lines: &Value) -> Result<Layout> {
    let line = |line: &Value| -> Result<_> {
        let (key, shape) = line.as_str().and_then(|line| line.split_once(' ')).context("a line is `KEY SHAPE`")?;
        Ok((key.to_string(), shape.split(',').map(str::parse).collect::<Result<_, _>>()?))
    };
    lines.as_array().context("lines")?.iter().map(line).collect()
}

/// Runs `compare` on every entry of a table of the file and tells all failures at once.
fn each(table: &str, compare: impl Fn(&str, &Value) -> Result<()>) -> Result<()> {
    let file = golden_json("layouts.json")?;
    let entries = file[table].as_object().context("table")?;
    ensure!(!entries.is_empty(), "`{table}` is empty");
    let compare = |(name, entry): (&String, &Value)| Some(format!("{name}: {:#}", compare(name, entry).err()?));
    let failures: Vec<String> = entries.iter().filter_map(compare).collect();
    ensure!(failures.is_empty(), "{} of {} fail:\n{}", failures.len(), entries.len(), failures.join("\n"));
    Ok(())
}

fn shapes_of(name: &str) -> Result<VarStore> {
    ensure!(zoo::all().any(|info| info.name == name), "no network of this name is registered");
    let store = VarStore::shapes_only();
    zoo::create(name, &ModelOptions::default(), &store)?;
    Ok(store)
}

/// The same keys with the same shapes, and the parameters in the same order: optimizers number them.
#[test]
fn the_networks_have_the_reference_s_keys() -> Result<()> {
    each("models", |name, lines| {
        let (store, want) = (shapes_of(name)?, layout(lines)?);
        let got: Layout = store.slots().into_iter().map(|slot| (slot.key, slot.shape.into_dims())).collect();
        for (these, whose, those) in [(&got, "the reference", &want), (&want, "the zoo", &got)] {
            if let Some((key, shape)) = these.iter().find(|entry| !those.contains(entry)) {
                anyhow::bail!("{whose} has no `{key}` of shape {shape:?}")
            }
        }
        let is_parameter =
            |entry: &&(String, _)| store.get(&entry.0).is_some_and(|slot| slot.kind == VarKind::Parameter);
        let mut pairs = got.iter().filter(is_parameter).zip(want.iter().filter(is_parameter));
        match pairs.find(|(got, want)| got.0 != want.0) {
            Some((got, want)) => Err(anyhow::anyhow!("parameter `{}` stands where `{}` should", got.0, want.0)),
            None => Ok(()),
        }
    })
}

/// A safetensors file with this layout, whose zeros take no room on the disk.
fn write_hollow(path: &Path, layout: &Layout) -> Result<()> {
    let (mut header, mut end) = (Map::new(), 0);
    for (key, shape) in layout {
        let begin = end;
        end += 4 * shape.iter().product::<usize>();
        header.insert(key.clone(), json!({ "dtype": "F32", "shape": shape, "data_offsets": [begin, end] }));
    }
    let header = serde_json::to_vec(&header)?;
    let mut file = File::create(path)?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    file.set_len((8 + header.len() + end) as u64)?;
    Ok(())
}

#[test]
fn other_spellings_in_circulation_load() -> Result<()> {
    let folder = tempfile::tempdir()?;
    each("alternatives", |name, entries| {
        let (store, options) = (shapes_of(name)?, zoo::find(name)?.load_options());
        for entry in entries.as_array().context("entries")? {
            let source = entry["source"].as_str().context("source")?;
            let path = folder.path().join("hollow.safetensors");
            write_hollow(&path, &layout(&entry["keys"])?)?;
            let report = check(&store, &Weights::open(&path)?, &options).with_context(|| source.to_string())?;
            ensure!(report.is_exact(), "{source}: {report}");
            ensure!(report.layout == entry["layout"].as_str(), "{source} is taken for {:?}", report.layout);
            if !entry["input"].is_null() {
                let got = zoo::find(name)?.preprocess_of(report.layout);
                ensure!(same(&got, &entry["input"])?, "{source} wants {}, not {got:?}", entry["input"]);
            }
        }
        Ok(())
    })
}

/// Whether an image is the one that the file describes.
fn same(got: &Preprocess, want: &Value) -> Result<bool> {
    type Described = (usize, [f64; 3], [f64; 3], String, f64, bool);
    let (size, mean, std, interpolation, crop, squash) = serde_json::from_value::<Described>(want.clone())?;
    let interpolation = if interpolation == "bicubic" { Interpolation::Bicubic } else { Interpolation::Bilinear };
    Ok(*got == Preprocess { size, mean, std, interpolation, crop, squash, channel_order: ChannelOrder::Rgb })
}

#[test]
fn the_networks_want_the_images_that_the_reference_s_weights_want() -> Result<()> {
    each("inputs", |name, want| {
        let got = zoo::find(name)?.preprocess;
        ensure!(same(&got, want)?, "wants {want}, not {got:?}");
        Ok(())
    })
}

/// The zoo's networks for other images read the same layouts, and want their own images whatever layout a file has.
#[test]
fn a_layout_changes_no_image_of_a_network_for_cifar() {
    for model in zoo::all().filter(|model| model.preprocess == Preprocess::CIFAR10) {
        for layout in model.layouts {
            assert_eq!(model.preprocess_of(Some(layout.name)), Preprocess::CIFAR10, "{} {}", model.name, layout.name);
        }
    }
}
