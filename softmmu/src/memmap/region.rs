//! Regions as they were mapped, and rendering: which region wins where.
//!
//! Higher priority wins; among equals the later one. An alias shows what is visible at its target, holes included:
//! through a hole the next priority is seen. Aliases of aliases are followed four deep.

use super::flat_view::{FlatRange, What};
use crate::addr::GuestPhys;
use notdirty_core::{MappingError, RamBlock, RamMapping};
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How deep aliases of aliases are followed; past it an alias shows nothing. Keeps cycles finite.
const ALIAS_DEPTH: u32 = 4;

/// Names a mapping, to unmap it. No two of a process share one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RegionId(u64);

/// A mapping that cannot be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// Nothing to map.
    #[error("a region at {base} has no bytes")]
    Empty {
        /// Where.
        base: GuestPhys,
    },
    /// The region or its target runs past the end of the address space.
    #[error("{len:#x} bytes at {base} run past the end of the address space")]
    Wraps {
        /// Where.
        base: GuestPhys,
        /// How many.
        len: u64,
    },
    /// More bytes than the block has.
    #[error("bytes {off:#x} to {off:#x}+{len:#x} of RAM block {block} do not exist, it has {used:#x}")]
    BeyondBlock {
        /// The block's idstr.
        block: String,
        /// Offset in the block.
        off: u64,
        /// How many.
        len: u64,
        /// The block's used length.
        used: u64,
    },
    /// The block is of another RAM list: its pages' dirty bits and code are kept there.
    #[error("RAM block {block} is of another list")]
    OtherList {
        /// The block's idstr.
        block: String,
    },
    /// The block has left its list: no log would hear of stores to it.
    #[error("RAM block {block} is not in its list any more")]
    NotInList {
        /// The block's idstr.
        block: String,
    },
    /// Guest pages and RAM pages would not coincide.
    #[error("{base} and its target {target:#x} must have the same offset in a page")]
    Misaligned {
        /// Where in the guest.
        base: GuestPhys,
        /// The offset in the block, or the alias's target.
        target: u64,
    },
    /// To take this mapping away would leave another of the same block.
    #[error("RAM block {block} is mapped {times} times: unmap the others first")]
    MappedAgain {
        /// The block's idstr.
        block: String,
        /// How often.
        times: usize,
    },
    /// No such region (any more).
    #[error("{0:?} is not mapped")]
    UnknownRegion(RegionId),
}

/// What a region is made of.
#[derive(Clone)]
pub(crate) enum Kind {
    /// RAM, ROM or a device; the offset is that of the region's first byte.
    Plain(What),
    /// A window onto another place of the same address space.
    Alias { target: u64 },
}

impl MapError {
    /// Why these bytes of a block are not mapped.
    pub(crate) fn refused(why: MappingError, block: &RamBlock, off: u64, len: u64) -> Self {
        let block = block.idstr().to_owned();
        match why {
            MappingError::Beyond { used } => Self::BeyondBlock { block, off, len, used },
            _ => Self::NotInList { block },
        }
    }
}

pub(crate) struct Region {
    pub(crate) base: u64,
    pub(crate) last: u64,
    pub(crate) priority: i32,
    pub(crate) kind: Kind,
    /// Of RAM: keeps the block in its list.
    pub(crate) mapping: Option<RamMapping>,
}

/// All regions, found by interval: sorted by base within a class of lengths, so that a query looks back no further
/// than the class's longest.
pub(crate) struct RegionTree {
    regions: BTreeMap<RegionId, Region>,
    by_class: BTreeSet<(u32, u64, RegionId)>,
    in_class: [u32; 64],
    aliases: BTreeSet<RegionId>,
    /// How often each block is mapped, by its address; a region holds its block, so no other can come to lie there.
    mapped: HashMap<usize, usize>,
}

/// Every region of class k is at most `2^(k+1)` bytes long.
fn class(region: &Region) -> u32 {
    ((region.last - region.base) | 1).ilog2()
}

/// A block's address: two blocks that live at the same time have two.
fn name_of(block: &Arc<RamBlock>) -> usize {
    Arc::as_ptr(block).addr()
}

fn intersect(a: (u64, u64), b: (u64, u64)) -> Option<(u64, u64)> {
    let (start, last) = (a.0.max(b.0), a.1.min(b.1));
    (start <= last).then_some((start, last))
}

impl RegionTree {
    /// No regions.
    pub(crate) fn new() -> Self {
        RegionTree {
            regions: BTreeMap::new(),
            by_class: BTreeSet::new(),
            in_class: [0; 64],
            aliases: BTreeSet::new(),
            mapped: HashMap::new(),
        }
    }

    /// Adds a region; the intervals that must be rendered anew.
    pub(crate) fn insert(&mut self, region: Region) -> (RegionId, Vec<(u64, u64)>) {
        /// The next one of any tree's. Nothing is ordered by it but the regions of one, which have a lock.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = RegionId(NEXT.fetch_add(1, Ordering::Relaxed));
        (id, self.insert_as(id, region))
    }

    /// Adds a region by a name that it had before; the intervals that must be rendered anew.
    pub(crate) fn insert_as(&mut self, id: RegionId, region: Region) -> Vec<(u64, u64)> {
        let class = class(&region);
        self.by_class.insert((class, region.base, id));
        self.in_class[class as usize] += 1;
        match &region.kind {
            Kind::Alias { .. } => drop(self.aliases.insert(id)),
            Kind::Plain(What::Ram { block, .. }) => *self.mapped.entry(name_of(block)).or_default() += 1,
            Kind::Plain(What::Mmio { .. }) => {}
        }
        let changed = (region.base, region.last);
        self.regions.insert(id, region);
        self.shown_at(changed)
    }

    /// All regions.
    pub(crate) fn all(&self) -> impl Iterator<Item = (RegionId, &Region)> {
        self.regions.iter().map(|(id, region)| (*id, region))
    }

    /// The last byte of a region that is there.
    pub(crate) fn last_of(&self, id: RegionId) -> Option<u64> {
        self.regions.get(&id).map(|region| region.last)
    }

    /// Removes a region; it, to be dropped without a lock, and the intervals that must be rendered anew.
    pub(crate) fn remove(&mut self, id: RegionId) -> Result<(Region, Vec<(u64, u64)>), MapError> {
        let region = self.regions.remove(&id).ok_or(MapError::UnknownRegion(id))?;
        let class = class(&region);
        self.by_class.remove(&(class, region.base, id));
        self.in_class[class as usize] -= 1;
        match &region.kind {
            Kind::Alias { .. } => drop(self.aliases.remove(&id)),
            Kind::Plain(What::Ram { block, .. }) => {
                if let Entry::Occupied(mut times) = self.mapped.entry(name_of(block)) {
                    *times.get_mut() -= 1;
                    if *times.get() == 0 {
                        times.remove();
                    }
                }
            }
            Kind::Plain(What::Mmio { .. }) => {}
        }
        let changed = self.shown_at((region.base, region.last));
        Ok((region, changed))
    }

    /// Gives a region another last byte; the intervals that must be rendered anew.
    pub(crate) fn set_last(&mut self, id: RegionId, last: u64) -> Result<Vec<(u64, u64)>, MapError> {
        let region = self.regions.get_mut(&id).ok_or(MapError::UnknownRegion(id))?;
        if let Kind::Alias { target } = region.kind
            && target.checked_add(last - region.base).is_none()
        {
            let len = (last - region.base).saturating_add(1);
            return Err(MapError::Wraps { base: GuestPhys::new(target), len });
        }
        if let Some(mapping) = &mut region.mapping {
            let len = (last - region.base).saturating_add(1);
            mapping.set_len(len).map_err(|why| MapError::refused(why, mapping.block(), mapping.off(), len))?;
        }
        let (base, old, old_class) = (region.base, region.last, class(region));
        region.last = last;
        let new_class = class(region);
        self.by_class.remove(&(old_class, base, id));
        self.in_class[old_class as usize] -= 1;
        self.by_class.insert((new_class, base, id));
        self.in_class[new_class as usize] += 1;
        match (old.min(last), old.max(last)) {
            (same, other) if same == other => Ok(Vec::new()),
            (kept, end) => Ok(self.shown_at((kept + 1, end))),
        }
    }

    /// Where a region starts.
    pub(crate) fn base_of(&self, id: RegionId) -> Result<GuestPhys, MapError> {
        self.regions.get(&id).map(|region| GuestPhys::new(region.base)).ok_or(MapError::UnknownRegion(id))
    }

    /// Refuses if the region's block is mapped a second time.
    pub(crate) fn is_only_mapping(&self, id: RegionId) -> Result<(), MapError> {
        let region = self.regions.get(&id).ok_or(MapError::UnknownRegion(id))?;
        let Kind::Plain(What::Ram { block, .. }) = &region.kind else { return Ok(()) };
        match self.times_mapped(block) {
            0 | 1 => Ok(()),
            times => Err(MapError::MappedAgain { block: block.idstr().to_owned(), times }),
        }
    }

    /// How many regions map the block.
    pub(crate) fn times_mapped(&self, block: &Arc<RamBlock>) -> usize {
        self.mapped.get(&name_of(block)).copied().unwrap_or(0)
    }

    /// The interval, and every alias that shows a part of it, directly or through another.
    fn shown_at(&self, changed: (u64, u64)) -> Vec<(u64, u64)> {
        let mut intervals = vec![changed];
        let mut left: Vec<&Region> = self.aliases.iter().filter_map(|id| self.regions.get(id)).collect();
        let mut at = 0;
        while at < intervals.len() {
            let interval = intervals[at];
            at += 1;
            left.retain(|alias| {
                let Kind::Alias { target } = alias.kind else { return false };
                let shows = intersect(interval, (target, target + (alias.last - alias.base))).is_some();
                if shows {
                    // All of it, so that each alias is looked at once.
                    intervals.push((alias.base, alias.last));
                }
                !shows
            });
        }
        intervals
    }

    fn overlapping(&self, start: u64, last: u64) -> Vec<(RegionId, &Region)> {
        let mut found = Vec::new();
        for class in (0..64).filter(|&c| self.in_class[c as usize] != 0) {
            let reach = u64::MAX >> (63 - class);
            let from = (class, start.saturating_sub(reach), RegionId(0));
            let to = (class, last, RegionId(u64::MAX));
            for (_, _, id) in self.by_class.range(from..=to) {
                if let Some(region) = self.regions.get(id).filter(|r| r.base <= last && start <= r.last) {
                    found.push((*id, region));
                }
            }
        }
        found
    }

    /// Which region is visible where in `[start, last]`, sorted.
    pub(crate) fn render(&self, start: u64, last: u64) -> Vec<FlatRange> {
        let mut out = self.render_to_depth(start, last, 0);
        out.sort_by_key(|range| range.start);
        out
    }

    fn render_to_depth(&self, start: u64, last: u64, depth: u32) -> Vec<FlatRange> {
        let mut regions = self.overlapping(start, last);
        regions.sort_by_key(|&(id, region)| core::cmp::Reverse((region.priority, id)));
        let mut out = Vec::new();
        let mut gaps = vec![(start, last)];
        for (_, region) in regions {
            let mut left = Vec::with_capacity(gaps.len() + 1);
            for gap in gaps {
                let Some(seen) = intersect(gap, (region.base, region.last)) else {
                    left.push(gap);
                    continue;
                };
                let drawn = self.draw(region, seen, depth);
                // What the region left open of the gap goes to the next priority.
                let mut from = Some(gap.0);
                for range in &drawn {
                    if let Some(open) = from.filter(|&f| f < range.start) {
                        left.push((open, range.start - 1));
                    }
                    from = range.last.checked_add(1);
                }
                if let Some(open) = from.filter(|&f| f <= gap.1) {
                    left.push((open, gap.1));
                }
                out.extend(drawn);
            }
            gaps = left;
            if gaps.is_empty() {
                break;
            }
        }
        out
    }

    /// What one region shows in `seen`, which lies inside it; sorted.
    fn draw(&self, region: &Region, seen: (u64, u64), depth: u32) -> Vec<FlatRange> {
        let into = seen.0 - region.base;
        match &region.kind {
            Kind::Plain(what) => vec![FlatRange { start: seen.0, last: seen.1, what: what.advanced(into) }],
            Kind::Alias { .. } if depth == ALIAS_DEPTH => Vec::new(),
            Kind::Alias { target } => {
                let from = target + into;
                let mut ranges = self.render_to_depth(from, from + (seen.1 - seen.0), depth + 1);
                for range in &mut ranges {
                    range.start = range.start - from + seen.0;
                    range.last = range.last - from + seen.0;
                }
                ranges.sort_by_key(|range| range.start);
                ranges
            }
        }
    }
}
