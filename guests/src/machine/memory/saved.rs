//! Plugged RAM of one moment, and the way back to it: what a checkpoint keeps of the map and of the list of RAM.
//!
//! ```text
//!   open    unmap what came since ─▶ every vCPU has answered ─▶ what left is in the list again, what shrank is as long as it was
//!              (here bytes are put back: all blocks of both moments have their memory)
//!   close   what came since leaves the list, what grew shrinks, and its tail goes back to the host ─▶ map ─▶ the table of plugged RAM
//! ```
//!
//! RAM that was unplugged comes back as the block that it was, at its place in the space of all RAM: so who named it names it still, and
//! deltas mean the same lines. A checkpoint keeps such blocks, with their memory. While this goes on the table is all taken and all busy, so
//! no other call changes it; its lock is not held meanwhile (see [`super`]).

use std::sync::Arc;

use notdirty_core::{RamBlock, RamError, pin};
use notdirty_softmmu::{MapError, RegionId, SavedMap};

use super::{Dimm, Memory};

/// The map could not be made what it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemapError {
    /// Another call plugs, unplugs or resizes RAM at this moment. Nothing was changed.
    #[error("RAM is being plugged, unplugged or resized")]
    Busy,
    /// The machine is leaving: its RAM stays as it is until that has ended. Nothing was changed.
    #[error("the machine is migrating: its RAM cannot change now")]
    Migrating,
    /// A vCPU that is not of the machine did not come to a safe point. What came since is unmapped, and nothing else changed.
    #[error("a vCPU did not release the RAM")]
    Held,
    /// A block was changed by its embedder so that it cannot come back, or leave, or the host has no memory.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// The same of the map.
    #[error(transparent)]
    Map(#[from] MapError),
}

/// Where RAM is, and how much.
pub(in super::super) struct SavedMemory {
    map: SavedMap,
    blocks: Vec<(Arc<RamBlock>, u64)>,
    dimms: Vec<(u64, Arc<RamBlock>, RegionId)>,
}

impl SavedMemory {
    /// All blocks, and how long they were.
    pub(in super::super) fn blocks(&self) -> &[(Arc<RamBlock>, u64)] {
        &self.blocks
    }

    fn length(&self, block: &Arc<RamBlock>) -> Option<u64> {
        self.blocks.iter().find(|(other, _)| Arc::ptr_eq(other, block)).map(|(_, length)| *length)
    }
}

/// The table of plugged RAM, taken.
pub(in super::super) struct Opened<'m>(&'m Memory);

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        let mut dimms = self.0.dimms();
        dimms.coming.clear();
        dimms.by_base.values_mut().for_each(|dimm| dimm.busy = false);
    }
}

impl Memory {
    /// The moment.
    pub(in super::super) fn save(&self) -> SavedMemory {
        let space = &self.0.space;
        let blocks = space.ram().blocks(&pin()).map(|block| (block.clone(), block.used_length())).collect();
        let dimms = self.dimms().by_base.iter().map(|(base, dimm)| (*base, dimm.block.clone(), dimm.region)).collect();
        SavedMemory { map: space.save_map(), blocks, dimms }
    }

    /// First half of the way back: all RAM of `to` has memory, and nothing that `to` has not is mapped. All harts are parked.
    pub(in super::super) fn open(&self, to: &SavedMemory) -> Result<Opened<'_>, RemapError> {
        if self.0.migration.is_under_way() {
            return Err(RemapError::Migrating);
        }
        {
            let mut dimms = self.dimms();
            if !dimms.coming.is_empty() || dimms.by_base.values().any(|dimm| dimm.busy) {
                return Err(RemapError::Busy);
            }
            dimms.coming.push((0, u64::MAX));
            dimms.by_base.values_mut().for_each(|dimm| dimm.busy = true);
        }
        let opened = Opened(self);
        let space = &self.0.space;
        if !space.leave_only(&to.map).wait(Some(std::time::Duration::from_secs(10))) {
            return Err(RemapError::Held);
        }
        let list = space.ram();
        // First, as a block that came since may have the name of one that left.
        for block in self.surplus(to) {
            list.remove(&block)?;
        }
        for (block, length) in &to.blocks {
            list.put_back(block)?;
            if block.used_length() < *length {
                list.resize(block, *length)?;
            }
        }
        Ok(opened)
    }

    /// Blocks that `to` has not.
    fn surplus(&self, to: &SavedMemory) -> Vec<Arc<RamBlock>> {
        let list = self.0.space.ram();
        list.blocks(&pin()).filter(|block| to.length(block).is_none()).cloned().collect()
    }
}

impl Opened<'_> {
    /// Second half: the bytes are those of `to`.
    pub(in super::super) fn close(self, to: &SavedMemory) -> Result<(), RemapError> {
        let shared = &self.0.0;
        let (space, list) = (&shared.space, shared.space.ram());
        for (block, length) in &to.blocks {
            if block.used_length() > *length {
                list.resize(block, *length)?;
                // If the host does not take it back, it is zero all the same: so the image has it.
                let _ = list.release_tail(block);
            }
        }
        space.put_back_map(&to.map)?;
        let mut dimms = self.0.dimms();
        let dimm = |(base, block, region): &(u64, Arc<RamBlock>, RegionId)| {
            (*base, Dimm { block: block.clone(), region: *region, counted: block.used_length(), busy: true })
        };
        dimms.by_base = to.dimms.iter().map(dimm).collect();
        dimms.bytes = dimms.by_base.values().map(|dimm| dimm.counted).sum();
        Ok(())
    }
}
