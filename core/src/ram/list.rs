//! All RAM blocks: one writer under a lock, readers that never block.
//!
//! ```text
//!   RamList ─RcuCell─▶ Snapshot { by_offset, by_host, by_slot }      each a few shared chunks (chunks.rs)
//!     add:     lease an offset ─▶ map ─▶ grow dirty memory, all ones ─▶ publish ─▶ version + 1 ─▶ notify
//!     remove:  notify ─▶ version + 1 ─▶ publish without ─▶ version + 1 ─▶ (grace) ─▶ last Arc ─▶ unmap ─▶ the offset is free
//!     put back (the Arc lives): publish, at the same offset ─▶ version + 1 ─▶ all of it dirty ─▶ notify
//! ```
//!
//! Keeps this list's part of RAM-1: memory is unmapped and the offset reused only when the last `Arc` is gone, and
//! a snapshot's `Arc`s go after the grace period. To unmap a block from views, TLBs and translations comes before
//! `remove` and is the caller's part.
//!
//! The mru hint belongs to its snapshot and names a block of it, so it cannot outlive one: there is nothing to reset, and
//! no reader can bring back a block that was removed, as one with a hint of the list's own can. It is written only when
//! it differs, and lies in a cache line of its own.
//!
//! Checked by tests/loom_ram.rs, where the hint, the version and the lease are also tried the wrong way round.

use super::RamError;
use super::block::{Home, RamBlock};
use super::chunks::Chunks;
use super::door::Door;
use super::notify::{Notifiers, RamNotifier, RamRegistration};
use super::offsets::Offsets;
use super::reserve::Reservations;
use super::spec::RamBlockSpec;
use super::still::Gate;
use crate::addr::{PageRange, RamAddr};
use crate::dirty::{ClientMask, DirtyMemory, Listeners};
use crate::missing::{MissingDoor, MissingError};
use crate::rcu::{Guard, RcuCell, pin};
use crate::sync::{AtomicPtr, AtomicU64, Mutex, Ordering, lock};
use core::{fmt, ptr};
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

/// The blocks of one moment. A block spans its maximum length in the first two.
#[derive(Default)]
struct Snapshot {
    by_offset: Chunks<Arc<RamBlock>>,
    by_host: Chunks<Arc<RamBlock>>,
    by_slot: Chunks<Arc<RamBlock>>,
    mru: Mru,
}

/// The block that was found last, as it lies in its snapshot; or null.
#[repr(align(64))]
struct Mru(AtomicPtr<Arc<RamBlock>>);

impl Default for Mru {
    fn default() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }
}

impl Snapshot {
    /// The block for which `hit` holds: the one found last, or else what `search` finds, if it does.
    #[inline]
    fn lookup(
        &self,
        search: impl FnOnce(&Self) -> Option<&Arc<RamBlock>>,
        hit: impl Fn(&RamBlock) -> bool,
    ) -> Option<&Arc<RamBlock>> {
        // Relaxed: a holder of this snapshot sees all it has, and the hint points to nothing else.
        let mru = self.mru.0.load(Ordering::Relaxed);
        // SAFETY: null, or stored below: an entry of this snapshot's chunks, which are as they are until it drops.
        if let Some(block) = unsafe { mru.as_ref() }
            && hit(block)
        {
            return Some(block);
        }
        let block = search(self).filter(|block| hit(block))?;
        self.mru.0.store(ptr::from_ref(block).cast_mut(), Ordering::Relaxed);
        Some(block)
    }
}

/// What the one writer keeps.
struct Writer {
    /// The names in use, with their blocks.
    names: HashMap<String, u32>,
    /// The next block's number, while there is one.
    next_slot: Option<u32>,
    /// The blocks of which notifiers are being told.
    changing: Vec<u32>,
}

/// The next list's number. Not of `crate::sync`: it outlives a model's execution.
static NEXT_LIST: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

/// Every RAM block of a machine, their dirty memory, and all that may hold a fast entry for a store to them.
///
/// ```
/// use notdirty_core::{DirtyClient, RamBlockSpec, RamList, pin};
/// use std::sync::Arc;
///
/// let list = Arc::new(RamList::new());
/// let ram = list.add(RamBlockSpec::new("ram", 1 << 20))?;
/// let page = ram.offset().page();
/// let listens = || list.dirty().listening(page, &pin()).contains(DirtyClient::MIGRATION);
///
/// // A log takes the pages' bits, and thereby asks to hear of the next store to each.
/// let log = list.log(DirtyClient::MIGRATION).start()?;
/// assert!(listens());
///
/// // The store, then its mark (MARK-1).
/// list.write(&ram, 8, b"text")?;
/// assert!(!listens());
///
/// // The page is this user's, and its next store is heard again.
/// let pages = log.sync(None)?.commit();
/// assert!(pages.contains(page) && listens());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct RamList {
    current: RcuCell<Snapshot>,
    dirty: DirtyMemory,
    version: AtomicU64,
    offsets: Offsets,
    notifiers: Arc<Notifiers>,
    listeners: Listeners,
    door: Door,
    gate: Gate,
    missing: MissingDoor,
    pub(super) reservations: OnceLock<Box<Reservations>>,
    id: u64,
    /// Holding the lock makes a thread the one writer of all the above.
    writer: Mutex<Writer>,
}

impl RamList {
    /// A list without blocks.
    pub fn new() -> Self {
        Self {
            current: RcuCell::new(Snapshot::default()),
            dirty: DirtyMemory::new(),
            version: AtomicU64::new(0),
            offsets: Offsets::default(),
            notifiers: Arc::default(),
            listeners: Listeners::default(),
            door: Door::default(),
            gate: Gate::default(),
            missing: MissingDoor::default(),
            reservations: OnceLock::new(),
            id: NEXT_LIST.fetch_add(1, Ordering::Relaxed),
            writer: Mutex::new(Writer { names: HashMap::new(), next_slot: Some(0), changing: Vec::new() }),
        }
    }

    /// Makes a block and publishes it. Its bytes are zero, or its file's, and its pages are dirty for every client.
    /// No guest reaches it before an address space maps it.
    ///
    /// # Errors
    /// [`RamError`] names the block and what is wrong with its name, its lengths or its file, or what the host refused.
    pub fn add(&self, spec: RamBlockSpec) -> Result<Arc<RamBlock>, RamError> {
        let max_length = spec.check()?;
        // The last to go if there will be no block: what it owns is the caller's, and may call the list when it drops.
        let _callback = spec.resized.clone();
        let guard = pin();
        let mut writer = lock(&self.writer);
        if writer.names.contains_key(spec.idstr()) {
            return Err(RamError::DuplicateId { idstr: spec.idstr().to_owned() });
        }
        let Some(lease) = self.offsets.lease(max_length) else {
            return Err(RamError::Overflow { idstr: spec.idstr().to_owned(), length: max_length });
        };
        let Some(slot) = writer.next_slot else {
            return Err(RamError::OutOfSlots { idstr: spec.idstr().to_owned() });
        };
        let home = Home { list: self.id, slot };
        let leased = PageRange::of_bytes(lease.start(), lease.length());
        let block = Arc::new(RamBlock::map(spec, max_length, lease, home)?);
        // Before the block can be found. The range may have been another's: its bits mean nothing now.
        let too_many = |_| RamError::Overflow { idstr: block.idstr().to_owned(), length: max_length };
        self.dirty.grow(leased.end.get()).map_err(too_many)?;
        if let Some(reservations) = self.reservations() {
            reservations.forget_pages(self, leased);
        }
        // Logs with rings need not hear of each page: they look for blocks that they do not know.
        self.dirty.mark(leased, ClientMask::EVERYTHING, &guard, |_, _, _| {});
        let old = self.current.load(&guard);
        self.current.replace(Snapshot {
            by_offset: old.by_offset.with(block.offset().get(), block.clone()),
            by_host: old.by_host.with(block.host() as u64, block.clone()),
            by_slot: old.by_slot.with(slot.into(), block.clone()),
            mru: Mru::default(),
        });
        writer.next_slot = slot.checked_add(1);
        writer.names.insert(block.idstr().to_owned(), slot);
        self.next_version();
        let change = Change::new(self, &mut writer, slot);
        drop(writer);
        self.notifiers.tell(|notifier| notifier.added(&block));
        drop(change);
        Ok(block)
    }

    /// Takes a block out of the list, if it is mapped nowhere. It is no longer found, and cannot be mapped again; it lives on
    /// as long as there is an `Arc` of it.
    ///
    /// # Errors
    /// [`RamError::Mapped`] if an address space maps it: unmap it first, and wait. [`RamError::NotInList`], [`RamError::Busy`];
    /// [`RamError::Missing`] while pages of it are yet to come.
    pub fn remove(&self, block: &Arc<RamBlock>) -> Result<(), RamError> {
        let change = self.begin_change(block)?; // it stays in the list until here
        if let Some(missing) = self.missing().filter(|missing| missing.left_of(block) != 0) {
            return Err(
                MissingError::Phase { doing: "remove a block with missing pages", phase: missing.phase() }.into()
            );
        }
        let leaving = block.leave()?;
        self.notifiers.tell(|notifier| notifier.removed(block));
        let guard = pin();
        let mut writer = lock(&self.writer);
        let old = self.current.load(&guard);
        // Also before: a reader that pins, and then finds the version of what it kept, is sure that its blocks outlive its guard.
        self.version.fetch_add(1, Ordering::AcqRel);
        self.current.replace(Snapshot {
            by_offset: old.by_offset.without(block.offset().get()),
            by_host: old.by_host.without(block.host() as u64),
            by_slot: old.by_slot.without(block.slot().into()),
            mru: Mru::default(),
        });
        leaving.gone();
        writer.names.remove(block.idstr());
        self.next_version();
        drop(writer);
        drop(change);
        Ok(())
    }

    /// Takes a block back that has left: at its old place, with its old number and the bytes it has. All of it counts as written.
    /// No guest reaches it before an address space maps it.
    ///
    /// # Errors
    /// [`RamError::NotInList`] if the block is of another list; [`RamError::DuplicateId`] if another has its name now;
    /// [`RamError::Busy`] if it is leaving at this moment.
    pub fn put_back(&self, block: &Arc<RamBlock>) -> Result<(), RamError> {
        let idstr = || block.idstr().to_owned();
        if !block.belongs_to(self) {
            return Err(RamError::NotInList { idstr: idstr() });
        }
        let guard = pin();
        let mut writer = lock(&self.writer);
        if writer.changing.contains(&block.slot()) {
            return Err(RamError::Busy { idstr: idstr() });
        }
        match writer.names.get(block.idstr()) {
            Some(slot) if *slot == block.slot() => return Ok(()),
            Some(_) => return Err(RamError::DuplicateId { idstr: idstr() }),
            None => {}
        }
        if let Some(reservations) = self.reservations() {
            reservations.forget_pages(self, PageRange::of_bytes(block.offset(), block.max_length()));
        }
        let old = self.current.load(&guard);
        self.current.replace(Snapshot {
            by_offset: old.by_offset.with(block.offset().get(), block.clone()),
            by_host: old.by_host.with(block.host() as u64, block.clone()),
            by_slot: old.by_slot.with(block.slot().into(), block.clone()),
            mru: Mru::default(),
        });
        writer.names.insert(idstr(), block.slot());
        block.mapped().back();
        self.next_version();
        let change = Change::new(self, &mut writer, block.slot());
        drop(writer);
        // Not only where bits are looked up anew: a log with rings that has not looked since knows the block.
        self.dirty.set(block.pages(), ClientMask::ALL, &guard);
        drop(guard);
        self.notifiers.tell(|notifier| notifier.added(block));
        drop(change);
        Ok(())
    }

    /// Makes the caller the one that changes this block, if it is in the list.
    pub(super) fn begin_change(&self, block: &Arc<RamBlock>) -> Result<Change<'_>, RamError> {
        let guard = pin();
        let mut writer = lock(&self.writer);
        let found = self.current.load(&guard).by_slot.at_or_below(block.slot().into());
        if !found.is_some_and(|found| Arc::ptr_eq(found, block)) {
            return Err(RamError::NotInList { idstr: block.idstr().to_owned() });
        }
        if writer.changing.contains(&block.slot()) {
            return Err(RamError::Busy { idstr: block.idstr().to_owned() });
        }
        Ok(Change::new(self, &mut writer, block.slot()))
    }

    /// From now on, and until the result drops, `notifier` hears of each block that comes, goes or changes. It is not
    /// told of those that are there: a listener registers, then walks [`blocks`](Self::blocks), and may meet one
    /// twice.
    pub fn notify(&self, notifier: Arc<dyn RamNotifier>) -> RamRegistration {
        self.notifiers.register(notifier)
    }

    /// Comes after what has changed. Release: a reader of this version finds at least that.
    pub(super) fn next_version(&self) {
        self.version.fetch_add(1, Ordering::Release);
    }

    /// The listeners.
    pub(super) fn notifiers(&self) -> &Notifiers {
        &self.notifiers
    }

    /// All that may hold fast store entries to this RAM.
    pub(crate) fn listeners(&self) -> &Listeners {
        &self.listeners
    }

    /// What holds writers that are no vCPU.
    #[inline]
    pub(super) fn gate(&self) -> &Gate {
        &self.gate
    }

    /// What is yet to come.
    #[inline]
    pub(crate) fn missing_door(&self) -> &MissingDoor {
        &self.missing
    }

    /// What wants to hear of writes before they happen.
    #[inline]
    pub(super) fn door(&self) -> &Door {
        &self.door
    }

    /// The block that `addr` belongs to. It may belong to the part beyond the used length.
    #[inline]
    pub fn find<'g>(&self, addr: RamAddr, guard: &'g Guard) -> Option<&'g Arc<RamBlock>> {
        let inside = |block: &RamBlock| addr.get().wrapping_sub(block.offset().get()) < block.max_length();
        self.current.load(guard).lookup(|list| list.by_offset.at_or_below(addr.get()), inside)
    }

    /// The block that `host` points into, and how far.
    #[inline]
    pub fn find_host<'g>(&self, host: *const u8, guard: &'g Guard) -> Option<(&'g Arc<RamBlock>, u64)> {
        let off = |block: &RamBlock| (host as u64).wrapping_sub(block.host() as u64);
        let inside = |block: &RamBlock| off(block) < block.max_length();
        let block = self.current.load(guard).lookup(|list| list.by_host.at_or_below(host as u64), inside)?;
        Some((block, off(block)))
    }

    /// The block with this name. Takes the writers' lock for a moment: for a monitor or a stream, not for a vCPU.
    pub fn find_id<'g>(&self, idstr: &str, guard: &'g Guard) -> Option<&'g Arc<RamBlock>> {
        let writer = lock(&self.writer);
        let slot = *writer.names.get(idstr)?;
        self.find_slot(slot, guard) // under the lock: the name is not another's meanwhile
    }

    /// The block with this number, if it is still in the list.
    pub fn find_slot<'g>(&self, slot: u32, guard: &'g Guard) -> Option<&'g Arc<RamBlock>> {
        self.current.load(guard).by_slot.at_or_below(slot.into()).filter(|block| block.slot() == slot)
    }

    /// The blocks of this moment, by rising offset.
    pub fn blocks<'g>(&self, guard: &'g Guard) -> impl Iterator<Item = &'g Arc<RamBlock>> + use<'g> {
        self.current.load(guard).by_offset.iter()
    }

    /// The list's number.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// The dirty bits of all blocks.
    pub fn dirty(&self) -> &DirtyMemory {
        &self.dirty
    }

    /// Goes up with each add, remove and resize, after the list changed. A reader of the version and then the list may
    /// keep what it found until the version is another. Before a block leaves it goes up, too: if a guard is older than
    /// the look at the version, and the version is what it was, then no block that was found has given up its addresses
    /// before the guard goes.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }
}

/// A block that is being changed; until this drops, by no other caller.
pub(super) struct Change<'l> {
    list: &'l RamList,
    slot: u32,
}

impl<'l> Change<'l> {
    fn new(list: &'l RamList, writer: &mut Writer, slot: u32) -> Self {
        writer.changing.push(slot);
        Self { list, slot }
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        lock(&self.list.writer).changing.retain(|slot| *slot != self.slot);
    }
}

impl Default for RamList {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for RamList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.blocks(&pin())).finish()
    }
}
