//! Where translated code lies in guest RAM, to the 64-byte line.
//!
//! ```text
//!   CodePages  top[2^14] ─CAS─▶ mid[2^13] ─CAS─▶ leaf: 512 × CodePage { mask, generation }
//!                                                     ▲ a TLB entry's aux points here (flag CODEPAGE)
//!   mask bit n set  = bytes 64n..64n+63 of the page hold translated or announced code
//!   mask == 0      <=> the CODE bit of the page is set in dirty memory: "nothing to protect here"
//! ```
//!
//! Keeps the shared half of CODE-1: `announce` ORs the mask before it clears CODE, `set_lines` sets CODE only with
//! an empty mask; both hold the page's lock, so neither can undo the other's half. A store tests the mask after its
//! bytes are visible, and raises the generation when it hits. Leaves never move and are freed only with the whole.

use notdirty_core::{ClientMask, DirtyClient, Guard, LINE_BITS, PAGE_SIZE, PageIndex, PageRange, RamAddr, RamList};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Who drops translations when the bytes under them change.
pub trait CodeInvalidator {
    /// Bytes `[ram, ram + len)` were written (already visible): drop every TB that overlaps; returns how many died.
    fn code_written(&mut self, mmu: &CodePages, ram: RamAddr, len: u64) -> usize;
}

/// One page of guest RAM, as far as translated code is concerned.
#[repr(C)]
#[derive(Debug, Default)]
pub struct CodePage {
    /// Bit n: the n-th 64-byte line holds translated or announced code.
    pub mask: AtomicU64,
    /// Raised by each store that hits a line of the mask. With one hart a kill that is posted says the same, so nobody
    /// asks yet; several harts that translate will.
    pub generation: AtomicU64,
}

// Emitted code tests the mask through a pointer to the page.
const _: () = assert!(core::mem::offset_of!(CodePage, mask) == 0 && size_of::<CodePage>() == 16);

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

const LEAF_BITS: u32 = 9;
const MID_BITS: u32 = 13;
const TOP_BITS: u32 = 14;
const LOCKS: usize = 64;

type Leaf = [CodePage; 1 << LEAF_BITS];
type Mid = [AtomicPtr<Leaf>; 1 << MID_BITS];
type Top = [AtomicPtr<Mid>; 1 << TOP_BITS];

/// The code lines of all guest RAM.
pub struct CodePages {
    top: NonNull<Top>,
    locks: [Mutex<()>; LOCKS],
    /// Stands for every page past 256 TiB of RAM, which no host can map: its lines are never forgotten, so that
    /// sharing it only costs speed.
    beyond: CodePage,
}

// SAFETY: the tree is reached through atomics only, and its nodes are plain atomics too.
unsafe impl Send for CodePages {}
// SAFETY: as above.
unsafe impl Sync for CodePages {}

/// Allocates a node of atomics, all zero.
fn zeroed<T>() -> NonNull<T> {
    let layout = Layout::new::<T>();
    // SAFETY: the callers' types are arrays of atomics, so the size is not zero.
    let raw = unsafe { alloc_zeroed(layout) };
    NonNull::new(raw.cast()).unwrap_or_else(|| handle_alloc_error(layout))
}

/// Frees what `zeroed::<T>` gave.
///
/// # Safety
/// `node` came from `zeroed::<T>` and nobody uses it any more.
unsafe fn free<T>(node: *mut T) {
    // SAFETY: the caller's promise; same layout as in `zeroed`.
    unsafe { dealloc(node.cast(), Layout::new::<T>()) }
}

/// The node behind `slot`, installed by CAS if it was absent.
fn install<T>(slot: &AtomicPtr<T>) -> NonNull<T> {
    if let Some(node) = NonNull::new(slot.load(Ordering::Acquire)) {
        return node;
    }
    let fresh = zeroed::<T>();
    // Release partners the Acquire loads here and in `page`: who sees the pointer sees the zeroes.
    match slot.compare_exchange(ptr::null_mut(), fresh.as_ptr(), Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => fresh,
        Err(winner) => {
            // SAFETY: `fresh` was never published.
            unsafe { free(fresh.as_ptr()) };
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
    pub(crate) fn new() -> Self {
        CodePages { top: zeroed(), locks: [const { Mutex::new(()) }; LOCKS], beyond: CodePage::default() }
    }

    fn top(&self) -> &Top {
        // SAFETY: allocated in `new`, freed in `drop`; zeroes are valid null `AtomicPtr`s.
        unsafe { self.top.as_ref() }
    }

    /// The page's line mask and generation, if its chunk was ever asked for.
    #[inline]
    pub fn page(&self, page: PageIndex) -> Option<&CodePage> {
        let Some((top, mid, leaf)) = path(page) else { return Some(&self.beyond) };
        let mid_node = NonNull::new(self.top()[top].load(Ordering::Acquire))?;
        // SAFETY: installed nodes live until `drop`, and Acquire made their zeroes visible.
        let leaf_node = NonNull::new(unsafe { mid_node.as_ref() }[mid].load(Ordering::Acquire))?;
        // SAFETY: as above.
        Some(&unsafe { leaf_node.as_ref() }[leaf])
    }

    /// The page's line mask and generation. The reference's address stays good as long as `self`.
    pub fn page_or_insert(&self, page: PageIndex) -> &CodePage {
        let Some((top, mid, leaf)) = path(page) else { return &self.beyond };
        let mid_node = install(&self.top()[top]);
        // SAFETY: installed nodes live until `drop`.
        let leaf_node = install(&unsafe { mid_node.as_ref() }[mid]);
        // SAFETY: as above.
        let leaf_node: &Leaf = unsafe { leaf_node.as_ref() };
        &leaf_node[leaf]
    }

    /// See the free function of this name.
    pub const fn lines_of(page_offset: u64, len: u64) -> u64 {
        lines_of(page_offset, len)
    }

    fn lock(&self, page: PageIndex) -> MutexGuard<'_, ()> {
        // A poisoned lock protects no data of its own.
        self.locks[page.get() as usize % LOCKS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// First step of a translation (CODE-1): from here on, stores to these lines are heard.
    /// The caller re-arms the TLBs next (its own at once, the others by request), and only then reads the bytes.
    pub fn announce(&self, ram: &RamList, page: PageIndex, lines: u64, guard: &Guard) -> &CodePage {
        let code = self.page_or_insert(page);
        let _lock = self.lock(page);
        if lines != 0 {
            code.mask.fetch_or(lines, Ordering::SeqCst);
            ram.dirty().test_and_clear(page, DirtyClient::CODE, guard);
        }
        code
    }

    /// The owner recomputed which lines still hold code, after dropping TBs. Zero gives the page back: CODE is set,
    /// and the next slow store makes its entry fast.
    pub fn set_lines(&self, ram: &RamList, page: PageIndex, new_mask: u64, guard: &Guard) {
        let code = self.page_or_insert(page);
        let _lock = self.lock(page);
        if ptr::eq(code, &self.beyond) {
            code.mask.fetch_or(new_mask, Ordering::SeqCst);
            return;
        }
        code.mask.store(new_mask, Ordering::SeqCst);
        if new_mask == 0 {
            let end = PageIndex::new(page.get() + 1);
            ram.dirty().set(PageRange { start: page, end }, ClientMask::CODE, guard);
        } else {
            ram.dirty().test_and_clear(page, DirtyClient::CODE, guard);
        }
    }

    /// Do `len` bytes at `ram`, all on one page, touch a line with code? Raises the generation if so (CODE-1).
    /// The bytes must be visible already: the caller stands behind a SeqCst fence or a RMW (MARK-1).
    pub(crate) fn hit(&self, ram: RamAddr, len: u64) -> bool {
        self.page(ram.page()).is_some_and(|code| code.hit(lines_of(ram.page_offset(), len)))
    }
}

impl CodePage {
    /// See [`CodePages::hit`].
    #[inline]
    pub(crate) fn hit(&self, lines: u64) -> bool {
        if self.mask.load(Ordering::SeqCst) & lines == 0 {
            return false;
        }
        self.generation.fetch_add(1, Ordering::SeqCst);
        true
    }
}

impl Drop for CodePages {
    fn drop(&mut self) {
        for mid in self.top() {
            let mid = mid.load(Ordering::Acquire);
            let Some(mid_node) = NonNull::new(mid) else { continue };
            // SAFETY: `&mut self`: nobody else is in the tree.
            for leaf in unsafe { mid_node.as_ref() } {
                let leaf = leaf.load(Ordering::Acquire);
                if !leaf.is_null() {
                    // SAFETY: from `install`, and nobody else is in the tree.
                    unsafe { free(leaf) };
                }
            }
            // SAFETY: as above.
            unsafe { free(mid) };
        }
        // SAFETY: from `new`.
        unsafe { free(self.top.as_ptr()) };
    }
}

impl core::fmt::Debug for CodePages {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("CodePages").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
