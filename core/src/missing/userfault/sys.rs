//! userfaultfd, eventfd and poll as the kernel has them: the only file of this part that makes system calls.
//!
//! ```text
//!   open ─▶ API (features) ─▶ REGISTER range ─▶ read: faults ─▶ COPY │ ZEROPAGE │ CONTINUE, each wakes ─▶ UNREGISTER, wakes all
//! ```
//!
//! No header of libc's has these numbers: they are from linux/userfaultfd.h, and are the same on every architecture with the common
//! encoding of ioctls.

use core::ffi::{c_int, c_ulong};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

const API: u64 = 0xaa;
const EVENT_PAGEFAULT: u8 = 0x12;
const FLAG_MINOR: u64 = 1 << 2;

/// Features.
pub(super) const MISSING_HUGETLBFS: u64 = 1 << 4;
pub(super) const MISSING_SHMEM: u64 = 1 << 5;
pub(super) const MINOR_SHMEM: u64 = 1 << 10;

/// What is to be told of a range.
pub(super) const MISSING: u64 = 1 << 0;
pub(super) const MINOR: u64 = 1 << 2;

/// Which calls a range takes, as bits of what `register` returns.
pub(super) const CAN_WAKE: u64 = 1 << 2;
pub(super) const CAN_COPY: u64 = 1 << 3;
pub(super) const CAN_ZERO: u64 = 1 << 4;
pub(super) const CAN_CONTINUE: u64 = 1 << 7;

#[repr(C)]
struct ApiArgs {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

#[repr(C)]
struct RegisterArgs {
    range: Range,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct CopyArgs {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

/// Of ZEROPAGE and CONTINUE.
#[repr(C)]
struct FillArgs {
    range: Range,
    mode: u64,
    done: i64,
}

const fn number(direction: c_ulong, nr: c_ulong, size: usize) -> c_ulong {
    direction << 30 | (size as c_ulong) << 16 | 0xaa << 8 | nr
}

const NEW: c_ulong = number(0, 0, 0);
const UFFDIO_API: c_ulong = number(3, 0x3f, size_of::<ApiArgs>());
const REGISTER: c_ulong = number(3, 0, size_of::<RegisterArgs>());
const UNREGISTER: c_ulong = number(2, 1, size_of::<Range>());
const WAKE: c_ulong = number(2, 2, size_of::<Range>());
const COPY: c_ulong = number(3, 3, size_of::<CopyArgs>());
const ZEROPAGE: c_ulong = number(3, 4, size_of::<FillArgs>());
const CONTINUE: c_ulong = number(3, 7, size_of::<FillArgs>());

/// What a read gives: an event, and of a fault its flags and its address.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Message {
    event: u8,
    _reserved: [u8; 7],
    flags: u64,
    address: u64,
    _thread: u64,
}

const _: () = assert!(size_of::<Message>() == 32 && size_of::<CopyArgs>() == 40 && size_of::<FillArgs>() == 32);

impl Message {
    /// Where a page is wanted; `None` of any other event.
    pub(super) fn fault(&self) -> Option<u64> {
        (self.event == EVENT_PAGEFAULT).then_some(self.address)
    }

    /// Whether the page is in its file, and not mapped.
    pub(super) fn is_minor(&self) -> bool {
        self.flags & FLAG_MINOR != 0
    }
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A new one, for faults of the kernel, too (a system call into RAM, KVM): by its device, if the permissions of that allow it, or else by the system call.
pub(super) fn open() -> io::Result<OwnedFd> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    if let Ok(device) = std::fs::File::open("/dev/userfaultfd") {
        // SAFETY: a plain call on our own descriptor, with a number as its argument.
        let fd = check(unsafe { libc::ioctl(device.as_raw_fd(), NEW as _, flags) });
        if let Ok(fd) = fd {
            // SAFETY: made just now, and has no other owner.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
    // SAFETY: a plain call with a number as its argument.
    let fd = check(unsafe { libc::syscall(libc::SYS_userfaultfd, flags) } as c_int)?;
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A userfaultfd.
pub(super) struct Uffd(OwnedFd);

impl Uffd {
    /// One that is new: agrees on these features. Which the kernel has.
    pub(super) fn agree(fd: OwnedFd, features: u64) -> io::Result<(Uffd, u64)> {
        let mut args = ApiArgs { api: API, features, ioctls: 0 };
        // SAFETY: the kernel reads and writes `args`, which has the layout of the call.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API as _, &mut args) })?;
        Ok((Uffd(fd), args.features))
    }

    /// Another process's, which has agreed.
    pub(super) fn of_peer(fd: OwnedFd) -> io::Result<Uffd> {
        let name = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
        if name.as_os_str() != "anon_inode:[userfaultfd]" {
            let why = format!("{}: not a userfaultfd", name.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        // SAFETY: a plain call on our own descriptor; the flag is the open file's, and is what it has to be here.
        check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) })?;
        Ok(Uffd(fd))
    }

    pub(super) fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Faults of this range are told from here on. Which calls it takes.
    ///
    /// # Safety
    /// The range is this process's, accessed as raw memory alone, and stays mapped until it is unregistered.
    pub(super) unsafe fn register(&self, start: u64, len: u64, mode: u64) -> io::Result<u64> {
        let mut args = RegisterArgs { range: Range { start, len }, mode, ioctls: 0 };
        // SAFETY: as in `agree`; of the range by the caller's promise.
        check(unsafe { libc::ioctl(self.raw(), REGISTER as _, &mut args) })?;
        Ok(args.ioctls)
    }

    /// No fault of this range is told any more, and what waits in it goes on.
    pub(super) fn unregister(&self, start: u64, len: u64) -> io::Result<()> {
        let args = Range { start, len };
        // SAFETY: the kernel reads `args`; a range changes from one that is waited for to plain memory.
        check(unsafe { libc::ioctl(self.raw(), UNREGISTER as _, &args) }).map(drop)
    }

    /// What waits in this range looks again.
    pub(super) fn wake(&self, start: u64, len: u64) -> io::Result<()> {
        let args = Range { start, len };
        // SAFETY: the kernel reads `args`, and changes no memory.
        check(unsafe { libc::ioctl(self.raw(), WAKE as _, &args) }).map(drop)
    }

    /// Pages that are not there become these bytes, and what waits for them goes on.
    pub(super) fn copy(&self, dst: u64, bytes: &[u8]) -> io::Result<()> {
        let (src, len) = (bytes.as_ptr().addr() as u64, bytes.len() as u64);
        let mut at = 0;
        while at < len {
            let mut args = CopyArgs { dst: dst + at, src: src + at, len: len - at, mode: 0, copied: 0 };
            // SAFETY: the kernel reads `args` and `bytes`; it writes pages that were registered with this descriptor and have no memory, and
            // no other.
            match check(unsafe { libc::ioctl(self.raw(), COPY as _, &mut args) }) {
                Ok(_) => return Ok(()),
                Err(why) if why.raw_os_error() == Some(libc::EAGAIN) => at += args.copied.max(0) as u64,
                Err(why) => return Err(why),
            }
        }
        Ok(())
    }

    /// The same, of zeros.
    pub(super) fn zero(&self, start: u64, len: u64) -> io::Result<()> {
        self.fill(ZEROPAGE, start, len)
    }

    /// Pages that are in their file are mapped, and what waits for them goes on.
    pub(super) fn go_on(&self, start: u64, len: u64) -> io::Result<()> {
        self.fill(CONTINUE, start, len)
    }

    fn fill(&self, call: c_ulong, start: u64, len: u64) -> io::Result<()> {
        let mut at = 0;
        while at < len {
            let mut args = FillArgs { range: Range { start: start + at, len: len - at }, mode: 0, done: 0 };
            // SAFETY: as in `copy`; no bytes are read.
            match check(unsafe { libc::ioctl(self.raw(), call as _, &mut args) }) {
                Ok(_) => return Ok(()),
                Err(why) if why.raw_os_error() == Some(libc::EAGAIN) => at += args.done.max(0) as u64,
                Err(why) => return Err(why),
            }
        }
        Ok(())
    }

    /// What was told, as much as there is room for; nothing, if that is all.
    pub(super) fn read(&self, into: &mut [Message]) -> io::Result<usize> {
        // SAFETY: the kernel writes at most these bytes, and any bytes are a `Message`.
        let got = unsafe { libc::read(self.raw(), into.as_mut_ptr().cast(), size_of_val(into)) };
        match got {
            0.. => Ok(got as usize / size_of::<Message>()),
            _ => match io::Error::last_os_error() {
                why if matches!(why.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => Ok(0),
                why => Err(why),
            },
        }
    }
}

/// A number that a thread can wait for with other descriptors.
pub(super) struct Bell(OwnedFd);

impl Bell {
    pub(super) fn new() -> io::Result<Bell> {
        // SAFETY: a plain call with numbers as its arguments.
        let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        // SAFETY: made just now, and has no other owner.
        Ok(Bell(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub(super) fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    pub(super) fn ring(&self) {
        let one = 1u64;
        // SAFETY: the kernel reads eight bytes. It cannot fail for want of room before 2^64 rings.
        unsafe { libc::write(self.raw(), (&raw const one).cast(), 8) };
    }

    pub(super) fn take(&self) {
        let mut count = 0u64;
        // SAFETY: the kernel writes eight bytes, or none.
        unsafe { libc::read(self.raw(), (&raw mut count).cast(), 8) };
    }
}

/// Waits until one of them can be read.
pub(super) fn wait(fds: &mut [libc::pollfd]) -> io::Result<()> {
    // SAFETY: the kernel reads and writes this slice.
    match check(unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, -1) }) {
        Err(why) if why.kind() != io::ErrorKind::Interrupted => Err(why),
        _ => Ok(()),
    }
}

/// Writes all of this to a file, which no page of is torn for what maps it anew.
pub(super) fn write_at(fd: BorrowedFd<'_>, off: u64, bytes: &[u8]) -> io::Result<()> {
    let mut at = 0;
    while at < bytes.len() {
        let left = &bytes[at..];
        let place =
            libc::off_t::try_from(off + at as u64).map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))?;
        // SAFETY: the kernel reads `left`.
        match unsafe { libc::pwrite(fd.as_raw_fd(), left.as_ptr().cast(), left.len(), place) } {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            got @ 1.. => at += got as usize,
            _ => match io::Error::last_os_error() {
                why if why.kind() == io::ErrorKind::Interrupted => {}
                why => return Err(why),
            },
        }
    }
    Ok(())
}
