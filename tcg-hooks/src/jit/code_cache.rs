//! Where host code lives: one reservation, mapped twice, never moved.
//!
//! ```text
//!   memfd ──┬── RW view: the emitter copies finished code in, links are patched here
//!           └── RX view: what the host executes; addresses in code are of this view
//!   [thunks | chunk 0 | chunk 1 | ... ]   chunks are filled in turn; before one is filled again,
//!                                         every TB in it is killed (CODE-2)
//! ```
//!
//! Keeps the second half of CODE-2: bytes are handed out again only by [`CodeCache::next_chunk`],
//! whose caller is the owning vCPU's loop, outside emitted code, after it killed the chunk's TBs.

use std::io;
use std::ptr::NonNull;

/// A place in the code cache: bytes from its start.
pub type CodeOffset = u32;

/// Host code, writable through one mapping and executable through another.
pub struct CodeCache {
    rw: NonNull<u8>,
    rx: NonNull<u8>,
    len: usize,
    first: usize,
    chunk_len: usize,
    chunks: usize,
    current: usize,
    pos: usize,
}

// SAFETY: the mappings belong to this value alone and have no thread affinity.
unsafe impl Send for CodeCache {}

impl CodeCache {
    /// Pieces that the cache is filled and reclaimed by.
    const CHUNKS: usize = 16;
    /// The least that makes sense: each chunk must take the largest TB.
    pub const MIN_BYTES: usize = 1 << 21;

    /// Reserves `bytes` (rounded up to at least [`CodeCache::MIN_BYTES`]) and copies `thunks` to its start.
    pub fn new(bytes: usize, thunks: &[u8]) -> io::Result<CodeCache> {
        let len = bytes.clamp(Self::MIN_BYTES, 1 << 30).next_multiple_of(1 << 16);
        // SAFETY: plain system calls; results are checked, and the fd is closed on every way out.
        let (rw, rx) = unsafe {
            let fd = libc::memfd_create(c"notdirty-code".as_ptr(), libc::MFD_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            let map = |prot| libc::mmap(std::ptr::null_mut(), len, prot, libc::MAP_SHARED, fd, 0);
            let failed = libc::ftruncate(fd, len as i64) != 0;
            let error = io::Error::last_os_error();
            if failed {
                libc::close(fd);
                return Err(error);
            }
            let rw = map(libc::PROT_READ | libc::PROT_WRITE);
            let rx = map(libc::PROT_READ | libc::PROT_EXEC);
            let error = io::Error::last_os_error();
            libc::close(fd);
            if rw == libc::MAP_FAILED || rx == libc::MAP_FAILED {
                for view in [rw, rx] {
                    if view != libc::MAP_FAILED {
                        libc::munmap(view, len);
                    }
                }
                return Err(error);
            }
            (rw.cast::<u8>(), rx.cast::<u8>())
        };
        let (Some(rw), Some(rx)) = (NonNull::new(rw), NonNull::new(rx)) else {
            return Err(io::Error::other("mapping at address zero"));
        };
        let first = thunks.len().next_multiple_of(4096);
        assert!(first < Self::MIN_BYTES / 2, "thunks are a few hundred bytes");
        let chunk_len = (len - first) / Self::CHUNKS;
        let mut cache = CodeCache { rw, rx, len, first, chunk_len, chunks: Self::CHUNKS, current: 0, pos: 0 };
        cache.copy(0, thunks);
        cache.pos = first;
        Ok(cache)
    }

    /// Bytes that one TB may take at most.
    pub fn chunk_len(&self) -> usize {
        self.chunk_len
    }

    /// How many chunks there are.
    pub fn chunks(&self) -> usize {
        self.chunks
    }

    /// The chunk being filled.
    pub fn current_chunk(&self) -> usize {
        self.current
    }

    /// Is there room for `bytes` in the current chunk?
    pub fn has_room(&self, bytes: usize) -> bool {
        self.pos + bytes <= self.first + (self.current + 1) * self.chunk_len
    }

    /// Moves on to the next chunk and names it: its TBs must be dead before [`CodeCache::push`].
    pub fn next_chunk(&mut self) -> usize {
        self.current = (self.current + 1) % self.chunks;
        self.pos = (self.first + self.current * self.chunk_len).next_multiple_of(16);
        self.current
    }

    /// Where the next code will go.
    pub fn here(&self) -> CodeOffset {
        self.pos as CodeOffset
    }

    /// Copies `code` in; the caller asked [`CodeCache::has_room`]. Returns its place.
    pub fn push(&mut self, code: &[u8]) -> CodeOffset {
        assert!(self.has_room(code.len()), "asked before");
        let at = self.pos;
        self.copy(at, code);
        self.pos = (at + code.len()).next_multiple_of(16);
        at as CodeOffset
    }

    /// Points the 32-bit displacement at `field` to `target`.
    pub fn patch_rel32(&mut self, field: CodeOffset, target: CodeOffset) {
        let rel = (target as i64 - (field as i64 + 4)) as i32;
        self.copy(field as usize, &rel.to_le_bytes());
    }

    /// The executable address of `offset`.
    pub fn address(&self, offset: CodeOffset) -> *const u8 {
        self.rx.as_ptr().wrapping_add(offset as usize)
    }

    /// Copy of emitted bytes, for listings.
    pub fn bytes(&self, at: CodeOffset, len: usize) -> Vec<u8> {
        assert!(at as usize + len <= self.len);
        // SAFETY: in bounds of the RX view (checked above), which is readable and only written by `&mut self`.
        unsafe { std::slice::from_raw_parts(self.rx.as_ptr().add(at as usize), len) }.to_vec()
    }

    fn copy(&mut self, at: usize, code: &[u8]) {
        assert!(at + code.len() <= self.len, "inside the reservation");
        // SAFETY: in bounds of the RW view (checked above), which nobody else has a pointer to.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), self.rw.as_ptr().add(at), code.len()) }
    }
}

impl Drop for CodeCache {
    fn drop(&mut self) {
        // SAFETY: both views were mapped by `new` with this length; emitted code is entered through
        // `&mut` of the owner only, so nobody runs in it now.
        unsafe {
            libc::munmap(self.rw.as_ptr().cast(), self.len);
            libc::munmap(self.rx.as_ptr().cast(), self.len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_written_through_one_view_runs_through_the_other() {
        let mut cache = CodeCache::new(0, &[0x90]).unwrap();
        let at = cache.push(&[0xb8, 42, 0, 0, 0, 0xc3]); // mov eax, 42; ret
        // SAFETY: the bytes just pushed are a complete function of this signature.
        let f: extern "C" fn() -> u32 = unsafe { std::mem::transmute(cache.address(at)) };
        assert_eq!(f(), 42);
        cache.copy(at as usize + 1, &[7]);
        assert_eq!(f(), 7);
    }

    #[test]
    fn chunks_come_round_again_and_none_overlaps_the_thunks() {
        let mut cache = CodeCache::new(0, &[0x90; 100]).unwrap();
        let n = cache.chunks();
        for _ in 0..3 * n {
            assert!(cache.here() as usize >= 4096);
            assert!(cache.has_room(1000));
            cache.push(&[0xcc; 1000]);
            cache.next_chunk();
        }
        assert!(!cache.has_room(cache.chunk_len() + 1));
    }
}
