//! The address space: maps and unmaps, publishes views, and serves the host's own reads and writes.
//!
//! Keeps MARK-1 for the host API (loader, embedder, DMA, gdb): what it writes goes through the RAM list's door. A change of
//! the map publishes the view first and posts what changed second, with that view; a vCPU registers first and takes
//! its view second, so none can keep an old view unasked. Both under the tree's lock: a queue has the changes in order.

use super::flat_view::{FlatRange, FlatView, What};
use super::region::{Kind, MapError, Region, RegionId, RegionTree};
use crate::addr::GuestPhys;
use crate::mmio::{self, MmioDevice};
use crate::registry::{Pending, VcpuRegistry};
use crate::safepoint::Request;
use notdirty_core::{
    CodePages, DirtyLog, Guard, MissingError, PAGE_SIZE, PageRange, RamAddr, RamBlock, RamError, RamList, RamMapping,
    RcuCell, drop_later, pin,
};
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A host access to guest memory that did not happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AccessError {
    /// Nothing is mapped at this address.
    #[error("nothing is mapped at {addr}")]
    Unmapped {
        /// The first address without anything.
        addr: GuestPhys,
    },
    /// A device there takes no access that narrow.
    #[error("the device at {addr} takes no access of {bytes} bytes")]
    TooNarrow {
        /// Where.
        addr: GuestPhys,
        /// The width it refused.
        bytes: u64,
    },
    /// The RAM block has no memory there any more: it was shrunk since.
    #[error("the RAM block at {addr} has no memory there any more")]
    Refused {
        /// Where.
        addr: GuestPhys,
    },
    /// The RAM there is yet to come, and does not come any more.
    #[error("the RAM at {addr} is yet to come, and does not come any more")]
    Missing {
        /// Where.
        addr: GuestPhys,
    },
    /// The machine has left, and what is written here would be lost. Nothing more was written.
    #[error("the machine has left: {addr} is written no more")]
    Gone {
        /// Where.
        addr: GuestPhys,
    },
    /// A device there is being called by this thread already: it, or a device that it called, asks for itself.
    #[error("the device at {addr} calls itself")]
    Reentered {
        /// Where.
        addr: GuestPhys,
    },
    /// This thread holds an RCU guard, and the access may have to wait: see [`RamList::before`]. Nothing was written.
    #[error("an access to {addr} may have to wait, and this thread holds an RCU guard: drop it first")]
    Pinned {
        /// Where.
        addr: GuestPhys,
    },
    /// The write is made for a log of another RAM list. Nothing was written.
    #[error("a write to {addr} is made for a log of another RAM list")]
    OtherLog {
        /// Where.
        addr: GuestPhys,
    },
    /// The bytes run past the end of the address space.
    #[error("{len:#x} bytes at {addr} run past the end of the address space")]
    Wraps {
        /// Where.
        addr: GuestPhys,
        /// How many.
        len: u64,
    },
}

impl AccessError {
    fn missing(why: MissingError, addr: GuestPhys) -> AccessError {
        match why {
            MissingError::Pinned => AccessError::Pinned { addr },
            _ => AccessError::Missing { addr },
        }
    }
}

/// The guest's physical address space, shared by all its vCPUs and devices. It owns its devices: one that calls it back has a
/// `Weak` of it.
///
/// RAM comes, changes its length and goes while vCPUs run, on any thread but theirs, in this order:
///
/// ```
/// # use notdirty_core::{RamBlockSpec, RamList};
/// # use notdirty_softmmu::{AddressSpace, GuestPhys};
/// # use std::time::Duration;
/// # let list = std::sync::Arc::new(RamList::new());
/// # let space = AddressSpace::new(list.clone());
/// let limit = Some(Duration::from_secs(1));
/// // Plug.
/// let dimm = list.add(RamBlockSpec::new("dimm0", 1 << 20).max_length(4 << 20).resizable(true))?;
/// let at = space.map_ram(GuestPhys::new(0x9000_0000), &dimm, 0, dimm.used_length(), 0)?;
/// // Grow: the block, then its mapping.
/// list.resize(&dimm, 2 << 20)?;
/// let _ = space.resize_mapping(at, 2 << 20)?; // nothing was cut off: no need to wait
/// // Shrink: the mapping, a wait, the block, and its memory.
/// if space.resize_mapping(at, 1 << 20)?.wait(limit) {
///     list.resize(&dimm, 1 << 20)?;
///     list.release_tail(&dimm)?;
/// }
/// // Unplug: the mapping, a wait, the block.
/// if space.unmap_and_wait(at, limit)? {
///     list.remove(&dimm)?;
/// }
/// # assert_eq!(list.blocks(&notdirty_core::pin()).count(), 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct AddressSpace {
    ram: Arc<RamList>,
    /// Of its own, as the RAM list knows it, and must not keep devices.
    vcpus: Arc<VcpuRegistry>,
    view: RcuCell<Arc<FlatView>>,
    tree: Mutex<RegionTree>,
    /// Of the view, for who only asks whether it changed.
    version: AtomicU64,
    /// How often the host has called a device.
    device_calls: AtomicU64,
}

impl AddressSpace {
    /// An empty address space over this RAM.
    pub fn new(ram: Arc<RamList>) -> Arc<AddressSpace> {
        let vcpus = Arc::new(VcpuRegistry::new(&ram));
        ram.add_listener(Arc::downgrade(&vcpus));
        let (view, tree) = (RcuCell::new(Arc::default()), Mutex::new(RegionTree::new()));
        Arc::new(AddressSpace { ram, vcpus, view, tree, version: AtomicU64::new(0), device_calls: AtomicU64::new(0) })
    }

    /// The RAM list under it.
    pub fn ram(&self) -> &Arc<RamList> {
        &self.ram
    }

    /// Where translated code lies in that RAM.
    #[inline]
    pub fn code(&self) -> &CodePages {
        self.ram.dirty().code()
    }

    /// Goes up with each change of the map.
    #[inline]
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The vCPUs that run on it.
    pub fn vcpus(&self) -> &VcpuRegistry {
        &self.vcpus
    }

    /// The newest view.
    pub fn view<'g>(&self, guard: &'g Guard) -> &'g FlatView {
        self.view.load(guard)
    }

    /// The newest view, to keep.
    pub fn snapshot(&self) -> Arc<FlatView> {
        self.view.load(&pin()).clone()
    }

    pub(super) fn tree(&self) -> MutexGuard<'_, RegionTree> {
        self.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Maps `len` bytes of a block from `block_off` on. `base` and `block_off` have the same offset in a page, as a rule 0. Where
    /// regions overlap, the higher priority wins, among equals the later region.
    ///
    /// # Errors
    /// [`MapError`]: the block is of another list, has left its own or has no memory there; `len` is 0 or too long; `base` and
    /// `block_off` differ in their offset in a page.
    pub fn map_ram(
        &self,
        base: GuestPhys,
        block: &Arc<RamBlock>,
        block_off: u64,
        len: u64,
        priority: i32,
    ) -> Result<RegionId, MapError> {
        self.map_block(base, block, block_off, len, priority, block.is_readonly())
    }

    /// As `map_ram`, but guest stores are discarded. The host API still writes (a loader fills a ROM).
    ///
    /// # Errors
    /// As [`map_ram`](Self::map_ram).
    pub fn map_rom(
        &self,
        base: GuestPhys,
        block: &Arc<RamBlock>,
        block_off: u64,
        len: u64,
        priority: i32,
    ) -> Result<RegionId, MapError> {
        self.map_block(base, block, block_off, len, priority, true)
    }

    fn map_block(
        &self,
        base: GuestPhys,
        block: &Arc<RamBlock>,
        off: u64,
        len: u64,
        priority: i32,
        readonly: bool,
    ) -> Result<RegionId, MapError> {
        if !block.belongs_to(&self.ram) {
            return Err(MapError::OtherList { block: block.idstr().to_owned() });
        }
        same_page_offset(base, off)?;
        let mapping = block.mapping(off, len).map_err(|why| MapError::refused(why, block, off, len))?;
        self.map(base, len, priority, Kind::Plain(What::Ram { block: block.clone(), off, readonly }), Some(mapping))
    }

    /// Maps a device. It may be smaller than a page and lie anywhere. `priority` as in [`map_ram`](Self::map_ram).
    ///
    /// # Errors
    /// [`MapError::Empty`], [`MapError::Wraps`].
    pub fn map_mmio(
        &self,
        base: GuestPhys,
        len: u64,
        dev: Arc<dyn MmioDevice>,
        priority: i32,
    ) -> Result<RegionId, MapError> {
        self.map(base, len, priority, Kind::Plain(What::Mmio { dev, off: 0 }), None)
    }

    /// Shows at `base` what is visible at `target`, holes included. Aliases of aliases are followed four deep.
    ///
    /// # Errors
    /// [`MapError::Empty`], [`MapError::Wraps`], [`MapError::Misaligned`].
    pub fn map_alias(&self, base: GuestPhys, target: GuestPhys, len: u64, priority: i32) -> Result<RegionId, MapError> {
        same_page_offset(base, target.get())?;
        if len != 0 && target.checked_add(len - 1).is_none() {
            return Err(MapError::Wraps { base: target, len });
        }
        self.map(base, len, priority, Kind::Alias { target: target.get() }, None)
    }

    fn map(
        &self,
        base: GuestPhys,
        len: u64,
        priority: i32,
        kind: Kind,
        mapping: Option<RamMapping>,
    ) -> Result<RegionId, MapError> {
        let more = len.checked_sub(1).ok_or(MapError::Empty { base })?;
        let last = base.checked_add(more).ok_or(MapError::Wraps { base, len })?.get();
        let mut tree = self.tree();
        let (id, changed) = tree.insert(Region { base: base.get(), last, priority, kind, mapping });
        let _posted = self.publish(&tree, changed);
        Ok(id)
    }

    /// Takes a mapping away. vCPUs go on with the old view until their next safe point; it keeps RAM and devices
    /// alive so long (RAM-1). The result can be waited for: when it is served, no vCPU reaches that memory any more.
    ///
    /// # Errors
    /// [`MapError::UnknownRegion`].
    #[must_use = "until it is served, a vCPU may touch that memory"]
    pub fn unmap_posted(&self, id: RegionId) -> Result<Pending, MapError> {
        self.unmap_if(id, |_| Ok(()))
    }

    fn unmap_if(
        &self,
        id: RegionId,
        may: impl FnOnce(&RegionTree) -> Result<(), MapError>,
    ) -> Result<Pending, MapError> {
        let mut tree = self.tree();
        may(&tree)?;
        let (gone, changed) = tree.remove(id)?;
        let posted = self.publish(&tree, changed);
        drop(tree);
        // Before what is dropped later, which has the block, too: the block's last owner is not here.
        drop(gone.mapping);
        // A device that no view shows has its last owner in the region; it may call us from its Drop, and this may be the
        // thread of a vCPU that is inside of a store.
        drop_later(gone.kind);
        Ok(posted)
    }

    /// As `unmap_posted`, for a caller that need not know when.
    ///
    /// # Errors
    /// [`MapError::UnknownRegion`].
    pub fn unmap(&self, id: RegionId) -> Result<(), MapError> {
        let _ = self.unmap_posted(id)?;
        Ok(())
    }

    /// Takes a mapping away and waits until no vCPU reaches it any more; `false` if time ran out before, and at once if a vCPU that
    /// has to answer runs on this thread (it is gone from the map nevertheless). With no guard held (SAFE-1).
    ///
    /// # Errors
    /// [`MapError::UnknownRegion`].
    pub fn unmap_and_wait(&self, id: RegionId, timeout: Option<Duration>) -> Result<bool, MapError> {
        Ok(self.unmap_posted(id)?.wait(timeout))
    }

    /// Gives a mapping another length, from the same place on. What was mapped before and still is stays mapped at every
    /// moment. To shrink a block, first this, and wait for the result (RAM-1), then the block; to grow one, first the
    /// block.
    ///
    /// # Errors
    /// [`MapError::UnknownRegion`], [`MapError::Empty`], [`MapError::Wraps`], [`MapError::BeyondBlock`]. The mapping is then as it was.
    #[must_use = "until it is served, a vCPU may touch what was cut off"]
    pub fn resize_mapping(&self, id: RegionId, len: u64) -> Result<Pending, MapError> {
        let mut tree = self.tree();
        let base = tree.base_of(id)?;
        let more = len.checked_sub(1).ok_or(MapError::Empty { base })?;
        let last = base.checked_add(more).ok_or(MapError::Wraps { base, len })?.get();
        let changed = tree.set_last(id, last)?;
        Ok(self.publish(&tree, changed))
    }

    /// As `unmap_posted`, for a caller that is about to remove the block: refuses while another region maps it too. An alias that
    /// shows the place does not count, it shows a hole from then on.
    ///
    /// # Errors
    /// [`MapError::UnknownRegion`], [`MapError::MappedAgain`].
    pub fn unmap_last(&self, id: RegionId) -> Result<Pending, MapError> {
        self.unmap_if(id, |tree| tree.is_only_mapping(id))
    }

    /// How many regions map the block.
    pub fn times_mapped(&self, block: &Arc<RamBlock>) -> usize {
        self.tree().times_mapped(block)
    }

    /// Renders what changed, publishes, then tells the vCPUs; under the tree's lock, so that views do not overtake.
    pub(super) fn publish(&self, tree: &RegionTree, changed: Vec<(u64, u64)>) -> Pending {
        let mut view = self.snapshot();
        for &(start, last) in &changed {
            log::debug!("the memory map changes at {start:#x} to {last:#x}");
            view = Arc::new(view.replaced(start, last, tree.render(start, last)));
        }
        self.view.replace(view.clone());
        self.version.store(view.version(), Ordering::Release);
        let remap =
            |&(start, last): &(u64, u64)| Request::Remap { start: GuestPhys::new(start), last: GuestPhys::new(last) };
        self.vcpus.post_each(changed.iter().map(remap), Some(&view))
    }

    /// Asks every vCPU of this address space to come to a safe point. When it is served, each has served what was posted
    /// before, and holds nothing of an older view that it was told of.
    #[must_use = "it is waited for"]
    pub fn safe_point(&self) -> Pending {
        self.vcpus.post_all(Request::Rearm(PageRange::of_bytes(RamAddr::new(0), 0)))
    }

    /// How often the host has called devices, by [`read`](Self::read) and [`write`](Self::write); vCPUs count their own calls.
    pub fn device_calls(&self) -> u64 {
        self.device_calls.load(Ordering::Relaxed)
    }

    /// Reads guest memory for the host. Devices are read in naturally aligned parts. RAM that is yet to come is waited for, with no guard
    /// held: a device that a vCPU calls holds that up, and the vCPU is not parked meanwhile.
    ///
    /// # Errors
    /// [`AccessError`] with the first address that fails; `into` may be filled in part.
    pub fn read(&self, addr: GuestPhys, into: &mut [u8]) -> Result<(), AccessError> {
        let view = HostView::newest(self);
        for part in parts(&view, addr, into.len() as u64)? {
            let bytes = &mut into[part.at..part.at + part.len];
            match &part.range.what {
                What::Ram { block, off, .. } => {
                    let refused = |_| AccessError::Refused { addr: part.addr() };
                    let ram = RamAddr::new(block.offset().get() + off + part.into);
                    self.ram.wait_for(ram, part.len as u64).map_err(|why| AccessError::missing(why, part.addr()))?;
                    block.read_bytes(off + part.into, bytes).map_err(refused)?;
                }
                What::Mmio { dev, off } => {
                    let sizes = dev.sizes();
                    if mmio::is_inside(&**dev) {
                        return Err(AccessError::Reentered { addr: part.addr() });
                    }
                    self.device_calls.fetch_add(1, Ordering::Relaxed);
                    for (at, size) in mmio::aligned_parts(off + part.into, bytes.len() as u64) {
                        let addr = part.addr().wrapping_add(at);
                        let value = mmio::read(&**dev, sizes, off + part.into + at, size)
                            .ok_or(AccessError::TooNarrow { addr, bytes: size.bytes() })?;
                        let (at, n) = (at as usize, size.bytes() as usize);
                        bytes[at..at + n].copy_from_slice(&value.to_le_bytes()[..n]);
                    }
                }
            }
        }
        Ok(())
    }

    /// Writes guest memory for the host: RAM and ROM first, devices last. Of bytes that are not all mapped, none is
    /// written. vCPUs drop translations of overwritten code at their next safe point. RAM that is yet to come is waited for, as by
    /// [`read`](Self::read).
    ///
    /// # Errors
    /// [`AccessError`] with the first address that fails.
    pub fn write(&self, addr: GuestPhys, from: &[u8]) -> Result<(), AccessError> {
        self.write_as(addr, from, None)
    }

    /// As `write`, of bytes that `log`'s user puts back, or received: it is not told of its own work, neither before nor
    /// after ([`RamList::write_for`]).
    ///
    /// # Errors
    /// As [`write`](Self::write), and [`AccessError::OtherLog`].
    pub fn write_for(&self, log: &DirtyLog, addr: GuestPhys, from: &[u8]) -> Result<(), AccessError> {
        self.write_as(addr, from, Some(log))
    }

    fn write_as(&self, addr: GuestPhys, from: &[u8], log: Option<&DirtyLog>) -> Result<(), AccessError> {
        let view = HostView::newest(self);
        let parts = parts(&view, addr, from.len() as u64)?;
        for part in &parts {
            if let What::Mmio { dev, off } = &part.range.what {
                for (at, size) in mmio::aligned_parts(off + part.into, part.len as u64) {
                    if dev.sizes().widest_within(size).is_none() {
                        let addr = part.addr().wrapping_add(at);
                        return Err(AccessError::TooNarrow { addr, bytes: size.bytes() });
                    }
                }
                if mmio::is_inside(&**dev) {
                    return Err(AccessError::Reentered { addr: part.addr() });
                }
            }
        }
        for part in &parts {
            if let What::Ram { block, off, .. } = &part.range.what {
                let bytes = &from[part.at..part.at + part.len];
                self.ram.write_mapped(block, off + part.into, bytes, log).map_err(|why| match why {
                    RamError::Pinned(_) => AccessError::Pinned { addr: part.addr() },
                    RamError::Gone => AccessError::Gone { addr: part.addr() },
                    RamError::OtherLog => AccessError::OtherLog { addr: part.addr() },
                    RamError::Missing(why) => AccessError::missing(why, part.addr()),
                    _ => AccessError::Refused { addr: part.addr() },
                })?;
            }
        }
        for part in &parts {
            if let What::Mmio { dev, off } = &part.range.what {
                let sizes = dev.sizes();
                self.device_calls.fetch_add(1, Ordering::Relaxed);
                for (at, size) in mmio::aligned_parts(off + part.into, part.len as u64) {
                    let mut value = [0; 8];
                    let n = size.bytes() as usize;
                    value[..n].copy_from_slice(&from[part.at + at as usize..][..n]);
                    // Every width was found good above.
                    mmio::write(&**dev, sizes, off + part.into + at, size, u64::from_le_bytes(value));
                }
            }
        }
        Ok(())
    }
}

fn same_page_offset(base: GuestPhys, target: u64) -> Result<(), MapError> {
    if base.page_offset() == target % PAGE_SIZE { Ok(()) } else { Err(MapError::Misaligned { base, target }) }
}

/// The view that one host access goes by. The access may be a device's, inside of a guest's: should the view be the last to have
/// another device, that is dropped elsewhere.
struct HostView(ManuallyDrop<Arc<FlatView>>);

impl HostView {
    fn newest(space: &AddressSpace) -> HostView {
        HostView(ManuallyDrop::new(space.snapshot()))
    }
}

impl Deref for HostView {
    type Target = FlatView;

    fn deref(&self) -> &FlatView {
        &self.0
    }
}

impl Drop for HostView {
    fn drop(&mut self) {
        // SAFETY: it is taken out here only, and `self` is not used after this.
        let view = unsafe { ManuallyDrop::take(&mut self.0) };
        Arc::into_inner(view).into_iter().for_each(drop_later);
    }
}

/// The share that one range has in a host access.
struct Part<'v> {
    range: &'v FlatRange,
    /// Offset in the range.
    into: u64,
    /// Offset in the caller's buffer.
    at: usize,
    len: usize,
}

impl Part<'_> {
    fn addr(&self) -> GuestPhys {
        GuestPhys::new(self.range.start + self.into)
    }
}

/// Cuts `[addr, addr + len)` by ranges; an error if any of it is a hole.
fn parts(view: &FlatView, addr: GuestPhys, len: u64) -> Result<Vec<Part<'_>>, AccessError> {
    let Some(more) = len.checked_sub(1) else { return Ok(Vec::new()) };
    let (start, last) = (addr.get(), addr.checked_add(more).ok_or(AccessError::Wraps { addr, len })?.get());
    let mut parts = Vec::new();
    let mut next = Some(start);
    for range in view.overlapping(start, last) {
        let Some(want) = next else { break };
        if range.start > want {
            return Err(AccessError::Unmapped { addr: GuestPhys::new(want) });
        }
        let end = range.last.min(last);
        parts.push(Part {
            range,
            into: want - range.start,
            at: (want - start) as usize,
            len: (end - want) as usize + 1,
        });
        next = if end == last { None } else { Some(end + 1) };
    }
    match next {
        None => Ok(parts),
        Some(hole) => Err(AccessError::Unmapped { addr: GuestPhys::new(hole) }),
    }
}

impl core::fmt::Debug for AddressSpace {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("AddressSpace").field("view", &self.snapshot()).finish_non_exhaustive()
    }
}
