//! Pages that are yet to come, under every interleaving, weak memory included: a page is placed once, what waits finds its bytes,
//! and no wait is forgotten. `cargo loom`
//!
//! ```text
//!   real:   PageStates (claim, receive, begin_wait, first_request, end), WaitToken
//!   here:   the page, as one cell; counts of placements and requests; the channel that requests go by, and the next one
//! ```
#![cfg(loom)]

use loom::model::Builder;
use loom::thread;
use notdirty_core::missing::{Ended, PageStates, WaitToken, Waiter, Woken};
use notdirty_core::sync::{AtomicU64, Condvar, Mutex, MutexGuard, Ordering};
use std::sync::Arc;

const RELAXED: Ordering = Ordering::Relaxed;
const BYTES: u64 = 7;

/// What a placement does wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Right,
    /// It claims nothing.
    Unclaimed,
    /// The page is received, then written.
    Behind,
}

struct Page {
    states: PageStates,
    cell: AtomicU64,
    placed: AtomicU64,
    requests: AtomicU64,
}

impl Page {
    fn new() -> Arc<Page> {
        let zero = || AtomicU64::new(0);
        Arc::new(Page { states: PageStates::new(1), cell: zero(), placed: zero(), requests: zero() })
    }

    fn place(&self, how: Place) {
        if how == Place::Unclaimed && self.states.is_received(0) {
            return;
        }
        let claim = self.states.claim(0);
        if claim.is_none() && how != Place::Unclaimed {
            return;
        }
        if how != Place::Behind {
            self.cell.store(BYTES, RELAXED);
        }
        self.placed.fetch_add(1, RELAXED);
        claim.into_iter().for_each(|claim| claim.receive());
        if how == Place::Behind {
            self.cell.store(BYTES, RELAXED);
        }
    }

    /// What a vCPU or a device does: the bytes that it finds.
    fn read(&self, token: &WaitToken) -> Result<u64, Woken> {
        self.read_by(token, |_| {})
    }

    /// The same, and asks the source so, if it is the first.
    fn read_by(&self, token: &WaitToken, ask: impl Fn(bool)) -> Result<u64, Woken> {
        while !self.states.is_received(0) {
            let waiting = match self.states.begin_wait(0, token.waker(), Waiter::Vcpu(0)) {
                Ok(Some(waiting)) => waiting,
                Ok(None) => break,
                Err(Ended) => return Err(Woken::Late),
            };
            let first = self.states.first_request(0);
            if first {
                self.requests.fetch_add(1, RELAXED);
            }
            ask(first);
            if !waiting.is_over() && token.sleep(None) == Woken::Interrupted {
                return Err(Woken::Interrupted);
            }
        }
        Ok(self.cell.load(RELAXED))
    }
}

fn model(test: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.max_branches = 20_000;
    builder.preemption_bound = Some(3);
    builder.check(test);
}

fn a_request_and_the_sweep(how: Place) {
    model(move || {
        let page = Page::new();
        let placers = [(); 2].map(|()| {
            let page = page.clone();
            thread::spawn(move || page.place(how))
        });
        assert_eq!(page.read(&WaitToken::default()), Ok(BYTES));
        placers.into_iter().for_each(|placer| placer.join().unwrap());
        page.place(how);
        assert_eq!(page.placed.load(RELAXED), 1, "placed twice");
    });
}

#[test]
fn a_page_that_a_request_and_the_sweep_bring_is_placed_once_and_read_whole() {
    a_request_and_the_sweep(Place::Right);
}

#[test]
#[should_panic(expected = "placed twice")]
fn two_that_place_without_a_claim_place_twice() {
    a_request_and_the_sweep(Place::Unclaimed);
}

#[test]
#[should_panic(expected = "left: Ok(0)")]
fn a_page_that_is_received_before_it_is_written_is_read_too_soon() {
    a_request_and_the_sweep(Place::Behind);
}

#[test]
fn two_that_wait_ask_once_and_both_are_woken() {
    model(|| {
        let page = Page::new();
        let other = page.clone();
        let waiter = thread::spawn(move || other.read(&WaitToken::default()));
        let placer = page.clone();
        let placer = thread::spawn(move || placer.place(Place::Right));
        assert_eq!(page.read(&WaitToken::default()), Ok(BYTES));
        assert_eq!(waiter.join().unwrap(), Ok(BYTES));
        placer.join().unwrap();
        assert!(page.requests.load(RELAXED) <= 1, "asked for twice");
    });
}

#[test]
fn a_wait_that_is_interrupted_while_its_page_is_placed_ends_by_one_of_both() {
    model(|| {
        let (page, token) = (Page::new(), WaitToken::default());
        let placer = page.clone();
        let placer = thread::spawn(move || placer.place(Place::Right));
        let other = token.clone();
        let interrupter = thread::spawn(move || other.interrupt());
        match page.read(&token) {
            Ok(BYTES) | Err(Woken::Interrupted) => {}
            other => panic!("{other:?}"),
        }
        placer.join().unwrap();
        interrupter.join().unwrap();
        assert_eq!(page.read(&WaitToken::default()), Ok(BYTES), "the page came all the same");
    });
}

#[test]
fn a_wait_that_nothing_will_end_is_told_so() {
    model(|| {
        let page = Page::new();
        let ender = page.clone();
        let ender = thread::spawn(move || ender.states.end());
        assert_eq!(page.read(&WaitToken::default()), Err(Woken::Late));
        ender.join().unwrap();
    });
}

#[test]
fn a_claim_that_is_given_up_is_anothers() {
    model(|| {
        let page = Page::new();
        let other = page.clone();
        let quitter = thread::spawn(move || drop(other.states.claim(0)));
        let mut tries = 0;
        while page.states.claim(0).map(|claim| claim.receive()).is_none() {
            tries += 1;
            assert!(tries < 3);
            thread::yield_now();
        }
        quitter.join().unwrap();
        assert!(page.states.is_received(0));
    });
}

/// What requests go by: a channel, none, or the next channel; as guests' `Line` is.
#[derive(Default)]
struct Line {
    state: Mutex<Lines>,
    changed: Condvar,
}

#[derive(Default)]
struct Lines {
    open: Option<usize>,
    /// What each of two channels has of the page: was it asked for?
    asked: [bool; 2],
    /// How many wait, and have asked if they had to.
    waiting: usize,
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.state.lock().unwrap()
    }

    /// Without a channel it is kept in mind.
    fn ask(&self) {
        let mut state = self.lock();
        if let Some(channel) = state.open {
            state.asked[channel] = true;
        }
    }

    fn wait(&self, first: bool) {
        if first {
            self.ask();
        }
        self.lock().waiting += 1;
        self.changed.notify_all();
    }

    /// The source, at the other end of the next channel: `false` if all wait, and it was not asked.
    fn is_asked(&self, waiters: usize) -> bool {
        let mut state = self.lock();
        while !state.asked[1] && state.waiting < waiters {
            state = self.changed.wait(state).unwrap();
        }
        state.asked[1]
    }
}

/// Two wait while their channel breaks, at whatever moment, and a new one comes: one of them asked, by the old one, by the new one, or by none.
/// The source answers what it heard before the old one broke, and what it is asked for by the new one.
fn a_pause_against_a_fault(looks_early: bool) {
    model(move || {
        let (page, line) = (Page::new(), Arc::new(Line::default()));
        line.lock().open = Some(0);
        let (own, by) = (page.clone(), line.clone());
        let recovery = thread::spawn(move || {
            let heard = by.lock().asked[0];
            if heard {
                own.place(Place::Right);
            }
            by.lock().open = None;
            let early = own.states.requested(0..1);
            by.lock().open = Some(1);
            let all = if looks_early { early } else { own.states.requested(0..1) };
            all.iter().for_each(|_| by.ask());
            if !heard {
                if by.is_asked(2) {
                    own.place(Place::Right);
                } else {
                    own.states.end();
                }
            }
        });
        let (own, by) = (page.clone(), line.clone());
        let other = thread::spawn(move || own.read_by(&WaitToken::default(), |first| by.wait(first)));
        let read = page.read_by(&WaitToken::default(), |first| line.wait(first));
        let reads = [read, other.join().unwrap()];
        recovery.join().unwrap();
        assert_eq!(reads, [Ok(BYTES); 2], "a request is lost");
        assert_eq!(page.placed.load(RELAXED), 1);
    });
}

#[test]
fn what_waits_while_its_channel_breaks_is_asked_for_by_the_next_one() {
    a_pause_against_a_fault(false);
}

#[test]
#[should_panic(expected = "a request is lost")]
fn a_recovery_that_looks_for_requests_before_its_channel_is_open_loses_one() {
    a_pause_against_a_fault(true);
}
