//! The vCPU's side of its port: what only its own thread may do. Others have an `Arc` of the port and none of this, so
//! no other thread answers for a vCPU that runs, or takes a request that it does not serve.

use super::Request;
use super::port::{Ticket, VcpuPort};
use super::queue::State;
use crate::memmap::FlatView;
use core::marker::PhantomData;
use notdirty_core::drop_later;
use notdirty_core::sync::{Ordering, current_thread, thread_token};
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
        if queue.state == State::Closed {
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
        let queue = self.queue();
        if self.served.load(Ordering::Relaxed) < ticket.0 {
            self.served.store(ticket.0, Ordering::Release);
        }
        if queue.waiters > 0 {
            self.acked.notify_all();
        }
    }

    /// The vCPU's thread leaves: from here on whatever is posted counts as served, until `start`.
    pub fn park(&self) {
        self.park_if(|_| true);
    }

    fn park_if(&self, is: impl FnOnce(u64) -> bool) {
        let mut queue = self.queue();
        if !matches!(queue.state, State::Running(_)) || !is(queue.starts) {
            return;
        }
        queue.state = State::Parked;
        self.live.store(0, Ordering::Relaxed);
        if queue.waiters > 0 {
            self.acked.notify_all();
        }
    }

    /// The vCPU runs on this thread until the result is dropped, and drains before it touches guest memory. `None` if it
    /// runs already.
    pub fn start(&self) -> Option<Started> {
        let start = self.begin()?;
        Some(Started { port: OwnPort(self.0.clone()), start, thread: PhantomData })
    }

    /// As `start`; it is the caller that parks it. Which start this is.
    pub(crate) fn begin(&self) -> Option<u64> {
        let mut queue = self.queue();
        if !matches!(queue.state, State::Parked) {
            return None;
        }
        queue.state = State::Running(current_thread());
        queue.starts += 1;
        self.live.store(thread_token(), Ordering::Relaxed);
        Some(queue.starts)
    }

    /// Does the vCPU not run? For its owner: its `&mut` keeps other threads from starting it meanwhile.
    #[inline]
    pub(crate) fn is_parked(&self) -> bool {
        self.live.load(Ordering::Relaxed) == 0
    }

    /// Does the vCPU run, on this thread?
    #[inline]
    pub(crate) fn is_live(&self) -> bool {
        self.live.load(Ordering::Relaxed) == thread_token()
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
        queue.state = State::Closed;
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
    port: OwnPort,
    start: u64,
    /// Not sent to another thread: a wait for the vCPU is refused on the thread that it runs on.
    thread: PhantomData<*const ()>,
}

impl Drop for Started {
    fn drop(&mut self) {
        self.port.park_if(|start| start == self.start);
    }
}
