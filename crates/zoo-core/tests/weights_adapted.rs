//! Tensors of a checkpoint for other images than it was trained on: what timm makes of them.

use candle_core::{D, DType, Device, Result, Tensor};
use std::path::Path;
use zoo_core::weights::{self, LoadOptions, Weights, check, load, save_tensors};
use zoo_core::{Init, VarStore};

fn golden() -> Result<Weights> {
    Weights::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/adapted.safetensors"))
}

/// A file that holds `tensor` as `key`, loaded into a network that wants it in another shape.
fn loaded(key: &str, tensor: &Tensor, dims: &[usize], options: &LoadOptions) -> Result<(Tensor, String)> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("net.safetensors");
    save_tensors([(key, tensor)], &file, &Default::default())?;
    let store = VarStore::new(0, DType::F32, &Device::Cpu);
    let (layer, name) = key.split_once('.').map_or(("", key), |(layer, name)| (layer, name));
    let place = if layer.is_empty() { store.root() } else { store.root().pp(layer) };
    let param = place.param(dims, name, Init::ZEROS)?;
    let report = load(&store, &Weights::open(&file)?, options)?;
    Ok((param, report.to_string()))
}

const ADAPT: LoadOptions<'static> =
    LoadOptions { renames: &[], layouts: &[], may_differ: &[], prefix: None, ignore: &[], adapt: true };

fn error(got: &Tensor, want: &Tensor) -> Result<f32> {
    assert_eq!(got.dims(), want.dims());
    (got - want)?.abs()?.flatten_all()?.max(D::Minus1)?.to_scalar()
}

#[test]
fn stems_and_positions_are_timms() -> Result<()> {
    let golden = golden()?;
    let tensor = |key: &str| golden.tensor(key, &Device::Cpu);
    let mut cases = 0;
    for key in golden.keys() {
        let (from, file_key) = match key.split('.').collect::<Vec<_>>()[..] {
            ["stem", _] => ("stem".to_string(), "conv1.weight"),
            ["positions", prefix, _] => (format!("positions.{prefix}"), "pos_embed"),
            _ => continue,
        };
        let want = tensor(key)?;
        let (got, report) = loaded(file_key, &tensor(&from)?, want.dims(), &ADAPT)?;
        let off = error(&got, &want)?;
        assert!(off < 2e-6, "{key}: {off}");
        assert!(report.contains(file_key) && report.contains("adapted"), "{report}");
        cases += 1;
    }
    assert_eq!(cases, 11);
    Ok(())
}

/// Who does not ask for it gets the file's tensors or none, and what has no way to the other shape is refused.
#[test]
fn nothing_is_adapted_unasked_or_by_force() -> Result<()> {
    let golden = golden()?;
    let (stem, positions) = (golden.tensor("stem", &Device::Cpu)?, golden.tensor("positions.1", &Device::Cpu)?);
    let plain = LoadOptions::default();
    assert!(loaded("conv1.weight", &stem, &[4, 1, 3, 2], &plain).is_err());
    for (key, tensor, dims) in [
        ("conv1.weight", &stem, &[5, 1, 3, 2][..]),
        ("conv1.weight", &stem, &[4, 1, 3, 3]),
        ("conv1.weight", &stem.narrow(1, 0, 2)?.contiguous()?, &[4, 1, 3, 2]),
        ("pos_embed", &positions, &[1, 1 + 36, 4]),
        ("pos_embed", &positions, &[1, 36, 3]),
        ("pos_embed", &positions, &[1, 30, 3]),
        ("tokens", &positions, &[1, 1 + 36, 3]),
    ] {
        let error = loaded(key, tensor, dims, &ADAPT).unwrap_err().to_string();
        assert!(error.contains("mis-shaped") && error.contains(key), "{error}");
    }
    // What is said beforehand is what is done.
    let store = VarStore::shapes_only();
    store.root().pp("conv1").param((4, 1, 3, 2), "weight", Init::ZEROS)?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("net.safetensors");
    save_tensors([("conv1.weight", &stem)], &file, &Default::default())?;
    let report = check(&store, &Weights::open(&file)?, &ADAPT)?;
    assert!(report.is_exact());
    assert_eq!(report.adapted, [("conv1.weight".to_string(), "its three channels summed for grey images".to_string())]);
    let (tensors, _) = weights::translate(&store, &Weights::open(&file)?, &ADAPT)?;
    assert_eq!(tensors[0].1.dims(), &[4, 1, 3, 2]);
    Ok(())
}
