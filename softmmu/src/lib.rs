//! From a guest address to RAM or a device, and everybody told who wants to hear of a store.
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
//!                ▼ somebody listens
//!             notdirty.rs   a. store  b. code.rs, CodeInvalidator  c. core's DirtyMemory, rings  d. tlb/arm.rs
//!
//!    anybody ── post(KillCode | Rearm | Remap), kick, irq ──▶ VcpuPort ──▶ SoftMmu::serve, at a safe point
//! ```
//!
//! | file | concept |
//! | --- | --- |
//! | [`mmu`](SoftMmu) | [`SoftMmu`]: what one vCPU owns, and what it does at its safe points |
//! | [`tlb::entry`] | [`TlbEntry`](tlb::entry::TlbEntry): the layout that emitted code shares |
//! | `access`, `atomic` | [`SoftMmu`]'s loads, stores, fetches, AMOs |
//! | `slow`, `notdirty` | every way out of a missed probe |
//! | [`memmap`] | [`AddressSpace`], [`FlatView`]: what lies where; core's `DirtyListener` |
//! | [`mmio`] | [`MmioDevice`] |
//! | [`code`] | [`CodePages`], [`CodeInvalidator`]: 64-byte lines that hold translated code, and whose it is |
//! | [`safepoint`], `registry` | [`VcpuPort`], [`Request`], [`VcpuRegistry`]: how others reach a vCPU, and wait for it; [`OwnPort`]: how it answers |
//! | [`fault`] | [`MemFault`]: the guest's error, as a value |
//!
//! Kept here: TLB-1, the softmmu halves of MARK-1, CODE-1, HARVEST-1, SAFE-1 and RAM-1. Nothing here sees an instruction.
//!
//! Absent on purpose, until something uses it: page walks (one translation regime, machine mode, so one table),
//! watchpoints, a victim TLB, flushes by ASID, and waiting for missing pages.

mod access;
pub mod addr;
mod atomic;
pub mod code;
pub mod fault;
mod host;
pub mod memmap;
pub mod mmio;
mod mmu;
mod notdirty;
mod registry;
pub mod safepoint;
mod slow;
pub mod tlb;

pub use access::{FetchPage, StoreEffect};
pub use addr::{GuestPhys, GuestVirt, MemSize, MmuIdx};
pub use code::{CodeInvalidator, CodePage, CodePages, HALVES_OFFSET, lines_of};
pub use fault::{AccessKind, FaultCause, MemFault};
pub use host::AmoOp;
pub use memmap::{AccessError, AddressSpace, FlatView, MapError, RegionId, Resolved};
pub use mmio::{MmioDevice, SizeMask};
pub use mmu::{Hooks, NoHooks, ServeReport, SlowStats, SoftMmu};
pub use registry::{Pending, VcpuRegistry};
pub use safepoint::{Drained, OwnPort, Request, Running, Ticket, VcpuId, VcpuPort};
