//! Which guests move, by which ways, and what stands alone.

use std::fmt::Write as _;

use super::alone::{self, Figures};
use super::bare::Socket;
use super::faults;

/// By what it moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// One socket.
    Stream(Socket),
    /// So many Unix sockets beside one.
    Multifd(usize),
    /// A mapped-ram file, while the guest runs; by so many threads, where that is said (QEMU).
    Mapped(usize),
    /// One socket, and the guest runs there first.
    Postcopy(Socket),
}

impl Way {
    /// Of which kind its channels are.
    pub fn socket(self) -> Option<Socket> {
        match self {
            Way::Stream(socket) | Way::Postcopy(socket) => Some(socket),
            Way::Multifd(_) => Some(Socket::Unix),
            Way::Mapped(_) => None,
        }
    }
}

/// Who moves something.
#[derive(Clone, Copy, Debug)]
pub(super) enum By {
    Ours(Way),
    Qemu(Way),
    Bare(Socket),
}

impl By {
    pub fn name(&self) -> String {
        let (who, way) = match self {
            By::Ours(way) => ("ours", way),
            By::Qemu(way) => ("QEMU", way),
            By::Bare(socket) => return format!("bare pair, {}", socket.name()),
        };
        match way {
            Way::Stream(socket) => format!("{who}, {}", socket.name()),
            Way::Postcopy(socket) => format!("{who}, postcopy, {}", socket.name()),
            Way::Multifd(channels) => format!("{who}, multifd {channels}"),
            Way::Mapped(0) => format!("{who}, mapped-ram"),
            Way::Mapped(channels) => format!("{who}, mapped-ram by {channels}"),
        }
    }
}

impl Socket {
    fn name(self) -> &'static str {
        match self {
            Socket::Unix => "unix",
            Socket::Tcp => "tcp",
        }
    }
}

/// What a guest does once its memory is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Does {
    /// It sleeps.
    Sleeps,
    /// It stores to random words, so many a second.
    Paces(u64),
    /// The same, as fast as it can.
    Stores,
}

/// A guest that moves.
#[derive(Debug)]
pub(super) struct Move {
    /// MiB that it writes.
    pub mib: u64,
    /// What it writes is zero.
    pub zeros: bool,
    pub does: Does,
    /// It is made slower if it dirties more than goes.
    pub converge: bool,
    /// The rate has to be twice QEMU's.
    pub twice: bool,
    pub by: &'static [By],
}

impl Move {
    pub fn memory_mib(&self) -> u64 {
        self.mib + 512
    }

    pub fn says(&self) -> String {
        let mut text = format!("{} MiB of {} MiB are ", self.mib, self.memory_mib());
        text.push_str(if self.zeros { "written with zeros" } else { "not zero" });
        let _ = match self.does {
            Does::Sleeps => write!(text, ", the guest sleeps"),
            Does::Paces(stores) => write!(text, ", {stores} random stores a second"),
            Does::Stores => write!(text, ", random stores as fast as it can"),
        };
        if self.converge {
            text.push_str(", with auto-converge");
        }
        text
    }
}

#[derive(Debug)]
pub(super) enum Kind {
    Move(Move),
    Alone(fn(usize) -> Result<Figures, String>),
}

/// A row.
#[derive(Debug)]
pub struct Row {
    /// Its name.
    pub name: &'static str,
    pub(super) kind: Kind,
}

const UNIX: Way = Way::Stream(Socket::Unix);
const TCP: Way = Way::Stream(Socket::Tcp);

const BOTH: &[By] = &[By::Ours(UNIX), By::Ours(Way::Multifd(2)), By::Qemu(UNIX), By::Qemu(Way::Multifd(2))];
const FILES: &[By] = &[By::Ours(Way::Mapped(0)), By::Qemu(Way::Mapped(0)), By::Qemu(Way::Mapped(2))];

const IDLE: Move = Move {
    mib: 1024,
    zeros: false,
    does: Does::Sleeps,
    converge: false,
    twice: true,
    by: &[
        By::Ours(UNIX),
        By::Ours(TCP),
        By::Ours(Way::Multifd(2)),
        By::Qemu(UNIX),
        By::Qemu(TCP),
        By::Qemu(Way::Multifd(2)),
        By::Bare(Socket::Unix),
        By::Bare(Socket::Tcp),
    ],
};
const ZERO: Move = Move { zeros: true, twice: false, by: BOTH, ..IDLE };
const PACED: Move = Move { does: Does::Paces(400_000), by: BOTH, ..IDLE };
const STORE_256: Move = Move { mib: 256, does: Does::Stores, by: BOTH, ..IDLE };
const STORE: Move = Move { does: Does::Stores, converge: true, by: BOTH, ..IDLE };
const POSTCOPY: Move = Move {
    does: Does::Stores,
    twice: false,
    by: &[By::Ours(Way::Postcopy(Socket::Unix)), By::Qemu(Way::Postcopy(Socket::Unix)), By::Bare(Socket::Unix)],
    ..IDLE
};
const MAPPED: Move = Move { twice: false, by: FILES, ..IDLE };
const MAPPED_PACED: Move = Move { twice: false, by: FILES, ..PACED };

/// All rows.
pub static ROWS: [Row; 14] = [
    Row { name: "migrate-idle", kind: Kind::Move(IDLE) },
    Row { name: "migrate-zero", kind: Kind::Move(ZERO) },
    Row { name: "migrate-paced", kind: Kind::Move(PACED) },
    Row { name: "migrate-store-256", kind: Kind::Move(STORE_256) },
    Row { name: "migrate-store", kind: Kind::Move(STORE) },
    Row { name: "migrate-mapped", kind: Kind::Move(MAPPED) },
    Row { name: "migrate-mapped-paced", kind: Kind::Move(MAPPED_PACED) },
    Row { name: "migrate-postcopy", kind: Kind::Move(POSTCOPY) },
    Row { name: "migrate-postcopy-fault", kind: Kind::Alone(faults::faults) },
    Row { name: "migrate-postcopy-userfault", kind: Kind::Alone(faults::userfaults) },
    Row { name: "migrate-postcopy-size", kind: Kind::Alone(faults::downtimes) },
    Row { name: "migrate-few", kind: Kind::Alone(alone::few) },
    Row { name: "migrate-cost", kind: Kind::Alone(alone::cost) },
    Row { name: "migrate-snapshot", kind: Kind::Alone(alone::snapshot) },
];

/// The rows that a word names.
pub fn pick(word: &str) -> Vec<&'static Row> {
    ROWS.iter().filter(|row| word == row.name || word == "migrate").collect()
}
