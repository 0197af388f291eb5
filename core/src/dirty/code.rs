//! Where translated code lies in guest RAM: to the 64-byte line for its owners, to the halfword for what a store tests.
//!
//! ```text
//!   CodePages  top[2^14] ─CAS─▶ mid[2^13] ─CAS─▶ leaf: 512 × CodePage { mask, halves }
//!              │                                      ▲ a TLB entry's aux points here (flag CODEPAGE)
//!              └─ shards, each behind a lock: page ─▶ [(vCPU, its lines)]
//!
//!   mask bit n set  = bytes 64n..64n+63 of the page hold translated or announced code of some vCPU
//!   mask            = the union of what the vCPUs have there
//!   mask == 0      <=> the CODE bit of the page is set in dirty memory: "nothing to protect here"
//!   half n clear    = bytes 2n and 2n+1 hold none. Set, they do, or did while their line was never without code.
//! ```
//!
//! So data beside code, in the very line, is stored to without a call. A half that outlived its code costs
//! time, not correctness: a store that hits it finds no TB, and the one vCPU that has the line counts its halves again
//! (`set_halves`).
//!
//! The RAM list has them, not an address space: a page of RAM may be seen through several, and each store to it is the
//! concern of all vCPUs that translated it. CODE is no client that a caller can name: its bits follow from the masks.
//!
//! Keeps the shared half of CODE-1: `announce_code` ORs the mask before it clears CODE, `set_code_lines` sets CODE only with
//! an empty union; both hold the page's lock, so neither can undo the other's half. A store tests the mask after its
//! bytes are visible; if it hits, the shard says exactly which vCPUs' lines these are: a vCPU that announces one after that has
//! yet to read the bytes, and sees them. Leaves never move and are freed only with the whole.

use super::lines::NotedPage;
use super::{ClientMask, DirtyClient, DirtyMemory};
use crate::addr::{LINE_BITS, PAGE_SIZE, PageIndex, PageRange, RamAddr};
use crate::rcu::Guard;
use crate::sync::{AtomicU64, MODEL, Mutex, MutexGuard, lock};
use hashbrown::HashMap;
use smallvec::SmallVec;
use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, Ordering};

/// Names a vCPU: the owner of translations, and of a queue of requests. No two vCPUs of a process share one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct VcpuId(u64);

impl VcpuId {
    /// No vCPU: what announces the sets of reservations (`ram/reserve.rs`).
    pub const RESERVED: VcpuId = VcpuId(u64::MAX);

    /// A name that no other vCPU has.
    pub fn fresh() -> Self {
        /// Nothing is ordered by it, so it is std's in a model, too. Zero is the default's.
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        VcpuId(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// One page of guest RAM: where translated code lies, and which lines were written (`lines.rs`).
#[repr(C, align(64))]
#[derive(Debug)]
pub struct CodePage {
    /// Bit n: the n-th 64-byte line holds translated or announced code, of whatever vCPU.
    pub mask: AtomicU64,
    /// What vCPUs stored there since it was last taken.
    pub(super) noted: NotedPage,
    /// Bit n of all: bytes 2n and 2n+1 may be code. Written under the page's lock.
    halves: [AtomicU64; HALVES],
    /// Bit n: the n-th line is announced for reservations, and holds no code: what is stored there kills nothing. Written under the
    /// page's lock. Emitted code reads four bytes that begin in `halves`, so something must be behind them.
    reserved: AtomicU64,
}

/// Words of a page's `halves`, of two lines each.
const HALVES: usize = if MODEL { 1 } else { PAGE_SIZE as usize / 128 };
/// Where emitted code finds the halves, from the address in an entry's `aux`: bit n % 8 of byte n / 8 is half n.
pub const HALVES_OFFSET: i32 = core::mem::offset_of!(CodePage, halves) as i32;
/// The same for the mask.
pub const MASK_OFFSET: i32 = core::mem::offset_of!(CodePage, mask) as i32;

/// The same for what is noted of stores.
pub const NOTED_OFFSET: i32 = core::mem::offset_of!(CodePage, noted) as i32;

const _: () = assert!(MODEL || HALVES_OFFSET == 32 && size_of::<CodePage>() == (40 + 8 * HALVES).next_multiple_of(64));

/// Some bytes `[from, to)` of a page as bits of the words of `halves`.
fn halves_of(from: u64, to: u64) -> impl Iterator<Item = (usize, u64)> {
    let to = to.min(PAGE_SIZE);
    let words = if from < to { from / 128..to.div_ceil(128) } else { 0..0 };
    words.map(move |word| {
        let low = (from.max(128 * word) - 128 * word) / 2;
        let high = (to.min(128 * word + 128) - 1 - 128 * word) / 2;
        // In a model one word stands for all.
        (word as usize % HALVES, (u64::MAX >> (63 - (high - low))) << low)
    })
}

/// The lines of a page that `[page_offset, page_offset + len)` touches; what lies beyond the page is cut off.
#[inline]
pub const fn lines_of(page_offset: u64, len: u64) -> u64 {
    if len == 0 || page_offset >= PAGE_SIZE {
        return 0;
    }
    let end = page_offset.saturating_add(len - 1);
    let last = if end >= PAGE_SIZE { 63 } else { end >> LINE_BITS };
    let first = page_offset >> LINE_BITS;
    (u64::MAX >> (63 - (last - first))) << first
}

const LEAF_BITS: u32 = if MODEL { 1 } else { 9 };
const MID_BITS: u32 = if MODEL { 1 } else { 13 };
const TOP_BITS: u32 = if MODEL { 1 } else { 14 };
const SHARDS: usize = if MODEL { 1 } else { 64 };

type Leaf = [CodePage; 1 << LEAF_BITS];
type Mid = [AtomicPtr<Leaf>; 1 << MID_BITS];
type Top = [AtomicPtr<Mid>; 1 << TOP_BITS];

/// Some vCPUs.
pub type Owned = SmallVec<[VcpuId; 4]>;
/// The owners of each line of a page. Most pages have one owner, so a list is short.
type Owners = SmallVec<[(VcpuId, u64); 2]>;
/// The pages that have lines with an owner.
type Shard = HashMap<PageIndex, Owners>;

/// The code lines of all guest RAM.
pub struct CodePages {
    /// Null until there is a page: most lists of a process that runs no guest have none.
    top: AtomicPtr<Top>,
    shards: [Mutex<Shard>; SHARDS],
    /// Stands for every page past 256 TiB of RAM, which no host can map: its lines are never forgotten, so that
    /// sharing it only costs speed.
    beyond: CodePage,
}

// SAFETY: the tree is reached through atomics only, and its nodes are plain atomics too.
unsafe impl Send for CodePages {}
// SAFETY: as above.
unsafe impl Sync for CodePages {}

/// A node of the tree: made empty, in place, as some are larger than a stack likes.
///
/// # Safety
/// `empty` gives a node with no other owner, which `free` can free.
unsafe trait Node: Sized {
    /// A node without anything.
    fn empty() -> NonNull<Self> {
        let layout = Layout::new::<Self>();
        // SAFETY: the implementors are arrays of atomics, so the size is not zero; and zeroes are valid.
        let raw = unsafe { alloc_zeroed(layout) };
        NonNull::new(raw.cast()).unwrap_or_else(|| handle_alloc_error(layout))
    }

    /// # Safety
    /// `node` came from `empty` and no thread uses it any more.
    unsafe fn free(node: *mut Self) {
        // SAFETY: the caller's promise; a box has the layout that `empty` asked for.
        drop(unsafe { Box::from_raw(node) });
    }
}

// SAFETY: as provided; null pointers are zeroes.
unsafe impl Node for Top {}
// SAFETY: as above.
unsafe impl Node for Mid {}
// SAFETY: as provided; masks of zero are zeroes. A model's atomics are not: there it is a box.
unsafe impl Node for Leaf {
    #[cfg(loom)]
    fn empty() -> NonNull<Self> {
        NonNull::from(Box::leak(Box::new(core::array::from_fn(|_| CodePage::default()))))
    }
}

/// The node behind `slot`, installed by CAS if it was absent.
fn install<T: Node>(slot: &AtomicPtr<T>) -> NonNull<T> {
    if let Some(node) = NonNull::new(slot.load(Ordering::Acquire)) {
        return node;
    }
    let fresh = T::empty();
    // Release partners the Acquire loads here and in `page`: a thread that sees the pointer sees the zeroes.
    match slot.compare_exchange(ptr::null_mut(), fresh.as_ptr(), Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => fresh,
        Err(winner) => {
            // SAFETY: `fresh` was never published.
            unsafe { T::free(fresh.as_ptr()) };
            // SAFETY: the exchange failed because the slot held something, and nodes are not taken back.
            unsafe { NonNull::new_unchecked(winner) }
        }
    }
}

/// Indexes of a page on its way down, or `None` past the end of the tree.
fn path(page: PageIndex) -> Option<(usize, usize, usize)> {
    let n = page.get();
    let part = |low: u32, bits: u32| (n >> low) as usize & ((1 << bits) - 1);
    (n >> (LEAF_BITS + MID_BITS + TOP_BITS) == 0)
        .then(|| (part(LEAF_BITS + MID_BITS, TOP_BITS), part(LEAF_BITS, MID_BITS), part(0, LEAF_BITS)))
}

impl CodePages {
    /// No code anywhere.
    pub fn new() -> Self {
        CodePages {
            top: AtomicPtr::new(ptr::null_mut()),
            shards: core::array::from_fn(|_| Mutex::new(Shard::default())),
            beyond: CodePage { halves: core::array::from_fn(|_| AtomicU64::new(u64::MAX)), ..CodePage::default() },
        }
    }

    fn top(&self) -> Option<&Top> {
        // SAFETY: null, or installed and freed in `drop`; zeroes are valid null `AtomicPtr`s, which Acquire made visible.
        unsafe { self.top.load(Ordering::Acquire).as_ref() }
    }

    /// The page's line mask, if its chunk was ever asked for.
    #[inline]
    pub fn page(&self, page: PageIndex) -> Option<&CodePage> {
        let Some((top, mid, leaf)) = path(page) else { return Some(&self.beyond) };
        let mid_node = NonNull::new(self.top()?[top].load(Ordering::Acquire))?;
        // SAFETY: installed nodes live until `drop`, and Acquire made their zeroes visible.
        let leaf_node = NonNull::new(unsafe { mid_node.as_ref() }[mid].load(Ordering::Acquire))?;
        // SAFETY: as above.
        Some(&unsafe { leaf_node.as_ref() }[leaf])
    }

    /// The page's line mask. The reference's address stays good as long as `self`.
    pub fn page_or_insert(&self, page: PageIndex) -> &CodePage {
        let Some((top, mid, leaf)) = path(page) else { return &self.beyond };
        // SAFETY: installed nodes live until `drop`.
        let mid_node = install(&unsafe { install(&self.top).as_ref() }[top]);
        // SAFETY: as above.
        let leaf_node = install(&unsafe { mid_node.as_ref() }[mid]);
        // SAFETY: as above.
        let leaf_node: &Leaf = unsafe { leaf_node.as_ref() };
        &leaf_node[leaf]
    }

    /// See the free function of this name.
    pub const fn lines_of(page_offset: u64, len: u64) -> u64 {
        lines_of(page_offset, len)
    }

    fn shard(&self, page: PageIndex) -> MutexGuard<'_, Shard> {
        lock(&self.shards[page.get() as usize % SHARDS])
    }

    /// A store hit halves of these lines and no TB. If `vcpu` alone has them, they become what its TBs there are made from:
    /// `spans`, of which the parts in other lines are ignored. It announces nothing at this moment.
    pub fn set_halves(&self, page: PageIndex, lines: u64, spans: impl Iterator<Item = (u64, u64)>, vcpu: VcpuId) {
        let Some(code) = self.page(page).filter(|code| !MODEL && !ptr::eq(*code, &self.beyond)) else { return };
        let shard = self.shard(page);
        let others = |owners: &Owners| owners.iter().any(|owner| owner.0 != vcpu && owner.1 & lines != 0);
        if shard.get(&page).is_some_and(others) {
            return;
        }
        let mut exact = [0u64; HALVES];
        spans.flat_map(|(from, to)| halves_of(from, to)).for_each(|(word, bits)| exact[word] |= bits);
        for (word, exact) in exact.into_iter().enumerate() {
            let bits = line_halves(lines >> (2 * word));
            if bits != 0 {
                // One store: no half of a TB is clear for a moment.
                let cell = &code.halves[word];
                cell.store(cell.load(Ordering::Relaxed) & !bits | exact & bits, Ordering::Relaxed);
            }
        }
    }

    /// The vCPUs that have announced any of these lines. The bytes must be visible already, as in `hit`: a vCPU that takes
    /// the page's lock after this to announce one reads its bytes after that, and sees them. So no other need be
    /// told.
    pub fn owners(&self, page: PageIndex, lines: u64) -> Owned {
        let shard = self.shard(page);
        let owners = shard.get(&page).map_or(&[][..], |owners| owners.as_slice());
        let has = |owner: &&(VcpuId, u64)| owner.1 & lines != 0 && owner.0 != VcpuId::RESERVED;
        owners.iter().filter(has).map(|owner| owner.0).collect()
    }

    /// The lines that a vCPU has on a page.
    pub fn lines_of_vcpu(&self, page: PageIndex, vcpu: VcpuId) -> u64 {
        let shard = self.shard(page);
        shard.get(&page).and_then(|owners| owners.iter().find(|owner| owner.0 == vcpu)).map_or(0, |owner| owner.1)
    }

    /// Do `len` bytes at `ram`, all on one page, touch code?
    /// The bytes must be visible already: the caller stands behind a SeqCst fence or a RMW (MARK-1).
    pub fn hit(&self, ram: RamAddr, len: u64) -> bool {
        self.page(ram.page()).is_some_and(|code| code.hit(ram.page_offset(), len))
    }
}

impl DirtyMemory {
    /// Where translated code lies.
    pub fn code(&self) -> &CodePages {
        &self.code
    }

    /// Is a store to `page` heard for the sake of translated code? Then its CODE bit is clear.
    pub fn is_code_protected(&self, page: PageIndex, guard: &Guard) -> bool {
        !self.test(page, DirtyClient::CODE, guard)
    }

    /// First step of a translation (CODE-1): from here on, stores to these lines are heard.
    /// The caller re-arms the TLBs next (its own at once, the others by request), and only then reads the bytes.
    pub fn announce_code(&self, page: PageIndex, lines: u64, vcpu: VcpuId, guard: &Guard) -> &CodePage {
        self.announce_spans(page, (0..64).filter(|n| lines >> n & 1 != 0).map(|n| (64 * n, 64 * n + 64)), vcpu, guard)
    }

    /// As `announce_code`, for bytes `[from, to)` of the page.
    pub fn announce_spans(
        &self,
        page: PageIndex,
        spans: impl Iterator<Item = (u64, u64)> + Clone,
        vcpu: VcpuId,
        guard: &Guard,
    ) -> &CodePage {
        let code = self.code.page_or_insert(page);
        let lines = spans.clone().fold(0, |lines, (from, to)| lines | lines_of(from, to.saturating_sub(from)));
        if lines == 0 {
            return code;
        }
        let mut shard = self.code.shard(page);
        // Before the mask: a vCPU that sees a line there sees its halves. If it was there before, the RMW below stands between
        // these stores and the reading of the bytes all the same.
        for (word, bits) in spans.flat_map(|(from, to)| halves_of(from, to)) {
            let old = code.halves[word].load(Ordering::Relaxed);
            if old & bits != bits {
                code.halves[word].store(old | bits, Ordering::Relaxed);
            }
        }
        let owners = shard.entry(page).or_default();
        match owners.iter_mut().find(|owner| owner.0 == vcpu) {
            Some(own) => own.1 |= lines,
            None => owners.push((vcpu, lines)),
        }
        let coded = coded(owners);
        code.mask.fetch_or(lines, Ordering::SeqCst);
        if vcpu == VcpuId::RESERVED && !ptr::eq(code, &self.code.beyond) {
            code.reserved.fetch_or(lines & !coded, Ordering::SeqCst);
        } else if code.reserved.load(Ordering::Relaxed) & lines != 0 {
            // As the mask: a store that does not see it was visible before the bytes are read.
            code.reserved.fetch_and(!lines, Ordering::SeqCst);
        }
        self.test_and_clear(page, DirtyClient::CODE, guard);
        code
    }

    /// `vcpu` recomputed which lines still hold code of its own, after dropping TBs. A page without code of any vCPU is
    /// given back: CODE is set, and the next slow store makes its entry fast.
    pub fn set_code_lines(&self, page: PageIndex, own: u64, vcpu: VcpuId, guard: &Guard) {
        let code = self.code.page_or_insert(page);
        let mut shard = self.code.shard(page);
        let union = owned(&mut shard, page, vcpu, own);
        self.publish_lines(page, code, union, guard);
        reserve_lines(&shard, page, code);
    }

    /// A vCPU is gone, and its translations with it.
    pub fn forget_code_of(&self, vcpu: VcpuId, guard: &Guard) {
        for shard in &self.code.shards {
            let mut shard = lock(shard);
            let own = |owners: &Owners| owners.iter().any(|owner| owner.0 == vcpu);
            let pages: Vec<PageIndex> = shard.iter().filter(|(_, owners)| own(owners)).map(|(page, _)| *page).collect();
            for page in pages {
                let union = owned(&mut shard, page, vcpu, 0);
                let code = self.code.page_or_insert(page);
                self.publish_lines(page, code, union, guard);
                reserve_lines(&shard, page, code);
            }
        }
    }

    /// With the page's lock held: the union changed.
    fn publish_lines(&self, page: PageIndex, code: &CodePage, union: u64, guard: &Guard) {
        if ptr::eq(code, &self.code.beyond) {
            code.mask.fetch_or(union, Ordering::SeqCst);
            return;
        }
        let was = code.mask.load(Ordering::Relaxed);
        let gone = was & !union;
        // Lines that come without their bytes: all of them.
        for (word, bits) in words_of(union & !was) {
            code.halves[word].fetch_or(bits, Ordering::Relaxed);
        }
        code.mask.store(union, Ordering::SeqCst);
        if gone != 0 {
            code.forget_halves(if MODEL && union != 0 { 0 } else { gone });
        }
        if union == 0 {
            self.mark(PageRange::of_page(page), ClientMask::CODE, guard, |_, _, _| {});
        } else {
            self.test_and_clear(page, DirtyClient::CODE, guard);
        }
    }
}

impl Default for CodePages {
    fn default() -> Self {
        Self::new()
    }
}

/// The lines that hold code, of whatever vCPU.
fn coded(owners: &Owners) -> u64 {
    owners.iter().filter(|owner| owner.0 != VcpuId::RESERVED).fold(0, |lines, owner| lines | owner.1)
}

/// Lines of a page may hold code no more, or be no more reserved.
fn reserve_lines(shard: &Shard, page: PageIndex, code: &CodePage) {
    if path(page).is_none() {
        return;
    }
    let reserved = shard.get(&page).and_then(|owners| {
        let reserved = owners.iter().find(|owner| owner.0 == VcpuId::RESERVED)?;
        Some(reserved.1 & !coded(owners))
    });
    // Most pages have none, and had none.
    if reserved.is_some() || code.reserved.load(Ordering::Relaxed) != 0 {
        code.reserved.store(reserved.unwrap_or(0), Ordering::SeqCst);
    }
}

/// Notes what `vcpu` has on a page; returns the union of what all have.
fn owned(shard: &mut Shard, page: PageIndex, vcpu: VcpuId, own: u64) -> u64 {
    let Some(owners) = shard.get_mut(&page) else {
        if own != 0 {
            shard.insert(page, SmallVec::from_slice(&[(vcpu, own)]));
        }
        return own;
    };
    owners.retain(|owner| owner.0 != vcpu);
    if own != 0 {
        owners.push((vcpu, own));
    }
    let union = owners.iter().fold(0, |mask, owner| mask | owner.1);
    if owners.is_empty() {
        shard.remove(&page);
    }
    union
}

impl Default for CodePage {
    fn default() -> Self {
        CodePage {
            mask: AtomicU64::new(0),
            noted: NotedPage::default(),
            halves: core::array::from_fn(|_| AtomicU64::new(0)),
            reserved: AtomicU64::new(0),
        }
    }
}

impl CodePage {
    /// Do `len` bytes at this offset touch code? The bytes must be visible already, as for `CodePages::hit`.
    #[inline]
    pub fn hit(&self, offset: u64, len: u64) -> bool {
        let lines = self.mask.load(Ordering::SeqCst) & lines_of(offset, len);
        lines != 0 && lines & !self.reserved.load(Ordering::SeqCst) != 0 && self.has_halves(offset, len)
    }

    /// May `len` bytes at this offset be of a set that is announced for reservations? Of a line with code, perhaps in vain.
    #[inline]
    pub fn may_be_reserved(&self, offset: u64, len: u64) -> bool {
        self.mask.load(Ordering::SeqCst) & lines_of(offset, len) != 0 && self.has_halves(offset, len)
    }

    /// Are any halves of these bytes set?
    pub fn has_halves(&self, offset: u64, len: u64) -> bool {
        let mut halves = halves_of(offset, offset.saturating_add(len));
        halves.any(|(word, bits)| self.halves[word].load(Ordering::Relaxed) & bits != 0)
    }

    /// Are all halves of these bytes set?
    pub fn has_all_halves(&self, offset: u64, len: u64) -> bool {
        let mut halves = halves_of(offset, offset.saturating_add(len));
        halves.all(|(word, bits)| self.halves[word].load(Ordering::Relaxed) & bits == bits)
    }

    /// These lines hold no code any more. With the page's lock held.
    fn forget_halves(&self, lines: u64) {
        for (word, bits) in words_of(lines) {
            let cell = &self.halves[word];
            cell.store(cell.load(Ordering::Relaxed) & !bits, Ordering::Relaxed);
        }
    }
}

/// The words of `halves` that some lines have a part in, and their halves there. In a model one word stands for all.
fn words_of(lines: u64) -> impl Iterator<Item = (usize, u64)> {
    let mut left = lines;
    std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let word = left.trailing_zeros() as usize / 2;
        let bits = line_halves(left >> (2 * word));
        left = if MODEL { 0 } else { left & !(3 << (2 * word)) };
        Some(if MODEL { (0, u64::MAX) } else { (word, bits) })
    })
}

/// The halves of the two lowest lines.
const fn line_halves(lines: u64) -> u64 {
    ((lines & 1) * 0xffff_ffff) | ((lines >> 1 & 1) * (0xffff_ffff << 32))
}

impl Drop for CodePages {
    fn drop(&mut self) {
        for mid in self.top().into_iter().flatten() {
            let mid = mid.load(Ordering::Acquire);
            let Some(mid_node) = NonNull::new(mid) else { continue };
            // SAFETY: `&mut self`: no other thread is in the tree.
            for leaf in unsafe { mid_node.as_ref() } {
                let leaf = leaf.load(Ordering::Acquire);
                if !leaf.is_null() {
                    // SAFETY: from `install`, and no other thread is in the tree.
                    unsafe { Leaf::free(leaf) };
                }
            }
            // SAFETY: as above.
            unsafe { Mid::free(mid) };
        }
        let top = self.top.load(Ordering::Acquire);
        if !top.is_null() {
            // SAFETY: from `install`, and nothing else has it.
            unsafe { Top::free(top) };
        }
    }
}

impl core::fmt::Debug for CodePages {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("CodePages").finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_halves_of_two_lines_are_those_of_each_and_of_no_other() {
        assert_eq!([0, 1, 2, 3, 4].map(line_halves), [0, 0xffff_ffff, 0xffff_ffff << 32, u64::MAX, 0]);
    }

    #[test]
    fn no_memory_is_taken_for_code_before_there_is_some() {
        let pages = CodePages::new();
        assert!(pages.page(PageIndex::new(7)).is_none() && pages.top().is_none());
        pages.page_or_insert(PageIndex::new(7));
        assert!(pages.page(PageIndex::new(7)).is_some() && pages.top().is_some());
    }

    #[test]
    fn lines_cover_exactly_the_bytes_and_stop_at_the_page() {
        for off in 0..PAGE_SIZE {
            for len in [0u64, 1, 2, 4, 8, 63, 64, 65, 4095, 4096, 9999, u64::MAX] {
                let mut want = 0u64;
                for byte in off..off.saturating_add(len).min(PAGE_SIZE) {
                    want |= 1 << (byte / 64);
                }
                assert_eq!(lines_of(off, len), want, "{off} {len}");
            }
        }
        assert_eq!(lines_of(PAGE_SIZE, 1), 0);
    }

    #[test]
    fn the_mask_is_the_union_of_what_each_vcpu_has() {
        let (dirty, guard) = (DirtyMemory::new(), crate::rcu::pin());
        dirty.grow(64).unwrap();
        let (pages, [a, b]) = (dirty.code(), [VcpuId::fresh(), VcpuId::fresh()]);
        let page = PageIndex::new(3);
        let mask = || pages.page(page).map_or(0, |code| code.mask.load(Ordering::SeqCst));
        let protected = || dirty.is_code_protected(page, &guard);
        dirty.announce_code(page, 0b0011, a, &guard);
        dirty.announce_code(page, 0b0110, b, &guard);
        assert_eq!((mask(), protected()), (0b0111, true));
        assert_eq!(pages.owners(page, 0b0001).as_slice(), [a]);
        assert_eq!(pages.owners(page, 0b0010).as_slice(), [a, b]);
        assert!(pages.owners(page, 0b1000).is_empty());
        dirty.set_code_lines(page, 0b0001, a, &guard);
        assert_eq!((mask(), protected()), (0b0111, true));
        dirty.forget_code_of(b, &guard);
        assert_eq!((mask(), protected()), (0b0001, true));
        dirty.set_code_lines(page, 0, a, &guard);
        assert_eq!((mask(), protected()), (0, false));
        assert!(pages.owners(page, u64::MAX).is_empty());
    }

    #[test]
    fn pages_keep_their_address_and_far_ones_share_the_last() {
        let pages = CodePages::new();
        assert!(pages.page(PageIndex::new(7)).is_none());
        let a: *const CodePage = pages.page_or_insert(PageIndex::new(7));
        for n in 0..40 {
            pages.page_or_insert(PageIndex::new(1 << n));
        }
        assert!(ptr::eq(a, pages.page(PageIndex::new(7)).unwrap()));
        let far = pages.page_or_insert(PageIndex::new(u64::MAX >> 12));
        assert!(ptr::eq(far, &pages.beyond));
    }
}
