//! How anybody else reaches a vCPU: post a request, kick, and (if need be) wait until it was served.
//!
//! ```text
//!   any thread                                   the vCPU's thread
//!   post(r):  queue ← r, ticket += 1             JIT / exec loop polls `kick`
//!             kick ← true                        serve():  kick ← false, drain the queue
//!   wait_served(ticket) ◀────────────────────────          act on its own TLB, then served ← ticket
//!             │
//!             └── or parked: not in its loop, or asleep. It stores nothing, and drains before it stores again.
//! ```
//!
//! Keeps TLB-1: a request reaches every vCPU, no poster skips one on a hint; too many re-arms become one of everything;
//! the owner acts first and acknowledges last, and who panics in between puts back what it took. Parked is no hint: it is read under the queue's lock, which the vCPU
//! takes to park (so what it stored is visible to who finds it parked) and to unpark (so what was posted before is in
//! the queue that it then drains). That a parked vCPU stores nothing before it drains is for its owner to keep, see
//! `SoftMmu::park`. Keeps its part of SAFE-1: `wait` is called with no RCU guard held.
//!
//! What posters do is here; what the vCPU's own thread does, and only it can, is in `safepoint/own.rs`.
//!
//! Only a changed map wakes a sleeper, as its old view keeps memory; re-arms and kills can wait until it wakes.

mod own;
mod queue;

use crate::addr::GuestPhys;
use crate::memmap::FlatView;
use notdirty_core::sync::{AtomicBool, AtomicU64, Condvar, Mutex, MutexGuard, Ordering, lock};
use notdirty_core::{PageRange, RamAddr};
use queue::Queue;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

pub use own::{Drained, OwnPort, Running};

/// What others may ask of a vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// Bytes `[ram, ram + len)` were written by somebody else: drop the TBs over them.
    KillCode {
        /// First byte.
        ram: RamAddr,
        /// How many.
        len: u64,
    },
    /// Bits of these pages were taken or cleared: their entries must be asked about again.
    Rearm(PageRange),
    /// What these guest addresses are has changed: drop what came from there.
    Remap {
        /// First address.
        start: GuestPhys,
        /// Last address, inclusive.
        last: GuestPhys,
    },
    /// The memory map changed in too many places: drop every entry and look at the new view.
    FlushAll,
}

/// Names a vCPU of an address space; used once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct VcpuId(u64);

impl VcpuId {
    /// A name for a vCPU without a registry: in tests.
    pub const fn new(id: u64) -> Self {
        VcpuId(id)
    }
}

/// Counts requests of one port: served when [`VcpuPort::served`] has reached it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Ticket(u64);

/// The shared side of one vCPU.
#[derive(Debug)]
pub struct VcpuPort {
    /// "Look at me": the exec loop looks between slices and before translations, and after each instruction done in
    /// Rust. Set after a request is queued, cleared before the queue is drained.
    kick: AtomicBool,
    /// Interrupt lines that devices drive, as `mip` bits.
    pub irq: AtomicU64,
    /// When the timer interrupt is due, in `mtime` ticks; `u64::MAX` is never.
    pub timer_deadline: AtomicU64,
    stop: AtomicBool,
    /// Is anything queued? Set after it is and before the kick, so that a mere kick needs no lock.
    queued: AtomicBool,
    asleep: AtomicBool,
    served: AtomicU64,
    queue: Mutex<Queue>,
    /// The vCPU sleeps here.
    wake: Condvar,
    /// Posters that wait for an acknowledgement sleep here.
    acked: Condvar,
    id: VcpuId,
}

impl Default for VcpuPort {
    /// A port by itself, in no registry.
    fn default() -> Self {
        VcpuPort::new(VcpuId::default())
    }
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
            wake: Condvar::new(),
            acked: Condvar::new(),
            id,
        }
    }
}

impl VcpuPort {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Nothing in this file panics with the lock held; if an allocation did, the queue is still whole.
        lock(&self.queue)
    }

    /// Whose port it is.
    pub fn id(&self) -> VcpuId {
        self.id
    }

    /// Queues a request and kicks. The ticket tells when it was served.
    pub fn post(&self, request: Request) -> Ticket {
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
        if queue.closed {
            // The vCPU is gone and its TLB with it: nothing can be stale, and `served` is at its end.
            return ticket;
        }
        let mut wake = false;
        for request in requests {
            queue.add(request);
            wake |= matches!(request, Request::Remap { .. } | Request::FlushAll);
        }
        // What it replaces is dropped after the lock.
        let _old = match view {
            Some(view) => queue.view.replace(view.clone()),
            None => None,
        };
        self.queued.store(true, Ordering::Release);
        self.kick.store(true, Ordering::SeqCst);
        if wake && self.asleep.load(Ordering::SeqCst) {
            self.wake.notify_all();
        }
        drop(queue);
        ticket
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

    /// Where emitted code looks for [`kicked`](Self::kicked): a byte, zero or not, which lives as long as the port.
    pub fn kick_byte(&self) -> *const u8 {
        std::ptr::from_ref(&self.kick).cast()
    }

    /// Has the vCPU served the request of this ticket, or will it before it touches guest memory again?
    pub fn served(&self, ticket: Ticket) -> bool {
        self.acknowledged(ticket) || self.queue().parked
    }

    fn acknowledged(&self, ticket: Ticket) -> bool {
        self.served.load(Ordering::Acquire) >= ticket.0
    }

    /// Waits until the request was served; `false` when time ran out. Never call it on the vCPU's own thread.
    pub fn wait_served(&self, ticket: Ticket, timeout: Option<Duration>) -> bool {
        let until = timeout.and_then(|t| Instant::now().checked_add(t));
        let mut queue = self.queue();
        queue.waiters += 1;
        let served = loop {
            if queue.parked || self.acknowledged(ticket) {
                break true;
            }
            let Some(left) = until.map(|u| u.saturating_duration_since(Instant::now())) else {
                queue = self.acked.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            if left.is_zero() {
                break false;
            }
            queue = self.acked.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        };
        queue.waiters -= 1;
        served
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

#[cfg(test)]
mod tests {
    use super::*;
    use notdirty_core::PageIndex;

    fn pages(start: u64, end: u64) -> PageRange {
        PageRange { start: PageIndex::new(start), end: PageIndex::new(end) }
    }

    #[test]
    fn a_post_kicks_and_is_taken_once() {
        let port = OwnPort::default();
        let ticket = port.post(Request::Rearm(pages(1, 2)));
        assert!(port.kicked());
        let done = port.drain();
        assert_eq!(done.requests, [Request::Rearm(pages(1, 2))]);
        assert!(!port.kicked() && !port.served(ticket), "taking is not serving");
        port.acknowledge(done);
        assert!(port.served(ticket));
        assert!(port.drain().requests.is_empty());
    }

    #[test]
    fn a_parked_vcpu_has_served_everything_and_finds_it_when_it_is_back() {
        let port = Arc::new(OwnPort::default());
        let running = port.running();
        let rearm = Request::Rearm(pages(1, 2));
        let ticket = port.post(rearm);
        assert!(!port.wait_served(ticket, Some(Duration::ZERO)));
        drop(running);
        assert!(port.wait_served(ticket, None));
        let late = port.post(rearm);
        assert!(port.served(late));
        port.unpark();
        assert!(port.kicked() && !port.served(late), "back, and not served yet");
        let done = port.drain();
        assert_eq!(done.requests, [rearm, rearm]);
        port.acknowledge(done);
        assert!(port.served(late));
    }

    #[test]
    fn a_poster_that_waits_is_let_go_when_the_vcpu_parks_or_falls_asleep() {
        for asleep in [false, true] {
            let port = Arc::new(OwnPort::default());
            let ticket = port.post(Request::Rearm(pages(1, 2)));
            let done = port.drain();
            std::thread::scope(|scope| {
                let waiter = scope.spawn(|| port.wait_served(ticket, Some(Duration::from_secs(20))));
                if asleep {
                    while !waiter.is_finished() {
                        port.wait(Some(Duration::from_millis(1)));
                    }
                } else {
                    port.park();
                }
                assert!(waiter.join().unwrap());
            });
            port.acknowledge(done);
        }
    }

    #[test]
    fn a_rearm_wakes_no_sleeper_and_a_new_map_does() {
        let port = Arc::new(OwnPort::default());
        let sleeper = std::thread::spawn({
            let port = port.clone();
            move || port.wait(Some(Duration::from_secs(20)))
        });
        while !port.asleep.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        let ticket = port.post(Request::Rearm(pages(1, 2)));
        assert!(port.served(ticket) && !sleeper.is_finished());
        port.post(Request::FlushAll);
        assert!(sleeper.join().unwrap());
    }

    #[test]
    fn wait_ends_by_a_kick_by_time_and_by_an_earlier_kick() {
        let port = Arc::new(OwnPort::default());
        assert!(!port.wait(Some(Duration::from_millis(2))));
        port.set_irq(7, true);
        assert!(port.wait(None));
        port.drain();
        port.set_irq(7, true);
        assert!(!port.kicked(), "a level that stays is no news");
        port.set_irq(64, true);
        let other = port.clone();
        let waker = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(5));
            other.kick();
        });
        assert!(port.wait(None));
        waker.join().unwrap();
    }

    #[test]
    fn requests_to_a_vcpu_that_is_gone_count_as_served() {
        let port = OwnPort::default();
        let before = port.post(Request::FlushAll);
        port.close();
        assert!(port.served(before));
        let after = port.post(Request::FlushAll);
        assert!(port.wait_served(after, Some(Duration::ZERO)));
    }
}
