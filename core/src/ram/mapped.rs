//! Where guests reach a block: how often it is mapped, and how far.
//!
//! ```text
//!   RamBlock.mapped   ends {0x4000: 1, 0x8000: 2}   limit 0x8000      a mapping ends at or below the limit
//!     leave           refused while there is a mapping; from then on there are none
//!     shrink          refused below the greatest end; lowers the limit before the length, and puts it back if that fails
//! ```
//!
//! Keeps its part of RAM-1: memory that a guest reaches is neither removed nor cut off. The limit and the ends have one lock, so a
//! mapping that comes beside a shrink is refused, or refuses it.

use super::RamError;
use super::block::RamBlock;
use crate::sync::{Mutex, lock};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The mappings of one block.
pub(super) struct Mapped(Mutex<State>);

struct State {
    /// How many mappings end there.
    ends: BTreeMap<u64, u64>,
    /// The used length, or what it is about to be.
    limit: u64,
    /// The block has left its list, or is about to.
    left: bool,
}

impl State {
    fn remove(&mut self, end: u64) {
        if let Some(times) = self.ends.get_mut(&end) {
            *times -= 1;
            if *times == 0 {
                self.ends.remove(&end);
            }
        }
    }
}

impl Mapped {
    pub(super) fn new(limit: u64) -> Self {
        Self(Mutex::new(State { ends: BTreeMap::new(), limit, left: false }))
    }

    pub(super) fn leave(&self, idstr: &str) -> Result<Leaving<'_>, RamError> {
        let mut state = lock(&self.0);
        if !state.ends.is_empty() {
            return Err(RamError::Mapped { idstr: idstr.to_owned(), times: state.ends.values().sum() });
        }
        state.left = true;
        Ok(Leaving(self))
    }

    pub(super) fn shrink(&self, idstr: &str, length: u64) -> Result<Shrinking<'_>, RamError> {
        let mut state = lock(&self.0);
        match state.ends.last_key_value() {
            Some((&end, _)) if end > length => Err(RamError::MappedBeyond { idstr: idstr.to_owned(), length, end }),
            _ => Ok(Shrinking { mapped: self, old: core::mem::replace(&mut state.limit, length) }),
        }
    }

    /// The block is in its list again.
    pub(super) fn back(&self) {
        lock(&self.0).left = false;
    }

    /// The block has so much memory now.
    pub(super) fn grown(&self, length: u64) {
        lock(&self.0).limit = length;
    }
}

/// A block that leaves its list, unless this is dropped before it [has](Self::gone).
pub(super) struct Leaving<'b>(&'b Mapped);

impl Leaving<'_> {
    pub(super) fn gone(self) {
        core::mem::forget(self);
    }
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        lock(&self.0.0).left = false;
    }
}

/// A block that becomes shorter, unless this is dropped before it [is](Self::done).
pub(super) struct Shrinking<'b> {
    mapped: &'b Mapped,
    old: u64,
}

impl Shrinking<'_> {
    pub(super) fn done(self) {
        core::mem::forget(self);
    }
}

impl Drop for Shrinking<'_> {
    fn drop(&mut self) {
        lock(&self.mapped.0).limit = self.old;
    }
}

/// Why a block is not mapped so.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MappingError {
    /// The block has left its list: no log would hear of stores to it.
    #[error("the RAM block has left its list")]
    NotInList,
    /// There is no memory there.
    #[error("the RAM block has {used:#x} bytes of memory")]
    Beyond {
        /// The block's used length.
        used: u64,
    },
}

/// A mapping of a block to where a guest reaches it: as long as this lives, the block does not leave its list, and is not shrunk
/// below the mapping's end.
#[derive(Debug)]
pub struct RamMapping {
    block: Arc<RamBlock>,
    off: u64,
    end: u64,
}

impl RamMapping {
    pub(super) fn new(block: &Arc<RamBlock>, off: u64, len: u64) -> Result<Self, MappingError> {
        // It ends at 0 for now, which is below every limit.
        let mut state = lock(&block.mapped().0);
        if state.left {
            return Err(MappingError::NotInList);
        }
        *state.ends.entry(0).or_default() += 1;
        drop(state);
        let mut new = Self { block: block.clone(), off, end: 0 };
        new.set_len(len)?;
        Ok(new)
    }

    /// The block.
    pub fn block(&self) -> &Arc<RamBlock> {
        &self.block
    }

    /// Where in the block it starts.
    pub fn off(&self) -> u64 {
        self.off
    }

    /// The mapping has another length. A longer one needs memory; after an error it is as it was.
    ///
    /// # Errors
    /// [`MappingError::Beyond`] if the block has no memory there.
    pub fn set_len(&mut self, len: u64) -> Result<(), MappingError> {
        let mut state = lock(&self.block.mapped().0);
        let Some(end) = self.off.checked_add(len).filter(|end| *end <= state.limit) else {
            return Err(MappingError::Beyond { used: state.limit });
        };
        state.remove(self.end);
        *state.ends.entry(end).or_default() += 1;
        drop(state);
        self.end = end;
        Ok(())
    }
}

impl Drop for RamMapping {
    fn drop(&mut self) {
        lock(&self.block.mapped().0).remove(self.end);
    }
}
