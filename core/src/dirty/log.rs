//! Logging: who uses it, where, and when it costs something.
//!
//! ```text
//!   start   first user: take the bits of the regions, re-arm ─▶ stores are heard        further users: re-arm
//!   sync    take ─▶ to every other user's pending ─▶ + own pending ─▶ re-arm ─▶ Harvest
//!   stop    last user: set the bits again. Entries become fast with their next store; nothing is posted
//!
//!   DirtyLog ─▶ Pending ◀─┐                                 Bitmap: the client's own bits
//!   DirtyLog ─▶ Pending ◀─┴─ Log { client, regions, backend ─┤
//!                                                           LogSource: dirty rings, or whatever finds pages
//! ```
//!
//! Users of one log share its bits, so what one takes is pending for the others: each user gets every page that was
//! written since its own last sync, whoever else syncs. Logs of one client are on disjoint pages. A page that a
//! failed harvest gives back is pending for its user, too, and handed out with the next one, re-armed once more.
//!
//! Only bits inside the regions are ever cleared, so nothing else pays. What happens to a block under a running log:
//! - plugged: all its bits are set; a log of all RAM reports it whole with the next sync. Others do not see it.
//! - unplugged: it leaves the log, and what was dirty in it is no longer reported; a harvest with pages of it keeps it
//!   alive. A new block at its addresses is not logged by who logged the old one.
//! - grown: its bits are set (the list sees to that), so the next sync reports what is new, and the rest once more. Shrunk:
//!   what is cut off is not reported any more, and its bits are set; if it comes back, it is new.
//!
//! Locks: the registry before `users` before a `Pending`; none of them while waiting for vCPUs (SAFE-1).

use super::harvest::{DirtyListener, Harvest, MAX_RANGES, NotServed};
use super::scope::{LogClient, LogRegion, LogScope, Shared};
use super::{ClientMask, DirtyClient, DirtyMemory, OwnedClient, PageSet};
use crate::addr::{PageIndex, PageRange};
use crate::ram::{RamBlock, RamList};
use crate::rcu::{Guard, pin};
use crate::ring::RingStartError;
use crate::sync::{Mutex, lock};
use core::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// What finds the dirty pages.
#[derive(Clone, Default)]
pub enum Backend {
    /// The client's bits themselves.
    #[default]
    Bitmap,
    /// Something that hears of each bit that becomes set, like dirty rings.
    Source(Arc<dyn LogSource>),
}

/// A back end other than the bits. The bits still filter: a page is found once until its bit is cleared again.
pub trait LogSource: Send + Sync {
    /// Logging of `client` begins. Called before the first bit is cleared. If it refuses, nothing begins.
    fn start(&self, dirty: &DirtyMemory, client: DirtyClient) -> Result<(), RingStartError>;

    /// Puts what was found into `pages`, and clears the bits of these pages so that their next store is found, too.
    /// `ranges` (rising, disjoint) is what is logged now; the rest is left out by the caller. The pages are re-armed
    /// before anybody reads them. One thread at a time.
    fn take(&self, dirty: &DirtyMemory, client: DirtyClient, ranges: &[PageRange], guard: &Guard, pages: &mut PageSet);

    /// Logging of `client` ends: its bits in the regions will be set, and it need not hear of that.
    fn stop(&self, dirty: &DirtyMemory, client: DirtyClient);
}

/// Why logging could not start.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LogError {
    /// The translator's bits are its own.
    #[error("the CODE client cannot be logged: its bits say where translated code is")]
    Code,
    /// The client was dropped.
    #[error("{client:?} is gone")]
    Gone {
        /// The client.
        client: DirtyClient,
    },
    /// Another log of this client has some of these pages, but not the same regions.
    #[error("{client:?} is logged on some of these pages already, in other regions")]
    Overlap {
        /// The client.
        client: DirtyClient,
    },
    /// The log of these regions has another back end.
    #[error("{client:?} is logged on these pages already, with another back end")]
    OtherBackend {
        /// The client.
        client: DirtyClient,
    },
    /// The back end refuses.
    #[error(transparent)]
    Ring(#[from] RingStartError),
    /// The re-arm was not answered. Nothing is logged for this user.
    #[error(transparent)]
    NotServed(#[from] NotServed),
}

/// One user of a log. Dropping it is stopping it.
#[derive(Debug)]
pub struct DirtyLog {
    log: Arc<Log>,
    user: Arc<Pending>,
}

/// What all users of a log share.
pub(super) struct Log {
    list: Arc<RamList>,
    client: DirtyClient,
    /// Kept for its drop.
    owned: Option<OwnedClient>,
    scope: LogScope,
    backend: Backend,
    listener: Arc<dyn DirtyListener>,
    users: Mutex<Vec<Arc<Pending>>>,
    /// What is logged, as of a version of the list: a sync costs what is dirty, not how many blocks there are.
    known: Mutex<Option<(u64, Arc<[PageRange]>)>>,
}

/// The logs of a dirty memory that have users.
pub(super) type Registry = Mutex<Vec<Weak<Log>>>;

/// Pages taken from the bits that one user has not had.
#[derive(Default, Debug)]
pub(super) struct Pending(Mutex<PageSet>);

impl Pending {
    pub(super) fn put_back(&self, pages: &PageSet) {
        lock(&self.0).merge(pages);
    }
}

impl DirtyLog {
    /// Starts to log the writes in `scope`, or joins the log of this client that has the same scope. When this
    /// returns, each later store there is heard; what was written before is the caller's, who has yet to read it.
    pub fn start(
        list: &Arc<RamList>,
        client: impl Into<LogClient>,
        scope: LogScope,
        backend: Backend,
        listener: Arc<dyn DirtyListener>,
        timeout: Option<Duration>,
    ) -> Result<Self, LogError> {
        let (client, owned) = match client.into() {
            LogClient::Number(client) => (client, None),
            LogClient::Owned(owned) => (owned.client(), Some(owned)),
        };
        if client == DirtyClient::CODE {
            return Err(LogError::Code);
        }
        let dirty = list.dirty();
        let guard = pin();
        let mut logs = lock(dirty.logs());
        if !dirty.is_current(client) {
            return Err(LogError::Gone { client });
        }
        let mut armed = PageSet::new();
        let mut same = None;
        for log in logs.iter().filter_map(Weak::upgrade).filter(|log| log.client == client) {
            match log.scope.compare(&scope) {
                Shared::Nothing => {}
                Shared::Part => return Err(LogError::Overlap { client }),
                Shared::All if !log.backend.is(&backend) => return Err(LogError::OtherBackend { client }),
                Shared::All => same = Some(log),
            }
        }
        let log = match same {
            Some(log) => {
                // What another user took last may not be answered for yet, and then stores there are not heard.
                log.regions(&guard).iter().for_each(|(range, _)| armed.insert(*range));
                log
            }
            None => {
                let (users, known) = (Mutex::new(Vec::new()), Mutex::new(None));
                let list = list.clone();
                let log = Log { list, client, owned, scope, backend, listener, users, known };
                let log = Arc::new(log);
                if let Backend::Source(source) = &log.backend {
                    source.start(dirty, client)?;
                }
                for (range, _) in log.regions(&guard) {
                    dirty.take(range, client, &guard, &mut armed);
                }
                logs.push(Arc::downgrade(&log));
                log
            }
        };
        let user = Arc::new(Pending::default());
        lock(&log.users).push(user.clone());
        drop(logs);
        drop(guard);
        let new = Self { log, user };
        ::log::debug!("{client:?}: a dirty log starts, or has one user more");
        if !armed.is_empty() {
            new.log.listener.rearm(&armed.cover(MAX_RANGES), timeout)?; // `new` drops, and with it perhaps the log
        }
        Ok(new)
    }

    /// What was written since this user's last sync, or its start. The pages may be read now; each later store to
    /// them is heard. Costs what is dirty. If a vCPU does not answer in time, the pages come with the next sync.
    pub fn sync(&self, timeout: Option<Duration>) -> Result<Harvest<'_>, NotServed> {
        let guard = pin();
        let log = &*self.log;
        let ranges = log.ranges(&guard);
        let users = lock(&log.users);
        let mut pages = log.take(&ranges, &guard);
        for other in users.iter().filter(|other| !Arc::ptr_eq(other, &self.user)) {
            lock(&other.0).merge(&pages);
        }
        let pending = core::mem::take(&mut *lock(&self.user.0));
        pages.merge(&pending.within(&ranges));
        drop(users);
        let alive = hold_blocks(&log.list, &mut pages, &guard);
        drop(guard); // SAFE-1: no guard while it waits
        Harvest::of_user(pages, &self.user, alive).rearmed(&*log.listener, timeout)
    }

    /// The client whose bits are used.
    pub fn client(&self) -> DirtyClient {
        self.log.client
    }

    /// Stops this user's part. Same as dropping it.
    pub fn stop(self) {}
}

impl Drop for DirtyLog {
    fn drop(&mut self) {
        let log = &*self.log;
        let dirty = log.list.dirty();
        let guard = pin();
        let mut logs = lock(dirty.logs());
        let mut users = lock(&log.users);
        users.retain(|user| !Arc::ptr_eq(user, &self.user));
        if !users.is_empty() {
            return;
        }
        logs.retain(|other| !core::ptr::eq(other.as_ptr(), log));
        // First of all: it shall not hear of the bits that are set below.
        if let Backend::Source(source) = &log.backend {
            source.stop(dirty, log.client);
        }
        // Under the registry's lock, or the bits that the next start takes would be set again here. An owned client's
        // are freed instead, when the log drops.
        if log.owned.is_none() {
            for (range, _) in log.regions(&guard) {
                dirty.set(range, ClientMask::of(log.client), &guard);
            }
        }
    }
}

impl Log {
    /// What is logged now, by rising page: pages in use of blocks that are in the list. Who has left is forgotten.
    fn regions<'g>(&self, guard: &'g Guard) -> Vec<(PageRange, &'g Arc<RamBlock>)> {
        match &self.scope {
            LogScope::All => self.list.blocks(guard).map(|block| (block.pages(), block)).collect(),
            LogScope::Regions(regions) => {
                let now = |region: &LogRegion| {
                    // Alive, hence still at its addresses; found, hence in the list.
                    let block = region.block.upgrade()?;
                    let found = self.list.find(block.offset(), guard).filter(|found| Arc::ptr_eq(found, &block))?;
                    let end = region.pages.end.min(found.pages().end);
                    Some((PageRange { start: region.pages.start, end }, found))
                };
                let mut found: Vec<_> = regions.iter().filter_map(now).collect();
                found.sort_unstable_by_key(|(range, _)| range.start);
                found
            }
        }
    }

    /// The same without the blocks, remembered.
    fn ranges(&self, guard: &Guard) -> Arc<[PageRange]> {
        // Before the list is looked at: what is found then is good until the version is another. And after the guard:
        // if the version is the same, no block of these ranges makes room for another while we take its bits.
        let version = self.list.version();
        let mut known = lock(&self.known);
        if let Some((at, ranges)) = &*known
            && *at == version
        {
            return ranges.clone();
        }
        let ranges = self.regions(guard).into_iter().map(|(range, _)| range);
        let mut ranges: Vec<_> = ranges.filter(|range| !range.is_empty()).collect();
        // Regions may overlap, what is asked of a set of pages may not. Those that merely touch stay apart: they may be two
        // blocks.
        ranges.dedup_by(|next, last| {
            let one = next.start < last.end;
            if one {
                last.end = last.end.max(next.end);
            }
            one
        });
        let ranges: Arc<[_]> = ranges.into();
        *known = Some((version, ranges.clone()));
        ranges
    }

    fn take(&self, ranges: &[PageRange], guard: &Guard) -> PageSet {
        let (dirty, mut pages) = (self.list.dirty(), PageSet::new());
        match &self.backend {
            Backend::Bitmap => {
                for range in ranges {
                    dirty.take(*range, self.client, guard, &mut pages);
                }
                pages
            }
            Backend::Source(source) => {
                source.take(dirty, self.client, ranges, guard, &mut pages);
                pages.within(ranges)
            }
        }
    }
}

/// The blocks that have some of `pages`, to keep them and their addresses. Pages of a block that left the list since it was
/// looked at are taken out.
fn hold_blocks(list: &RamList, pages: &mut PageSet, guard: &Guard) -> Vec<Arc<RamBlock>> {
    let (mut blocks, mut gone) = (Vec::new(), false);
    // The page after the last block that was found.
    let mut held = 0;
    for range in pages.ranges() {
        let mut at = range.start.get().max(held);
        while at < range.end.get() {
            match list.find(PageIndex::new(at).base(), guard) {
                Some(block) => {
                    held = PageRange::of_bytes(block.offset(), block.max_length()).end.get();
                    blocks.push(block.clone());
                    at = held;
                }
                None => {
                    gone = true;
                    at = (at / BLOCK_ALIGN + 1) * BLOCK_ALIGN;
                }
            }
        }
    }
    if gone {
        let held: Vec<_> = blocks.iter().map(|block: &Arc<RamBlock>| block.pages()).collect();
        *pages = pages.within(&held);
    }
    blocks
}

/// Blocks start at multiples of so many pages.
const BLOCK_ALIGN: u64 = 512;

impl Backend {
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Bitmap, Self::Bitmap) => true,
            (Self::Source(a), Self::Source(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bitmap => "Bitmap",
            Self::Source(_) => "Source",
        })
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client, owned, scope, backend, .. } = self;
        let mut out = f.debug_struct("Log");
        out.field("client", client).field("owned", owned).field("scope", scope).field("backend", backend).finish()
    }
}
