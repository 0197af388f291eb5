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
//! | [`ram`] | [`RamBlock`], [`RamList`]: mappings, names, offsets, lookup, resizing, listeners; [`Image`]: all of it as it was |
//! | [`dirty`] | [`DirtyMemory`]: what wants to hear the next store to a page; [`CodePages`]: which lines hold translated code; [`LineLog`]: which were written since a checkpoint; [`DirtyLog`], [`Harvest`]: what takes bits away |
//! | [`ring`] | [`DirtyRing`], [`RingLog`]: the pages that became dirty, as lists, one for each vCPU |
//! | [`missing`] | [`MissingPages`], [`PageSource`]: pages of RAM that are yet to come, waited for and placed once; noticed by the softmmu, or the host's MMU, too: [`UserFaults`] |
//! | [`migration`] | what a migration keeps for each block, its sync from the dirty memory; QEMU's stream and files |
//!
//! The road of a guest store touches this crate twice: the host store lands in a [`RamBlock`], then the pages are
//! marked in [`DirtyMemory`] (MARK-1: in this order). Nothing here knows a vCPU, a TLB or an instruction.
//!
//! The RAM list is the owner of it all: it knows all that may hold a fast entry for a store ([`DirtyListener`]), so a call that
//! takes bits need not say which to ask. Bits are taken by the users of a [`DirtyLog`], as a [`Harvest`] (HARVEST-1), which finds
//! them by the bits or by rings (RING-1). Whatever writes RAM and is no vCPU goes through one door: [`RamList::before`],
//! the bytes, [`RamList::after`]; [`RamList::write`] is all three.
//!
//! [`RamList`], [`LogBuilder`], [`Harvest`], [`BeforeWrite`] and [`migration::sync`] have examples. Names in capitals (MARK-1) are
//! laws; ARCHITECTURE.md states each in one sentence. A program that embeds this keeps one of them itself, SAFE-1: a thread that
//! waits (for a sync, a start, a re-arm) holds no RCU guard and no lock that a vCPU might wait for.
//!
//! Absent on purpose: threads, but for the one that drops what RCU retires, and one that reads faults for each [`UserFaults`] in use.

#![warn(clippy::missing_errors_doc)]

pub mod addr;
pub mod dirty;
#[doc(hidden)]
pub mod hint;
pub mod migration;
pub mod missing;
pub mod ram;
#[doc(hidden)]
pub mod raw;
pub mod rcu;
pub mod ring;
pub mod sync;

pub use addr::{LINE_BITS, PAGE_BITS, PAGE_SIZE, PageIndex, PageRange, RamAddr};
pub use dirty::{
    Answers, ClientMask, CodePage, CodePages, DirtyClient, DirtyListener, DirtyLog, DirtyMemory, HALVES_OFFSET,
    Harvest, LineLog, LinesTaken, Listening, LogBuilder, LogClient, LogError, LogRegion, LogScope, MASK_OFFSET,
    MAX_REARM_RANGES, NOTED_OFFSET, NOTED_STORES, NoRoom, NotServed, OwnedClient, PageSet, STORES_OFFSET, Snapshot,
    VcpuId, WRITTEN_OFFSET, fence_after_store, lines_of,
};
pub use missing::{
    Blocktime, FaultKind, FaultSource, MissingError, MissingPages, MissingPhase, NoUserfault, PageBytes, PageSource,
    Part, PeerFaults, PeerRange, Placing, SharedFaults, SoftwareFaults, TemporaryPage, UserFaults, UserfaultLack,
    VcpuBlocktime, WaitToken, Waiter, Waiting,
};
pub use ram::{
    Announced, Baseline, BeforeRegistration, BeforeWrite, CanWait, Delta, Entered, Held, Image, ImageError,
    MappingError, Pinned, PutBack, RamBlock, RamBlockSpec, RamError, RamFlags, RamList, RamMapping, RamNotifier,
    RamRegistration, RamSlice, Reservations, Seen, Stripe, WritersHeld,
};
pub use rcu::{Guard, RcuCell, WaitError, barrier, drop_later, pin, synchronize};
pub use ring::{
    DirtyGfn, DirtyRing, Pushed, RingConsumer, RingError, RingLog, RingProducer, RingStartError, VcpuRings,
};
