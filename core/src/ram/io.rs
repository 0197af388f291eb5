//! Guest RAM to and from descriptors, and which of it can be anything but zero.
//!
//! The kernel copies, so no reference to guest memory is made here either. A guest may write meanwhile: what is copied is then old
//! or new bytes, and the page is dirty once more.

use super::access;
use super::block::RamBlock;
use super::spec::RamFlags;
use crate::addr::{PAGE_BITS, PAGE_SIZE};
use crate::hint::{self, Soon};
use core::marker::PhantomData;
use core::ops::Range;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// A run of guest RAM for a vectored write, or read.
#[derive(Clone, Copy, Debug)]
pub struct RamSlice<'b> {
    at: *mut u8,
    len: usize,
    block: PhantomData<&'b RamBlock>,
}

// SAFETY: it names guest RAM, which is tied to no thread and only reached by raw pointer.
unsafe impl Send for RamSlice<'_> {}

impl RamSlice<'_> {
    /// For the kernel.
    pub(crate) fn iovec(&self) -> libc::iovec {
        libc::iovec { iov_base: self.at.cast(), iov_len: self.len }
    }

    /// How many bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len as u64
    }

    /// Its bytes from `at` on become these, as far as it goes; marks nothing, as [`RamBlock::write_raw`].
    pub(crate) fn put(&self, at: usize, bytes: &[u8]) {
        let at = at.min(self.len);
        let count = bytes.len().min(self.len - at);
        // SAFETY: the slice is inside of the used length, and this inside of the slice.
        unsafe { access::copy_in(self.at.wrapping_add(at), &bytes[..count]) };
    }

    /// Its first bytes go there, as far as both go.
    pub(crate) fn take(&self, to: &mut [u8]) {
        let count = to.len().min(self.len);
        // SAFETY: as in `put`.
        unsafe { access::copy_out(self.at, &mut to[..count]) };
    }

    /// Its first `len` bytes become zero, as far as it goes; marks nothing.
    pub(crate) fn clear(&self, len: usize) {
        // SAFETY: as in `put`.
        unsafe { access::fill(self.at, len.min(self.len), 0) };
    }
}

impl RamBlock {
    /// `len` bytes at `off`.
    ///
    /// # Errors
    /// [`RamError::OutOfBounds`](super::RamError::OutOfBounds).
    pub fn slice(&self, off: u64, len: u64) -> Result<RamSlice<'_>, super::RamError> {
        let at = self.at(off, len)?;
        Ok(RamSlice { at, len: len as usize, block: PhantomData })
    }

    /// Writes `len` bytes at `off` to a file, at `place`.
    ///
    /// # Errors
    /// The host's, or they are not all in use.
    pub fn write_to(&self, off: u64, len: u64, file: BorrowedFd<'_>, place: u64) -> io::Result<()> {
        self.whole(off, len, place, |at, len, place| {
            // SAFETY: `whole` gives memory inside of the used length; the kernel reads it.
            unsafe { libc::pwrite(file.as_raw_fd(), at.cast(), len, place) }
        })
    }

    /// Reads `len` bytes from a file, at `place`, to `off`, and marks nothing, as [`write_raw`](Self::write_raw).
    ///
    /// # Errors
    /// The host's; the file ends before; or they are not all in use.
    pub fn read_from_raw(&self, off: u64, len: u64, file: BorrowedFd<'_>, place: u64) -> io::Result<()> {
        self.whole(off, len, place, |at, len, place| {
            // SAFETY: `whole` gives memory inside of the used length, which may be written by raw pointer at any time.
            unsafe { libc::pread(file.as_raw_fd(), at.cast(), len, place) }
        })
    }

    fn whole(
        &self,
        off: u64,
        len: u64,
        place: u64,
        mut call: impl FnMut(*mut u8, usize, libc::off_t) -> isize,
    ) -> io::Result<()> {
        let at = self.at(off, len).map_err(io::Error::other)?;
        let mut done = 0;
        while done < len {
            let place = libc::off_t::try_from(place + done).map_err(io::Error::other)?;
            match call(at.wrapping_add(done as usize), (len - done) as usize, place) {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count if count > 0 => done += count as u64,
                _ => {
                    let why = io::Error::last_os_error();
                    if why.kind() != io::ErrorKind::Interrupted {
                        return Err(why);
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether a page of the used length has no byte but zero. It is read.
    pub fn is_zero(&self, page: u64) -> bool {
        let Ok(at) = self.at(page << PAGE_BITS, PAGE_SIZE) else { return false };
        // Most pages that are not zero begin or end with what is not.
        // SAFETY: `at` checked that all of the page is in use; it is aligned.
        let word = |off: u64| unsafe { access::word(at.wrapping_add(off as usize)) };
        if word(0) | word(PAGE_SIZE / 2) | word(PAGE_SIZE - 8) != 0 {
            return false;
        }
        (0..PAGE_SIZE).step_by(64).all(|line| (0..64).step_by(8).fold(0, |any, off| any | word(line + off)) == 0)
    }

    /// A page is soon asked whether it [is zero](Self::is_zero): what that looks at first is fetched, many pages at once.
    pub(crate) fn prefetch(&self, page: u64) {
        let Ok(at) = self.at(page << PAGE_BITS, PAGE_SIZE) else { return };
        for off in [0, PAGE_SIZE / 2, PAGE_SIZE - 8] {
            hint::expect(at.wrapping_add(off as usize), Soon::Read);
        }
    }

    /// These pages, each of which is soon asked whether it is zero; those behind it are fetched meanwhile.
    pub(crate) fn prefetched<I: Iterator<Item = u64> + Clone>(&self, pages: I) -> impl Iterator<Item = u64> {
        const AHEAD: usize = 16;
        let mut ahead = pages.clone();
        ahead.by_ref().take(AHEAD).for_each(|page| self.prefetch(page));
        pages.inspect(move |_| {
            if let Some(page) = ahead.next() {
                self.prefetch(page);
            }
        })
    }

    /// Calls with a copy of a page of the used length, which a guest may be writing. The page that is `next` is fetched meanwhile: the
    /// processor looks ahead by itself up to a page's end only, and memory is what this waits for.
    pub(crate) fn with_page<T>(
        &self,
        page: u64,
        next: Option<u64>,
        call: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, super::RamError> {
        #[repr(align(64))]
        struct Page([u8; PAGE_SIZE as usize]);
        let from = self.at(page << PAGE_BITS, PAGE_SIZE)?;
        let next = next.and_then(|next| self.at(next << PAGE_BITS, PAGE_SIZE).ok()).unwrap_or(from);
        let mut copy = core::mem::MaybeUninit::<Page>::uninit();
        for line in (0..PAGE_SIZE as usize).step_by(64) {
            hint::expect(next.wrapping_add(line), Soon::Read);
            // SAFETY: `at` checked that all of the page is in use; both are aligned to 64, and the copy is our own.
            unsafe { access::copy_line(copy.as_mut_ptr().cast::<u8>().add(line), from.add(line)) };
        }
        // SAFETY: each of its lines was written.
        Ok(call(&unsafe { copy.assume_init_ref() }.0))
    }

    /// Runs of these pages of the used length that the host has memory for, in rising order: no other page was ever written, and all
    /// of those are zero. Nothing of the guest's is read. Where the host does not tell, all of them.
    pub fn touched(&self, pages: Range<u64>) -> Vec<Range<u64>> {
        let all = pages.start..pages.end.min(self.used_length() >> PAGE_BITS);
        if all.is_empty() {
            return Vec::new();
        }
        let found = match self.fd() {
            // A page that lies on a file is there without being in the tables.
            None if self.lies() => None,
            None => present(self.host() as u64, &all, false),
            Some(file) if self.flags().contains(RamFlags::SHARED) => data(file, self.fd_offset(), &all),
            // A page that is not here yet is the file's.
            Some(_) => None,
        };
        found.unwrap_or_else(|| vec![all])
    }

    /// Runs of these pages that are mapped, or swapped out: of no other one something is read without a fault. Where the host does not
    /// tell, and of memory with a file behind it, all of them.
    pub(crate) fn mapped_pages(&self, pages: Range<u64>) -> Vec<Range<u64>> {
        let anonymous = self.fd().is_none() && !self.lies();
        let found = if anonymous { present(self.host() as u64, &pages, true) } else { None };
        found.unwrap_or_else(|| vec![pages])
    }
}

/// Adds a run that may touch the last one.
fn push(runs: &mut Vec<Range<u64>>, run: Range<u64>) {
    match runs.last_mut() {
        Some(last) if last.end >= run.start => last.end = last.end.max(run.end),
        _ => runs.push(run),
    }
}

/// Pages of anonymous memory that are present or swapped out, by the kernel's page tables; with those that were only read, if `zeros`.
fn present(host: u64, pages: &Range<u64>, zeros: bool) -> Option<Vec<Range<u64>>> {
    /// `struct page_region`.
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Region {
        start: u64,
        end: u64,
        categories: u64,
    }
    /// `struct pm_scan_arg`.
    #[repr(C)]
    struct Scan {
        size: u64,
        flags: u64,
        start: u64,
        end: u64,
        walk_end: u64,
        vec: u64,
        vec_len: u64,
        max_pages: u64,
        category_inverted: u64,
        category_mask: u64,
        category_anyof_mask: u64,
        return_mask: u64,
    }
    const PRESENT_OR_SWAPPED: u64 = 1 << 3 | 1 << 4;
    const PFNZERO: u64 = 1 << 5;
    // _IOWR('f', 16, struct pm_scan_arg)
    const PAGEMAP_SCAN: libc::c_ulong =
        3 << 30 | (size_of::<Scan>() as libc::c_ulong) << 16 | (b'f' as libc::c_ulong) << 8 | 16;

    let map = File::open("/proc/self/pagemap").ok()?;
    let mut found = vec![Region::default(); 1024];
    let mut runs = Vec::new();
    let (mut start, end) = (host + (pages.start << PAGE_BITS), host + (pages.end << PAGE_BITS));
    while start < end {
        let mut scan = Scan {
            size: size_of::<Scan>() as u64,
            flags: 0,
            start,
            end,
            walk_end: 0,
            vec: found.as_mut_ptr() as u64,
            vec_len: found.len() as u64,
            max_pages: 0,
            // The page of zeros that all untouched memory is read from.
            category_inverted: PFNZERO,
            category_mask: if zeros { 0 } else { PFNZERO },
            category_anyof_mask: PRESENT_OR_SWAPPED,
            return_mask: PRESENT_OR_SWAPPED,
        };
        // SAFETY: the kernel writes to `scan`, and to as many elements of `found` as there are.
        let count = unsafe { libc::ioctl(map.as_raw_fd(), PAGEMAP_SCAN as _, &raw mut scan) };
        // Before Linux 6.7: page by page.
        let Ok(count) = usize::try_from(count) else { return present_by_page(&map, host, pages) };
        for region in &found[..count] {
            push(&mut runs, (region.start - host) >> PAGE_BITS..(region.end - host) >> PAGE_BITS);
        }
        if scan.walk_end <= start {
            return None;
        }
        start = scan.walk_end;
    }
    Some(runs)
}

/// The same from the file, whose every entry is a page.
fn present_by_page(map: &File, host: u64, pages: &Range<u64>) -> Option<Vec<Range<u64>>> {
    use std::os::unix::fs::FileExt;
    let mut runs = Vec::new();
    let mut entries = vec![0; 64 << 10];
    let mut page = pages.start;
    while page < pages.end {
        let count = (pages.end - page).min(entries.len() as u64 / 8);
        let part = &mut entries[..count as usize * 8];
        map.read_exact_at(part, ((host >> PAGE_BITS) + page) * 8).ok()?;
        for (n, entry) in (page..).zip(part.as_chunks::<8>().0) {
            if u64::from_ne_bytes(*entry) >> 62 != 0 {
                push(&mut runs, n..n + 1);
            }
        }
        page += count;
    }
    Some(runs)
}

/// Pages of a file in memory that are no hole.
fn data(file: BorrowedFd<'_>, offset: u64, pages: &Range<u64>) -> Option<Vec<Range<u64>>> {
    let mut runs = Vec::new();
    let end = libc::off_t::try_from(offset + (pages.end << PAGE_BITS)).ok()?;
    let mut at = libc::off_t::try_from(offset + (pages.start << PAGE_BITS)).ok()?;
    while at < end {
        // SAFETY: plain system calls on a descriptor that the block holds; nobody reads or writes by its position.
        let start = unsafe { libc::lseek(file.as_raw_fd(), at, libc::SEEK_DATA) };
        if start < 0 {
            let none_left = io::Error::last_os_error().raw_os_error() == Some(libc::ENXIO);
            return none_left.then_some(runs);
        }
        if start >= end {
            break;
        }
        // SAFETY: as above.
        let hole = unsafe { libc::lseek(file.as_raw_fd(), start, libc::SEEK_HOLE) };
        if hole <= start {
            return None;
        }
        let page = |at: libc::off_t| (at as u64).saturating_sub(offset);
        push(&mut runs, page(start) >> PAGE_BITS..page(hole.min(end)).div_ceil(PAGE_SIZE));
        at = hole;
    }
    Some(runs)
}

#[cfg(all(test, not(loom), not(miri)))]
mod tests {
    use super::*;
    use crate::ram::{RamBlockSpec, RamList};

    #[test]
    fn pages_that_were_never_written_are_known_without_being_read() {
        let list = RamList::new();
        for shared in [false, true] {
            let name = if shared { "shared" } else { "anonymous" };
            let spec = RamBlockSpec::new(name, 5000 * PAGE_SIZE).huge_pages(false).shared(shared);
            let block = list.add(spec).unwrap();
            assert_eq!(block.touched(0..5000), [], "{name}");
            for page in [3, 4, 4999] {
                block.fill_raw(page * PAGE_SIZE + 5, 1, 1).unwrap();
            }
            assert_eq!(block.touched(0..9000), [3..5, 4999..5000], "{name}");
            let part = block.touched(4..10);
            assert_eq!((part.len(), part.first()), (1, Some(&(4..5))), "{name}");
            if shared {
                continue;
            }
            // Reading takes no memory that could be other than zero.
            assert!(block.is_zero(7) && !block.is_zero(4) && !block.is_zero(5000));
            let map = File::open("/proc/self/pagemap").unwrap();
            let by_page = present_by_page(&map, block.host() as u64, &(0..5000)).unwrap();
            assert!(by_page.contains(&(3..5)) && by_page.contains(&(4999..5000)), "{by_page:?}");
        }
    }

    #[test]
    fn many_runs_are_given_back_and_no_page_of_them_is_read_without_a_fault_any_more() {
        const PAGES: u64 = 6000;
        let list = RamList::new();
        for (name, page, shared) in [("anonymous", 1, false), ("large", 4, false), ("shared", 1, true)] {
            let spec = RamBlockSpec::new(name, PAGES * PAGE_SIZE).huge_pages(false).shared(shared);
            let block = list.add(spec.page_size(page * PAGE_SIZE)).unwrap();
            let written = |at: u64| at % 7 < 3 || (1000..2000).contains(&at);
            let mut byte = [0];
            for at in 0..PAGES {
                match at % 7 {
                    _ if written(at) => block.fill_raw(at * PAGE_SIZE, 8, 1).unwrap(),
                    // Mapped, and no memory.
                    5 => block.read_bytes(at * PAGE_SIZE, &mut byte).unwrap(),
                    _ => {}
                }
            }
            // More than one call takes, of one page and of several, and one that is far longer than what is mapped.
            let gone = |at: u64| at / page % 3 == 1 || (3000..5000).contains(&at);
            let mut runs: Vec<Range<u64>> = Vec::new();
            for at in (0..PAGES).filter(|at| gone(*at)) {
                match runs.last_mut() {
                    Some(last) if last.end == at * PAGE_SIZE => last.end += PAGE_SIZE,
                    _ => runs.push(at * PAGE_SIZE..(at + 1) * PAGE_SIZE),
                }
            }
            // What the limits cut is whole pages.
            assert!(runs.iter().all(|run| (run.end - run.start).is_multiple_of(page * PAGE_SIZE)), "{name}");
            block.discard_runs(&runs).unwrap();
            if !shared {
                let mapped = block.mapped_pages(0..PAGES);
                assert!(mapped.iter().cloned().flatten().all(|at| !gone(at)), "{name}");
            }
            for at in 0..PAGES {
                block.read_bytes(at * PAGE_SIZE, &mut byte).unwrap();
                assert_eq!(byte[0] != 0, written(at) && !gone(at), "{name} {at}");
            }
            block.discard_runs(&[]).unwrap();
            assert!(
                block.discard_runs(&[0..PAGE_SIZE, PAGES * PAGE_SIZE..(PAGES + 4) * PAGE_SIZE]).is_err() || !shared
            );
        }
    }

    #[test]
    fn a_page_is_zero_if_each_of_its_bytes_is() {
        let list = RamList::new();
        let block = list.add(RamBlockSpec::new("ram", PAGE_SIZE)).unwrap();
        for at in 0..PAGE_SIZE {
            block.fill_raw(at, 1, 0x80).unwrap();
            assert!(!block.is_zero(0), "{at}");
            block.fill_raw(at, 1, 0).unwrap();
        }
        assert!(block.is_zero(0));
    }
}
