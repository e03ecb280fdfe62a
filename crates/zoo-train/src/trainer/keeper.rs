//! Which epoch's weights a run keeps, and in which file.

use super::run::Run;
use crate::checkpoint::Unwritable;
use crate::recipe::Keep;
use crate::record::EpochMetrics;
use anyhow::{Result, ensure};
use std::path::Path;
use zoo_core::weights::{LoadOptions, Weights, load, save_safetensors};
use zoo_image::{Kept, Metadata, WEIGHTS_FILE};

/// File of a run's folder with the weights after its last epoch, where the best epoch's are the run's.
pub const LAST_FILE: &str = "last.safetensors";
/// File of a run's folder with the weights as the optimizer left them, where the run's are averages.
pub const RAW_FILE: &str = "raw.safetensors";

/// The best of some epochs by accuracy: the first of equals, since a later one must do better to be called the best. One whose
/// loss is no number is none.
pub(super) fn best(epochs: &[EpochMetrics]) -> Option<&EpochMetrics> {
    epochs
        .iter()
        .filter(|epoch| epoch.test_loss.is_finite())
        .reduce(|best, epoch| if epoch.test_acc > best.test_acc { epoch } else { best })
}

/// The epoch whose weights a run's file holds after `epochs`.
pub(super) fn kept(epochs: &[EpochMetrics], keep: Keep, measured_on: &str) -> Option<Kept> {
    let epoch = match keep {
        Keep::Last => epochs.last(),
        Keep::Best | Keep::Both => best(epochs),
    }?;
    let (accuracy, loss) = (epoch.test_acc, epoch.test_loss);
    Some(Kept { epoch: epoch.epoch, of: epochs.len(), accuracy, loss, measured_on: measured_on.into() })
}

impl Run<'_> {
    /// The epoch whose weights the run's file holds.
    pub fn kept(&self) -> Option<Kept> {
        kept(&self.at.epochs, self.recipe.keep, self.measured_on)
    }

    /// Whether as many epochs have passed without a better one as the recipe has patience for.
    pub fn is_patience_spent(&self) -> bool {
        let (Some(patience), Some(best)) = (self.recipe.patience, best(&self.at.epochs)) else { return false };
        self.at.epochs.len() - best.epoch >= patience
    }

    /// Writes the weights that the network has now into `file` of `folder`.
    pub fn save(&self, folder: &Path, file: &str, kept: Option<Kept>) -> Result<()> {
        let mut metadata = self.metadata.clone();
        metadata.kept = kept;
        save_safetensors(self.store, folder.join(file), &metadata.to_map()?)
            .map_err(|error| anyhow::Error::from(error).context(Unwritable(folder.into())))
    }

    /// Keeps the weights of the epoch that has just been measured, if it is the best so far.
    pub fn keep_if_best(&self, folder: &Path) -> Result<()> {
        let kept = self.kept().filter(|kept| self.recipe.keep != Keep::Last && kept.epoch == self.at.epochs.len());
        match kept {
            Some(kept) => self.save(folder, WEIGHTS_FILE, Some(kept)),
            None => Ok(()),
        }
    }

    /// Makes sure that the best epoch's weights are still there when a run goes on.
    pub fn ensure_best_is_there(&self, folder: &Path) -> Result<()> {
        let Some(kept) = self.kept().filter(|_| self.recipe.keep != Keep::Last) else { return Ok(()) };
        let path = folder.join(WEIGHTS_FILE);
        // A later epoch's weights may be there already: the run was cut off before it could say so, and comes to the same
        // ones again.
        let found = Weights::open(&path).ok().and_then(|weights| Metadata::of_weights(&weights).ok()?.kept);
        ensure!(
            found.is_some_and(|found| found.epoch >= kept.epoch),
            "{} no longer holds the weights of epoch {}, the best so far: --force trains the run anew",
            path.display(),
            kept.epoch
        );
        Ok(())
    }

    /// Leaves the run's files of weights at its end, and the network with the weights that are kept. `is_usable`: those that
    /// it has now are worth keeping.
    pub fn keep(&mut self, folder: &Path, is_usable: bool) -> Result<()> {
        let kept = self.kept();
        // The best epoch's were written when it was measured.
        let is_written = self.recipe.keep != Keep::Last && kept.is_some();
        if is_usable {
            if self.average.as_ref().is_some_and(|average| average.updates() > 0) {
                self.save(folder, RAW_FILE, None)?;
                self.swap_average()?;
            }
            if self.recipe.keep == Keep::Both {
                self.save(folder, LAST_FILE, None)?;
            }
            if !is_written {
                self.save(folder, WEIGHTS_FILE, kept)?;
            }
        }
        if is_written {
            load(self.store, &Weights::open(folder.join(WEIGHTS_FILE))?, &LoadOptions::default())?;
        }
        Ok(())
    }
}
