//! Bytes of a stream: numbers are big endian, and whoever reads knows where it is.
//!
//! ```text
//!   Out ─▶ buffer ─▶ Write          what was put is counted: an offset in a file is an offset in the stream
//!   Read ─▶ buffer ─▶ In            a length is believed a piece at a time: what is not there is not allocated
//! ```
//!
//! The numbers that both ends agree on are here, and nowhere else.

use core::fmt;
use std::io::{self, Read, Seek, SeekFrom, Write};

/// `QEVM`.
pub(super) const MAGIC: u32 = 0x5145_564d;
/// Of the file; another one is refused.
pub(super) const FILE_VERSION: u32 = 3;

/// What a section begins with.
pub(super) mod kind {
    pub const EOF: u8 = 0x00;
    pub const START: u8 = 0x01;
    pub const PART: u8 = 0x02;
    pub const END: u8 = 0x03;
    pub const FULL: u8 = 0x04;
    pub const SUBSECTION: u8 = 0x05;
    pub const DESCRIPTION: u8 = 0x06;
    pub const CONFIGURATION: u8 = 0x07;
    pub const COMMAND: u8 = 0x08;
    pub const FOOTER: u8 = 0x7e;
}

/// The low bits of the number that a record of the RAM section begins with; above them is the place in the block.
pub(super) mod flag {
    pub const ZERO: u64 = 0x02;
    pub const MEM_SIZE: u64 = 0x04;
    pub const PAGE: u64 = 0x08;
    pub const EOS: u64 = 0x10;
    pub const CONTINUE: u64 = 0x20;
    pub const XBZRLE: u64 = 0x40;
    pub const MULTIFD_FLUSH: u64 = 0x200;
    pub const ALL: u64 = 0xfff;
}

/// How a delta is encoded; there is one way.
pub(super) const XBZRLE_ENCODING: u8 = 1;

/// The section that pages come in, and its version.
pub(super) const RAM: &str = "ram";
pub(super) const RAM_VERSION: u32 = 4;

/// Bytes that are kept before they are written, and read ahead.
const BUFFER: usize = 256 << 10;

/// What is wrong with a stream, and where.
#[derive(Debug, thiserror::Error)]
#[error("{section}, byte {offset:#x} of the stream: {fault}")]
pub struct StreamError {
    /// Where it was read or written.
    pub offset: u64,
    /// In which part.
    pub section: String,
    /// What it is.
    #[source]
    pub fault: Fault,
}

/// What can be wrong with a stream.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The channel failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It ends in the middle.
    #[error("the stream ends here, too early")]
    Ended,
    /// A number is none of those that there are.
    #[error("{what} is {value:#x}, must be {wanted}")]
    Value {
        /// Which number.
        what: &'static str,
        /// What it is.
        value: u64,
        /// What it could be.
        wanted: String,
    },
    /// A name that is no text, or is empty.
    #[error("{what} is not a name: {bytes:?}")]
    Name {
        /// Of what.
        what: &'static str,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// A section that nothing here knows.
    #[error("nothing here is called {name} ({instance})")]
    Unknown {
        /// Its name.
        name: String,
        /// Which of that name.
        instance: u32,
    },
    /// What should be there is not, or came twice.
    #[error("{0}")]
    Order(String),
    /// What came is not what was sent.
    #[error("the checksum of {what} is {came:#x}, and {sent:#x} was sent: bytes changed on the way")]
    Checksum {
        /// A section, or a RAM block.
        what: String,
        /// Of what came.
        came: u64,
        /// Of what was sent.
        sent: u64,
    },
    /// A RAM block does not fit.
    #[error("RAM block {idstr}: {why}")]
    Block {
        /// The block.
        idstr: String,
        /// Why not.
        why: String,
    },
}

impl Fault {
    /// A number is none of those that there are.
    pub fn value(what: &'static str, value: impl Into<u64>, wanted: impl fmt::Display) -> Fault {
        Fault::Value { what, value: value.into(), wanted: wanted.to_string() }
    }
}

/// What came of it, or what is wrong with the stream.
pub type Result<T> = core::result::Result<T, StreamError>;

/// Puts numbers and bytes.
#[derive(Debug)]
pub struct Out<W> {
    to: W,
    buffer: Vec<u8>,
    /// Bytes that went to the channel.
    written: u64,
    section: String,
}

impl<W: Write> Out<W> {
    /// From the start of a stream.
    pub fn new(to: W) -> Self {
        Self { to, buffer: Vec::new(), written: 0, section: "header".into() }
    }

    /// Errors from here on are of this part.
    pub(super) fn enter(&mut self, section: impl Into<String>) {
        self.section = section.into();
    }

    /// Bytes so far.
    pub fn offset(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    /// The same, here.
    pub(super) fn error(&self, fault: impl Into<Fault>) -> StreamError {
        StreamError { offset: self.offset(), section: self.section.clone(), fault: fault.into() }
    }

    /// Puts bytes.
    ///
    /// # Errors
    /// The channel's.
    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes(bytes)
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    pub(super) fn u8(&mut self, value: u8) -> Result<()> {
        self.bytes(&[value])
    }

    pub(super) fn u16(&mut self, value: u16) -> Result<()> {
        self.bytes(&value.to_be_bytes())
    }

    pub(super) fn u32(&mut self, value: u32) -> Result<()> {
        self.bytes(&value.to_be_bytes())
    }

    pub(super) fn u64(&mut self, value: u64) -> Result<()> {
        self.bytes(&value.to_be_bytes())
    }

    /// A length byte, and the text.
    pub(super) fn name(&mut self, name: &str) -> Result<()> {
        let len = u8::try_from(name.len()).map_err(|_| {
            self.error(Fault::Name { what: "a name of over 255 bytes", bytes: name.as_bytes()[..16].to_vec() })
        })?;
        self.u8(len)?;
        self.bytes(name.as_bytes())
    }

    /// What was put is with the channel.
    ///
    /// # Errors
    /// The channel's.
    pub fn flush(&mut self) -> Result<()> {
        let buffer = core::mem::take(&mut self.buffer);
        let done = self.to.write_all(&buffer).and_then(|()| self.to.flush());
        self.written += buffer.len() as u64;
        self.buffer = buffer;
        self.buffer.clear();
        done.map_err(|why| self.error(why))
    }

    /// The channel, when nothing waits to be written.
    ///
    /// # Errors
    /// The channel's.
    pub(super) fn channel(&mut self) -> Result<&mut W> {
        self.flush()?;
        Ok(&mut self.to)
    }

    /// Another channel, from its start; the one before failed, and what was to go by it is forgotten.
    pub(super) fn replace(&mut self, to: W) {
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        self.to = to;
    }

    /// So many bytes went to the channel by another way.
    pub(super) fn count(&mut self, bytes: u64) {
        self.written += bytes;
    }

    /// The channel, and all that was put is in it.
    ///
    /// # Errors
    /// The channel's.
    pub fn into_inner(mut self) -> Result<W> {
        self.flush()?;
        Ok(self.to)
    }
}

impl<W: Write + Seek> Out<W> {
    /// What comes next is at this offset.
    pub(super) fn seek(&mut self, offset: u64) -> Result<()> {
        self.flush()?;
        self.to.seek(SeekFrom::Start(offset)).map_err(|why| self.error(why))?;
        self.written = offset;
        Ok(())
    }
}

/// Takes numbers and bytes.
#[derive(Debug)]
pub struct In<R> {
    pub(super) from: R,
    /// What was read ahead is from `start` to `end`.
    pub(super) buffer: Box<[u8]>,
    pub(super) start: usize,
    pub(super) end: usize,
    /// Bytes that came from the channel.
    pub(super) read: u64,
    section: String,
}

impl<R: Read> In<R> {
    /// From the start of a stream.
    pub fn new(from: R) -> Self {
        Self::with_buffer(from, BUFFER)
    }

    /// The same, of at most so many bytes.
    pub(super) fn with_buffer(from: R, len: usize) -> Self {
        let buffer = vec![0; len].into_boxed_slice();
        Self { from, buffer, start: 0, end: 0, read: 0, section: "header".into() }
    }

    pub(super) fn enter(&mut self, section: impl Into<String>) {
        self.section = section.into();
    }

    /// The part that is being read.
    pub fn section(&self) -> &str {
        &self.section
    }

    /// Bytes so far.
    pub fn offset(&self) -> u64 {
        self.read - (self.end - self.start) as u64
    }

    /// The same, here.
    pub fn error(&self, fault: impl Into<Fault>) -> StreamError {
        StreamError { offset: self.offset(), section: self.section.clone(), fault: fault.into() }
    }

    /// Has `len` bytes in the buffer, which they fit.
    #[inline]
    fn need(&mut self, len: usize) -> Result<()> {
        if self.end - self.start >= len { Ok(()) } else { self.fill(len) }
    }

    #[cold]
    fn fill(&mut self, len: usize) -> Result<()> {
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        while self.end < len {
            match self.from.read(&mut self.buffer[self.end..]) {
                Ok(0) => return Err(self.error(Fault::Ended)),
                Ok(count) => {
                    self.end += count;
                    self.read += count as u64;
                }
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                Err(why) if why.kind() == io::ErrorKind::UnexpectedEof => return Err(self.error(Fault::Ended)),
                Err(why) => return Err(self.error(why)),
            }
        }
        Ok(())
    }

    /// Whether anything more comes.
    pub(super) fn more(&mut self) -> Result<bool> {
        match self.need(1) {
            Ok(()) => Ok(true),
            Err(StreamError { fault: Fault::Ended, .. }) => Ok(false),
            Err(why) => Err(why),
        }
    }

    #[inline]
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.need(N)?;
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.buffer[self.start..self.start + N]);
        self.start += N;
        Ok(bytes)
    }

    pub(super) fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    #[inline]
    pub(super) fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// As many bytes as one buffer has at most, without a copy.
    #[inline]
    pub(super) fn piece(&mut self, len: usize) -> Result<&[u8]> {
        self.need(len)?;
        self.start += len;
        Ok(&self.buffer[self.start - len..self.start])
    }

    /// So many bytes. Memory is taken as they come.
    pub(super) fn bytes(&mut self, len: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut left = len;
        while left != 0 {
            let piece = left.min(BUFFER as u64 / 4) as usize;
            bytes.extend_from_slice(self.piece(piece)?);
            left -= piece as u64;
        }
        Ok(bytes)
    }

    /// A length byte, and a text.
    pub(super) fn name(&mut self, what: &'static str) -> Result<String> {
        let len = self.u8()?;
        self.text(what, len.into())
    }

    pub(super) fn text(&mut self, what: &'static str, len: u64) -> Result<String> {
        let bytes = self.bytes(len)?;
        match String::from_utf8(bytes) {
            Ok(name) if !name.is_empty() && !name.contains('\0') => Ok(name),
            Ok(name) => Err(self.no_name(what, name.into_bytes())),
            Err(why) => Err(self.no_name(what, why.into_bytes())),
        }
    }

    fn no_name(&self, what: &'static str, mut bytes: Vec<u8>) -> StreamError {
        bytes.truncate(64);
        self.error(Fault::Name { what, bytes })
    }

    /// The channel, and what was read ahead of it.
    pub fn into_inner(self) -> (R, Vec<u8>) {
        (self.from, self.buffer[self.start..self.end].to_vec())
    }

    /// Another channel, from its start; the one before failed, and what was read ahead of it is forgotten.
    pub(super) fn replace(&mut self, from: R) {
        (self.start, self.end) = (0, 0);
        self.from = from;
    }

    /// The channel. What was read ahead stays here.
    pub fn channel(&mut self) -> &mut R {
        &mut self.from
    }
}

impl<R: Read + Seek> In<R> {
    /// What comes next is at this offset.
    pub(super) fn seek(&mut self, offset: u64) -> Result<()> {
        (self.start, self.end) = (0, 0);
        self.from.seek(SeekFrom::Start(offset)).map_err(|why| self.error(why))?;
        self.read = offset;
        Ok(())
    }
}
