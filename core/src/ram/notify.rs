//! Listeners to blocks that come, go and change: what maps guest RAM for a device, a migration, a cache.
//!
//! ```text
//!   add      published ─────────▶ added(block)              the block can be found already
//!   resize   resized(old, new) ─▶ the length changes        what has to act before the geometry moves can
//!   remove   removed(block) ────▶ unlinked                  the block can still be found
//! ```
//!
//! The order is QEMU's. Each is called on the thread that makes the change, with no lock held: a notifier may call
//! the list, and add, remove or resize other blocks. The block it is told of is busy until all were told, for it
//! and for every other thread, so no two changes of one block overlap and each notifier hears of them in order.

use super::block::RamBlock;
use core::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// Hears of changes of a [`RamList`](super::RamList).
pub trait RamNotifier: Send + Sync {
    /// The block is in the list.
    fn added(&self, _block: &Arc<RamBlock>) {}

    /// The block will be taken out of the list now.
    fn removed(&self, _block: &Arc<RamBlock>) {}

    /// The block's used length will change now. All that can fail was done before.
    fn resized(&self, _block: &Arc<RamBlock>, _old: u64, _new: u64) {}
}

/// The listeners, in the order they came.
#[derive(Default)]
pub(super) struct Notifiers(Mutex<Registered>);

#[derive(Default)]
struct Registered {
    all: Vec<(u64, Arc<dyn RamNotifier>)>,
    next: u64,
}

impl Notifiers {
    fn registered(&self) -> std::sync::MutexGuard<'_, Registered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn register(self: &Arc<Self>, notifier: Arc<dyn RamNotifier>) -> RamRegistration {
        let mut registered = self.registered();
        let id = registered.next;
        registered.next += 1;
        registered.all.push((id, notifier));
        RamRegistration { with: self.clone(), id }
    }

    /// Calls each one that is there now. No lock is held meanwhile.
    pub(super) fn tell(&self, call: impl Fn(&dyn RamNotifier)) {
        let all: Vec<_> = self.registered().all.iter().map(|(_, notifier)| notifier.clone()).collect();
        all.iter().for_each(|notifier| call(&**notifier));
    }
}

/// A notifier is called as long as this lives. A call that another thread began before it dropped may end after.
#[must_use = "dropped, the notifier is not called any more"]
pub struct RamRegistration {
    with: Arc<Notifiers>,
    id: u64,
}

impl Drop for RamRegistration {
    fn drop(&mut self) {
        let mut registered = self.with.registered();
        let at = registered.all.iter().position(|(id, _)| *id == self.id);
        let gone = at.map(|at| registered.all.remove(at));
        drop(registered);
        drop(gone); // its destructor may call the list
    }
}

impl fmt::Debug for RamRegistration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RamRegistration").field("id", &self.id).finish_non_exhaustive()
    }
}
