//! Host memory of one RAM block: the only file that talks to libc about guest RAM.
//!
//! ```text
//!    guard        host                      + used_length            + max_length        guard
//!   ┌─────────┬──────────────────────────┬─────────────────────────┬─────────┐
//!   │PROT_NONE│ read, write              │ PROT_NONE: to grow into │PROT_NONE│    one reservation, never moved
//!   └─────────┴──────────────────────────┴─────────────────────────┴─────────┘
//!               2 MiB-aligned if the block is that long: huge pages fit
//! ```
//!
//! What became memory stays mapped until the block goes, also above a used length that shrank: a vCPU that has not yet
//! heard of it stores into memory, not into a fault. To give its bytes back is a step of its own (`discard`).
//!
//! The memory is anonymous, a memfd of a sealed length, or a file of the embedder's, shared or private. That a file
//! stays as long as it was is its owner's promise (`RamBlockSpec::file`); broken, an access is a SIGBUS, which nothing
//! handles.
//!
//! Anonymous memory may lie on a file that many machines share (`image/baseline.rs`): what is written is private, and to discard it is to
//! map none.
//!
//! The guards turn an access that leaves a block by a few bytes into a host fault instead of a stray write.
//! `near` asks for a window of host addresses, so that host minus guest fits a 32-bit displacement; it is tried with
//! MAP_FIXED_NOREPLACE, which cannot hurt a mapping that is already there, and given up without an error.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Runs of memory that one call gives back: the kernel's limit.
const MOST_RUNS: usize = 1024;

/// Size of a huge page, and the alignment of blocks that can use one.
pub(super) const HUGE: u64 = 2 << 20;
/// How many places inside the window are tried before any place is good.
const TRIES: u64 = 64;

/// What to map.
pub(super) struct Request<'a> {
    pub(super) name: &'a str,
    pub(super) used: u64,
    pub(super) max: u64,
    pub(super) shared: bool,
    pub(super) file: Option<(Arc<File>, u64)>,
    pub(super) noreserve: bool,
    pub(super) prealloc: bool,
    pub(super) near: Option<Range<u64>>,
    pub(super) huge_pages: bool,
}

/// A failure.
pub(super) enum Failure {
    /// The host refused, and during what.
    Host { doing: &'static str, source: io::Error },
    /// The file ends before the memory that it should be.
    ShortFile { needs: u64, has: u64 },
}

/// Takes errno at once, before anything else can change it.
fn failed(doing: &'static str) -> Failure {
    Failure::Host { doing, source: io::Error::last_os_error() }
}

fn refused(doing: &'static str, errno: libc::c_int) -> Failure {
    Failure::Host { doing, source: io::Error::from_raw_os_error(errno) }
}

/// What the bytes are.
enum Backing {
    Anonymous,
    Memfd(OwnedFd),
    File { file: Arc<File>, offset: u64, shared: bool },
}

/// A reservation and the memory in it; unmapped on drop.
pub(super) struct Mapping {
    host: NonNull<u8>,
    reservation: Reservation,
    backing: Backing,
    max: u64,
    /// How many bytes are memory; grows only. Read and written by the one resize of the moment.
    committed: AtomicU64,
    /// Some of it lies on a file.
    lies: AtomicBool,
    near: bool,
    huge: bool,
    prealloc: bool,
}

// SAFETY: a range of address space and a descriptor, tied to no thread. Accesses through `host` are raw and atomic.
unsafe impl Send for Mapping {}
// SAFETY: as above; nothing in it changes behind `&self` but an atomic.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Reserves `max` bytes between guards and makes the first `used` of them memory.
    pub(super) fn new(request: Request<'_>) -> Result<Self, Failure> {
        let doing = "reserve";
        let too_long = || refused(doing, libc::ENOMEM);
        let guard = host_page();
        let align = if request.max >= HUGE { HUGE } else { guard };
        let inner = request.max.checked_next_multiple_of(guard).ok_or_else(too_long)?;
        let total = inner.checked_add(2 * guard).ok_or_else(too_long)?;
        // Room to move the start to an aligned address; isize bounds what a mapping can be.
        if isize::try_from(total.checked_add(align).ok_or_else(too_long)?).is_err() {
            return Err(too_long());
        }
        let backing = match (request.file, request.shared) {
            (Some((file, offset)), shared) => Backing::File { file, offset, shared },
            (None, true) => Backing::Memfd(memfd(request.name, request.max)?),
            (None, false) => Backing::Anonymous,
        };
        backing.check_length(request.max)?;
        let lazy = if request.noreserve { libc::MAP_NORESERVE } else { 0 };
        let place = request.near.as_ref().and_then(|window| Reservation::inside(window, total, guard, align, lazy));
        let reservation = match place {
            Some(place) => place,
            None => Reservation::anywhere(total, guard, align, lazy).ok_or_else(|| failed(doing))?,
        };
        // Any place may be inside of a window that is wide.
        let near = request.near.is_some_and(|window| {
            window.start <= reservation.start && reservation.start + reservation.len <= window.end
        });
        // A mapping with a guard below is never at 0.
        let host = NonNull::new((reservation.start + guard) as *mut u8).ok_or_else(too_long)?;
        let (max, prealloc) = (request.max, request.prealloc);
        let committed = AtomicU64::new(0);
        let lies = AtomicBool::new(false);
        let mut new = Self { host, reservation, backing, max, committed, lies, near, huge: false, prealloc };
        new.commit(0, request.used)?;
        new.huge = request.huge_pages && new.advise_huge(0, request.used);
        if prealloc {
            // After the advice, which it follows.
            new.populate(0, request.used)?;
        }
        Ok(new)
    }

    /// Makes the bytes up to `to` memory, of which those up to `from` are used. On failure nothing that a caller sees has
    /// changed. One caller at a time.
    pub(super) fn grow(&self, from: u64, to: u64) -> Result<(), Failure> {
        self.backing.check_length(to)?;
        let committed = self.committed.load(Ordering::Relaxed);
        if to > committed {
            self.commit(committed, to)?;
            if self.huge {
                self.advise_huge(committed, to);
            }
        }
        if self.prealloc { self.populate(from, to) } else { Ok(()) }
    }

    fn commit(&self, from: u64, to: u64) -> Result<(), Failure> {
        let from = from.next_multiple_of(host_page());
        let to = to.next_multiple_of(host_page()); // <= the reserved length, as `to` is at most the maximum
        if from >= to {
            return Ok(());
        }
        let at = self.host.as_ptr().wrapping_add(from as usize);
        let len = (to - from) as usize;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let (fd, offset, shared) = match &self.backing {
            Backing::Anonymous => {
                // SAFETY: inside our own reservation, and no memory before.
                if unsafe { libc::mprotect(at.cast(), len, prot) } != 0 {
                    return Err(failed("commit"));
                }
                self.committed.store(to, Ordering::Relaxed);
                return Ok(());
            }
            Backing::Memfd(fd) => (fd.as_raw_fd(), 0, libc::MAP_SHARED),
            Backing::File { file, offset, shared: true } => (file.as_raw_fd(), *offset, libc::MAP_SHARED),
            Backing::File { file, offset, shared: false } => (file.as_raw_fd(), *offset, libc::MAP_PRIVATE),
        };
        let Some(offset) = offset.checked_add(from).and_then(|at| libc::off_t::try_from(at).ok()) else {
            return Err(refused("map", libc::EOVERFLOW));
        };
        // NORESERVE: the kernel may take the old mapping away before it counts what the new one would promise.
        let flags = shared | libc::MAP_FIXED | libc::MAP_NORESERVE;
        // SAFETY: MAP_FIXED replaces pages of our own reservation only, which were no memory before.
        if unsafe { libc::mmap(at.cast(), len, prot, flags, fd, offset) } == libc::MAP_FAILED {
            return Err(failed("map"));
        }
        self.committed.store(to, Ordering::Relaxed);
        Ok(())
    }

    /// Advice: a kernel without huge pages says no, and the memory works all the same. The first one stays many small pages: programs are
    /// loaded there, and a machine that does not run yet shall cost what was written, not 2 MiB.
    fn advise_huge(&self, from: u64, to: u64) -> bool {
        let from = from.max(HUGE) / host_page() * host_page();
        let to = to.next_multiple_of(host_page());
        if from >= to {
            return true;
        }
        let at = self.host.as_ptr().wrapping_add(from as usize);
        // SAFETY: our own pages; the advice changes no content.
        unsafe { libc::madvise(at.cast(), (to - from) as usize, libc::MADV_HUGEPAGE) == 0 }
    }

    /// Takes the memory of these bytes from the host.
    fn populate(&self, from: u64, to: u64) -> Result<(), Failure> {
        let from = from / host_page() * host_page();
        let to = to.next_multiple_of(host_page());
        if from >= to {
            return Ok(());
        }
        let at = self.host.as_ptr().wrapping_add(from as usize);
        // SAFETY: our own memory; as if each page were read and written back.
        match unsafe { libc::madvise(at.cast(), (to - from) as usize, libc::MADV_POPULATE_WRITE) } {
            0 => Ok(()),
            _ => Err(failed("preallocate")),
        }
    }

    /// Gives the memory of `len` bytes at `off` back to the host: both multiples of the host's page size, and memory.
    /// They stay mapped, and read as they did when new.
    pub(super) fn discard(&self, off: u64, len: u64) -> Result<(), Failure> {
        let at = self.host.as_ptr().wrapping_add(off as usize);
        let (fd, base) = match &self.backing {
            Backing::Memfd(fd) => (fd.as_fd(), 0),
            Backing::File { file, offset, shared: true } => (file.as_fd(), *offset),
            Backing::Anonymous if self.lies.load(Ordering::Acquire) => {
                let prot = libc::PROT_READ | libc::PROT_WRITE;
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
                // SAFETY: MAP_FIXED replaces our own memory only; otherwise as below.
                return match unsafe { libc::mmap(at.cast(), len as usize, prot, flags, -1, 0) } {
                    libc::MAP_FAILED => Err(failed("discard")),
                    _ => Ok(()),
                };
            }
            Backing::Anonymous | Backing::File { shared: false, .. } => {
                // SAFETY: our own memory; a guest that accesses it meanwhile finds old bytes or new ones.
                return match unsafe { libc::madvise(at.cast(), len as usize, libc::MADV_DONTNEED) } {
                    0 => Ok(()),
                    _ => Err(failed("discard")),
                };
            }
        };
        let (Ok(start), Ok(len)) = (libc::off_t::try_from(base + off), libc::off_t::try_from(len)) else {
            return Err(refused("discard", libc::EOVERFLOW));
        };
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: a plain system call on a descriptor that we hold.
        match unsafe { libc::fallocate(fd.as_raw_fd(), mode, start, len) } {
            0 => Ok(()),
            _ => Err(failed("discard")),
        }
    }

    /// The same of many runs of anonymous memory, by few calls where the kernel can (Linux 6.13). `false`: nothing was done, it is another kind of
    /// memory, or the kernel cannot.
    pub(super) fn discard_runs(&self, runs: &[Range<u64>]) -> bool {
        if !matches!(self.backing, Backing::Anonymous) || self.lies.load(Ordering::Acquire) {
            return false;
        }
        // SAFETY: a plain call; what it gives is new.
        let own = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0) } as libc::c_int;
        if own < 0 {
            return false;
        }
        // SAFETY: made just now, and has no other owner.
        let own = unsafe { OwnedFd::from_raw_fd(own) };
        runs.chunks(MOST_RUNS).all(|runs| {
            let vector = |run: &Range<u64>| libc::iovec {
                iov_base: self.host.as_ptr().wrapping_add(run.start as usize).cast(),
                iov_len: (run.end - run.start) as usize,
            };
            let vectors: Vec<_> = runs.iter().map(vector).collect();
            let bytes: usize = vectors.iter().map(|vector| vector.iov_len).sum();
            let (fd, at, count) = (own.as_raw_fd(), vectors.as_ptr(), vectors.len());
            // SAFETY: as of one run below: our own memory; the kernel reads the vectors.
            let done = unsafe { libc::syscall(libc::SYS_process_madvise, fd, at, count, libc::MADV_DONTNEED, 0) };
            usize::try_from(done) == Ok(bytes)
        })
    }

    /// What is mapped of the first bytes of shared memory is not any more: the next access finds it in its file. Nothing, of other memory.
    pub(super) fn drop_mapped(&self, len: u64) -> Result<(), Failure> {
        match &self.backing {
            Backing::Memfd(_) | Backing::File { shared: true, .. } => {}
            Backing::Anonymous | Backing::File { shared: false, .. } => return Ok(()),
        }
        // SAFETY: our own memory, of a mapping that is shared: its bytes stay where they are.
        match unsafe { libc::madvise(self.host.as_ptr().cast(), len as usize, libc::MADV_DONTNEED) } {
            0 => Ok(()),
            _ => Err(failed("unmap")),
        }
    }

    /// Anonymous memory gets the bytes of a file, which is not written again: whole pages of the host, of both. `false` for any other, which stays as
    /// it is.
    pub(super) fn lie_on(&self, bytes: Range<u64>, file: &OwnedFd) -> io::Result<bool> {
        let inside = bytes.start <= bytes.end && bytes.end <= self.committed();
        if !inside || !matches!(self.backing, Backing::Anonymous) {
            return Ok(false);
        }
        self.lies.store(true, Ordering::Release);
        let at = self.host.as_ptr().wrapping_add(bytes.start as usize);
        // SAFETY: inside what is memory of ours. A guest that accesses it meanwhile finds old bytes or new ones.
        unsafe { lie_on(at, (bytes.end - bytes.start) as usize, file, bytes.start) }.map(|()| true)
    }

    /// Whether some of it is a file's bytes, by [`lie_on`](Self::lie_on).
    pub(super) fn lies(&self) -> bool {
        self.lies.load(Ordering::Acquire)
    }

    /// How many bytes are memory.
    pub(super) fn committed(&self) -> u64 {
        self.committed.load(Ordering::Relaxed).min(self.max)
    }

    /// Where the memory starts.
    pub(super) fn host(&self) -> NonNull<u8> {
        self.host
    }

    /// The file behind the memory, and where in it the memory starts.
    pub(super) fn fd(&self) -> Option<(BorrowedFd<'_>, u64)> {
        match &self.backing {
            Backing::Anonymous => None,
            Backing::Memfd(fd) => Some((fd.as_fd(), 0)),
            Backing::File { file, offset, .. } => Some((file.as_fd(), *offset)),
        }
    }

    /// Whether the window that was asked for had room.
    pub(super) fn is_near(&self) -> bool {
        self.near
    }

    /// Whether memory that is touched from now on comes as huge pages, if it was to; what is there stays as it is.
    pub(super) fn touch_huge(&self, on: bool) {
        let to = self.committed();
        if self.huge && on {
            self.advise_huge(0, to);
        } else if self.huge {
            let len = to.next_multiple_of(host_page()) as usize;
            // SAFETY: our own pages; the advice changes no content.
            unsafe { libc::madvise(self.host.as_ptr().cast(), len, libc::MADV_NOHUGEPAGE) };
        }
    }

    /// Whether huge pages were asked for and the host took the advice.
    pub(super) fn is_huge(&self) -> bool {
        self.huge
    }

    /// The reservation with its guards.
    pub(super) fn reserved(&self) -> Range<u64> {
        self.reservation.start..self.reservation.start + self.reservation.len
    }
}

impl Backing {
    /// A store beyond the end of a file would be a host fault.
    fn check_length(&self, len: u64) -> Result<(), Failure> {
        let Self::File { file, offset, .. } = self else { return Ok(()) };
        let has = match file.metadata() {
            Ok(metadata) => metadata.len(),
            Err(source) => return Err(Failure::Host { doing: "look at the file of", source }),
        };
        let needs = offset.saturating_add(len);
        if needs <= has { Ok(()) } else { Err(Failure::ShortFile { needs, has }) }
    }
}

/// Address space that is ours; given back on drop, also when making the rest of a `Mapping` fails.
struct Reservation {
    start: u64,
    len: u64,
}

impl Reservation {
    /// Reserves `len` bytes, so that start + `guard` is aligned, at any address.
    fn anywhere(len: u64, guard: u64, align: u64, flags: libc::c_int) -> Option<Self> {
        let room = Self::map(0, len + align, flags)?;
        let host = (room.start + guard).next_multiple_of(align);
        Some(room.trim(host - guard, len))
    }

    /// Likewise, but all of it inside `window`; `None` if none of some places in it is free.
    fn inside(window: &Range<u64>, len: u64, guard: u64, align: u64, flags: libc::c_int) -> Option<Self> {
        // `host` and all that is around it; the last one whose end is still inside.
        let first = window.start.checked_add(guard)?.checked_next_multiple_of(align)?;
        let last = window.end.checked_sub(len)?.checked_add(guard)? / align * align;
        let step = (last.checked_sub(first)? / TRIES).checked_next_multiple_of(align)?.max(align);
        (0..=TRIES)
            .map_while(|n| first.checked_add(n.checked_mul(step)?))
            .take_while(|host| *host <= last)
            .find_map(|host| Self::map(host - guard, len, flags | libc::MAP_FIXED_NOREPLACE))
    }

    /// Reserves `len` bytes at `start` if `flags` has MAP_FIXED_NOREPLACE, else anywhere.
    fn map(start: u64, len: u64, flags: libc::c_int) -> Option<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags;
        // SAFETY: without MAP_FIXED no existing mapping is touched; the lengths were checked to fit isize.
        let at = unsafe { libc::mmap(start as *mut _, len as usize, libc::PROT_NONE, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return None;
        }
        let got = Self { start: at as u64, len };
        // A kernel that does not know the flag takes the address as a hint, and then `got` goes back.
        (flags & libc::MAP_FIXED_NOREPLACE == 0 || got.start == start).then_some(got)
    }

    /// Keeps `start .. start + len` of it.
    fn trim(mut self, start: u64, len: u64) -> Self {
        unmap(self.start, start - self.start);
        unmap(start + len, self.start + self.len - (start + len));
        (self.start, self.len) = (start, len);
        self
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        unmap(self.start, self.len);
    }
}

/// Gives back a part of a `Reservation`. Called by it alone, hence with what is its own.
fn unmap(start: u64, len: u64) {
    if len != 0 {
        // SAFETY: part of a reservation that is being trimmed or dropped. RAM-1: the last `Arc` of the block is
        // gone, after the grace period, so no reader has a pointer into it.
        unsafe { libc::munmap(start as *mut _, len as usize) };
    }
}

/// Maps a file's bytes from `off` on, private, in place of what is at `at`.
///
/// # Safety
/// What is there is the caller's, and is not pointed to as anything but raw memory.
pub(super) unsafe fn lie_on(at: *mut u8, len: usize, file: &OwnedFd, off: u64) -> io::Result<()> {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE;
    let off = libc::off_t::try_from(off).map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))?;
    // SAFETY: the caller's promise.
    match unsafe { libc::mmap(at.cast(), len, prot, flags, file.as_raw_fd(), off) } {
        libc::MAP_FAILED => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// An anonymous file of `len` bytes that takes memory only as it is used.
pub(super) fn memfd(name: &str, len: u64) -> Result<OwnedFd, Failure> {
    // The kernel takes 249 bytes without NUL; the name is for readers of /proc.
    let short: Vec<u8> = name.bytes().filter(|b| *b != 0).take(200).collect();
    let name = CString::new(short).unwrap_or_default();
    // SAFETY: `name` is NUL-terminated and lives through the call.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    if fd < 0 {
        return Err(failed("create a memfd of"));
    }
    // SAFETY: a descriptor that was made just now and has no other owner.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let Ok(size) = libc::off_t::try_from(len) else {
        return Err(refused("size a memfd of", libc::EFBIG));
    };
    // SAFETY: plain system call on our own descriptor.
    if unsafe { libc::ftruncate(fd.as_raw_fd(), size) } != 0 {
        return Err(failed("size a memfd of"));
    }
    // A shorter one would be a host fault, and `RamBlock::fd` is for others to map. Holes may be punched.
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: as above.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
        return Err(failed("seal a memfd of"));
    }
    Ok(fd)
}

/// The host's page size; guards and commitments are whole host pages.
pub(super) fn host_page() -> u64 {
    // SAFETY: no arguments that could be wrong.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap_or(4096).max(4096)
}

/// Bytes of a page of this file, if it is of hugetlbfs: it is mapped, given back and placed by them alone.
pub(super) fn huge_page_of(file: &File) -> Option<u64> {
    // SAFETY: zeros are one.
    let mut about: libc::statfs = unsafe { core::mem::zeroed() };
    // SAFETY: the kernel writes `about`.
    let done = unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut about) };
    (done == 0 && about.f_type == libc::HUGETLBFS_MAGIC).then_some(about.f_bsize as u64)
}

// A guest pointer is made from these numbers and back.
const _: () = assert!(size_of::<*mut u8>() == 8);

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;

    fn is_mapped(at: u64) -> bool {
        // SAFETY: asks of a page, and changes nothing; there is no file behind it.
        unsafe { libc::msync(at as *mut _, host_page() as usize, libc::MS_ASYNC) == 0 }
    }

    #[test]
    fn the_room_around_a_place_that_was_chosen_in_it_is_given_back() {
        let page = host_page();
        // What another test maps at this moment may come to lie there.
        let given_back = (0..100).any(|_| {
            let room = Reservation::map(0, 64 * page, libc::MAP_NORESERVE).unwrap();
            let start = room.start;
            let place = room.trim(start + 16 * page, 8 * page);
            assert_eq!((place.start, place.len), (start + 16 * page, 8 * page));
            assert!((16..24).all(|n| is_mapped(start + n * page)));
            let around = (0..16).chain(24..64).all(|n| !is_mapped(start + n * page));
            drop(place);
            around && (16..24).all(|n| !is_mapped(start + n * page))
        });
        assert!(given_back);
    }
}
