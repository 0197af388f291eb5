//! Devices by closure: what a fuzzer puts in the place of hardware.

use super::MmioDevice;
use crate::addr::MemSize;
use crate::state::{DeviceState, Fields, Stateful};
use std::sync::{Mutex, MutexGuard, PoisonError};

crate::fields! {
    /// What a model without state remembers.
    pub struct Nothing: "nothing", version 1 {}
}

/// An access to a model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MmioAccess {
    /// A load; the closure's result is the value, of which the bits above `size` are ignored.
    Load {
        /// From the start of the model.
        offset: u64,
        /// How wide.
        size: MemSize,
    },
    /// A store; the result is ignored.
    Store {
        /// From the start of the model.
        offset: u64,
        /// How wide.
        size: MemSize,
        /// What; bits above `size` are zero.
        value: u64,
    },
}

/// A device that is a closure, called by one hart at a time. Its state is said when it is made: none, values that checkpoints keep, or some that they
/// cannot, which refuses them by the model's name.
///
/// ```
/// use notdirty_softmmu::{MmioAccess, MmioModel};
/// notdirty_softmmu::fields! {
///     /// Bytes that the guest has read so far.
///     struct Feed: "feed", version 1 { at: u64 }
/// }
/// let input = *b"from a file";
/// let feed = MmioModel::kept("feed", Feed { at: 0 }, move |feed, access| match access {
///     MmioAccess::Load { .. } => {
///         feed.at += 1;
///         input.get(feed.at as usize - 1).copied().unwrap_or(0).into()
///     }
///     MmioAccess::Store { .. } => 0,
/// });
/// ```
pub struct MmioModel<S = Nothing> {
    name: String,
    says: Says,
    inner: Mutex<(S, Model<S>)>,
}

type Model<S> = Box<dyn FnMut(&mut S, MmioAccess) -> u64 + Send>;

#[derive(Clone, Copy)]
enum Says {
    Stateless,
    Kept,
    Unsaved,
}

impl MmioModel {
    /// A model that remembers nothing from one access to the next.
    pub fn stateless(name: &str, mut f: impl FnMut(MmioAccess) -> u64 + Send + 'static) -> MmioModel {
        Self::new(name, Says::Stateless, Nothing {}, move |_, access| f(access))
    }

    /// A model that remembers something, and no checkpoint is taken of it: a machine with it refuses to, and names it.
    pub fn unsaved(name: &str, mut f: impl FnMut(MmioAccess) -> u64 + Send + 'static) -> MmioModel {
        Self::new(name, Says::Unsaved, Nothing {}, move |_, access| f(access))
    }
}

impl<S: Fields> MmioModel<S> {
    /// A model that remembers `state` and nothing else: checkpoints keep it.
    pub fn kept(name: &str, state: S, f: impl FnMut(&mut S, MmioAccess) -> u64 + Send + 'static) -> MmioModel<S> {
        Self::new(name, Says::Kept, state, f)
    }

    fn new(
        name: &str,
        says: Says,
        state: S,
        f: impl FnMut(&mut S, MmioAccess) -> u64 + Send + 'static,
    ) -> MmioModel<S> {
        MmioModel { name: name.to_owned(), says, inner: Mutex::new((state, Box::new(f))) }
    }

    fn inner(&self) -> MutexGuard<'_, (S, Model<S>)> {
        // A closure that panicked is called again.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call(&self, access: MmioAccess) -> u64 {
        let (state, f) = &mut *self.inner();
        f(state, access)
    }
}

impl<S: Fields> MmioDevice for MmioModel<S> {
    fn read(&self, offset: u64, size: MemSize) -> u64 {
        self.call(MmioAccess::Load { offset, size })
    }

    fn write(&self, offset: u64, size: MemSize, value: u64) {
        self.call(MmioAccess::Store { offset, size, value });
    }

    fn state(&self) -> DeviceState<'_> {
        match self.says {
            Says::Stateless => DeviceState::Stateless,
            Says::Kept => DeviceState::Kept(self),
            Says::Unsaved => DeviceState::Unknown,
        }
    }

    fn changes_alone(&self) -> bool {
        false
    }

    fn name(&self) -> &str {
        &self.name
    }
}

impl<S: Fields> Stateful for MmioModel<S> {
    type State = S;

    fn save(&self) -> S {
        self.inner().0.clone()
    }

    fn restore(&self, state: &S) {
        self.inner().0.clone_from(state);
    }
}

impl<S> std::fmt::Debug for MmioModel<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MmioModel").field("name", &self.name).finish_non_exhaustive()
    }
}
