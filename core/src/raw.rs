//! For the tests and benchmarks of this workspace only: what takes bits from under every log.
//!
//! What takes a client's bits with one of these takes them from the users of its logs: they will not hear of these pages;
//! and no entry is re-armed, so later stores go unheard. A program takes bits by a [`DirtyLog`](crate::DirtyLog).

use crate::addr::{PageIndex, PageRange};
use crate::dirty::{ClientMask, DirtyClient, DirtyMemory, PageSet, Snapshot};
use crate::ram::RamList;
use crate::rcu::Guard;
use crate::ring::{RingLog, RingStartError};
use std::sync::Arc;

/// The translator's bits.
pub const CODE: DirtyClient = DirtyClient::CODE;

/// What takes bits.
pub trait RawDirty {
    /// Takes the bit of `page`: clears it and tells whether it was set.
    fn test_and_clear(&self, page: PageIndex, client: DirtyClient, guard: &Guard) -> bool;
    /// Takes every bit in `range`; `sink` gets each word that had one.
    fn test_and_clear_range(
        &self,
        range: PageRange,
        client: DirtyClient,
        guard: &Guard,
        sink: impl FnMut(PageIndex, u64),
    ) -> u64;
    /// Takes every bit in `range` and adds it to `pages`.
    fn take(&self, range: PageRange, client: DirtyClient, guard: &Guard, pages: &mut PageSet);
    /// As `take`, into an object of its own.
    fn snapshot_and_clear(&self, range: PageRange, client: DirtyClient, guard: &Guard) -> Snapshot;
    /// Gives `client` rings.
    fn start_rings(&self, client: DirtyClient, entries: u32) -> Result<Arc<RingLog>, RingStartError>;
    /// Takes them away.
    fn stop_rings(&self, log: &Arc<RingLog>);
    /// Sets the translator's bits, whatever lines there are.
    fn unprotect_code(&self, range: PageRange, guard: &Guard);
}

impl RawDirty for DirtyMemory {
    fn test_and_clear(&self, page: PageIndex, client: DirtyClient, guard: &Guard) -> bool {
        Self::test_and_clear(self, page, client, guard)
    }

    fn test_and_clear_range(
        &self,
        range: PageRange,
        client: DirtyClient,
        guard: &Guard,
        sink: impl FnMut(PageIndex, u64),
    ) -> u64 {
        Self::test_and_clear_range(self, range, client, guard, sink)
    }

    fn take(&self, range: PageRange, client: DirtyClient, guard: &Guard, pages: &mut PageSet) {
        Self::take(self, range, client, guard, pages);
    }

    fn snapshot_and_clear(&self, range: PageRange, client: DirtyClient, guard: &Guard) -> Snapshot {
        Self::snapshot_and_clear(self, range, client, guard)
    }

    fn start_rings(&self, client: DirtyClient, entries: u32) -> Result<Arc<RingLog>, RingStartError> {
        Self::start_rings(self, client, entries)
    }

    fn stop_rings(&self, log: &Arc<RingLog>) {
        Self::stop_rings(self, log);
    }

    fn unprotect_code(&self, range: PageRange, guard: &Guard) {
        self.mark(range, ClientMask::CODE, guard, |_, _, _| {});
    }
}

/// What takes pages from rings.
pub trait RawRings {
    /// Takes what is dirty: words of pages with bits that were set and are clear now.
    fn take(&self, list: &RamList, within: Option<&[PageRange]>, guard: &Guard) -> Vec<(PageIndex, u64)>;
}

impl RawRings for RingLog {
    fn take(&self, list: &RamList, within: Option<&[PageRange]>, guard: &Guard) -> Vec<(PageIndex, u64)> {
        Self::take(self, list, within, guard)
    }
}
