//! The guest's physical memory map: what one says (`region`), what it comes to (`flat_view`), and the two at work.
//!
//! ```text
//!   map_ram, map_mmio, map_alias ──▶ RegionTree ── render the changed interval only ──▶ FlatView (RCU)
//!                                    under a lock                                        │
//!   host API (loader, gdb, DMA) ────────────────────────── reads the newest view ◀───────┤
//!   vCPU: its own Arc of a view, changed only when it serves the Remap ◀──── posted ────┘
//! ```

mod flat_view;
mod region;
mod saved;
mod space;

pub use flat_view::{FlatView, Resolved};
pub(crate) use flat_view::{Span, What};
pub use region::{MapError, RegionId};
pub use saved::SavedMap;
pub use space::{AccessError, AddressSpace};
