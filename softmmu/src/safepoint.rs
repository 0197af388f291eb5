//! How anybody else reaches a vCPU: post a request, kick, and (if need be) wait until it was served.
//!
//! ```text
//!   any thread                                   the vCPU's thread
//!   post(r):  queue ← r, ticket += 1             JIT / exec loop polls `kick`
//!             kick ← true, wake if asleep        serve():  kick ← false, drain the queue
//!   wait_served(ticket) ◀────────────────────────          act on its own TLB, then served ← ticket
//! ```
//!
//! Keeps TLB-1: a request reaches every vCPU, no poster skips one on a hint; too many re-arms become one flush; the
//! owner acts first and acknowledges last. Keeps its part of SAFE-1: `wait` is called with no RCU guard held.

use notdirty_core::{PageRange, RamAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Re-arms that pile up in one queue before they become a flush.
const MAX_REARMS: usize = 64;
/// Kills that pile up before neighbours are merged.
const MAX_KILLS: usize = 64;

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
    /// The memory map changed: drop every entry and look at the new view.
    FlushAll,
}

/// Counts requests of one port: served when [`VcpuPort::served`] has reached it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Ticket(u64);

#[derive(Debug, Default)]
struct Queue {
    kills: Vec<(u64, u64)>,
    rearms: Vec<PageRange>,
    flush: bool,
    /// Merge kills again when there are this many.
    merge_at: usize,
    posted: u64,
    /// Posters asleep on `acked`: waking nobody is a system call too.
    waiters: u32,
    closed: bool,
}

/// The shared side of one vCPU.
#[derive(Debug)]
pub struct VcpuPort {
    /// "Look at me": the exec loop looks between slices, and after each instruction done in Rust. Set after a request is queued, cleared before the queue is drained.
    pub kick: AtomicBool,
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
}

impl Default for VcpuPort {
    fn default() -> Self {
        VcpuPort {
            kick: AtomicBool::new(false),
            irq: AtomicU64::new(0),
            timer_deadline: AtomicU64::new(u64::MAX),
            stop: AtomicBool::new(false),
            queued: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            served: AtomicU64::new(0),
            queue: Mutex::default(),
            wake: Condvar::new(),
            acked: Condvar::new(),
        }
    }
}

impl VcpuPort {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Nothing in this file panics with the lock held; if an allocation did, the queue is still whole.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a request and kicks. The ticket tells when it was served.
    pub fn post(&self, request: Request) -> Ticket {
        let mut queue = self.queue();
        queue.posted += 1;
        let ticket = Ticket(queue.posted);
        if queue.closed {
            // The vCPU is gone and its TLB with it: nothing can be stale, and `served` is at its end.
            return ticket;
        }
        match request {
            Request::KillCode { ram, len } => queue.add_kill(ram.get(), len),
            Request::Rearm(range) => queue.add_rearm(range),
            Request::FlushAll => queue.flush = true,
        }
        self.queued.store(true, Ordering::Release);
        drop(queue);
        self.kick();
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

    /// Was a stop asked for, and not taken yet?
    pub fn stop_requested(&self) -> bool {
        self.stop.load(Ordering::Acquire)
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

    /// Takes what was posted; clears the kick first, so that a later post is not lost.
    /// It acknowledges nothing: `SoftMmu::serve` is for that.
    pub fn take(&self) -> Vec<Request> {
        self.drain().0
    }

    /// Takes the kick; returns whether there is anything to drain.
    pub(crate) fn take_kick(&self) -> bool {
        // An exchange, so that it reads from the poster's store and its queueing is seen.
        self.kick.swap(false, Ordering::AcqRel);
        self.queued.load(Ordering::Acquire)
    }

    /// As `take`, with the ticket to acknowledge once all of it was done.
    pub(crate) fn drain(&self) -> (Vec<Request>, Ticket) {
        self.take_kick();
        let mut queue = self.queue();
        self.queued.store(false, Ordering::Relaxed);
        queue.merge_at = 0;
        let mut requests = Vec::with_capacity(queue.kills.len() + queue.rearms.len() + 1);
        for (ram, len) in queue.kills.drain(..) {
            requests.push(Request::KillCode { ram: RamAddr::new(ram), len });
        }
        // A flush re-arms everything.
        if core::mem::take(&mut queue.flush) {
            queue.rearms.clear();
            requests.push(Request::FlushAll);
        }
        requests.extend(queue.rearms.drain(..).map(Request::Rearm));
        (requests, Ticket(queue.posted))
    }

    /// Everything up to `ticket` was done. Release partners the Acquire in `served`.
    pub(crate) fn acknowledge(&self, ticket: Ticket) {
        let queue = self.queue();
        if self.served.load(Ordering::Relaxed) < ticket.0 {
            self.served.store(ticket.0, Ordering::Release);
        }
        if queue.waiters > 0 {
            self.acked.notify_all();
        }
    }

    /// Has the vCPU served the request of this ticket?
    pub fn served(&self, ticket: Ticket) -> bool {
        self.served.load(Ordering::Acquire) >= ticket.0
    }

    /// Waits until the request was served; `false` when time ran out. Never call it on the vCPU's own thread.
    pub fn wait_served(&self, ticket: Ticket, timeout: Option<Duration>) -> bool {
        let until = timeout.and_then(|t| Instant::now().checked_add(t));
        let mut queue = self.queue();
        queue.waiters += 1;
        let served = loop {
            if self.served(ticket) {
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

    /// Sleeps until kicked, or until the time is up; returns whether it was kicked. A kick that came before counts.
    /// The vCPU calls it for `wfi`, with no RCU guard held (SAFE-1), and serves afterwards.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
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
        queue.closed = true;
        self.served.store(u64::MAX, Ordering::Release);
        self.acked.notify_all();
    }
}

impl Queue {
    fn add_rearm(&mut self, range: PageRange) {
        if self.flush || range.is_empty() {
            return;
        }
        self.rearms.push(range);
        if self.rearms.len() > MAX_REARMS {
            self.rearms.clear();
            self.flush = true;
        }
    }

    /// A parked vCPU must not make its queue grow with every DMA: kills that share or touch a line are merged, so
    /// that the queue is bounded by the lines that hold code.
    fn add_kill(&mut self, ram: u64, len: u64) {
        if len == 0 {
            return;
        }
        self.kills.push((ram, len));
        if self.kills.len() < self.merge_at.max(MAX_KILLS) {
            return;
        }
        self.kills.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::with_capacity(self.kills.len());
        for &(ram, len) in &self.kills {
            let end = ram.saturating_add(len);
            match merged.last_mut() {
                // Within 64 bytes of each other: at worst a TB between them dies for nothing.
                Some(last) if ram <= last.0.saturating_add(last.1).saturating_add(64) => {
                    last.1 = last.1.max(end - last.0);
                }
                _ => merged.push((ram, end - ram)),
            }
        }
        self.kills = merged;
        self.merge_at = 2 * self.kills.len();
    }
}

/// Requests on their way to other vCPUs.
#[derive(Debug, Default)]
pub struct Pending {
    acks: Vec<(Ticket, Arc<VcpuPort>)>,
}

impl Pending {
    /// Have all of them served it?
    pub fn is_served(&mut self) -> bool {
        self.acks.retain(|(ticket, port)| !port.served(*ticket));
        self.acks.is_empty()
    }
}

/// All vCPUs of an address space.
#[derive(Debug, Default)]
pub struct VcpuRegistry {
    ports: Mutex<Vec<Weak<VcpuPort>>>,
}

impl VcpuRegistry {
    fn ports(&self) -> MutexGuard<'_, Vec<Weak<VcpuPort>>> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A port for one more vCPU; it is forgotten when the last `Arc` goes.
    pub fn register(&self) -> Arc<VcpuPort> {
        let port = Arc::new(VcpuPort::default());
        let mut ports = self.ports();
        ports.retain(|p| p.strong_count() > 0);
        ports.push(Arc::downgrade(&port));
        port
    }

    /// The ports of all vCPUs alive now.
    pub fn all(&self) -> Vec<Arc<VcpuPort>> {
        self.ports().iter().filter_map(Weak::upgrade).collect()
    }

    /// Posts to every vCPU.
    pub fn post_all(&self, request: Request) {
        for port in self.all() {
            port.post(request);
        }
    }

    /// Posts to every vCPU but the one of `own`, which acts at once.
    pub fn post_others(&self, own: &VcpuPort, request: Request) -> Pending {
        let ports = self.ports();
        // The usual case, one vCPU, costs no allocation.
        let others = ports.iter().filter(|p| !std::ptr::eq(p.as_ptr(), own)).filter_map(Weak::upgrade);
        Pending { acks: others.map(|port| (port.post(request), port)).collect() }
    }

    /// Posts to every vCPU and waits until all have served it; `false` when time ran out. A vCPU that is not run by
    /// anybody does not answer; do not call this on a vCPU's own thread.
    pub fn post_all_and_wait(&self, request: Request, timeout: Option<Duration>) -> bool {
        let until = timeout.and_then(|t| Instant::now().checked_add(t));
        let tickets: Vec<_> = self.all().into_iter().map(|port| (port.post(request), port)).collect();
        tickets.into_iter().all(|(ticket, port)| {
            let left = until.map(|u| u.saturating_duration_since(Instant::now()));
            port.wait_served(ticket, left)
        })
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
        let port = VcpuPort::default();
        let ticket = port.post(Request::Rearm(pages(1, 2)));
        assert!(port.kicked());
        let (requests, upto) = port.drain();
        assert_eq!(requests, [Request::Rearm(pages(1, 2))]);
        assert!(!port.kicked() && !port.served(ticket), "taking is not serving");
        port.acknowledge(upto);
        assert!(port.served(ticket));
        assert!(port.take().is_empty());
    }

    #[test]
    fn too_many_rearms_become_one_flush() {
        let port = VcpuPort::default();
        for n in 0..1000 {
            port.post(Request::Rearm(pages(2 * n, 2 * n + 1)));
        }
        assert_eq!(port.take(), [Request::FlushAll]);
    }

    #[test]
    fn kills_of_a_parked_vcpu_are_merged_and_none_is_lost() {
        let port = VcpuPort::default();
        for round in 0..10 {
            for n in 0..100u64 {
                port.post(Request::KillCode { ram: RamAddr::new(n * 4096 + round * 8), len: 8 });
            }
        }
        let kills = port.take();
        assert!(kills.len() <= 300, "{}", kills.len());
        for n in 0..100u64 {
            for byte in 0..80 {
                let at = n * 4096 + byte;
                assert!(kills.iter().any(|r| matches!(r, Request::KillCode { ram, len }
                    if (ram.get()..ram.get() + len).contains(&at))));
            }
        }
    }

    #[test]
    fn wait_ends_by_a_kick_by_time_and_by_an_earlier_kick() {
        let port = Arc::new(VcpuPort::default());
        assert!(!port.wait(Some(Duration::from_millis(2))));
        port.set_irq(7, true);
        assert!(port.wait(None));
        port.take();
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
        let port = VcpuPort::default();
        let before = port.post(Request::FlushAll);
        port.close();
        assert!(port.served(before));
        let after = port.post(Request::FlushAll);
        assert!(port.wait_served(after, Some(Duration::ZERO)));
    }
}
