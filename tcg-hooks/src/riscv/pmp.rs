//! Physical memory protection: 16 entries, by the privileged specification 1.13, with a grain of four bytes.
//!
//! The entry with the lowest number that matches any byte of an access decides, and must match all of them. A page that lies in one
//! entry, or in none, gets one answer, which a TLB may keep; of a page that a border cuts, each access has to be asked about.

use notdirty_softmmu::{AccessKind, Rights};
use smallvec::SmallVec;

/// Entries that there are.
pub const ENTRIES: usize = 16;

/// Bits of a `pmpcfg` byte.
pub mod cfg {
    /// Loads are allowed.
    pub const R: u8 = 1 << 0;
    /// Stores are.
    pub const W: u8 = 1 << 1;
    /// Fetches are.
    pub const X: u8 = 1 << 2;
    /// The field that says how an address is matched.
    pub const A: u8 = 3 << 3;
    /// From the address before this one up to this one.
    pub const TOR: u8 = 1 << 3;
    /// Four bytes.
    pub const NA4: u8 = 2 << 3;
    /// A power of two of eight or more.
    pub const NAPOT: u8 = 3 << 3;
    /// The entry is locked, and holds for M-mode too.
    pub const L: u8 = 1 << 7;
}

/// Bits of a `pmpaddr`.
const ADDR: u64 = (1 << 54) - 1;

/// An entry that matches something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Entry {
    first: u64,
    last: u64,
    rights: Rights,
    locked: bool,
}

/// What a page's accesses are allowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageRights {
    /// All of them this.
    Whole(Rights),
    /// It depends on the bytes: [`Pmp::allows`].
    Ask,
}

/// The entries, as they are matched: made anew when a register changes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pmp {
    /// In order; those that match nothing are left out.
    entries: SmallVec<[Entry; 4]>,
}

impl Pmp {
    /// From the bytes of `pmpcfg` and from `pmpaddr`.
    pub fn new(config: &[u8; ENTRIES], addresses: &[u64; ENTRIES]) -> Pmp {
        let mut entries = SmallVec::new();
        let mut below = 0;
        for (&config, &address) in config.iter().zip(addresses) {
            let address = address & ADDR;
            // In units of four bytes, the first and the one behind the last.
            let (first, end) = match config & cfg::A {
                cfg::TOR => (below, address),
                cfg::NA4 => (address, address + 1),
                cfg::NAPOT => {
                    let inside = address ^ (address + 1);
                    (address & !inside, (address | inside) + 1)
                }
                _ => (0, 0),
            };
            below = address;
            if first < end {
                let has = |bit| config & bit != 0;
                let rights = Rights { load: has(cfg::R), store: has(cfg::W), fetch: has(cfg::X) };
                entries.push(Entry { first: first << 2, last: (end << 2) - 1, rights, locked: has(cfg::L) });
                if first == 0 && end > ADDR {
                    break; // it decides every access that it is asked about: none gets past it
                }
            }
        }
        Pmp { entries }
    }

    /// Is M-mode free to do anything, as after reset?
    pub fn leaves_machine_alone(&self) -> bool {
        !self.entries.iter().any(|entry| entry.locked)
    }

    /// May M-mode, or else a mode below it, access `len` bytes (1 or more) at `at` in this way?
    pub fn allows(&self, machine: bool, at: u64, len: u64, kind: AccessKind) -> bool {
        let last = at.saturating_add(len - 1);
        match self.entries.iter().find(|entry| at <= entry.last && entry.first <= last) {
            Some(entry) => entry.first <= at && last <= entry.last && entry.rights(machine).has(kind),
            None => machine,
        }
    }

    /// The same for whatever lies in the 4 KiB page that begins at `page`.
    pub fn page(&self, machine: bool, page: u64) -> PageRights {
        let last = page | 0xfff;
        match self.entries.iter().find(|entry| page <= entry.last && entry.first <= last) {
            Some(entry) if entry.first <= page && last <= entry.last => PageRights::Whole(entry.rights(machine)),
            Some(_) => PageRights::Ask,
            None => PageRights::Whole(if machine { Rights::ALL } else { Rights::NONE }),
        }
    }
}

impl Entry {
    fn rights(&self, machine: bool) -> Rights {
        if machine && !self.locked { Rights::ALL } else { self.rights }
    }
}
