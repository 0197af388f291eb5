//! A machine that leaves while it runs.
//!
//! ```text
//!   thread "migration"                                     thread of Machine::run
//!     ask ── describe ──▶ harts stop for a moment ────────▶ sections before RAM, blocks
//!     log on, rounds of pages …                             the guest runs
//!     ask ── stand still ──▶ harts stop ──────────────────▶ sections after RAM               downtime
//!     last sync, the rest, sections, description              waits                             │
//!     ◀── SHUT 0: the target has all of it                                                      │
//!     RUN ──▶ ◀── PONG: it runs                                                                 ▼
//!     done ─────────────────────────────────────────────────▶ gone: Migrated │ failed: runs on
//! ```
//!
//! One side can run at any time. The target does not run before RUN; the source does not run on once RUN was sent. If then no answer
//! comes, nobody can know whether the target runs: the source stays as it is, whole, until its owner [takes it
//! back](Machine::take_back). A channel of one direction has no answers: there the last byte is what counts.

mod pace;
mod road;

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use notdirty_core::migration::multifd::{self, Multifd};
use notdirty_core::migration::{
    Cancel, Carrier, Channel, Limits, MAPPED_RAM, MappedCarrier, Progress, Section, Source, StreamCarrier, StreamWriter,
};
use notdirty_core::{DirtyClient, RamBlock};
use notdirty_softmmu::AddressSpace;

use super::migrate::{MigrationError, Unfinished};
use super::{Machine, Stop, WeakStop, state};
use pace::{Pace, SLICE};
pub(super) use pace::{on_threads, threads};
pub use road::Road;

/// Commands and answers of QEMU's that are used here.
pub(super) mod command {
    pub const OPEN_RETURN_PATH: u16 = 1;
    /// One of ours: so many channels more come (be16), with this uuid.
    pub const MULTIFD: u16 = 0x4e01;
    pub const RUN: u16 = 5;
    pub const SHUT: u16 = 1;
    pub const PONG: u16 = 2;
    /// An answer of ours: why a SHUT that is not 0 comes next, as text.
    pub const WHY: u16 = 0x4e02;
}

/// How long a thread that asks waits for a run of the machine.
const ATTENTION: Duration = Duration::from_secs(10);

/// How long a guest stands still for its migration at most: then it is cancelled.
const STANDSTILL: Duration = Duration::from_secs(60);

/// How long the reason of a target that has ended the channel is waited for.
const LAST_WORD: Duration = Duration::from_millis(500);

/// How long a command that took a machine may take to end.
const COMMAND: Duration = Duration::from_secs(30);

/// How long a write by another thread may be under way then.
const DMA: Duration = Duration::from_secs(1);

/// How a machine leaves.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub struct LeaveOptions {
    /// Bandwidth and downtime.
    pub limits: Limits,
    /// Harts are made slower, if they dirty more than goes out.
    pub auto_converge: bool,
    /// So many bytes of pages that were sent are kept, and those go again as what differs (XBZRLE); on the stream itself.
    pub deltas: Option<u64>,
    /// Dirty pages are found by rings of so many entries, one for each hart, in place of the bitmap's bits: see
    /// [`LogBuilder::rings`](notdirty_core::LogBuilder::rings). A hart whose ring is full waits until it is taken.
    pub rings: Option<u32>,
}

/// Where a migration is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MigrationState {
    /// It begins.
    Setup,
    /// Pages go while the guest runs.
    Active,
    /// The guest stands still.
    Device,
    /// The machine is elsewhere.
    Completed,
    /// It is here, and runs on.
    Failed,
    /// The same, as somebody wished.
    Cancelled,
    /// The target was told to run, and has not answered; see [`Machine::take_back`].
    Uncertain,
}

/// How long a change of RAM that was under way may take.
const SETTLE: Duration = Duration::from_secs(10);

/// How a migration goes, or went.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct MigrationStatus {
    /// Where it is.
    pub state: MigrationState,
    /// Since it began, or all of it.
    pub total: Duration,
    /// How long the guest stood still.
    pub downtime: Duration,
    /// Pages and bytes.
    pub progress: Progress,
    /// Rounds in a row after which no less was left than before. It goes on: a guest that dirties as much as goes out may do so for
    /// ever, unless it is made slower ([`auto_converge`](LeaveOptions::auto_converge)) or may stand still for longer.
    pub stuck: u64,
    /// Pages that were found dirty behind each round, and when the guest stood still.
    pub dirtied: Vec<u64>,
}

/// What the run's thread is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ask {
    Describe,
    StandStill,
}

enum Answer {
    Described(Vec<Section>, Vec<Arc<RamBlock>>),
    StandsStill(Vec<Section>),
}

struct Talk {
    asked: Option<Ask>,
    answer: Option<Result<Answer, MigrationError>>,
    status: MigrationStatus,
    /// How it ended.
    ended: Option<Result<(), Arc<MigrationError>>>,
    /// Until then a guest that sleeps is not hung: it is to leave.
    awake: Option<Stop>,
}

struct Shared {
    talk: Mutex<Talk>,
    changed: Condvar,
    /// Something is asked: looked at by the run's thread without the lock.
    wanted: AtomicBool,
    cancel: Cancel,
    start: Instant,
    /// How much of the time harts sleep, of a hundred.
    throttle: AtomicU32,
    /// The machine stays here when it is done.
    stays: bool,
}

/// A migration that is under way or has ended, for any thread.
#[derive(Clone)]
pub struct Migration(Arc<Shared>);

/// Starts migrations of a machine from any thread, while it runs or before.
#[derive(Clone)]
pub struct Migrator {
    door: Arc<MigrationDoor>,
    stop: WeakStop,
    space: Arc<AddressSpace>,
}

/// The machine's side of its migrations.
#[derive(Default)]
pub(super) struct MigrationDoor {
    current: Mutex<Option<Migration>>,
    /// There is one, or is about to be: written under its lock, as each run asks.
    any: AtomicBool,
    /// The machine is elsewhere.
    gone: AtomicBool,
    /// There was a migration.
    may_stop: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MigrationDoor {
    fn current(&self) -> Option<Migration> {
        // One that begins beside this stops the run after that, and has its lock until it is there.
        if self.any.load(Ordering::Acquire) { lock(&self.current).clone() } else { None }
    }

    /// Whether a run may have been stopped for a migration, now or a moment ago: who asks for a stop by itself says so.
    pub fn may_stop(&self) -> bool {
        self.may_stop.load(Ordering::Acquire)
    }

    /// Whether RAM has to stay as it is.
    pub fn is_under_way(&self) -> bool {
        self.current().is_some_and(|migration| lock(&migration.0.talk).ended.is_none())
    }
}

/// A migration that has ended when this is dropped, at the latest.
struct Ends(Migration);

impl Drop for Ends {
    fn drop(&mut self) {
        let open = lock(&self.0.0.talk).ended.is_none();
        if open {
            self.0.end(MigrationState::Failed, Err(MigrationError::Order("the migration's thread failed".into())));
        }
    }
}

impl Migration {
    /// How it goes.
    pub fn status(&self) -> MigrationStatus {
        let talk = lock(&self.0.talk);
        let mut status = talk.status.clone();
        if talk.ended.is_none() {
            status.total = self.0.start.elapsed();
        }
        status
    }

    /// Ends it; the machine runs on here. Once the target was told to run it is too late.
    pub fn cancel(&self) {
        self.0.cancel.cancel();
        self.0.changed.notify_all();
    }

    /// Waits for its end, at most so long; `None` if it goes on.
    pub fn wait(&self, timeout: Duration) -> Option<Result<MigrationStatus, Arc<MigrationError>>> {
        let talk = lock(&self.0.talk);
        let (talk, _) = self
            .0
            .changed
            .wait_timeout_while(talk, timeout, |talk| talk.ended.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        talk.ended.clone().map(|ended| ended.map(|()| talk.status.clone()))
    }

    fn set_state(&self, state: MigrationState) {
        lock(&self.0.talk).status.state = state;
    }

    /// Asks the run's thread, which answers at the next safe points of its harts.
    fn ask(&self, ask: Ask) -> Result<Answer, MigrationError> {
        let shared = &self.0;
        let mut talk = lock(&shared.talk);
        (talk.asked, talk.answer) = (Some(ask), None);
        shared.wanted.store(true, Ordering::Release);
        talk.awake.iter().for_each(Stop::kick);
        let until = Instant::now() + ATTENTION;
        loop {
            if let Some(answer) = talk.answer.take() {
                return answer;
            }
            let left = until.saturating_duration_since(Instant::now());
            let why = match shared.cancel.is_cancelled() {
                true => Some(MigrationError::Cancelled),
                false => left.is_zero().then_some(MigrationError::NotRun { waited: ATTENTION }),
            };
            if let Some(why) = why {
                talk.asked = None;
                shared.wanted.store(false, Ordering::Release);
                return Err(why);
            }
            let step = left.min(Duration::from_millis(20));
            talk = shared.changed.wait_timeout(talk, step).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Stops the harts each slice, if they are to sleep; on a thread of its own.
    fn throttle(&self) {
        while lock(&self.0.talk).ended.is_none() {
            std::thread::sleep(SLICE);
            if self.0.throttle.load(Ordering::Acquire) != 0 {
                lock(&self.0.talk).awake.iter().for_each(Stop::kick);
            }
        }
    }

    /// Sleeps for the harts, all of them alike: this is the thread of their run.
    fn sleep(&self) {
        let percent = self.0.throttle.load(Ordering::Acquire).min(99);
        if percent == 0 {
            return;
        }
        let until = Instant::now() + SLICE * percent / (100 - percent);
        while !self.0.wanted.load(Ordering::Acquire) && self.0.throttle.load(Ordering::Acquire) != 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(Duration::from_millis(5)));
        }
    }

    fn end(&self, state: MigrationState, ended: Result<(), MigrationError>) {
        let mut talk = lock(&self.0.talk);
        talk.status.state = state;
        talk.status.total = self.0.start.elapsed();
        talk.ended = Some(ended.map_err(Arc::new));
        self.0.wanted.store(false, Ordering::Release);
        // A guest that sleeps is looked at again, without the handle that kept it from being hung: the run's thread takes this lock.
        if let Some(stop) = talk.awake.take() {
            stop.kick();
        }
        drop(talk);
        self.0.changed.notify_all();
    }

    /// All of it, on its own thread.
    fn leave(&self, road: Road, options: &LeaveOptions, space: &AddressSpace) {
        let (mut stood, mut replaced) = (None, None);
        let done = match road {
            Road::Channels(channel, others, uuid) => self.send(channel, others, &uuid, options, space, &mut stood),
            Road::Ending(channel, end) => {
                let sent = self.send(channel, Vec::new(), &[0; 16], options, space, &mut stood);
                // It is there once the command says so, and the file has its name; until then it is here.
                sent.and_then(|()| end.finish(COMMAND, &self.0.cancel).map_err(MigrationError::End))
            }
            Road::File(path, _) => self.write(&path, options, space, &mut stood).map(|before| replaced = before),
        };
        self.0.throttle.store(0, Ordering::Release);
        if let Some(since) = stood {
            lock(&self.0.talk).status.downtime = Instant::now().duration_since(since);
        }
        let state = match &done {
            Ok(()) => MigrationState::Completed,
            Err(MigrationError::Uncertain { .. }) => MigrationState::Uncertain,
            Err(_) if self.0.cancel.is_cancelled() => MigrationState::Cancelled,
            Err(_) => MigrationState::Failed,
        };
        // A channel that a cancel ended says so in its own words.
        let done = if state == MigrationState::Cancelled { Err(MigrationError::Cancelled) } else { done };
        self.end(state, done);
        // No guest waits for that.
        drop(replaced);
    }

    /// What comes before RAM, and RAM, all of which is to go.
    #[allow(clippy::type_complexity, reason = "three things, taken apart at once")]
    fn describe(
        &self,
        options: &LeaveOptions,
        space: &AddressSpace,
    ) -> Result<(Vec<Section>, Vec<Arc<RamBlock>>, Source), MigrationError> {
        let Answer::Described(before, blocks) = self.ask(Ask::Describe)? else {
            return Err(MigrationError::Order("the machine answered something else".into()));
        };
        let mut log = space.ram().log(DirtyClient::MIGRATION).blocks(&blocks).timeout(options.limits.sync);
        if let Some(entries) = options.rings {
            log = log.rings(entries);
        }
        let source = Source::new(log.start().map_err(MigrationError::Log)?, &blocks);
        self.set_state(MigrationState::Active);
        Ok((before, blocks, source))
    }

    /// All of RAM; what comes after it.
    fn ram(
        &self,
        mut source: Source,
        carrier: &mut impl Carrier,
        options: &LeaveOptions,
        stood: &mut Option<Instant>,
    ) -> Result<Vec<Section>, MigrationError> {
        let (mut pace, mut least) = (Pace::default(), u64::MAX);
        source.rounds(carrier, &options.limits, |progress, round| {
            let mut talk = lock(&self.0.talk);
            let expected = talk.status.progress.expected_downtime;
            talk.status.progress = *progress;
            if !round && progress.rounds > 1 {
                // Of what is dirty when it is looked at, not of what has yet to go in this round.
                talk.status.progress.expected_downtime = expected;
            }
            if round {
                // A little less is no way to the end.
                let nearer = progress.left < least - least / 8;
                least = least.min(progress.left);
                talk.status.stuck = if nearer { 0 } else { talk.status.stuck + 1 };
                talk.status.dirtied.push(progress.dirtied);
            }
            drop(talk);
            if round && options.auto_converge {
                self.0.throttle.store(pace.round(progress), Ordering::Release);
            }
            !self.0.cancel.is_cancelled()
        })?;
        *stood = Some(Instant::now());
        self.set_state(MigrationState::Device);
        let Answer::StandsStill(after) = self.ask(Ask::StandStill)? else {
            return Err(MigrationError::Order("the machine answered something else".into()));
        };
        source.last(carrier, &options.limits)?;
        let mut talk = lock(&self.0.talk);
        talk.status.progress = *source.progress();
        talk.status.dirtied.push(source.progress().dirtied);
        drop(talk);
        // The source drops here: nothing is logged from now on, so nothing is paid for any more.
        Ok(after)
    }

    /// To a file, in which each page has its place; what had its name before.
    fn write(
        &self,
        path: &Path,
        options: &LeaveOptions,
        space: &AddressSpace,
        stood: &mut Option<Instant>,
    ) -> Result<Option<File>, MigrationError> {
        let (before, blocks, source) = self.describe(options, space)?;
        let (unfinished, file) = Unfinished::create(path)?;
        let mut writer = StreamWriter::new(file, state::TYPE, &[MAPPED_RAM])?;
        before.iter().try_for_each(|section| writer.full(section))?;
        let mut carrier = MappedCarrier::begin_ram(&mut writer, &blocks, &on_threads, threads())?;
        let after = self.ram(source, &mut carrier, options, stood)?;
        carrier.end_ram()?;
        after.iter().try_for_each(|section| writer.full(section))?;
        writer.finish()?;
        drop(writer.into_inner()?);
        if self.0.cancel.is_cancelled() {
            return Err(MigrationError::Cancelled);
        }
        unfinished.finish()
    }

    fn send(
        &self,
        channel: Channel,
        others: Vec<Channel>,
        uuid: &multifd::Uuid,
        options: &LeaveOptions,
        space: &AddressSpace,
        stood: &mut Option<Instant>,
    ) -> Result<(), MigrationError> {
        let mut answers =
            if channel.is_duplex() { Some(channel.try_clone().map_err(MigrationError::Host)?) } else { None };
        let done = self.send_all(channel, &mut answers, others, uuid, options, space, stood);
        let (Err(MigrationError::Stream(_)), Some(answers)) = (&done, &mut answers) else { return done };
        // A target that refuses ends the channel, and has said why before.
        answers.set_patience(LAST_WORD);
        match answer(answers) {
            Ok(Said { kind: command::SHUT, number: 1.., why }) => Err(MigrationError::Refused { why }),
            _ => done,
        }
    }

    #[allow(clippy::too_many_arguments, reason = "a part of the function above")]
    fn send_all(
        &self,
        channel: Channel,
        answers: &mut Option<Channel>,
        others: Vec<Channel>,
        uuid: &multifd::Uuid,
        options: &LeaveOptions,
        space: &AddressSpace,
        stood: &mut Option<Instant>,
    ) -> Result<(), MigrationError> {
        let (before, blocks, source) = self.describe(options, space)?;
        let mut writer = StreamWriter::new(channel, state::TYPE, &[])?;
        if answers.is_some() {
            writer.command(command::OPEN_RETURN_PATH, &[])?;
        }
        if !others.is_empty() {
            let count = (others.len() as u16).to_be_bytes();
            writer.command(command::MULTIFD, &[&count[..], uuid].concat())?;
        }
        before.iter().try_for_each(|section| writer.full(section))?;
        let mut main = StreamCarrier::begin_ram(&mut writer, &blocks)?;
        if let Some(cache) = options.deltas.filter(|_| others.is_empty()) {
            main = main.with_deltas(cache);
        }
        let after = if others.is_empty() {
            let after = self.ram(source, &mut main, options, stood)?;
            main.end_ram()?;
            after
        } else {
            let mut carrier = Multifd::new(main, others, &on_threads);
            let after = self.ram(source, &mut carrier, options, stood)?;
            carrier.end_ram()?;
            after
        };
        after.iter().try_for_each(|section| writer.full(section))?;
        writer.finish()?;
        let mut talk = lock(&self.0.talk);
        talk.status.progress.bytes = talk.status.progress.bytes.max(writer.offset());
        drop(talk);
        let Some(answers) = answers else { return Ok(()) };
        match answer(answers)? {
            Said { kind: command::SHUT, number: 0, .. } => {}
            Said { kind: command::SHUT, why, .. } => return Err(MigrationError::Refused { why }),
            Said { kind, .. } => return Err(MigrationError::Order(format!("the target answered {kind}, not SHUT"))),
        }
        if self.0.cancel.is_cancelled() {
            return Err(MigrationError::Cancelled);
        }
        // The only step that cannot be taken back.
        let told = writer.command(command::RUN, &[]).and_then(|()| writer.out().flush());
        let uncertain = |why: String| MigrationError::Uncertain { why };
        told.map_err(|why| uncertain(why.to_string()))?;
        let said = match answer(answers) {
            // The same once more says no more.
            Ok(Said { kind: command::SHUT, number: 0, .. }) => answer(answers),
            said => said,
        };
        match said {
            Ok(Said { kind: command::PONG, .. }) => Ok(()),
            // It will not run: it says so.
            Ok(Said { kind: command::SHUT, number: 1.., why }) => Err(MigrationError::Refused { why }),
            Ok(Said { kind, .. }) => Err(uncertain(format!("it answered {kind}, not PONG"))),
            Err(why) => Err(uncertain(why.to_string())),
        }
    }
}

/// An answer of the target.
struct Said {
    kind: u16,
    number: u32,
    /// What it said before.
    why: String,
}

fn answer(from: &mut Channel) -> Result<Said, MigrationError> {
    let failed = |why: io::Error| match why.kind() {
        io::ErrorKind::UnexpectedEof => MigrationError::Answer(io::Error::new(why.kind(), "it ended the channel")),
        _ => MigrationError::Answer(why),
    };
    let mut why = String::new();
    loop {
        let mut head = [0; 4];
        from.read_exact(&mut head).map_err(failed)?;
        let [kind, len] = [[head[0], head[1]], [head[2], head[3]]].map(u16::from_be_bytes);
        let mut bytes = vec![0; usize::from(len)];
        match (kind, len) {
            (command::WHY, ..=REASON) => {
                from.read_exact(&mut bytes).map_err(failed)?;
                why = String::from_utf8_lossy(&bytes).into_owned();
            }
            (_, 4) => {
                let mut number = [0; 4];
                from.read_exact(&mut number).map_err(failed)?;
                return Ok(Said { kind, number: u32::from_be_bytes(number), why });
            }
            _ => return Err(MigrationError::Order(format!("the target answered {len} bytes, not 4"))),
        }
    }
}

/// The longest reason, in bytes.
const REASON: u16 = 1024;

/// The answer of a target that will not run the machine.
pub(super) fn refusal(why: &MigrationError) -> Vec<u8> {
    let text = why.to_string();
    let text = &text.as_bytes()[..text.len().min(REASON.into())];
    let head = [command::WHY, text.len() as u16].map(u16::to_be_bytes).concat();
    [&head[..], text, &answer_bytes(command::SHUT, 1)].concat()
}

/// The same as it is sent.
pub(super) fn answer_bytes(kind: u16, number: u32) -> [u8; 8] {
    let ([a, b], [c, d, e, f]) = (kind.to_be_bytes(), number.to_be_bytes());
    [a, b, 0, 4, c, d, e, f]
}

impl Migrator {
    /// The machine begins to leave by this channel; it goes on running, and its run ends with
    /// [`MachineExit::Migrated`](super::MachineExit::Migrated) when it is elsewhere. A machine that is not being run answers in its next
    /// run. `cancel` is the channel's.
    ///
    /// # Errors
    /// [`MigrationError::UnderWay`], or the host gives no thread.
    pub fn start(
        &self,
        road: impl Into<Road>,
        cancel: Cancel,
        options: LeaveOptions,
    ) -> Result<Migration, MigrationError> {
        let road = road.into();
        let stop = self.stop.upgrade().ok_or(MigrationError::Gone)?;
        let mut current = lock(&self.door.current);
        if self.door.gone.load(Ordering::Acquire) {
            return Err(MigrationError::Gone);
        }
        if current.as_ref().is_some_and(|migration| lock(&migration.0.talk).ended.is_none()) {
            return Err(MigrationError::UnderWay);
        }
        let status = MigrationStatus {
            state: MigrationState::Setup,
            total: Duration::ZERO,
            downtime: Duration::ZERO,
            progress: Progress::default(),
            stuck: 0,
            dirtied: Vec::new(),
        };
        let migration = Migration(Arc::new(Shared {
            talk: Mutex::new(Talk { asked: None, answer: None, status, ended: None, awake: Some(stop) }),
            changed: Condvar::new(),
            wanted: AtomicBool::new(false),
            cancel,
            start: Instant::now(),
            throttle: AtomicU32::new(0),
            stays: matches!(road, Road::File(_, true)),
        }));
        self.door.may_stop.store(true, Ordering::Release);
        // Before the thread stops a run, which is stopped once for what it asks.
        self.door.any.store(true, Ordering::Release);
        // Without its thread, or when that panics, it has failed: no run waits for it.
        let (own, space) = (Ends(migration.clone()), self.space.clone());
        if options.auto_converge {
            let own = migration.clone();
            let thread = std::thread::Builder::new().name("throttle".into());
            thread.spawn(move || own.throttle()).map_err(MigrationError::Host)?;
        }
        let thread = std::thread::Builder::new().name("migration".into());
        let thread = thread.spawn(move || {
            let Ends(own) = &own;
            own.leave(road, &options, &space);
        });
        thread.map_err(MigrationError::Host)?;
        *current = Some(migration.clone());
        Ok(migration)
    }
}

impl Machine {
    /// What starts migrations of this machine, from any thread.
    pub fn migrator(&self) -> Migrator {
        Migrator { door: self.migration.clone(), stop: self.stop_handle().downgrade(), space: self.board.space.clone() }
    }

    /// Whether the machine has left. It does not run then.
    pub fn is_gone(&self) -> bool {
        self.migration.gone.load(Ordering::Acquire)
    }

    /// The machine runs here again, as it was when it left. Only for who knows that its target does not run: after
    /// [`MigrationState::Uncertain`], if that process is dead.
    pub fn take_back(&mut self) {
        self.board.space.ram().release_writers();
        self.migration.gone.store(false, Ordering::Release);
    }

    /// Answers a migration, while the harts stand still. `true`: the machine has left.
    pub(super) fn serve_migration(&mut self) -> bool {
        let Some(migration) = self.migration.current() else { return self.is_gone() };
        let shared = &migration.0;
        if !shared.wanted.load(Ordering::Acquire) {
            migration.sleep();
        }
        // One that ends has let go of its handle then.
        drop(lock(&shared.talk));
        if !shared.wanted.load(Ordering::Acquire) {
            return self.is_gone();
        }
        let asked = lock(&shared.talk).asked;
        let mut held = None;
        let answer = match asked {
            None => return self.is_gone(),
            Some(Ask::Describe) => self.describe(),
            Some(Ask::StandStill) => {
                self.board.console.flush();
                held = self.board.space.ram().hold_writers(DMA);
                match held {
                    Some(_) => self.sections_after_ram().map(Answer::StandsStill),
                    None => Err(MigrationError::Order(format!("a write by another thread did not end in {DMA:?}"))),
                }
            }
        };
        let stands = answer.is_ok() && asked == Some(Ask::StandStill);
        let mut talk = lock(&shared.talk);
        // It may have given up meanwhile.
        if talk.asked.take() != asked {
            return self.is_gone();
        }
        talk.answer = Some(answer);
        shared.wanted.store(false, Ordering::Release);
        shared.changed.notify_all();
        if stands {
            // Each wait of the other thread has a limit; all together have this one.
            let until = Instant::now() + STANDSTILL;
            while talk.ended.is_none() {
                if Instant::now() >= until {
                    shared.cancel.cancel();
                }
                let step = Duration::from_millis(50);
                talk = shared.changed.wait_timeout(talk, step).unwrap_or_else(PoisonError::into_inner).0;
            }
            let left = matches!(talk.status.state, MigrationState::Completed | MigrationState::Uncertain);
            let gone = left && !shared.stays;
            self.migration.gone.store(gone, Ordering::Release);
            if let Some(held) = held.take_if(|_| gone) {
                held.for_good();
            }
        }
        drop(talk);
        self.is_gone()
    }

    fn describe(&self) -> Result<Answer, MigrationError> {
        // Whether it can be saved at all is known before its RAM goes.
        self.stateful_devices()?;
        // What began before the migration did: the harts are parked, so it waits for none of them.
        let until = Instant::now() + SETTLE;
        while !self.board.memory.is_settled() {
            if Instant::now() > until {
                return Err(MigrationError::Order(
                    "RAM is being plugged, unplugged or resized, and that does not end".into(),
                ));
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        let (sections, blocks) = self.sections_before_ram()?;
        Ok(Answer::Described(sections, blocks))
    }
}
