//! The map of one moment, and the way back to it.
//!
//! ```text
//!   save_map ─▶ SavedMap: each region, by its name
//!   leave_only   what came since is unmapped, what grew is cut ─▶ a safe point      then blocks may leave the list, and come back
//!   put_back_map what left since is mapped again, by its old name; what was cut has its length
//! ```
//!
//! In two steps, as blocks leave their list only unmapped, and come back before they are mapped (RAM-1). A region keeps its name, so
//! whatever remembers one need not hear of it. What was mapped before and is after is mapped all the time. A saved map keeps its
//! devices and its blocks, and no mapping of them.

use super::region::{Kind, MapError, Region};
use super::space::AddressSpace;
use super::{RegionId, What};
use crate::registry::Pending;
use notdirty_core::{RamMapping, drop_later};
use std::collections::HashMap;

struct SavedRegion {
    base: u64,
    last: u64,
    priority: i32,
    kind: Kind,
}

/// All regions of an address space at one moment.
pub struct SavedMap(HashMap<RegionId, SavedRegion>);

impl SavedMap {
    /// Is this region in it?
    pub fn has(&self, region: RegionId) -> bool {
        self.0.contains_key(&region)
    }
}

impl core::fmt::Debug for SavedMap {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("SavedMap").field("regions", &self.0.len()).finish_non_exhaustive()
    }
}

impl SavedRegion {
    /// Keeps the block in its list.
    fn mapping(&self) -> Result<Option<RamMapping>, MapError> {
        let Kind::Plain(What::Ram { block, off, .. }) = &self.kind else { return Ok(None) };
        let len = (self.last - self.base).saturating_add(1);
        let mapping = block.mapping(*off, len).map_err(|why| MapError::refused(why, block, *off, len))?;
        Ok(Some(mapping))
    }
}

impl AddressSpace {
    /// The regions there are now.
    pub fn save_map(&self) -> SavedMap {
        let saved = |region: &Region| {
            let Region { base, last, priority, ref kind, .. } = *region;
            SavedRegion { base, last, priority, kind: kind.clone() }
        };
        SavedMap(self.tree().all().map(|(id, region)| (id, saved(region))).collect())
    }

    /// Unmaps whatever is not in `map`, and cuts off what is longer than there. First step of the way back to a saved map: when the
    /// result is served, no vCPU reaches what is gone (RAM-1).
    #[must_use = "until it is served, a vCPU may touch that memory"]
    pub fn leave_only(&self, map: &SavedMap) -> Pending {
        let mut tree = self.tree();
        let (mut gone, mut changed) = (Vec::new(), Vec::new());
        let all: Vec<(RegionId, u64)> = tree.all().map(|(id, region)| (id, region.last)).collect();
        for (id, last) in all {
            match map.0.get(&id) {
                None => {
                    if let Ok((region, intervals)) = tree.remove(id) {
                        gone.push(region);
                        changed.extend(intervals);
                    }
                }
                // A shorter one needs nothing.
                Some(saved) if saved.last < last => {
                    changed.extend(tree.set_last(id, saved.last).unwrap_or_default());
                }
                Some(_) => {}
            }
        }
        let posted = self.publish(&tree, changed);
        drop(tree);
        for region in gone {
            drop(region.mapping);
            // Its destructor may ask for the map.
            drop_later(region.kind);
        }
        posted
    }

    /// Maps again what is in `map` and is not mapped, or not as far: the second step, once the blocks have the memory they had.
    ///
    /// # Errors
    /// [`MapError`] if a block has not; then nothing was changed.
    pub fn put_back_map(&self, map: &SavedMap) -> Result<(), MapError> {
        let mut tree = self.tree();
        // What can be refused comes first: each mapping is held, those of regions that are to become longer as well.
        let mut held = Vec::new();
        for (id, saved) in &map.0 {
            if tree.last_of(*id) != Some(saved.last) {
                held.push((*id, saved, saved.mapping()?));
            }
        }
        let mut changed = Vec::new();
        for (id, saved, mapping) in held {
            if tree.last_of(id).is_some() {
                changed.extend(tree.set_last(id, saved.last)?);
                continue;
            }
            let &SavedRegion { base, last, priority, ref kind } = saved;
            let region = Region { base, last, priority, kind: kind.clone(), mapping };
            changed.extend(tree.insert_as(id, region));
        }
        let _posted = self.publish(&tree, changed);
        Ok(())
    }
}
