//! The side of a vCPU's port that other threads have: post, kick, wait for the answer.

use super::queue::{Queue, State};
use super::request::Request;
use crate::memmap::FlatView;
use notdirty_core::sync::{AtomicBool, AtomicU64, Condvar, Mutex, MutexGuard, Ordering, current_thread, lock};
use notdirty_core::{VcpuId, drop_later};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

/// Counts requests of one port: served when `VcpuPort::served` has reached it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Ticket(pub(super) u64);

/// How a wait for an answer ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Waited {
    /// With it, or the vCPU will have served before it touches guest memory again.
    Served,
    /// Time ran out.
    Late,
    /// It would not have come: the vCPU runs on the waiting thread.
    OwnThread,
}

/// The shared side of one vCPU.
#[derive(Debug)]
pub struct VcpuPort {
    /// "Look at me": the exec loop looks between slices and before translations, and after each instruction done in
    /// Rust. Set after a request is queued, cleared before the queue is drained.
    pub(super) kick: AtomicBool,
    /// Interrupt lines that devices drive, as `mip` bits.
    pub irq: AtomicU64,
    /// When the timer interrupt is due, in `mtime` ticks; `u64::MAX` is never.
    pub timer_deadline: AtomicU64,
    stop: AtomicBool,
    /// Is anything queued? Set after it is and before the kick, so that a mere kick needs no lock.
    pub(super) queued: AtomicBool,
    pub(super) asleep: AtomicBool,
    pub(super) served: AtomicU64,
    queue: Mutex<Queue>,
    /// Between `start` and `park` the token of the thread that started it, else 0; the owner reads it, to know that it may touch
    /// guest memory on this thread.
    pub(super) live: AtomicUsize,
    /// The vCPU sleeps here.
    pub(super) wake: Condvar,
    /// Posters that wait for an acknowledgement sleep here.
    pub(super) acked: Condvar,
    id: VcpuId,
}

impl VcpuPort {
    pub(crate) fn new(id: VcpuId) -> Self {
        VcpuPort {
            kick: AtomicBool::new(false),
            irq: AtomicU64::new(0),
            timer_deadline: AtomicU64::new(u64::MAX),
            stop: AtomicBool::new(false),
            queued: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            served: AtomicU64::new(0),
            queue: Mutex::new(Queue::default()),
            live: AtomicUsize::new(0),
            wake: Condvar::new(),
            acked: Condvar::new(),
            id,
        }
    }
}

impl Default for VcpuPort {
    /// A port by itself, of no vCPU: for the tests of devices.
    fn default() -> Self {
        VcpuPort::new(VcpuId::default())
    }
}

impl VcpuPort {
    pub(super) fn queue(&self) -> MutexGuard<'_, Queue> {
        // Nothing in this file panics with the lock held; if an allocation did, the queue is still whole.
        lock(&self.queue)
    }

    /// The vCPU that this is the port of.
    pub fn id(&self) -> VcpuId {
        self.id
    }

    /// Queues a request and kicks. The ticket tells when it was served.
    pub(crate) fn post(&self, request: Request) -> Ticket {
        self.post_each([request], None)
    }

    /// As `post`, for several at once; `view` is the map after the remaps among them.
    pub(crate) fn post_each(
        &self,
        requests: impl IntoIterator<Item = Request>,
        view: Option<&Arc<FlatView>>,
    ) -> Ticket {
        let mut queue = self.queue();
        queue.posted += 1;
        let ticket = Ticket(queue.posted);
        if queue.state == State::Closed {
            // The vCPU is gone and its TLB with it: nothing can be stale, and `served` is at its end.
            return ticket;
        }
        let mut wake = false;
        for request in requests {
            queue.add(request);
            wake |= matches!(request, Request::Remap { .. } | Request::FlushAll);
        }
        if let Some(view) = view {
            // With what it replaces goes perhaps a device, and the poster may be inside of one.
            queue.view.replace(view.clone()).into_iter().for_each(drop_later);
        }
        self.queued.store(true, Ordering::Release);
        self.kick.store(true, Ordering::SeqCst);
        if wake && self.asleep.load(Ordering::SeqCst) {
            self.wake.notify_all();
        }
        drop(queue);
        ticket
    }

    /// Where emitted code looks for [`kicked`](Self::kicked): a byte, zero or not, which lives as long as the port.
    pub fn kick_byte(&self) -> *const u8 {
        std::ptr::from_ref(&self.kick).cast()
    }

    /// Makes the vCPU look: out of its loop, or out of `wait`.
    pub fn kick(&self) {
        // SeqCst here and in `wait`: either we see `asleep`, or the sleeper sees `kick`.
        self.kick.store(true, Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst) {
            // With the lock, the notification cannot fall between the sleeper's test and its sleep.
            let _queue = self.queue();
            self.wake.notify_all();
        }
    }

    /// Asks the vCPU to leave its loop at the next safe point: a device that ends the run, or the host.
    pub fn request_stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.kick();
    }

    /// Takes a stop request; the loop then returns.
    pub fn take_stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed) && self.stop.swap(false, Ordering::AcqRel)
    }

    /// Was the vCPU kicked since its last `take` or `serve`?
    #[inline]
    pub fn kicked(&self) -> bool {
        self.kick.load(Ordering::Acquire)
    }

    /// Has the vCPU served the request of this ticket, or will it before it touches guest memory again?
    pub(crate) fn served(&self, ticket: Ticket) -> bool {
        self.acknowledged(ticket) || self.queue().is_parked()
    }

    fn acknowledged(&self, ticket: Ticket) -> bool {
        self.served.load(Ordering::Acquire) >= ticket.0
    }

    /// Waits until the request was served, or until then.
    pub(crate) fn wait_served(&self, ticket: Ticket, until: Option<Instant>) -> Waited {
        let mut queue = self.queue();
        queue.waiters += 1;
        let waited = loop {
            if queue.is_parked() || self.acknowledged(ticket) {
                break Waited::Served;
            }
            if queue.state == State::Running(current_thread()) {
                break Waited::OwnThread;
            }
            let Some(until) = until else {
                queue = self.acked.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break Waited::Late;
            }
            queue = self.acked.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        };
        queue.waiters -= 1;
        waited
    }

    /// Drives an interrupt line, given as the number of its `mip` bit; a rise kicks. Bits past 63 do not exist.
    pub fn set_irq(&self, bit: u32, level: bool) {
        let Some(mask) = 1u64.checked_shl(bit) else { return };
        let old =
            if level { self.irq.fetch_or(mask, Ordering::AcqRel) } else { self.irq.fetch_and(!mask, Ordering::AcqRel) };
        // A line that falls is no reason to look.
        if level && old & mask == 0 {
            self.kick();
        }
    }
}
