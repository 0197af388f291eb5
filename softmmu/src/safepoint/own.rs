//! The vCPU's side of its port: what only its own thread may do. Others have an `Arc` of the port and none of this, so
//! nobody answers for a vCPU that runs, and no request is taken by who does not serve it.

use super::{Request, Ticket, VcpuPort};
use crate::memmap::FlatView;
use notdirty_core::sync::Ordering;
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

/// A port, with the right to answer for its vCPU: a [`SoftMmu`](crate::SoftMmu) has one, and shows it to nobody.
#[derive(Debug, Default)]
pub struct OwnPort(Arc<VcpuPort>);

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
    /// [acknowledged](Self::acknowledge); a [`SoftMmu`](crate::SoftMmu) does both in `serve`.
    pub fn drain(&self) -> Drained {
        self.take_kick();
        let mut queue = self.queue();
        self.queued.store(false, Ordering::Relaxed);
        queue.drain()
    }

    /// Puts back what was drained and not done, not all of it at least: it is drained again, with what came since.
    pub(crate) fn put_back(&self, drained: Drained) {
        let mut queue = self.queue();
        if queue.closed {
            return;
        }
        for request in drained.requests {
            queue.add(request);
        }
        // One that came since is the view after these, too.
        let _newer = match &queue.view {
            Some(_) => drained.view,
            None => {
                queue.view = drained.view;
                None
            }
        };
        self.queued.store(true, Ordering::Release);
        self.kick.store(true, Ordering::SeqCst);
        drop(queue);
    }

    /// Everything that was drained was done. Release partners the Acquire in `served`.
    pub fn acknowledge(&self, done: Drained) {
        let Drained { ticket, view, .. } = done;
        // Dropping a view may free memory and call destructors.
        drop(view);
        let queue = self.queue();
        if self.served.load(Ordering::Relaxed) < ticket.0 {
            self.served.store(ticket.0, Ordering::Release);
        }
        if queue.waiters > 0 {
            self.acked.notify_all();
        }
    }

    /// The vCPU's thread leaves: from here on whatever is posted counts as served, until `unpark`.
    pub fn park(&self) {
        let mut queue = self.queue();
        queue.parked = true;
        if queue.waiters > 0 {
            self.acked.notify_all();
        }
    }

    /// The vCPU's thread is back, and must drain before it touches guest memory.
    pub fn unpark(&self) {
        self.queue().parked = false;
    }

    /// As `unpark`, until the result is dropped.
    pub(crate) fn running(&self) -> Running {
        self.unpark();
        Running(OwnPort(self.0.clone()))
    }

    /// See [`SoftMmu::wait`](crate::SoftMmu::wait).
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        if self.kicked() {
            return true;
        }
        let until = timeout.and_then(|t| Instant::now().checked_add(t));
        let mut queue = self.queue();
        let was_parked = core::mem::replace(&mut queue.parked, true);
        if queue.waiters > 0 {
            self.acked.notify_all();
        }
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
        queue.parked = was_parked;
        drop(queue);
        kicked
    }

    /// The vCPU is gone: whatever is or will be posted counts as served.
    pub(crate) fn close(&self) {
        let mut queue = self.queue();
        queue.closed = true;
        // Held by nobody's TLB any more; dropped after the lock.
        let _view = queue.view.take();
        self.served.store(u64::MAX, Ordering::Release);
        self.acked.notify_all();
        drop(queue);
    }
}

/// A vCPU that runs: it answers requests at its safe points, and parks when this is dropped.
#[must_use = "the vCPU parks when this is dropped"]
#[derive(Debug)]
pub struct Running(OwnPort);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.park();
    }
}
