//! The vCPU's side of its port: what only its own thread may do. Others have an `Arc` of the port and none of this, so
//! no other thread answers for a vCPU that runs, or takes a request that it does not serve.

use super::Request;
use super::port::{CLOSED, PARKED, Ticket, VcpuPort};
use crate::memmap::FlatView;
use core::marker::PhantomData;
use notdirty_core::drop_later;
use notdirty_core::sync::{Ordering, fence, thread_number};
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// What was taken from a queue.
#[derive(Debug)]
pub struct Drained {
    /// In the order in which they are to be done.
    pub requests: Vec<Request>,
    /// With remaps: the view after them.
    pub(crate) view: Option<Arc<FlatView>>,
    pub(super) ticket: Ticket,
}

/// A port, with the right to answer for its vCPU: a [`SoftMmu`](crate::SoftMmu) has one, and gives it to no caller.
#[derive(Debug)]
#[repr(transparent)]
pub struct OwnPort(Arc<VcpuPort>);

impl Default for OwnPort {
    /// A port by itself, in no registry.
    fn default() -> Self {
        OwnPort::new(VcpuPort::default())
    }
}

impl Deref for OwnPort {
    type Target = VcpuPort;

    fn deref(&self) -> &VcpuPort {
        &self.0
    }
}

impl OwnPort {
    pub(crate) fn new(port: VcpuPort) -> Self {
        OwnPort(Arc::new(port))
    }

    fn of(port: &Arc<VcpuPort>) -> &OwnPort {
        // SAFETY: transparent.
        unsafe { &*std::ptr::from_ref(port).cast() }
    }

    /// What others have of it.
    pub fn shared(&self) -> &Arc<VcpuPort> {
        &self.0
    }

    /// Takes the kick; returns whether there is anything to drain.
    pub(crate) fn take_kick(&self) -> bool {
        // An exchange, so that it reads from the poster's store and its queueing is seen.
        self.kick.swap(false, Ordering::AcqRel);
        self.queued.load(Ordering::Acquire)
    }

    /// Takes what was posted; clears the kick first, so that a later post is not lost. What was taken is done, and then
    /// [acknowledged](Self::acknowledge); a vCPU does both in `serve`.
    pub fn drain(&self) -> Drained {
        self.take_kick();
        let mut queue = self.queue();
        self.queued.store(false, Ordering::Relaxed);
        queue.drain()
    }

    /// Puts back what was drained and not done, not all of it at least: it is drained again, with what came since.
    pub(crate) fn put_back(&self, drained: Drained) {
        let mut queue = self.queue();
        if self.state.load(Ordering::Relaxed) == CLOSED {
            return;
        }
        for request in drained.requests {
            queue.add(request);
        }
        match &queue.view {
            // It came since, and is the view after these, too.
            Some(_) => drained.view.into_iter().for_each(drop_later),
            None => queue.view = drained.view,
        }
        self.queued.store(true, Ordering::Release);
        self.kick.store(true, Ordering::SeqCst);
        drop(queue);
    }

    /// Everything that was drained was done. Release partners the Acquire in `served`.
    pub fn acknowledge(&self, done: Drained) {
        let Drained { ticket, view, .. } = done;
        // A vCPU's thread runs no destructor of a device.
        view.into_iter().for_each(drop_later);
        if self.served.load(Ordering::Relaxed) < ticket.0 {
            self.served.store(ticket.0, Ordering::Release);
        }
        self.wake_waiters();
    }

    /// The vCPU's thread leaves: from here on whatever is posted counts as served, until `start`.
    pub fn park(&self) {
        self.park_if(|_| true);
    }

    fn park_if(&self, is: impl FnOnce(u64) -> bool) {
        if self.is_parked() || !is(self.starts.load(Ordering::Relaxed)) {
            return;
        }
        // Release: what was stored before is visible to a poster that finds it parked.
        self.state.store(PARKED, Ordering::Release);
        self.wake_waiters();
    }

    /// The vCPU runs on this thread until the result is dropped, and drains before it touches guest memory. `None` if it
    /// runs already.
    pub fn start(&self) -> Option<Started> {
        let start = self.begin()?;
        Some(Started { port: ManuallyDrop::new(self.0.clone()), owned: true, start, thread: PhantomData })
    }

    /// As `start`, without a count of its own.
    ///
    /// # Safety
    /// The result goes before `self`.
    pub(crate) unsafe fn start_within(&self) -> Option<Started> {
        let start = self.begin()?;
        // SAFETY: a copy that is not dropped, of an `Arc` that outlives it, by the caller.
        let port = unsafe { std::ptr::read(&raw const self.0) };
        Some(Started { port: ManuallyDrop::new(port), owned: false, start, thread: PhantomData })
    }

    /// As `start`; it is the caller that parks it. Which start this is. Only the vCPU's owner calls it, so no two do at once.
    pub(crate) fn begin(&self) -> Option<u64> {
        if !self.is_parked() {
            return None;
        }
        let start = self.starts.load(Ordering::Relaxed) + 1;
        self.starts.store(start, Ordering::Relaxed);
        self.state.store(thread_number(), Ordering::Relaxed);
        // Either a poster finds that it runs, and waits, or the kick of what was posted is found by the `serve` behind this.
        fence(Ordering::SeqCst);
        Some(start)
    }

    /// Does the vCPU not run? For its owner: its `&mut` keeps other threads from starting it meanwhile.
    #[inline]
    pub(crate) fn is_parked(&self) -> bool {
        matches!(self.state.load(Ordering::Relaxed), PARKED | CLOSED)
    }

    /// Does the vCPU run, on this thread?
    #[inline]
    pub(crate) fn is_live(&self) -> bool {
        self.state.load(Ordering::Relaxed) == thread_number()
    }

    /// See [`SoftMmu::wait`](crate::SoftMmu::wait).
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        self.park();
        if self.kicked() {
            return true;
        }
        let until = timeout.and_then(|t| Instant::now().checked_add(t));
        let mut queue = self.queue();
        self.asleep.store(true, Ordering::SeqCst);
        let kicked = loop {
            if self.kick.load(Ordering::SeqCst) {
                break true;
            }
            let Some(left) = until.map(|u| u.saturating_duration_since(Instant::now())) else {
                queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            if left.is_zero() {
                break false;
            }
            queue = self.wake.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        };
        self.asleep.store(false, Ordering::SeqCst);
        drop(queue);
        kicked
    }

    /// The vCPU is gone: whatever is or will be posted counts as served.
    pub(crate) fn close(&self) {
        let mut queue = self.queue();
        self.state.store(CLOSED, Ordering::Release);
        queue.view.take().into_iter().for_each(drop_later);
        self.served.store(u64::MAX, Ordering::Release);
        self.acked.notify_all();
        drop(queue);
    }
}

/// A vCPU that runs, on this thread: it answers requests at its safe points, and parks when this is dropped.
#[must_use = "the vCPU parks when this is dropped"]
#[derive(Debug)]
pub struct Started {
    port: ManuallyDrop<Arc<VcpuPort>>,
    /// It has a count of the port.
    owned: bool,
    start: u64,
    /// Not sent to another thread: a wait for the vCPU is refused on the thread that it runs on.
    thread: PhantomData<*const ()>,
}

impl Drop for Started {
    fn drop(&mut self) {
        let port = OwnPort::of(&self.port);
        port.park_if(|start| start == self.start);
        if self.owned {
            // SAFETY: once, and not used after this.
            unsafe { ManuallyDrop::drop(&mut self.port) };
        }
    }
}
