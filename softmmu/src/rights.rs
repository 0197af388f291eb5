//! What may be done with a page.

use crate::fault::AccessKind;
use core::ops::BitAnd;

/// The kinds of access that something allows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Rights {
    /// Loads.
    pub load: bool,
    /// Stores.
    pub store: bool,
    /// Fetches.
    pub fetch: bool,
}

impl Rights {
    /// Anything goes.
    pub const ALL: Rights = Rights { load: true, store: true, fetch: true };
    /// Nothing does.
    pub const NONE: Rights = Rights { load: false, store: false, fetch: false };

    /// Is this kind among them?
    #[inline]
    pub const fn has(self, kind: AccessKind) -> bool {
        match kind {
            AccessKind::Load => self.load,
            AccessKind::Store => self.store,
            AccessKind::Fetch => self.fetch,
        }
    }
}

impl BitAnd for Rights {
    type Output = Rights;

    fn bitand(self, other: Rights) -> Rights {
        Rights { load: self.load && other.load, store: self.store && other.store, fetch: self.fetch && other.fetch }
    }
}
