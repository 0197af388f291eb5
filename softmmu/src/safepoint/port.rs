//! The side of a vCPU's port that other threads have: post, kick, wait for the answer.

use super::queue::Queue;
use super::request::Request;
use crate::memmap::FlatView;
use notdirty_core::sync::{
    AtomicBool, AtomicU32, AtomicU64, Condvar, Mutex, MutexGuard, Ordering, fence, lock, thread_number,
};
use notdirty_core::{VcpuId, drop_later};
use std::sync::{Arc, LazyLock, PoisonError};
use std::time::{Duration, Instant};

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

/// It touches no guest memory until it has drained the queue.
pub(super) const PARKED: u64 = 0;
/// It is gone.
pub(super) const CLOSED: u64 = u64::MAX;

/// What naps are counted from.
fn epoch() -> Instant {
    static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);
    *EPOCH
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
    /// Until when the vCPU is to run nothing, in nanoseconds from `epoch` on.
    nap: std::sync::atomic::AtomicU64,
    /// Is anything queued? Set after it is and before the kick, so that a mere kick needs no lock.
    pub(super) queued: AtomicBool,
    pub(super) asleep: AtomicBool,
    pub(super) served: AtomicU64,
    queue: Mutex<Queue>,
    /// [`PARKED`], [`CLOSED`], or the number of the thread that it runs on. Written by the vCPU alone.
    pub(super) state: AtomicU64,
    /// How often the vCPU was started: a `Started` of before parks it no more. Only the vCPU's owner looks.
    pub(super) starts: std::sync::atomic::AtomicU64,
    /// Posters asleep on `acked`, or about to be. Written under the lock.
    pub(super) waiters: AtomicU32,
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
            nap: std::sync::atomic::AtomicU64::new(0),
            queued: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            served: AtomicU64::new(0),
            queue: Mutex::new(Queue::default()),
            state: AtomicU64::new(PARKED),
            starts: std::sync::atomic::AtomicU64::new(0),
            waiters: AtomicU32::new(0),
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

/// A page that the vCPU waits for is here.
impl std::task::Wake for VcpuPort {
    fn wake(self: Arc<Self>) {
        self.kick();
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
        if self.state.load(Ordering::Relaxed) == CLOSED {
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

    /// Until then the vCPU runs nothing: it sleeps, parked, from its next safe point on. What is posted meanwhile it serves, and a stop
    /// ends its run as ever. A time that has passed ends a nap.
    pub fn nap_until(&self, until: Instant) {
        let nanos = until.saturating_duration_since(epoch()).as_nanos();
        self.nap.store(u64::try_from(nanos).unwrap_or(u64::MAX), Ordering::Relaxed);
        // Orders the store before the look that it asks for.
        self.kick();
    }

    /// How long it is to sleep yet. Looked at when the vCPU was kicked, and when it starts.
    pub fn nap_left(&self) -> Option<Duration> {
        let until = self.nap.load(Ordering::Relaxed);
        // The clock is dear for a vCPU that is kicked at each interrupt, and naps never.
        if until == 0 {
            return None;
        }
        let left = Duration::from_nanos(until).saturating_sub(epoch().elapsed());
        if left.is_zero() {
            // Unless it was told another time meanwhile.
            let _ = self.nap.compare_exchange(until, 0, Ordering::Relaxed, Ordering::Relaxed);
            return None;
        }
        Some(left)
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
        fence(Ordering::SeqCst);
        self.acknowledged(ticket) || !self.runs()
    }

    fn acknowledged(&self, ticket: Ticket) -> bool {
        self.served.load(Ordering::Acquire) >= ticket.0
    }

    /// Does it run? Asked behind a fence that follows what the asker wants it to see when it starts: the other one is in `begin`.
    fn runs(&self) -> bool {
        // Acquire: what it stored before it parked is visible.
        !matches!(self.state.load(Ordering::Acquire), PARKED | CLOSED)
    }

    /// Waits until the request was served, or until then.
    pub(crate) fn wait_served(&self, ticket: Ticket, until: Option<Instant>) -> Waited {
        let mut queue = self.queue();
        self.waiters.fetch_add(1, Ordering::Relaxed);
        // Of the request, and of `waiters`.
        fence(Ordering::SeqCst);
        let waited = loop {
            if !self.runs() || self.acknowledged(ticket) {
                break Waited::Served;
            }
            if self.state.load(Ordering::Relaxed) == thread_number() {
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
        self.waiters.store(self.waiters.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
        drop(queue);
        waited
    }

    /// Wakes who waits for an answer, after there is one.
    pub(super) fn wake_waiters(&self) {
        fence(Ordering::SeqCst);
        if self.waiters.load(Ordering::Relaxed) > 0 {
            // With the lock, it does not fall between a waiter's look and its sleep.
            let _queue = self.queue();
            self.acked.notify_all();
        }
    }

    /// Drives an interrupt line, given as the number of its `mip` bit; a rise kicks. Bits past 63 do not exist.
    pub fn set_irq(&self, bit: u32, level: bool) {
        let Some(mask) = 1u64.checked_shl(bit) else { return };
        // A line has one driver, which mostly says again what it said: that writes nothing.
        if self.irq.load(Ordering::Acquire) & mask == if level { mask } else { 0 } {
            return;
        }
        let old =
            if level { self.irq.fetch_or(mask, Ordering::AcqRel) } else { self.irq.fetch_and(!mask, Ordering::AcqRel) };
        // A line that falls is no reason to look.
        if level && old & mask == 0 {
            self.kick();
        }
    }
}
