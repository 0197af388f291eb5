//! Memory that is held until a contender wants it.
//!
//! ```text
//!   take ── each page touched ──▶ held … drop ──▶ the kernel gives these pages to whoever asks next: the contender
//! ```
//!
//! A virtual machine's host takes free memory away, and gives it back a page at a time when it is touched, which then takes ten
//! times as long as all that is measured here. So the memory that a source, a target or a file is going to need is in use until then.

use std::ptr::null_mut;

const HUGE: usize = 2 << 20;

/// So much memory.
pub(super) struct Kept {
    at: *mut libc::c_void,
    bytes: usize,
}

impl Kept {
    /// Takes it. If the host has none there is nothing to hold.
    pub fn take(mib: u64) -> Kept {
        let bytes = (mib as usize) << 20;
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping, wherever the kernel likes.
        let at = unsafe { libc::mmap(null_mut(), bytes, prot, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Kept { at: null_mut(), bytes: 0 };
        }
        // SAFETY: our own mapping, and the advice changes no content.
        unsafe { libc::madvise(at, bytes, libc::MADV_HUGEPAGE) };
        // SAFETY: as above; without the memory nothing happens.
        unsafe { libc::madvise(at, bytes.next_multiple_of(HUGE), libc::MADV_POPULATE_WRITE) };
        Kept { at, bytes }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if self.bytes != 0 {
            // SAFETY: our own mapping, to which nothing points.
            unsafe { libc::munmap(self.at, self.bytes) };
        }
    }
}
