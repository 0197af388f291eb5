//! RAM blocks and what happened to them.
//!
//! ```text
//!                     RamList                                   one linear space of RamAddr
//!   ┌───────────────────┴─────────────────────┐
//!   │ RcuCell ─▶ Snapshot { by_offset, by_host, by_slot } ─▶ chunks ─▶ Arc<RamBlock> ─▶ Mapping
//!   │                                                      idstr, slot, offset     guard│RAM│room to grow│guard
//!   │ DirtyMemory
//!   │   RcuCell ─▶ BlockTable [row, row, row, …]       a row covers 2 Mi pages = 8 GiB
//!   │                           │
//!   │                           └▶ [Vga, Code, Migration, …]  null: reads all ones, costs nothing
//!   │                                     └▶ DirtyBlock { words, summary } ─ a bit goes 0 -> 1 ─▶ RingLog, if the
//!   │                                                                         client has one: the vCPU's DirtyRing, or a list
//!   └─ one writer under a lock; readers hold a Guard and never block
//! ```
//!
//! | file | concept |
//! | --- | --- |
//! | [`addr`] | [`RamAddr`], [`PageIndex`], [`PageRange`]: an address has a kind |
//! | [`rcu`] | [`Guard`], [`RcuCell`]: this memory stays alive; [`synchronize`], [`barrier`], [`drop_later`]: and goes, on a thread of its own |
//! | [`sync`] | std or loom, decided once |
//! | [`ram`] | [`RamBlock`], [`RamList`]: mappings, names, offsets, lookup, resizing, who is told |
//! | [`dirty`] | [`DirtyMemory`]: who wants to hear the next store to a page; [`Harvest`], [`DirtyLog`]: who takes them away |
//! | [`ring`] | [`DirtyRing`], [`RingSource`]: the pages that became dirty, as lists, one for each vCPU |
//! | [`migration`] | what a migration keeps for each block, and its sync from the dirty memory |
//!
//! The road of a guest store touches this crate twice: the host store lands in a [`RamBlock`], then the pages are
//! marked in [`DirtyMemory`] (MARK-1: in this order). Nothing here knows a vCPU, a TLB or an instruction.
//!
//! Who takes pages away takes them as a [`Harvest`], alone or as a user of a [`DirtyLog`] (HARVEST-1), which finds them by
//! the bits or by rings (RING-1).
//!
//! Absent on purpose, until something uses it: checkpoints, the migration itself. Threads but the one that drops what RCU retires, and whoever makes vCPUs answer: a
//! [`DirtyListener`] is given.

pub mod addr;
pub mod dirty;
pub mod migration;
pub mod ram;
pub mod rcu;
pub mod ring;
pub mod sync;

pub use addr::{LINE_BITS, PAGE_BITS, PAGE_SIZE, PageIndex, PageRange, RamAddr};
pub use dirty::{
    Backend, ClientMask, DirtyClient, DirtyListener, DirtyLog, DirtyMemory, Harvest, LogClient, LogError, LogRegion,
    LogScope, LogSource, MAX_REARM_RANGES, NoRoom, NoVcpus, NotServed, OwnedClient, PageSet, Snapshot,
    fence_after_store,
};
pub use ram::{RamBlock, RamBlockSpec, RamError, RamFlags, RamList, RamNotifier, RamRegistration};
pub use rcu::{Guard, RcuCell, WaitError, barrier, drop_later, pin, synchronize};
pub use ring::{
    DirtyGfn, DirtyRing, Pushed, RingConsumer, RingError, RingLog, RingProducer, RingSource, RingStartError, VcpuRings,
};
