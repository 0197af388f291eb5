//! HARVEST-1, CODE-1, TLB-1 and parked vCPUs under every interleaving, weak memory included: `cargo loom`
//!
//! ```text
//!   real:   OwnPort (start, post, drain, acknowledge, wait_served, park), CodePages, DirtyMemory
//!   here:   a vCPU's TLB, which is one entry of one page; a translator, whose TB is the byte that it read
//! ```
//!
//! A plain store or load of emitted code is a Release store or an Acquire load: a host with total store order does no
//! less, and loom lets a load overtake a store as such a host does. Each law is obeyed once, and then weakened, and the
//! model has to notice.
//!
//! Not seen here: that `SoftMmu::serve` acknowledges after it acted. The vCPU stores nothing in between, so nobody can
//! tell; the twin that fails stores something.
#![cfg(loom)]

use loom::model::Builder;
use loom::thread;
use notdirty_core::raw::RawDirty;
use notdirty_core::sync::{AtomicBool, AtomicU64, Ordering};
use notdirty_core::{DirtyClient, DirtyMemory, PageIndex, PageRange, RamAddr, fence_after_store, pin};
use notdirty_softmmu::raw::{self, OwnPort, Request, Ticket};
use notdirty_softmmu::{Started, VcpuId, VcpuRegistry};
use std::sync::{Arc, LazyLock};

const MIGRATION: DirtyClient = DirtyClient::MIGRATION;
const PAGE: PageIndex = PageIndex::new(1);
/// The line that the byte is on.
const LINE: u64 = 1 << 2;
/// Where it begins.
const OFFSET: u64 = 2 * 64;

/// Names for two vCPUs; they are the same in each execution of a model.
static A: LazyLock<VcpuId> = LazyLock::new(VcpuId::fresh);
static C: LazyLock<VcpuId> = LazyLock::new(VcpuId::fresh);

fn model(test: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound.get_or_insert(3);
    builder.check(test);
}

/// A page of RAM with one byte, what is known of it, and two vCPUs' ports.
struct Page {
    byte: AtomicU64,
    flag: AtomicU64,
    dirty: DirtyMemory,
    /// The storing vCPU's.
    b: OwnPort,
    /// The translating vCPU's.
    a: OwnPort,
    /// A parked flag that is not under the lock.
    hint: AtomicBool,
}

impl Page {
    fn new() -> Arc<Page> {
        let dirty = DirtyMemory::new();
        dirty.grow(4).unwrap();
        Arc::new(Page {
            byte: AtomicU64::new(0),
            flag: AtomicU64::new(0),
            dirty,
            b: OwnPort::default(),
            a: OwnPort::default(),
            hint: AtomicBool::new(false),
        })
    }

    fn read(&self) -> u64 {
        self.byte.load(Ordering::Acquire)
    }

    fn rearm_b(&self) -> Ticket {
        raw::post(&self.b, Request::Rearm(PageRange::of_page(PAGE)))
    }
}

/// The vCPU that stores.
struct Storer {
    page: Arc<Page>,
    /// Does its TLB entry let stores through?
    fast: bool,
}

impl Storer {
    fn new(page: &Arc<Page>) -> Storer {
        Storer { page: page.clone(), fast: true }
    }

    fn store(&self, value: u64) {
        let page = &self.page;
        if self.fast {
            return page.byte.store(value, Ordering::Release);
        }
        let guard = pin();
        let only_code = page.dirty.listening(PAGE, &guard).only_code();
        // As the JIT's `again.rs` in emitted code: the mask first, no fence.
        if only_code && !page.dirty.code().page(PAGE).unwrap().hit(OFFSET, 8) {
            return page.byte.store(value, Ordering::Release);
        }
        page.byte.store(value, Ordering::Release);
        self.tell(true);
    }

    /// As `SoftMmu::tell`.
    fn tell(&self, fence: bool) {
        let page = &self.page;
        if fence {
            fence_after_store();
        }
        let guard = pin();
        let listening = page.dirty.listening(PAGE, &guard);
        if listening.code() && page.dirty.code().page(PAGE).is_some_and(|code| code.hit(OFFSET, 8)) {
            if page.dirty.code().owners(PAGE, LINE).contains(&*A) {
                raw::post(&page.a, Request::KillCode { ram: RamAddr::new(0x1080), len: 1 });
            }
        }
        page.dirty.set(PageRange::of_page(PAGE), listening.clients(), &guard);
    }

    fn look(&mut self) {
        self.fast = self.page.dirty.listening(PAGE, &pin()).is_empty();
    }

    /// It runs, and serves before it stores, as `SoftMmu::start` does.
    fn start(&mut self) -> Started {
        let started = self.page.b.start().unwrap();
        self.serve();
        started
    }

    /// A safe point.
    fn serve(&mut self) {
        if !self.page.b.kicked() {
            return;
        }
        let page = self.page.clone();
        let drained = page.b.drain();
        if !drained.requests.is_empty() {
            self.look();
        }
        page.b.acknowledge(drained);
    }
}

/// How a harvest may be done wrong.
#[derive(Clone, Copy, PartialEq)]
enum Harvest {
    Right,
    /// The page is read before the vCPU has answered.
    NoWait,
    /// The bit is taken after the re-arm was posted.
    BitLast,
    /// The vCPU answers, stores, and acts then.
    AckFirst,
}

fn harvest(how: Harvest) {
    model(move || {
        let page = Page::new();
        let mut storer = Storer::new(&page);
        let vcpu = thread::spawn(move || {
            let _running = storer.start();
            storer.store(1);
            if how == Harvest::AckFirst {
                let drained = storer.page.b.drain();
                let any = !drained.requests.is_empty();
                storer.page.b.acknowledge(drained);
                storer.store(2);
                if any {
                    storer.look();
                }
            } else {
                storer.serve();
                storer.store(2);
            }
            storer.serve();
            if how != Harvest::AckFirst {
                // Which would mark what was not.
                storer.store(3);
            }
        });
        let take = || page.dirty.test_and_clear(PAGE, MIGRATION, &pin());
        if how != Harvest::BitLast {
            take();
        }
        let ticket = page.rearm_b();
        if how == Harvest::BitLast {
            raw::wait_served(&page.b, ticket, None);
            take();
        }
        if how != Harvest::NoWait {
            raw::wait_served(&page.b, ticket, None);
        }
        let copy = page.read();
        vcpu.join().unwrap();
        let marked = page.dirty.test(PAGE, MIGRATION, &pin());
        assert!(copy == page.read() || marked, "a store is neither in the copy nor marked");
    });
}

#[test]
fn a_harvest_misses_no_fast_store() {
    harvest(Harvest::Right);
}

#[test]
#[should_panic(expected = "neither in the copy nor marked")]
fn a_harvest_that_does_not_wait_misses_one() {
    harvest(Harvest::NoWait);
}

#[test]
#[should_panic(expected = "neither in the copy nor marked")]
fn a_harvest_that_takes_the_bit_last_misses_one() {
    harvest(Harvest::BitLast);
}

#[test]
#[should_panic(expected = "neither in the copy nor marked")]
fn a_vcpu_that_answers_before_it_acts_hides_a_store() {
    harvest(Harvest::AckFirst);
}

/// How parking may be done wrong.
#[derive(Clone, Copy, PartialEq)]
enum Park {
    Right,
    /// The vCPU goes on without draining.
    NoDrain,
    /// Whether it is parked is a flag that anybody reads without the lock.
    Hint,
}

fn park(how: Park) {
    model(move || {
        let page = Page::new();
        let mut storer = Storer::new(&page);
        let vcpu = thread::spawn(move || {
            let mut running = storer.start();
            storer.store(1);
            if how == Park::Hint {
                storer.page.hint.store(true, Ordering::Relaxed);
                storer.page.hint.store(false, Ordering::Relaxed);
            } else {
                drop(running);
                running = storer.page.b.start().unwrap();
            }
            if how != Park::NoDrain {
                storer.serve();
            }
            storer.store(2);
            storer.serve();
            drop(running);
        });
        page.dirty.test_and_clear(PAGE, MIGRATION, &pin());
        let ticket = page.rearm_b();
        if how != Park::Hint || !page.hint.load(Ordering::Relaxed) {
            raw::wait_served(&page.b, ticket, None);
        }
        let copy = page.read();
        vcpu.join().unwrap();
        let marked = page.dirty.test(PAGE, MIGRATION, &pin());
        assert!(copy == page.read() || marked, "a store is neither in the copy nor marked");
    });
}

#[test]
fn a_vcpu_that_parks_and_is_back_has_served_what_was_posted() {
    park(Park::Right);
}

#[test]
#[should_panic(expected = "neither in the copy nor marked")]
fn a_vcpu_that_is_back_and_drains_nothing_hides_a_store() {
    park(Park::NoDrain);
}

#[test]
#[should_panic(expected = "neither in the copy nor marked")]
fn parked_as_a_hint_hides_a_store() {
    park(Park::Hint);
}

/// How a translation may be done wrong.
#[derive(Clone, Copy, PartialEq)]
enum Translate {
    Right,
    /// The bytes are read before they are announced.
    ReadFirst,
    /// They are not compared when everybody has answered.
    NoCompare,
    /// They are not compared at `fence.i`.
    NoCompareAtFence,
    /// Kills are not drained at `fence.i`.
    NoDrainAtFence,
}

/// The vCPU that translates; its TB is the byte that it read.
struct Translator {
    page: Arc<Page>,
    tb: Option<u64>,
    how: Translate,
}

impl Translator {
    fn translate(&mut self) -> Ticket {
        let page = &self.page;
        let early = page.read();
        page.dirty.announce_code(PAGE, LINE, *A, &pin());
        let ticket = page.rearm_b();
        self.tb = Some(if self.how == Translate::ReadFirst { early } else { page.read() });
        ticket
    }

    fn drain(&mut self) {
        let drained = self.page.a.drain();
        if !drained.requests.is_empty() {
            self.tb = None;
        }
        self.page.a.acknowledge(drained);
    }

    fn compare(&mut self) {
        if self.tb.is_some_and(|tb| tb != self.page.read()) {
            self.tb = None;
        }
    }
}

/// `other`: somebody else has code on that line already, and the storer knows.
fn translate(how: Translate, other: bool) {
    model(move || {
        let page = Page::new();
        let mut storer = Storer::new(&page);
        if other {
            page.dirty.announce_code(PAGE, LINE, *C, &pin());
            storer.look();
        }
        let vcpu = thread::spawn(move || {
            let _running = storer.start();
            storer.store(1);
            storer.serve();
            storer.store(2);
            storer.page.flag.store(1, Ordering::Release);
        });
        let mut translator = Translator { page: page.clone(), tb: None, how };
        let ticket = translator.translate();
        // The guest: the flag is seen, fence.i, and the code is run.
        if page.flag.load(Ordering::Acquire) == 1 {
            if how != Translate::NoCompareAtFence && how != Translate::NoCompare && how != Translate::ReadFirst {
                translator.compare();
            }
            if how != Translate::NoDrainAtFence {
                translator.drain();
            }
            assert!(translator.tb.is_none_or(|tb| tb == 2), "old code runs after fence.i");
        }
        raw::wait_served(&page.b, ticket, None);
        if how != Translate::NoCompare && how != Translate::ReadFirst {
            translator.compare();
        }
        vcpu.join().unwrap();
        translator.drain();
        assert!(translator.tb.is_none_or(|tb| tb == page.read()), "a translation outlives its bytes");
    });
}

#[test]
fn a_translation_never_outlives_bytes_that_another_vcpu_stores() {
    translate(Translate::Right, false);
}

#[test]
fn nor_where_a_third_vcpu_has_code_on_the_line_already() {
    translate(Translate::Right, true);
}

#[test]
#[should_panic(expected = "outlives its bytes")]
fn a_translation_that_is_not_compared_again_outlives_them() {
    translate(Translate::NoCompare, false);
}

#[test]
#[should_panic(expected = "after fence.i")]
fn bytes_read_before_the_announcement_are_outlived() {
    translate(Translate::ReadFirst, true);
}

#[test]
#[should_panic(expected = "after fence.i")]
fn a_translation_that_is_not_compared_at_fence_i_runs_old_code() {
    fence_i(Translate::NoCompareAtFence, false);
}

#[test]
#[should_panic(expected = "after fence.i")]
fn kills_that_are_not_drained_at_fence_i_let_old_code_run() {
    fence_i(Translate::NoDrainAtFence, true);
}

#[test]
fn after_the_flag_and_fence_i_the_code_is_new() {
    fence_i(Translate::Right, false);
    fence_i(Translate::Right, true);
}

/// The storer stores once, then the flag, and never comes to a safe point. `final_tb`: the TB was there before, and
/// everybody had answered.
fn fence_i(how: Translate, final_tb: bool) {
    model(move || {
        let page = Page::new();
        let mut storer = Storer::new(&page);
        let mut translator = Translator { page: page.clone(), tb: None, how };
        if final_tb {
            translator.translate();
            storer.serve();
        }
        let vcpu = thread::spawn(move || {
            storer.store(2);
            storer.page.flag.store(1, Ordering::Release);
        });
        if !final_tb {
            translator.translate();
        }
        if page.flag.load(Ordering::Acquire) == 1 {
            if how != Translate::NoDrainAtFence {
                translator.drain();
            }
            if !final_tb && how != Translate::NoCompareAtFence {
                translator.compare();
            }
            assert!(translator.tb.is_none_or(|tb| tb == 2), "old code runs after fence.i");
        }
        vcpu.join().unwrap();
    });
}

/// A slow store, told, against a translation that nobody compares again: each must see the other (MARK-1).
fn told(fence: bool) {
    model(move || {
        let page = Page::new();
        let storer = Storer::new(&page);
        let mut translator = Translator { page: page.clone(), tb: None, how: Translate::Right };
        let vcpu = thread::spawn(move || {
            storer.page.byte.store(1, Ordering::Release);
            storer.tell(fence);
        });
        translator.translate();
        vcpu.join().unwrap();
        translator.drain();
        assert!(translator.tb.is_none_or(|tb| tb == page.read()), "a translation outlives its bytes");
    });
}

#[test]
fn a_store_that_is_told_is_read_by_the_translator_or_kills() {
    told(true);
}

#[test]
#[should_panic(expected = "outlives its bytes")]
fn a_store_that_is_told_without_a_fence_may_do_neither() {
    told(false);
}

/// Two vCPUs have lines on one page; one drops its own while the other announces.
fn union(weak: bool) {
    model(move || {
        let page = Page::new();
        page.dirty.announce_code(PAGE, 1, *C, &pin());
        let other = thread::spawn({
            let page = page.clone();
            move || {
                if weak {
                    // As if the page had one owner.
                    page.dirty.code().page(PAGE).unwrap().mask.store(0, Ordering::SeqCst);
                    page.dirty.unprotect_code(PageRange::of_page(PAGE), &pin());
                } else {
                    page.dirty.set_code_lines(PAGE, 0, *C, &pin());
                }
            }
        });
        page.dirty.announce_code(PAGE, LINE, *A, &pin());
        other.join().unwrap();
        let mask = page.dirty.code().page(PAGE).unwrap().mask.load(Ordering::SeqCst);
        let protected = page.dirty.is_code_protected(PAGE, &pin());
        assert!(mask == LINE && protected, "announced code is not protected");
    });
}

#[test]
fn a_vcpu_that_drops_its_lines_leaves_the_others_protected() {
    union(false);
}

#[test]
#[should_panic(expected = "is not protected")]
fn a_mask_that_is_taken_for_ones_own_unprotects_the_others() {
    union(true);
}

#[test]
fn a_promise_of_one_writer_is_not_overtaken_by_one_that_was_being_taken_back() {
    // Two writers are admitted, and the owner has joined one of them when it promises again. The other may still be on
    // its way: then the promise is refused, or stands, or is taken back by a flush. What must not be is that it falls with
    // no flush: the vCPU would run what it translated under it.
    model(|| {
        let vcpus = Arc::new(VcpuRegistry::default());
        let port = raw::register(&vcpus);
        assert!(vcpus.promise_one_writer());
        let (one, other) = (vcpus.clone(), vcpus.clone());
        let late = thread::spawn(move || assert!(one.admit_writers(None)));
        // It is parked, so nothing has to answer.
        thread::spawn(move || assert!(other.admit_writers(None))).join().unwrap();
        port.acknowledge(port.drain());
        let promised = vcpus.promise_one_writer();
        late.join().unwrap();
        let flushed = port.drain().requests.contains(&Request::FlushAll);
        assert!(!promised || flushed || vcpus.one_writer());
        // And the next one is refused by nothing that is over.
        assert!(vcpus.promise_one_writer());
    });
}
