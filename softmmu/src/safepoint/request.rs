//! What may be asked of a vCPU. Made in this crate only, so there is none that is ill-formed: a `Remap` begins before it
//! ends, a `KillCode` names bytes of RAM.

use crate::addr::GuestPhys;
use notdirty_core::{PageRange, RamAddr};

/// A request to one vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// Bytes `[ram, ram + len)` were written by another: drop the TBs over them.
    KillCode {
        /// First byte.
        ram: RamAddr,
        /// How many.
        len: u64,
    },
    /// Bits of these pages were taken or cleared: their entries must be asked about again.
    Rearm(PageRange),
    /// What these guest addresses are has changed: drop what came from there.
    Remap {
        /// First address.
        start: GuestPhys,
        /// Last address, inclusive.
        last: GuestPhys,
    },
    /// The memory map changed in too many places: drop every entry and look at the new view.
    FlushAll,
}
