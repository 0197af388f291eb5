//! What the source says between sections: QEMU's commands, and one of ours.
//!
//! ```text
//!   be16 command │ be16 length │ data
//!     1 OPEN_RETURN_PATH   2 PING be32   3 ADVISE, or be64 OR of all page sizes, be64 target page   4 LISTEN   5 RUN
//!     6 RAM_DISCARD  byte 0, byte length, name, byte 0, 1 to 12 × (be64 start, be64 length), in bytes
//!     7 PACKAGED  be32 length; behind the command so many bytes, which hold commands and sections of their own
//!     9 POSTCOPY_RESUME   10 RECV_BITMAP byte length, name   11 SWITCHOVER_START
//!     ours: 0x4e03 NAME 16 bytes: which migration this is   0x4e04 PREEMPT 16 bytes: what the hello of a channel for urgent pages says
//!           0x4e05 DISCARD_MAP byte length, name, be64 first page, of a word, words of 64 pages, little endian: as RAM_DISCARD, of many runs
//!           0x4e06 KNOWN: the source heard SHUT 0
//! ```
//!
//! A command is parsed whole or refused: no byte may be missing, and none may be left.

use super::super::wire::Fault;
use crate::addr::{PAGE_BITS, PAGE_SIZE};
use core::ops::Range;

/// Runs of one RAM_DISCARD, at most.
pub const MOST_RUNS: usize = 12;

/// The version of RAM_DISCARD.
const DISCARD_VERSION: u8 = 0;

/// Which migration a channel belongs to, so that no other is continued by it.
pub type Name = [u8; 16];

/// What both sides' pages are like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageSizes {
    /// The page size of each block, all of them ORed.
    pub summary: u64,
    /// The page that records are of.
    pub target: u64,
}

/// Pages of a block that are yet to come: whatever is there is none of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discard {
    /// The block.
    pub idstr: String,
    /// Its bytes, in pages.
    pub runs: Vec<Range<u64>>,
}

/// The same by a bit for each page: of many runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscardMap {
    /// The block.
    pub idstr: String,
    /// The page of the first bit: a multiple of 64.
    pub first: u64,
    /// At most [`MOST_WORDS`].
    pub words: Vec<u64>,
}

/// Words of one DISCARD_MAP, at most: 1 GiB of pages.
pub const MOST_WORDS: usize = 4096;

/// A command.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Command {
    /// The target may answer.
    OpenReturnPath,
    /// The target answers with this number.
    Ping(u32),
    /// Pages may come after the machine runs.
    Advise(Option<PageSizes>),
    /// From now on pages that have not come are waited for.
    Listen,
    /// The machine runs there.
    Run,
    /// These pages are yet to come.
    Discard(Discard),
    /// So many bytes follow, to be read before any of them is used.
    Packaged(u32),
    /// All of it is known on both sides again: it goes on.
    Resume,
    /// The target says which pages of this block came.
    RecvBitmap(String),
    /// The source stands still.
    SwitchoverStart,
    /// Which migration this is.
    Name(Name),
    /// One channel more comes, for pages that are waited for; by this its hello is known.
    Preempt(Name),
    /// These pages are yet to come.
    DiscardMap(DiscardMap),
    /// The source knows that the target has all of it.
    Known,
}

mod code {
    pub const OPEN_RETURN_PATH: u16 = 1;
    pub const PING: u16 = 2;
    pub const ADVISE: u16 = 3;
    pub const LISTEN: u16 = 4;
    pub const RUN: u16 = 5;
    pub const DISCARD: u16 = 6;
    pub(super) use super::super::super::stream::PACKAGED;
    pub const RESUME: u16 = 9;
    pub const RECV_BITMAP: u16 = 10;
    pub const SWITCHOVER_START: u16 = 11;
    pub const NAME: u16 = 0x4e03;
    pub const PREEMPT: u16 = 0x4e04;
    pub const DISCARD_MAP: u16 = 0x4e05;
    pub const KNOWN: u16 = 0x4e06;
}

impl Command {
    /// Its number.
    pub fn code(&self) -> u16 {
        match self {
            Command::OpenReturnPath => code::OPEN_RETURN_PATH,
            Command::Ping(_) => code::PING,
            Command::Advise(_) => code::ADVISE,
            Command::Listen => code::LISTEN,
            Command::Run => code::RUN,
            Command::Discard(_) => code::DISCARD,
            Command::Packaged(_) => code::PACKAGED,
            Command::Resume => code::RESUME,
            Command::RecvBitmap(_) => code::RECV_BITMAP,
            Command::SwitchoverStart => code::SWITCHOVER_START,
            Command::Name(_) => code::NAME,
            Command::Preempt(_) => code::PREEMPT,
            Command::DiscardMap(_) => code::DISCARD_MAP,
            Command::Known => code::KNOWN,
        }
    }

    /// What goes with it. Names have at most 255 bytes, runs at most [`MOST_RUNS`].
    pub fn data(&self) -> Vec<u8> {
        match self {
            Command::OpenReturnPath | Command::Listen | Command::Run | Command::Resume => Vec::new(),
            Command::SwitchoverStart | Command::Known | Command::Advise(None) => Vec::new(),
            Command::Advise(Some(sizes)) => [sizes.summary, sizes.target].map(u64::to_be_bytes).concat(),
            Command::Ping(number) | Command::Packaged(number) => number.to_be_bytes().to_vec(),
            Command::RecvBitmap(idstr) => named(idstr),
            Command::Name(name) | Command::Preempt(name) => name.to_vec(),
            Command::DiscardMap(DiscardMap { idstr, first, words }) => {
                let mut data = named(idstr);
                data.extend(first.to_be_bytes());
                words.iter().take(MOST_WORDS).for_each(|word| data.extend(word.to_le_bytes()));
                data
            }
            Command::Discard(Discard { idstr, runs }) => {
                let mut data = vec![DISCARD_VERSION];
                data.extend(named(idstr));
                data.push(0);
                for run in runs.iter().take(MOST_RUNS) {
                    data.extend([run.start, run.end - run.start].map(u64::to_be_bytes).concat());
                }
                data
            }
        }
    }

    /// What these bytes say.
    ///
    /// # Errors
    /// [`Fault`]: no such command, or it is not laid out so.
    pub fn parse(code: u16, data: &[u8]) -> Result<Command, Fault> {
        let mut bytes = Bytes(data);
        let command = match code {
            code::OPEN_RETURN_PATH => Command::OpenReturnPath,
            code::PING => Command::Ping(bytes.u32()?),
            code::ADVISE if data.is_empty() => Command::Advise(None),
            code::ADVISE => Command::Advise(Some(sizes(bytes.u64()?, bytes.u64()?)?)),
            code::LISTEN => Command::Listen,
            code::RUN => Command::Run,
            code::DISCARD => Command::Discard(discard(&mut bytes)?),
            code::PACKAGED => Command::Packaged(bytes.u32()?),
            code::RESUME => Command::Resume,
            code::RECV_BITMAP => Command::RecvBitmap(bytes.name()?),
            code::SWITCHOVER_START => Command::SwitchoverStart,
            code::NAME => Command::Name(bytes.array()?),
            code::PREEMPT => Command::Preempt(bytes.array()?),
            code::DISCARD_MAP => Command::DiscardMap(discard_map(&mut bytes)?),
            code::KNOWN => Command::Known,
            code => return Err(Fault::value("the command", code, "1 to 7, 9 to 11, or 0x4e03 to 0x4e06")),
        };
        bytes.end()?;
        Ok(command)
    }
}

fn named(idstr: &str) -> Vec<u8> {
    let name = &idstr.as_bytes()[..idstr.len().min(255)];
    [&[name.len() as u8], name].concat()
}

fn sizes(summary: u64, target: u64) -> Result<PageSizes, Fault> {
    if target != PAGE_SIZE {
        return Err(Fault::value("the page that records are of", target, format_args!("{PAGE_SIZE:#x}")));
    }
    if summary == 0 || !summary.is_multiple_of(PAGE_SIZE) {
        return Err(Fault::value(
            "the summary of page sizes",
            summary,
            format_args!("of sizes from {PAGE_SIZE:#x} on"),
        ));
    }
    Ok(PageSizes { summary, target })
}

fn discard(bytes: &mut Bytes<'_>) -> Result<Discard, Fault> {
    let [version] = bytes.array()?;
    if version != DISCARD_VERSION {
        return Err(Fault::value("the version of RAM_DISCARD", version, DISCARD_VERSION));
    }
    let idstr = bytes.name()?;
    let [zero] = bytes.array()?;
    if zero != 0 {
        return Err(Fault::value("the byte behind the name", zero, 0));
    }
    let count = bytes.0.len() / 16;
    if !(1..=MOST_RUNS).contains(&count) {
        return Err(Fault::value("the number of runs", count as u64, format_args!("1 to {MOST_RUNS}")));
    }
    let mut runs = Vec::with_capacity(count);
    for _ in 0..count {
        let (start, len) = (bytes.u64()?, bytes.u64()?);
        if !start.is_multiple_of(PAGE_SIZE) {
            return Err(Fault::value("the start of a run", start, "a multiple of a page"));
        }
        match start.checked_add(len) {
            Some(end) if len != 0 && len.is_multiple_of(PAGE_SIZE) => runs.push(start..end),
            _ => return Err(Fault::value("the length of a run", len, "a positive number of pages")),
        }
    }
    Ok(Discard { idstr, runs })
}

fn discard_map(bytes: &mut Bytes<'_>) -> Result<DiscardMap, Fault> {
    let (idstr, first) = (bytes.name()?, bytes.u64()?);
    if !first.is_multiple_of(64) || first > u64::MAX >> PAGE_BITS {
        return Err(Fault::value("the first page of a map", first, "a multiple of 64"));
    }
    let count = bytes.0.len() / 8;
    if !(1..=MOST_WORDS).contains(&count) {
        return Err(Fault::value("the number of words", count as u64, format_args!("1 to {MOST_WORDS}")));
    }
    let words = (0..count).map(|_| bytes.array().map(u64::from_le_bytes)).collect::<Result<_, _>>()?;
    Ok(DiscardMap { idstr, first, words })
}

/// The data of one message, which has to be used up.
pub(super) struct Bytes<'b>(pub &'b [u8]);

impl Bytes<'_> {
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let (these, rest) = self.0.split_first_chunk().ok_or(Fault::Ended)?;
        self.0 = rest;
        Ok(*these)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Fault> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Fault> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// A length byte, and the name of a block.
    pub(super) fn name(&mut self) -> Result<String, Fault> {
        let [len] = self.array()?;
        let (name, rest) = self.0.split_at_checked(len.into()).ok_or(Fault::Ended)?;
        self.0 = rest;
        match str::from_utf8(name) {
            Ok(text) if !text.is_empty() && !text.contains('\0') => Ok(text.to_owned()),
            _ => Err(Fault::Name { what: "a RAM block", bytes: name[..name.len().min(64)].to_vec() }),
        }
    }

    pub(super) fn end(&self) -> Result<(), Fault> {
        match self.0.len() {
            0 => Ok(()),
            more => Err(Fault::value("what is left of the message", more as u64, 0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn a_command() -> impl Strategy<Value = Command> {
        let name = "[a-z./]{1,40}";
        let run = (0..1u64 << 40, 1..1u64 << 30).prop_map(|(start, len)| start << 12..(start + len) << 12);
        prop_oneof![
            Just(Command::OpenReturnPath),
            any::<u32>().prop_map(Command::Ping),
            Just(Command::Advise(None)),
            (1u64..1 << 40).prop_map(|n| Command::Advise(Some(PageSizes { summary: n << 12, target: 4096 }))),
            Just(Command::Listen),
            Just(Command::Run),
            any::<u32>().prop_map(Command::Packaged),
            Just(Command::Resume),
            name.prop_map(Command::RecvBitmap),
            Just(Command::SwitchoverStart),
            any::<Name>().prop_map(Command::Name),
            any::<Name>().prop_map(Command::Preempt),
            (name, 0..1u64 << 40, prop::collection::vec(any::<u64>(), 1..80))
                .prop_map(|(idstr, first, words)| Command::DiscardMap(DiscardMap { idstr, first: first * 64, words })),
            (name, prop::collection::vec(run, 1..=MOST_RUNS))
                .prop_map(|(idstr, runs)| Command::Discard(Discard { idstr, runs })),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_was_written_is_read_and_no_byte_may_be_missing_or_left(command in a_command(), cut in any::<prop::sample::Index>()) {
            let data = command.data();
            prop_assert_eq!(Command::parse(command.code(), &data).unwrap(), command.clone());
            let more = [&data[..], &[0]].concat();
            prop_assert!(Command::parse(command.code(), &more).is_err());
            if !data.is_empty() {
                let less = &data[..cut.index(data.len())];
                // The two forms of ADVISE, and fewer runs of a discard, are commands of their own.
                match (Command::parse(command.code(), less), &command) {
                    (Err(_), _) => {}
                    (Ok(Command::Advise(None)), Command::Advise(_)) => prop_assert!(less.is_empty()),
                    (Ok(Command::Discard(less)), Command::Discard(all)) => {
                        prop_assert!(less.runs.len() < all.runs.len() && all.runs.starts_with(&less.runs));
                    }
                    (Ok(Command::DiscardMap(less)), Command::DiscardMap(all)) => {
                        prop_assert!(less.words.len() < all.words.len() && all.words.starts_with(&less.words));
                    }
                    (Ok(other), _) => prop_assert!(false, "{:?}", other),
                }
            }
        }

        #[test]
        fn any_bytes_are_a_command_or_an_error_and_a_command_says_the_same_again(code in 0..16u16, data in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(command) = Command::parse(code, &data) {
                prop_assert_eq!(command.code(), code);
                prop_assert_eq!(command.data(), data);
            }
        }
    }

    #[test]
    fn a_discard_that_is_none_is_refused_by_what_is_wrong() {
        let refused = |data: &[u8]| Command::parse(code::DISCARD, data).unwrap_err().to_string();
        let run = |start: u64, len: u64| [start, len].map(u64::to_be_bytes).concat();
        let whole = |runs: &[Vec<u8>]| [&b"\0\x03ram\0"[..], &runs.concat()].concat();
        assert!(refused(b"\x01\x03ram\0").contains("version"));
        assert!(refused(&whole(&[])).contains("number of runs"));
        assert!(refused(&whole(&vec![run(0, 4096); 13])).contains("number of runs is 0xd"));
        assert!(refused(&whole(&[run(1, 4096)])).contains("start of a run"));
        assert!(refused(&whole(&[run(0, 0)])).contains("length of a run"));
        assert!(refused(&whole(&[run(!0xfff, 0x2000)])).contains("length of a run"));
        assert!(refused(b"\0\x03r\0m\0").contains("not a name"));
        assert!(refused(b"\0\xffram\0").contains("ends"));
        assert!(Command::parse(8, &[]).unwrap_err().to_string().contains("the command is 0x8"));
        let sizes = |summary: u64, target: u64| [summary, target].map(u64::to_be_bytes).concat();
        assert!(Command::parse(code::ADVISE, &sizes(4096, 16384)).is_err());
        assert!(Command::parse(code::ADVISE, &sizes(4097, 4096)).is_err());
    }
}
