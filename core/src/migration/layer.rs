//! What may lie between a channel and its descriptor: encryption.
//!
//! ```text
//!   Channel ── bytes ──▶ Layer (of an embedder: guests tls.rs) ── records ──▶ descriptor, which does not block
//!      guest RAM is copied first: it may change while a record is made of it
//! ```

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;

/// Bytes that are taken from vectors at once.
const PIECE: usize = 1 << 16;

/// Makes what goes by a descriptor of what a channel is given, and back. None of its calls waits: `WouldBlock` says that the
/// descriptor is not ready.
pub trait Layer: Send + fmt::Debug {
    /// Agrees with the other side on all that they have to agree on before bytes go. `WouldBlock` comes with what it waits for: that the
    /// descriptor may be written (`true`) or read.
    ///
    /// # Errors
    /// The descriptor's, or they do not agree.
    fn settle(&mut self, fd: BorrowedFd<'_>) -> (bool, io::Result<()>);

    /// Takes some of these bytes. It has written all that it took when it returns their number; after `WouldBlock` it is called with the
    /// same bytes again.
    ///
    /// # Errors
    /// The descriptor's, or the layer's own.
    fn write(&mut self, fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize>;

    /// Reads some bytes; 0 at an end that the other side has told.
    ///
    /// # Errors
    /// As of a write; an end that was not told is `UnexpectedEof`.
    fn read(&mut self, fd: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<usize>;

    /// Tells the other side that nothing more is written.
    ///
    /// # Errors
    /// As of a write.
    fn end(&mut self, fd: BorrowedFd<'_>) -> io::Result<()>;
}

/// A copy of the first bytes of these vectors.
///
/// # Safety
/// Each vector is memory that can be read until this returns.
pub(super) unsafe fn copied(vectors: &[libc::iovec]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(vectors.iter().map(|vector| vector.iov_len).sum::<usize>().min(PIECE));
    for vector in vectors {
        let len = vector.iov_len.min(PIECE - bytes.len());
        let at = bytes.len();
        bytes.resize(at + len, 0);
        // SAFETY: by the caller, and the copy has just been made long enough.
        unsafe { core::ptr::copy_nonoverlapping(vector.iov_base.cast(), bytes[at..].as_mut_ptr(), len) };
    }
    bytes
}

/// Fills vectors, in their order, by `read`, until that has no more.
///
/// # Safety
/// Each vector is memory that can be written until this returns, and no reference to it lives.
pub(super) unsafe fn fill(
    vectors: &[libc::iovec],
    mut read: impl FnMut(&mut [u8]) -> io::Result<usize>,
) -> io::Result<usize> {
    let mut all = 0;
    for vector in vectors {
        let mut done = 0;
        while done < vector.iov_len {
            // SAFETY: by the caller; the part behind `done`.
            let rest = unsafe {
                core::slice::from_raw_parts_mut(vector.iov_base.cast::<u8>().add(done), vector.iov_len - done)
            };
            match read(rest) {
                Ok(0) => return Ok(all),
                Ok(count) => (done, all) = (done + count, all + count),
                // What came counts; an error that stays comes again.
                Err(_) if all != 0 => return Ok(all),
                Err(why) => return Err(why),
            }
        }
    }
    Ok(all)
}

#[cfg(all(test, not(loom), not(miri)))]
mod tests {
    use super::super::{Cancel, Channel, Fill, Sink};
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    /// Turns each byte around; takes at most 5,000, and keeps what the descriptor did not take.
    #[derive(Debug, Default)]
    struct Flip {
        owed: Vec<u8>,
        taken: usize,
        settled: bool,
    }

    fn count(count: isize) -> io::Result<usize> {
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }

    impl Layer for Flip {
        fn settle(&mut self, _: BorrowedFd<'_>) -> (bool, io::Result<()>) {
            let again = !std::mem::replace(&mut self.settled, true);
            (true, if again { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) })
        }

        fn write(&mut self, fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
            assert!(self.settled);
            if self.owed.is_empty() {
                self.taken = bytes.len().min(5000);
                self.owed = bytes[..self.taken].iter().map(|byte| !byte).collect();
            }
            while !self.owed.is_empty() {
                // SAFETY: the kernel reads so many bytes of `owed`.
                let done = unsafe { libc::write(fd.as_raw_fd(), self.owed.as_ptr().cast(), self.owed.len()) };
                self.owed.drain(..count(done)?);
            }
            Ok(self.taken)
        }

        fn read(&mut self, fd: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<usize> {
            // SAFETY: the kernel writes at most so many bytes to `into`.
            let done = count(unsafe { libc::read(fd.as_raw_fd(), into.as_mut_ptr().cast(), into.len()) })?;
            into[..done].iter_mut().for_each(|byte| *byte = !*byte);
            Ok(done)
        }

        fn end(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
            self.write(fd, b"end").map(drop)
        }
    }

    #[test]
    fn bytes_and_vectors_go_by_the_layer_and_come_as_they_were() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let patience = Duration::from_secs(10);
        let [mut ours, mut theirs] = [ours, theirs].map(|socket| {
            let mut channel = Channel::new(socket.into(), patience, Cancel::default()).unwrap();
            channel.set_layer(Flip::default());
            channel.settle().unwrap();
            channel
        });
        let bytes: Vec<u8> = (0..4_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let vector = |part: &[u8]| libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() };
        let mut came = vec![0u8; bytes.len()];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                ours.write_all(&bytes[..100]).unwrap();
                let mut at = 100;
                while at < bytes.len() {
                    let end = (at + 300_001).min(bytes.len());
                    let middle = (at + 7).min(end);
                    let vectors = [vector(&bytes[at..middle]), vector(&[]), vector(&bytes[middle..end])];
                    // SAFETY: parts of `bytes`.
                    at += unsafe { ours.write_vectors(&vectors).unwrap() };
                }
                // By whichever of two.
                ours.try_clone().unwrap().shutdown_write();
            });
            let (head, rest) = came.split_at_mut(2_000_003);
            theirs.read_exact(head).unwrap();
            let mut at = 0;
            while at < rest.len() {
                let end = (at + 100_000).min(rest.len());
                let vectors = [vector(&rest[at..at + 1]), vector(&rest[at + 1..end])];
                // SAFETY: parts of `rest`, which nothing else refers to.
                at += unsafe { theirs.read_vectors(&vectors).unwrap() };
            }
            let mut end = Vec::new();
            theirs.read_to_end(&mut end).unwrap();
            assert_eq!(end, b"end");
        });
        assert!(came == bytes);
    }
}
