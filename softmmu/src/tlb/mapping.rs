//! Zeroed anonymous memory that costs nothing until it is touched.

use std::io;
use std::ptr::{self, NonNull};

/// An anonymous private mapping.
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

impl Mapping {
    /// Maps `len` zero bytes (`len` is not zero), page-aligned.
    pub(crate) fn zeroed(len: usize) -> io::Result<Mapping> {
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice disturbs nothing.
        let raw = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if raw == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(raw.cast()).ok_or_else(|| io::Error::other("mmap gave address zero"))?;
        Ok(Mapping { start, len })
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: ours, from `zeroed`; its users die with their owner.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
