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
//! The guards turn an access that leaves a block by a few bytes into a host fault instead of a stray write.
//! `near` asks for a window of host addresses, so that host minus guest fits a 32-bit displacement; it is tried with
//! MAP_FIXED_NOREPLACE, which cannot hurt a mapping that is already there, and given up without an error.

use std::ffi::CString;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

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
    pub(super) near: Option<Range<u64>>,
    pub(super) huge_pages: bool,
}

/// A failure, and during what.
pub(super) struct Failure {
    pub(super) doing: &'static str,
    pub(super) source: io::Error,
}

/// Takes errno at once, before anything else can change it.
fn failed(doing: &'static str) -> Failure {
    Failure { doing, source: io::Error::last_os_error() }
}

/// A reservation and the memory in it; unmapped on drop.
pub(super) struct Mapping {
    host: NonNull<u8>,
    reservation: Reservation,
    fd: Option<OwnedFd>,
    near: bool,
    huge: bool,
}

// SAFETY: a range of address space and a descriptor, tied to no thread. Accesses through `host` are raw and atomic.
unsafe impl Send for Mapping {}
// SAFETY: as above; nothing in it changes behind `&self`.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Reserves `max` bytes between guards and makes the first `used` of them memory that reads as zero.
    pub(super) fn new(request: &Request<'_>) -> Result<Self, Failure> {
        let doing = "reserve";
        let too_long = || Failure { doing, source: io::Error::from_raw_os_error(libc::ENOMEM) };
        let guard = host_page();
        let align = if request.max >= HUGE { HUGE } else { guard };
        let inner = request.max.checked_next_multiple_of(guard).ok_or_else(too_long)?;
        let total = inner.checked_add(2 * guard).ok_or_else(too_long)?;
        // Room to move the start to an aligned address; isize bounds what a mapping can be.
        if isize::try_from(total.checked_add(align).ok_or_else(too_long)?).is_err() {
            return Err(too_long());
        }
        let placed = request.near.as_ref().and_then(|window| Reservation::inside(window, total, guard, align));
        let near = placed.is_some();
        let reservation = match placed {
            Some(placed) => placed,
            None => Reservation::anywhere(total, guard, align).ok_or_else(|| failed(doing))?,
        };
        let host = (reservation.start + guard) as *mut u8;
        let fd = if request.shared { Some(memfd(request.name, request.max)?) } else { None };
        let used = request.used.next_multiple_of(guard) as usize; // <= inner, since used <= max
        match &fd {
            None => {
                // SAFETY: `host .. host + used` lies in our own reservation, which nobody else knows yet.
                if unsafe { libc::mprotect(host.cast(), used, libc::PROT_READ | libc::PROT_WRITE) } != 0 {
                    return Err(failed("commit"));
                }
            }
            Some(fd) => {
                let prot = libc::PROT_READ | libc::PROT_WRITE;
                let flags = libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE;
                // SAFETY: MAP_FIXED replaces pages of our own reservation only, as above.
                let at = unsafe { libc::mmap(host.cast(), used, prot, flags, fd.as_raw_fd(), 0) };
                if at == libc::MAP_FAILED {
                    return Err(failed("map"));
                }
            }
        }
        // Advice: a kernel without huge pages says no, and the memory works all the same.
        // SAFETY: our own pages; the advice changes no content.
        let huge = request.huge_pages && unsafe { libc::madvise(host.cast(), used, libc::MADV_HUGEPAGE) } == 0;
        let host = NonNull::new(host).ok_or_else(too_long)?; // a mapping with a guard below is never at 0
        Ok(Self { host, reservation, fd, near, huge })
    }

    /// Where the memory starts.
    pub(super) fn host(&self) -> NonNull<u8> {
        self.host
    }

    /// The file behind shared memory.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }

    /// Whether the window that was asked for had room.
    pub(super) fn is_near(&self) -> bool {
        self.near
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

/// Address space that is ours; given back on drop, also when making the rest of a `Mapping` fails.
struct Reservation {
    start: u64,
    len: u64,
}

impl Reservation {
    /// Reserves `len` bytes, so that start + `guard` is aligned, at any address.
    fn anywhere(len: u64, guard: u64, align: u64) -> Option<Self> {
        let room = Self::map(0, len + align, 0)?;
        let host = (room.start + guard).next_multiple_of(align);
        Some(room.trim(host - guard, len))
    }

    /// Likewise, but all of it inside `window`; `None` if none of some places in it is free.
    fn inside(window: &Range<u64>, len: u64, guard: u64, align: u64) -> Option<Self> {
        // `host` and all that is around it; the last one whose end is still inside.
        let first = window.start.checked_add(guard)?.checked_next_multiple_of(align)?;
        let last = window.end.checked_sub(len)?.checked_add(guard)? / align * align;
        let step = (last.checked_sub(first)? / TRIES).next_multiple_of(align).max(align);
        (0..=TRIES)
            .map(|n| first + n * step)
            .take_while(|host| *host <= last)
            .find_map(|host| Self::map(host - guard, len, libc::MAP_FIXED_NOREPLACE))
    }

    /// Reserves `len` bytes at `start` if `fixed` is MAP_FIXED_NOREPLACE, else anywhere.
    fn map(start: u64, len: u64, fixed: libc::c_int) -> Option<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | fixed;
        // SAFETY: without MAP_FIXED no existing mapping is touched; the lengths were checked to fit isize.
        let at = unsafe { libc::mmap(start as *mut _, len as usize, libc::PROT_NONE, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return None;
        }
        let got = Self { start: at as u64, len };
        // A kernel that does not know the flag takes the address as a hint, and then `got` goes back.
        (fixed == 0 || got.start == start).then_some(got)
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
        // gone, after the grace period, so nobody has a pointer into it.
        unsafe { libc::munmap(start as *mut _, len as usize) };
    }
}

/// An anonymous file of `len` bytes that takes memory only as it is used.
fn memfd(name: &str, len: u64) -> Result<OwnedFd, Failure> {
    // The kernel takes 249 bytes without NUL; the name is for humans who read /proc.
    let short: Vec<u8> = name.bytes().filter(|b| *b != 0).take(200).collect();
    let name = CString::new(short).unwrap_or_default();
    // SAFETY: `name` is NUL-terminated and lives through the call.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(failed("create a memfd of"));
    }
    // SAFETY: a descriptor that was made just now and is owned by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let Ok(size) = libc::off_t::try_from(len) else {
        return Err(Failure { doing: "size a memfd of", source: io::Error::from_raw_os_error(libc::EFBIG) });
    };
    // SAFETY: plain system call on our own descriptor.
    if unsafe { libc::ftruncate(fd.as_raw_fd(), size) } != 0 {
        return Err(failed("size a memfd of"));
    }
    Ok(fd)
}

/// The host's page size; guards and commitments are whole host pages.
fn host_page() -> u64 {
    // SAFETY: no arguments that could be wrong.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap_or(4096).max(4096)
}

// A guest pointer is made from these numbers and back.
const _: () = assert!(size_of::<*mut u8>() == 8);
