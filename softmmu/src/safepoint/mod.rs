//! How other threads reach a vCPU: post a request, kick, and (if need be) wait until it was served.
//!
//! ```text
//!   any thread                                   the vCPU's thread
//!   post(r):  queue ← r, ticket += 1             JIT / exec loop polls `kick`
//!             kick ← true                        serve():  kick ← false, drain the queue
//!   wait_served(ticket) ◀────────────────────────          act on its own TLB, then served ← ticket
//! ```
//!
//! A vCPU is in one of four states, all of them `state`, which the vCPU alone writes, without a lock:
//!
//! | state | is | a post | a wait for an answer |
//! | --- | --- | --- | --- |
//! | parked | new, or between runs | is queued, and kicks | returns at once |
//! | running | between `start` and `park`, on one thread | is queued, and kicks | waits for the answer, or for the vCPU to park; on the vCPU's own thread it is refused |
//! | asleep | in `wait`, parked | is queued, and kicks; a changed map or a kick by itself wakes it | returns at once |
//! | closed | its `SoftMmu` has been dropped | is dropped | returns at once |
//!
//! | field | written by | read by | ordering |
//! | --- | --- | --- | --- |
//! | `queue` | posters, the vCPU | both | its lock |
//! | `kick` | posters, after they queued; the vCPU takes it before it drains | the vCPU, often | Release, Acquire; SeqCst against `asleep` |
//! | `queued` | posters, before the kick; the vCPU | the vCPU, to drain only if there is something | Release, Acquire |
//! | `asleep` | the vCPU | posters that kick | SeqCst: a sleeper sees the kick, or the kicker sees the sleeper |
//! | `served` | the vCPU, after it acted | posters that wait | Release, Acquire |
//! | `state` | the vCPU: the number of the thread that it runs on, or that it is parked | posters that wait; what owns the vCPU | fences, below |
//! | `waiters` | posters that wait, under the lock | the vCPU, after it parked or answered | fences, below |
//! | `irq`, `timer_deadline`, `stop` | devices, the host | the vCPU | Acquire, Release; a rise kicks |
//!
//! Keeps TLB-1: no vCPU is skipped on a hint; excess re-arms collapse into one for all pages; the vCPU acts, then
//! acknowledges; on a panic it requeues what it drained. Parked is no hint. To start is to write `state`, a fence, and to look at the
//! kick; to post and wait is to queue and kick, a fence, and to look at `state`: either the vCPU finds what was posted, and drains it before
//! anything is stored, or the poster finds that it runs. To park is to write `state` (Release: what it stored is visible to the
//! poster that finds it parked), a fence, and to look for waiters, who count themselves before a fence and their look. Keeps its part of
//! SAFE-1: `wait` is called with no RCU guard held, and a poster's wait is refused on the thread that would have to answer.
//!
//! Only a changed map wakes a sleeper, because its old view keeps memory; re-arms and kills wait until it wakes.
//!
//! | file | concept |
//! | --- | --- |
//! | `request.rs` | what can be asked |
//! | `port.rs` | the posters' side |
//! | `own.rs` | the vCPU's side: start, park, wait, drain, acknowledge |
//! | `queue.rs` | what was posted and not taken, bounded |

mod own;
mod port;
mod queue;
mod request;

pub use own::{Drained, OwnPort, Started};
pub(crate) use port::Waited;
pub use port::{Ticket, VcpuPort};
pub use request::Request;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use notdirty_core::sync::Ordering;
    use notdirty_core::{PageIndex, PageRange};
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    const REARM: Request = Request::Rearm(PageRange { start: PageIndex::new(1), end: PageIndex::new(2) });

    fn soon() -> Option<Instant> {
        Some(Instant::now())
    }

    fn later() -> Option<Instant> {
        Some(Instant::now() + Duration::from_secs(20))
    }

    /// As another thread would, for which a vCPU of this one may be waited for.
    fn elsewhere<T: Send>(f: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| scope.spawn(f).join().unwrap())
    }

    #[test]
    fn a_post_kicks_and_is_taken_once() {
        let port = OwnPort::default();
        let _running = port.start();
        let ticket = port.post(REARM);
        assert!(port.kicked());
        let done = port.drain();
        assert_eq!(done.requests, [REARM]);
        assert!(!port.kicked() && !port.served(ticket), "taking is not serving");
        port.acknowledge(done);
        assert!(port.served(ticket));
        assert!(port.drain().requests.is_empty());
    }

    #[test]
    fn a_parked_vcpu_has_served_everything_and_finds_it_when_it_is_back() {
        let port = OwnPort::default();
        let running = port.start();
        assert!(port.start().is_none(), "it runs already");
        let ticket = port.post(REARM);
        assert_eq!(elsewhere(|| port.wait_served(ticket, soon())), Waited::Late);
        drop(running);
        assert_eq!(port.wait_served(ticket, None), Waited::Served);
        let late = port.post(REARM);
        assert!(port.served(late));
        let _running = port.start();
        assert!(port.kicked() && !port.served(late), "back, and not served yet");
        let done = port.drain();
        assert_eq!(done.requests, [REARM, REARM]);
        port.acknowledge(done);
        assert!(port.served(late));
    }

    #[test]
    fn a_wait_on_the_thread_that_would_have_to_answer_is_refused() {
        let port = OwnPort::default();
        let running = port.start();
        let ticket = port.post(REARM);
        assert_eq!(port.wait_served(ticket, None), Waited::OwnThread);
        drop(running);
        assert_eq!(port.wait_served(ticket, None), Waited::Served);
    }

    #[test]
    fn a_poster_that_waits_is_let_go_when_the_vcpu_parks_or_falls_asleep() {
        for asleep in [false, true] {
            let port = OwnPort::default();
            let running = port.start();
            let ticket = port.post(REARM);
            let done = port.drain();
            std::thread::scope(|scope| {
                let waiter = scope.spawn(|| port.wait_served(ticket, later()));
                if asleep {
                    while !waiter.is_finished() {
                        port.wait(Some(Duration::from_millis(1)));
                    }
                } else {
                    port.park();
                }
                assert_eq!(waiter.join().unwrap(), Waited::Served);
            });
            port.acknowledge(done);
            drop(running);
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
        let ticket = port.post(REARM);
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
        let _running = port.start();
        let before = port.post(Request::FlushAll);
        port.close();
        assert!(port.served(before));
        let after = port.post(Request::FlushAll);
        assert_eq!(port.wait_served(after, soon()), Waited::Served);
    }
}
