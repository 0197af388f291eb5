//! Harvests and logs: what is taken is armed, and given out or given back; users lose nothing to each other; blocks
//! come and go under a running log.
#![cfg(not(loom))]

use notdirty_core::raw::RawDirty;
use notdirty_core::{
    Answers, ClientMask, DirtyClient, DirtyListener, DirtyLog, Harvest, LogError, LogRegion, LogScope, NotServed,
    PAGE_SIZE, PageIndex, PageRange, RamBlock, RamBlockSpec, RamList, barrier, pin,
};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const PAGES: u64 = 1024;
const VGA: DirtyClient = DirtyClient::VGA;

/// Remembers what it was asked; answers if it is told to.
#[derive(Default)]
struct Ears {
    asked: Mutex<Vec<PageRange>>,
    deaf: AtomicBool,
}

impl DirtyListener for Ears {
    fn rearm(&self, pages: &[PageRange]) -> Option<Box<dyn Answers>> {
        self.asked.lock().unwrap().extend(pages);
        self.deaf.load(Ordering::Relaxed).then(|| Box::new(Never) as Box<dyn Answers>)
    }
}

/// An answer that does not come.
#[derive(Debug)]
struct Never;

impl Answers for Never {
    fn is_served(&mut self) -> bool {
        false
    }
    fn wait(&self, _: Option<Instant>) -> Result<(), NotServed> {
        Err(NotServed::Late { waited: Duration::ZERO })
    }
}

impl Ears {
    fn take(&self) -> Vec<PageRange> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

struct World {
    list: Arc<RamList>,
    ears: Arc<Ears>,
    ram: Arc<RamBlock>,
}

impl World {
    fn new() -> Self {
        let list = Arc::new(RamList::new());
        let ears = Arc::<Ears>::default();
        list.add_listener(Arc::downgrade(&ears));
        let ram = block(&list, "ram");
        Self { list, ears, ram }
    }

    fn log(&self, scope: LogScope) -> Result<DirtyLog, LogError> {
        self.list.log(VGA).scope(scope).start()
    }

    fn write(&self, block: &RamBlock, page: u64) {
        block.store_raw(page * PAGE_SIZE, 1, 1).unwrap();
        self.list.dirty().set(PageRange::of_page(at(block, page)), ClientMask::ALL, &pin());
    }

    fn listens(&self, block: &RamBlock, page: u64) -> bool {
        self.list.dirty().listening(at(block, page), &pin()).contains(VGA)
    }
}

fn block(list: &RamList, name: &str) -> Arc<RamBlock> {
    list.add(RamBlockSpec::new(name, PAGES * PAGE_SIZE)).unwrap()
}

fn at(block: &RamBlock, page: u64) -> PageIndex {
    PageIndex::new(block.offset().page().get() + page)
}

fn range(block: &RamBlock, start: u64, end: u64) -> PageRange {
    PageRange { start: at(block, start), end: at(block, end) }
}

/// The pages of a harvest, committed, counted from the block's first.
fn pages(harvest: Harvest<'_>, block: &RamBlock) -> Vec<u64> {
    let first = block.offset().page().get();
    harvest.commit().ranges().flat_map(|r| r.iter()).map(|p| p.get() - first).collect()
}

#[test]
fn a_harvest_is_armed_before_it_is_given_out_and_pending_again_if_it_is_not_used() {
    let w = World::new();
    let log = w.log(LogScope::All).unwrap();
    assert_eq!(w.ears.take(), [w.ram.pages()]);
    assert_eq!(log.sync(None).unwrap().count(), 0);
    assert!(w.ears.take().is_empty(), "nothing taken, nothing asked");

    [3, 4, 700].into_iter().for_each(|p| w.write(&w.ram, p));
    let harvest = log.sync(None).unwrap();
    assert_eq!(w.ears.take(), [range(&w.ram, 3, 5), range(&w.ram, 700, 701)]);
    assert!(w.listens(&w.ram, 3));
    drop(harvest);

    w.ears.deaf.store(true, Ordering::Relaxed);
    let waited = Duration::from_millis(1);
    let late = LogError::NotServed(NotServed::Late { waited });
    assert_eq!(log.sync(Some(waited)).unwrap_err(), late);
    w.ears.deaf.store(false, Ordering::Relaxed);
    assert_eq!(pages(log.sync(None).unwrap(), &w.ram), [3, 4, 700]);
}

#[test]
fn a_start_re_arms_all_of_its_pages_whatever_their_bits_say() {
    let w = World::new();
    // As a harvest of the same client leaves it, between its two steps.
    w.list.dirty().test_and_clear_range(range(&w.ram, 5, 90), VGA, &pin(), |_, _| {});
    let _log = w.log(LogScope::All).unwrap();
    assert_eq!(w.ears.take(), [w.ram.pages()]);
}

#[test]
fn a_log_listens_where_it_was_asked_to_and_nowhere_else() {
    let w = World::new();
    let other = block(&w.list, "other");
    let log = w.log(LogScope::Regions(vec![LogRegion::bytes(&w.ram, 10 * PAGE_SIZE + 5, PAGE_SIZE)])).unwrap();
    let heard: Vec<_> = (0..PAGES).filter(|p| w.listens(&w.ram, *p)).collect();
    assert_eq!(heard, [10, 11]);
    assert!((0..PAGES).all(|p| !w.listens(&other, p)));
    assert_eq!(w.ears.take(), [range(&w.ram, 10, 12)]);
    (0..20).for_each(|p| w.write(&w.ram, p));
    assert_eq!(pages(log.sync(None).unwrap(), &w.ram), [10, 11]);
    assert_eq!(log.sync(None).unwrap().count(), 0);
    w.ears.take();
    log.stop();
    assert!((0..PAGES).all(|p| !w.listens(&w.ram, p)));
    assert!(w.ears.take().is_empty(), "to stop asks nobody");
}

#[test]
fn each_user_gets_each_page_and_the_last_one_to_stop_ends_it() {
    let w = World::new();
    let first = w.log(LogScope::blocks([&w.ram])).unwrap();
    w.ears.take();
    w.write(&w.ram, 1);
    let second = w.log(LogScope::blocks([&w.ram])).unwrap();
    assert_eq!(w.ears.take(), [w.ram.pages()], "what the first one takes may not be answered for");
    w.write(&w.ram, 2);
    assert_eq!(pages(first.sync(None).unwrap(), &w.ram), [1, 2]);
    w.write(&w.ram, 3);
    w.write(&w.ram, 1);
    let seen = pages(second.sync(None).unwrap(), &w.ram);
    assert_eq!(seen, [1, 2, 3], "what the first one took, and what came since");
    assert_eq!(pages(first.sync(None).unwrap(), &w.ram), [1, 3]);
    assert_eq!(second.sync(None).unwrap().count(), 0);
    drop(first);
    assert!(w.listens(&w.ram, 1), "one user is left");
    w.write(&w.ram, 9);
    assert_eq!(pages(second.sync(None).unwrap(), &w.ram), [9]);
    drop(second);
    assert!(!w.listens(&w.ram, 1));
}

#[test]
fn what_a_user_gives_back_is_its_own_again() {
    let w = World::new();
    let (a, b) = (w.log(LogScope::All).unwrap(), w.log(LogScope::All).unwrap());
    w.write(&w.ram, 7);
    drop(a.sync(None).unwrap());
    assert_eq!(pages(b.sync(None).unwrap(), &w.ram), [7]);
    w.ears.deaf.store(true, Ordering::Relaxed);
    a.sync(None).unwrap_err();
    w.ears.deaf.store(false, Ordering::Relaxed);
    w.write(&w.ram, 8);
    w.ears.take();
    assert_eq!(pages(a.sync(None).unwrap(), &w.ram), [7, 8]);
    assert_eq!(w.ears.take(), [range(&w.ram, 7, 9)], "armed once more");
    assert_eq!(pages(b.sync(None).unwrap(), &w.ram), [8]);
}

#[test]
fn logs_of_one_client_share_no_page_unless_they_share_all() {
    let w = World::new();
    let part = |from, to| LogScope::Regions(vec![LogRegion::bytes(&w.ram, from * PAGE_SIZE, (to - from) * PAGE_SIZE)]);
    let low = w.log(part(0, 70)).unwrap();
    let high = w.log(part(70, 200)).unwrap();
    for scope in [part(69, 71), part(0, 10), LogScope::All, LogScope::blocks([&w.ram])] {
        assert_eq!(w.log(scope).unwrap_err(), LogError::Overlap { client: VGA });
    }
    [69, 70].into_iter().for_each(|p| w.write(&w.ram, p));
    assert_eq!(pages(low.sync(None).unwrap(), &w.ram), [69]);
    drop(low);
    assert_eq!(pages(high.sync(None).unwrap(), &w.ram), [70]);
    assert_eq!(w.log(part(69, 71)).unwrap_err(), LogError::Overlap { client: VGA }, "the other one goes on");
    // Another client is another matter.
    let own = w.list.add_client("checkpoint").unwrap();
    w.list.log(own).start().unwrap();
}

#[test]
fn a_start_that_is_not_answered_leaves_nothing_behind() {
    let w = World::new();
    w.ears.deaf.store(true, Ordering::Relaxed);
    let waited = Duration::from_millis(3);
    let log = w.list.log(VGA).timeout(waited).start();
    assert_eq!(log.unwrap_err(), LogError::NotServed(NotServed::Late { waited }));
    assert!((0..PAGES).all(|p| !w.listens(&w.ram, p)));
    w.ears.deaf.store(false, Ordering::Relaxed);
    w.log(LogScope::blocks([&w.ram])).unwrap();
}

#[test]
fn a_client_of_run_time_costs_nothing_once_its_log_is_over() {
    let w = World::new();
    let own = w.list.add_client("debugger").unwrap();
    let number = own.client();
    let log = w.list.log(own).start().unwrap();
    let user = w.list.log(number).start().unwrap();
    assert!(w.list.dirty().listening(at(&w.ram, 0), &pin()).contains(number));
    drop(log);
    assert!(w.list.dirty().listening(at(&w.ram, 0), &pin()).contains(number));
    drop(user);
    assert!(w.list.dirty().listening(at(&w.ram, 0), &pin()).is_empty());
    let gone = w.list.log(number).start();
    assert_eq!(gone.unwrap_err(), LogError::Gone { client: number });
    let all: Vec<_> = (0..5).map(|_| w.list.add_client("one more").unwrap()).collect();
    assert_eq!(&*w.list.add_client("a sixth").unwrap_err().name, "a sixth");
    drop(all);
    w.list.add_client("again").unwrap();
}

#[test]
fn a_client_that_joins_a_log_by_number_with_its_owner_lives_as_long_as_the_log() {
    let list = Arc::new(RamList::new());
    let ram = list.add(RamBlockSpec::new("ram", 100 * PAGE_SIZE)).unwrap();
    let owned = list.add_client("checkpoint").unwrap();
    let client = owned.client();
    let by_number = list.log(client).start().unwrap();
    let with_owner = list.log(owned).start().unwrap();
    for log in [&by_number, &with_owner] {
        list.write(&ram, 0, b"bytes").unwrap();
        assert_eq!(log.sync(None).unwrap().commit().count(), 1);
    }
    // It goes with the last user, whichever that is.
    drop(with_owner);
    list.write(&ram, 0, b"bytes").unwrap();
    assert_eq!(by_number.sync(None).unwrap().commit().count(), 1);
    drop(by_number);
    assert_eq!(list.log(client).start().map(drop), Err(LogError::Gone { client }));
}

#[test]
fn a_block_that_is_plugged_is_reported_whole_by_a_log_of_all_ram_only() {
    let w = World::new();
    let all = w.log(LogScope::All).unwrap();
    let client = w.list.add_client("one block").unwrap();
    let one = w.list.log(client).blocks([&w.ram]).start().unwrap();
    let new = block(&w.list, "new");
    assert_eq!(pages(all.sync(None).unwrap(), &new), (0..PAGES).collect::<Vec<_>>());
    assert_eq!(all.sync(None).unwrap().count(), 0);
    w.write(&new, 3);
    assert_eq!(pages(all.sync(None).unwrap(), &new), [3]);
    assert_eq!(one.sync(None).unwrap().count(), 0);
}

#[test]
fn a_block_that_is_unplugged_leaves_the_log_and_lives_as_long_as_a_harvest_has_its_pages() {
    let w = World::new();
    let gone = block(&w.list, "gone");
    let log = w.log(LogScope::blocks([&w.ram, &gone])).unwrap();
    w.write(&gone, 4);
    w.write(&w.ram, 5);
    let harvest = log.sync(None).unwrap();
    let alive = Arc::downgrade(&gone);
    w.list.remove(&gone).unwrap();
    drop(gone);
    barrier().unwrap();
    assert!(alive.upgrade().is_some(), "its addresses are still its own");
    drop(harvest);
    assert!(alive.upgrade().is_none(), "a log is no reason to stay");
    assert_eq!(pages(log.sync(None).unwrap(), &w.ram), [5], "what was given back, without what is gone");
    // Whoever comes to its addresses is not logged.
    let new = block(&w.list, "new");
    w.write(&new, 4);
    assert_eq!(log.sync(None).unwrap().count(), 0);
    assert!((0..PAGES).all(|p| !w.listens(&new, p)));
}

#[test]
fn rings_are_behind_the_same_face() {
    let w = World::new();
    let log = w.list.log(VGA).rings(128).start().unwrap();
    assert_eq!(w.log(LogScope::All).unwrap_err(), LogError::OtherBackend { client: VGA, rings: true });
    assert!(log.rings().is_some() && w.list.dirty().ringed().contains(VGA));
    [5, 5, 200].into_iter().for_each(|p| w.write(&w.ram, p));
    let second = w.list.log(VGA).rings(128).start().unwrap();
    assert_eq!(pages(log.sync(None).unwrap(), &w.ram), [5, 200]);
    w.write(&w.ram, 5);
    drop(log.sync(None).unwrap());
    assert_eq!(pages(second.sync(None).unwrap(), &w.ram), [5, 200]);
    assert_eq!(pages(log.sync(None).unwrap(), &w.ram), [5]);
    drop((log, second));
    assert!(w.list.dirty().ringed().is_empty());
}

#[test]
fn a_sync_of_some_pages_leaves_the_others_for_later() {
    for rings in [false, true] {
        let w = World::new();
        let log = if rings { w.list.log(VGA).rings(128) } else { w.list.log(VGA) };
        let log = log.start().unwrap();
        [3, 50, 700].into_iter().for_each(|p| w.write(&w.ram, p));
        let some = [range(&w.ram, 40, 60), range(&w.ram, 0, 10)];
        drop(log.sync_within(&some, None).unwrap());
        assert_eq!(pages(log.sync_within(&some, None).unwrap(), &w.ram), [3, 50], "rings: {rings}");
        w.write(&w.ram, 50);
        assert_eq!(pages(log.sync(None).unwrap(), &w.ram), [50, 700], "rings: {rings}");
    }
}

#[test]
fn a_sync_of_pages_of_which_the_log_has_none_is_an_error_and_of_some_gives_those() {
    for rings in [false, true] {
        let w = World::new();
        let other = block(&w.list, "other");
        let part = LogScope::Regions(vec![LogRegion::bytes(&w.ram, 0, 100 * PAGE_SIZE)]);
        let log = w.list.log(VGA).scope(part);
        let log = if rings { log.rings(128) } else { log }.start().unwrap();
        [3, 99, 100].into_iter().for_each(|p| w.write(&w.ram, p));
        w.write(&other, 3);
        let free = PageIndex::new(1 << 40);
        let nowhere = PageRange { start: free, end: PageIndex::new(free.get() + 1) };
        for not in [vec![range(&w.ram, 100, 200)], vec![nowhere, range(&other, 0, 10)]] {
            let first = *not.iter().min_by_key(|range| range.start).unwrap();
            let got = log.sync_within(&not, None).map(Harvest::commit);
            assert_eq!(got.unwrap_err(), LogError::NotLogged { client: VGA, pages: first }, "rings: {rings}");
        }
        // Nothing is asked for, so nothing is missing.
        for nothing in [vec![], vec![range(&other, 5, 5)]] {
            assert_eq!(log.sync_within(&nothing, None).unwrap().count(), 0, "rings: {rings}");
        }
        let some = [range(&w.ram, 90, 200), range(&other, 0, 10)];
        assert_eq!(pages(log.sync_within(&some, None).unwrap(), &w.ram), [99], "rings: {rings}");
        assert_eq!(pages(log.sync(None).unwrap(), &w.ram), [3], "rings: {rings}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    /// Ranges in any order, which overlap, touch, are empty or lie apart.
    #[test]
    fn a_sync_within_ranges_gives_the_pages_that_are_in_one_of_them_once_and_keeps_the_others(
        rounds in prop::collection::vec(
            (prop::collection::vec(0..200u64, 0..20), prop::collection::vec((0..200u64, 0..40u64), 0..6)),
            1..6,
        ),
        rings in any::<bool>(),
    ) {
        let w = World::new();
        let log = if rings { w.list.log(VGA).rings(128) } else { w.list.log(VGA) };
        let log = log.start().unwrap();
        let mut dirty = BTreeSet::new();
        for (written, asked) in rounds {
            written.iter().for_each(|page| w.write(&w.ram, *page));
            dirty.extend(written);
            let ranges: Vec<_> = asked.iter().map(|(from, len)| range(&w.ram, *from, from + len)).collect();
            let is_asked = |page: &u64| asked.iter().any(|(from, len)| (*from..from + len).contains(page));
            let wanted: Vec<_> = dirty.iter().copied().filter(is_asked).collect();
            prop_assert_eq!(pages(log.sync_within(&ranges, None).unwrap(), &w.ram), wanted);
            dirty.retain(|page| !is_asked(page));
        }
        prop_assert!(pages(log.sync(None).unwrap(), &w.ram).into_iter().eq(dirty));
    }
}

#[test]
fn what_may_store_is_asked_of_every_listener_but_the_one_that_asks() {
    /// May store, or says that it does not.
    struct Space(Option<bool>);
    impl DirtyListener for Space {
        fn rearm(&self, _: &[PageRange]) -> Option<Box<dyn Answers>> {
            Some(Box::new(Never))
        }
        fn may_store(&self) -> bool {
            self.0.unwrap_or(false)
        }
        fn admit_writer(&self, _: Duration) -> bool {
            self.0.is_some()
        }
    }
    let list = RamList::new();
    // It says nothing of itself, so it may store, and admits every writer.
    let [ears, others] = [(); 2].map(|()| Arc::new(Ears::default()));
    let admits = |listener: &dyn DirtyListener| list.admit_writer(listener, Duration::ZERO);
    let asked = |listener: &dyn DirtyListener| list.rearm_others(&[], listener).len();
    list.add_listener(Arc::downgrade(&ears));
    assert!(!list.others_may_store(&*ears) && admits(&*ears) && asked(&*ears) == 0);
    list.add_listener(Arc::downgrade(&others));
    assert!(list.others_may_store(&*ears) && list.others_may_store(&*others) && admits(&*ears));
    drop(others);
    assert!(!list.others_may_store(&*ears), "it is gone");
    let quiet = Arc::new(Space(Some(false)));
    list.add_listener(Arc::downgrade(&quiet));
    assert!(!list.others_may_store(&*ears) && list.others_may_store(&*quiet) && admits(&*ears));
    assert_eq!((asked(&*ears), asked(&*quiet)), (1, 0));
    let jealous = Arc::new(Space(None));
    list.add_listener(Arc::downgrade(&jealous));
    assert!(!admits(&*ears) && !admits(&*quiet) && admits(&*jealous));
    let loud = Arc::new(Space(Some(true)));
    list.add_listener(Arc::downgrade(&loud));
    assert!(list.others_may_store(&*ears) && list.others_may_store(&*quiet));
    assert_eq!((asked(&*ears), asked(&*quiet), asked(&*loud)), (3, 2, 2));
}

#[test]
fn the_same_regions_in_another_order_or_other_pieces_are_the_same_log() {
    let w = World::new();
    let (b, c) = (block(&w.list, "b"), block(&w.list, "c"));
    let log = w.log(LogScope::blocks([&w.ram, &b, &c])).unwrap();
    let half = PAGES / 2 * PAGE_SIZE;
    // The first piece is as long as the block lets it be.
    let halves = |block| [LogRegion::bytes(block, half, u64::MAX), LogRegion::bytes(block, 0, half)];
    let pieces = [&c, &w.ram, &b].into_iter().flat_map(halves).collect();
    let again = w.log(LogScope::Regions(pieces)).unwrap();
    w.write(&b, 7);
    assert_eq!((log.sync(None).unwrap().commit().count(), again.sync(None).unwrap().commit().count()), (1, 1));
}

#[test]
fn a_log_that_can_find_nothing_says_so() {
    let w = World::new();
    assert_eq!(w.log(LogScope::Regions(Vec::new())).unwrap_err(), LogError::NoPages);
    // Of a client that was dropped.
    let own = w.list.add_client("gone").unwrap();
    let number = own.client();
    let log = w.list.log(number).start().unwrap();
    drop(own);
    w.write(&w.ram, 1);
    assert_eq!(log.sync(None).unwrap_err(), LogError::Gone { client: number });
    // Of a block that has left, before and after.
    let gone = block(&w.list, "gone");
    let log = w.log(LogScope::blocks([&gone])).unwrap();
    w.list.remove(&gone).unwrap();
    assert_eq!(log.sync(None).unwrap_err(), LogError::Unplugged { client: VGA });
    let idstr = "gone".to_owned();
    assert_eq!(w.log(LogScope::blocks([&gone])).unwrap_err(), LogError::NotInList { idstr });
    drop(gone);
    assert_eq!(log.sync(None).unwrap_err(), LogError::Unplugged { client: VGA });
    // Of another list's block.
    let elsewhere = block(&RamList::new(), "elsewhere");
    assert!(matches!(w.log(LogScope::blocks([&elsewhere])), Err(LogError::NotInList { .. })));
}

#[test]
fn tracking_of_a_fixed_client_ends_with_its_log() {
    let w = World::new();
    drop(w.log(LogScope::All).unwrap());
    assert!(w.list.dirty().listening(at(&w.ram, 0), &pin()).is_empty());
}

/// A block of twice the pages that are used, and a log of all of it.
fn resizable(w: &World) -> (Arc<RamBlock>, DirtyLog) {
    let spec = RamBlockSpec::new("resizable", PAGES * PAGE_SIZE).max_length(2 * PAGES * PAGE_SIZE);
    let block = w.list.add(spec.resizable(true)).unwrap();
    let log = w.log(LogScope::blocks([&block])).unwrap();
    (block, log)
}

#[test]
fn pages_that_a_block_grows_by_are_reported_once_and_logged_from_then_on() {
    let w = World::new();
    let (block, log) = resizable(&w);
    w.write(&block, 3);
    assert_eq!(pages(log.sync(None).unwrap(), &block), [3]);
    w.list.resize(&block, 2 * PAGES * PAGE_SIZE).unwrap();
    let grown = pages(log.sync(None).unwrap(), &block);
    assert!((PAGES..2 * PAGES).all(|page| grown.contains(&page)), "all that is new");
    assert_eq!(log.sync(None).unwrap().count(), 0);
    w.write(&block, 2 * PAGES - 1);
    assert_eq!(pages(log.sync(None).unwrap(), &block), [2 * PAGES - 1]);
}

#[test]
fn pages_that_a_block_shrinks_by_are_not_reported_and_not_listened_to() {
    let w = World::new();
    let (block, log) = resizable(&w);
    w.write(&block, 3);
    w.write(&block, PAGES - 1);
    let harvest = log.sync(None).unwrap();
    w.list.resize(&block, PAGES / 2 * PAGE_SIZE).unwrap();
    drop(harvest);
    let left = pages(log.sync(None).unwrap(), &block);
    assert!(left.contains(&3) && left.iter().all(|page| *page < PAGES / 2), "{left:?}");
    assert!((PAGES / 2..2 * PAGES).all(|page| !w.listens(&block, page)));
    w.list.resize(&block, PAGES * PAGE_SIZE).unwrap();
    let back = pages(log.sync(None).unwrap(), &block);
    assert!((PAGES / 2..PAGES).all(|page| back.contains(&page)), "what comes back may be other bytes");
    drop(log);
    assert!((0..2 * PAGES).all(|page| !w.listens(&block, page)));
}

#[test]
fn regions_that_overlap_are_logged_as_what_they_cover() {
    let w = World::new();
    let region = |start: u64, end: u64| LogRegion::bytes(&w.ram, start * PAGE_SIZE, (end - start) * PAGE_SIZE);
    let log =
        w.log(LogScope::Regions(vec![region(10, 20), region(0, 300), region(290, 400), region(400, 401)])).unwrap();
    for page in [5, 15, 50, 295, 200, 400, 401] {
        w.write(&w.ram, page);
    }
    // Given back, a page is found again.
    drop(log.sync(None).unwrap());
    assert_eq!(pages(log.sync(None).unwrap(), &w.ram), [5, 15, 50, 200, 295, 400]);
    assert!(w.listens(&w.ram, 50) && w.listens(&w.ram, 399) && !w.listens(&w.ram, 401));
}

#[test]
fn who_joins_does_not_rely_on_answers_that_another_waits_for() {
    let w = World::new();
    let first = w.log(LogScope::All).unwrap();
    w.write(&w.ram, 7);
    // Its bit is taken, and a vCPU that has not answered goes on storing there unheard.
    w.ears.deaf.store(true, Ordering::Relaxed);
    assert!(first.sync(None).is_err());
    w.ears.take();
    // So who joins now has not been promised that a later store is heard, unless that vCPU was asked again.
    assert!(matches!(w.log(LogScope::All), Err(LogError::NotServed(_))));
    w.ears.deaf.store(false, Ordering::Relaxed);
    w.ears.take();
    let second = w.log(LogScope::All).unwrap();
    assert!(w.ears.take().iter().any(|asked| asked.contains(at(&w.ram, 7))));
    assert_eq!(pages(second.sync(None).unwrap(), &w.ram), [0; 0]);
    assert_eq!(pages(first.sync(None).unwrap(), &w.ram), [7]);
}
