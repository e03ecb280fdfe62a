use super::*;
use crate::metadata::carried;
use std::collections::BTreeMap;
use std::thread;
use zoo_core::weights::Weights;

/// A network in a store of its own, random.
fn random(model: &ModelInfo, num_classes: usize) -> VarStore {
    let store = VarStore::new(0, DType::F32, &Device::Cpu);
    model.build(&ModelOptions { num_classes: Some(num_classes), ..ModelOptions::default() }, store.root()).unwrap();
    store
}

/// timm's file says nothing of norms: a network with others would compute something else there.
#[test]
fn a_network_with_other_norms_is_not_written_for_timm() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.safetensors");
    let model = zoo::find("resnet18").unwrap();
    let store = random(model, 2);
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
        let trained = Options::new().model(model).open(&path).unwrap();
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
    let model = zoo::find("mlp").unwrap();
    let store = random(model, 3);
    let message = |claims: &[(&str, &str)]| {
        let metadata = claims.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
        zoo_core::weights::save_safetensors(&store, &path, &metadata).unwrap();
        let opened = Options::new().model(model).open(&path);
        opened.map(|trained| trained.num_classes()).map_err(|error| error.to_string())
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
    let opened = Options::new().model(model).open(&path).unwrap();
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
    let store = random(model, 3);
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
        let trained = Options::new().model(model).open(&path).unwrap();
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
    let store = random(model, 3);
    zoo_core::weights::save_safetensors(&store, &path, &BTreeMap::new()).unwrap();
    let config = |text: &str| std::fs::write(folder.path().join("config.json"), text).unwrap();
    let open = |preprocess: PreprocessParts| Options { preprocess, ..Options::new().model(model) }.open(&path);
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
    let batch = larger.batch(&[vec![128; 3 * 384 * 384]]).unwrap();
    let sum: f64 = larger.predict(&batch).unwrap()[0].probabilities().iter().sum();
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
        let error = open(parts).err().unwrap().to_string();
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
    let error = Options::new().model(model).open(&path).err().unwrap().to_string();
    assert!(error.contains("does not fit the network"), "{error}");
    let trained = Options::new().model(model).in_chans(1).open(&path).unwrap();
    // A colour, and the grey that it is.
    let image = |colour: [u8; 3]| colour.iter().flat_map(|&value| [value; 1024]).collect::<Vec<u8>>();
    let batch = trained.batch(&[image([255, 0, 0]), image([76; 3]), image([200; 3])]).unwrap();
    let seen: Vec<Vec<f64>> = trained.predict(&batch).unwrap().iter().map(|p| p.probabilities().to_vec()).collect();
    assert!(seen[0] == seen[1] && seen[0] != seen[2], "{seen:?}");
}

/// A classifier of three classes and a picture for it, as every form that is taken, with the file's folder.
fn with_picture() -> (tempfile::TempDir, ImageClassifier, image::RgbImage) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.safetensors");
    let classes = Some(["a", "b", "c"].map(str::to_owned).to_vec());
    let metadata = Metadata { model: Some("cifar_resnet20".into()), classes, ..Metadata::default() };
    let store = random(zoo::find("cifar_resnet20").unwrap(), 3);
    zoo_core::weights::save_safetensors(&store, &path, &metadata.to_map().unwrap()).unwrap();
    let picture =
        image::RgbImage::from_fn(50, 40, |x, y| image::Rgb([(5 * x) as u8, (6 * y) as u8, (x * y % 251) as u8]));
    picture.save(folder.path().join("picture.png")).unwrap();
    (folder, ImageClassifier::open(path).unwrap(), picture)
}

#[test]
fn a_picture_is_the_same_in_whatever_form_it_comes() {
    let (folder, classifier, image) = with_picture();
    let path = folder.path().join("picture.png");
    let bytes = std::fs::read(&path).unwrap();
    let want = classifier.classify(&path).unwrap();
    let same = |prediction: Prediction| assert_eq!(prediction.probabilities(), want.probabilities());
    same(classifier.classify(path.to_str().unwrap()).unwrap());
    same(classifier.classify(&bytes).unwrap());
    same(classifier.classify(&Picture::from(&image)).unwrap());
    same(classifier.classify(&Picture::from(&image::DynamicImage::from(image.clone()))).unwrap());
    let pixels = Tensor::from_slice(image.as_raw(), (40, 50, 3), &Device::Cpu).unwrap().permute((2, 0, 1)).unwrap();
    same(classifier.classify(&pixels).unwrap());
    let prepared = classifier.prepare(&path).unwrap();
    same(classifier.classify(&prepared.squeeze(0).unwrap()).unwrap());
    same(classifier.predict(&prepared).unwrap().remove(0));

    let names: Vec<_> = want.top(3).into_iter().map(|class| class.name.unwrap()).collect();
    assert!(["a", "b", "c"].iter().all(|name| names.contains(name)), "{names:?}");
    // Several at once give what each alone gives, to the rounding of sums.
    let inputs = [Input::from(&path), Input::from(&pixels), Input::from(&bytes)];
    for prediction in classifier.classify_batch(inputs).unwrap() {
        let pairs = prediction.probabilities().iter().zip(want.probabilities());
        assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-6));
    }
    assert_eq!(classifier.classify_batch(Vec::<&Path>::new()).unwrap().len(), 0);
    let vectors = classifier.embed_batch([&path, &path]).unwrap();
    assert_eq!((vectors.dims(), classifier.embed(&path).unwrap().len()), (&[2, 64][..], 64));
}

#[test]
fn an_error_says_whose_fault_it_is() {
    let (folder, classifier, _) = with_picture();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("text.jpg"), "no picture").unwrap();
    let error = |input: Input| classifier.classify(input).unwrap_err();
    assert!(matches!(error(Input::from(&path("text.jpg"))), Error::Picture { .. }));
    assert!(matches!(error(Input::from(&path("none.jpg"))), Error::Io { .. }));
    assert!(matches!(error(Input::Bytes(&[])), Error::Picture { .. }));
    let small = Tensor::zeros((3, 31, 32), DType::F32, &Device::Cpu).unwrap();
    let text = error(Input::from(&small)).to_string();
    assert_eq!(text, "an image of [3, 32, 32] is expected, not of [3, 31, 32]");
    let grey = Tensor::zeros((1, 40, 40), DType::U8, &Device::Cpu).unwrap();
    assert!(error(Input::from(&grey)).to_string().contains("(3, height, width)"));
    let nan = Tensor::full(f32::NAN, (3, 32, 32), &Device::Cpu).unwrap();
    assert!(error(Input::from(&nan)).to_string().contains("not finite"));
    let bomb = Options::new().limits(Limits { pixels: 100 }).open(path("net.safetensors")).unwrap();
    assert!(bomb.classify(&path("picture.png")).unwrap_err().to_string().contains("more than 100 are not decoded"));

    let open = |source: &Path| ImageClassifier::open(source).err().unwrap();
    assert!(matches!(open(&path("text.jpg")), Error::Candle(_)));
    assert!(matches!(open(folder.path()), Error::Weights { .. }), "{}", open(folder.path()));
    assert!(matches!(open("default".as_ref()), Error::Name(_)));
    assert!(matches!(ImageClassifier::pretrained("resnet1"), Err(Error::Name(_))));
    assert!(matches!(ImageClassifier::pretrained("cifar_plain20"), Err(Error::Name(_))));
    let unnamed = path("unnamed.safetensors");
    let store = random(zoo::find("cifar_resnet20").unwrap(), 3);
    zoo_core::weights::save_safetensors(&store, &unnamed, &BTreeMap::new()).unwrap();
    assert!(
        open(&unnamed).to_string().ends_with("it does not say which network it holds: name it with `Options::model`")
    );
}

/// As a web service asks: many threads, one classifier, each its own picture.
#[test]
fn threads_share_one_classifier() {
    let (_folder, classifier, image) = with_picture();
    let pictures: Vec<Picture> = (0..8).map(|i| Picture::from(&image::imageops::huerotate(&image, 40 * i))).collect();
    let want: Vec<Vec<f64>> =
        pictures.iter().map(|picture| classifier.classify(picture).unwrap().probabilities().to_vec()).collect();
    assert!(want[0] != want[1]);
    let run = |picture: &Picture| -> Vec<Vec<f64>> {
        (0..10).map(|_| classifier.classify(picture).unwrap().probabilities().to_vec()).collect()
    };
    let found: Vec<Vec<Vec<f64>>> = thread::scope(|scope| {
        let threads: Vec<_> = pictures.iter().map(|picture| scope.spawn(|| run(picture))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (rows, want) in found.iter().zip(&want) {
        assert!(rows.iter().all(|row| row == want));
    }
}

#[test]
fn maps_of_the_stages_are_as_was_said_beforehand() {
    let (folder, classifier, _) = with_picture();
    let info = classifier.feature_info().unwrap();
    let said: Vec<_> = info.iter().map(|stage| (stage.name.as_str(), stage.channels, stage.stride)).collect();
    assert_eq!(said, [("layer1", 16, 1), ("layer2", 32, 2), ("layer3", 64, 4)]);
    let maps = classifier.feature_maps(&folder.path().join("picture.png")).unwrap();
    for (stage, (name, map)) in info.iter().zip(&maps) {
        assert_eq!((&stage.name, &map.dims()[1..]), (name, &stage.shape[..]));
    }
    assert_eq!(maps.len(), info.len());
}
