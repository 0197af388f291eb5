//! The machine's memory as a handle for other threads: read, write, plug, unplug, resize while vCPUs run.
//!
//! ```text
//!   plug     limit? place free? ─▶ RamList::add ─▶ map (vCPUs take the view at their next safe point)
//!   unplug   Here ─▶ Leaving: mapped once? unmap ─▶ every vCPU has answered ─▶ RamList::remove ─▶ gone
//!              ▲                                         │ time ran out
//!              └──────────── map again ◀─────────────────┘
//! ```
//!
//! Keeps the caller's part of RAM-1: a block leaves the list only when no vCPU has an entry, a translation or a view of
//! it. What else may hold it (a host access in flight, a harvest) holds its ram_addr too, and with that its dirty bits
//! and code lines: the next block there finds nothing of it.
//!
//! No lock is held while `unplug` waits, so a device may plug on a vCPU's thread. It cannot unplug there: the vCPU that
//! waits for itself runs into the time limit. Nor is one held while the map or the list changes: that calls whoever
//! is told of blocks, and destructors of devices that have left the map, and each of them may ask here.

mod resize;
mod saved;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use notdirty_core::{
    MissingError, MissingPages, PAGE_SIZE, PageSource, RamBlock, RamBlockSpec, RamError, RamFlags, pin,
};
use notdirty_softmmu::{AccessError, AddressSpace, GuestPhys, MapError, RegionId};

use super::RAM_BASE;
use super::builder::PHYS_END;
use super::leave::MigrationDoor;
pub use resize::ResizeError;
pub use saved::RemapError;
pub(super) use saved::SavedMemory;

/// RAM that cannot be plugged. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlugError {
    /// The machine was built for less.
    #[error("{asked:#x} more bytes of RAM: the machine has {present:#x} and may have {max:#x}")]
    Limit {
        /// Bytes that were to come.
        asked: u64,
        /// Bytes there are.
        present: u64,
        /// Bytes there may be.
        max: u64,
    },
    /// Not whole pages.
    #[error("{size:#x} bytes of RAM at {base}: both must be multiples of {PAGE_SIZE}")]
    Unaligned {
        /// Where the RAM was to be.
        base: GuestPhys,
        /// How much.
        size: u64,
    },
    /// No hart reaches that far.
    #[error("{size:#x} bytes of RAM at {base} run past the end of the address space at {PHYS_END:#x}")]
    BeyondEnd {
        /// Where the RAM was to be.
        base: GuestPhys,
        /// How much.
        size: u64,
    },
    /// Something is there already.
    #[error("{size:#x} bytes of RAM at {base}: something is at {at}")]
    Taken {
        /// Where the RAM was to be.
        base: GuestPhys,
        /// How much.
        size: u64,
        /// The first address that is taken.
        at: GuestPhys,
    },
    /// The RAM is not, or no longer, plugged in this machine, or about to leave it.
    #[error("the RAM is not plugged")]
    NotPlugged,
    /// The machine is leaving: its RAM stays as it is until that has ended.
    #[error("the machine is migrating: its RAM cannot change now")]
    Migrating,
    /// The host gives none, or the size is odd.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// It does not fit on the bus.
    #[error(transparent)]
    Map(#[from] MapError),
}

/// RAM that stays: after one of these it is where it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnplugError {
    /// The RAM is not, or no longer, plugged in this machine.
    #[error("the RAM is not plugged")]
    NotPlugged,
    /// It is mapped at a second address, or another call unplugs or resizes it at this moment.
    #[error("the RAM is in use: mapped elsewhere, or being unplugged or resized")]
    Busy,
    /// The machine is leaving: its RAM stays as it is until that has ended.
    #[error("the machine is migrating: its RAM cannot change now")]
    Migrating,
    /// A vCPU did not come to a safe point. Some vCPUs may have seen a hole for a while.
    #[error("timed out waiting for a vCPU to release the RAM")]
    Timeout,
}

/// What plugged RAM is like, where it is not like the rest.
#[derive(Debug, Clone, Copy, Default)]
#[must_use = "a spec is nothing until it is given to Memory::plug"]
pub struct PlugSpec {
    max_size: Option<u64>,
    shared: bool,
}

impl PlugSpec {
    /// Reserves room to grow to this size; without this, just the size.
    pub fn max_size(mut self, bytes: u64) -> Self {
        self.max_size = Some(bytes);
        self
    }

    /// Backed by a memfd.
    pub fn shared(mut self, on: bool) -> Self {
        self.shared = on;
        self
    }
}

/// Names RAM that was plugged. It keeps nothing alive; a copy is as good as the original.
#[derive(Debug, Clone)]
pub struct Plugged {
    base: u64,
    /// Its address is not used again as long as this lives, so no other block gets this name.
    block: Weak<RamBlock>,
}

impl Plugged {
    /// Where it is.
    pub fn base(&self) -> GuestPhys {
        GuestPhys::new(self.base)
    }
}

/// RAM of a machine, as it was when it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RamInfo {
    /// The block's name.
    pub name: String,
    /// Where the guest sees it.
    pub base: GuestPhys,
    /// How much.
    pub size: u64,
    /// How large it may become.
    pub max_size: u64,
    /// Where its pages are counted in dirty memory.
    pub offset: notdirty_core::RamAddr,
}

impl RamInfo {
    fn of(base: u64, block: &RamBlock) -> RamInfo {
        RamInfo {
            name: block.idstr().to_owned(),
            base: GuestPhys::new(base),
            size: block.used_length(),
            max_size: block.max_length(),
            offset: block.offset(),
        }
    }
}

/// A plugged block and its place.
struct Dimm {
    block: Arc<RamBlock>,
    region: RegionId,
    /// Its share of [`Dimms::bytes`]: the block may be resized from elsewhere.
    counted: u64,
    /// A call works on it without the lock.
    busy: bool,
}

/// All that is plugged.
#[derive(Default)]
struct Dimms {
    by_base: BTreeMap<u64, Dimm>,
    /// First and last address of what is being plugged without the lock.
    coming: Vec<(u64, u64)>,
    /// The sum of all their sizes: ten thousand blocks are not added up for each new one.
    bytes: u64,
}

/// Why RAM was not taken out, and whether it has to be mapped again.
#[derive(Clone, Copy)]
struct Stays {
    why: UnplugError,
    unmapped: bool,
}

struct Shared {
    space: Arc<AddressSpace>,
    boot: Arc<RamBlock>,
    max: u64,
    dimms: Mutex<Dimms>,
    migration: Arc<MigrationDoor>,
}

/// A machine's memory, for any thread, while the machine runs or stands still.
///
/// ```
/// use notdirty::{Machine, PlugSpec};
/// use std::time::Duration;
///
/// let machine = Machine::builder().max_ram(1 << 30).build()?;
/// let memory = machine.memory();
/// let dimm = memory.plug("dimm0", 0x1_0000_0000, 64 << 20, PlugSpec::default())?;
/// memory.write(0x1_0000_0000, b"hello")?;
/// assert!(memory.plug("dimm1", 0x1_0000_1000, 4096, PlugSpec::default()).is_err(), "something is there");
/// memory.unplug(&dimm, Duration::from_secs(1))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Memory(Arc<Shared>);

// Handed to timers, device threads and embedders.
const _: () = {
    const fn shared<T: Clone + Send + Sync>() {}
    shared::<Memory>();
};

impl Memory {
    /// Of a machine with this boot RAM, which may have `max` bytes in all.
    pub(super) fn new(space: Arc<AddressSpace>, boot: Arc<RamBlock>, max: u64) -> Memory {
        Memory(Arc::new(Shared { space, boot, max, dimms: Mutex::default(), migration: Arc::default() }))
    }

    /// The machine's, which this memory is of.
    pub(super) fn migration(&self) -> &Arc<MigrationDoor> {
        &self.0.migration
    }

    fn dimms(&self) -> MutexGuard<'_, Dimms> {
        // Nothing panics between a change of the table and that of the sum.
        self.0.dimms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads guest memory.
    ///
    /// # Errors
    /// [`AccessError`] with the first address that fails; `into` may be filled in part.
    pub fn read(&self, addr: u64, into: &mut [u8]) -> Result<(), AccessError> {
        self.0.space.read(GuestPhys::new(addr), into)
    }

    /// Writes guest memory, as a device would by DMA: the bytes, then the dirty marks and the word to every vCPU to
    /// drop code that lay there. A vCPU hears of it at its next safe point, or `fence.i`.
    ///
    /// # Errors
    /// [`AccessError`] with the first address that fails. Of bytes that are not all mapped, none is written.
    pub fn write(&self, addr: u64, from: &[u8]) -> Result<(), AccessError> {
        self.0.space.write(GuestPhys::new(addr), from)
    }

    /// All RAM that goes along when the machine moves is yet to come, and `source` is asked for what harts, devices and host accesses need of it:
    /// see [`MissingPages`], which begins by gathering. Of a machine that does not run.
    ///
    /// # Errors
    /// As of [`RamList::set_missing`](notdirty_core::RamList::set_missing).
    pub fn set_missing(&self, source: Arc<dyn PageSource>) -> Result<Arc<MissingPages>, MissingError> {
        let space = &self.0.space;
        let blocks: Vec<_> = space.ram().blocks(&pin()).cloned().collect();
        let moves = |block: &Arc<RamBlock>| block.flags().contains(RamFlags::MIGRATABLE);
        let pages = space.ram().set_missing(source, blocks.into_iter().filter(moves))?;
        pages.set_vcpus(space.vcpus().all().len() as u32);
        Ok(pages)
    }

    /// How fast RAM becomes dirty, watched for so long; from any thread but a hart's.
    ///
    /// # Errors
    /// [`RateError`](notdirty_core::migration::RateError): there are too many logs, or a hart does not answer.
    pub fn dirty_rate(
        &self,
        by: notdirty_core::migration::RateBy,
        period: Duration,
    ) -> Result<notdirty_core::migration::DirtyRate, notdirty_core::migration::RateError> {
        notdirty_core::migration::dirty_rate(self.0.space.ram(), by, period)
    }

    /// The RAM there is, boot RAM first.
    pub fn blocks(&self) -> Vec<RamInfo> {
        let boot = RamInfo::of(RAM_BASE, &self.0.boot);
        std::iter::once(boot)
            .chain(self.dimms().by_base.iter().map(|(base, dimm)| RamInfo::of(*base, &dimm.block)))
            .collect()
    }

    /// Bytes of RAM that there may be, boot RAM included.
    pub fn max_ram(&self) -> u64 {
        self.0.max
    }

    /// Could [`plug`](Self::plug) do this now, as far as is known without asking the host? Nothing changes.
    ///
    /// # Errors
    /// [`PlugError`], as from [`plug`](Self::plug).
    pub fn check_plug(&self, base: u64, size: u64) -> Result<(), PlugError> {
        if size == 0 || !size.is_multiple_of(PAGE_SIZE) || !base.is_multiple_of(PAGE_SIZE) {
            return Err(PlugError::Unaligned { base: GuestPhys::new(base), size });
        }
        let end = base.checked_add(size).filter(|&end| end <= PHYS_END);
        let end = end.ok_or(PlugError::BeyondEnd { base: GuestPhys::new(base), size })?;
        let dimms = self.dimms();
        self.may_grow(&dimms, size)?;
        self.is_free(&dimms, base, size, end - 1)
    }

    /// Puts `size` bytes of zeroed RAM at `base`, where nothing may be. Every vCPU sees them from its next safe point.
    ///
    /// # Errors
    /// [`PlugError`]: `base` or `size` (bytes) is no multiple of a page, the place is taken or past the end of the address space, the
    /// machine may not have so much, there is RAM of this name, or the host gives none. Nothing was changed.
    pub fn plug(&self, name: &str, base: u64, size: u64, spec: PlugSpec) -> Result<Plugged, PlugError> {
        if !base.is_multiple_of(PAGE_SIZE) {
            return Err(PlugError::Unaligned { base: GuestPhys::new(base), size });
        }
        let last = size.checked_sub(1).and_then(|more| base.checked_add(more));
        {
            let mut dimms = self.dimms();
            // With the lock: a migration waits for what has begun (`is_settled`).
            if self.0.migration.is_under_way() {
                return Err(PlugError::Migrating);
            }
            self.may_grow(&dimms, size)?;
            // No bytes, or too many: refused by the call that asks for them.
            if let Some(last) = last {
                self.is_free(&dimms, base, size, last)?;
                dimms.coming.push((base, last));
            }
            dimms.bytes += size;
        }
        let made = self.make(name, base, size, spec);
        let mut dimms = self.dimms();
        // No two that are coming meet, so it is the one of this call.
        dimms.coming.retain(|coming| Some(*coming) != last.map(|last| (base, last)));
        match made {
            Ok(dimm) => {
                log::debug!("RAM {name}: {size:#x} bytes are plugged at {base:#x}");
                let plugged = Plugged { base, block: Arc::downgrade(&dimm.block) };
                dimms.by_base.insert(base, dimm);
                Ok(plugged)
            }
            Err(why) => {
                dimms.bytes -= size;
                Err(why)
            }
        }
    }

    /// A block, mapped. No lock is held.
    fn make(&self, name: &str, base: u64, size: u64, spec: PlugSpec) -> Result<Dimm, PlugError> {
        let space = &self.0.space;
        let mut block = RamBlockSpec::new(name, size).shared(spec.shared);
        if let Some(max) = spec.max_size {
            block = block.max_length(max).resizable(true);
        }
        let block = space.ram().add(block)?;
        match space.map_ram(GuestPhys::new(base), &block, 0, size, 0) {
            Ok(region) => Ok(Dimm { block, region, counted: size, busy: false }),
            Err(e) => {
                // It was in the list a moment ago, and no other caller has it.
                let _ = space.ram().remove(&block);
                Err(e.into())
            }
        }
    }

    /// Takes RAM away: from then on the guest gets access faults there, and the memory goes back to the host. Waits until
    /// every vCPU has let go, at most `timeout`; a vCPU that is not running does not hold it. On an error the RAM stays.
    ///
    /// # Errors
    /// [`UnplugError`]: not plugged (any more), mapped at a second address, in use by another call, or no answer in time.
    pub fn unplug(&self, plugged: &Plugged, timeout: Duration) -> Result<(), UnplugError> {
        let (block, region) = self.borrow(plugged)?;
        let done = self.take_out(&block, region, timeout);
        // It fitted a moment ago. If it does not now, the next `unplug` finds the region gone and goes on.
        let again = match done {
            Err(Stays { unmapped: true, .. }) => {
                self.0.space.map_ram(plugged.base(), &block, 0, block.used_length(), 0).ok()
            }
            _ => None,
        };
        let mut dimms = self.dimms();
        // Nobody takes out what is busy.
        let dimm = dimms.find(plugged).ok_or(UnplugError::NotPlugged)?;
        dimm.busy = false;
        dimm.region = again.unwrap_or(dimm.region);
        match done {
            Ok(()) => {
                log::debug!("RAM at {}: {:#x} bytes are unplugged", plugged.base(), dimm.counted);
                dimms.bytes -= dimm.counted;
                dimms.by_base.remove(&plugged.base);
                Ok(())
            }
            Err(Stays { why, .. }) => Err(why),
        }
    }

    /// Is no RAM being plugged, unplugged or resized? Then none is, as long as a migration is under way.
    pub(super) fn is_settled(&self) -> bool {
        let dimms = self.dimms();
        dimms.coming.is_empty() && !dimms.by_base.values().any(|dimm| dimm.busy)
    }

    /// Plugged RAM, to work on it without the lock; it is busy from here on.
    fn borrow(&self, plugged: &Plugged) -> Result<(Arc<RamBlock>, RegionId), UnplugError> {
        let mut dimms = self.dimms();
        if self.0.migration.is_under_way() {
            return Err(UnplugError::Migrating);
        }
        let dimm = dimms.find(plugged).ok_or(UnplugError::NotPlugged)?;
        match core::mem::replace(&mut dimm.busy, true) {
            true => Err(UnplugError::Busy),
            false => Ok((dimm.block.clone(), dimm.region)),
        }
    }

    /// Out of the map, every vCPU, and the list (RAM-1).
    fn take_out(&self, block: &Arc<RamBlock>, region: RegionId, timeout: Duration) -> Result<(), Stays> {
        let space = &self.0.space;
        let pending = match space.unmap_last(region) {
            Ok(pending) => pending,
            // Somebody took the region away by itself. Whoever answers what is posted now has acted on that, too.
            Err(MapError::UnknownRegion(_)) if space.times_mapped(block) == 0 => space.safe_point(),
            Err(_) => return Err(Stays { why: UnplugError::Busy, unmapped: false }),
        };
        if !pending.wait(Some(timeout)) {
            return Err(Stays { why: UnplugError::Timeout, unmapped: true });
        }
        match space.ram().remove(block) {
            // If another caller took it out of the list, it is out.
            Ok(()) | Err(RamError::NotInList { .. }) => Ok(()),
            // Somebody changes the block at this moment.
            Err(_) => Err(Stays { why: UnplugError::Busy, unmapped: true }),
        }
    }

    /// Shows plugged RAM at a second address. It cannot be unplugged until that is unmapped.
    pub(super) fn map_again(&self, plugged: &Plugged, base: u64) -> Result<RegionId, PlugError> {
        let (block, _) = self.borrow(plugged).map_err(|_| PlugError::NotPlugged)?;
        let mapped = self.0.space.map_ram(GuestPhys::new(base), &block, 0, block.used_length(), 0);
        if let Some(dimm) = self.dimms().find(plugged) {
            dimm.busy = false;
        }
        Ok(mapped?)
    }

    fn may_grow(&self, dimms: &Dimms, asked: u64) -> Result<(), PlugError> {
        let present = self.0.boot.used_length() + dimms.bytes;
        match present.checked_add(asked) {
            Some(sum) if sum <= self.0.max => Ok(()),
            _ => Err(PlugError::Limit { asked, present, max: self.0.max }),
        }
    }

    /// Is nothing in the `size` bytes from `base` to `last`? The place of RAM that is about to leave is taken: it may come
    /// back. So is that of RAM which is coming.
    fn is_free(&self, dimms: &Dimms, base: u64, size: u64, last: u64) -> Result<(), PlugError> {
        let leaving = dimms
            .by_base
            .range(..=last)
            .next_back()
            .filter(|(at, dimm)| dimm.busy && at.saturating_add(dimm.block.used_length() - 1) >= base);
        let coming = dimms.coming.iter().find(|coming| coming.0 <= last && base <= coming.1);
        let leaving = leaving.map(|(at, _)| *at).or(coming.map(|coming| coming.0));
        let leaving = leaving.map(|at| GuestPhys::new(base.max(at)));
        let base = GuestPhys::new(base);
        match leaving.or_else(|| self.0.space.snapshot().first_in(base, GuestPhys::new(last))) {
            Some(at) => Err(PlugError::Taken { base, size, at }),
            None => Ok(()),
        }
    }
}

impl Dimms {
    /// The RAM that `plugged` names, if it is there.
    fn find(&mut self, plugged: &Plugged) -> Option<&mut Dimm> {
        let dimm = self.by_base.get_mut(&plugged.base)?;
        std::ptr::eq(Arc::as_ptr(&dimm.block), plugged.block.as_ptr()).then_some(dimm)
    }
}
