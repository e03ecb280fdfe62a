//! A network by its name, whether it takes images or sequences, and a checkpoint for it.

use anyhow::{Result, ensure};
use std::path::{Path, PathBuf};
use zoo::{ModelInfo, ModelOptions, VarStore};
use zoo_core::weights::{LoadOptions, Selection, Weights};
use zoo_image::taken;
use zoo_train::progress::{Download, say};

/// The arguments that say what of a checkpoint is wanted.
#[derive(clap::Args)]
pub struct Wanted {
    /// Part of a training state that holds the tensors, where it has several: `state_dict_ema`, `teacher`
    #[arg(long, value_name = "NAME")]
    entry: Option<String>,
    /// What stands in front of the network's keys, where the file holds several networks: `module.encoder_q`
    #[arg(long, value_name = "KEYS")]
    prefix: Option<String>,
    /// Keys of the file that are passed over, such as 'decoder*'. Can be given more than once
    #[arg(long, value_name = "GLOB")]
    ignore: Vec<String>,
}

impl Wanted {
    /// The same as the library takes it.
    pub fn selection(&self) -> Selection {
        Selection { entry: self.entry.clone(), prefix: self.prefix.clone(), ignore: self.ignore.clone() }
    }

    /// Whether keys are chosen.
    pub fn chooses_keys(&self) -> bool {
        self.prefix.is_some() || !self.ignore.is_empty()
    }

    /// Opens the checkpoint, and tells on standard error if it holds other tensors than those that are taken.
    ///
    /// # Errors
    /// A file that is no checkpoint.
    pub fn open(&self, file: &Path, model: Option<&str>) -> Result<Weights> {
        let model = model.and_then(|name| zoo::find(name).ok());
        let weights = self.selection().open(weights_file(file, model)?)?;
        taken(&weights).iter().for_each(|note| say(format_args!("{}: {note}", file.display())));
        Ok(weights)
    }
}

/// The file of weights that `path` means, as [`zoo_image::weights_file`] finds it, with a bar while it is downloaded.
pub fn weights_file(path: &Path, model: Option<&ModelInfo>) -> Result<PathBuf> {
    let mut bar = Download::default();
    Ok(zoo_image::weights_file(path, model, &mut |progress| bar.show(progress.file, progress.done, progress.total))?)
}

/// The tensors that a network wants from a checkpoint, by shape.
pub struct Shapes {
    /// A store of shapes only.
    pub store: VarStore,
    /// How the network reads files.
    pub options: LoadOptions<'static>,
}

impl Shapes {
    /// The tensors of the network called `name`.
    ///
    /// # Errors
    /// No such network, or options that it cannot follow.
    pub fn of(name: &str, classes: Option<usize>, in_chans: Option<usize>) -> Result<Self> {
        let store = VarStore::shapes_only();
        if let Some(info) = zoo::sequence_models().find(|info| info.name == name) {
            no_image_options(name, classes.is_some() || in_chans.is_some())?;
            (info.builder)(store.root())?;
            let options = LoadOptions { renames: info.renames, ..LoadOptions::default() };
            return Ok(Self { store, options });
        }
        let info = zoo::find(name)?;
        let options = ModelOptions { num_classes: classes, in_chans, ..ModelOptions::default() };
        info.build(&options, store.root())?;
        Ok(Self { store, options: info.load_options() })
    }
}

/// Refuses options that make no sense for a network on sequences.
pub fn no_image_options(name: &str, given: bool) -> Result<()> {
    ensure!(!given, "{name} maps sequences: it has no image and no classes to choose");
    Ok(())
}
