//! Pages taken from a client, and the way back for those that nobody could use.
//!
//! ```text
//!   take the bits ─▶ rearm(): every vCPU drops its write permission, and answers ─▶ read the pages ─▶ commit()
//!        │                │ not in time                                                   │ failed, panicked
//!        │                └───────────────────────────────┐                               │
//!        └ a Harvest holds them from here on ─────────────▶ drop: dirty again ◀───────────┘
//! ```
//!
//! Keeps HARVEST-1: bits are taken before the re-arm is posted; pages are read after the last answer. And nothing
//! that was taken is lost: a `Harvest` that is dropped before `commit` marks its pages dirty again. Its block may have
//! left meanwhile and its addresses be another's. Then the new block gets marks that it did not earn, which costs its
//! reader a look at clean pages; a mark that is *not* put back would cost the guest a page. The harvests of a
//! `DirtyLog` avoid even that: they keep their blocks alive, and give their pages back to the user who took them.

use super::log::Pending;
use super::{ClientMask, DirtyClient, DirtyMemory, PageSet};
use crate::addr::{PageIndex, PageRange};
use crate::ram::RamBlock;
use crate::rcu::pin;
use core::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Who can make every vCPU drop its write permission for pages. Softmmu's address space is one.
pub trait DirtyListener: Send + Sync {
    /// Every vCPU re-arms these pages and has answered when this returns: its stores before are visible to this
    /// thread, its stores after are heard. With `None` it waits for as long as it takes. The caller holds no guard
    /// and no lock that a vCPU might wait for (SAFE-1).
    fn rearm(&self, pages: &[PageRange], timeout: Option<Duration>) -> Result<(), NotServed>;

    /// Is there nobody to ask, and nobody that could come without asking who listens? Then no list is made for them.
    fn is_nobody(&self) -> bool {
        false
    }
}

/// Ranges that one re-arm names at most, and that wait for one vCPU at most: more are covered by fewer, or by one of all pages.
/// To ask a vCPU to look at an entry once more than needed is harmless.
pub const MAX_RANGES: usize = 1024;

/// A vCPU has not answered in time. The pages may be written unheard until it does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a vCPU has not re-armed its pages within {waited:?}")]
pub struct NotServed {
    /// How long was waited.
    pub waited: Duration,
}

/// Nobody runs, nobody has a TLB: a listener for RAM without vCPUs.
#[derive(Clone, Copy, Default, Debug)]
pub struct NoVcpus;

impl DirtyListener for NoVcpus {
    fn rearm(&self, _pages: &[PageRange], _timeout: Option<Duration>) -> Result<(), NotServed> {
        Ok(())
    }

    fn is_nobody(&self) -> bool {
        true
    }
}

/// Pages that were dirty, taken and armed: they may be read now. Dropped before [`commit`](Self::commit), they are
/// dirty again.
#[must_use = "a harvest that is not committed marks its pages dirty again"]
pub struct Harvest<'d> {
    pages: PageSet,
    back: Back<'d>,
    /// The blocks of the pages stay alive, and so their addresses theirs, until this drops.
    _alive: Vec<Arc<RamBlock>>,
}

/// Where pages go that are not committed.
enum Back<'d> {
    Bits(&'d DirtyMemory, DirtyClient),
    User(&'d Pending),
}

impl<'d> Harvest<'d> {
    /// A harvest for the user of a log: what is not committed is pending for that user. Not armed yet.
    pub(super) fn of_user(pages: PageSet, pending: &'d Pending, alive: Vec<Arc<RamBlock>>) -> Self {
        Self { pages, back: Back::User(pending), _alive: alive }
    }

    /// The second step of HARVEST-1. A harvest of nothing asks nobody.
    pub(super) fn rearmed(self, listener: &dyn DirtyListener, timeout: Option<Duration>) -> Result<Self, NotServed> {
        if !self.pages.is_empty() && !listener.is_nobody() {
            listener.rearm(&self.pages.cover(MAX_RANGES), timeout)?;
        }
        Ok(self)
    }

    /// The pages, by words: the page of bit 0, and the bits.
    pub fn words(&self) -> impl Iterator<Item = (PageIndex, u64)> + '_ {
        self.pages.words()
    }

    /// The pages, in ranges.
    pub fn ranges(&self) -> impl Iterator<Item = PageRange> + '_ {
        self.pages.ranges()
    }

    /// The pages.
    pub fn pages(&self) -> &PageSet {
        &self.pages
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.pages.count()
    }

    /// The pages were put to use; they are the caller's business from here on.
    pub fn commit(mut self) -> PageSet {
        core::mem::take(&mut self.pages)
    }
}

impl Drop for Harvest<'_> {
    fn drop(&mut self) {
        if self.pages.is_empty() {
            return; // committed, or nothing was dirty
        }
        match self.back {
            // Like a writer of these pages would: no reader of them misses the marks (MARK-1).
            Back::Bits(dirty, client) => {
                let guard = pin();
                self.pages.ranges().for_each(|range| dirty.set(range, ClientMask::of(client), &guard));
            }
            Back::User(pending) => pending.put_back(&self.pages),
        }
    }
}

impl fmt::Debug for Harvest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Harvest").field("pages", &self.pages).finish_non_exhaustive()
    }
}

impl DirtyMemory {
    /// Takes what is dirty in `ranges` and arms it (HARVEST-1): when this returns, the pages may be read, and each
    /// later store to them is heard. It costs what is dirty. If a vCPU does not answer in time, all is dirty again.
    ///
    /// Not for [`DirtyClient::CODE`], whose bits say where code is and are not given back: of that one nothing is taken.
    pub fn harvest(
        &self,
        ranges: &[PageRange],
        client: DirtyClient,
        listener: &dyn DirtyListener,
        timeout: Option<Duration>,
    ) -> Result<Harvest<'_>, NotServed> {
        // Made before the take: from the first bit on there is somebody to put it back.
        let mut harvest = Harvest { pages: PageSet::new(), back: Back::Bits(self, client), _alive: Vec::new() };
        if client != DirtyClient::CODE {
            let guard = pin();
            for range in sorted(ranges) {
                self.take(range, client, &guard, &mut harvest.pages);
            }
        } // SAFE-1: no guard while it waits
        harvest.rearmed(listener, timeout)
    }
}

/// The same pages, in ranges that rise and do not touch.
pub(super) fn sorted(ranges: &[PageRange]) -> Vec<PageRange> {
    let mut all: Vec<_> = ranges.iter().copied().filter(|range| !range.is_empty()).collect();
    all.sort_unstable_by_key(|range| range.start);
    all.dedup_by(|next, last| {
        let one = next.start <= last.end;
        if one {
            last.end = last.end.max(next.end);
        }
        one
    });
    all
}
