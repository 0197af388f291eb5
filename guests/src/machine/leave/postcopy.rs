//! A machine that runs at its target before its pages are there.
//!
//! ```text
//!   rounds of precopy, or none ─▶ discards, PING ─▶ ◀─ PONG ─▶ sync ─▶ harts stand still ─▶ last sync ─▶ PACKAGED (discards, LISTEN, devices, RUN)
//!                                                                                     │ its last byte: point of no return
//!   PostcopyActive   requested pages, the sweep ──────────────────────────▶ END ─▶ SHUT 0: Completed
//!        │ the channel breaks                     ▲ bitmaps, RESUME
//!        ▼                                        │
//!   PostcopyPaused   all is kept; `recover` ──────┘      `abandon`: Uncertain, for Machine::take_back
//! ```
//!
//! One side can run. The target uses no byte of the message before it has all of it, so as long as a byte of it was not written the
//! source runs on. After that it does not, whatever happens, unless the target says that it will not (`SHUT 1`, before its `PONG`).
//!
//! Rounds may go by a multifd. Its channels meet, and end, before the first discard: what comes later by the stream is behind all of theirs.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use notdirty_core::migration::postcopy::{AskedPages, Command, Name, PageSizes, Rest, ReturnPath, Urgent};
use notdirty_core::migration::{
    Carrier, Channel, Fault, Progress, RamId, Source, StreamCarrier, StreamError, StreamWriter,
};
use notdirty_core::{PAGE_SIZE, RamBlock};
use notdirty_softmmu::AddressSpace;

use super::{Answer, Ask, LeaveOptions, Migration, MigrationState, MultifdChannels, Road, UrgentChannel, lock};
use crate::machine::migrate::MigrationError;
use crate::machine::state;

/// The number of a PING that asks for a sign of life.
const ALIVE: u32 = 1;
/// The number by which the target says that it has all up to the message that it begins with.
const READY: u32 = 2;
/// The same: it runs.
const RUNS: u32 = 3;

/// How long the last word of a target that has ended the channel is waited for.
const LAST_WORD: Duration = Duration::from_millis(500);

/// How long a step of a target may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long the sweep leaves the host's processors to a target that is about to run.
const FIRST: Duration = Duration::from_millis(5);

/// How long the thread of the channel for urgent pages sleeps at once.
const SLEEP: Duration = Duration::from_millis(100);

/// A target may ask for nothing for as long as it likes.
const ALWAYS: Duration = Duration::from_secs(365 * 24 * 3600);

/// When a machine runs at its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Postcopy {
    /// After so many rounds of precopy; without a number when [`Migration::switch`] says so.
    pub rounds: Option<u64>,
    /// Bytes a second of pages that nothing waits for.
    pub bandwidth: Option<u64>,
    /// Memory of pages that the target has goes back to the host while others are sent. From then on the machine is not
    /// [taken back](crate::Machine::take_back).
    pub release: bool,
}

impl Postcopy {
    /// After so many rounds of precopy; 0: at once.
    pub fn after(rounds: u64) -> Postcopy {
        Postcopy { rounds: Some(rounds), ..Postcopy::default() }
    }

    /// When [`Migration::switch`] says so: pages go in rounds until then.
    pub fn by_command() -> Postcopy {
        Postcopy::default()
    }
}

/// What other threads want of a postcopy.
#[derive(Default)]
pub(super) struct Wants {
    switch: bool,
    next: Option<(Channel, Option<UrgentChannel>)>,
    abandoned: bool,
}

/// The stream of a machine that runs elsewhere.
struct Sending {
    writer: StreamWriter<Channel>,
    channel: Channel,
    path: Arc<ReturnPath>,
    rest: Rest,
    id: RamId,
    blocks: Vec<Arc<RamBlock>>,
    name: Name,
    /// The channel for urgent pages, until its thread has it.
    preempt: Option<Channel>,
    /// It said that it runs.
    runs: bool,
}

/// The thread that answers requests by the channel for urgent pages, as long as this is there.
struct Preempt {
    channel: Channel,
    over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Preempt {
    /// If the channel breaks before this is dropped, the main one ends, too.
    fn start(mut channel: Channel, urgent: Arc<Urgent>, main: Channel) -> Result<Preempt, MigrationError> {
        let own = channel.try_clone().map_err(MigrationError::Host)?;
        channel.set_blocking(SLEEP, AskedPages::LOOK).map_err(MigrationError::Host)?;
        let over = Arc::new(AtomicBool::new(false));
        let ends = over.clone();
        let thread = std::thread::Builder::new().name("urgent pages".into()).spawn(move || {
            let why = urgent.serve(&mut channel);
            if !ends.load(Ordering::Acquire) {
                log::warn!("postcopy: the channel for urgent pages: {why}");
                // What the target has said is heard yet.
                main.shutdown_write();
            }
        });
        let thread = Some(thread.map_err(MigrationError::Host)?);
        Ok(Preempt { channel: own, over, thread })
    }
}

impl Drop for Preempt {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        self.channel.shut();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl MigrationState {
    /// Whether the machine may run at its target, and the source sends what is left.
    pub fn is_postcopy(self) -> bool {
        use MigrationState::{PostcopyActive, PostcopyPaused, PostcopyRecover};
        matches!(self, PostcopyActive | PostcopyPaused | PostcopyRecover)
    }
}

impl Migration {
    /// Rounds of precopy end, and the machine runs at its target: of one that was begun with [`Postcopy`].
    pub fn switch(&self) {
        lock(&self.0.talk).wants.switch = true;
        self.0.changed.notify_all();
    }

    /// Goes on by this channel, or two of them ([`Beside::urgent`](super::Beside::urgent)), whose other ends the target
    /// [was given](super::super::Arrival::recover).
    ///
    /// # Errors
    /// [`MigrationError::Order`] unless it is [paused](MigrationState::PostcopyPaused).
    pub fn recover(&self, road: impl Into<Road>) -> Result<(), MigrationError> {
        let Road::Channels(channel, multifd, preempt) = road.into() else {
            return Err(MigrationError::Options("postcopy is recovered by channels"));
        };
        if !multifd.channels.is_empty() {
            return Err(MigrationError::Options("pages go by no multifd once the machine runs at its target"));
        }
        let mut talk = lock(&self.0.talk);
        if talk.status.state != MigrationState::PostcopyPaused {
            return Err(MigrationError::Order(format!("{:?}: nothing is to be recovered", talk.status.state)));
        }
        (talk.status.state, talk.wants.next) = (MigrationState::PostcopyRecover, Some((channel, preempt)));
        drop(talk);
        self.0.changed.notify_all();
        Ok(())
    }

    /// Gives up a paused one: it ends as [`MigrationState::Uncertain`], and its pages, which the target waits for, never come.
    pub fn abandon(&self) {
        lock(&self.0.talk).wants.abandoned = true;
        self.0.changed.notify_all();
    }

    /// All of it, on the migration's thread.
    #[allow(clippy::too_many_arguments, reason = "a road, taken apart")]
    pub(super) fn send_postcopy(
        &self,
        channel: Channel,
        multifd: MultifdChannels,
        preempt: Option<UrgentChannel>,
        options: &LeaveOptions,
        how: Postcopy,
        space: &AddressSpace,
        stood: &mut Option<Instant>,
    ) -> Result<(), MigrationError> {
        let (before, blocks, source) = self.describe(options, space)?;
        let path = hear(&blocks, &channel)?;
        let said = self.begin(&channel, multifd, preempt, &path, before, blocks, source, options, how, stood);
        let mut sending = match said {
            Ok(sending) => sending,
            Err(why) => {
                // A target that refuses ends the channel, and has said why before.
                path.wait(LAST_WORD, |heard| heard.shut.is_some());
                channel.shut();
                let heard = path.heard();
                return match (why, heard.shut) {
                    (MigrationError::Stream(_) | MigrationError::Answer(_), Some(1..)) => {
                        Err(MigrationError::Refused { why: heard.why.clone() })
                    }
                    (why, _) => Err(why),
                };
            }
        };
        loop {
            let sent = self.push(&mut sending, how, stood);
            let (shut, why) = {
                let heard = sending.path.heard();
                (heard.shut, heard.why.clone())
            };
            self.note_pong(&mut sending, stood);
            sending.channel.shut();
            match (sent, shut) {
                (_, Some(1..)) if !sending.runs => return Err(MigrationError::Refused { why }),
                (Ok(()), _) => {
                    self.release_all(&mut sending);
                    return Ok(());
                }
                (Err(failed), _) => self.pause(&mut sending, &failed)?,
            }
            if sending.path.heard().shut == Some(0) {
                sending.channel.shut();
                self.release_all(&mut sending);
                return Ok(());
            }
        }
    }

    /// The target has all of it, and said so.
    fn release_all(&self, sending: &mut Sending) {
        if sending.rest.releases() {
            self.0.released.store(true, Ordering::Release);
            sending.rest.release_all();
            lock(&self.0.talk).status.released = sending.rest.released();
        }
    }

    /// Up to the point of no return.
    #[allow(clippy::too_many_arguments, reason = "a part of the function above")]
    fn begin(
        &self,
        channel: &Channel,
        multifd: MultifdChannels,
        preempt: Option<UrgentChannel>,
        path: &Arc<ReturnPath>,
        before: Vec<notdirty_core::migration::Section>,
        blocks: Vec<Arc<RamBlock>>,
        mut source: Source,
        options: &LeaveOptions,
        how: Postcopy,
        stood: &mut Option<Instant>,
    ) -> Result<Sending, MigrationError> {
        let name = name();
        let mut writer = StreamWriter::new(channel.try_clone().map_err(MigrationError::Host)?, state::TYPE, &[])?;
        let summary = blocks.iter().fold(0, |all, block| all | block.page_size());
        let sizes = PageSizes { summary, target: PAGE_SIZE };
        for command in [Command::OpenReturnPath, Command::Name(name), Command::Ping(ALIVE)] {
            say(&mut writer, &command)?;
        }
        multifd.announce(&mut writer)?;
        let preempt = announce(&mut writer, preempt)?;
        say(&mut writer, &Command::Advise(Some(sizes)))?;
        before.iter().try_for_each(|section| writer.full(section))?;
        let mut carrier = StreamCarrier::begin_ram(&mut writer, &blocks)?;
        if multifd.channels.is_empty() {
            if let Some(cache) = options.deltas {
                carrier = carrier.with_deltas(cache);
            }
            self.rounds(&mut source, &mut carrier, options, how)?;
        } else {
            let mut all = multifd.carrier(carrier, options)?;
            self.rounds(&mut source, &mut all, options, how)?;
            // What is named from here on, and placed, is behind all that went by them.
            carrier = all.into_main()?;
        }
        // Most of what is yet to come is named while the guest runs: what is said once it stands still does not grow with RAM.
        source.sync(&carrier, &options.limits)?;
        let named = source.name_rest(|command| carrier.command(command.code(), &command.data()))?;
        // The target has made a machine, and has all that came before: the guest does not stand still for it, and what is lost of the rest is
        // the message, or nothing.
        carrier.command(Command::Ping(READY).code(), &Command::Ping(READY).data())?;
        if !path.wait(PATIENCE, |heard| heard.pong >= READY) {
            let why = path.heard().broken.clone().unwrap_or_else(|| format!("no answer for {PATIENCE:?}"));
            return Err(MigrationError::Answer(io::Error::new(io::ErrorKind::ConnectionAborted, why)));
        }
        // Most of what is dirty is found while the guest runs.
        source.sync(&carrier, &options.limits)?;
        *stood = Some(Instant::now());
        self.set_state(MigrationState::Device);
        let Answer::StandsStill(after) = self.ask(Ask::StandStill)? else {
            return Err(MigrationError::Order("the machine answered something else".into()));
        };
        source.sync(&carrier, &options.limits)?;
        let id = carrier.id();
        let mut rest = Rest::new(source);
        if how.release {
            rest.release();
        }
        drop(carrier);
        self.note_progress(rest.progress(), true);
        let message = writer.package(
            |inner| {
                rest.discards(&named).try_for_each(|command| say(inner, &command))?;
                say(inner, &Command::Listen)?;
                after.iter().try_for_each(|section| inner.full(section))
            },
            |inner| say(inner, &Command::Ping(RUNS)).and_then(|()| say(inner, &Command::Run)),
        )?;
        say(&mut writer, &Command::Packaged(message.len() as u32))?;
        let channel = channel.try_clone().map_err(MigrationError::Host)?;
        let mut talk = lock(&self.0.talk);
        if self.0.cancel.is_cancelled() {
            return Err(MigrationError::Cancelled);
        }
        // Too late for a cancel.
        talk.status.state = MigrationState::PostcopyActive;
        drop(talk);
        // As long as a byte of it is here the target does not run.
        writer.out().put(&message)?;
        writer.out().flush()?;
        Ok(Sending { writer, channel, path: path.clone(), rest, id, blocks, name, preempt, runs: false })
    }

    /// Rounds of precopy, as many as are wanted.
    fn rounds(
        &self,
        source: &mut Source,
        carrier: &mut impl Carrier,
        options: &LeaveOptions,
        how: Postcopy,
    ) -> Result<(), MigrationError> {
        let mut done = 0;
        while how.rounds.is_none_or(|rounds| done < rounds) && !lock(&self.0.talk).wants.switch {
            let mut switched = false;
            let round = source.round(carrier, &options.limits, |progress| {
                self.note_progress(*progress, false);
                switched = lock(&self.0.talk).wants.switch;
                !switched && !self.0.cancel.is_cancelled()
            });
            match round {
                // The rest of the round is sent later, too.
                Err(_) if switched => return Ok(()),
                round => round?,
            }
            self.note_progress(*source.progress(), true);
            done += 1;
        }
        Ok(())
    }

    fn note_progress(&self, progress: Progress, round: bool) {
        let mut talk = lock(&self.0.talk);
        talk.status.progress = progress;
        if round {
            talk.status.dirtied.push(progress.dirtied);
        }
    }

    fn stood_until(&self, until: Option<Instant>, stood: &mut Option<Instant>) {
        if let Some(since) = stood.take() {
            lock(&self.0.talk).status.downtime = until.unwrap_or_else(Instant::now).duration_since(since);
        }
    }

    /// The guest has stood still until the target said that it runs.
    fn note_pong(&self, sending: &mut Sending, stood: &mut Option<Instant>) {
        let heard = sending.path.heard();
        let (runs, at) = (heard.pong >= RUNS, heard.at);
        drop(heard);
        if !sending.runs && runs {
            sending.runs = true;
            self.stood_until(at, stood);
        }
    }

    /// Sends what is left, until the target has all of it.
    fn push(&self, sending: &mut Sending, how: Postcopy, stood: &mut Option<Instant>) -> Result<(), MigrationError> {
        let path = sending.path.clone();
        let preempt = sending.preempt.take().map(|channel| {
            let main = sending.channel.try_clone().map_err(MigrationError::Host)?;
            Preempt::start(channel, sending.rest.preempt().clone(), main)
        });
        // Until this returns.
        let _preempt = preempt.transpose()?;
        if !sending.runs {
            // Nothing runs meanwhile but what is to start the machine, on whose processors the sweep would be.
            path.wait(FIRST, |heard| heard.pong >= RUNS || heard.shut.is_some() || path.requests.asked() != 0);
            self.note_pong(sending, stood);
        }
        let mut carrier = StreamCarrier::go_on(&mut sending.writer, sending.id, &sending.blocks);
        carrier.begin()?;
        let (runs, path) = (&mut sending.runs, &*path);
        let rest = &mut sending.rest;
        rest.send(&mut carrier, &path.requests, how.bandwidth, |rest| {
            let heard = path.heard();
            let (pong, at, over) = (heard.pong, heard.at, heard.shut.is_some() || heard.broken.is_some());
            let placed = heard.placed;
            drop(heard);
            if !*runs && pong >= RUNS {
                *runs = true;
                self.stood_until(at, stood);
            }
            // A target that does not run yet may refuse.
            if *runs && placed != 0 && how.release {
                self.0.released.store(true, Ordering::Release);
                rest.placed(placed);
            }
            let mut talk = lock(&self.0.talk);
            talk.status.progress = rest.progress();
            talk.status.urgent = rest.urgent();
            talk.status.released = rest.released();
            !over
        })?;
        carrier.end(true)?;
        carrier.end_ram()?;
        sending.writer.finish()?;
        path.wait(PATIENCE, |heard| heard.pong >= RUNS || heard.shut.is_some());
        self.note_pong(sending, stood);
        path.wait(PATIENCE, |heard| heard.shut.is_some());
        let heard = path.heard();
        match (heard.shut, &heard.broken) {
            (Some(0), _) => {
                drop(heard);
                // Should this not arrive, the target can be asked again, by nothing that is there.
                let _ = say(&mut sending.writer, &Command::Known).and_then(|()| sending.writer.out().flush());
                Ok(())
            }
            (Some(number), _) => Err(MigrationError::Order(format!("it answered SHUT {number}: {}", heard.why))),
            (None, Some(why)) => Err(MigrationError::Order(why.clone())),
            (None, None) => Err(MigrationError::Answer(io::ErrorKind::TimedOut.into())),
        }
    }

    /// Keeps all that it has, until there is another channel by which it goes on.
    fn pause(&self, sending: &mut Sending, why: &MigrationError) -> Result<(), MigrationError> {
        let mut why = match &sending.path.heard().why {
            said if said.is_empty() => why.to_string(),
            said => said.clone(),
        };
        loop {
            log::warn!("postcopy is paused: {why}");
            let mut talk = lock(&self.0.talk);
            talk.status.state = MigrationState::PostcopyPaused;
            talk.status.pauses += 1;
            talk.status.paused_by = Some(why.clone());
            self.0.changed.notify_all();
            while talk.wants.next.is_none() && !talk.wants.abandoned {
                talk = self.0.changed.wait(talk).unwrap_or_else(PoisonError::into_inner);
            }
            let next = talk.wants.next.take();
            if talk.wants.abandoned {
                return Err(MigrationError::Uncertain { why });
            }
            drop(talk);
            let Some((channel, preempt)) = next else { continue };
            match go_on(sending, channel, preempt) {
                Ok(()) => {
                    let mut talk = lock(&self.0.talk);
                    talk.status.state = MigrationState::PostcopyActive;
                    self.0.changed.notify_all();
                    return Ok(());
                }
                Err(failed) => {
                    sending.channel.shut();
                    if matches!(failed, MigrationError::Lost { .. }) {
                        return Err(failed);
                    }
                    why = failed.to_string();
                }
            }
        }
    }
}

/// The target says what it has, and waits for the rest.
fn go_on(sending: &mut Sending, channel: Channel, preempt: Option<UrgentChannel>) -> Result<(), MigrationError> {
    // First: what fails here ends this channel, and the thread that hears it.
    sending.channel = channel;
    sending.path = hear(&sending.blocks, &sending.channel)?;
    sending.writer.replace(sending.channel.try_clone().map_err(MigrationError::Host)?);
    let (writer, path) = (&mut sending.writer, &sending.path);
    say(writer, &Command::OpenReturnPath)?;
    say(writer, &Command::Name(sending.name))?;
    sending.preempt = announce(writer, preempt)?;
    for block in &sending.blocks {
        say(writer, &Command::RecvBitmap(block.idstr().to_owned()))?;
    }
    writer.out().flush()?;
    let late = |what: &str| match &path.heard().broken {
        Some(why) => MigrationError::Order(format!("{what}: {why}")),
        None => MigrationError::Answer(io::Error::new(io::ErrorKind::TimedOut, what.to_owned())),
    };
    if !path.wait(PATIENCE, |heard| heard.shut == Some(0) || heard.bitmaps.iter().all(Option::is_some)) {
        return Err(late("the target did not say what it has"));
    }
    if path.heard().shut == Some(0) {
        // It had said so before, by a channel that broke then.
        let _ = say(writer, &Command::Known).and_then(|()| writer.out().flush());
        sending.runs = true;
        return Ok(());
    }
    let bitmaps: Vec<_> = path.heard().bitmaps.iter().flatten().cloned().collect();
    sending.rest.resume(&bitmaps).map_err(|fault| match fault {
        Fault::Block { .. } => MigrationError::Lost { why: fault.to_string() },
        fault => MigrationError::Order(fault.to_string()),
    })?;
    // It has said all that: it runs.
    sending.runs = true;
    say(writer, &Command::Resume)?;
    writer.out().flush()?;
    if !path.wait(PATIENCE, |heard| heard.resumed) { Err(late("the target did not go on")) } else { Ok(()) }
}

/// The target takes the channel for urgent pages, which has said its hello.
fn announce(
    writer: &mut StreamWriter<Channel>,
    preempt: Option<UrgentChannel>,
) -> Result<Option<Channel>, MigrationError> {
    let Some(UrgentChannel(channel, name)) = preempt else { return Ok(None) };
    say(writer, &Command::Preempt(name))?;
    writer.out().flush()?;
    channel.settle().map_err(MigrationError::Channel)?;
    Ok(Some(channel))
}

/// Names this migration, as far as two on one host have to differ.
fn name() -> Name {
    let random = || RandomState::new().build_hasher().finish().to_ne_bytes();
    let mut name = [0; 16];
    name[..8].copy_from_slice(&random());
    name[8..].copy_from_slice(&random());
    name
}

fn say<W: io::Write>(writer: &mut StreamWriter<W>, command: &Command) -> Result<(), StreamError> {
    writer.command(command.code(), &command.data())
}

/// A thread that hears what the target says on this channel, until that ends.
fn hear(blocks: &[Arc<RamBlock>], channel: &Channel) -> Result<Arc<ReturnPath>, MigrationError> {
    let sizes = blocks.iter().map(|block| (block.idstr().to_owned(), block.pages().len()));
    let path = Arc::new(ReturnPath::new(sizes.collect()));
    let mut from = channel.try_clone().map_err(MigrationError::Host)?;
    from.set_patience(ALWAYS);
    let hears = path.clone();
    let thread = std::thread::Builder::new().name("return path".into());
    thread.spawn(move || hears.listen(&mut from)).map_err(MigrationError::Host)?;
    Ok(path)
}
