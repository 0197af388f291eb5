//! Logging: which users it has, where, and when it costs something.
//!
//! ```text
//!   start   first user: take the bits of the regions        every user: re-arm all of them ─▶ stores are heard
//!   sync    take ─▶ to every other user's pending ─▶ + own pending ─▶ re-arm ─▶ Harvest
//!   stop    last user: set the bits again. Entries become fast with their next store; nothing is posted
//!
//!   DirtyLog ─▶ Pending ◀─┐                                 Bits: the client's own
//!   DirtyLog ─▶ Pending ◀─┴─ Log { client, regions, backend ─┤
//!                                                           RingSource: dirty rings
//! ```
//!
//! A log is the only way to take a client's bits: whatever else took some would take them from a log's users. Users of one
//! log share its bits, so what one takes is pending for the others: each user gets every page that was
//! written since its own last sync, whichever other user syncs. Logs of one client are on disjoint pages. A page that a
//! failed harvest gives back is pending for its user, too, and handed out with the next one, re-armed once more.
//!
//! A start re-arms all pages of the log, whether their bits were set or not: a bit that is clear already, because a log
//! stopped or failed halfway, says nothing of the entries that vCPUs hold. Between logs all bits of a client are set, and the
//! registry's lock orders the last stop before the next start; so its take finds no word that merely looks clean, also on
//! weak memory, and a page whose mark found no rings is in it.
//!
//! Only bits inside the regions are ever cleared, so nothing else pays. What happens to a block under a running log:
//! - plugged: all its bits are set; a log of all RAM reports it whole with the next sync. Others do not see it.
//! - unplugged: it leaves the log, and what was dirty in it is no longer reported; a harvest with pages of it keeps it
//!   alive. A new block at its addresses is not logged by the log of the old one. A log all of whose blocks have left says
//!   so with each sync.
//! - grown: its bits are set (the list sees to that), so the next sync reports what is new, and the rest once more. Shrunk:
//!   what is cut off is not reported any more, and its bits are set; if it comes back, it is new.
//!
//! Locks: the registry before `users` before a `Pending`; none of them while waiting for vCPUs (SAFE-1). Nothing of an
//! embedder's is dropped under one of them.

use super::harvest::{Harvest, NotServed, gaps, hold_blocks, intersection, sorted};
use super::scope::{LogClient, LogRegion, LogScope, Shared};
use super::{ClientMask, DirtyClient, OwnedClient, PageSet};
use crate::addr::{PageIndex, PageRange};
use crate::ram::{RamBlock, RamList};
use crate::rcu::{Guard, pin};
use crate::ring::{RingError, RingLog, RingSource, RingStartError};
use crate::sync::{Mutex, lock};
use core::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// What finds the dirty pages.
pub(crate) enum Backend {
    /// The client's bits themselves.
    Bits,
    /// Dirty rings, which hear of each bit that becomes set. The bits still filter: a page is found once until its bit is
    /// cleared again.
    Rings(RingSource),
}

/// Why nothing is logged, or nothing was given out. Never is that an empty harvest.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The client was dropped.
    #[error("{client:?} was dropped: it has no log any more")]
    Gone {
        /// The client.
        client: DirtyClient,
    },
    /// Another log of this client has some of these pages, but not the same regions.
    #[error("{client:?} has a log on some of these pages, of other regions: log the same, or by a client of its own")]
    Overlap {
        /// The client.
        client: DirtyClient,
    },
    /// The log of these regions finds its pages in another way.
    #[error("{client:?} has a log on these pages by {}: join by the same, or use a client of its own",
        if *.rings { "rings" } else { "its bits" })]
    OtherBackend {
        /// The client.
        client: DirtyClient,
        /// Has that log rings?
        rings: bool,
    },
    /// A region is of a block that is not in the list (any more).
    #[error("a region to log is of RAM block {idstr}, which is not in this list")]
    NotInList {
        /// The block, or what is left of its name.
        idstr: String,
    },
    /// There are no regions, or they are empty.
    #[error("no pages to log: there is no region, or all are empty")]
    NoPages,
    /// Every block of the log's regions has left the list.
    #[error("the blocks that {client:?} logs have left the list: stop this log")]
    Unplugged {
        /// The client.
        client: DirtyClient,
    },
    /// None of the pages that were asked for is logged, so nothing is known of them.
    #[error("{client:?} logs no page of {pages:?}, nor of what else was asked for")]
    NotLogged {
        /// The client.
        client: DirtyClient,
        /// The first of the ranges.
        pages: PageRange,
    },
    /// No such rings.
    #[error(transparent)]
    Rings(#[from] RingStartError),
    /// The re-arm was not answered. A start has not begun; the pages of a sync come with the next one.
    #[error(transparent)]
    NotServed(#[from] NotServed),
}

impl From<RingError> for LogError {
    fn from(why: RingError) -> Self {
        Self::Rings(why.into())
    }
}

/// What a log is to be: made by [`RamList::log`].
///
/// ```
/// # use notdirty_core::{DirtyClient, LogRegion, LogScope, RamBlockSpec, RamList};
/// # use std::time::Duration;
/// # let list = std::sync::Arc::new(RamList::new());
/// # let vram = list.add(RamBlockSpec::new("vram", 1 << 20))?;
/// // All RAM, by the client's bits.
/// let all = list.log(DirtyClient::MIGRATION).start()?;
/// // One block, by rings, for a client of one's own.
/// let rings = list.log(list.add_client("debugger")?).blocks([&vram]).rings(4096).start()?;
/// // A part of a block; vCPUs have a second to answer.
/// let part = LogScope::Regions(vec![LogRegion::bytes(&vram, 0, 0x2000)]);
/// let screen = list.log(DirtyClient::VGA).scope(part).timeout(Duration::from_secs(1)).start()?;
///
/// list.fill(&vram, 0, 0x4000, 1)?;
/// for (log, pages) in [(&all, 4), (&rings, 4), (&screen, 2)] {
///     assert_eq!(log.sync(Some(Duration::from_secs(1)))?.commit().count(), pages);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "nothing is logged before `start`"]
#[derive(Debug)]
pub struct LogBuilder {
    list: Arc<RamList>,
    client: LogClient,
    scope: LogScope,
    rings: Option<u32>,
    timeout: Option<Duration>,
}

impl RamList {
    /// A log of the writes to this RAM, for `client`: of all RAM and by the client's bits, unless it is told otherwise.
    ///
    /// ```
    /// # use notdirty_core::{DirtyClient, RamBlockSpec, RamList};
    /// # let ram = std::sync::Arc::new(RamList::new());
    /// # let block = ram.add(RamBlockSpec::new("ram", 1 << 20))?;
    /// let log = ram.log(DirtyClient::MIGRATION).start()?;
    /// ram.write(&block, 0x1000, b"bytes")?;
    /// assert_eq!(log.sync(None)?.commit().count(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn log(self: &Arc<Self>, client: impl Into<LogClient>) -> LogBuilder {
        let (list, client) = (self.clone(), client.into());
        LogBuilder { list, client, scope: LogScope::All, rings: None, timeout: None }
    }
}

impl LogBuilder {
    /// Only writes to these blocks, each also where it grows to.
    pub fn blocks<'b>(self, blocks: impl IntoIterator<Item = &'b Arc<RamBlock>>) -> Self {
        self.scope(LogScope::blocks(blocks))
    }

    /// Only writes there.
    pub fn scope(self, scope: LogScope) -> Self {
        Self { scope, ..self }
    }

    /// Pages are found by dirty rings of so many entries, a power of two from 128 to 65,536, one for each vCPU. The store
    /// that fills a ring to its soft limit, 64 below its size, says so to its vCPU, which waits for a sync before it goes on.
    /// If it runs on, no page is lost, but the rings bound nothing.
    pub fn rings(self, entries: u32) -> Self {
        Self { rings: Some(entries), ..self }
    }

    /// How long [`start`](Self::start) waits for vCPUs; without this, or with `None`, as long as it takes.
    pub fn timeout(self, timeout: impl Into<Option<Duration>>) -> Self {
        Self { timeout: timeout.into(), ..self }
    }

    /// Starts the log, or joins the log of this client that has the same pages. When this
    /// returns, each later store there is heard; what was written before is the caller's to read.
    ///
    /// # Errors
    /// Nothing is logged then. The client was dropped, or has another log that shares pages with this one and differs in its
    /// regions or in rings; a region's block has left the list, or there is no page; the rings' size is not possible; a vCPU
    /// did not answer, or has to be waited for while this thread holds a guard ([`NotServed`]).
    pub fn start(self) -> Result<DirtyLog, LogError> {
        let (timeout, list) = (self.timeout, self.list.clone());
        let new = self.join_or_make()?;
        ::log::debug!("{:?}: a dirty log starts, or has one user more", new.client());
        // A statement of its own: the guard goes before the wait (SAFE-1).
        let (pages, _) = new.log.ranges(&pin());
        list.rearm(&pages, timeout)?; // `new` drops, and with it perhaps the log
        Ok(new)
    }

    fn join_or_make(self) -> Result<DirtyLog, LogError> {
        let Self { list, client, scope, rings, .. } = self;
        let (client, owned) = match client {
            LogClient::Number(client) => (client, None),
            LogClient::Owned(owned) => (owned.client(), Some(owned)),
        };
        let scope = scope.normal();
        let backend = match rings {
            Some(entries) => Backend::Rings(RingSource::new(client, entries)?),
            None => Backend::Bits,
        };
        let (users, known, owned) = (Mutex::new(Vec::new()), Mutex::new(None), Mutex::new(owned));
        let new = Log { list: list.clone(), client, owned, scope, backend, users, known };
        // Both outlive the lock: the last `Arc` of another log, and a log that is refused, may be dropped here, and what they
        // own with them.
        let (mut others, new) = (Vec::new(), Arc::new(new));
        let user = Arc::new(Pending::default());
        let guard = pin();
        let mut logs = lock(list.dirty().logs());
        others.extend(logs.iter().filter_map(Weak::upgrade));
        let joined = new.join(&others, &guard).map(|same| same.cloned());
        let log = joined.map(|same| match same {
            Some(same) => {
                // The client has one owner, so nothing is replaced, and dropped here.
                if let Some(owned) = lock(&new.owned).take() {
                    *lock(&same.owned) = Some(owned);
                }
                same
            }
            None => {
                logs.push(Arc::downgrade(&new));
                new.clone()
            }
        });
        if let Ok(log) = &log {
            lock(&log.users).push(user.clone());
        }
        drop(logs);
        drop(guard);
        /// The next user's. Nothing is ordered by it, so it is std's in a model, too.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Ok(DirtyLog { log: log?, user, id: NEXT.fetch_add(1, Ordering::Relaxed), spare: Mutex::new(PageSet::new()) })
    }
}

/// One user of a log. Dropping it is stopping it.
///
/// A log of all RAM has the blocks that are plugged later, each whole with the first sync after. A block that was unplugged is no
/// longer reported. One that was resized is reported whole. A log keeps its RAM list alive, and no block.
#[derive(Debug)]
pub struct DirtyLog {
    log: Arc<Log>,
    user: Arc<Pending>,
    id: u64,
    /// Empty; the memory of an earlier harvest for the next one.
    spare: Mutex<PageSet>,
}

/// What all users of a log share.
pub(super) struct Log {
    list: Arc<RamList>,
    client: DirtyClient,
    /// Kept for its drop, which is the log's: whichever user brought it.
    owned: Mutex<Option<OwnedClient>>,
    scope: LogScope,
    backend: Backend,
    users: Mutex<Vec<Arc<Pending>>>,
    known: Mutex<Option<Known>>,
}

/// What is logged, as of a version of the list: a sync costs what is dirty, not how many blocks there are.
struct Known {
    version: u64,
    ranges: Arc<[PageRange]>,
    /// Is any of the log's blocks in the list? All RAM always is.
    any: bool,
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
    /// What was written since this user's last sync, or its start. The pages may be read now; each later store to
    /// them is heard. Costs what is dirty. Waits for each vCPU that runs to come to a safe point: at most `timeout`, with `None` as
    /// long as it takes. The caller holds no RCU guard, and no lock that a vCPU might wait for (SAFE-1).
    ///
    /// # Errors
    /// [`NotServed`] if a vCPU did not answer in time, or runs on this thread, or one has to be waited for and this thread holds a
    /// guard: the pages come with the next sync.
    /// [`LogError::Gone`] if the client was dropped, [`LogError::Unplugged`] if every block of the log's regions left the list.
    pub fn sync(&self, timeout: Option<Duration>) -> Result<Harvest<'_>, LogError> {
        self.harvest(None, timeout)
    }

    /// As `sync`, of these pages only; the others come with a sync that asks for them. Of ranges that are logged in part, the part
    /// that is logged: [`migration::sync`](crate::migration::sync) refuses those, too.
    ///
    /// # Errors
    /// As [`sync`](Self::sync), and [`LogError::NotLogged`] if pages are asked for and none of them is logged: they are of no block, of
    /// a block or a part of one that the log does not have, or beyond a block's used length.
    pub fn sync_within(&self, pages: &[PageRange], timeout: Option<Duration>) -> Result<Harvest<'_>, LogError> {
        self.harvest(Some(&sorted(pages)), timeout)
    }

    fn harvest(&self, only: Option<&[PageRange]>, timeout: Option<Duration>) -> Result<Harvest<'_>, LogError> {
        let guard = pin();
        let log = &*self.log;
        // One user at a time, and what is logged is looked at then: rings remember how far blocks were at the take before, and a
        // take by what was logged before that would tell them of pages that have been cut off since.
        let users = lock(&log.users);
        let (ranges, any) = log.ranges(&guard);
        if !any {
            return Err(LogError::Unplugged { client: log.client });
        }
        let asked: Arc<[_]> = match only {
            Some(only) => intersection(&ranges, only).into(),
            None => ranges.clone(),
        };
        if let Some(&[first, ..]) = only
            && asked.is_empty()
        {
            return Err(LogError::NotLogged { client: log.client, pages: first });
        }
        let mut pages = core::mem::take(&mut *lock(&self.spare));
        log.take(&asked, &ranges, &guard, &mut pages);
        for other in users.iter().filter(|other| !Arc::ptr_eq(other, &self.user)) {
            lock(&other.0).merge(&pages);
        }
        let mut pending = lock(&self.user.0);
        let mut back = core::mem::take(&mut *pending).within(&ranges);
        if let Some(only) = only {
            let later = gaps(only);
            *pending = back.within(&later);
            back = back.within(&asked);
            if let Backend::Rings(_) = log.backend {
                pending.merge(&pages.within(&later));
                pages = pages.within(&asked);
            }
        }
        pages.merge(&back);
        drop((pending, users));
        // After the take: what is marked once the client is gone is another's, and nothing was taken.
        if !log.list.dirty().is_current(log.client) {
            return Err(LogError::Gone { client: log.client });
        }
        let alive = hold_blocks(&log.list, &mut pages, &guard);
        drop(guard); // SAFE-1: no guard while it waits
        Ok(Harvest::new(pages, &self.user, alive).rearmed(&log.list, timeout)?)
    }

    /// The caller is done with these pages, which were a harvest of this log: the next one needs as much memory again, and the
    /// kernel takes longer to give it than a take takes to fill it.
    pub(crate) fn reuse(&self, mut pages: PageSet) {
        pages.clear();
        *lock(&self.spare) = pages;
    }

    /// The first of these pages that was written since the last sync, as far as is known now: the next sync has it, whatever comes of it.
    pub(crate) fn written_again(&self, pages: PageRange, guard: &Guard) -> Option<PageIndex> {
        self.log.list.dirty().next_set(pages, self.log.client, guard)
    }

    /// Which of `asked` is the first that has a page that is not logged, now.
    pub(crate) fn first_not_logged(&self, asked: &[PageRange]) -> Option<usize> {
        let (ranges, _) = self.log.ranges(&pin());
        let covered = |asked: &PageRange| {
            let (mut next, from) = (asked.start, ranges.partition_point(|range| range.end <= asked.start));
            for range in ranges[from..].iter().take_while(|range| range.start < asked.end) {
                if range.start > next {
                    return false;
                }
                next = range.end;
            }
            next >= asked.end
        };
        asked.iter().position(|asked| !covered(asked))
    }

    /// Names this user; used once in a process.
    pub(crate) fn user_id(&self) -> u64 {
        self.id
    }

    /// This user wrote these pages, and need not be told; the client's other users and other logs are.
    pub(crate) fn wrote(&self, pages: PageRange) {
        let (log, guard) = (&*self.log, pin());
        let (ranges, _) = log.ranges(&guard);
        let mut ours = PageSet::new();
        intersection(&ranges, &[pages]).into_iter().for_each(|range| ours.insert(range));
        for other in lock(&log.users).iter().filter(|other| !Arc::ptr_eq(other, &self.user)) {
            lock(&other.0).merge(&ours);
        }
        if ours.count() != pages.len() {
            for range in intersection(&gaps(&ranges), &[pages]) {
                log.list.dirty().set(range, ClientMask::of(log.client), &guard);
            }
        }
    }

    /// The list of the RAM that is logged.
    pub fn list(&self) -> &Arc<RamList> {
        &self.log.list
    }

    /// The log's rings, to see how full they are; `None` if it has none.
    pub fn rings(&self) -> Option<&Arc<RingLog>> {
        match &self.log.backend {
            Backend::Bits => None,
            Backend::Rings(source) => Some(source.log()),
        }
    }

    /// The client of the bits that are used.
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
        if let Backend::Rings(source) = &log.backend {
            source.stop(dirty);
        }
        // Under the registry's lock, or the bits that the next start takes would be set again here. An owned client's
        // are freed instead, when the log drops.
        if lock(&log.owned).is_none() {
            for (range, _) in log.regions(&guard) {
                dirty.set(range, ClientMask::of(log.client), &guard);
            }
        }
    }
}

impl Log {
    /// With the registry's lock held: the log to join in place of this one, if there is one; or this one begins.
    fn join<'o>(&self, others: &'o [Arc<Log>], guard: &Guard) -> Result<Option<&'o Arc<Log>>, LogError> {
        let (dirty, client) = (self.list.dirty(), self.client);
        if !dirty.is_current(client) {
            return Err(LogError::Gone { client });
        }
        if let LogScope::Regions(regions) = &self.scope {
            if regions.is_empty() {
                return Err(LogError::NoPages);
            }
            if let Some(region) = regions.iter().find(|region| region.found(&self.list, guard).is_none()) {
                return Err(LogError::NotInList { idstr: region.idstr() });
            }
        }
        let mut same = None;
        for log in others.iter().filter(|log| log.client == client) {
            match log.scope.compare(&self.scope) {
                Shared::Nothing => {}
                Shared::Part => return Err(LogError::Overlap { client }),
                Shared::All if !log.backend.is(&self.backend) => {
                    return Err(LogError::OtherBackend { client, rings: matches!(log.backend, Backend::Rings(_)) });
                }
                Shared::All => same = Some(log),
            }
        }
        if same.is_some() {
            return Ok(same);
        }
        if let Backend::Rings(source) = &self.backend {
            source.start(&self.list, guard)?;
        }
        // What was dirty until now is the caller's to read.
        let mut before = PageSet::new();
        for (range, _) in self.regions(guard) {
            dirty.take(range, client, guard, &mut before);
        }
        Ok(None)
    }

    /// What is logged now, by rising page: pages in use of blocks that are in the list. Blocks that left are forgotten.
    fn regions<'g>(&self, guard: &'g Guard) -> Vec<(PageRange, &'g Arc<RamBlock>)> {
        match &self.scope {
            LogScope::All => self.list.blocks(guard).map(|block| (block.pages(), block)).collect(),
            LogScope::Regions(regions) => {
                let now = |region: &LogRegion| {
                    let found = region.found(&self.list, guard)?;
                    let end = region.pages.end.min(found.pages().end);
                    Some((PageRange { start: region.pages.start, end }, found))
                };
                let mut found: Vec<_> = regions.iter().filter_map(now).collect();
                found.sort_unstable_by_key(|(range, _)| range.start);
                found
            }
        }
    }

    /// The same without the blocks, remembered; and whether there are blocks.
    fn ranges(&self, guard: &Guard) -> (Arc<[PageRange]>, bool) {
        // Before the list is looked at: what is found then is good until the version is another. And after the guard:
        // if the version is the same, no block of these ranges makes room for another while we take its bits.
        let version = self.list.version();
        let mut known = lock(&self.known);
        if let Some(known) = &*known
            && known.version == version
        {
            return (known.ranges.clone(), known.any);
        }
        let regions = self.regions(guard);
        let any = matches!(self.scope, LogScope::All) || !regions.is_empty();
        // Those that merely touch stay apart: they may be two blocks.
        let ranges = regions.into_iter().map(|(range, _)| range).filter(|range| !range.is_empty());
        let ranges: Arc<[_]> = ranges.collect();
        *known = Some(Known { version, ranges: ranges.clone(), any });
        (ranges, any)
    }

    /// Takes what is dirty in `asked`, which is a part of `ranges`. Rings give all they have.
    fn take(&self, asked: &[PageRange], ranges: &[PageRange], guard: &Guard, pages: &mut PageSet) {
        let dirty = self.list.dirty();
        match &self.backend {
            Backend::Bits => {
                for range in asked {
                    dirty.take(*range, self.client, guard, pages);
                }
            }
            Backend::Rings(source) => {
                source.take(&self.list, ranges, guard, pages);
                *pages = pages.within(ranges);
            }
        }
    }
}

impl Backend {
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Bits, Self::Bits) => true,
            (Self::Rings(a), Self::Rings(b)) => a.entries() == b.entries(),
            _ => false,
        }
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bits => f.write_str("Bits"),
            Self::Rings(source) => source.fmt(f),
        }
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client, owned, scope, backend, .. } = self;
        let mut out = f.debug_struct("Log");
        out.field("client", client).field("owned", owned).field("scope", scope).field("backend", backend).finish()
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
