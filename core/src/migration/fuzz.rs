//! Any bytes as a stream, a file or a channel: bodies for fuzzers, and whole inputs to begin with. For the tests of this workspace.

use super::multifd::{self, Meeting};
use super::postcopy::{Answer, Bitmap, Command, Discard, DiscardMap, PageSizes, State, Step};
use super::through::Through;
use super::{
    Event, Field, FieldValue, Incoming, Limits, MAPPED_RAM, Section, Source, StreamCarrier, StreamReader, StreamWriter,
    mapped_ram, read_list,
};
use crate::addr::PAGE_SIZE;
use crate::dirty::DirtyClient;
use crate::ram::{RamBlock, RamBlockSpec, RamList};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// RAM that a stream may ask for here.
const MOST: u64 = 64 * PAGE_SIZE;

/// Blocks as a stream lists them, if they are few.
fn blocks(listed: &[super::ListedBlock]) -> Option<Vec<Arc<RamBlock>>> {
    let total = listed.iter().try_fold(0u64, |sum, block| sum.checked_add(block.used_length))?;
    if total > MOST {
        return None;
    }
    let list = RamList::new();
    listed.iter().map(|block| list.add(RamBlockSpec::new(block.idstr.clone(), block.used_length)).ok()).collect()
}

/// Reads it as a stream to its end; whether it was a whole one.
pub fn stream(bytes: &[u8]) -> bool {
    let Ok(mut reader) = StreamReader::new(bytes) else { return false };
    if reader.configuration().is_err() {
        return false;
    }
    let mut ram: Option<Incoming> = None;
    loop {
        match reader.event() {
            Ok(Event::Section(_) | Event::Command(..)) => {}
            Ok(Event::RamStart) => {
                let Ok(listed) = read_list(&mut reader) else { return false };
                let Some(blocks) = blocks(&listed) else { return false };
                let Ok(incoming) = Incoming::new(listed, blocks) else { return false };
                if ram.insert(incoming).piece(&mut reader).is_err() {
                    return false;
                }
            }
            Ok(Event::RamPiece(_)) => {
                let Some(ram) = &mut ram else { return false };
                if ram.piece(&mut reader).is_err() {
                    return false;
                }
            }
            Ok(Event::End) => return reader.ram_ended() && reader.description().is_ok(),
            Err(why) => {
                assert!(!why.to_string().is_empty() && why.offset <= bytes.len() as u64);
                return false;
            }
        }
    }
}

/// Reads it as one channel of several, beside nothing.
pub fn channel(bytes: &[u8]) -> bool {
    let list = RamList::new();
    let block = list.add(RamBlockSpec::new("ram", 16 * PAGE_SIZE));
    block.is_ok_and(|block| {
        let meeting = Meeting::default();
        multifd::receive(bytes, &[block], &meeting, Duration::ZERO).is_ok()
    })
}

/// Reads it as the return path of a postcopy, of blocks of 100 pages; whether it ends with an answer.
pub fn answers(mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        match Answer::read(&mut bytes) {
            Ok(Answer::Bitmap(_)) if Bitmap::read(&mut bytes, 100).is_ok() => {}
            Ok(Answer::Bitmap(_)) | Err(_) => return false,
            Ok(_) => {}
        }
    }
    true
}

/// Reads it as the commands of a postcopy, in their order; whether all of them lead to its end.
pub fn commands(mut bytes: &[u8]) -> bool {
    let mut state = State::default();
    while let Some((head, rest)) = bytes.split_first_chunk::<4>() {
        let [code, len] = [[head[0], head[1]], [head[2], head[3]]].map(u16::from_be_bytes);
        let Some((data, rest)) = rest.split_at_checked(len.into()) else { return false };
        bytes = rest;
        let step = match Command::parse(code, data) {
            Ok(Command::Advise(_)) => Step::Advise,
            Ok(Command::Discard(_) | Command::DiscardMap(_)) => Step::Discard,
            Ok(Command::Listen) => Step::Listen,
            Ok(Command::Run) => Step::Run,
            Ok(Command::Resume | Command::RecvBitmap(_)) => Step::Resume,
            Ok(_) => continue,
            Err(_) => return false,
        };
        match state.after(step) {
            Ok(after) => state = after,
            Err(_) => return false,
        }
    }
    bytes.is_empty() && state.after(Step::End).is_ok()
}

/// A file in memory.
fn memory(bytes: &[u8]) -> Option<File> {
    // SAFETY: a NUL-terminated name; the descriptor is checked.
    let fd = unsafe { libc::memfd_create(c"fuzz".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return None;
    }
    // SAFETY: made just now.
    let mut file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.write_all(bytes).and_then(|()| file.rewind()).ok()?;
    Some(file)
}

/// Reads it as a mapped-ram file to its end; whether it was a whole one.
pub fn mapped(bytes: &[u8]) -> bool {
    let Some(file) = memory(bytes) else { return false };
    // Lengths up to some MiB are there, as a hole.
    if file.set_len((bytes.len() as u64).max(3 << 20)).is_err() {
        return false;
    }
    let Ok(mut reader) = StreamReader::new(file) else { return false };
    if reader.configuration().is_err() {
        return false;
    }
    loop {
        match reader.event() {
            Ok(Event::Section(_) | Event::Command(..)) => {}
            Ok(Event::RamStart) => {
                let Ok((listed, homes)) = mapped_ram::read_list(&mut reader) else { return false };
                let Some(blocks) = blocks(&listed) else { return false };
                let loaded =
                    mapped_ram::load(&mut reader, &blocks, &homes, false, Through::Cache, mapped_ram::Job::work);
                if loaded.is_err() || mapped_ram::end_piece(&mut reader).is_err() {
                    return false;
                }
            }
            Ok(Event::RamPiece(_)) if mapped_ram::end_piece(&mut reader).is_ok() => {}
            Ok(Event::End) => return reader.description().is_ok(),
            _ => return false,
        }
    }
}

fn sections() -> [Section; 2] {
    let field = |name: &str, value| Field { name: name.to_owned(), value };
    let fields = vec![
        field("on", FieldValue::Bool(true)),
        field("byte", FieldValue::U8(7)),
        field("word", FieldValue::U32(77)),
        field("long", FieldValue::U64(777)),
        field("bytes", FieldValue::Bytes(b"bytes".to_vec())),
        field("numbers", FieldValue::U64s(vec![1, 2, 3])),
    ];
    let section =
        |name: &str, instance| Section { name: name.to_owned(), instance, version: 1, fields: fields.clone() };
    [section("machine", 0), section("cpu", 1)]
}

fn ram() -> Option<(Arc<RamList>, Vec<Arc<RamBlock>>)> {
    let list = Arc::new(RamList::new());
    let blocks = [("ram", 4), ("dimm", 2)]
        .into_iter()
        .map(|(name, pages)| {
            let block = list.add(RamBlockSpec::new(name, pages * PAGE_SIZE)).ok()?;
            block.fill_raw(PAGE_SIZE / 2, PAGE_SIZE, 5).ok()?;
            // Written, and zero.
            block.fill_raw(0, PAGE_SIZE, 0).ok()?;
            Some(block)
        })
        .collect::<Option<Vec<_>>>()?;
    Some((list, blocks))
}

/// A whole stream.
pub fn a_stream() -> Option<Vec<u8>> {
    let (list, blocks) = ram()?;
    let mut writer = StreamWriter::new(Vec::new(), "fuzz", &[]).ok()?;
    writer.command(1, &[]).ok()?;
    let [before, after] = sections();
    writer.full(&before).ok()?;
    let mut source = Source::new(list.log(DirtyClient::MIGRATION).start().ok()?, &blocks);
    let mut carrier = StreamCarrier::begin_ram(&mut writer, &blocks).ok()?;
    source.rounds(&mut carrier, &Limits::default(), |_, _| true).ok()?;
    source.last(&mut carrier, &Limits::default()).ok()?;
    carrier.end_ram().ok()?;
    writer.full(&after).ok()?;
    writer.finish().ok()?;
    writer.into_inner().ok()
}

/// A whole file.
pub fn a_mapped_file() -> Option<Vec<u8>> {
    let (_list, blocks) = ram()?;
    let mut writer = StreamWriter::new(memory(&[])?, "fuzz", &[MAPPED_RAM]).ok()?;
    let [before, after] = sections();
    writer.full(&before).ok()?;
    mapped_ram::save(&mut writer, &blocks, None, Through::Cache, mapped_ram::Job::work).ok()?;
    writer.full(&after).ok()?;
    writer.finish().ok()?;
    let mut file = writer.into_inner().ok()?;
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).ok()?;
    Some(bytes)
}

/// What one channel of several carries, but for its sync.
pub fn a_channel() -> Vec<u8> {
    let mut bytes = multifd::header(0, 1, "ram", &[0, 2 * PAGE_SIZE, PAGE_SIZE], 2);
    bytes.resize(bytes.len() + 2 * PAGE_SIZE as usize, 9);
    bytes.extend(multifd::header(0, 2, "ram", &[15 * PAGE_SIZE], 0));
    bytes
}

/// A whole return path.
pub fn a_return_path() -> Vec<u8> {
    let request = |idstr: Option<&str>| Answer::Request { idstr: idstr.map(str::to_owned), start: 0x3000, len: 0x1000 };
    let answers = [Answer::Pong(1), request(Some("ram")), request(None), Answer::Bitmap("ram".into())];
    let mut bytes = answers.iter().flat_map(Answer::to_bytes).collect::<Vec<_>>();
    // A vector takes all.
    let _ = Bitmap(vec![u64::MAX, 0xfff]).write(&mut bytes);
    let rest = [Answer::ResumeAck(1), Answer::SwitchoverAck, Answer::Why("no".into()), Answer::Shut(1)];
    bytes.extend(rest.iter().flat_map(Answer::to_bytes));
    bytes
}

/// Whole commands.
pub fn some_commands() -> Vec<u8> {
    let discard = Discard { idstr: "ram".into(), runs: vec![0..0x3000, 0x10_0000..0x20_0000] };
    let sizes = PageSizes { summary: PAGE_SIZE, target: PAGE_SIZE };
    let commands = [
        Command::OpenReturnPath,
        Command::Name([7; 16]),
        Command::Ping(1),
        Command::Advise(Some(sizes)),
        Command::SwitchoverStart,
        Command::Discard(discard.clone()),
        Command::Discard(discard),
        Command::DiscardMap(DiscardMap { idstr: "ram".into(), first: 0x40, words: vec![0x55, 0, u64::MAX] }),
        Command::Preempt([9; 16]),
        Command::Listen,
        Command::Run,
        Command::RecvBitmap("ram".into()),
        Command::Resume,
    ];
    let bytes = commands.iter().flat_map(|command| {
        let data = command.data();
        [&command.code().to_be_bytes()[..], &(data.len() as u16).to_be_bytes(), &data].concat()
    });
    bytes.collect()
}
