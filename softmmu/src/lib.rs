//! From a guest address to RAM or a device; what wants to hear of a store is told.
//!
//! ```text
//!        instruction (emitted code, tier 0, oracle)                    host: loader, gdb, DMA
//!                    │ GuestVirt                                            │ GuestPhys
//!                    ▼                                                      ▼
//!    SoftMmu   access.rs ── hit ──▶ host RAM                       AddressSpace::read, write
//!    (one per    │ miss, flag, misaligned                             │ view (RCU) ◀── map_*, unmap
//!     vCPU)      ▼                                                    │              memmap/region.rs
//!             slow.rs ─▶ tlb/fill.rs ─▶ FlatView ◀────────────────────┘              renders
//!                │  │                   memmap/flat_view.rs
//!                │  ├─ device ─▶ mmio.rs ─▶ MmioDevice
//!                │  └─ ROM: ignored
//!                ▼ something listens
//!             notdirty.rs   a. store  b. CodeInvalidator  c. core's DirtyMemory, rings  d. tlb/arm.rs
//!
//!    other threads ── post(KillCode | Rearm | Remap), kick, irq ──▶ VcpuPort ──▶ LiveMmu::serve, at a safe point
//! ```
//!
//! | file | concept |
//! | --- | --- |
//! | `mmu`, `live` | [`SoftMmu`], [`Running`], [`LiveMmu`]: what one vCPU owns, when it may use it, and what it does at its safe points |
//! | [`tlb::entry`] | [`TlbEntry`](tlb::entry::TlbEntry): the layout that emitted code shares |
//! | `access`, `atomic` | [`LiveMmu`]'s loads, stores, fetches, AMOs |
//! | `slow`, `notdirty` | every way out of a missed probe |
//! | [`memmap`] | [`AddressSpace`], [`FlatView`]: what lies where |
//! | [`mmio`] | [`MmioDevice`] |
//! | `safepoint`, `registry` | [`VcpuPort`], [`VcpuRegistry`]: how other threads reach a vCPU, and wait for it; core's `DirtyListener` |
//! | [`fault`] | [`MemFault`]: the guest's error, as a value |
//!
//! Kept here: TLB-1, the softmmu halves of MARK-1, CODE-1, HARVEST-1, SAFE-1 and RAM-1. Nothing here sees an instruction.
//!
//! Absent on purpose, until something uses it: page walks (one translation regime, machine mode, so one table),
//! watchpoints, a victim TLB, flushes by ASID, and waiting for missing pages.

mod access;
pub mod addr;
mod atomic;
pub mod fault;
mod host;
mod live;
pub mod memmap;
pub mod mmio;
mod mmu;
mod notdirty;
mod registry;
mod safepoint;
mod slow;
pub mod tlb;

pub use access::{FetchPage, StoreEffect};
pub use addr::{GuestPhys, GuestVirt, MemSize, MmuIdx};
pub use fault::{AccessKind, FaultCause, MemFault};
pub use host::AmoOp;
pub use live::LiveMmu;
pub use memmap::{AccessError, AddressSpace, FlatView, MapError, RegionId, Resolved};
pub use mmio::{MmioDevice, SizeMask};
pub use mmu::{CodeInvalidator, Hooks, NoHooks, Running, ServeReport, SlowStats, SoftMmu};
pub use notdirty_core::{CodePage, CodePages, HALVES_OFFSET, MASK_OFFSET, VcpuId, lines_of};
pub use registry::{Pending, VcpuRegistry};
pub use safepoint::{Started, VcpuPort};

/// For the tests of this workspace only: requests and answers by hand. A program's requests are made in this crate, and its
/// answers by [`LiveMmu::serve`].
#[doc(hidden)]
pub mod raw {
    use crate::VcpuRegistry;
    pub use crate::safepoint::{Drained, OwnPort, Request, Ticket};
    use crate::safepoint::{VcpuPort, Waited};
    use std::time::{Duration, Instant};

    /// A vCPU of which there is only its port.
    pub fn register(vcpus: &VcpuRegistry) -> OwnPort {
        vcpus.register()
    }

    /// Queues a request and kicks.
    pub fn post(port: &VcpuPort, request: Request) -> Ticket {
        port.post(request)
    }

    /// Has the vCPU served it, or will it before it touches guest memory again?
    pub fn served(port: &VcpuPort, ticket: Ticket) -> bool {
        port.served(ticket)
    }

    /// Waits until it has.
    pub fn wait_served(port: &VcpuPort, ticket: Ticket, timeout: Option<Duration>) -> bool {
        port.wait_served(ticket, timeout.and_then(|t| Instant::now().checked_add(t))) == Waited::Served
    }
}
