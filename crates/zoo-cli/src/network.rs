//! A network by its name, whether it takes images or sequences.

use anyhow::{Result, ensure};
use zoo::{ModelOptions, VarStore};
use zoo_core::weights::LoadOptions;

/// The tensors that a network wants from a checkpoint, by shape.
pub struct Shapes {
    /// A store of shapes only.
    pub store: VarStore,
    /// How the network reads files.
    pub options: LoadOptions<'static>,
    /// The key of the classifier; a sequence model has none.
    pub classifier: Option<String>,
}

impl Shapes {
    /// Of the network called `name`.
    ///
    /// # Errors
    /// No such network, or options that it cannot follow.
    pub fn of(name: &str, classes: Option<usize>, in_chans: Option<usize>) -> Result<Self> {
        let store = VarStore::shapes_only();
        if let Some(info) = zoo::sequence_models().find(|info| info.name == name) {
            no_image_options(name, classes.is_some() || in_chans.is_some())?;
            (info.builder)(store.root())?;
            let options = LoadOptions { renames: info.renames, ..LoadOptions::default() };
            return Ok(Self { store, options, classifier: None });
        }
        let info = zoo::find(name)?;
        let options = ModelOptions { num_classes: classes, in_chans, ..ModelOptions::default() };
        let classifier = info.build(&options, store.root())?.classifier().place().to_string();
        Ok(Self { store, options: info.load_options(), classifier: Some(classifier) })
    }
}

/// Refuses options that make no sense for a network on sequences.
pub fn no_image_options(name: &str, given: bool) -> Result<()> {
    ensure!(!given, "{name} maps sequences: it has no image and no classes to choose");
    Ok(())
}
