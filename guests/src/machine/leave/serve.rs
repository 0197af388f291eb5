//! The run's side of a migration: what it answers while the harts stand still.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Answer, Ask, MigrationState, Migrator, lock};
use crate::machine::Machine;
use crate::machine::migrate::MigrationError;

/// How long a guest stands still for its migration at most: then it is cancelled.
const STANDSTILL: Duration = Duration::from_secs(60);

/// How long a write by another thread may be under way then.
const DMA: Duration = Duration::from_secs(1);

/// How long a change of RAM that was under way may take.
const SETTLE: Duration = Duration::from_secs(10);

impl Machine {
    /// What starts migrations of this machine, from any thread.
    pub fn migrator(&self) -> Migrator {
        Migrator { door: self.migration.clone(), stop: self.stop_handle().downgrade(), space: self.board.space.clone() }
    }

    /// Whether the machine has left. It does not run then.
    pub fn is_gone(&self) -> bool {
        self.migration.gone.load(Ordering::Acquire)
    }

    /// The machine runs here again, as it was when it left. Only where it is known that its target does not run: after
    /// [`MigrationState::Uncertain`], if that process is dead.
    ///
    /// # Errors
    /// [`MigrationError::Order`] if pages of it were [given back](super::Postcopy::release): its target had them, and ran.
    pub fn take_back(&mut self) -> Result<(), MigrationError> {
        self.check_kept()?;
        self.board.space.ram().release_writers();
        self.migration.gone.store(false, Ordering::Release);
        Ok(())
    }

    /// All of its pages are here still.
    pub(in crate::machine) fn check_kept(&self) -> Result<(), MigrationError> {
        let current = lock(&self.migration.current);
        match &*current {
            Some(migration) if migration.0.released.load(Ordering::Acquire) => {
                Err(MigrationError::Order("pages of this machine went back to the host: its target had them".into()))
            }
            _ => Ok(()),
        }
    }

    /// Answers a migration, while the harts stand still. `true`: the machine has left.
    pub(in crate::machine) fn serve_migration(&mut self) -> bool {
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
                if Instant::now() >= until && !talk.status.state.is_postcopy() {
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
        self.check_whole()?;
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
