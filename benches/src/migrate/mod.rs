//! The sixth table: a guest moves to another process, ours beside QEMU's, in turns.
//!
//! ```text
//!   bin/migrate.rs ─▶ ROWS ─▶ guest.rs     fills its memory, then sleeps or stores
//!                              ├─ ours.rs    notdirty run --migrate … ─▶ notdirty run --incoming
//!                              ├─ qemu.rs    two qemu-system-riscv64, by QMP, without a limit of bandwidth
//!                              └─ bare       two threads of one socket: 1 MiB buffers into untouched memory
//! ```
//!
//! Times are what each says of itself. A guest of ours stores faster, so it dirties more in the same time: the rate tells of the
//! sending, the total also of that.

mod guest;
mod ours;
mod qemu;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::pairing::order;
use crate::stats::median;

/// By what it moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// One Unix socket.
    Stream,
    /// So many channels beside it.
    Multifd(usize),
    /// A mapped-ram file, while the guest runs.
    Mapped,
}

/// A row.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Its name.
    pub name: &'static str,
    /// MiB that are not zero.
    mib: u64,
    /// It goes on storing to them.
    stores: bool,
    way: Way,
}

impl Row {
    fn memory_mib(&self) -> u64 {
        self.mib + 512
    }
}

/// All rows.
pub const ROWS: [Row; 6] = [
    Row { name: "migrate-idle", mib: 1024, stores: false, way: Way::Stream },
    Row { name: "migrate-idle-multifd", mib: 1024, stores: false, way: Way::Multifd(2) },
    Row { name: "migrate-idle-mapped", mib: 1024, stores: false, way: Way::Mapped },
    Row { name: "migrate-store-256", mib: 256, stores: true, way: Way::Stream },
    Row { name: "migrate-store", mib: 1024, stores: true, way: Way::Stream },
    Row { name: "migrate-store-multifd", mib: 1024, stores: true, way: Way::Multifd(2) },
];

/// The rows that a word names.
pub fn pick(word: &str) -> Vec<Row> {
    ROWS.into_iter().filter(|row| word == row.name || word == "migrate").collect()
}

/// How a migration went: milliseconds and MB.
#[derive(Clone, Copy, Debug)]
struct Moved {
    total: f64,
    downtime: f64,
    megabytes: f64,
}

/// The header of the table.
pub fn heads() -> String {
    format!(
        "{:<24} {:>9} {:>9} {:>7}   {:>9} {:>9} {:>7}   {:>6} {:>7} {:>9}",
        "", "ours ms", "down ms", "MB/s", "QEMU ms", "down ms", "MB/s", "rate", "total", "bare MB/s"
    )
}

/// One row, in so many rounds: its line.
///
/// # Errors
/// A sentence, if one of ours fails.
pub fn measure(row: &Row, target: &Path, rounds: usize) -> Result<String, String> {
    let dir = std::env::temp_dir().join(format!("notdirty-migrate-{}", std::process::id()));
    std::fs::create_dir_all(&dir).map_err(|why| format!("{}: {why}", dir.display()))?;
    let elf = dir.join("guest.elf");
    std::fs::write(&elf, guest::guest(row.mib << 20, row.stores)?).map_err(|why| why.to_string())?;
    let warm = Duration::from_millis(1500);
    let (mut ours, mut theirs, mut bare) = (Vec::new(), Vec::new(), Vec::new());
    let mut why_not = None;
    let done = (0..rounds).try_for_each(|round| {
        for contender in order(round, 3) {
            match contender {
                0 => ours.push(ours::run(row, &elf, &dir, target, warm)?),
                1 => match qemu::run(row, &elf, &dir, warm) {
                    Ok(moved) => theirs.push(moved),
                    Err(why) => why_not = Some(why),
                },
                _ => bare.push(bare_rate(row.mib << 20).map_err(|why| why.to_string())?),
            }
        }
        Ok::<_, String>(())
    });
    let _ = std::fs::remove_dir_all(&dir);
    done?;
    let middle = |all: &[Moved], of: fn(&Moved) -> f64| median(&all.iter().map(of).collect::<Vec<_>>());
    let figures = |all: &[Moved]| {
        let rate = middle(all, |moved| moved.megabytes / moved.total.max(0.001) * 1e3)?;
        Some((middle(all, |moved| moved.total)?, middle(all, |moved| moved.downtime)?, rate))
    };
    let (total, downtime, rate) = figures(&ours).unwrap_or_default();
    let mut line = format!("{:<24} {total:>9.0} {downtime:>9.1} {rate:>7.0}   ", row.name);
    match figures(&theirs) {
        Some((their_total, their_downtime, their_rate)) => line.push_str(&format!(
            "{their_total:>9.0} {their_downtime:>9.1} {their_rate:>7.0}   {:>6.2} {:>7.2}",
            rate / their_rate.max(0.001),
            their_total / total.max(0.001)
        )),
        None => line.push_str(&format!("{:>44}", "none")),
    }
    line.push_str(&format!(" {:>9.0}", median(&bare).unwrap_or_default()));
    if let Some(why) = why_not {
        line.push_str(&format!("\n  QEMU, once or more: {why}"));
    }
    Ok(line)
}

/// MB a second from one thread to another that has not touched the memory before.
fn bare_rate(bytes: u64) -> std::io::Result<f64> {
    let (mut to, mut from) = UnixStream::pair()?;
    let start = Instant::now();
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut memory = vec![0; bytes as usize];
            from.read_exact(&mut memory).map(|()| memory.iter().step_by(4096).map(|byte| u64::from(*byte)).sum::<u64>())
        });
        let buffer = vec![0x5a; 1 << 20];
        (0..bytes >> 20).try_for_each(|_| to.write_all(&buffer))?;
        reader.join().unwrap_or(Ok(0)).map(drop)
    })?;
    Ok(bytes as f64 / 1e6 / start.elapsed().as_secs_f64())
}
