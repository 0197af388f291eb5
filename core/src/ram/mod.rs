//! RAM blocks: what guest memory is made of.
//!
//! ```text
//!   RamBlockSpec ──RamList::add──▶ RamBlock { idstr, offset, used_length, max_length }
//!                                     │ Mapping                       access.rs: the only way to the bytes
//!                                     ▼
//!                   no access│ used_length: RAM │ up to max_length: reserved │no access
//! ```
//!
//! | file | concept |
//! | --- | --- |
//! | `spec.rs` | what a block is asked to be, and its flags |
//! | `mapping.rs` | reservation and commitment of host memory: all of libc |
//! | `access.rs` | volatile and atomic accesses, since a guest may write at any time |
//! | `block.rs` | one block: name, place, lengths |
//! | `error.rs` | what can go wrong |
//! | `list.rs` | all blocks, under RCU; `chunks.rs` its sorted structure, `offsets.rs` the owner of each offset |
//! | `door.rs` | what every writer goes through: subscribers to the old bytes, listeners to the new ones |
//! | `io.rs` | RAM to and from descriptors; which of it was ever written |
//! | `image/` | all RAM as it was, and the way back to it: what a checkpoint stands on, and several machines lie on |
//! | `mapped.rs` | where guests reach a block: what a removal and a shrink may not take |
//! | `reserve.rs` | reservations that any other store breaks, for RAM that is to keep them so |
//! | `resize.rs` | a new length, in QEMU's order; memory given back |
//! | `still.rs` | a moment at which nothing but a vCPU writes |
//! | `notify.rs` | listeners to blocks that come, go and change |

mod access;
mod block;
mod chunks;
mod door;
mod error;
mod image;
mod io;
mod list;
mod mapped;
mod mapping;
mod notify;
mod offsets;
mod reserve;
mod resize;
mod spec;
mod still;

pub use block::RamBlock;
pub use door::{BeforeRegistration, BeforeWrite, CanWait, Pinned};
pub use error::RamError;
pub use image::{Baseline, Delta, Image, ImageError, PutBack};
pub use io::RamSlice;
pub use list::RamList;
pub use mapped::{MappingError, RamMapping};
pub use notify::{RamNotifier, RamRegistration};
pub use reserve::{Announced, Entered, Held, Reservations, Seen, Stripe};
pub use spec::{RamBlockSpec, RamFlags};
pub use still::WritersHeld;
