//! Which clients have rings: what a writer asks once it has marked a page that was clean.
//!
//! ```text
//!   start   logs[client] ← log ─▶ version + 1 ─▶ mask |= client ─▶ (the log's owner clears bits, re-arms)
//!   writer  the bit goes 0 -> 1 (a RMW) ─▶ mask ─▶ version, if a vCPU ─▶ logs[client]
//!   stop    mask &= !client ─▶ logs[client] ← nothing ─▶ version + 1 ─▶ (the log's owner sets all bits)
//! ```
//!
//! Keeps RING-1's other half: a mark is pushed, or it is in the list of the log. The mask is read after the RMW that
//! found the bit clear. That RMW reads from the one that cleared it, which comes after the start; so a vCPU that finds a
//! bit clear that a log cleared also finds the log. Read before, the mask may be from before the start, and the page
//! is marked, in no ring, and never heard of again. Checked by tests/loom_ring.rs.
//!
//! A bit that is clear already is not cleared again: the take of a start skips a word that it finds zero. Both sides then do
//! "write mine, look at the other's" (the mask and the word, or its summary), and all four are SeqCst: either the take finds
//! the bit, or its setter the log. Checked by tests/loom_ring_start.rs.

use super::{RingError, RingLog};
use crate::addr::PageIndex;
use crate::dirty::{DirtyClient, DirtyMemory};
use crate::sync::{AtomicU8, AtomicU64, Mutex, Ordering, in_total_order, lock};
use std::sync::Arc;

/// Columns of dirty memory.
pub(super) const COLUMNS: usize = 8;

/// Rings that cannot be started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RingStartError {
    /// The rings themselves cannot be.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// One consumer for each ring (ONE-1).
    #[error("{client:?} has dirty rings already")]
    Busy {
        /// The client.
        client: DirtyClient,
    },
}

/// The logs with rings, one for each client at most.
pub(crate) struct RingTable {
    /// A bit for each column with a log.
    mask: AtomicU8,
    /// Goes up when a log comes or goes: what a vCPU remembers of them is good as long as this is the same.
    version: AtomicU64,
    logs: Mutex<[Option<Arc<RingLog>>; COLUMNS]>,
}

impl RingTable {
    pub(crate) fn new() -> Self {
        let logs = Mutex::new([const { None }; COLUMNS]);
        Self { mask: AtomicU8::new(0), version: AtomicU64::new(0), logs }
    }

    /// The columns with logs.
    #[inline]
    pub(crate) fn mask(&self) -> u8 {
        in_total_order();
        self.mask.load(Ordering::SeqCst)
    }

    pub(super) fn has(&self, client: DirtyClient) -> bool {
        self.mask() >> client.column() & 1 != 0
    }

    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The logs of this moment, or newer than `version`.
    pub(super) fn logs(&self) -> [Option<Arc<RingLog>>; COLUMNS] {
        lock(&self.logs).clone()
    }

    /// `bits` of the pages from `first` on went from 0 to 1, by a writer without a ring.
    #[inline]
    pub(crate) fn report(&self, client: DirtyClient, first: PageIndex, bits: u64) {
        if self.has(client) {
            self.report_to_log(client, first, bits);
        }
    }

    #[cold]
    fn report_to_log(&self, client: DirtyClient, first: PageIndex, bits: u64) {
        let log = lock(&self.logs)[client.column()].clone();
        // If the log has gone meanwhile, so has its interest.
        if let Some(log) = log {
            log.add(first, bits);
        }
    }

    pub(super) fn start(&self, log: Arc<RingLog>) -> Result<(), RingStartError> {
        let client = log.client();
        let mut logs = lock(&self.logs);
        let place = &mut logs[client.column()];
        if place.is_some() {
            return Err(RingStartError::Busy { client });
        }
        *place = Some(log);
        // With the lock held, so that a vCPU that sees this finds the log; the mask last.
        self.version.fetch_add(1, Ordering::Release);
        self.mask.fetch_or(1 << client.column(), Ordering::SeqCst);
        in_total_order();
        Ok(())
    }

    pub(super) fn stop(&self, log: &Arc<RingLog>) {
        self.remove(log.client(), |found| Arc::ptr_eq(found, log));
    }

    /// The client is gone, and its rings with it.
    pub(crate) fn forget(&self, client: DirtyClient) {
        self.remove(client, |found| found.client() == client);
    }

    fn remove(&self, client: DirtyClient, is: impl FnOnce(&Arc<RingLog>) -> bool) {
        let column = client.column();
        let mut logs = lock(&self.logs);
        if logs[column].as_ref().is_some_and(is) {
            self.mask.fetch_and(!(1 << column), Ordering::AcqRel);
            let gone = logs[column].take();
            self.version.fetch_add(1, Ordering::Release);
            drop(logs);
            drop(gone); // a megabyte each, perhaps: not with the lock held
        }
    }
}

impl DirtyMemory {
    /// Gives `client` rings of `entries`: from here on, each page that becomes dirty for it goes to the ring of the vCPU
    /// that wrote it, or to a list if it was another writer. Then clear the bits of what is to be watched, and re-arm.
    pub(crate) fn start_rings(&self, client: DirtyClient, entries: u32) -> Result<Arc<RingLog>, RingStartError> {
        let log = Arc::new(RingLog::new(client, entries)?);
        self.rings().start(log.clone())?;
        Ok(log)
    }

    /// Takes a client's rings away. What they hold is forgotten: set the client's bits next, all of them.
    pub(crate) fn stop_rings(&self, log: &Arc<RingLog>) {
        self.rings().stop(log);
    }
}
