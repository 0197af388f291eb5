//! The guest's errors, as values: they become traps, never panics and never `Err` of the host.

use crate::addr::GuestVirt;

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
}

/// A guest access that did not happen. Nothing of it was written.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MemFault {
    /// What was wanted.
    pub kind: AccessKind,
    /// Why not.
    pub cause: FaultCause,
    /// First address of the part that failed: of an access over two pages that may be the second page.
    pub addr: GuestVirt,
}

impl MemFault {
    /// Nothing at `addr` serves this.
    /// Nothing is there, or not for this kind of access.
    pub const fn access(kind: AccessKind, addr: GuestVirt) -> Self {
        MemFault { kind, cause: FaultCause::Access, addr }
    }
    /// The address is not a multiple of what this kind of access asks for.
    pub const fn misaligned(kind: AccessKind, addr: GuestVirt) -> Self {
        MemFault { kind, cause: FaultCause::Misaligned, addr }
    }
}
