//! Where host code lives: one reservation, mapped twice, never moved.
//!
//! ```text
//!   pages ──┬── RW view: the emitter copies finished code in, links are patched here
//!           └── RX view: what the host executes; addresses in code are of this view
//!   [thunks | chunk 0 | chunk 1 | ... | chunk n-1 | not yet in use ]
//!             └──── filled one after the other; before one is filled again, the oldest first, every TB in it is
//!                   killed (CODE-2)
//! ```
//!
//! Few chunks are in use at first, and another one is only when the owner says that what it would evict is still
//! wanted: a guest that runs each piece of code once stays in pages that the kernel made long ago and the host's caches
//! still hold.
//!
//! Keeps the second half of CODE-2: bytes are handed out again only by [`CodeCache::reserve`],
//! whose caller is the owning vCPU's loop, outside emitted code, after the TBs that had them died.

use crate::fetch::prefetch_to_write;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

/// A place in the code cache: bytes from its start.
pub type CodeOffset = u32;

/// Host code, writable through one mapping and executable through another.
pub struct CodeCache {
    rw: View,
    rx: View,
    len: usize,
    first: usize,
    chunk_len: usize,
    chunks: usize,
    /// How many may be filled before the oldest is filled again.
    ring: usize,
    /// Those that are in use, the oldest first, and last the current one.
    order: VecDeque<usize>,
    /// The others.
    unused: Vec<usize>,
    current: usize,
    pos: usize,
    /// Pages before this were made by the kernel.
    populated: usize,
    /// Places of dead code.
    free: Free,
}

/// Places of dead code, by size in units. When a chunk is filled again all its places here are void at once; each is
/// thrown away when it is met, and all are once they are as many as the others. So a chunk that is filled again costs
/// its own places and not everybody's.
#[derive(Default)]
struct Free {
    by_size: Vec<Vec<Place>>,
    /// Places in the lists, and how many of them are void.
    listed: usize,
    void: usize,
    /// Of each chunk: how often it was filled again, and its places here that are not void.
    chunks: Vec<(u32, u32)>,
}

/// A place of dead code.
#[derive(Clone, Copy)]
struct Place {
    at: CodeOffset,
    chunk: u32,
    /// How often the chunk had been filled again.
    lap: u32,
}

impl Free {
    fn add(&mut self, class: usize, at: CodeOffset, chunk: usize) {
        if class >= self.by_size.len() {
            self.by_size.resize_with(class + 1, Vec::new);
        }
        let of_chunk = &mut self.chunks[chunk];
        of_chunk.1 += 1;
        self.by_size[class].push(Place { at, chunk: chunk as u32, lap: of_chunk.0 });
        self.listed += 1;
    }

    fn take(&mut self, class: usize) -> Option<CodeOffset> {
        while let Some(place) = self.by_size.get_mut(class).and_then(Vec::pop) {
            self.listed -= 1;
            let (lap, places) = &mut self.chunks[place.chunk as usize];
            if *lap == place.lap {
                *places -= 1;
                return Some(place.at);
            }
            self.void -= 1;
        }
        None
    }

    fn restart(&mut self, chunk: usize) {
        let (lap, places) = &mut self.chunks[chunk];
        *lap = lap.wrapping_add(1);
        self.void += std::mem::take(places) as usize;
        if 2 * self.void > self.listed {
            let chunks = &self.chunks;
            self.by_size.iter_mut().for_each(|list| list.retain(|p| chunks[p.chunk as usize].0 == p.lap));
            self.listed -= std::mem::take(&mut self.void);
        }
    }
}

/// Sizes are rounded up to this: a cache line.
const UNIT: usize = 64;
/// How many bytes code of this length takes.
pub(crate) const fn place_bytes(len: usize) -> usize {
    len.next_multiple_of(UNIT)
}
/// Pages made ahead, in bytes.
const POPULATE: usize = 128 << 10;
/// Bytes that are asked for ahead of a TB.
const AHEAD: usize = 24 * 64;
/// What is in use at first; of a small cache half, as what is kept of TBs counts, too.
const START: usize = 1 << 18;

// SAFETY: the mappings belong to this value alone and have no thread affinity.
unsafe impl Send for CodeCache {}

impl CodeCache {
    /// Pieces that the cache is filled and reclaimed by: fewer in a small one, as each must take the largest TB.
    const CHUNKS: (usize, usize) = (8, 512);
    /// The least that makes sense.
    pub const MIN_BYTES: usize = 1 << 21;

    /// Reserves `bytes` (rounded up to at least [`CodeCache::MIN_BYTES`]) and copies `thunks` to its start.
    ///
    /// # Errors
    /// The host gives no memory that is both writable and executable, by two views.
    pub fn new(bytes: usize, thunks: &[u8]) -> io::Result<CodeCache> {
        let len = bytes.clamp(Self::MIN_BYTES, 1 << 30).next_multiple_of(1 << 16);
        // Not every sandbox has the first kind.
        let views = views_of_anonymous(len).or_else(|_| views_of_memfd(len))?;
        Ok(CodeCache::over(views, len, thunks))
    }

    fn over((rw, rx): (View, View), len: usize, thunks: &[u8]) -> CodeCache {
        let first = thunks.len().next_multiple_of(4096);
        assert!(first < Self::MIN_BYTES / 2, "{} bytes of thunks leave no room for TBs", thunks.len());
        let chunks = (len >> 18).clamp(Self::CHUNKS.0, Self::CHUNKS.1);
        let chunk_len = (len - first) / chunks / UNIT * UNIT;
        let mut cache = CodeCache {
            rw,
            rx,
            len,
            first,
            chunk_len,
            chunks,
            ring: START.min(len / 2).div_ceil(chunk_len).clamp(2, chunks),
            order: VecDeque::from([0]),
            unused: (1..chunks).rev().collect(),
            current: 0,
            pos: 0,
            populated: 4096,
            free: Free { chunks: vec![(0, 0); chunks], ..Free::default() },
        };
        cache.copy(0, thunks);
        cache.pos = first;
        cache
    }

    /// Bytes that one TB may take at most.
    pub fn chunk_len(&self) -> usize {
        self.chunk_len
    }

    /// How many chunks there are.
    pub fn chunks(&self) -> usize {
        self.chunks
    }

    /// The chunk that `at` lies in.
    pub fn chunk_of(&self, at: CodeOffset) -> usize {
        (at as usize - self.first) / self.chunk_len
    }

    /// A place for `len` bytes: that of dead code of the same size, or the next of the current chunk. `None`: the
    /// chunk is full, see [`CodeCache::next_chunk`].
    pub fn reserve(&mut self, len: usize) -> Option<CodeOffset> {
        let class = len.div_ceil(UNIT);
        if let Some(at) = self.free.take(class) {
            return Some(at);
        }
        let end = self.pos + class * UNIT;
        if end > self.first + (self.current + 1) * self.chunk_len {
            return None;
        }
        self.populate(end);
        Some(std::mem::replace(&mut self.pos, end) as CodeOffset)
    }

    /// Asks for the lines that the next TB will be written to: they were written a lap ago.
    pub fn prepare(&self) {
        prefetch_to_write(self.rw.as_ptr().wrapping_add(self.pos), AHEAD);
    }

    /// Gives back what [`CodeCache::reserve`] gave; see CODE-2 for when the bytes may be used again.
    pub fn release(&mut self, at: CodeOffset, len: usize) {
        self.free.add(len.div_ceil(UNIT), at, self.chunk_of(at));
    }

    /// How many bytes the chunks in use have.
    pub fn in_use(&self) -> usize {
        self.order.len() * self.chunk_len
    }

    /// All bytes of the reservation.
    pub fn limit(&self) -> usize {
        self.len
    }

    /// Of the chunks in use but for the current one, that which was filled first.
    pub fn oldest(&self) -> Option<usize> {
        self.order.front().copied().filter(|&chunk| chunk != self.current)
    }

    /// Would [`CodeCache::next_chunk`] take one whose TBs must die?
    pub fn must_evict(&self) -> bool {
        self.order.len() >= self.ring
    }

    /// Moves on to the next chunk and names it: its TBs must be dead before [`CodeCache::write`]. It is one that is not
    /// in use if few are, or with `grow`; else the oldest.
    pub fn next_chunk(&mut self, grow: bool) -> usize {
        if grow && self.must_evict() {
            self.ring = (self.order.len() + 1).min(self.chunks);
        }
        let unused = if self.must_evict() { None } else { self.unused.pop() };
        let next = unused.or_else(|| self.order.pop_front()).unwrap_or(self.current);
        self.order.push_back(next);
        self.current = next;
        self.pos = self.first + self.current * self.chunk_len;
        self.current
    }

    /// Gives the oldest chunk's memory back; its TBs must be dead. There will be no more chunks than are left, unless
    /// [`CodeCache::next_chunk`] is told to grow.
    pub fn retire_oldest(&mut self) {
        let Some(chunk) = self.oldest() else { return };
        self.order.pop_front();
        self.ring = self.order.len().max(2);
        self.unused.push(chunk);
        self.free.restart(chunk);
        let page = |at: usize| (at + 4095) & !4095;
        let from = page(self.first + chunk * self.chunk_len);
        let end = (self.first + (chunk + 1) * self.chunk_len) & !4095;
        if from < end {
            // SAFETY: whole pages inside the mapping, of a chunk where nothing is executed or read any more (the
            // caller's promise); they are zero when they are touched again. A kernel that refuses leaves them.
            unsafe { libc::madvise(self.rw.as_ptr().add(from).cast(), end - from, libc::MADV_REMOVE) };
        }
    }

    /// Forgets what was released in the current chunk: it is filled from its start again.
    pub fn restart_chunk(&mut self) {
        self.free.restart(self.current);
    }

    /// In the child of a fork: both views, at their addresses, are of memory of its own from now on, empty; the parent's is left alone.
    /// The caller forgets what was there, and then calls [`CodeCache::restart`].
    ///
    /// # Errors
    /// The host has no memory. What is at the addresses then must not be executed or written any more.
    pub fn part_from_parent(&mut self) -> io::Result<()> {
        let (flags, len) = (libc::MAP_SHARED | libc::MAP_NORESERVE | libc::MAP_ANONYMOUS | libc::MAP_FIXED, self.len);
        let (rw, rx) = (self.rw.as_ptr().cast::<libc::c_void>(), self.rx.as_ptr().cast::<libc::c_void>());
        // SAFETY: it takes the place of a mapping that is ours, as long as this, and no thread is in its code: it is entered through `&mut`
        // of the cache's owner only.
        if unsafe { libc::mmap(rw, len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) } == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: as above; from size 0 it makes a second mapping of the first one's pages.
        let second = unsafe { libc::mremap(rw, 0, len, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, rx) };
        if second == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: as above.
        match unsafe { libc::mprotect(rx, len, libc::PROT_READ | libc::PROT_EXEC) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Begins anew with the thunks, with nothing else in it.
    pub fn restart(&mut self, thunks: &[u8]) {
        self.ring = START.min(self.len / 2).div_ceil(self.chunk_len).clamp(2, self.chunks);
        self.order = VecDeque::from([0]);
        self.unused = (1..self.chunks).rev().collect();
        (self.current, self.populated) = (0, 4096);
        self.free = Free { chunks: vec![(0, 0); self.chunks], ..Free::default() };
        self.copy(0, thunks);
        self.pos = self.first;
    }

    /// Copies `code` to a reserved place.
    pub fn write(&mut self, at: CodeOffset, code: &[u8]) {
        self.copy(at as usize, code);
    }

    /// Has the kernel make the pages up to `end` in one go; a fault for each, in each view, costs more.
    fn populate(&mut self, end: usize) {
        if end <= self.populated {
            return;
        }
        let from = self.populated;
        self.populated = (end + POPULATE).next_multiple_of(4096).min(self.len);
        let len = self.populated - from;
        // SAFETY: inside both mappings; it changes no contents. A kernel without it leaves the work to page faults.
        unsafe {
            libc::madvise(self.rw.as_ptr().add(from).cast(), len, libc::MADV_POPULATE_WRITE);
            libc::madvise(self.rx.as_ptr().add(from).cast(), len, libc::MADV_POPULATE_READ);
        }
    }

    /// Writes these four bytes there.
    pub fn patch(&mut self, at: CodeOffset, bytes: [u8; 4]) {
        self.copy(at as usize, &bytes);
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

    /// For checks: the unit of places, the places of dead code, and what is left of the current chunk.
    #[cfg(any(test, feature = "testkit"))]
    pub(crate) fn places(&self) -> (usize, Vec<std::ops::Range<usize>>, std::ops::Range<usize>) {
        let lists = self.free.by_size.iter().enumerate();
        let live = |p: &&Place| self.free.chunks[p.chunk as usize].0 == p.lap;
        let free = lists.flat_map(|(class, list)| {
            list.iter().filter(live).map(move |p| p.at as usize..p.at as usize + class * UNIT)
        });
        (UNIT, free.collect(), self.pos..self.first + (self.current + 1) * self.chunk_len)
    }

    fn copy(&mut self, at: usize, code: &[u8]) {
        assert!(at + code.len() <= self.len, "inside the reservation");
        // SAFETY: in bounds of the RW view (checked above), which nobody else has a pointer to.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), self.rw.as_ptr().add(at), code.len()) }
    }
}

/// A mapping, undone when it is dropped.
struct View {
    at: NonNull<u8>,
    len: usize,
}

impl View {
    /// Of what a system call returned.
    fn new(at: *mut libc::c_void, len: usize) -> io::Result<View> {
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let at = NonNull::new(at.cast()).ok_or_else(|| io::Error::other("mapping at address zero"))?;
        Ok(View { at, len })
    }

    /// Of a file, or of new anonymous memory; to read and write.
    fn map(file: Option<&OwnedFd>, len: usize) -> io::Result<View> {
        let (anonymous, fd) = file.map_or((libc::MAP_ANONYMOUS, -1), |file| (0, file.as_raw_fd()));
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE | anonymous;
        // SAFETY: a new mapping, where the kernel likes.
        View::new(
            unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0) },
            len,
        )
    }

    /// To read and execute from now on.
    fn executable(self) -> io::Result<View> {
        // SAFETY: the mapping is ours, and nobody has a pointer into it yet.
        match unsafe { libc::mprotect(self.as_ptr().cast(), self.len, libc::PROT_READ | libc::PROT_EXEC) } {
            0 => Ok(self),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn as_ptr(&self) -> *mut u8 {
        self.at.as_ptr()
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: mapped with this length; emitted code is entered through `&mut` of the cache's owner only, so nobody
        // runs in it now.
        unsafe { libc::munmap(self.as_ptr().cast(), self.len) };
    }
}

/// The same bytes to write, and to execute. Profilers take anonymous memory for what it is, a JIT's; that of a memfd
/// they look up in a file.
fn views_of_anonymous(len: usize) -> io::Result<(View, View)> {
    let rw = View::map(None, len)?;
    // SAFETY: from size 0 it leaves the mapping as it is, and makes a second one of its shared pages.
    let rx = View::new(unsafe { libc::mremap(rw.as_ptr().cast(), 0, len, libc::MREMAP_MAYMOVE) }, len)?;
    Ok((rw, rx.executable()?))
}

fn views_of_memfd(len: usize) -> io::Result<(View, View)> {
    // SAFETY: the name is a string, and a descriptor that is made is ours alone.
    let file = unsafe {
        match libc::memfd_create(c"notdirty-jit".as_ptr(), libc::MFD_CLOEXEC) {
            fd if fd < 0 => return Err(io::Error::last_os_error()),
            fd => OwnedFd::from_raw_fd(fd),
        }
    };
    // SAFETY: it is told a descriptor that is open.
    if unsafe { libc::ftruncate(file.as_raw_fd(), len as libc::off_t) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((View::map(Some(&file), len)?, View::map(Some(&file), len)?.executable()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_written_through_one_view_runs_through_the_other_whatever_they_are_of() {
        let len = CodeCache::MIN_BYTES;
        for views in [views_of_anonymous(len), views_of_memfd(len)] {
            let mut cache = CodeCache::over(views.unwrap(), len, &[0x90]);
            let at = cache.reserve(6).unwrap();
            cache.write(at, &[0xb8, 42, 0, 0, 0, 0xc3]); // mov eax, 42; ret
            // SAFETY: the bytes just pushed are a complete function of this signature.
            let f: extern "C" fn() -> u32 = unsafe { std::mem::transmute(cache.address(at)) };
            assert_eq!(f(), 42);
            cache.copy(at as usize + 1, &[7]);
            assert_eq!(f(), 7);
        }
    }

    #[test]
    fn what_no_host_has_is_an_error() {
        assert!(CodeCache::new(usize::MAX, &[0x90]).is_ok(), "cut short");
        assert!(views_of_anonymous(1 << 60).is_err() && views_of_memfd(1 << 60).is_err());
    }

    #[test]
    fn the_place_of_dead_code_is_used_again_until_its_chunk_restarts() {
        let mut cache = CodeCache::new(0, &[0x90]).unwrap();
        let at = cache.reserve(100).unwrap();
        cache.release(at, 100);
        assert_eq!(cache.reserve(90), Some(at), "the same number of units");
        cache.release(at, 90);
        while cache.next_chunk(false) != 0 {}
        cache.restart_chunk();
        let first = cache.reserve(64).unwrap();
        assert_eq!(first, at, "from the start");
        assert_ne!(cache.reserve(100), Some(at), "or two TBs would share it");
    }

    #[test]
    fn places_of_dead_code_are_used_again_chunk_by_chunk_and_never_pile_up() {
        let mut cache = CodeCache::new(0, &[0x90]).unwrap();
        let (n, mut rng) = (cache.chunks(), crate::testkit::Rng::new(3));
        let mut taken = std::collections::BTreeMap::<CodeOffset, usize>::new();
        for step in 0..60_000 {
            let len = UNIT * (1 + rng.below(4) as usize);
            match cache.reserve(len) {
                Some(at) => {
                    let before = taken.range(..at + 1).next_back();
                    assert!(before.is_none_or(|(&b, &l)| b as usize + l <= at as usize), "step {step}: two at {at:#x}");
                    let after = taken.range(at + 1..).next();
                    assert!(after.is_none_or(|(&a, _)| at as usize + len <= a as usize), "step {step}: two at {at:#x}");
                    taken.insert(at, len);
                }
                None => {
                    let chunk = cache.next_chunk(true);
                    cache.restart_chunk();
                    taken.retain(|&at, _| cache.chunk_of(at) != chunk);
                }
            }
            if rng.chance(60)
                && let Some((&at, &len)) = taken.range(rng.bits() as u32 % cache.len as u32..).next()
            {
                taken.remove(&at);
                cache.release(at, len);
            }
            let room = n * cache.chunk_len / UNIT;
            assert!(cache.free.listed <= 2 * room && 2 * cache.free.void <= cache.free.listed + room);
        }
    }

    #[test]
    fn chunks_come_round_again_and_none_overlaps_the_thunks() {
        let mut cache = CodeCache::new(0, &[0x90; 100]).unwrap();
        let n = cache.ring;
        for i in 0..3 * n {
            let at = cache.reserve(1000).unwrap();
            assert!(at as usize >= 4096);
            assert_eq!(cache.chunk_of(at), i % n);
            cache.write(at, &[0xcc; 1000]);
            cache.next_chunk(false);
        }
        assert_eq!(cache.reserve(cache.chunk_len() + 1), None);
    }

    #[test]
    fn a_chunk_that_is_retired_is_not_filled_again_before_the_cache_grows() {
        let mut cache = CodeCache::new(0, &[0x90]).unwrap();
        for _ in 0..4 {
            cache.next_chunk(true);
        }
        let at = cache.reserve(64).unwrap();
        for left in (2..=4).rev() {
            assert_eq!(cache.oldest(), Some(4 - left));
            cache.retire_oldest();
            assert_eq!(cache.in_use(), left * cache.chunk_len());
        }
        cache.write(at, &[1, 2, 3]);
        assert!((0..9).all(|_| cache.next_chunk(false) >= 3), "those that are left");
        cache.next_chunk(true);
        assert_eq!(cache.in_use(), 3 * cache.chunk_len());
        assert_eq!(cache.bytes(at, 3), [1, 2, 3]);
    }

    #[test]
    fn the_ring_takes_in_chunks_only_when_it_is_told_to() {
        let mut cache = CodeCache::new(64 << 20, &[0x90]).unwrap();
        let ring = cache.ring;
        assert!(2 <= ring && ring < cache.chunks());
        let mut seen = std::collections::BTreeSet::from([0]);
        for _ in 0..4 * cache.chunks() {
            seen.insert(cache.next_chunk(false));
        }
        assert_eq!(seen.len(), ring);
        for _ in 0..2 * cache.chunks() {
            seen.insert(cache.next_chunk(true));
        }
        assert_eq!(seen.len(), cache.chunks());
        let oldest = cache.oldest().unwrap();
        assert_eq!(cache.next_chunk(true), oldest);
    }
}
