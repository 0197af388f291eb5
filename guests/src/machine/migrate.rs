//! A machine leaves and comes: files with all of it, and what can go wrong.
//!
//! ```text
//!   Machine::snapshot(path)           stopped: sections ─▶ pages, by several threads ─▶ sections ─▶ description ─▶ rename
//!   Migrator::start(channel)          live: leave.rs
//!   MachineBuilder::receive(channel)  the other end of it
//!   MachineBuilder::restore(path)     the same way back; what the guest cannot tell (engine, console, trace) is the builder's
//! ```

mod error;

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use notdirty_core::migration::mapped_ram::{self, Job};
use notdirty_core::migration::multifd::{self, Meeting};
use notdirty_core::migration::postcopy::Outcome;
use notdirty_core::migration::{
    Channel, Event, Incoming, ListedBlock, MAPPED_RAM, Section, StreamError, StreamReader, StreamWriter, read_list,
};
use notdirty_core::{FaultKind, FaultSource, PageSet, RamBlock, SoftwareFaults, UserFaults};

use super::arrive::{Advised, Next};
use super::chain::{self, Link};
use super::leave::{answer_bytes, command, refusal};
use super::unfinished::Unfinished;
use super::{Machine, MachineBuilder, state};

pub use error::MigrationError;

/// What a snapshot has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// Pages of RAM whose bytes are in the file.
    pub pages: u64,
    /// Pages that are zero, and not in it; of one that builds on another, those that were written.
    pub zero_pages: u64,
    /// Whether all of RAM is in the file.
    pub whole: bool,
    /// Bytes from its start to its end, holes included.
    pub length: u64,
    /// How long it took.
    pub time: Duration,
}

/// What a file of a machine holds; see [`snapshot_info`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotInfo {
    /// Of which type the machine is.
    pub machine: String,
    /// Whether pages have fixed places in it.
    pub mapped_ram: bool,
    /// Each block, and how many of its pages are not zero.
    pub blocks: Vec<(ListedBlock, u64)>,
    /// Each part with its fields.
    pub sections: Vec<Section>,
    /// The VM description.
    pub description: String,
}

/// Runs a job on as many threads as the host has.
pub(super) fn on_all_threads(job: &Job) {
    let count = std::thread::available_parallelism().map_or(1, usize::from).min(8);
    std::thread::scope(|scope| {
        for _ in 1..count {
            // Without a thread this one does it all.
            let _ = std::thread::Builder::new().name("snapshot".into()).spawn_scoped(scope, || job.work());
        }
        job.work();
    });
}

impl Machine {
    /// Writes all of the machine to a file, in QEMU's mapped-ram layout; the machine stays as it is. Pages that are zero are holes. What
    /// was at `path` is replaced by the whole file, or stays. The file is with the host when this returns; on its disk, name and
    /// all, if [`SnapshotOptions::sync`](crate::SnapshotOptions::sync) says so.
    ///
    /// # Errors
    /// [`MigrationError`]: the file, a device that does not say what it remembers, or RAM that is mapped in a way of its own.
    pub fn snapshot(&mut self, path: impl AsRef<Path>) -> Result<Snapshot, MigrationError> {
        self.write_snapshot(path.as_ref(), None, None)
    }

    /// The same, of all pages or those that changed since the file that the link names.
    pub(super) fn write_snapshot(
        &mut self,
        path: &Path,
        link: Option<Link>,
        changed: Option<&PageSet>,
    ) -> Result<Snapshot, MigrationError> {
        let start = Instant::now();
        self.check_whole()?;
        let (before, blocks) = self.sections_before_ram()?;
        let after = self.sections_after_ram()?;
        let (unfinished, file) = Unfinished::create(path)?;
        let mut writer = StreamWriter::new(file, state::TYPE, &[MAPPED_RAM])?;
        let link = link.map(|mut link| chain::section(&mut link));
        link.iter().chain(&before).try_for_each(|section| writer.full(section))?;
        let moved = mapped_ram::save(&mut writer, &blocks, changed, self.snapshot_options.through(), on_all_threads)?;
        after.iter().try_for_each(|section| writer.full(section))?;
        writer.finish()?;
        let length = writer.out().offset();
        drop(writer.into_inner()?);
        let _before = unfinished.finish(self.snapshot_options.sync)?;
        let (pages, zero_pages, whole) = (moved.pages, moved.zero, changed.is_none());
        Ok(Snapshot { pages, zero_pages, whole, length, time: start.elapsed() })
    }
}

impl MachineBuilder {
    /// A machine that comes by a channel, to go on where it was. What a guest can tell comes along; the rest is the builder's. Over a socket
    /// this returns once the source has said that it will not run any more; then the machine is to be run.
    ///
    /// # Errors
    /// [`MigrationError`]: the machine stays where it was.
    pub fn receive(self, channel: Channel) -> Result<Machine, MigrationError> {
        self.receive_with(channel, &mut |_| Err(io::ErrorKind::NotConnected.into()), |_| Ok(()))
    }

    /// The same, for a machine with devices of one's own: `attach` puts them on the bus, before their state comes; and for one that comes
    /// by several channels: `more` gives the next one, within a time; those of a multifd come before that for urgent pages.
    ///
    /// # Errors
    /// As [`receive`](Self::receive), `more`'s, or `attach`'s.
    pub fn receive_with(
        self,
        channel: Channel,
        more: More<'_>,
        attach: impl FnOnce(&mut Machine) -> Result<(), MigrationError>,
    ) -> Result<Machine, MigrationError> {
        let mut answers =
            if channel.is_duplex() { Some(channel.try_clone().map_err(MigrationError::Host)?) } else { None };
        let mut others = Others::default();
        let came = StreamReader::new(channel).map_err(MigrationError::from).and_then(|mut reader| {
            let faults: Arc<dyn FaultSource> = match self.faults {
                FaultKind::Userfaultfd => UserFaults::open()?,
                FaultKind::Software => Arc::new(SoftwareFaults),
            };
            match come(self, faults, &mut reader, answers.as_mut(), more, &mut others, attach)? {
                Came::Whole(machine) => Ok((*machine, Some(reader))),
                Came::Early(early, len) => Ok((early.start(reader, len, answers.as_ref())?, None)),
            }
        });
        // The source hears of a failure first, and ends its channels: then none is waited for.
        let mut refuse = |why: MigrationError| {
            if let Some(answers) = &mut answers {
                let _ = answers.write_all(&refusal(&why));
            }
            why
        };
        let (machine, mut reader) = match came {
            Ok(came) => {
                others.end().map_err(&mut refuse)?;
                came
            }
            Err(why) => {
                let why = refuse(why);
                let _ = others.end();
                return Err(why);
            }
        };
        // One that runs while its pages come has been told so.
        let (Some(answers), Some(reader)) = (&mut answers, &mut reader) else { return Ok(machine) };
        answers.write_all(&answer_bytes(command::SHUT, 0)).map_err(MigrationError::Answer)?;
        // It stands still until the source has given it up.
        let why = match reader.event() {
            Ok(Event::Command(command::RUN, _)) => None,
            Ok(other) => Some(MigrationError::Order(format!("{other:?} instead of the command to run"))),
            Err(why) => Some(why.into()),
        };
        if let Some(why) = why {
            // It does not run: a source that is still there need not guess.
            let _ = answers.write_all(&refusal(&why));
            return Err(why);
        }
        // Should this not arrive, the source stays where it is: it has said so.
        let _ = answers.write_all(&answer_bytes(command::PONG, 0));
        Ok(machine)
    }

    /// A machine from a [snapshot](Machine::snapshot), to go on where that was. What a guest can tell is the snapshot's; engine, switches
    /// of the JIT, console and trace are the builder's.
    ///
    /// # Errors
    /// [`MigrationError`]: the file is no whole snapshot, or no machine can be made of it here.
    pub fn restore(self, path: impl AsRef<Path>) -> Result<Machine, MigrationError> {
        self.restore_with(path, |_| Ok(()))
    }

    /// The same, for a machine with devices of one's own: `attach` puts them on the bus, before their state comes.
    ///
    /// # Errors
    /// As [`restore`](Self::restore), or `attach`'s.
    pub fn restore_with(
        self,
        path: impl AsRef<Path>,
        attach: impl FnOnce(&mut Machine) -> Result<(), MigrationError>,
    ) -> Result<Machine, MigrationError> {
        let parents = chain::ancestors(path.as_ref())?;
        let through = self.snapshot_options.through();
        let mut reader = open(path.as_ref())?;
        let mut coming = Coming { builder: Some(self), attach: Some(attach), machine: None, sections: Vec::new() };
        loop {
            match reader.event()? {
                Event::Section(section) if section.name == chain::SECTION => {}
                Event::Section(section) => coming.section(section)?,
                Event::RamStart => {
                    let (listed, homes) = mapped_ram::read_list(&mut reader)?;
                    let blocks = coming.blocks(&listed)?;
                    for (n, parent) in parents.iter().rev().enumerate() {
                        chain::read_ram(parent, n > 0, through, &listed, &blocks)?;
                    }
                    mapped_ram::load(&mut reader, &blocks, &homes, !parents.is_empty(), through, on_all_threads)?;
                    mapped_ram::end_piece(&mut reader)?;
                    coming.machine()?.all_ram_was_written(&blocks);
                }
                Event::RamPiece(_) => mapped_ram::end_piece(&mut reader)?,
                Event::Command(..) => {}
                Event::End => break,
            }
        }
        if !reader.ram_ended() {
            return Err(MigrationError::Order("the stream ends before its RAM does".into()));
        }
        reader.description()?;
        coming.finish()
    }
}

/// What came before the other end has to say more.
enum Came<F> {
    /// All of it.
    Whole(Box<Machine>),
    /// What a machine begins with that runs while its pages come; a message of so many bytes follows.
    Early(Box<Early<F>>, u32),
}

struct Early<F> {
    coming: Coming<F>,
    incoming: Incoming,
    advised: Advised,
}

impl<F: FnOnce(&mut Machine) -> Result<(), MigrationError>> Early<F> {
    /// Reads the message, and starts what fetches pages; the machine is to be run then.
    fn start(
        self,
        mut reader: StreamReader<Channel>,
        len: u32,
        answers: Option<&Channel>,
    ) -> Result<Machine, MigrationError> {
        let Early { mut coming, incoming, advised } = self;
        let answers = answers.ok_or_else(|| MigrationError::Order("postcopy by a channel without answers".into()))?;
        let events = reader.package(len)?;
        let blocks = incoming.blocks().to_vec();
        let harts = coming.machine()?.harts();
        let (sections, starting) = advised.listen(events, incoming, reader, answers, harts)?;
        coming.machine()?.all_ram_was_written(&blocks);
        coming.sections.extend(sections);
        let mut machine = coming.finish().inspect_err(|why| {
            // What was started ends the channel as it is dropped, and the source has to hear why before.
            let _ = answers.try_clone().and_then(|mut answers| answers.write_all(&refusal(why)));
        })?;
        machine.arrival = Some(starting.run());
        Ok(machine)
    }
}

/// All that comes before the other end has to say more.
fn come<F: FnOnce(&mut Machine) -> Result<(), MigrationError>>(
    builder: MachineBuilder,
    faults: Arc<dyn FaultSource>,
    reader: &mut StreamReader<Channel>,
    mut answers: Option<&mut Channel>,
    more: More<'_>,
    others: &mut Others,
    attach: F,
) -> Result<Came<F>, MigrationError> {
    reader.configuration()?;
    if reader.machine() != state::TYPE {
        return Err(MigrationError::Machine { theirs: reader.machine().to_owned() });
    }
    if reader.is_mapped() {
        return Err(MigrationError::Order(
            "pages with fixed places (mapped-ram) come by no channel: restore it".into(),
        ));
    }
    let (mut ram, mut advised): (Option<Incoming>, _) = (None, Advised::new(&builder.notifiers, faults));
    let mut coming = Coming { builder: Some(builder), attach: Some(attach), machine: None, sections: Vec::new() };
    loop {
        match reader.event()? {
            Event::Section(section) => coming.section(section)?,
            Event::RamStart => {
                let listed = read_list(reader)?;
                let blocks = coming.blocks(&listed)?;
                advised.ram(coming.machine()?.board.space.ram(), &blocks)?;
                let mut incoming = Incoming::new(listed, blocks).map_err(|fault| reader.source().error(fault))?;
                others.start(&mut incoming)?;
                ram.insert(incoming).piece(reader)?;
            }
            Event::RamPiece(_) => {
                let early = || MigrationError::Order("a piece of RAM before its list".into());
                ram.as_mut().ok_or_else(early)?.piece(reader)?;
            }
            Event::Command(command::OPEN_RETURN_PATH, _) => {}
            Event::Command(command::PING, data) => {
                let number = data.try_into().map(u32::from_be_bytes);
                let number = number.map_err(|_| MigrationError::Order("a PING without its number".into()))?;
                if let Some(answers) = &mut answers {
                    answers.write_all(&answer_bytes(command::PONG, number)).map_err(MigrationError::Answer)?;
                }
            }
            Event::Command(command::MULTIFD, data) if ram.is_none() => others.accept(&data, more)?,
            Event::Command(command, data) => {
                if ram.is_some() {
                    // What it names has come by the channels beside it, or not at all.
                    others.end()?;
                }
                match advised.command(command, &data, ram.as_mut(), more)? {
                    Next::Read => {}
                    Next::Packaged(len) => {
                        let early = || MigrationError::Order("a message before the list of RAM".into());
                        let incoming = ram.take().ok_or_else(early)?;
                        return Ok(Came::Early(Box::new(Early { coming, incoming, advised }), len));
                    }
                }
            }
            Event::End => break,
        }
    }
    let Some(ram) = ram.filter(|_| reader.ram_ended()) else {
        return Err(MigrationError::Order("the stream ends before its RAM does".into()));
    };
    reader.description()?;
    advised.not_needed()?;
    let machine = coming.machine()?;
    // Advised, and not needed.
    machine.board.space.ram().forget_missing("all of it came before it ran");
    machine.all_ram_was_written(ram.blocks());
    let machine = coming.finish()?;
    advised.end(Outcome::NotUsed)?;
    Ok(Came::Whole(Box::new(machine)))
}

/// Gives the next channel that connects.
pub type More<'m> = &'m mut dyn FnMut(Duration) -> io::Result<Channel>;

/// How long the channels of one migration wait for each other.
const IN_STEP: Duration = Duration::from_secs(30);

/// The channels beside the main stream, each read by a thread of its own.
#[derive(Default)]
struct Others {
    channels: Vec<Channel>,
    meeting: Arc<Meeting>,
    threads: Vec<std::thread::JoinHandle<Result<(u64, u64), StreamError>>>,
}

impl Others {
    /// As the command says.
    fn accept(&mut self, data: &[u8], more: More<'_>) -> Result<(), MigrationError> {
        let Some((count, uuid)) = data.split_first_chunk::<2>() else {
            return Err(MigrationError::Order("a command for channels that says not how many".into()));
        };
        let count = usize::from(u16::from_be_bytes(*count));
        let uuid = multifd::Uuid::try_from(uuid).ok().filter(|_| (1..=MAX_CHANNELS).contains(&count));
        let uuid =
            uuid.ok_or_else(|| MigrationError::Order(format!("{count} channels: must be 1 to {MAX_CHANNELS}")))?;
        let mut by_id: Vec<Option<Channel>> = (0..count).map(|_| None).collect();
        for _ in 0..count {
            let mut channel = more(IN_STEP).map_err(MigrationError::Answer)?;
            let id = multifd::read_hello(&mut channel, &uuid, count)?;
            if by_id[id].replace(channel).is_some() {
                return Err(MigrationError::Order(format!("two channels say that they are number {id}")));
            }
        }
        self.channels = by_id.into_iter().flatten().collect();
        Ok(())
    }

    /// Pages come.
    fn start(&mut self, incoming: &mut Incoming) -> Result<(), MigrationError> {
        if self.channels.is_empty() {
            return Ok(());
        }
        incoming.meet(self.meeting.clone(), self.channels.len(), IN_STEP);
        for channel in self.channels.drain(..) {
            let (blocks, meeting) = (incoming.blocks().to_vec(), self.meeting.clone());
            let thread = std::thread::Builder::new().name("multifd".into());
            let started = thread.spawn(move || {
                multifd::receive_packed(channel, &blocks, &meeting, IN_STEP, &super::compression::unpacker)
            });
            self.threads.push(started.map_err(MigrationError::Host)?);
        }
        Ok(())
    }

    /// All of them have ended.
    fn end(&mut self) -> Result<(), MigrationError> {
        // The stream has none of them wait for another.
        self.meeting.fail();
        let mut done = Ok(());
        for thread in self.threads.drain(..) {
            let came = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            done = done.and(came.map(drop).map_err(MigrationError::from));
        }
        done
    }
}

/// Channels of one migration, beside the main stream.
pub const MAX_CHANNELS: usize = 64;

pub(super) fn open(path: &Path) -> Result<StreamReader<File>, MigrationError> {
    let file = File::open(path).and_then(|file| match file.metadata()?.is_dir() {
        true => Err(io::ErrorKind::IsADirectory.into()),
        false => Ok(file),
    });
    let file = file.map_err(|source| MigrationError::Input { path: path.to_owned(), source })?;
    let mut reader = StreamReader::new(file)?;
    reader.configuration()?;
    if reader.machine() != state::TYPE {
        return Err(MigrationError::Machine { theirs: reader.machine().to_owned() });
    }
    if !reader.is_mapped() {
        return Err(MigrationError::Order("no snapshot: its pages have no fixed places (mapped-ram)".into()));
    }
    Ok(reader)
}

/// What a file of a machine holds. No page is read.
///
/// # Errors
/// [`MigrationError`]: the file is no whole snapshot.
pub fn snapshot_info(path: impl AsRef<Path>) -> Result<SnapshotInfo, MigrationError> {
    let mut reader = open(path.as_ref())?;
    let (mut blocks, mut sections) = (Vec::new(), Vec::new());
    loop {
        match reader.event()? {
            Event::Section(section) => sections.push(section),
            Event::RamStart => {
                let (listed, homes) = mapped_ram::read_list(&mut reader)?;
                for (block, home) in listed.into_iter().zip(&homes) {
                    blocks.push((block, mapped_ram::pages_in_file(&mut reader, home)?));
                }
                mapped_ram::end_piece(&mut reader)?;
            }
            Event::RamPiece(_) => mapped_ram::end_piece(&mut reader)?,
            Event::Command(..) => {}
            Event::End => break,
        }
    }
    let description = reader.description()?;
    let (machine, mapped_ram) = (reader.machine().to_owned(), reader.is_mapped());
    Ok(SnapshotInfo { machine, mapped_ram, blocks, sections, description })
}

/// A machine that is on its way.
struct Coming<F> {
    builder: Option<MachineBuilder>,
    attach: Option<F>,
    machine: Option<Machine>,
    /// Of what comes after RAM.
    sections: Vec<Section>,
}

impl<F: FnOnce(&mut Machine) -> Result<(), MigrationError>> Coming<F> {
    fn machine(&mut self) -> Result<&mut Machine, MigrationError> {
        self.machine.as_mut().ok_or_else(|| MigrationError::Order("the stream does not begin with a machine".into()))
    }

    fn section(&mut self, section: Section) -> Result<(), MigrationError> {
        match section.name.as_str() {
            "machine" => {
                let builder = self.builder.take();
                let twice = || MigrationError::Order("the stream has a second machine".into());
                self.machine = Some(builder.ok_or_else(twice)?.build_from(&section)?);
            }
            "ram-block" => self.machine()?.plug_from(&section)?,
            _ => self.sections.push(section),
        }
        Ok(())
    }

    /// The machine's blocks, in the order of the stream's list.
    fn blocks(&mut self, listed: &[ListedBlock]) -> Result<Vec<Arc<RamBlock>>, MigrationError> {
        let attach = self.attach.take();
        let machine = self.machine()?;
        attach.map_or(Ok(()), |attach| attach(machine))?;
        machine.blocks_of(listed)
    }

    fn finish(mut self) -> Result<Machine, MigrationError> {
        let sections = std::mem::take(&mut self.sections);
        let machine = self.machine()?;
        let matched = machine.match_sections(&sections)?;
        machine.put_sections(matched)?;
        self.machine.ok_or_else(|| MigrationError::Order("the stream has no machine".into()))
    }
}
