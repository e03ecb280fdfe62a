//! What of a network is trained, and what is frozen.

use std::fmt;
use std::sync::Arc;

pub(super) type IsFrozen = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// Which keys are not trained.
#[derive(Clone, Default)]
pub(super) struct Frozen(pub Option<IsFrozen>);

impl fmt::Debug for Frozen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "some keys" } else { "no key" })
    }
}

/// What of some layers is trained.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Training {
    /// Some of it is frozen.
    pub frozen: bool,
    /// Some of it is trained.
    pub trained: bool,
}

impl Training {
    /// Of these layers and others.
    pub fn and(self, other: Self) -> Self {
        Self { frozen: self.frozen || other.frozen, trained: self.trained || other.trained }
    }

    /// Whether nothing is trained, of what could be.
    pub fn is_frozen(self) -> bool {
        self.frozen && !self.trained
    }

    /// Whether one part is trained and another is not.
    pub fn is_mixed(self) -> bool {
        self.frozen && self.trained
    }
}
