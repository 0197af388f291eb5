//! What the target says: the return path.
//!
//! ```text
//!   be16 kind │ be16 length │ data
//!     1 SHUT be32   2 PONG be32   3 REQ_PAGES_ID be64 start, be32 length, byte, name   4 REQ_PAGES the same without a name: the last block
//!     5 RECV_BITMAP byte, name, and outside of the length: be64 size │ bits, little endian, padded to 8 bytes │ be64 0x0123456789abcdef
//!     6 RESUME_ACK be32   7 SWITCHOVER_ACK   0x4e02 WHY text (ours): why a SHUT that is not 0 comes next
//! ```
//!
//! A kind has a greatest length, which is asked before anything of it is read.

use super::super::wire::Fault;
use super::commands::Bytes;
use std::io::{self, Read, Write};

/// The longest reason, in bytes.
const REASON: u16 = 1024;
/// Behind the bits of a block.
const BITMAP_END: u64 = 0x0123_4567_89ab_cdef;
/// Bits that are read at once: what is not there takes no memory.
const PIECE: usize = 8 << 10;

mod kind {
    pub const SHUT: u16 = 1;
    pub const PONG: u16 = 2;
    pub const REQ_PAGES_ID: u16 = 3;
    pub const REQ_PAGES: u16 = 4;
    pub const RECV_BITMAP: u16 = 5;
    pub const RESUME_ACK: u16 = 6;
    pub const SWITCHOVER_ACK: u16 = 7;
    pub const WHY: u16 = 0x4e02;
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Answer {
    /// It has all of it (0), or will not run it.
    Shut(u32),
    /// It has read the command of this number.
    Pong(u32),
    /// Something there waits for these bytes of a block; without a name, of the block that was asked for before.
    Request {
        /// The block.
        idstr: Option<String>,
        /// Its first byte.
        start: u64,
        /// How many.
        len: u32,
    },
    /// Which pages of this block came: a [`Bitmap`] follows.
    Bitmap(String),
    /// It goes on.
    ResumeAck(u32),
    /// It is ready for the switch.
    SwitchoverAck,
    /// Why the next [`Shut`](Self::Shut) is not 0.
    Why(String),
}

impl Answer {
    /// As it is sent.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; 4];
        let kind = match self {
            Answer::Shut(number) | Answer::Pong(number) | Answer::ResumeAck(number) => {
                bytes.extend(number.to_be_bytes());
                match self {
                    Answer::Shut(_) => kind::SHUT,
                    Answer::Pong(_) => kind::PONG,
                    _ => kind::RESUME_ACK,
                }
            }
            Answer::Request { idstr, start, len } => {
                bytes.extend(start.to_be_bytes());
                bytes.extend(len.to_be_bytes());
                match idstr {
                    Some(idstr) => {
                        bytes.extend(named(idstr));
                        kind::REQ_PAGES_ID
                    }
                    None => kind::REQ_PAGES,
                }
            }
            Answer::Bitmap(idstr) => {
                bytes.extend(named(idstr));
                kind::RECV_BITMAP
            }
            Answer::SwitchoverAck => kind::SWITCHOVER_ACK,
            Answer::Why(text) => {
                bytes.extend(&text.as_bytes()[..text.len().min(REASON.into())]);
                kind::WHY
            }
        };
        let len = (bytes.len() - 4) as u16;
        bytes[..2].copy_from_slice(&kind.to_be_bytes());
        bytes[2..4].copy_from_slice(&len.to_be_bytes());
        bytes
    }

    /// The next one.
    ///
    /// # Errors
    /// [`Fault`]: the channel's, no such answer, or it is not laid out so.
    pub fn read(from: &mut impl Read) -> Result<Answer, Fault> {
        let mut head = [0; 4];
        read_exact(from, &mut head)?;
        let [kind, len] = [[head[0], head[1]], [head[2], head[3]]].map(u16::from_be_bytes);
        let lengths = match kind {
            kind::SHUT | kind::PONG | kind::RESUME_ACK => 4..=4,
            kind::REQ_PAGES_ID => 12 + 2..=12 + 256,
            kind::REQ_PAGES => 12..=12,
            kind::RECV_BITMAP => 2..=256,
            kind::SWITCHOVER_ACK => 0..=0,
            kind::WHY => 0..=REASON,
            kind => return Err(Fault::value("the answer", kind, "1 to 7, or 0x4e02")),
        };
        if !lengths.contains(&len) {
            return Err(Fault::value("the length of an answer", len, format_args!("{lengths:?} for {kind:#x}")));
        }
        let mut data = vec![0; usize::from(len)];
        read_exact(from, &mut data)?;
        let mut bytes = Bytes(&data);
        let answer = match kind {
            kind::SHUT => Answer::Shut(bytes.u32()?),
            kind::PONG => Answer::Pong(bytes.u32()?),
            kind::RESUME_ACK => Answer::ResumeAck(bytes.u32()?),
            kind::REQ_PAGES => Answer::Request { start: bytes.u64()?, len: bytes.u32()?, idstr: None },
            kind::REQ_PAGES_ID => {
                Answer::Request { start: bytes.u64()?, len: bytes.u32()?, idstr: Some(bytes.name()?) }
            }
            kind::RECV_BITMAP => Answer::Bitmap(bytes.name()?),
            kind::SWITCHOVER_ACK => Answer::SwitchoverAck,
            _ => return Ok(Answer::Why(String::from_utf8_lossy(&data).into_owned())),
        };
        bytes.end()?;
        Ok(answer)
    }
}

fn named(idstr: &str) -> Vec<u8> {
    let name = &idstr.as_bytes()[..idstr.len().min(255)];
    [&[name.len() as u8], name].concat()
}

fn read_exact(from: &mut impl Read, into: &mut [u8]) -> Result<(), Fault> {
    from.read_exact(into).map_err(|why| match why.kind() {
        io::ErrorKind::UnexpectedEof => Fault::Ended,
        _ => Fault::Io(why),
    })
}

/// Which pages of a block came: word n has pages 64 n and on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bitmap(pub Vec<u64>);

impl Bitmap {
    /// Words for so many pages.
    fn words(pages: u64) -> u64 {
        pages.div_ceil(64)
    }

    /// Writes it.
    ///
    /// # Errors
    /// The channel's.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(self.0.len() * 8 + 16);
        bytes.extend((self.0.len() as u64 * 8).to_be_bytes());
        self.0.iter().for_each(|word| bytes.extend(word.to_le_bytes()));
        bytes.extend(BITMAP_END.to_be_bytes());
        to.write_all(&bytes)
    }

    /// Reads that of a block with so many pages.
    ///
    /// # Errors
    /// [`Fault`]: the channel's; it is of another length, has pages that the block has not, or no end.
    pub fn read(from: &mut impl Read, pages: u64) -> Result<Bitmap, Fault> {
        let size = u64_of(from)?;
        let words = Self::words(pages);
        if size != words * 8 {
            return Err(Fault::value("the size of a bitmap", size, format_args!("{:#x}", words * 8)));
        }
        let mut bits = Vec::new();
        let mut piece = vec![0; PIECE];
        let mut left = size as usize;
        while left != 0 {
            let these = &mut piece[..left.min(PIECE)];
            read_exact(from, these)?;
            bits.extend(
                these.chunks_exact(8).map(|word| word.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte))),
            );
            left -= these.len();
        }
        let end = u64_of(from)?;
        if end != BITMAP_END {
            return Err(Fault::value("the end of a bitmap", end, format_args!("{BITMAP_END:#x}")));
        }
        match bits.last() {
            Some(last) if !pages.is_multiple_of(64) && last >> (pages % 64) != 0 => {
                Err(Fault::value("the last word of a bitmap", *last, format_args!("of {} pages", pages % 64)))
            }
            _ => Ok(Bitmap(bits)),
        }
    }
}

fn u64_of(from: &mut impl Read) -> Result<u64, Fault> {
    let mut bytes = [0; 8];
    read_exact(from, &mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn an_answer() -> impl Strategy<Value = Answer> {
        let name = "[a-z./]{1,40}";
        prop_oneof![
            any::<u32>().prop_map(Answer::Shut),
            any::<u32>().prop_map(Answer::Pong),
            any::<u32>().prop_map(Answer::ResumeAck),
            Just(Answer::SwitchoverAck),
            name.prop_map(Answer::Bitmap),
            "[ -~]{0,200}".prop_map(Answer::Why),
            (prop::option::of(name), any::<u64>(), any::<u32>()).prop_map(|(idstr, start, len)| Answer::Request {
                idstr,
                start,
                len
            }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn answers_are_read_as_they_were_said_one_after_the_other(answers in prop::collection::vec(an_answer(), 1..8)) {
            let bytes = answers.iter().flat_map(Answer::to_bytes).collect::<Vec<_>>();
            let mut from = &bytes[..];
            for answer in &answers {
                prop_assert_eq!(&Answer::read(&mut from).unwrap(), answer);
            }
            prop_assert!(matches!(Answer::read(&mut from), Err(Fault::Ended)));
            prop_assert!(matches!(Answer::read(&mut &bytes[..1]), Err(Fault::Ended)));
        }

        #[test]
        fn bits_are_read_as_they_were_written(pages in 1..9000u64, seed in any::<u64>()) {
            let mut words: Vec<u64> = (0..pages.div_ceil(64)).map(|n| (seed ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
            if !pages.is_multiple_of(64) {
                *words.last_mut().unwrap() &= (1 << (pages % 64)) - 1;
            }
            let mut bytes = Vec::new();
            Bitmap(words.clone()).write(&mut bytes).unwrap();
            prop_assert_eq!(Bitmap::read(&mut &bytes[..], pages).unwrap(), Bitmap(words));
            prop_assert!(Bitmap::read(&mut &bytes[..], pages + 64).is_err());
            prop_assert!(Bitmap::read(&mut &bytes[..bytes.len() - 1], pages).is_err());
            let at = bytes.len() - 1;
            bytes[at] ^= 1;
            prop_assert!(Bitmap::read(&mut &bytes[..], pages).is_err());
        }
    }

    #[test]
    fn lengths_and_kinds_that_are_none_are_refused_before_more_is_read() {
        let refused = |bytes: &[u8]| Answer::read(&mut &bytes[..]).unwrap_err().to_string();
        assert!(refused(&[0, 9, 0, 0]).contains("the answer is 0x9"));
        assert!(refused(&[0, 1, 0xff, 0xff]).contains("length of an answer"));
        assert!(refused(&[0x4e, 2, 0xff, 0xff]).contains("length of an answer"));
        // A name that ends behind the answer, and one that ends before.
        assert!(refused(&[0, 5, 0, 2, 2, b'a']).contains("ends"));
        assert!(refused(&[0, 5, 0, 3, 1, b'a', b'b']).contains("what is left"));
        // A page behind the last one.
        let mut bytes = Vec::new();
        Bitmap(vec![1 << 10]).write(&mut bytes).unwrap();
        assert!(Bitmap::read(&mut &bytes[..], 10).unwrap_err().to_string().contains("10 pages"));
        assert!(Bitmap::read(&mut &bytes[..], 11).is_ok());
    }
}
