//! Pages taken from a client, and the way back for those that were not used.
//!
//! ```text
//!   take the bits ─▶ rearm(): every vCPU drops its write permission, and answers ─▶ read the pages ─▶ commit()
//!        │                │ not in time                                                   │ failed, panicked
//!        │                └───────────────────────────────┐                               │
//!        └ a Harvest holds them from here on ─────────────▶ drop: dirty again ◀───────────┘
//! ```
//!
//! Keeps HARVEST-1: bits are taken before the re-arm is posted; pages are read after the last answer. And nothing
//! that was taken is lost: what a `Harvest` holds when it is dropped before `commit` is pending for its user, which gets it with
//! the next one. It keeps the blocks of its pages alive, so the addresses are theirs until it drops.

use super::log::Pending;
use super::{PageSet, VcpuId};
use crate::addr::{PageIndex, PageRange, RamAddr};
use crate::ram::{RamBlock, RamList};
use crate::rcu::{self, Guard, drop_later};
use crate::sync::{Mutex, lock};
use core::cell::LazyCell;
use core::fmt;
use smallvec::SmallVec;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Something that may hold fast store entries: whose stores to a page go unheard while its bits say that nothing listens.
/// Softmmu's vCPUs are one for each address space; a KVM machine and a write-protected mapping of the host would be others.
///
/// All of them are known to the RAM list ([`RamList::add_listener`]), which asks them; no caller passes one.
pub trait DirtyListener: Send + Sync {
    /// Bits of these pages were taken: asks each holder of a fast entry to look again which of them are heard. What it
    /// stored before it answers is then visible to the thread that waited, what it stores after that is heard. The result is waited
    /// for; `None` if all have answered already.
    fn rearm(&self, pages: &[PageRange]) -> Option<Box<dyn Answers>>;

    /// Bytes `[ram, ram + len)` were written, and are visible: those of `owners` that are here drop their translations of
    /// them, at the latest when they next synchronise their instructions. Does not wait.
    fn kill_code(&self, _owners: &[VcpuId], _ram: RamAddr, _len: u64) {}

    /// Pages are about to be missing, or have other bytes that no store put there: each holder of anything that came from RAM, entries
    /// for loads, stores and fetches, translations, drops it. The result is waited for; `None` if all have already.
    fn flush(&self) -> Option<Box<dyn Answers>> {
        None
    }

    /// Is there anything here that may store to the RAM?
    fn may_store(&self) -> bool {
        true
    }

    /// Something elsewhere is about to store, too: whatever relies on being the only one does so no more when this is
    /// `true`; `false` if time ran out.
    fn admit_writer(&self, _timeout: Duration) -> bool {
        true
    }
}

/// Answers that are on their way.
pub trait Answers: Send + fmt::Debug {
    /// Are all there?
    fn is_served(&mut self) -> bool;

    /// Waits until all are there, or until then; `None` is as long as it takes. The caller holds no guard, and no lock
    /// that a vCPU might wait for (SAFE-1).
    ///
    /// # Errors
    /// [`NotServed`]: time ran out, or the answer is this thread's own to give.
    fn wait(&self, until: Option<Instant>) -> Result<(), NotServed>;
}

/// Ranges that one re-arm names at most, and that wait for one vCPU at most: more are covered by fewer, or by one of all pages.
/// To ask a vCPU to look at an entry once more than needed is harmless.
pub const MAX_RANGES: usize = 1024;

/// An answer did not come. The pages may be written unheard until it does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotServed {
    /// Not in time.
    #[error("a vCPU came to no safe point within {waited:?}: ask again")]
    Late {
        /// How long was waited.
        waited: Duration,
    },
    /// A vCPU runs on the thread that would wait, so its answer would never come: a device that it called asks, or what holds
    /// it running.
    #[error("a vCPU that has to answer runs on this thread: ask from another, or while it is parked")]
    OwnThread,
    /// This thread holds an RCU guard. A vCPU that has to answer may be in a subscriber that waits for the end of all guards
    /// ([`synchronize`](crate::synchronize)), and each would wait for the other.
    #[error("this thread holds an RCU guard, and a vCPU that has to answer may wait for its end: drop the guard first")]
    Pinned,
}

/// All that may hold fast store entries to the RAM of one list.
#[derive(Default)]
pub(crate) struct Listeners(Mutex<Vec<Arc<dyn Known>>>);

/// A listener that another keeps alive. Not a `Weak` of any type: of a sized one it is known where the last `Arc` is.
trait Known: Send + Sync {
    fn is_gone(&self) -> bool;

    /// Its address, which is no other's as long as this lives.
    fn at(&self) -> *const ();

    /// Calls it, if it is there.
    fn call(&self, call: &mut dyn FnMut(&dyn DirtyListener));
}

impl<L: DirtyListener + 'static> Known for Weak<L> {
    fn is_gone(&self) -> bool {
        self.strong_count() == 0
    }

    fn at(&self) -> *const () {
        self.as_ptr().cast()
    }

    fn call(&self, call: &mut dyn FnMut(&dyn DirtyListener)) {
        let Some(listener) = self.upgrade() else { return };
        call(&*listener);
        // It went meanwhile: a guest's store is no place for its destructor.
        Arc::into_inner(listener).into_iter().for_each(drop_later);
    }
}

/// Some of them, kept alive while they are called.
type Kept = SmallVec<[Arc<dyn Known>; 2]>;

impl Listeners {
    pub(crate) fn add<L: DirtyListener + 'static>(&self, listener: Weak<L>) {
        let mut all = lock(&self.0);
        all.retain(|other| !other.is_gone());
        all.push(Arc::new(listener));
    }

    /// Those of this moment. A later one fills its entries after the bits that the caller took (the lock orders them), so
    /// it need not be asked. They are called with no lock held.
    fn all(&self) -> Kept {
        lock(&self.0).iter().cloned().collect()
    }

    /// Calls each of them.
    pub(crate) fn each(&self, mut call: impl FnMut(&dyn DirtyListener)) {
        self.all().iter().for_each(|listener| listener.call(&mut call));
    }

    /// Calls each but that one.
    fn each_other(&self, but: &dyn DirtyListener, mut call: impl FnMut(&dyn DirtyListener)) {
        let but = core::ptr::from_ref(but).cast();
        // Apart before they are kept alive: mostly there is no other.
        let others = lock(&self.0).iter().filter(|listener| listener.at() != but).cloned().collect::<Kept>();
        others.iter().for_each(|listener| listener.call(&mut call));
    }

    /// The second step of HARVEST-1: each is asked, then each is waited for.
    fn rearm(&self, pages: impl FnOnce() -> Vec<PageRange>, timeout: Option<Duration>) -> Result<(), NotServed> {
        let pages = LazyCell::new(|| {
            let pages = pages();
            log::debug!("re-arm: {} ranges of pages", pages.len());
            pages
        });
        self.ask(|listener| listener.rearm(&pages), timeout)
    }

    /// Each drops all that came from RAM.
    pub(crate) fn flush(&self, timeout: Duration) -> Result<(), NotServed> {
        self.ask(|listener| listener.flush(), Some(timeout))
    }

    /// Each is asked, then each is waited for.
    fn ask(
        &self,
        mut ask: impl FnMut(&dyn DirtyListener) -> Option<Box<dyn Answers>>,
        timeout: Option<Duration>,
    ) -> Result<(), NotServed> {
        let mut answers = SmallVec::<[_; 2]>::new();
        self.each(|listener| answers.extend(ask(listener)));
        if rcu::is_pinned() {
            // SAFE-1: with a guard held nothing is waited for.
            let served = answers.iter_mut().all(|answers| answers.is_served());
            return if served { Ok(()) } else { Err(NotServed::Pinned) };
        }
        let until = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let waited = timeout.unwrap_or(Duration::MAX);
        answers.iter().try_for_each(|answers| answers.wait(until)).map_err(|why| match why {
            NotServed::Late { .. } => NotServed::Late { waited },
            other => other,
        })
    }

    pub(crate) fn kill_code(&self, owners: &[VcpuId], ram: RamAddr, len: u64) {
        self.each(|listener| listener.kill_code(owners, ram, len));
    }
}

impl RamList {
    /// From now on `listener` is asked whenever bits of this list's pages were taken, until its last `Arc` is gone. It
    /// holds no fast entry yet.
    pub fn add_listener<L: DirtyListener + 'static>(&self, listener: Weak<L>) {
        self.listeners().add(listener);
    }

    /// Has every holder of a fast entry for these pages look again, and waits until all have (HARVEST-1). With `None` it
    /// waits for as long as it takes. With no guard held, and no lock that a vCPU might wait for (SAFE-1).
    ///
    /// # Errors
    /// [`NotServed`]: time ran out, a vCPU that has to answer runs on this thread, or there is one to wait for and this thread
    /// holds a guard.
    pub fn rearm(&self, pages: &[PageRange], timeout: Option<Duration>) -> Result<(), NotServed> {
        self.listeners().rearm(|| pages.to_vec(), timeout)
    }

    /// As `rearm`, for a vCPU that does not wait, and has asked its own address space, `but`, by itself.
    pub fn rearm_others(&self, pages: &[PageRange], but: &dyn DirtyListener) -> Vec<Box<dyn Answers>> {
        let mut answers = Vec::new();
        self.listeners().each_other(but, |listener| answers.extend(listener.rearm(pages)));
        answers
    }

    /// Beside `but`, may anything store to this RAM?
    pub fn others_may_store(&self, but: &dyn DirtyListener) -> bool {
        let mut may = false;
        self.listeners().each_other(but, |listener| may = may || listener.may_store());
        may
    }

    /// `but` is about to store: nothing else relies on being the only one when this is `true`.
    pub fn admit_writer(&self, but: &dyn DirtyListener, timeout: Duration) -> bool {
        let mut admitted = true;
        self.listeners().each_other(but, |listener| admitted = admitted && listener.admit_writer(timeout));
        admitted
    }

    /// Those of `owners`, whatever address space they run on, drop their translations of `[ram, ram + len)`.
    pub fn kill_code(&self, owners: &[VcpuId], ram: RamAddr, len: u64) {
        self.listeners().kill_code(owners, ram, len);
    }
}

/// Pages that were dirty, taken and armed: they may be read now. Dropped before [`commit`](Self::commit), they are
/// dirty again.
///
/// ```
/// # use notdirty_core::{DirtyClient, PAGE_SIZE, RamBlockSpec, RamList, pin};
/// # let list = std::sync::Arc::new(RamList::new());
/// # let ram = list.add(RamBlockSpec::new("ram", 1 << 20))?;
/// # let log = list.log(DirtyClient::MIGRATION).start()?;
/// # list.write(&ram, 0x1000, b"bytes")?;
/// let mut copy = vec![];
/// let harvest = log.sync(None)?;
/// for page in harvest.ranges().flat_map(|range| range.iter()) {
///     let block = list.find(page.base(), &pin()).cloned().expect("a harvest keeps its blocks");
///     let mut bytes = vec![0; PAGE_SIZE as usize];
///     block.read_bytes(page.base().get() - block.offset().get(), &mut bytes)?; // an error here: the page comes again
///     copy.push((page, bytes));
/// }
/// harvest.commit();
/// # assert_eq!(copy.len(), 1);
/// # assert_eq!(&copy[0].1[..5], b"bytes");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "a harvest that is not committed marks its pages dirty again"]
pub struct Harvest<'d> {
    pages: PageSet,
    /// Where pages go that are not committed.
    pending: &'d Pending,
    /// The blocks of the pages stay alive, and so their addresses theirs, until this drops.
    _alive: Vec<Arc<RamBlock>>,
}

impl<'d> Harvest<'d> {
    /// Not armed yet.
    pub(super) fn new(pages: PageSet, pending: &'d Pending, alive: Vec<Arc<RamBlock>>) -> Self {
        Self { pages, pending, _alive: alive }
    }

    /// The second step of HARVEST-1. A harvest of nothing asks no listener.
    pub(super) fn rearmed(self, list: &RamList, timeout: Option<Duration>) -> Result<Self, NotServed> {
        if !self.pages.is_empty() {
            list.listeners().rearm(|| self.pages.cover(MAX_RANGES), timeout)?;
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
        if !self.pages.is_empty() {
            self.pending.put_back(&self.pages);
        }
    }
}

impl fmt::Debug for Harvest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Harvest").field("pages", &self.pages).finish_non_exhaustive()
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

/// What `asked` and `ranges` have in common; both rise and are disjoint.
pub(super) fn intersection(ranges: &[PageRange], asked: &[PageRange]) -> Vec<PageRange> {
    let mut both = Vec::with_capacity(asked.len());
    let mut from = 0;
    for ask in asked {
        from += ranges[from..].partition_point(|range| range.end <= ask.start);
        for range in ranges[from..].iter().take_while(|range| range.start < ask.end) {
            both.push(PageRange { start: range.start.max(ask.start), end: range.end.min(ask.end) });
        }
    }
    both
}

/// What is in none of these ranges, which rise and are disjoint.
pub(super) fn gaps(ranges: &[PageRange]) -> Vec<PageRange> {
    let mut gaps = Vec::with_capacity(ranges.len() + 1);
    let mut start = PageIndex::new(0);
    for range in ranges {
        gaps.push(PageRange { start, end: range.start });
        start = range.end;
    }
    gaps.push(PageRange { start, end: PageIndex::new(u64::MAX) });
    gaps.retain(|gap| !gap.is_empty());
    gaps
}

/// The blocks that have some of `pages`, to keep them and their addresses. Pages of a block that left the list since it was
/// looked at are taken out.
pub(super) fn hold_blocks(list: &RamList, pages: &mut PageSet, guard: &Guard) -> Vec<Arc<RamBlock>> {
    let (mut blocks, mut gone) = (Vec::new(), false);
    let mut at = PageIndex::new(0);
    while let Some(page) = pages.next(at) {
        at = match list.find(page.base(), guard) {
            Some(block) => {
                blocks.push(block.clone());
                PageRange::of_bytes(block.offset(), block.max_length()).end
            }
            None => {
                gone = true;
                PageIndex::new((page.get() / BLOCK_ALIGN + 1).saturating_mul(BLOCK_ALIGN))
            }
        };
    }
    if gone {
        let held: Vec<_> = blocks.iter().map(|block: &Arc<RamBlock>| block.pages()).collect();
        *pages = pages.within(&held);
    }
    blocks
}

/// Blocks start at multiples of so many pages.
const BLOCK_ALIGN: u64 = 512;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::addr::PAGE_SIZE;
    use crate::ram::RamBlockSpec;
    use crate::rcu::pin;

    /// An unplug between the take and the look for the blocks.
    #[test]
    fn pages_of_a_block_that_left_beside_a_take_are_no_longer_reported_and_the_others_are_with_their_blocks() {
        let list = RamList::new();
        let [first, gone, last] =
            ["first", "gone", "last"].map(|id| list.add(RamBlockSpec::new(id, 1500 * PAGE_SIZE)).unwrap());
        let mut pages = PageSet::new();
        [&first, &gone, &last].iter().for_each(|block| pages.insert(block.pages()));
        list.remove(&gone).unwrap();
        let held = hold_blocks(&list, &mut pages, &pin());
        assert!(held.iter().map(|block| block.idstr()).eq(["first", "last"]));
        assert!(pages.ranges().eq([first.pages(), last.pages()]), "{pages:?}");
    }

    #[test]
    fn a_listener_that_is_gone_is_forgotten_when_the_next_one_comes() {
        struct Nothing;
        impl DirtyListener for Nothing {
            fn rearm(&self, _: &[PageRange]) -> Option<Box<dyn Answers>> {
                None
            }
        }
        let listeners = Listeners::default();
        let stays = Arc::new(Nothing);
        listeners.add(Arc::downgrade(&stays));
        for _ in 0..5 {
            let listener = Arc::new(Nothing);
            listeners.add(Arc::downgrade(&listener));
            assert_eq!((listeners.all().len(), lock(&listeners.0).len()), (2, 2));
        }
    }
}
