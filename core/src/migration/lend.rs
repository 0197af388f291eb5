//! Guest RAM that goes by a Unix socket without a copy on this side.
//!
//! ```text
//!   heads ─copy─▶ arena │ RAM ──vmsplice──▶ pipe ──splice──▶ socket ──▶ the other end copies, from these very pages
//!                  └ never written twice                              later than this side returns
//! ```
//!
//! The other end reads a page when it comes to it, so it may have bytes that the guest stored after it was sent. A migration stands that: such a
//! page is dirty (HARVEST-1: it was taken and re-armed before it was sent) and goes again, and of its last version nothing changes any more. What must
//! not change are heads: they lie in memory that is used once and then unmapped; the kernel keeps its pages as long as the socket has them.
//! By TCP it is no gain: a packet has 17 pieces at most, and heads are pieces.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Bytes of heads that one mapping has.
const ARENA: usize = 256 << 10;
/// Heads of a call, at most: more are copies of pages.
const HEADS: usize = 16 << 10;
/// Bytes that the pipe holds: as many pages as it has places.
const PIPE: libc::c_int = 1 << 20;

/// A pipe, and memory for heads.
#[derive(Debug)]
pub(super) struct Lend {
    from: OwnedFd,
    to: OwnedFd,
    arena: Arena,
}

impl Lend {
    pub fn new() -> io::Result<Lend> {
        let mut fds = [0; 2];
        // SAFETY: the kernel writes two descriptors.
        if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: they have just been made, and nothing else has them.
        let [from, to] = fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        // A smaller one takes more calls.
        // SAFETY: a plain system call on a descriptor that we hold.
        unsafe { libc::fcntl(to.as_raw_fd(), libc::F_SETPIPE_SZ, PIPE) };
        Ok(Lend { from, to, arena: Arena::new()? })
    }

    /// A copy of heads that does not change any more; `None` if there are too many of them.
    pub fn heads(&mut self, heads: &[u8]) -> io::Result<Option<*const u8>> {
        if heads.len() > HEADS {
            return Ok(None);
        }
        if self.arena.used + heads.len() > ARENA {
            self.arena = Arena::new()?;
        }
        Ok(Some(self.arena.copy(heads)))
    }

    /// Some of these vectors are in the pipe, which was empty; how many bytes.
    ///
    /// # Safety
    /// Each vector is memory that can be read.
    pub unsafe fn fill(&mut self, vectors: &[libc::iovec]) -> io::Result<usize> {
        loop {
            // SAFETY: by the caller.
            let count = unsafe {
                libc::vmsplice(self.to.as_raw_fd(), vectors.as_ptr(), vectors.len(), libc::SPLICE_F_NONBLOCK)
            };
            match usize::try_from(count) {
                Ok(count) => return Ok(count),
                Err(_) => match io::Error::last_os_error() {
                    why if why.kind() == io::ErrorKind::Interrupted => {}
                    why => return Err(why),
                },
            }
        }
    }

    /// Up to so many bytes of the pipe go to a socket that does not block.
    pub fn drain(&self, to: BorrowedFd<'_>, most: usize) -> io::Result<usize> {
        let (none, flags) = (core::ptr::null_mut(), libc::SPLICE_F_NONBLOCK | libc::SPLICE_F_MORE);
        // SAFETY: a plain system call on descriptors that are held, without offsets.
        let count = unsafe { libc::splice(self.from.as_raw_fd(), none, to.as_raw_fd(), none, most, flags) };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }
}

/// Memory that is written once, from its start on.
#[derive(Debug)]
struct Arena {
    at: *mut u8,
    used: usize,
}

// SAFETY: it has its mapping for itself, and is tied to no thread.
unsafe impl Send for Arena {}
// SAFETY: nothing is done with it by a shared reference.
unsafe impl Sync for Arena {}

impl Arena {
    fn new() -> io::Result<Arena> {
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping, which replaces none.
        let at = unsafe { libc::mmap(core::ptr::null_mut(), ARENA, access, flags, -1, 0) };
        if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Arena { at: at.cast(), used: 0 }) }
    }

    /// A copy, for which there is room.
    fn copy(&mut self, bytes: &[u8]) -> *const u8 {
        assert!(self.used + bytes.len() <= ARENA);
        let at = self.at.wrapping_add(self.used);
        self.used += bytes.len();
        // SAFETY: inside of the mapping, as just checked; nothing that was given out has these bytes.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len()) };
        at
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: its own mapping, as a whole. A call that was given a pointer into it is over, and the kernel keeps the pages.
        unsafe { libc::munmap(self.at.cast(), ARENA) };
    }
}

#[cfg(all(test, not(loom), not(miri)))]
mod tests {
    use super::super::channel::{Cancel, Channel, Gather};
    use super::*;
    use crate::addr::PAGE_SIZE;
    use crate::ram::{RamBlockSpec, RamList};
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    fn pair() -> (Channel, UnixStream) {
        let (to, from) = UnixStream::pair().unwrap();
        (Channel::new(to.into(), Duration::from_secs(10), Cancel::default()).unwrap(), from)
    }

    /// Several writes, which are all on their way before one of them is read.
    #[test]
    fn heads_are_those_of_their_write_and_ram_is_read_when_it_arrives() {
        const PAGES: u64 = 16;
        let block = RamList::new().add(RamBlockSpec::new("ram", PAGES * PAGE_SIZE)).unwrap();
        let (mut to, mut from) = pair();
        for n in 0..4u8 {
            let mut gather = Gather::default();
            for page in 0..PAGES {
                block.fill_raw(page * PAGE_SIZE, PAGE_SIZE, n * 16 + page as u8).unwrap();
                gather.head(&[n, page as u8]);
                gather.ram(block.slice(page * PAGE_SIZE, PAGE_SIZE).unwrap());
            }
            gather.head(&[0xff]);
            assert_eq!(gather.write_to(&mut to).unwrap(), PAGES * (PAGE_SIZE + 2) + 1);
        }
        drop(to);
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, 4 * (PAGES * (PAGE_SIZE + 2) + 1));
        let step = PAGE_SIZE as usize + 2;
        for (n, write) in bytes.chunks(PAGES as usize * step + 1).enumerate() {
            for (page, record) in write.chunks_exact(step).enumerate() {
                assert_eq!(record[..2], [n as u8, page as u8]);
                // Not copied: it is as the last of them had it.
                assert!(record[2..].iter().all(|byte| *byte == 48 + page as u8), "{n}, {page}");
            }
            assert_eq!(write.last(), Some(&0xff));
        }
    }

    #[test]
    fn heads_that_fill_their_memory_get_new_memory_and_too_many_are_copied() {
        let mut lend = Lend::new().unwrap();
        let mut seen = Vec::new();
        for n in 0..40u8 {
            let at = lend.heads(&[n; HEADS]).unwrap().unwrap();
            // SAFETY: as many bytes as were copied, in memory that is mapped until the next one is asked for.
            let copy = unsafe { core::slice::from_raw_parts(at, HEADS) };
            assert!(copy.iter().all(|byte| *byte == n));
            seen.push(at);
        }
        assert!(lend.heads(&[0; HEADS + 1]).unwrap().is_none());
        let in_one = seen.windows(2).filter(|two| two[1] == two[0].wrapping_add(HEADS)).count();
        assert!(in_one >= 30, "{in_one}");
    }

    /// More than the socket holds: both sides wait for each other.
    #[test]
    fn a_reader_that_comes_late_and_one_that_goes_are_noticed() {
        let block = RamList::new().add(RamBlockSpec::new("ram", 16 << 20)).unwrap();
        for page in 0..16 << 20 >> 12 {
            block.fill_raw(page << 12, 1 << 12, page as u8).unwrap();
        }
        let (mut to, mut from) = pair();
        let write = |to: &mut Channel| {
            let mut gather = Gather::default();
            gather.head(b"head");
            gather.ram(block.slice(0, 16 << 20).unwrap());
            gather.write_to(to)
        };
        std::thread::scope(|scope| {
            let read = scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(30));
                let mut bytes = vec![0; (16 << 20) + 4];
                from.read_exact(&mut bytes).unwrap();
                bytes
            });
            write(&mut to).unwrap();
            let bytes = read.join().unwrap();
            assert_eq!(bytes[..4], *b"head");
            assert!(
                bytes[4..]
                    .chunks(1 << 12)
                    .enumerate()
                    .all(|(page, bytes)| bytes.iter().all(|byte| *byte == page as u8))
            );
        });
        drop(from);
        assert_eq!(write(&mut to).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
