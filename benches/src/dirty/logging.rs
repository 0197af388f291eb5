//! What logging costs a guest that stores: the CPU time of its vCPU's thread for a whole program, in each mode on the
//! same machine, so that its RAM lies where it lay.
//!
//! Each timed run comes after one in the same mode that is not timed: what a log's start costs is over then, and
//! without harvests everything is dirty that the guest stores to.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use notdirty_core::DirtyLog;

use super::guest::Stores;
use super::row::{Bar, Contender, Row, Sample};

const PERIOD: Duration = Duration::from_millis(10);

#[derive(Clone, Copy)]
enum Mode {
    /// There is no client.
    Absent,
    /// There is a client, and its log has stopped.
    Stopped,
    /// A log runs, and is not synced.
    Quiet,
    /// Another thread syncs it every 10 ms.
    Harvested { ring: bool },
}

fn run(guest: &mut Stores, mode: Mode) -> Result<Sample, String> {
    let list = guest.space().ram().clone();
    let client = match mode {
        Mode::Absent => {
            guest.run(None)?;
            return guest.run(None);
        }
        _ => list.add_client("bench").map_err(|e| e.to_string())?,
    };
    let log = list.log(client.client());
    let log = if let Mode::Harvested { ring: true } = mode { log.rings(1 << 16) } else { log };
    let log = log.start().map_err(|e| e.to_string())?;
    match mode {
        Mode::Harvested { .. } => harvested(guest, &log),
        Mode::Quiet => {
            guest.run(None)?;
            guest.run(None)
        }
        _ => {
            log.stop();
            guest.run(None)?;
            guest.run(None)
        }
    }
}

fn harvested(guest: &mut Stores, log: &DirtyLog) -> Result<Sample, String> {
    let (ended, end) = channel::<()>();
    std::thread::scope(|scope| {
        let harvester = scope.spawn(move || {
            while let Err(RecvTimeoutError::Timeout) = end.recv_timeout(PERIOD) {
                drop(log.sync(None).map_err(|e| e.to_string())?.commit());
            }
            Ok::<(), String>(())
        });
        let sample = guest.run(Some(log)).and_then(|_| guest.run(Some(log)));
        drop(ended);
        harvester.join().map_err(|_| "the harvester panicked")??;
        sample
    })
}

fn row(name: &str, rounds: usize) -> Result<Row, String> {
    let guest = Rc::new(RefCell::new(Stores::new(name)?));
    let with = |name, mode| {
        let guest = guest.clone();
        Contender::fallible(name, move || run(&mut guest.borrow_mut(), mode))
    };
    let contenders = vec![
        with("no client", Mode::Absent),
        with("a log that stopped", Mode::Stopped).bar(Bar::WithinOurs(1.02)),
        with("a log, quiet", Mode::Quiet).bar(Bar::WithinOurs(1.02)),
        with("bitmap, a harvest every 10 ms", Mode::Harvested { ring: false }),
        with("rings, a harvest every 10 ms", Mode::Harvested { ring: true }),
    ];
    Ok(Row::times("run", contenders).rounds(rounds))
}

/// Stores all over 64 MiB.
pub fn rand_store() -> Result<Row, String> {
    row("rand-store", 7)
}

/// Copies of 16 MiB.
pub fn memcpy() -> Result<Row, String> {
    row("memcpy", 5)
}
