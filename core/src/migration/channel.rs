//! Where a stream goes and comes from.
//!
//! ```text
//!   Channel   a descriptor that never blocks for good: each wait ends by bytes, by the patience's end, or by a cancel
//!   Sink      what takes a stream; guest RAM goes straight into vectored writes where there is a descriptor
//!   Fill      what gives one; guest RAM is filled straight from vectored reads
//! ```

use super::layer::{Layer, copied, fill};
use super::lend::Lend;
use crate::ram::RamSlice;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long one wait of a channel is: so long does a cancel take.
const STEP: Duration = Duration::from_millis(20);
/// Bytes that are on their way by a Unix socket, at most; the kernel doubles it.
const WIDE: libc::c_int = 1 << 20;
/// Bytes from which on it is worth two system calls not to copy them.
const LENT: u64 = 64 << 10;
/// Vectors of one system call: the kernel's limit.
pub(super) const VECTORS: usize = 1024;

/// Ends all waits of the channels that have it.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// From now on they fail.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether they do.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// A descriptor: of a socket, a pipe or a file.
#[derive(Debug)]
pub struct Channel {
    fd: OwnedFd,
    patience: Duration,
    /// Of `read_once`.
    step: Duration,
    look: Duration,
    cancel: Cancel,
    /// Shared by those of one descriptor: one writes and another one reads. It is locked for no wait.
    layer: Option<Arc<Mutex<dyn Layer>>>,
    /// Guest RAM goes without a copy; made when it first does.
    lend: Option<Lend>,
    /// It may: it is a Unix socket, and that has not failed.
    lends: bool,
}

impl Channel {
    /// Waits for the other end for so long at once. The descriptor does not block from now on, nor do its copies in other threads and processes.
    ///
    /// # Errors
    /// The host's.
    pub fn new(fd: OwnedFd, patience: Duration, cancel: Cancel) -> io::Result<Channel> {
        // SAFETY: a plain system call on a descriptor that we hold.
        let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
        // SAFETY: as above.
        if flags < 0 || unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut channel =
            Channel { fd, patience, step: STEP, look: Duration::ZERO, cancel, layer: None, lend: None, lends: false };
        channel.lends = channel.option(libc::SO_DOMAIN) == Some(libc::AF_UNIX);
        channel.widen();
        Ok(channel)
    }

    /// From now on its bytes go by this layer. Nothing was written or read yet but by that layer.
    pub fn set_layer(&mut self, layer: impl Layer + 'static) {
        self.layer = Some(Arc::new(Mutex::new(layer)));
        self.lends = false;
    }

    /// What its layer has to do before bytes go, such as a handshake, is done when this returns.
    ///
    /// # Errors
    /// The layer's; the other side does nothing; it was cancelled.
    pub fn settle(&self) -> io::Result<()> {
        let Some(layer) = &self.layer else { return Ok(()) };
        self.retry(|fd| {
            let (writes, done) = lock(layer).settle(fd);
            (if writes { libc::POLLOUT } else { libc::POLLIN }, done)
        })
    }

    /// A Unix socket takes more at once: with what the kernel gives it, the two ends wait for each other most of the time. TCP finds by
    /// itself what it needs. Advice: the kernel has a limit, and all works with less.
    fn widen(&self) {
        if self.option(libc::SO_DOMAIN) != Some(libc::AF_UNIX) || self.option(libc::SO_SNDBUF) >= Some(WIDE) {
            return;
        }
        let wide = WIDE;
        let (at, len) = ((&raw const wide).cast(), size_of_val(&wide) as libc::socklen_t);
        // SAFETY: the kernel reads `len` bytes of `wide`.
        unsafe { libc::setsockopt(self.fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF, at, len) };
    }

    /// A number that the kernel keeps for a socket; `None` of what is none.
    fn option(&self, name: libc::c_int) -> Option<libc::c_int> {
        let (mut value, mut len) = (0, size_of::<libc::c_int>() as libc::socklen_t);
        let at = (&raw mut value).cast();
        // SAFETY: the kernel writes at most `len` bytes to `value`.
        let done = unsafe { libc::getsockopt(self.fd.as_raw_fd(), libc::SOL_SOCKET, name, at, &raw mut len) };
        (done == 0).then_some(value)
    }

    /// The same descriptor once more.
    ///
    /// # Errors
    /// The host has none left.
    pub fn try_clone(&self) -> io::Result<Channel> {
        let (patience, cancel, layer) = (self.patience, self.cancel.clone(), self.layer.clone());
        let (fd, step, look, lends) = (self.fd.try_clone()?, self.step, self.look, self.lends);
        Ok(Channel { fd, patience, step, look, cancel, layer, lend: None, lends })
    }

    /// Whether the other end can answer: it is a socket.
    pub fn is_duplex(&self) -> bool {
        self.option(libc::SO_TYPE).is_some()
    }

    /// The other end sees the end of what is written here.
    pub fn shutdown_write(&self) {
        if let Some(layer) = &self.layer {
            // One that cannot be told sees an end that was not.
            let _ = self.retry(|fd| (libc::POLLOUT, lock(layer).end(fd)));
        }
        // SAFETY: a plain system call on a descriptor that we hold. One that is no socket ends when it is closed.
        unsafe { libc::shutdown(self.fd.as_raw_fd(), libc::SHUT_WR) };
    }

    /// Neither end reads or writes any more: each wait at either ends. One that is no socket ends when it is closed.
    pub fn shut(&self) {
        // SAFETY: a plain system call on a descriptor that we hold.
        unsafe { libc::shutdown(self.fd.as_raw_fd(), libc::SHUT_RDWR) };
    }

    /// From now on it waits so long at once.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// From now on [`read_once`](Self::read_once) looks again and again for so long, then sleeps in the kernel, so long at once: one system
    /// call, where others make three. Of a channel with a layer all stays as it is.
    ///
    /// # Errors
    /// The host's: it is no socket.
    pub fn set_blocking(&mut self, step: Duration, look: Duration) -> io::Result<()> {
        (self.step, self.look) = (step, look);
        if self.layer.is_some() {
            return Ok(());
        }
        for (name, time) in [(libc::SO_RCVTIMEO, step), (libc::SO_SNDTIMEO, STEP)] {
            let time = libc::timeval { tv_sec: time.as_secs() as i64, tv_usec: i64::from(time.subsec_micros()) };
            let (at, len) = ((&raw const time).cast(), size_of_val(&time) as libc::socklen_t);
            // SAFETY: the kernel reads `len` bytes of `time`.
            done(unsafe { libc::setsockopt(self.fd.as_raw_fd(), libc::SOL_SOCKET, name, at, len) } as isize)?;
        }
        // SAFETY: a plain system call on a descriptor that we hold.
        let flags = done(unsafe { libc::fcntl(self.fd.as_raw_fd(), libc::F_GETFL) } as isize)? as libc::c_int;
        // SAFETY: as above.
        done(unsafe { libc::fcntl(self.fd.as_raw_fd(), libc::F_SETFL, flags & !libc::O_NONBLOCK) } as isize).map(drop)
    }

    /// Reads once, waiting for at most one step of [`set_blocking`](Self::set_blocking): `None` if nothing came, 0 at the end.
    ///
    /// # Errors
    /// The host's, the layer's, or it was cancelled.
    pub fn read_once(&mut self, into: &mut [u8]) -> io::Result<Option<usize>> {
        let first = self.look_once(into)?;
        if first.is_some() {
            return Ok(first);
        }
        let Some(layer) = &self.layer else { return self.receive(into, 0) };
        let mut poll = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one element, which lives through the call.
        unsafe { libc::poll(&raw mut poll, 1, self.step.as_millis().max(1) as libc::c_int) };
        nothing(lock(layer).read(self.fd.as_fd(), into))
    }

    /// The same without sleep: it looks for as long as `set_blocking` says.
    ///
    /// # Errors
    /// As [`read_once`](Self::read_once).
    pub fn look_once(&mut self, into: &mut [u8]) -> io::Result<Option<usize>> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "cancelled"));
        }
        if let Some(layer) = &self.layer {
            return nothing(lock(layer).read(self.fd.as_fd(), into));
        }
        // Without a yield: where all processors of the host are in use that is a sleep, and nothing ends it early.
        let begun = (!self.look.is_zero()).then(Instant::now);
        while begun.is_some_and(|begun| begun.elapsed() < self.look) {
            let came = self.receive(into, libc::MSG_DONTWAIT)?;
            if came.is_some() {
                return Ok(came);
            }
            core::hint::spin_loop();
        }
        Ok(None)
    }

    fn receive(&self, into: &mut [u8], flags: libc::c_int) -> io::Result<Option<usize>> {
        let (at, len) = (into.as_mut_ptr().cast(), into.len());
        // SAFETY: the kernel writes at most `len` bytes to `into`.
        nothing(done(unsafe { libc::recv(self.fd.as_raw_fd(), at, len, flags) }))
    }

    /// Calls until it is not told to wait.
    fn retry<T>(&self, mut call: impl FnMut(BorrowedFd<'_>) -> (libc::c_short, io::Result<T>)) -> io::Result<T> {
        let mut until = None;
        loop {
            if self.cancel.is_cancelled() {
                return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "cancelled"));
            }
            let (events, done) = call(self.fd.as_fd());
            match done {
                Err(why) if why.kind() == io::ErrorKind::Interrupted => continue,
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
            let until = *until.get_or_insert_with(|| Instant::now() + self.patience);
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let text = format!("the other end did nothing for {:.1} s", self.patience.as_secs_f64());
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            let mut poll = libc::pollfd { fd: self.fd.as_raw_fd(), events, revents: 0 };
            // SAFETY: one element, which lives through the call.
            unsafe { libc::poll(&raw mut poll, 1, left.min(STEP).as_millis().max(1) as libc::c_int) };
        }
    }
}

/// What a system call says of bytes.
fn done(count: isize) -> io::Result<usize> {
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// `None` if nothing came.
fn nothing(done: io::Result<usize>) -> io::Result<Option<usize>> {
    match done {
        Err(why) if matches!(why.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
        done => done.map(Some),
    }
}

fn lock<'l>(layer: &'l Mutex<dyn Layer + 'static>) -> MutexGuard<'l, dyn Layer + 'static> {
    // One that panicked is in the middle of something, and says so by what it does next.
    layer.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The descriptor. Of a channel with a layer it says little: what has been read may be kept there.
impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Read for Channel {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if let Some(layer) = &self.layer {
            return self.retry(|fd| (libc::POLLIN, lock(layer).read(fd, into)));
        }
        let (at, len) = (into.as_mut_ptr().cast(), into.len());
        // SAFETY: the kernel writes at most `len` bytes to `into`.
        self.retry(|fd| (libc::POLLIN, done(unsafe { libc::read(fd.as_raw_fd(), at, len) })))
    }
}

impl Write for Channel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(layer) = &self.layer {
            return self.retry(|fd| (libc::POLLOUT, lock(layer).write(fd, bytes)));
        }
        let (at, len) = (bytes.as_ptr().cast(), bytes.len());
        // SAFETY: the kernel reads at most `len` bytes of `bytes`.
        self.retry(|fd| (libc::POLLOUT, done(unsafe { libc::write(fd.as_raw_fd(), at, len) })))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Channel {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let (off, whence) = match to {
            SeekFrom::Start(off) => (i64::try_from(off).map_err(io::Error::other)?, libc::SEEK_SET),
            SeekFrom::Current(off) => (off, libc::SEEK_CUR),
            SeekFrom::End(off) => (off, libc::SEEK_END),
        };
        // SAFETY: a plain system call on a descriptor that we hold.
        let at = unsafe { libc::lseek(self.fd.as_raw_fd(), off, whence) };
        u64::try_from(at).map_err(|_| io::Error::last_os_error())
    }
}

/// What takes a stream.
pub trait Sink: Write {
    /// Writes these vectors, or some of them, and returns how many bytes.
    ///
    /// # Safety
    /// Each vector is memory that can be read until this returns.
    ///
    /// # Errors
    /// The channel's.
    unsafe fn write_vectors(&mut self, vectors: &[libc::iovec]) -> io::Result<usize>;

    /// A copy of small bytes for [`lend_vectors`](Self::lend_vectors), if this sink takes guest RAM without a copy. It is there, and as it is, until
    /// the next one is asked for.
    fn lend_heads(&mut self, _heads: &[u8]) -> Option<*const u8> {
        None
    }

    /// The same as [`write_vectors`](Self::write_vectors), but the other end may read guest RAM later, as it is then. The other vectors lie
    /// in what `lend_heads` gave last.
    ///
    /// # Safety
    /// As above.
    ///
    /// # Errors
    /// The channel's.
    unsafe fn lend_vectors(&mut self, vectors: &[libc::iovec]) -> io::Result<usize> {
        // SAFETY: by the caller.
        unsafe { self.write_vectors(vectors) }
    }
}

impl Sink for Channel {
    unsafe fn write_vectors(&mut self, vectors: &[libc::iovec]) -> io::Result<usize> {
        if let Some(layer) = &self.layer {
            // SAFETY: by the caller.
            let bytes = unsafe { copied(vectors) };
            return self.retry(|fd| (libc::POLLOUT, lock(layer).write(fd, &bytes)));
        }
        let count = vectors.len().min(VECTORS) as libc::c_int;
        // SAFETY: by the caller; the kernel reads the first `count` of them.
        self.retry(|fd| (libc::POLLOUT, done(unsafe { libc::writev(fd.as_raw_fd(), vectors.as_ptr(), count) })))
    }

    fn lend_heads(&mut self, heads: &[u8]) -> Option<*const u8> {
        if !self.lends {
            return None;
        }
        let at = match &mut self.lend {
            Some(lend) => lend.heads(heads),
            empty => Lend::new().and_then(|lend| empty.insert(lend).heads(heads)),
        };
        // A host that has no pipe left, or no memory, copies.
        at.unwrap_or_else(|_| {
            self.lends = false;
            None
        })
    }

    unsafe fn lend_vectors(&mut self, vectors: &[libc::iovec]) -> io::Result<usize> {
        let Some(mut lend) = self.lend.take() else {
            // SAFETY: by the caller.
            return unsafe { self.write_vectors(vectors) };
        };
        // SAFETY: by the caller.
        let filled = unsafe { lend.fill(&vectors[..vectors.len().min(VECTORS)]) };
        let Ok(count @ 1..) = filled else {
            // Nothing of it is in the pipe. The heads are not asked for again before all vectors are written.
            self.lends = false;
            self.lend = Some(lend);
            // SAFETY: by the caller.
            return unsafe { self.write_vectors(vectors) };
        };
        let mut left = count;
        while left != 0 {
            // If it fails there is something in the pipe that must not go; it ends with this.
            match self.retry(|fd| (libc::POLLOUT, lend.drain(fd, left)))? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                gone => left -= gone,
            }
        }
        self.lend = Some(lend);
        Ok(count)
    }
}

impl Sink for File {
    unsafe fn write_vectors(&mut self, vectors: &[libc::iovec]) -> io::Result<usize> {
        let count = vectors.len().min(VECTORS) as libc::c_int;
        // SAFETY: by the caller; the kernel reads the first `count` of them.
        let count = unsafe { libc::writev(self.as_raw_fd(), vectors.as_ptr(), count) };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }
}

impl Sink for Vec<u8> {
    unsafe fn write_vectors(&mut self, vectors: &[libc::iovec]) -> io::Result<usize> {
        let start = self.len();
        for vector in vectors {
            let at = self.len();
            self.resize(at + vector.iov_len, 0);
            // SAFETY: by the caller, and the vector has just been made long enough.
            unsafe { core::ptr::copy_nonoverlapping(vector.iov_base.cast(), self[at..].as_mut_ptr(), vector.iov_len) };
        }
        Ok(self.len() - start)
    }
}

/// What gives a stream.
pub trait Fill: Read {
    /// Reads to these vectors, or to some of them, in their order, and returns how many bytes; 0 at the end.
    ///
    /// # Safety
    /// Each vector is memory that can be written until this returns, and no reference to it lives.
    ///
    /// # Errors
    /// The channel's.
    unsafe fn read_vectors(&mut self, vectors: &[libc::iovec]) -> io::Result<usize>;
}

impl Fill for Channel {
    unsafe fn read_vectors(&mut self, vectors: &[libc::iovec]) -> io::Result<usize> {
        if let Some(layer) = &self.layer {
            return self.retry(|fd| {
                let mut layer = lock(layer);
                // SAFETY: by the caller.
                (libc::POLLIN, unsafe { fill(vectors, |into| layer.read(fd, into)) })
            });
        }
        let count = vectors.len().min(VECTORS) as libc::c_int;
        // SAFETY: by the caller; the kernel writes to the first `count` of them.
        self.retry(|fd| (libc::POLLIN, done(unsafe { libc::readv(fd.as_raw_fd(), vectors.as_ptr(), count) })))
    }
}

impl Fill for &[u8] {
    unsafe fn read_vectors(&mut self, vectors: &[libc::iovec]) -> io::Result<usize> {
        let all = self.len();
        for vector in vectors {
            let (these, rest) = self.split_at(vector.iov_len.min(self.len()));
            // SAFETY: by the caller.
            unsafe { core::ptr::copy_nonoverlapping(these.as_ptr(), vector.iov_base.cast(), these.len()) };
            *self = rest;
        }
        Ok(all - self.len())
    }
}

/// What is left of vectors when so many bytes are done.
pub(super) fn advance(mut left: &mut [libc::iovec], mut count: usize) -> &mut [libc::iovec] {
    while let Some(first) = left.first_mut() {
        if count < first.iov_len {
            first.iov_base = first.iov_base.wrapping_byte_add(count);
            first.iov_len -= count;
            break;
        }
        count -= first.iov_len;
        left = &mut core::mem::take(&mut left)[1..];
    }
    left
}

/// Small bytes and guest RAM in turn, for one vectored write.
#[derive(Debug, Default)]
pub(super) struct Gather<'b> {
    heads: Vec<u8>,
    /// How many bytes of `heads` come, and then what of RAM.
    parts: Vec<(usize, Option<RamSlice<'b>>)>,
    head: usize,
    bytes: u64,
}

impl<'b> Gather<'b> {
    /// Pages of a gather, each with a head, that one system call takes.
    pub(super) const PAGES: u64 = VECTORS as u64 / 2 - 1;

    pub(super) fn head(&mut self, bytes: &[u8]) {
        self.heads.extend_from_slice(bytes);
        self.head += bytes.len();
        self.bytes += bytes.len() as u64;
    }

    pub(super) fn ram(&mut self, slice: RamSlice<'b>) {
        self.bytes += slice.len();
        self.parts.push((core::mem::take(&mut self.head), Some(slice)));
    }

    /// Writes all of it; how many bytes.
    pub(super) fn write_to<W: Sink>(mut self, to: &mut W) -> io::Result<u64> {
        if self.bytes == 0 {
            return Ok(0);
        }
        self.parts.push((self.head, None));
        let worth_it = self.bytes >= LENT;
        let lent = if worth_it { to.lend_heads(&self.heads) } else { None };
        let mut head_at = lent.unwrap_or(self.heads.as_ptr());
        let mut vectors = Vec::with_capacity(self.parts.len() * 2);
        for (head, slice) in &self.parts {
            if *head != 0 {
                vectors.push(libc::iovec { iov_base: head_at.cast_mut().cast(), iov_len: *head });
                head_at = head_at.wrapping_add(*head);
            }
            vectors.extend(slice.as_ref().map(RamSlice::iovec));
        }
        // SAFETY: heads are borrowed, or lent until the next ones are; and the blocks of the slices are borrowed.
        unsafe { write_all_vectors(to, &mut vectors, lent.is_some())? };
        Ok(self.bytes)
    }
}

/// Writes all of them; `lent`: by [`Sink::lend_vectors`].
///
/// # Safety
/// As of [`Sink::write_vectors`].
pub(super) unsafe fn write_all_vectors<W: Sink>(to: &mut W, vectors: &mut [libc::iovec], lent: bool) -> io::Result<()> {
    let mut left = vectors;
    while !left.is_empty() {
        // SAFETY: by the caller.
        let count = unsafe { if lent { to.lend_vectors(left)? } else { to.write_vectors(left)? } };
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        left = advance(left, count);
    }
    Ok(())
}
