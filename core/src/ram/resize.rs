//! A new used length.
//!
//! ```text
//!   grow     memory ─▶ resized(old, new) ─▶ used_length (Release) ─▶ version + 1 ─▶ all of it dirty ─▶ the block's own callback
//!   shrink   RAM-1 ─▶ before(what is cut off) ─▶ resized(old, new) ─▶ what is cut off dirty ─▶ used_length ─▶ version + 1 ─▶ the rest dirty ─▶ callback
//!            … later, once no access reaches it: release_tail ─▶ the host has its memory back
//! ```
//!
//! Only the first steps can fail, and have no effect that can be seen; so no notifier is told of a resize that does not
//! come. `used_length` is read with Acquire: a reader of a length finds its memory mapped.
//!
//! Dirty for every client but CODE: its bits say where translations are, which no resize moves. The bits of what is cut
//! off are set because a bit of 0 says that a client listens, and none listens to what is no RAM.
//!
//! Keeps its part of RAM-1: a shrink unmaps nothing. A vCPU with an old view or TLB entry stores into memory that
//! nothing reads, not into a host fault. So a caller with vCPUs first takes the tail out of the address space and waits
//! until no vCPU reaches it, shrinks, and then may call `release_tail`. A shrink below the end of a mapping is refused.

use super::RamError;
use super::block::RamBlock;
use super::list::RamList;
use super::spec::{RamFlags, check_length};
use crate::addr::{PageRange, RamAddr};
use crate::dirty::ClientMask;
use crate::rcu::pin;
use std::sync::Arc;

impl RamList {
    /// Changes the used length of a block that was made resizable, to at most its maximum length. New memory reads as
    /// zero, or as the file has it; memory that an earlier shrink cut off has its old bytes, unless it was
    /// [released](Self::release_tail). The whole block counts as written. Memory that is mapped is not cut off. An error has
    /// changed nothing.
    ///
    /// # Errors
    /// [`RamError::NotResizable`]; [`RamError::OddLength`] and [`RamError::UsedOverMax`] for the length;
    /// [`RamError::MappedBeyond`] if a mapping reaches further: shorten it first, and wait. [`RamError::NotInList`],
    /// [`RamError::Busy`], [`RamError::Pinned`], [`RamError::Host`]. [`RamError::Missing`]: it has the length, and the host did not take back what
    /// had been in memory that is yet to come.
    pub fn resize(&self, block: &Arc<RamBlock>, length: u64) -> Result<(), RamError> {
        if !block.flags().contains(RamFlags::RESIZABLE) {
            return Err(RamError::NotResizable { idstr: block.idstr().to_owned() });
        }
        check_length(block.idstr(), "used length", length, block.max_length())?;
        let _change = self.begin_change(block)?; // from here on the length is ours
        let old = block.used_length();
        if length == old {
            return Ok(());
        }
        let mut shrinking = None;
        if length > old {
            block.commit(length)?;
        } else {
            shrinking = Some(block.shrink(length)?);
            // What is cut off is lost, when its memory is given back at the latest.
            self.before(RamAddr::new(block.offset().get() + length), old - length)?;
        }
        self.notifiers().tell(|notifier| notifier.resized(block, old, length));
        let set = |from: u64, to: u64| {
            let start = RamAddr::new(block.offset().get() + from);
            self.dirty().set(PageRange::of_bytes(start, to.saturating_sub(from)), ClientMask::ALL, &pin());
        };
        set(length, old);
        block.publish_length(length);
        match shrinking {
            Some(shrinking) => shrinking.done(),
            None => block.mapped().grown(length),
        }
        self.next_version(); // logs remember how long blocks are
        // After the publication: a taker that has seen the new length and took a bit before this gets it once more.
        set(0, length);
        // A block that is yet to come is as long as it is here.
        let followed = self.missing().map_or(Ok(()), |missing| missing.follow_length(block));
        block.call_resized();
        Ok(followed?)
    }

    /// Gives the memory above the used length back to the host, where an earlier length had some. It comes after all
    /// views and TLBs dropped it: a vCPU that still reached it would find zeros, and lose what it stores.
    ///
    /// # Errors
    /// [`RamError::NotInList`], [`RamError::Busy`], [`RamError::Host`].
    pub fn release_tail(&self, block: &Arc<RamBlock>) -> Result<(), RamError> {
        let _change = self.begin_change(block)?; // no block grows into it meanwhile
        let done = block.discard_tail();
        // Also where the host refused: a part may be gone.
        let used = block.used_length();
        self.dirty().note_others(RamAddr::new(block.offset().get() + used), block.max_length() - used);
        done
    }
}
