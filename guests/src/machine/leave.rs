//! A machine that leaves while it runs.
//!
//! ```text
//!   thread "migration"                                     thread of Machine::run
//!     ask ── describe ──▶ harts stop for a moment ────────▶ sections before RAM, blocks
//!     log on, rounds of pages …                             the guest runs
//!     PING ──▶ ◀── PONG: the target is there
//!     ask ── stand still ──▶ harts stop ──────────────────▶ sections after RAM               downtime
//!     last sync, the rest, sections, description              waits                             │
//!     ◀── SHUT 0: the target has all of it                                                      │
//!     RUN ──▶ ◀── PONG: it runs                                                                 ▼
//!     done ─────────────────────────────────────────────────▶ gone: Migrated │ failed: runs on
//! ```
//!
//! One side can run at any time. The target does not run before RUN; the source does not run on once RUN was sent. If then no answer
//! comes, nobody can know whether the target runs: the source stays as it is, whole, until its owner [takes it
//! back](super::Machine::take_back). A channel of one direction has no answers: there the last byte is what counts.
//!
//! | file | holds |
//! | --- | --- |
//! | `road.rs` | what it leaves by: channels, or a file |
//! | `start.rs` | [`Migrator`]: begins one, from any thread |
//! | `send.rs` | the migration's thread: rounds, the last of them, the end |
//! | `answers.rs` | commands, and what a target answers |
//! | `serve.rs` | the run's side: what it answers while harts stand still |
//! | `pace.rs`, `limit.rs` | how much slower harts are made: all of them alike, or each by what it dirties |

mod answers;
mod limit;
mod pace;
mod postcopy;
mod road;
mod send;
mod serve;
mod start;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use notdirty_core::RamBlock;
use notdirty_core::migration::{Cancel, Limits, Progress, Section};

use super::migrate::MigrationError;
use super::{Compression, SnapshotOptions, Stop};
pub(super) use answers::{answer_bytes, command, refusal};
use pace::SLICE;
pub use postcopy::Postcopy;
pub use road::{Beside, MultifdChannels, Road, UrgentChannel};
pub use start::Migrator;

/// How long a thread that asks waits for a run of the machine.
const ATTENTION: Duration = Duration::from_secs(10);

/// How a machine leaves.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub struct LeaveOptions {
    /// Bandwidth and downtime.
    pub limits: Limits,
    /// Harts are made slower, all of them alike, if they dirty more than goes out.
    pub auto_converge: bool,
    /// Then each hart by itself is held to so many bytes of pages a second; not with `auto_converge`. Dirty pages are found by
    /// [`rings`](Self::rings).
    pub dirty_limit: Option<u64>,
    /// So many bytes of pages that were sent are kept, and those go again as what differs (XBZRLE); on the stream itself.
    pub deltas: Option<u64>,
    /// By several channels: what their pages are packed by.
    pub compression: Compression,
    /// To a file with a home for each page: how it is written.
    pub file: SnapshotOptions,
    /// Dirty pages are found by rings of so many entries, one for each hart, in place of the bitmap's bits: see
    /// [`LogBuilder::rings`](notdirty_core::LogBuilder::rings). A hart whose ring is full waits until it is taken.
    pub rings: Option<u32>,
    /// The machine runs at its target before its pages are there, which come as it waits for them; by a socket of its own.
    pub postcopy: Option<Postcopy>,
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
    /// The target runs, or may; pages that are missing there go.
    PostcopyActive,
    /// The same, and the channel broke: all is kept on both sides, until [`Migration::recover`].
    PostcopyPaused,
    /// There is another channel, and the target says what it has.
    PostcopyRecover,
    /// The machine is elsewhere.
    Completed,
    /// It is here, and runs on.
    Failed,
    /// The same, as somebody wished.
    Cancelled,
    /// The target was told to run, and has not answered; see [`Machine::take_back`](super::Machine::take_back).
    Uncertain,
}

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
    /// Harts are made slower.
    pub throttled: bool,
    /// Pages that were found dirty behind each round, and when the guest stood still.
    pub dirtied: Vec<u64>,
    /// Pages that went because the target waited for them.
    pub urgent: u64,
    /// Bytes of RAM that went back to the host, of [`Postcopy::release`].
    pub released: u64,
    /// How often it was paused.
    pub pauses: u64,
    /// What broke last.
    pub paused_by: Option<String>,
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
    wants: postcopy::Wants,
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
    /// Pages of the machine were given back to the host.
    released: AtomicBool,
}

/// A migration that is under way or has ended, for any thread.
#[derive(Clone)]
pub struct Migration(Arc<Shared>);

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
        let (open, state) = {
            let talk = lock(&self.0.0.talk);
            (talk.ended.is_none(), talk.status.state)
        };
        let why = "the migration's thread failed".to_owned();
        if open && state.is_postcopy() {
            // The machine may run there.
            self.0.end(MigrationState::Uncertain, Err(MigrationError::Uncertain { why }));
        } else if open {
            self.0.end(MigrationState::Failed, Err(MigrationError::Order(why)));
        }
    }
}

impl Migration {
    fn new(cancel: Cancel, awake: Option<Stop>, stays: bool) -> Migration {
        let status = MigrationStatus {
            state: MigrationState::Setup,
            total: Duration::ZERO,
            downtime: Duration::ZERO,
            progress: Progress::default(),
            stuck: 0,
            throttled: false,
            dirtied: Vec::new(),
            urgent: 0,
            released: 0,
            pauses: 0,
            paused_by: None,
        };
        let wants = postcopy::Wants::default();
        Migration(Arc::new(Shared {
            talk: Mutex::new(Talk { asked: None, answer: None, status, ended: None, awake, wants }),
            changed: Condvar::new(),
            wanted: AtomicBool::new(false),
            cancel,
            start: Instant::now(),
            throttle: AtomicU32::new(0),
            stays,
            released: AtomicBool::new(false),
        }))
    }

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
        let talk = lock(&self.0.talk);
        if talk.status.state.is_postcopy() {
            return;
        }
        self.0.cancel.cancel();
        drop(talk);
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

    /// Whether harts are to be made slower.
    fn is_throttled(&self) -> bool {
        lock(&self.0.talk).status.throttled
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_migration_whose_thread_fails_while_the_target_may_run_lets_the_source_not_run_on() {
        use MigrationState::{Active, Device, Failed, PostcopyActive, PostcopyPaused, PostcopyRecover, Uncertain};
        for (state, end) in [
            (Active, Failed),
            (Device, Failed),
            (PostcopyActive, Uncertain),
            (PostcopyPaused, Uncertain),
            (PostcopyRecover, Uncertain),
        ] {
            let migration = Migration::new(Cancel::default(), None, false);
            migration.set_state(state);
            drop(Ends(migration.clone()));
            assert_eq!(migration.status().state, end, "{state:?}");
        }
    }
}
