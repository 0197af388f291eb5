//! Plugged RAM gets another size while the guest runs.
//!
//! ```text
//!   grow     limit? place free? ─▶ the block ─▶ its mapping       vCPUs see it from their next safe point
//!   shrink   its mapping ─▶ every vCPU has answered ─▶ the block ─▶ the tail goes back to the host          (RAM-1)
//! ```

use std::sync::Arc;
use std::time::Duration;

use notdirty_core::{PAGE_SIZE, RamBlock, RamError};
use notdirty_softmmu::{MapError, RegionId};

use super::{Memory, PlugError, Plugged, UnplugError};

/// RAM that keeps its size.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResizeError {
    /// It is not there, or another caller works on it, or (to shrink) it is mapped twice or a vCPU did not let go in time.
    #[error(transparent)]
    InUse(#[from] UnplugError),
    /// There may not be so much of it there.
    #[error(transparent)]
    Refused(#[from] PlugError),
}

impl From<RamError> for ResizeError {
    fn from(why: RamError) -> Self {
        ResizeError::Refused(why.into())
    }
}

impl From<MapError> for ResizeError {
    fn from(why: MapError) -> Self {
        ResizeError::Refused(why.into())
    }
}

impl Memory {
    /// Gives plugged RAM another size, up to its [`max_size`](super::PlugSpec::max_size). What comes is zero and seen by
    /// every vCPU from its next safe point. What is cut off goes back to the host when every vCPU has let go, for which
    /// this waits at most `timeout`; should the host refuse it, it comes back with its old bytes if the RAM grows again. On
    /// an error the RAM is as it was.
    ///
    /// # Errors
    /// [`ResizeError::InUse`]: not plugged, in use by another call, mapped twice, or no answer in time; [`ResizeError::Refused`]: `size` is no
    /// multiple of a page, over the `max_size` or the machine's maximum, or the place above is taken.
    pub fn resize(&self, plugged: &Plugged, size: u64, timeout: Duration) -> Result<(), ResizeError> {
        let (block, region) = self.borrow(plugged)?;
        let old = block.used_length();
        // In front of the space's end, or the map refuses.
        let grown = plugged.base.checked_add(old).zip(size.checked_sub(old + 1));
        let place = grown.and_then(|(first, more)| Some((first, first.checked_add(more)?)));
        let booked = self.book(place, old, size);
        let done = match booked {
            // An odd length is refused by the block, before the map hears of it.
            Ok(_) if size < old && size.is_multiple_of(PAGE_SIZE) => self.shrink(&block, region, size, timeout),
            Ok(_) => self.grow(&block, region, size),
            Err(_) => Ok(()),
        };
        let mut dimms = self.dimms();
        if let Ok(more) = booked {
            dimms.bytes -= more;
            // No two that are coming meet, so it is the one of this call.
            dimms.coming.retain(|coming| Some(*coming) != place);
        }
        if let Some(dimm) = dimms.find(plugged) {
            dimm.busy = false;
            let now = block.used_length();
            let was = core::mem::replace(&mut dimm.counted, now);
            dimms.bytes = dimms.bytes - was + now;
        }
        drop(dimms);
        booked.and(done)
    }

    /// Counts what is to come on top of `old`, if there may be so much and its place is free, and takes that.
    fn book(&self, place: Option<(u64, u64)>, old: u64, size: u64) -> Result<u64, ResizeError> {
        let Some(more) = size.checked_sub(old).filter(|more| *more != 0) else { return Ok(0) };
        let mut dimms = self.dimms();
        self.may_grow(&dimms, more)?;
        if let Some((first, last)) = place {
            self.is_free(&dimms, first, more, last)?;
            dimms.coming.push((first, last));
        }
        dimms.bytes += more;
        Ok(more)
    }

    fn grow(&self, block: &Arc<RamBlock>, region: RegionId, size: u64) -> Result<(), ResizeError> {
        let (space, old) = (&self.0.space, block.used_length());
        space.ram().resize(block, size)?;
        if let Err(why) = space.resize_mapping(region, size) {
            // It was as long before, and no reader has seen the rest.
            let _ = space.ram().resize(block, old);
            return Err(why.into());
        }
        Ok(())
    }

    fn shrink(&self, block: &Arc<RamBlock>, region: RegionId, size: u64, timeout: Duration) -> Result<(), ResizeError> {
        let (space, old) = (&self.0.space, block.used_length());
        if space.times_mapped(block) > 1 {
            return Err(UnplugError::Busy.into());
        }
        let done = match space.resize_mapping(region, size)?.wait(Some(timeout)) {
            true => space.ram().resize(block, size).map_err(ResizeError::from),
            false => Err(UnplugError::Timeout.into()),
        };
        if done.is_ok() {
            // If the host does not take it back, it stays, out of sight.
            let _ = space.ram().release_tail(block);
        } else {
            // It was there a moment ago.
            let _ = space.resize_mapping(region, old);
        }
        done
    }
}
