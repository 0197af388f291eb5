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

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use notdirty_core::migration::{Cancel, Channel, Limits, Progress, Section, Source, StreamWriter};
use notdirty_core::{DirtyClient, RamBlock};
use notdirty_softmmu::AddressSpace;

use super::migrate::MigrationError;
use super::{Machine, Stop, state};

/// Commands and answers of QEMU's that are used here.
pub(super) mod command {
    pub const OPEN_RETURN_PATH: u16 = 1;
    pub const RUN: u16 = 5;
    pub const SHUT: u16 = 1;
    pub const PONG: u16 = 2;
}

/// How long a thread that asks waits for a run of the machine.
const ATTENTION: Duration = Duration::from_secs(10);

/// How long a guest stands still for its migration at most: then it is cancelled.
const STANDSTILL: Duration = Duration::from_secs(60);

/// How long a write by another thread may be under way then.
const DMA: Duration = Duration::from_secs(1);

/// How a machine leaves.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub struct LeaveOptions {
    /// Bandwidth and downtime.
    pub limits: Limits,
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

/// How a migration goes, or went.
#[derive(Debug, Clone, Copy, PartialEq)]
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
}

struct Shared {
    talk: Mutex<Talk>,
    changed: Condvar,
    /// Something is asked: looked at by the run's thread without the lock.
    wanted: AtomicBool,
    cancel: Cancel,
    start: Instant,
    stop: Stop,
    kicked: Arc<AtomicBool>,
}

/// A migration that is under way or has ended, for any thread.
#[derive(Clone)]
pub struct Migration(Arc<Shared>);

/// Starts migrations of a machine from any thread, while it runs or before.
#[derive(Clone)]
pub struct Migrator {
    door: Arc<MigrationDoor>,
    stop: Stop,
    space: Arc<AddressSpace>,
}

/// The machine's side of its migrations.
#[derive(Default)]
pub(super) struct MigrationDoor {
    current: Mutex<Option<Migration>>,
    /// The machine is elsewhere.
    gone: AtomicBool,
    /// A run was stopped for a migration.
    kicked: Arc<AtomicBool>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MigrationDoor {
    fn current(&self) -> Option<Migration> {
        lock(&self.current).clone()
    }

    /// Whether a run was stopped for a migration.
    pub fn was_kicked(&self) -> bool {
        self.kicked.load(Ordering::Acquire)
    }

    /// The same, once.
    pub fn take_kick(&self) -> bool {
        self.kicked.swap(false, Ordering::AcqRel)
    }

    /// Whether RAM has to stay as it is.
    pub fn is_under_way(&self) -> bool {
        self.current().is_some_and(|migration| lock(&migration.0.talk).ended.is_none())
    }
}

impl Migration {
    /// How it goes.
    pub fn status(&self) -> MigrationStatus {
        let talk = lock(&self.0.talk);
        let mut status = talk.status;
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
        talk.ended.clone().map(|ended| ended.map(|()| talk.status))
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
        shared.kicked.store(true, Ordering::Release);
        shared.stop.kick();
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

    fn end(&self, state: MigrationState, ended: Result<(), MigrationError>) {
        let mut talk = lock(&self.0.talk);
        talk.status.state = state;
        talk.status.total = self.0.start.elapsed();
        talk.ended = Some(ended.map_err(Arc::new));
        self.0.wanted.store(false, Ordering::Release);
        drop(talk);
        self.0.changed.notify_all();
    }

    /// All of it, on its own thread.
    fn leave(&self, channel: Channel, options: &LeaveOptions, space: &AddressSpace) {
        let mut stood = None;
        let done = self.send(channel, options, space, &mut stood);
        if let Some(since) = stood {
            lock(&self.0.talk).status.downtime = Instant::now().duration_since(since);
        }
        let state = match &done {
            Ok(()) => MigrationState::Completed,
            Err(MigrationError::Uncertain { .. }) => MigrationState::Uncertain,
            Err(_) if self.0.cancel.is_cancelled() => MigrationState::Cancelled,
            Err(_) => MigrationState::Failed,
        };
        self.end(state, done);
    }

    fn send(
        &self,
        channel: Channel,
        options: &LeaveOptions,
        space: &AddressSpace,
        stood: &mut Option<Instant>,
    ) -> Result<(), MigrationError> {
        let mut answers =
            if channel.is_duplex() { Some(channel.try_clone().map_err(MigrationError::Host)?) } else { None };
        let Answer::Described(before, blocks) = self.ask(Ask::Describe)? else {
            return Err(MigrationError::Order("the machine answered something else".into()));
        };
        let log = space.ram().log(DirtyClient::MIGRATION).blocks(&blocks).timeout(options.limits.sync).start();
        let mut source = Source::new(log.map_err(MigrationError::Log)?, &blocks);
        self.set_state(MigrationState::Active);
        let mut writer = StreamWriter::new(channel, state::TYPE, &[])?;
        if answers.is_some() {
            writer.command(command::OPEN_RETURN_PATH, &[])?;
        }
        before.iter().try_for_each(|section| writer.full(section))?;
        source.begin(&mut writer)?;
        source.rounds(&mut writer, &options.limits, |progress| {
            lock(&self.0.talk).status.progress = *progress;
            !self.0.cancel.is_cancelled()
        })?;
        *stood = Some(Instant::now());
        self.set_state(MigrationState::Device);
        let Answer::StandsStill(after) = self.ask(Ask::StandStill)? else {
            return Err(MigrationError::Order("the machine answered something else".into()));
        };
        source.last(&mut writer, &options.limits)?;
        lock(&self.0.talk).status.progress = *source.progress();
        // From here on nothing is logged, so nothing is paid for any more.
        drop(source);
        after.iter().try_for_each(|section| writer.full(section))?;
        writer.finish()?;
        lock(&self.0.talk).status.progress.bytes = writer.out().offset();
        let Some(answers) = &mut answers else { return Ok(()) };
        match answer(answers)? {
            (command::SHUT, 0) => {}
            (command::SHUT, _) => return Err(MigrationError::Refused),
            (kind, _) => return Err(MigrationError::Order(format!("the target answered {kind}, not SHUT"))),
        }
        if self.0.cancel.is_cancelled() {
            return Err(MigrationError::Cancelled);
        }
        // The only step that cannot be taken back.
        let told = writer.command(command::RUN, &[]).and_then(|()| writer.out().flush());
        let uncertain = |why: String| MigrationError::Uncertain { why };
        told.map_err(|why| uncertain(why.to_string()))?;
        match answer(answers) {
            Ok((command::PONG, _)) => Ok(()),
            Ok((kind, _)) => Err(uncertain(format!("it answered {kind}, not PONG"))),
            Err(why) => Err(uncertain(why.to_string())),
        }
    }
}

/// An answer of the target: its kind, and its number.
fn answer(from: &mut Channel) -> Result<(u16, u32), MigrationError> {
    let mut head = [0; 8];
    from.read_exact(&mut head).map_err(MigrationError::Answer)?;
    let [kind_high, kind_low, len_high, len_low, number @ ..] = head;
    match u16::from_be_bytes([len_high, len_low]) {
        4 => Ok((u16::from_be_bytes([kind_high, kind_low]), u32::from_be_bytes(number))),
        len => Err(MigrationError::Order(format!("the target answered {len} bytes, not 4"))),
    }
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
    pub fn start(&self, channel: Channel, cancel: Cancel, options: LeaveOptions) -> Result<Migration, MigrationError> {
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
        };
        let migration = Migration(Arc::new(Shared {
            talk: Mutex::new(Talk { asked: None, answer: None, status, ended: None }),
            changed: Condvar::new(),
            wanted: AtomicBool::new(false),
            cancel,
            start: Instant::now(),
            stop: self.stop.clone(),
            kicked: self.door.kicked.clone(),
        }));
        let (own, space) = (migration.clone(), self.space.clone());
        let thread = std::thread::Builder::new().name("migration".into());
        thread.spawn(move || own.leave(channel, &options, &space)).map_err(MigrationError::Host)?;
        *current = Some(migration.clone());
        Ok(migration)
    }
}

impl Machine {
    /// What starts migrations of this machine, from any thread.
    pub fn migrator(&self) -> Migrator {
        Migrator { door: self.migration.clone(), stop: self.stop_handle(), space: self.board.space.clone() }
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
            let gone = matches!(talk.status.state, MigrationState::Completed | MigrationState::Uncertain);
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
        let (sections, blocks) = self.sections_before_ram()?;
        Ok(Answer::Described(sections, blocks))
    }
}
