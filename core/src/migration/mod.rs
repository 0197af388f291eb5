//! What moving a machine keeps for each of its blocks.
//!
//! ```text
//!   RamBlock.migration()
//!     dirty      OnDemand<DirtyPages>   source: pages still to send (bmap), chunks whose log is still to clear (clear_bmap)
//!     file       OnDemand<FilePages>    mapped-ram: pages in the file (file_bmap), and where that and they lie in it
//!     received   OnDemand<Received>     destination: pages that were placed (receivedmap)
//!     checksums  OnDemand<Checksums>    both: pages as they were last sent, or came
//!     postcopy_length                   destination: the source's used length when it advised postcopy
//! ```
//!
//! Each exists as long as it has a holder, and covers the maximum length, so a resize finds it long enough. Memory comes
//! from the kernel as zeros and is not touched before it is needed: for 1 TiB that is mostly clean it costs little.
//!
//! | file | concept |
//! | --- | --- |
//! | `bits.rs` | bits of one block, for one thread or for several |
//! | `bitmaps.rs` | the members; `sync` moves what is dirty from the dirty memory into them |
//! | `wire.rs` | the numbers that both ends agree on; bytes with their places; what is wrong with a stream, and where |
//! | `stream.rs` | QEMU's framing: header, configuration, sections, footers, VM description; `stream/read.rs` reads it |
//! | `section.rs` | a device section: named values that say how they are laid out |
//! | `records.rs` | the RAM section: the list of blocks, and pages |
//! | `channel.rs` | descriptors that never block for good; RAM straight into vectored writes |
//! | `lend.rs` | guest RAM by a Unix socket without a copy |
//! | `layer.rs` | what may lie between a channel and its descriptor: TLS |
//! | `precopy.rs` | the source: rounds over what is dirty, until the rest fits into the downtime |
//! | `sender.rs` | pages that go by the stream itself |
//! | [`multifd`] | pages that go by several channels |
//! | `pack.rs` | pages of their packets in fewer bytes |
//! | `rate.rs` | how fast RAM becomes dirty: by bits, rings, or samples |
//! | `checksums.rs` | a flipped bit is noticed: a sum for each block, a checksum for each section |
//! | `xbzrle.rs` | what differs from the version of a page that was sent before |
//! | `incoming.rs` | the target: records become RAM |
//! | `straight.rs` | pages that are read straight to where they belong |
//! | `through.rs` | pages of a file by the host's cache, or around it |
//! | [`mapped_ram`], `mapped_live.rs` | a file with one home for each page; written while the guest runs |
//! | [`postcopy`] | the target runs first, and its pages come later |

mod bitmaps;
mod bits;
mod channel;
mod checksums;
#[doc(hidden)]
pub mod fuzz;
mod incoming;
mod layer;
mod lend;
mod mapped_live;
pub mod mapped_ram;
pub mod multifd;
mod pack;
pub mod postcopy;
mod precopy;
mod rate;
mod records;
mod section;
mod sender;
mod straight;
mod stream;
mod through;
mod wire;
mod xbzrle;

pub use bitmaps::{ChunkShift, DirtyPages, FilePages, Received, SyncError, sync};
pub use channel::{Cancel, Channel, Fill, Sink};
pub use checksums::Checksums;
pub use incoming::{Incoming, read_list};
pub use layer::Layer;
pub use mapped_live::MappedCarrier;
pub use pack::{Pack, Unpack, Unpackers};
pub use precopy::{Carrier, Limits, Progress, Run, Source};
pub use rate::{DirtyRate, RateBy, RateError, dirty_rate};
pub use records::ListedBlock;
pub use section::{Field, FieldValue, Section};
pub use sender::{RamId, StreamCarrier};
pub use stream::{Event, MAPPED_RAM, StreamReader, StreamWriter};
pub use through::Through;
pub use wire::{Fault, In, Out, StreamError};

use crate::ram::RamBlock;
use core::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Something that is there while it has a holder.
pub struct OnDemand<T>(Mutex<Weak<T>>);

impl<T> OnDemand<T> {
    /// It, if it has a holder.
    pub fn get(&self) -> Option<Arc<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).upgrade()
    }

    /// It; made if it has no holder. It goes with the last `Arc`.
    fn get_or(&self, make: impl FnOnce() -> T) -> Arc<T> {
        let mut there = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        there.upgrade().unwrap_or_else(|| {
            let new = Arc::new(make());
            *there = Arc::downgrade(&new);
            new
        })
    }
}

impl<T> Default for OnDemand<T> {
    fn default() -> Self {
        Self(Mutex::new(Weak::new()))
    }
}

impl<T> fmt::Debug for OnDemand<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.get().is_some() { "in use" } else { "absent" })
    }
}

/// What a migration keeps for one block.
#[derive(Default, Debug)]
pub struct BlockMigration {
    dirty: OnDemand<DirtyPages>,
    file: OnDemand<FilePages>,
    received: OnDemand<Received>,
    checksums: OnDemand<Checksums>,
    postcopy_length: Mutex<Option<u64>>,
}

impl BlockMigration {
    /// The pages still to send, during a migration.
    pub fn dirty(&self) -> Option<Arc<DirtyPages>> {
        self.dirty.get()
    }

    /// The pages of `block` still to send; made, without any, if no migration has begun. A second caller gets the chunks of the
    /// first.
    pub fn need_dirty(block: &RamBlock, chunks: ChunkShift) -> Arc<DirtyPages> {
        block.migration().dirty.get_or(|| DirtyPages::new(block, chunks))
    }

    /// The pages in the file, while one is written or read.
    pub fn file(&self) -> Option<Arc<FilePages>> {
        self.file.get()
    }

    /// The pages of `block` in the file; made, without any, if there are none yet. The bitmap lies at `bitmap_offset` of the file,
    /// the block's first page at `pages_offset`.
    pub fn need_file(block: &RamBlock, bitmap_offset: u64, pages_offset: u64) -> Arc<FilePages> {
        block.migration().file.get_or(|| FilePages::new(block, bitmap_offset, pages_offset))
    }

    /// The pages that were placed, while a stream is received.
    pub fn received(&self) -> Option<Arc<Received>> {
        self.received.get()
    }

    /// The pages of `block` that were placed; made, without any, if no receive has begun.
    pub fn need_received(block: &RamBlock) -> Arc<Received> {
        block.migration().received.get_or(|| Received::new(block))
    }

    /// The checksums of the pages of `block`; made, of zeros, if nothing has been sent or received.
    pub fn need_checksums(block: &RamBlock) -> Arc<Checksums> {
        block.migration().checksums.get_or(|| Checksums::new(block))
    }

    /// The source's used length when it advised postcopy, if it did.
    pub fn postcopy_length(&self) -> Option<u64> {
        *self.postcopy_length.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the source's used length; `None` when the migration is over.
    pub fn set_postcopy_length(&self, length: Option<u64>) {
        *self.postcopy_length.lock().unwrap_or_else(PoisonError::into_inner) = length;
    }
}
