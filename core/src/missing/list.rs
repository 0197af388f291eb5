//! The RAM list's side: one flag, and behind it the pages that are missing.

use super::{FaultSource, MissingError, MissingPages, PageSource, SoftwareFaults, WaitToken};
use crate::addr::RamAddr;
use crate::ram::{RamBlock, RamList};
use crate::rcu::{RcuCell, pin};
use crate::sync::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What a RAM list knows of missing pages.
pub(crate) struct MissingDoor {
    /// Is anything missing? Then each read and write must ask. Written by `listen` and at the end.
    on: AtomicBool,
    pages: RcuCell<Option<Arc<MissingPages>>>,
    /// Held to change `pages`.
    change: Mutex<()>,
}

impl Default for MissingDoor {
    fn default() -> Self {
        Self { on: AtomicBool::new(false), pages: RcuCell::new(None), change: Mutex::new(()) }
    }
}

impl MissingDoor {
    /// Release: a thread that reads it set finds the pages, and one that reads it clear their bytes.
    pub(super) fn set(&self, on: bool) {
        self.on.store(on, Ordering::SeqCst);
    }

    /// These are missing no more.
    pub(super) fn clear(&self, gone: &MissingPages) {
        let _change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        if self.pages.load(&pin()).as_deref().is_some_and(|pages| core::ptr::eq(pages, gone)) {
            self.set(false);
            self.pages.replace(None);
        }
    }
}

impl RamList {
    /// The RAM of these blocks is yet to come, all of it: their memory is given back, and reads as zero. Nothing waits for it before
    /// [`MissingPages::listen`]; until then the caller lets no guest run on it. The list forgets it when the last page is here, or by
    /// [`forget_missing`](Self::forget_missing).
    ///
    /// # Errors
    /// [`MissingError::AlreadyMissing`]; [`MissingError::UnknownBlock`] of a block of another list; [`MissingError::Ram`] if the host does not
    /// take the memory.
    pub fn set_missing(
        self: &Arc<Self>,
        source: Arc<dyn PageSource>,
        blocks: impl IntoIterator<Item = Arc<RamBlock>>,
    ) -> Result<Arc<MissingPages>, MissingError> {
        self.set_missing_by(Arc::new(SoftwareFaults), source, blocks)
    }

    /// The same, noticed by this source of faults, which is used once: [`UserFaults`](super::UserFaults), say.
    ///
    /// # Errors
    /// As [`set_missing`](Self::set_missing); [`MissingError::Userfault`] if the memory of a block cannot be watched so.
    pub fn set_missing_by(
        self: &Arc<Self>,
        faults: Arc<dyn FaultSource>,
        source: Arc<dyn PageSource>,
        blocks: impl IntoIterator<Item = Arc<RamBlock>>,
    ) -> Result<Arc<MissingPages>, MissingError> {
        let blocks: Vec<_> = blocks.into_iter().collect();
        if let Some(other) = blocks.iter().find(|block| !block.belongs_to(self)) {
            return Err(MissingError::UnknownBlock { idstr: other.idstr().to_owned() });
        }
        blocks.iter().try_for_each(|block| faults.check(block))?;
        let pages = Arc::new(MissingPages::new(self, source, faults, blocks));
        let change = self.missing_door().change.lock().unwrap_or_else(PoisonError::into_inner);
        if self.missing_door().pages.load(&pin()).is_some() {
            return Err(MissingError::AlreadyMissing);
        }
        self.missing_door().pages.replace(Some(pages.clone()));
        drop(change);
        let given_back = pages.blocks().try_for_each(|block| pages.discard(block, 0, block.used_length()));
        if given_back.is_err() {
            self.missing_door().clear(&pages);
        }
        given_back.map(|()| pages)
    }

    /// Is any page of RAM missing? One load: where it is `false` there is nothing to ask.
    #[inline]
    pub fn has_missing(&self) -> bool {
        // Acquire: if it was cleared, the bytes of the last page are visible.
        self.missing_door().on.load(Ordering::Acquire)
    }

    /// Is the host page of this address missing? If not, its bytes are visible.
    #[inline]
    pub fn is_missing(&self, ram: RamAddr) -> bool {
        self.has_missing() && self.is_missing_now(ram)
    }

    #[cold]
    fn is_missing_now(&self, ram: RamAddr) -> bool {
        self.missing_door().pages.load(&pin()).as_ref().is_some_and(|pages| pages.is_missing(ram))
    }

    /// What is missing, from [`set_missing`](Self::set_missing) until the last page is here.
    pub fn missing(&self) -> Option<Arc<MissingPages>> {
        self.missing_door().pages.load(&pin()).clone()
    }

    /// Waits until `[ram, ram + len)` is here. One load while nothing is missing.
    ///
    /// # Errors
    /// As [`MissingPages::wait`], which it calls with no limit and nothing that interrupts it.
    #[inline]
    pub fn wait_for(&self, ram: RamAddr, len: u64) -> Result<(), MissingError> {
        if self.has_missing() { self.wait_for_now(ram, len) } else { Ok(()) }
    }

    #[cold]
    fn wait_for_now(&self, ram: RamAddr, len: u64) -> Result<(), MissingError> {
        self.missing().map_or(Ok(()), |pages| pages.wait(ram, len, &WaitToken::default(), None))
    }

    /// What is missing [ends](MissingPages::end), and the list knows nothing of it any more: its pages are zero. For RAM that no guest
    /// will run on.
    pub fn forget_missing(&self, why: &str) {
        if let Some(pages) = self.missing() {
            pages.end(why);
            self.missing_door().clear(&pages);
        }
    }
}
