//! Pages of RAM that are yet to come: postcopy, and RAM that is read from a file only as it is used.
//!
//! ```text
//!   RamList::set_missing(source, blocks) ─▶ MissingPages        all of the blocks' RAM is given back: it is zero, and here is none of it
//!      │ Gathering   a precopy writes RAM, and says so: mark_received, set_received; discard takes back
//!      ▼ listen      the flag is set, every vCPU drops its TLB and its translations
//!      │ Missing     ┌ softmmu's TLB fill, page walk, fetch ┐                              PageSource::request(block, off)
//!      │             │ host access, DMA, door for writers   ┼─▶ wait(ram) ─▶ the first ─────────▶ a stream, a file
//!      │             └ by RamList::has_missing, one load    ┘       ▲                                   │
//!      │                                                            └──── woken ◀── place(block, off, bytes | zero)
//!      ├─▶ Complete  the last page is here: the flag is clear, the list forgets it all
//!      └─▶ Ended     no page comes any more (`end`): each wait is an error
//! ```
//!
//! Keeps PLACE-1: a page that is missing is placed once. It is claimed before its bytes are written, received only when all are
//! there (Release), and its waiters are told after that; no TLB entry, translation or host access is made of a page that is not
//! received. Until it is placed its memory is zero, so a page of zeros is placed without a copy. The unit is the host's page, as of
//! every other way to have missing pages; a discard rounds out to it.
//!
//! What costs nothing while nothing is missing: [`RamList::has_missing`] is a load of one flag, asked where a TLB entry is made or
//! an access of the host begins, never where an entry is hit.
//!
//! What waits and what does not:
//!
//! | | a missing page |
//! | --- | --- |
//! | a vCPU's load, store, AMO, fetch, page walk | the access did not happen; the vCPU waits parked, serves, and makes it again |
//! | a translator that looks ahead | its block ends before the page |
//! | [`RamList::write`] and its kind, softmmu's `AddressSpace::{read, write}` | wait here, with no guard held |
//! | undo (`BeforeWrite`) | is called by writers, which have waited |
//! | a hook's view, a semihosting call, a device that a vCPU calls | wait in the middle of the instruction: the vCPU is not parked |
//! | [`RamBlock::read_bytes`], `write_raw`, `slice` and other raw ones | do not ask: for what places, and for logs; by [`UserFaults`] wait in the kernel |
//! | checkpoints | read all RAM, or put it back: refused while [`RamList::missing`] ([`Image::check_whole`](crate::Image::check_whole)) |
//!
//! | file | concept |
//! | --- | --- |
//! | `states.rs` | claimed, received, requested; waiters: the protocol without the memory |
//! | `marks.rs` | which pages are here, before any is waited for, and for a recovery |
//! | `temporary.rs` | records of 4 KiB become a whole page of the host |
//! | `wait.rs` | what waits, and what was asked for |
//! | `blocktime.rs` | how long was waited |
//! | `faults.rs`, `userfault/` | how a missing page is noticed and placed: by the softmmu alone, or by the host's MMU, too |

mod blocktime;
mod error;
mod faults;
mod list;
mod marks;
mod states;
mod temporary;
mod userfault;
mod wait;

pub use blocktime::{Blocktime, VcpuBlocktime, Waiter};
pub use error::{MissingError, MissingPhase};
pub use faults::{FaultKind, FaultSource, Placing, SoftwareFaults};
pub(crate) use list::MissingDoor;
pub use states::{Claim, Ended, PageStates, WaitToken, Waiting, Woken};
pub use temporary::{Part, TemporaryPage};
pub use userfault::{NoUserfault, PeerFaults, PeerRange, SharedFaults, UserFaults, UserfaultLack};

use states::Bits;

use crate::addr::{PAGE_BITS, PAGE_SIZE, RamAddr};
use crate::dirty::DirtyListener;
use crate::ram::{RamBlock, RamFlags, RamList};
use crate::sync::{AtomicU64, Mutex, Ordering, lock};
use core::fmt;
use core::ops::Range;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

/// How long vCPUs may take to drop what they have of pages that are missing now.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where pages come from when they are wanted: a stream, a file.
pub trait PageSource: Send + Sync {
    /// The host page at `off` of this block is wanted. Called once for each page, on the thread that is about to wait for it, with no
    /// lock and no RCU guard held. The bytes come by [`MissingPages::place`], from any thread that does not wait for pages itself, or
    /// from within this call. What fails here is the source's: it keeps the page in mind, or asks for
    /// [all of them again](MissingPages::request_again) when it can.
    ///
    /// The RAM list keeps the source until the last page is here; one that has the list keeps a `Weak` of it.
    fn request(&self, block: &Arc<RamBlock>, off: u64);

    /// The caller waits for a page that was requested, and lends its thread: what comes is placed here, until `over`, which is asked again and
    /// again. `false`: there is nothing to do, and it sleeps until it is woken. With no lock and no RCU guard held.
    fn help(&self, over: &mut dyn FnMut() -> bool) -> bool {
        let _ = over;
        false
    }

    /// As [`request`](Self::request), of neighbours: `len` bytes, whole host pages but for the end of the block.
    fn request_run(&self, block: &Arc<RamBlock>, off: u64, len: u64) {
        let page = block.page_size();
        (off..off.saturating_add(len)).step_by(page as usize).for_each(|off| self.request(block, off));
    }

    /// Pages were requested by a thread that must not sleep for them: it places what comes at once, until `over`, and another thread reads
    /// the rest. With no lock and no RCU guard held.
    fn hand_over(&self, over: &mut dyn FnMut() -> bool) {
        let _ = over;
    }
}

/// What a page becomes.
#[derive(Clone, Copy, Debug)]
pub enum PageBytes<'b> {
    /// These bytes: a whole host page, or as much of it as the block has.
    Copy(&'b [u8]),
    /// Zero: nothing is written.
    Zero,
}

/// A block with missing pages.
struct MissingBlock {
    block: Arc<RamBlock>,
    /// The number of its first page in the states: a multiple of 64.
    first: u64,
    /// Bytes of a page.
    page: u64,
    /// `postcopy_length`: nothing beyond it is missing. It follows the block's until `listen`, and then stays.
    length: AtomicU64,
    /// Does memory that was given back read as zero?
    zeroes: bool,
}

/// The pages of some blocks that are yet to come. Made by [`RamList::set_missing`].
///
/// ```
/// use notdirty_core::{MissingPages, PageBytes, PageSource, RamBlock, RamBlockSpec, RamList};
/// use std::sync::{Arc, mpsc};
///
/// struct Stream(mpsc::Sender<u64>);
/// impl PageSource for Stream {
///     fn request(&self, _block: &Arc<RamBlock>, off: u64) {
///         let _ = self.0.send(off);
///     }
/// }
///
/// let list = Arc::new(RamList::new());
/// let ram = list.add(RamBlockSpec::new("ram", 4 << 20))?;
/// let (to, wanted) = mpsc::channel();
/// let pages = list.set_missing(Arc::new(Stream(to)), [ram.clone()])?;
/// pages.listen()?;
///
/// std::thread::scope(|scope| {
///     let (ram, pages) = (&ram, &pages);
///     let there = scope.spawn(move || {
///         let off = wanted.recv().unwrap();
///         pages.place(ram, off, PageBytes::Copy(&[7; 4096])).unwrap()
///     });
///     list.write(ram, 0x2001, b"text")?; // waits for its page, then writes
///     assert!(there.join().unwrap(), "placed");
///     Ok::<(), Box<dyn std::error::Error>>(())
/// })?;
/// let mut bytes = [0; 6];
/// ram.read_bytes(0x2000, &mut bytes)?;
/// assert_eq!(&bytes, b"\x07text\x07");
///
/// // What nothing asked for comes too.
/// while let Some(off) = pages.next_missing(&ram, 0) {
///     pages.place(&ram, off, PageBytes::Zero)?;
/// }
/// assert!(!list.has_missing());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct MissingPages {
    list: Weak<RamList>,
    source: Arc<dyn PageSource>,
    faults: Arc<dyn FaultSource>,
    /// By rising offset.
    blocks: Box<[MissingBlock]>,
    states: PageStates,
    phase: Mutex<Phase>,
    /// Pages that are not here.
    left: AtomicU64,
    requests: AtomicU64,
    /// The smallest page of any block.
    step: u64,
    /// Pages that are missing, and whose memory is not zero: what came to them is not given back one by one.
    stale: OnceLock<Bits>,
}

struct Phase {
    phase: MissingPhase,
    /// Why no page comes any more.
    why: Arc<str>,
}

impl MissingBlock {
    fn length(&self) -> u64 {
        self.length.load(Ordering::Acquire)
    }

    fn pages(&self) -> Range<u64> {
        self.first..self.first + self.length().div_ceil(self.page)
    }

    /// Where this page begins in the block.
    fn off(&self, page: u64) -> u64 {
        (page - self.first) * self.page
    }
}

impl MissingPages {
    fn new(
        list: &Arc<RamList>,
        source: Arc<dyn PageSource>,
        faults: Arc<dyn FaultSource>,
        mut all: Vec<Arc<RamBlock>>,
    ) -> Self {
        all.sort_by_key(|block| block.offset());
        all.dedup_by(|a, b| Arc::ptr_eq(a, b));
        let step = all.iter().map(|block| block.page_size()).min().unwrap_or(PAGE_SIZE);
        let (mut first, mut left) = (0, 0);
        let blocks = all.into_iter().map(|block| {
            let at = first;
            let (length, page) = (block.used_length(), block.page_size());
            first += block.max_length().div_ceil(page).next_multiple_of(64);
            left += length.div_ceil(page);
            let zeroes = block.fd().is_none() || block.flags().contains(RamFlags::SHARED);
            MissingBlock { block, first: at, page, length: AtomicU64::new(length), zeroes }
        });
        let blocks = blocks.collect();
        Self {
            list: Arc::downgrade(list),
            source,
            faults,
            blocks,
            states: PageStates::new(first),
            phase: Mutex::new(Phase { phase: MissingPhase::Gathering, why: "".into() }),
            left: AtomicU64::new(left),
            requests: AtomicU64::new(0),
            step,
            stale: OnceLock::new(),
        }
    }

    /// How far this is.
    pub fn phase(&self) -> MissingPhase {
        lock(&self.phase).phase
    }

    /// How many pages are not here yet.
    pub fn left(&self) -> u64 {
        self.left.load(Ordering::Acquire)
    }

    /// How many pages were asked for by what needed them.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// How long pages were waited for.
    pub fn blocktime(&self) -> Blocktime {
        self.states.times().sums()
    }

    /// So many vCPUs there are: time in which all of them wait is told apart.
    pub fn set_vcpus(&self, vcpus: u32) {
        self.states.times().set_vcpus(vcpus);
    }

    /// The blocks.
    pub fn blocks(&self) -> impl Iterator<Item = &Arc<RamBlock>> {
        self.blocks.iter().map(|found| &found.block)
    }

    fn of(&self, block: &RamBlock) -> Result<&MissingBlock, MissingError> {
        let found = self.blocks.binary_search_by_key(&block.offset(), |other| other.block.offset()).ok();
        let found = found.map(|at| &self.blocks[at]).filter(|found| core::ptr::eq(&*found.block, block));
        found.ok_or_else(|| MissingError::UnknownBlock { idstr: block.idstr().to_owned() })
    }

    /// The block of an address, and the number of its page; `None` where nothing was ever missing.
    fn page_of(&self, ram: RamAddr) -> Option<(&MissingBlock, u64)> {
        let above = self.blocks.partition_point(|other| other.block.offset() <= ram);
        let found = self.blocks.get(above.checked_sub(1)?)?;
        let off = ram.get() - found.block.offset().get();
        (off < found.length()).then_some((found, found.first + off / found.page))
    }

    /// Is the host page of this address missing? If not, its bytes are visible.
    #[inline]
    pub fn is_missing(&self, ram: RamAddr) -> bool {
        self.page_of(ram).is_some_and(|(_, page)| !self.states.is_received(page))
    }

    /// `off` and `len` inside the part of the block that may be missing, as pages of the states: those that it touches.
    fn range(&self, block: &RamBlock, off: u64, len: u64) -> Result<(&MissingBlock, Range<u64>), MissingError> {
        let found = self.of(block)?;
        let length = found.length();
        match off.checked_add(len) {
            Some(end) if end <= length => {
                Ok((found, found.first + off / found.page..found.first + end.div_ceil(found.page)))
            }
            _ => Err(MissingError::OutOfBounds { idstr: block.idstr().to_owned(), off, len, length }),
        }
    }

    fn only_in(&self, want: MissingPhase, doing: &'static str) -> Result<(), MissingError> {
        let phase = self.phase();
        if phase == want { Ok(()) } else { Err(MissingError::Phase { doing, phase }) }
    }

    /// What may be missing of a block: so many bytes from its start.
    ///
    /// # Errors
    /// [`MissingError::UnknownBlock`].
    pub fn length_of(&self, block: &RamBlock) -> Result<u64, MissingError> {
        Ok(self.of(block)?.length())
    }

    /// How many pages of a block are not here.
    pub fn left_of(&self, block: &RamBlock) -> u64 {
        let Ok(found) = self.of(block) else { return 0 };
        let pages = found.pages();
        let here: u64 = self.states.received(pages.clone()).map(|word| u64::from(word.count_ones())).sum();
        (pages.end - pages.start).saturating_sub(here)
    }

    /// The block was resized: as long as nothing waits, what came is missing, and what went is not. Later what may be missing is fixed.
    pub(crate) fn follow_length(&self, block: &Arc<RamBlock>) -> Result<(), MissingError> {
        let Ok(found) = self.of(block) else { return Ok(()) };
        if self.phase() != MissingPhase::Gathering {
            return Ok(());
        }
        let new = block.used_length();
        let old = found.length.swap(new, Ordering::AcqRel);
        let pages = |length: u64| found.first + length.div_ceil(found.page);
        if new < old {
            let cut = pages(new)..pages(old);
            let count = cut.end - cut.start;
            let here = self.states.forget(cut);
            self.left.fetch_sub(count - here, Ordering::AcqRel);
        } else if new > old {
            self.left.fetch_add(pages(new) - pages(old), Ordering::AcqRel);
            // What an earlier length left there.
            self.discard(block, old, new - old)?;
        }
        Ok(())
    }

    /// From here on what is missing is waited for. Every vCPU drops its TLB and its translations, or is parked and does before it
    /// runs; with no guard held, and not on the thread of a vCPU that runs.
    ///
    /// # Errors
    /// [`MissingError::Phase`] unless gathering; [`MissingError::NotServed`] if a vCPU does not answer: then nothing is waited for.
    pub fn listen(&self) -> Result<(), MissingError> {
        let mut phase = lock(&self.phase);
        if phase.phase != MissingPhase::Gathering {
            return Err(MissingError::Phase { doing: "listen", phase: phase.phase });
        }
        let Some(list) = self.list.upgrade() else { return Ok(()) };
        let Some(own) = list.missing().filter(|pages| core::ptr::eq(&**pages, self)) else { return Ok(()) };
        // First: what a vCPU fills after it has flushed is asked about.
        list.missing_door().set(true);
        let armed = self.faults.arm(&own);
        if let Err(why) = armed.and_then(|()| list.listeners().flush(PATIENCE).map_err(MissingError::NotServed)) {
            list.missing_door().set(false);
            self.faults.disarm();
            return Err(why);
        }
        phase.phase = MissingPhase::Missing;
        drop(phase);
        self.finish_if_complete();
        Ok(())
    }

    /// The page at `off` is here: these bytes, which no one sees before all of them are there. `false`: it was here already, and nothing was
    /// done. One that another thread is placing is waited for, as that may fail: so whatever comes behind this page finds it here. Its waiters
    /// are told; logs hear of it as of a write.
    ///
    /// # Errors
    /// [`MissingError::OddPage`] if it is not one whole page, [`MissingError::UnknownBlock`], [`MissingError::OutOfBounds`];
    /// [`MissingError::Phase`] once no page comes any more.
    pub fn place(&self, block: &RamBlock, off: u64, bytes: PageBytes<'_>) -> Result<bool, MissingError> {
        let (found, pages) = self.range(block, off, 1)?;
        let length = found.length();
        let len = found.page.min(length - off);
        let given = if let PageBytes::Copy(bytes) = bytes { bytes.len() as u64 } else { len };
        if !off.is_multiple_of(found.page) || given != len {
            let idstr = block.idstr().to_owned();
            return Err(MissingError::OddPage { idstr, off, len: given, page: found.page });
        }
        let phase = self.phase();
        if phase == MissingPhase::Ended {
            return Err(MissingError::Phase { doing: "place a page", phase });
        }
        let claim = loop {
            if let Some(claim) = self.states.claim(pages.start) {
                break claim;
            }
            if self.states.is_received(pages.start) {
                return Ok(false);
            }
            std::thread::yield_now();
        };
        let is_zero = found.zeroes && !self.stale.get().is_some_and(|stale| stale.has(pages.start));
        let page = Placing { block, off, len, is_zero };
        self.faults.place(page, bytes)?;
        if let Some(list) = self.list.upgrade() {
            // Before it can be read: a sync that takes the page's bit reads these bytes.
            list.after(RamAddr::new(block.offset().get() + off), len);
        }
        claim.receive();
        self.faults.placed(page);
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.finish_if_complete();
        }
        Ok(true)
    }

    /// All is here: the list forgets this.
    fn finish_if_complete(&self) {
        let mut phase = lock(&self.phase);
        if phase.phase != MissingPhase::Missing || self.left() != 0 {
            return;
        }
        phase.phase = MissingPhase::Complete;
        drop(phase);
        self.detach();
    }

    fn detach(&self) {
        self.faults.disarm();
        if let Some(list) = self.list.upgrade() {
            list.missing_door().clear(self);
            // vCPUs find at their next safe point that loads need no entries any more.
            list.listeners().each(|listener: &dyn DirtyListener| drop(listener.rearm(&[])));
        }
    }

    /// No page comes any more: each wait for one that is not here is an error, with this reason. What is here stays usable. A channel that
    /// may come back is no reason: then nothing is called, and what waits goes on to.
    pub fn end(&self, why: &str) {
        let mut phase = lock(&self.phase);
        if matches!(phase.phase, MissingPhase::Complete | MissingPhase::Ended) {
            return;
        }
        *phase = Phase { phase: MissingPhase::Ended, why: why.into() };
        drop(phase);
        self.states.end();
        self.faults.disarm();
    }

    /// How missing pages are noticed.
    pub fn fault_kind(&self) -> FaultKind {
        self.faults.kind()
    }

    /// Where the host's MMU notices them: for [what other processes share](UserFaults::share).
    pub fn userfaults(&self) -> Option<&UserFaults> {
        self.faults.as_userfaults()
    }

    /// Nothing of the source of faults is left when this returns, and none of its peers is answered any more: behind the last page, or the
    /// [end](Self::end).
    pub fn close_faults(&self) {
        self.faults.close();
    }

    /// The pages of a block that are not here: runs of bytes, whole pages of the host.
    fn missing_runs(&self, block: &RamBlock) -> Vec<Range<u64>> {
        let Ok(found) = self.of(block) else { return Vec::new() };
        let mut runs: Vec<Range<u64>> = Vec::new();
        for (word, here) in self.states.received(found.pages()).enumerate() {
            let mut left = !here;
            while left != 0 {
                let first = left.trailing_zeros();
                let count = (left >> first).trailing_ones();
                left &= u64::MAX.checked_shl(first + count).unwrap_or(0);
                let start = (word as u64 * 64 + u64::from(first)) * found.page;
                let end = start + u64::from(count) * found.page;
                match runs.last_mut() {
                    Some(last) if last.end == start => last.end = end,
                    _ => runs.push(start..end),
                }
            }
        }
        let length = found.length().next_multiple_of(found.page);
        runs.retain_mut(|run| {
            run.end = run.end.min(length);
            !run.is_empty()
        });
        runs
    }

    fn ended(&self) -> MissingError {
        MissingError::Ended { why: lock(&self.phase).why.to_string() }
    }
}

impl fmt::Debug for MissingPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (phase, left) = (self.phase(), self.left());
        f.debug_struct("MissingPages").field("phase", &phase).field("left", &left).finish_non_exhaustive()
    }
}

const _: () = assert!(PAGE_SIZE == 1 << PAGE_BITS);
