use super::*;
use crate::checkpoint::Checkpoints;
use crate::data::{Dataset, Synthetic};
use crate::recipe::{self, Recipe};
use crate::trainer::{Job, train};
use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

/// What `cifar_resnet20`, trained for an epoch under a recipe, leaves in a folder; its test loss.
fn run(recipe: &str, overrides: &recipe::Overrides, data: &Dataset, folder: &Path) -> f64 {
    let recipe = Recipe::named(recipe).unwrap().with(overrides).unwrap();
    let job = Job::new(zoo::find("cifar_resnet20").unwrap(), recipe, 1, Device::Cpu);
    let outcome = train(&job, data, folder, &Checkpoints::default(), &AtomicBool::new(false)).unwrap();
    outcome.epochs.last().unwrap().test_loss
}

fn loss(trained: &Trained, data: &Dataset) -> f64 {
    let images: Vec<Vec<u8>> = (0..data.test.len()).map(|index| data.test.image(index).to_vec()).collect();
    let probabilities = trained.probabilities(&images).unwrap();
    let own = probabilities.iter().zip(data.test.labels()).map(|(row, &label)| -row[label as usize].ln());
    own.sum::<f64>() / images.len() as f64
}

#[test]
fn a_file_brings_all_that_its_recipe_changed() {
    let data = Synthetic { train: 64, test: 20, seed: 3 }.generate();
    let once = recipe::Overrides { epochs: Some(1), batch: Some(16), ..recipe::Overrides::NONE };
    for (recipe, overrides) in [
        ("resnet-paper", once),
        ("modern-200", recipe::Overrides { bn_eps: Some(0.1), ..once }),
        ("modern-200", recipe::Overrides { batch_norm: Some(false), lr: Some(1e-4), ..once }),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let expected = run(recipe, &overrides, &data, folder.path());
        let model = zoo::find("cifar_resnet20").unwrap();
        let file = folder.path().join(WEIGHTS_FILE);
        let trained = Trained::open(model, &file, &Overrides::default(), &Device::Cpu).unwrap();
        assert_eq!((trained.num_classes(), trained.classes()), (10, Some(&data.classes[..])));
        let found = loss(&trained, &data);
        assert!((found - expected).abs() < 1e-5 * expected, "{recipe}: {found}, {expected}");

        // It is the file's word that makes it so.
        let overrides = Overrides { normalize: Some(Normalize::HALF), ..Overrides::default() };
        let other = loss(&Trained::open(model, &file, &overrides, &Device::Cpu).unwrap(), &data);
        assert!((other - expected).abs() > 1e-3 * expected, "{recipe}: {other}, {expected}");
    }
}

/// timm's file says nothing of norms: a network with others would compute something else there.
#[test]
fn a_network_with_other_norms_is_not_written_for_timm() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.safetensors");
    let model = zoo::find("resnet18").unwrap();
    let store = VarStore::new(0, DType::F32, &Device::Cpu);
    model.build(&ModelOptions { num_classes: Some(2), ..ModelOptions::default() }, store.root()).unwrap();
    let save = |norms: &str| {
        let claims = [
            ("model", "resnet18"),
            ("image_size", "32"),
            ("classes", r#"["a", "b"]"#),
            ("normalize", r#"{"channels": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}"#),
            ("batch_norm", norms),
        ];
        let metadata = claims.map(|(key, value)| (format!("zoo.{key}"), value.to_owned()));
        zoo_core::weights::save_safetensors(&store, &path, &metadata.into()).unwrap();
        let trained = Trained::open(model, &path, &Overrides::default(), &Device::Cpu).unwrap();
        trained.save_for_timm(&folder.path().join("out"), DType::F32, true).map_err(|error| error.to_string())
    };
    assert!(save(r#"{"momentum": 0.2, "eps": null, "off": false}"#).is_ok());
    for norms in [r#"{"momentum": null, "eps": 0.1, "off": false}"#, r#"{"momentum": null, "eps": null, "off": true}"#]
    {
        assert!(save(norms).unwrap_err().contains("export it to ONNX"));
    }
}

#[test]
fn what_a_file_claims_is_checked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.safetensors");
    let store = VarStore::new(0, DType::F32, &Device::Cpu);
    let model = zoo::find("mlp").unwrap();
    model.build(&ModelOptions { num_classes: Some(3), ..ModelOptions::default() }, store.root()).unwrap();
    let message = |claims: &[(&str, &str)]| {
        let metadata = claims.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
        zoo_core::weights::save_safetensors(&store, &path, &metadata).unwrap();
        let opened = Trained::open(model, &path, &Overrides::default(), &Device::Cpu);
        opened.map(|trained| trained.num_classes()).map_err(|error| format!("{error:#}"))
    };
    assert_eq!(message(&[]), Ok(3));
    assert_eq!(message(&[("zoo.classes", r#"["a","b","c"]"#)]), Ok(3));
    for (claims, complaint) in [
        (&[("zoo.classes", r#"["a","b"]"#)][..], "2 names for the network's 3 classes"),
        (&[("zoo.classes", "a, b, c")], "its metadata `zoo.classes` is not what zoo train writes"),
        (&[("zoo.image_size", "0")], "images of up to 32x32, not 0x0"),
        (&[("zoo.image_size", "1000000")], "images of up to 32x32, not 1000000x1000000"),
        (&[("zoo.in_chans", "2")], "3 channels, or 1 where they are grey, not 2"),
        (&[("zoo.normalize", r#""pixel_mean""#)], "does not hold the mean image"),
        (&[("zoo.normalize", r#""pixel_mean""#), ("zoo.pixel_mean", "[0.5]")], "a mean image of 1 values"),
        (&[("zoo.model", "cifar_plain20")], "holds the weights of cifar_plain20, not of mlp"),
    ] {
        let error = message(claims).unwrap_err();
        assert!(error.contains(complaint) && error.contains("net.safetensors"), "{error}");
    }

    // Words of others that happen to be the zoo's, alone and together.
    let foreign = [
        ("model", "resnet18"),
        ("classes", "cat,dog"),
        ("image_size", "224x224"),
        ("normalize", "imagenet"),
        ("format", "pt"),
    ];
    assert_eq!(message(&foreign), Ok(3));
    foreign.iter().for_each(|&claim| assert_eq!(message(&[claim]), Ok(3), "{claim:?}"));
    assert_eq!(message(&[("image_size", "7"), ("classes", r#"["a"]"#)]), Ok(3));

    // Files from before the prefix.
    let channels = r#"{"channels":{"mean":[0.5,0.5,0.5],"std":[0.5,0.5,0.5]}}"#;
    let bare = |name, classes| [("model", name), ("classes", classes), ("image_size", "32"), ("normalize", channels)];
    assert_eq!(message(&bare("mlp", r#"["a","b","c"]"#)), Ok(3));
    let opened = Trained::open(model, &path, &Overrides::default(), &Device::Cpu).unwrap();
    assert_eq!((opened.normalize(), opened.classes().unwrap().len()), (Normalize::HALF, 3));
    let carried = carried(&Weights::open(&path).unwrap(), None).unwrap();
    assert_eq!(carried.keys().collect::<Vec<_>>(), ["zoo.classes", "zoo.image_size", "zoo.model", "zoo.normalize"]);
    assert!(message(&bare("cifar_plain20", r#"["a","b","c"]"#)).unwrap_err().contains("not of mlp"));
}

#[test]
fn the_names_in_a_file_decide_how_images_are_seen() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.safetensors");
    let model = zoo::find("vit_tiny_patch16_224").unwrap();
    let store = VarStore::new(0, DType::F32, &Device::Cpu);
    model.build(&ModelOptions { num_classes: Some(3), ..ModelOptions::default() }, store.root()).unwrap();
    // As torchvision calls the same tensors.
    let renamed = |key: &str| {
        let key = key.replace("patch_embed.proj", "conv_proj").replace("cls_token", "class_token");
        let key = key.replace("pos_embed", "encoder.pos_embedding").replace("attn.qkv.", "self_attention.in_proj_");
        let key =
            key.replace("attn.proj", "self_attention.out_proj").replace("mlp.fc1", "mlp.0").replace("mlp.fc2", "mlp.3");
        let key =
            key.replace("norm1", "ln_1").replace("norm2", "ln_2").replace("blocks.", "encoder.layers.encoder_layer_");
        let key = key.strip_prefix("norm.").map_or(key.clone(), |rest| format!("encoder.ln.{rest}"));
        key.strip_prefix("head.").map_or(key.clone(), |rest| format!("heads.head.{rest}"))
    };
    let opened = |rename: &dyn Fn(&str) -> String, metadata: &[(&str, &str)]| {
        let tensors: Vec<_> = store.slots().into_iter().map(|slot| (rename(&slot.key), slot.var.unwrap())).collect();
        let tensors = tensors.iter().map(|(key, var)| (key.as_str(), var.as_tensor()));
        let metadata = metadata.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
        zoo_core::weights::save_tensors(tensors, &path, &metadata).unwrap();
        let trained = Trained::open(model, &path, &Overrides::default(), &Device::Cpu).unwrap();
        (trained.framing(), trained.normalize(), trained.assumed().map(str::to_owned), trained.notes().len())
    };
    let (framing, normalize, assumed, notes) = opened(&renamed, &[]);
    assert_eq!((framing, normalize), (Framing::of(&zoo_core::Preprocess::IMAGENET), Normalize::IMAGENET));
    assert_eq!((assumed.as_deref(), notes), (Some("assumed, since the file has torchvision's names"), 0));
    let (framing, normalize, assumed, _) = opened(&str::to_owned, &[]);
    assert_eq!((framing, normalize), (Framing::of(&model.preprocess), Normalize::HALF));
    assert_eq!(assumed.as_deref(), Some("assumed, since the file does not say"));
    // What the file says of itself comes first.
    let cifar = serde_json::to_string(&Normalize::CIFAR10).unwrap();
    let (_, normalize, assumed, _) = opened(&renamed, &[("zoo.normalize", &cifar)]);
    assert_eq!((normalize, assumed), (Normalize::CIFAR10, None));
}

#[test]
fn a_configuration_beside_a_file_decides_and_the_caller_over_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.safetensors");
    let model = zoo::find("vit_tiny_patch16_224").unwrap();
    let store = VarStore::new(0, DType::F32, &Device::Cpu);
    model.build(&ModelOptions { num_classes: Some(3), ..ModelOptions::default() }, store.root()).unwrap();
    zoo_core::weights::save_safetensors(&store, &path, &BTreeMap::new()).unwrap();
    let config = |text: &str| std::fs::write(folder.path().join("config.json"), text).unwrap();
    let open = |preprocess: PreprocessParts| {
        let overrides = Overrides { preprocess, ..Overrides::default() };
        Trained::open(model, &path, &overrides, &Device::Cpu)
    };
    config(
        r#"{"label_names": ["a", "b", "c"], "pretrained_cfg": {"input_size": [3, 224, 224], "crop_pct": 0.95,
            "interpolation": "bilinear", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}}"#,
    );
    let trained = open(PreprocessParts::default()).unwrap();
    assert_eq!(trained.preprocess(), Preprocess::IMAGENET.crop(0.95));
    assert_eq!((trained.assumed(), trained.stated_by(), trained.notes()), (None, &["config.json"][..], &[][..]));
    assert_eq!(trained.class_name(1), "b");

    // A larger image takes positions that are resampled, and says so.
    let parts =
        PreprocessParts { size: Some(384), crop: Some(1.0), mean: Some([0.0; 3]), ..PreprocessParts::default() };
    let larger = open(parts).unwrap();
    assert_eq!(larger.preprocess(), Preprocess::IMAGENET.size(384).crop(1.0).mean([0.0; 3]));
    assert_eq!(larger.notes(), ["`pos_embed` adapted: 14x14 positions resampled to 24x24"]);
    let sum: f64 = larger.probabilities(&[vec![128; 3 * 384 * 384]]).unwrap()[0].iter().sum();
    assert!((sum - 1.0).abs() < 1e-6);

    // The file says more of itself than what lies beside it.
    let metadata = BTreeMap::from([("zoo.classes".to_owned(), r#"["x","y","z"]"#.to_owned())]);
    zoo_core::weights::save_safetensors(&store, &path, &metadata).unwrap();
    assert_eq!(open(PreprocessParts::default()).unwrap().class_name(1), "y");
    config(r#"{"id2label": {"0": "a", "1": "b"}}"#);
    zoo_core::weights::save_safetensors(&store, &path, &BTreeMap::new()).unwrap();
    let two = open(PreprocessParts::default()).unwrap();
    assert_eq!(two.notes(), ["the 2 names beside it are not those of its 3 classes"]);
    for (parts, complaint) in [
        (PreprocessParts { size: Some(230), ..PreprocessParts::default() }, "do not divide an image of 230x230"),
        (PreprocessParts { size: Some(16_000), ..PreprocessParts::default() }, "pixels a side, not 16000"),
        (PreprocessParts { crop: Some(0.0), ..PreprocessParts::default() }, "a crop of 0.1 to 1, not 0"),
    ] {
        let error = format!("{:#}", open(parts).err().unwrap());
        assert!(error.contains(complaint), "{error}");
    }
}

#[test]
fn a_network_for_grey_images_sees_colour_as_grey() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.safetensors");
    let model = zoo::find("mlp").unwrap();
    let store = VarStore::new(0, DType::F32, &Device::Cpu);
    model.build(&ModelOptions { in_chans: Some(1), ..ModelOptions::default() }, store.root()).unwrap();
    zoo_core::weights::save_safetensors(&store, &path, &BTreeMap::new()).unwrap();
    let error = Trained::open(model, &path, &Overrides::default(), &Device::Cpu).err().unwrap().to_string();
    assert!(error.contains("does not fit the network"), "{error}");
    let grey = Overrides { in_chans: Some(1), ..Overrides::default() };
    let trained = Trained::open(model, &path, &grey, &Device::Cpu).unwrap();
    // A colour, and the grey that it is.
    let image = |colour: [u8; 3]| colour.iter().flat_map(|&value| [value; 1024]).collect::<Vec<u8>>();
    let seen = trained.probabilities(&[image([255, 0, 0]), image([76; 3]), image([200; 3])]).unwrap();
    assert!(seen[0] == seen[1] && seen[0] != seen[2], "{seen:?}");
}

#[test]
fn the_most_probable_come_first_and_probabilities_sum_to_one() {
    let probabilities = softmax(&[1.0, 3.0, 3.0, -1000.0]).unwrap();
    assert!((probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-12);
    let classes = |k| Trained::largest(&probabilities, k).into_iter().map(|(class, _)| class).collect::<Vec<_>>();
    assert_eq!((classes(2), classes(9)), (vec![1, 2], vec![1, 2, 0, 3]));
    assert!(softmax(&[0.0, f32::NAN]).is_err() && softmax(&[f32::INFINITY, 0.0]).is_err());
}
