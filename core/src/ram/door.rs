//! The one door for whatever writes guest RAM.
//!
//! ```text
//!   wait_for(range)        not of vCPUs: pages that are yet to come (missing/)
//!      │                   nothing missing: one load
//!      ▼
//!   before(range)          the old bytes are still there: a subscriber takes them. May wait
//!      │                   no subscriber: one load
//!      ▼
//!   the bytes              write_raw and its like; a vCPU's host store
//!      ▼
//!   after(range)           fence ─▶ translations of these lines die, whatever vCPU has them ─▶ bits ─▶ rings
//! ```
//!
//! Keeps MARK-1 for all writers that are no vCPU: [`RamList::write`], [`fill`](RamList::fill), [`store`](RamList::store),
//! [`discard`](RamList::discard), [`resize`](RamList::resize), softmmu's `AddressSpace::write` (loaders, devices, debuggers).
//! A vCPU's slow stores call `before` here and do their own second half, softmmu's `notdirty.rs`, as their marks go to
//! their own rings. Its fast stores call neither: what subscribes has a log, so the first store to each page is a slow one.
//!
//! `before` is called with no RCU guard pinned and no lock of this project held, so that what is called may wait: for a
//! grace period, for vCPUs, for a page to come. That no guard is pinned is checked, and [`CanWait`] is the proof of it; a
//! writer that has one pinned is refused, and nothing is written. After a wait a writer's own look-ups may be outdated;
//! a vCPU's are not, because it serves nothing in between.
//!
//! A writer that puts bytes back, or puts them where they are to come, names its log: [`RamList::write_for`]. Then that log's
//! user is told neither before nor after. The other users of the log are, as they did not do it.

use super::{RamBlock, RamError, RamList};
use crate::addr::{PAGE_SIZE, PageRange, RamAddr};
use crate::dirty::{ClientMask, DirtyLog, Owned, fence_after_store, lines_of};
use crate::rcu::{self, drop_later, pin};
use core::cell::RefCell;
use core::fmt;
use core::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Wants bytes that a write is about to replace: an undo log, a checkpoint that is taken page by page.
///
/// ```
/// # use notdirty_core::{BeforeWrite, CanWait, RamAddr, RamBlock, RamBlockSpec, RamList};
/// # use std::sync::{Arc, Mutex};
/// struct Undo {
///     ram: Arc<RamBlock>,
///     old: Mutex<Vec<(u64, Vec<u8>)>>,
/// }
///
/// impl BeforeWrite for Undo {
///     fn before(&self, ram: RamAddr, len: u64, _: &CanWait) {
///         let (off, mut bytes) = (ram.get() - self.ram.offset().get(), vec![0; len as usize]);
///         self.ram.read_bytes(off, &mut bytes).expect("a write is inside of the block");
///         self.old.lock().unwrap().push((off, bytes));
///     }
/// }
///
/// let list = Arc::new(RamList::new());
/// let ram = list.add(RamBlockSpec::new("ram", 1 << 20))?;
/// let undo = Arc::new(Undo { ram: ram.clone(), old: Mutex::default() });
/// let subscribed = list.before_writes(None, undo.clone());
/// list.write(&ram, 8, b"new")?;
/// drop(subscribed);
/// assert_eq!(*undo.old.lock().unwrap(), [(8, vec![0; 3])]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait BeforeWrite: Send + Sync {
    /// Bytes `[ram, ram + len)`, all of one block, are about to be written. They are as they were; when this returns they
    /// change. Called on the writer's thread, perhaps on several at once. Of a vCPU's stores only those that are
    /// heard come here: what subscribes logs the pages, and then takes whole pages. What it writes itself meanwhile, on the same
    /// thread, is its own work, of which it is not asked.
    fn before(&self, ram: RamAddr, len: u64, can_wait: &CanWait);
}

/// The proof that this thread holds no RCU guard, and may wait.
#[derive(Debug)]
pub struct CanWait(PhantomData<*const ()>);

impl CanWait {
    fn here() -> Result<Self, Pinned> {
        if rcu::is_pinned() { Err(Pinned) } else { Ok(Self(PhantomData)) }
    }
}

/// A writer held an RCU guard while something subscribes to what is about to be written. Nothing was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("this thread holds an RCU guard, and a write may have to wait: drop the guard first")]
pub struct Pinned;

/// What subscribes to `before`.
#[derive(Default)]
pub(super) struct Door {
    /// How many; written under the lock. In the list itself, beside what a slow store looks at anyway.
    count: AtomicUsize,
    all: Mutex<Subscribed>,
}

#[derive(Default)]
struct Subscribed {
    all: Vec<Subscriber>,
    next: u64,
}

#[derive(Clone)]
struct Subscriber {
    id: u64,
    /// The log's user that makes writes of which this subscriber is not told.
    user: Option<u64>,
    /// Not kept: it may have a log, and with it the list.
    call: Weak<Kept>,
}

/// Sized, so that a writer knows whether it has the last `Arc`.
struct Kept(Arc<dyn BeforeWrite>);

/// A [`BeforeWrite`] is called as long as this lives, and lives as long. A call that another thread began before it dropped
/// may end after.
#[must_use = "dropped, the subscriber is not called any more"]
pub struct BeforeRegistration {
    list: Arc<RamList>,
    id: u64,
    _call: Arc<Kept>,
}

impl Drop for BeforeRegistration {
    fn drop(&mut self) {
        let door = self.list.door();
        let mut subscribed = door.subscribed();
        subscribed.all.retain(|other| other.id != self.id);
        door.count.store(subscribed.all.len(), Ordering::Release);
    }
}

impl fmt::Debug for BeforeRegistration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BeforeRegistration").field("id", &self.id).finish_non_exhaustive()
    }
}

thread_local! {
    /// The subscribers that this thread is inside of.
    static CALLED: RefCell<Vec<*const Kept>> = const { RefCell::new(Vec::new()) };
}

/// A call of a subscriber that is under way on this thread.
struct Called;

impl Called {
    /// `None` if there is one of this subscriber: what is about to be written is its own work.
    fn by_this_thread(call: &Arc<Kept>) -> Option<Self> {
        let at = Arc::as_ptr(call);
        let new = CALLED.try_with(|called| {
            let called = &mut *called.borrow_mut();
            let new = !called.contains(&at);
            called.extend(new.then_some(at));
            new
        });
        // While thread-locals are torn down there is no telling.
        new.unwrap_or(true).then_some(Self)
    }
}

impl Drop for Called {
    fn drop(&mut self) {
        let _ = CALLED.try_with(|called| called.borrow_mut().pop());
    }
}

impl Door {
    fn subscribed(&self) -> std::sync::MutexGuard<'_, Subscribed> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cold]
    fn tell(&self, ram: RamAddr, len: u64, except: Option<u64>) -> Result<(), Pinned> {
        if len == 0 {
            return Ok(());
        }
        let can_wait = CanWait::here()?;
        let all = self.subscribed().all.clone();
        let told = all.iter().filter(|other| except.is_none() || other.user != except);
        for call in told.filter_map(|subscriber| subscriber.call.upgrade()) {
            let Some(_called) = Called::by_this_thread(&call) else { continue };
            call.0.before(ram, len, &can_wait);
            // Its registration dropped meanwhile: a guest's store is no place for its destructor.
            Arc::into_inner(call).into_iter().for_each(|last| drop_later(last.0));
        }
        Ok(())
    }
}

impl RamList {
    /// From now on, and until the result drops, `call` hears of writes before they happen; with `log`, not of those
    /// that are made [for](Self::write_for) that log. A writer that has begun when this returns may not have told it: a
    /// caller that wants each write subscribes first, starts the log, and waits for the end of the DMA that is under way.
    pub fn before_writes(self: &Arc<Self>, log: Option<&DirtyLog>, call: Arc<dyn BeforeWrite>) -> BeforeRegistration {
        let door = self.door();
        let mut subscribed = door.subscribed();
        let id = subscribed.next;
        subscribed.next += 1;
        let user = log.map(DirtyLog::user_id);
        let call = Arc::new(Kept(call));
        subscribed.all.push(Subscriber { id, user, call: Arc::downgrade(&call) });
        door.count.store(subscribed.all.len(), Ordering::Release);
        drop(subscribed);
        BeforeRegistration { list: self.clone(), id, _call: call }
    }

    /// First half of a write of `[ram, ram + len)`, which lie in one block. Costs one load while nothing subscribes.
    ///
    /// # Errors
    /// [`Pinned`] if something subscribes and this thread holds an RCU guard: drop the guard, and ask again.
    #[inline]
    pub fn before(&self, ram: RamAddr, len: u64) -> Result<(), Pinned> {
        // Acquire partners the Release of `before_writes`; what it may still miss is said there.
        if self.door().count.load(Ordering::Acquire) == 0 { Ok(()) } else { self.door().tell(ram, len, None) }
    }

    /// Second half of a write of `[ram, ram + len)`: the bytes are visible. Translations of them die, then every client that
    /// tracks their pages is told.
    pub fn after(&self, ram: RamAddr, len: u64) {
        self.after_for(ram, len, None);
    }

    /// As [`before`](Self::before), of a write that is made for `log`.
    fn before_for(&self, ram: RamAddr, len: u64, log: Option<&DirtyLog>) -> Result<(), Pinned> {
        match log {
            Some(log) if self.door().count.load(Ordering::Acquire) != 0 => {
                self.door().tell(ram, len, Some(log.user_id()))
            }
            Some(_) => Ok(()),
            None => self.before(ram, len),
        }
    }

    fn after_for(&self, ram: RamAddr, len: u64, log: Option<&DirtyLog>) {
        if len == 0 {
            return;
        }
        // MARK-1: partners the RMW of `announce_code`. Either the announced line is seen here, or its translator reads these
        // bytes.
        fence_after_store();
        let range = PageRange::of_bytes(ram, len);
        self.kill_lines(ram, len, range);
        let dirty = self.dirty();
        dirty.note_others(ram, len);
        match log {
            None => dirty.set(range, ClientMask::ALL, &pin()),
            Some(log) => {
                dirty.set(range, ClientMask::ALL.without(log.client()), &pin());
                log.wrote(range);
                // Looked at after the marks: then the column was not another's while it was left out.
                if !dirty.is_current(log.client()) {
                    dirty.set(range, ClientMask::of(log.client()), &pin());
                }
            }
        }
    }

    /// Posts kills for bytes that are visible, without a mark.
    pub(super) fn kill_written(&self, ram: RamAddr, len: u64) {
        fence_after_store();
        self.kill_lines(ram, len, PageRange::of_bytes(ram, len));
    }

    /// Posts kills to the vCPUs that have translations of these bytes.
    fn kill_lines(&self, ram: RamAddr, len: u64, range: PageRange) {
        let (dirty, guard) = (self.dirty(), pin());
        let end = ram.get().saturating_add(len);
        let mut kill = Kill::default();
        for page in dirty.code_pages(range, &guard) {
            let from = RamAddr::new(ram.get().max(page.base().get()));
            let len = end.min(page.base().get().saturating_add(PAGE_SIZE)) - from.get();
            if !dirty.code().hit(from, len) {
                continue;
            }
            let owners = dirty.code().owners(page, lines_of(from.page_offset(), len));
            if kill.end != from.get() || kill.owners != owners {
                self.post_kill(core::mem::replace(&mut kill, Kill { start: from.get(), end: from.get(), owners }));
            }
            kill.end = from.get() + len;
        }
        self.post_kill(kill);
    }

    fn post_kill(&self, Kill { start, end, owners }: Kill) {
        if !owners.is_empty() {
            self.kill_code(&owners, RamAddr::new(start), end - start);
        }
    }

    /// Writes bytes of a block of this list, as a device would: what wants the old bytes gets them, translations die, and
    /// every log hears of it.
    ///
    /// # Errors
    /// [`RamError::NotInList`], [`RamError::OutOfBounds`], [`RamError::Pinned`] (see [`before`](Self::before)).
    pub fn write(&self, block: &RamBlock, off: u64, bytes: &[u8]) -> Result<(), RamError> {
        self.through(block, off, bytes.len() as u64, None, || block.write_raw(off, bytes))
    }

    /// As `write`, of bytes that `log`'s user puts back, or received: it is not told of its own work, neither before nor
    /// after. Other users of the same log are.
    ///
    /// # Errors
    /// As [`write`](Self::write), and [`RamError::OtherLog`].
    pub fn write_for(&self, log: &DirtyLog, block: &RamBlock, off: u64, bytes: &[u8]) -> Result<(), RamError> {
        self.through(block, off, bytes.len() as u64, Some(log), || block.write_raw(off, bytes))
    }

    /// Sets `len` bytes of a block of this list, as `write` does.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn fill(&self, block: &RamBlock, off: u64, len: u64, value: u8) -> Result<(), RamError> {
        self.through(block, off, len, None, || block.fill_raw(off, len, value))
    }

    /// Stores the low 1, 2, 4 or 8 bytes of `value`, little-endian and not torn if aligned, as `write` does.
    ///
    /// # Errors
    /// As [`write`](Self::write), and [`RamError::Width`].
    pub fn store(&self, block: &RamBlock, off: u64, bytes: u32, value: u64) -> Result<(), RamError> {
        self.through(block, off, bytes.into(), None, || block.store_raw(off, bytes, value))
    }

    /// Gives the memory of `len` bytes at `off` back to the host. They read as they did when new: as zero, or as the
    /// private file has them. Both are multiples of [`page_size`](RamBlock::page_size), or end with the maximum length.
    /// To every other log this is a write.
    ///
    /// # Errors
    /// As [`write`](Self::write); [`RamError::OddLength`] if it is not whole pages; [`RamError::Host`].
    pub fn discard(&self, block: &RamBlock, off: u64, len: u64) -> Result<(), RamError> {
        self.through(block, off, len, None, || block.discard_raw(off, len))
    }

    fn through(
        &self,
        block: &RamBlock,
        off: u64,
        len: u64,
        log: Option<&DirtyLog>,
        write: impl FnOnce() -> Result<(), RamError>,
    ) -> Result<(), RamError> {
        if !self.find(block.offset(), &pin()).is_some_and(|found| core::ptr::eq(&**found, block)) {
            return Err(RamError::NotInList { idstr: block.idstr().to_owned() });
        }
        self.through_mapped(block, off, len, log, write)
    }

    /// As `write`, or with a log `write_for`, for an address space: a holder of an old view may write to a block that has
    /// left the list meanwhile, as its vCPUs may.
    ///
    /// # Errors
    /// As [`write`](Self::write) but for the list, and [`RamError::OtherLog`].
    pub fn write_mapped(
        &self,
        block: &RamBlock,
        off: u64,
        bytes: &[u8],
        log: Option<&DirtyLog>,
    ) -> Result<(), RamError> {
        self.through_mapped(block, off, bytes.len() as u64, log, || block.write_raw(off, bytes))
    }

    fn through_mapped(
        &self,
        block: &RamBlock,
        off: u64,
        len: u64,
        log: Option<&DirtyLog>,
        write: impl FnOnce() -> Result<(), RamError>,
    ) -> Result<(), RamError> {
        if log.is_some_and(|log| !core::ptr::eq(&**log.list(), self)) {
            return Err(RamError::OtherLog);
        }
        let ram = RamAddr::new(block.offset().get().saturating_add(off));
        if self.has_missing() {
            self.wait_for(ram, len.min(block.max_length().saturating_sub(off)))?;
        }
        let _inside = self.gate().enter()?;
        // Bytes that are no RAM have no log; the write then says so, or does nothing to what is.
        let inside = off.checked_add(len).is_some_and(|end| end <= block.max_length());
        if inside {
            self.before_for(ram, len, log)?;
        }
        let written = {
            // A reservation that is broken by what is written.
            let _writing = self.reservations().filter(|_| inside).map(|all| all.writing(ram, len));
            write()
        };
        // Of a write that failed, too: the host may have discarded a part before it came to what it refuses.
        if inside {
            self.after_for(ram, len, log);
        }
        written
    }
}

/// Bytes that were written over code of these vCPUs.
#[derive(Default)]
struct Kill {
    start: u64,
    end: u64,
    owners: Owned,
}
