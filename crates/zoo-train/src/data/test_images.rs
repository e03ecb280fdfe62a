//! Test images alone, to measure a trained network without loading its training images.

use super::left_out::LeftOut;
use super::{DataError, Dataset, Split, cifar10, folder, idx};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use zoo_image::{Framing, Limits};

/// Images of a folder that are in memory at a time.
const PART: usize = 1024;

/// Test images with their labels. Those of a folder are read part by part, so that there may be more than fit into
/// memory.
///
/// ```no_run
/// use zoo_image::{Framing, Limits};
/// use zoo_train::data::TestImages;
/// let framing = Framing::of(&zoo::find("resnet50")?.preprocess);
/// let images = TestImages::open("imagenet".as_ref(), framing, None, Limits::default())?;
/// println!("{} images of {} classes", images.len(), images.classes().len());
/// # Ok::<(), anyhow::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct TestImages {
    images: Images,
    classes: Vec<String>,
    /// Grows while the images are read.
    left_out: Arc<Mutex<LeftOut>>,
}

#[derive(Debug, Clone)]
enum Images {
    InMemory(Arc<Split>),
    Files(Vec<folder::File>, Framing, Limits),
}

impl TestImages {
    /// The side of the images in `dir`, where their files fix it: 32 for CIFAR-10's, 28 for MNIST's.
    pub fn side(dir: &Path) -> Option<usize> {
        cifar10::is_in(dir).then_some(cifar10::SHAPE[1]).or_else(|| idx::side(dir))
    }

    /// The test images of what lies in `dir`: CIFAR-10's binary files, MNIST's, or an image folder (`val/CLASS/*` or
    /// `test/CLASS/*`), each photograph seen through `framing`.
    ///
    /// Labels follow the order of `known`, the names of the network's outputs. Without it they follow the data's own
    /// order: CIFAR-10's, or that of the folders' names (those under `train`, if it is there).
    ///
    /// # Errors
    /// What [`Dataset::open`] refuses; a class that is not among the `known` ones.
    pub fn open(dir: &Path, framing: Framing, known: Option<&[String]>, limits: Limits) -> Result<Self, DataError> {
        Self::open_split(dir, None, framing, known, limits)
    }

    /// As [`open`](Self::open), of the folder's part called `split`: `val`, `test` or `train`.
    ///
    /// # Errors
    /// As [`open`](Self::open); a folder without that part.
    pub fn open_split(
        dir: &Path,
        split: Option<&str>,
        framing: Framing,
        known: Option<&[String]>,
        limits: Limits,
    ) -> Result<Self, DataError> {
        if folder::is_in(dir) && !cifar10::is_in(dir) && !idx::is_in(dir) {
            let (files, classes, left_out) = folder::test_files(dir, split, known)?;
            let images = Images::Files(files, framing, limits);
            return Ok(Self { images, classes, left_out: Arc::new(left_out.into()) });
        }
        let Dataset { test, classes, left_out, .. } = Dataset::open(dir, framing.size)?;
        if let Some(known) = known.filter(|known| *known != classes) {
            let (theirs, ours) = (folder::listed(known), folder::listed(&classes));
            let problem = format!("the network tells apart {theirs}; these images are of {ours}");
            return Err(DataError::Layout { path: dir.into(), problem });
        }
        Ok(Self { images: Images::InMemory(test), classes, left_out: Arc::new(left_out.into()) })
    }

    /// Files of the folder that are left out. One that cannot be decoded is added when [`parts`](Self::parts) reaches
    /// it.
    pub fn left_out(&self) -> MutexGuard<'_, LeftOut> {
        // A panic elsewhere does not make the list wrong.
        self.left_out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The names of the classes; the position is the label.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        match &self.images {
            Images::InMemory(split) => split.len(),
            Images::Files(files, ..) => files.len(),
        }
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The images in their order, a part at a time. Those that cannot be decoded are left out.
    pub fn parts(&self) -> impl Iterator<Item = Result<Arc<Split>, DataError>> {
        let (whole, files, framing, limits) = match &self.images {
            Images::InMemory(split) => (Some(split.clone()), &[][..], Framing::whole(1), Limits::default()),
            Images::Files(files, framing, limits) => (None, &files[..], *framing, *limits),
        };
        let read = move |part| folder::read(part, framing, limits, &mut self.left_out()).map(Arc::new);
        whole.map(Ok).into_iter().chain(files.chunks(PART).map(read))
    }
}
