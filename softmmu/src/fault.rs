//! The guest's errors, as values: an engine makes traps of them; a program without one prints them, or passes them on by `?`.

use crate::addr::GuestVirt;
use core::fmt;

/// What the instruction wanted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum AccessKind {
    /// An instruction fetch.
    Fetch,
    /// A load, or LR.
    Load,
    /// A store, SC, or an AMO (its read half too).
    Store,
}

/// Why it did not get it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FaultCause {
    /// Not naturally aligned where that is required (AMO, LR, SC, odd pc).
    Misaligned,
    /// Nothing is there, or it cannot serve this kind or width of access.
    Access,
    /// The page tables say no.
    Page,
    /// Somebody watches these bytes, and nothing was done: no fault of the guest's. See [`LiveMmu::take_watched`](crate::LiveMmu::take_watched).
    Watched,
    /// The page is yet to come, and nothing was done: no fault of the guest's. See [`LiveMmu::take_missing`](crate::LiveMmu::take_missing).
    Missing,
}

/// A guest access that did not happen. Nothing of it was written.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
#[error("{kind} at {addr}: {cause}")]
pub struct MemFault {
    /// What was wanted.
    pub kind: AccessKind,
    /// Why not.
    pub cause: FaultCause,
    /// First address of the part that failed: of an access over two pages that may be the second page.
    pub addr: GuestVirt,
}

impl MemFault {
    /// Nothing is there, or not for this kind of access.
    pub const fn access(kind: AccessKind, addr: GuestVirt) -> Self {
        MemFault { kind, cause: FaultCause::Access, addr }
    }
    /// The address is not a multiple of what this kind of access asks for.
    pub const fn misaligned(kind: AccessKind, addr: GuestVirt) -> Self {
        MemFault { kind, cause: FaultCause::Misaligned, addr }
    }
}

impl fmt::Display for AccessKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AccessKind::Fetch => "fetch",
            AccessKind::Load => "load",
            AccessKind::Store => "store",
        })
    }
}

impl fmt::Display for FaultCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FaultCause::Misaligned => "not naturally aligned",
            FaultCause::Access => "nothing there takes it",
            FaultCause::Page => "the page tables refuse it",
            FaultCause::Watched => "it is watched",
            FaultCause::Missing => "its page is yet to come",
        })
    }
}
