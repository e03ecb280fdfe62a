//! A trained network as timm reads it: `model.safetensors`, `config.json` and a model card in one folder, as on the hub.

use crate::ImageClassifier;
use crate::error::{Error, Result};
use crate::place::WEIGHTS_FILE;
use candle_core::{DType, Tensor};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use zoo_core::weights::{save_tensors, write_whole};

/// The files of the folder.
const FILES: [&str; 3] = [WEIGHTS_FILE, "config.json", "README.md"];

impl ImageClassifier {
    /// Writes the network into `folder` so that `timm.create_model("local-dir:FOLDER", pretrained=True)` computes what it
    /// does; the same three files are what a repository of the hub holds. Tensors are stored as `dtype`: F32, F16 or BF16.
    ///
    /// # Errors
    /// A network that timm does not have, a mean image in place of means, norms that a recipe changed; files that are there already, unless
    /// `overwrite`; what the file system refuses.
    pub fn save_for_timm(&self, folder: &Path, dtype: DType, overwrite: bool) -> Result<()> {
        let name = self.name();
        let refused = |why: &str| Err(Error::Export(format!("{name}: {why}")));
        let Some(timm) = self.info.timm else {
            return refused("timm has no network like it: export it to ONNX instead");
        };
        if self.mean_image {
            return refused("a mean image is taken off its images, and timm knows means of colours alone");
        }
        if self.has_other_norms {
            return refused(
                "its BatchNorm layers are not as the network's are, and timm cannot be told: export it to ONNX instead",
            );
        }
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let paths = FILES.map(|file| folder.join(file));
        if let Some(there) = paths.iter().find(|path| path.exists() && !overwrite) {
            let there = there.display();
            return Err(Error::Export(format!("{there} is there already: choose another folder, or --force")));
        }
        let [weights, config, card] = paths;
        let mut tensors = Vec::new();
        for slot in self.store.slots() {
            let Some(var) = slot.var else { return refused(&format!("`{}` has no numbers", slot.key)) };
            tensors.push(((timm.key)(&slot.key), var.as_detached_tensor().to_dtype(dtype)?));
        }
        let named = tensors.iter().map(|(key, tensor): &(String, Tensor)| (key.as_str(), tensor));
        save_tensors(named, &weights, &BTreeMap::from([("format".to_owned(), "pt".to_owned())]))?;
        write(&config, &format!("{:#}\n", self.config_for_timm(timm)))?;
        write(&card, &self.card(timm.architecture))
    }

    /// timm's `config.json`.
    fn config_for_timm(&self, timm: zoo_core::model::Timm) -> Value {
        let preprocess = self.preprocess();
        let [channels, height, width] = self.image_shape();
        // A single channel has the average of the colours' figures, as the network was fed.
        let figures = |values: [f64; 3]| match channels {
            1 => vec![values.iter().sum::<f64>() / 3.0],
            _ => values.to_vec(),
        };
        let mut config = json!({
            "architecture": timm.architecture,
            "num_classes": self.num_classes,
            "num_features": self.net.classifier().in_features(),
            "pretrained_cfg": {
                "tag": "candle_zoo",
                "custom_load": false,
                "input_size": [channels, height, width],
                "fixed_input_size": timm.fixed_size,
                "interpolation": preprocess.interpolation.name(),
                "crop_pct": preprocess.crop,
                "crop_mode": if preprocess.squash { "squash" } else { "center" },
                "mean": figures(preprocess.mean),
                "std": figures(preprocess.std),
                "num_classes": self.num_classes,
                "first_conv": timm.first_conv,
                "classifier": timm.classifier,
            },
        });
        if let Some(names) = self.labels() {
            config["label_names"] = json!(names);
        }
        config
    }

    /// Every class's name, where all have one.
    pub fn labels(&self) -> Option<Vec<&str>> {
        (0..self.num_classes).map(|class| self.label(class)).collect()
    }

    /// The model card of a repository on the hub.
    fn card(&self, architecture: &str) -> String {
        let (name, parameters, classes) = (self.name(), self.store.parameter_count(), self.num_classes);
        let paper = self.info.paper;
        format!(
            "---\ntags:\n- image-classification\n- timm\nlibrary_name: timm\n---\n# {architecture}\n\n\
             An image classifier of {classes} classes, `{name}` of candle-zoo, with {parameters} parameters ({paper}).\n\n\
             Images: {}.\n\n\
             ```python\nimport timm\n\n# From this folder, or with \"hf-hub:YOUR/REPOSITORY\" once it is there.\n\
             model = timm.create_model(\"local-dir:.\", pretrained=True).eval()\n\
             transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)\n```\n",
            self.preprocess()
        )
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    write_whole(path, |file| file.write_all(text.as_bytes())).map_err(Error::io(path))
}
