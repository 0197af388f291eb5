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
//! A program without a translator, its RAM, a device, a vCPU and a log; `examples/alone.rs` goes on with threads, rings, a second
//! address space, memory that comes and goes, and a subscriber to old bytes, and `examples/tables.rs` has page tables:
//!
//! ```
//! use notdirty_core::{DirtyClient, RamBlockSpec, RamList};
//! use notdirty_softmmu::{AddressSpace, GuestPhys, GuestVirt, MemSize, MmioDevice, MmuIdx, NoHooks, SoftMmu};
//! use std::sync::Arc;
//!
//! struct Serial;
//! impl MmioDevice for Serial {
//!     fn read(&self, _offset: u64, _size: MemSize) -> u64 {
//!         0x60
//!     }
//!     fn write(&self, _offset: u64, _size: MemSize, value: u64) {
//!         print!("{}", value as u8 as char);
//!     }
//! }
//!
//! let list = Arc::new(RamList::new());
//! let ram = list.add(RamBlockSpec::new("ram", 1 << 20))?;
//! let space = AddressSpace::new(list.clone());
//! space.map_ram(GuestPhys::new(0x8000_0000), &ram, 0, ram.used_length(), 0)?;
//! space.map_mmio(GuestPhys::new(0x1000_0000), 0x100, Arc::new(Serial), 0)?;
//! let log = list.log(DirtyClient::MIGRATION).start()?;
//!
//! let mut mmu = SoftMmu::new(&space, 0)?;
//! let mut vcpu = mmu.run(&mut NoHooks);
//! let _ = vcpu.store(&mut NoHooks, MmuIdx::M, GuestVirt::new(0x8000_0008), MemSize::B8, 1)?;
//! let _ = vcpu.store(&mut NoHooks, MmuIdx::M, GuestVirt::new(0x1000_0000), MemSize::B1, 'A'.into())?;
//! assert!(vcpu.load(&mut NoHooks, MmuIdx::M, GuestVirt::new(0), MemSize::B8).is_err());
//! let _ = vcpu.serve(&mut NoHooks); // between instructions, as often as other threads shall wait
//! drop(vcpu); // parked: a sync on this thread need not wait for it
//!
//! space.write(GuestPhys::new(0x8000_2000), b"DMA")?;
//! let pages = log.sync(None)?.commit();
//! assert_eq!(pages.count(), 2);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | file | concept |
//! | --- | --- |
//! | `mmu`, `live` | [`SoftMmu`], [`Running`], [`LiveMmu`]: what one vCPU owns, when it may use it, and what it does at its safe points |
//! | [`tlb::entry`] | [`TlbEntry`](tlb::entry::TlbEntry): the layout that emitted code shares |
//! | `access`, `atomic` | [`LiveMmu`]'s loads, stores, fetches, AMOs |
//! | `slow`, `notdirty`, `lines` | every way out of a missed probe |
//! | `translate` | [`Hooks::translate`], [`Hooks::look`] and what they work with: [`Access`], [`Translation`], [`Physical`]; [`Asid`], [`Rights`] |
//! | [`memmap`] | [`AddressSpace`], [`FlatView`]: what lies where |
//! | [`mmio`], `state` | [`MmioDevice`], and what a part of a machine remembers: [`Fields`], [`Stateful`], [`DeviceState`] |
//! | `sections` | the same as sections of a stream, and back: [`section_of`], [`take_section`], [`SectionError`] |
//! | `safepoint`, `registry` | [`VcpuPort`], [`VcpuRegistry`]: how other threads reach a vCPU, and wait for it; core's `DirtyListener` |
//! | [`fault`] | [`MemFault`]: the guest's error, as a value |
//!
//! Kept here: TLB-1, the softmmu halves of MARK-1, LINE-1, CODE-1, HARVEST-1, PLACE-1, SAFE-1 and RAM-1. Nothing here sees an instruction.
//!
//! Absent on purpose, until something uses it: a victim TLB. Page walks are the embedder's ([`Hooks::translate`]), and so is the wait for
//! a page that is yet to come ([`LiveMmu::take_missing`]): an access does not wait, it was not made.

#![warn(clippy::missing_errors_doc)]

mod access;
pub mod addr;
mod ask;
mod atomic;
pub mod fault;
mod host;
mod lines;
mod live;
pub mod memmap;
pub mod mmio;
mod mmu;
mod notdirty;
mod registry;
mod reserve;
mod rights;
mod safepoint;
mod sections;
mod slow;
mod state;
pub mod tlb;
mod translate;

pub use access::{FetchPage, StoreEffect};
pub use addr::{GuestPhys, GuestVirt, MemSize, MmuIdx};
pub use ask::{Kinds, Marks, Watch, Watched};
pub use fault::{AccessKind, FaultCause, MemFault};
pub use host::AmoOp;
pub use live::LiveMmu;
pub use memmap::{AccessError, AddressSpace, FlatView, MapError, RegionId, Resolved, SavedMap};
pub use mmio::{MmioAccess, MmioDevice, MmioModel, SizeMask};
pub use mmu::{CodeInvalidator, Hooks, NoHooks, Running, ServeReport, SlowStats, SoftMmu};
pub use notdirty_core::{
    CodePage, CodePages, HALVES_OFFSET, MASK_OFFSET, NOTED_OFFSET, NOTED_STORES, STORES_OFFSET, VcpuId, WRITTEN_OFFSET,
    lines_of,
};
pub use registry::{Pending, VcpuRegistry};
pub use rights::Rights;
pub use safepoint::{Started, VcpuPort};
pub use sections::{Misfit, SectionError, section_of, take_section};
pub use state::{AsValue, DeviceState, Fields, Part, Saved, Stateful, Value};
pub use translate::{Access, Asid, Physical, Translation};

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
