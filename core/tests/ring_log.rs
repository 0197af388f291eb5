//! Rings as the back end of a log: what is pushed where, what a harvest finds, and what becomes of it when blocks, vCPUs,
//! clients and logs come and go.
#![cfg(not(loom))]

use notdirty_core::dirty::{DirtyLog, LogError, LogRegion, LogScope};
use notdirty_core::raw::{RawDirty, RawRings};
use notdirty_core::{
    ClientMask, DirtyClient, PAGE_SIZE, PageIndex, PageRange, RamBlock, RamBlockSpec, RamList, RingError,
    RingStartError, VcpuRings, barrier, pin,
};
use proptest::prelude::*;
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

const MIGRATION: DirtyClient = DirtyClient::MIGRATION;
/// With 128 entries.
const SOFT: u64 = 64;

fn list() -> Arc<RamList> {
    Arc::new(RamList::new())
}

fn block(list: &RamList, name: &str, pages: u64) -> Arc<RamBlock> {
    list.add(RamBlockSpec::new(name, pages * PAGE_SIZE).max_length(2 * pages * PAGE_SIZE)).unwrap()
}

fn page(block: &RamBlock, n: u64) -> PageIndex {
    PageIndex::new(block.offset().page().get() + n)
}

fn start(list: &Arc<RamList>, client: DirtyClient, entries: u32) -> DirtyLog {
    list.log(client).rings(entries).start().unwrap()
}

/// A slow store of a vCPU, step c. Whether it is to leave.
fn store(list: &RamList, vcpu: &mut VcpuRings, at: PageIndex) -> bool {
    let guard = pin();
    let mut leave = false;
    list.dirty().set_new(PageRange::of_page(at), ClientMask::ALL, &guard, |client, first, bits| {
        leave |= vcpu.push(list, client, first, bits, &guard);
    });
    leave
}

/// What a sync finds, in pages.
fn sync(log: &DirtyLog) -> Vec<u64> {
    let pages = log.sync(None).unwrap().commit();
    pages.ranges().flat_map(|range| range.iter()).map(PageIndex::get).collect()
}

fn offsets(block: &RamBlock, pages: impl IntoIterator<Item = u64>) -> Vec<u64> {
    pages.into_iter().map(|n| page(block, n).get()).collect()
}

#[test]
fn pages_of_vcpus_and_of_others_come_out_once_and_again_when_they_are_dirtied_again() {
    let list = list();
    let ram = block(&list, "ram", 1000);
    let log = start(&list, MIGRATION, 128);
    assert_eq!(sync(&log), [], "what was there before is the caller's");
    let [mut a, mut b] = [VcpuRings::new(), VcpuRings::new()];
    for _ in 0..3 {
        store(&list, &mut a, page(&ram, 7));
        store(&list, &mut b, page(&ram, 7));
        store(&list, &mut b, page(&ram, 700));
        list.dirty().set(PageRange { start: page(&ram, 699), end: page(&ram, 703) }, ClientMask::ALL, &pin());
        assert_eq!(sync(&log), offsets(&ram, [7, 699, 700, 701, 702]));
        assert_eq!(sync(&log), []);
    }
}

#[test]
fn rings_that_were_stopped_by_the_raw_call_are_nowhere_and_can_be_started_again() {
    let list = list();
    for _ in 0..2 {
        let log = list.dirty().start_rings(MIGRATION, 128).unwrap();
        assert!(list.dirty().ringed().contains(MIGRATION));
        list.dirty().stop_rings(&log);
        assert!(list.dirty().ringed().is_empty());
    }
}

#[test]
fn a_vcpu_is_told_to_leave_at_the_soft_limit_until_the_log_is_synced() {
    let list = list();
    let ram = block(&list, "ram", 1000);
    let log = start(&list, MIGRATION, 128);
    let mut vcpu = VcpuRings::new();
    for n in 1..SOFT {
        assert!(!store(&list, &mut vcpu, page(&ram, n)));
        assert!(!vcpu.is_soft_full(list.dirty()));
    }
    assert!(store(&list, &mut vcpu, page(&ram, 0)));
    assert!(vcpu.is_soft_full(list.dirty()));
    assert!(!store(&list, &mut vcpu, page(&ram, 0)), "it is dirty already and pushes nothing");
    assert_eq!(u64::from(log.rings().unwrap().fullest()), SOFT);
    assert_eq!(sync(&log), offsets(&ram, 0..SOFT));
    assert!(!vcpu.is_soft_full(list.dirty()));
}

#[test]
fn a_full_ring_loses_nothing_however_long_nobody_comes() {
    let list = list();
    let ram = block(&list, "ram", 20_000);
    let log = start(&list, MIGRATION, 128);
    let mut vcpu = VcpuRings::new();
    for round in 0..2 {
        for n in 0..20_000 {
            let leave = store(&list, &mut vcpu, page(&ram, (n * 7) % 20_000));
            assert_eq!(leave, n + 1 >= SOFT, "{round} {n}");
        }
        assert_eq!(sync(&log), offsets(&ram, 0..20_000));
    }
}

#[test]
fn a_harvest_that_is_dropped_comes_again() {
    let list = list();
    let ram = block(&list, "ram", 100);
    let log = start(&list, MIGRATION, 128);
    let mut vcpu = VcpuRings::new();
    store(&list, &mut vcpu, page(&ram, 3));
    drop(log.sync(None).unwrap());
    store(&list, &mut vcpu, page(&ram, 4));
    assert_eq!(sync(&log), offsets(&ram, [3, 4]));
    assert_eq!(sync(&log), []);
}

#[test]
fn vcpus_may_come_after_the_log_and_go_before_the_harvest() {
    let list = list();
    let ram = block(&list, "ram", 100);
    let mut early = VcpuRings::new();
    let log = start(&list, MIGRATION, 128);
    store(&list, &mut early, page(&ram, 1));
    let mut late = VcpuRings::new();
    store(&list, &mut late, page(&ram, 2));
    drop(late);
    assert_eq!(sync(&log), offsets(&ram, [1, 2]));
    store(&list, &mut early, page(&ram, 1));
    drop(early);
    assert_eq!(sync(&log), offsets(&ram, [1]));
    assert_eq!(log.rings().unwrap().fullest(), 0);
}

#[test]
fn a_log_that_stops_holds_nobody_up_and_the_next_one_starts_clean() {
    let list = list();
    let ram = block(&list, "ram", 1000);
    let log = start(&list, MIGRATION, 128);
    let mut vcpu = VcpuRings::new();
    assert_ne!((0..200).filter(|n| store(&list, &mut vcpu, page(&ram, *n))).count(), 0);
    assert!(vcpu.is_soft_full(list.dirty()));
    log.stop();
    assert!(!vcpu.is_soft_full(list.dirty()));
    assert!(list.dirty().ringed().is_empty());
    assert!(list.dirty().listening(page(&ram, 5), &pin()).is_empty(), "logging that is off costs nothing");
    let log = start(&list, MIGRATION, 256);
    assert_eq!(sync(&log), []);
    store(&list, &mut vcpu, page(&ram, 9));
    assert_eq!(sync(&log), offsets(&ram, [9]));
}

#[test]
fn two_clients_have_rings_of_their_own() {
    let list = list();
    let ram = block(&list, "ram", 1000);
    let own = list.add_client("checkpoint").unwrap();
    let migration = start(&list, MIGRATION, 128);
    let checkpoint = start(&list, own.client(), 1024);
    let mut vcpu = VcpuRings::new();
    assert!((0..100).filter(|n| store(&list, &mut vcpu, page(&ram, *n))).count() > 0);
    assert_eq!(sync(&migration), offsets(&ram, 0..100));
    assert!(!vcpu.is_soft_full(list.dirty()), "of the other 1024, 100 are in use");
    store(&list, &mut vcpu, page(&ram, 50));
    assert_eq!(sync(&checkpoint), offsets(&ram, 0..100));
    assert_eq!(sync(&migration), offsets(&ram, [50]));
}

#[test]
fn a_client_that_is_dropped_takes_its_rings_along() {
    let list = list();
    let ram = block(&list, "ram", 100);
    let own = list.add_client("checkpoint").unwrap();
    let log = list.log(own).rings(128).start().unwrap();
    let mut vcpu = VcpuRings::new();
    store(&list, &mut vcpu, page(&ram, 1));
    log.stop();
    assert!(list.dirty().ringed().is_empty());
    let own = list.add_client("another").unwrap();
    let log = start(&list, own.client(), 128);
    store(&list, &mut vcpu, page(&ram, 2));
    assert_eq!(sync(&log), offsets(&ram, [2]));
    // A log that names its client by number does not keep it: the column is another's next.
    drop(own);
    assert!(list.dirty().ringed().is_empty());
    let own = list.add_client("a third").unwrap();
    start(&list, own.client(), 128);
}

#[test]
fn only_what_is_logged_is_taken() {
    let list = list();
    let (a, b) = (block(&list, "a", 100), block(&list, "b", 100));
    let scope = LogScope::Regions(vec![LogRegion::bytes(&b, 10 * PAGE_SIZE, 20 * PAGE_SIZE)]);
    let rings = list.log(MIGRATION).scope(scope).rings(128).start().unwrap();
    // Of the same client, by its bits.
    let bitmap = list.log(MIGRATION).blocks([&a]).start().unwrap();
    let mut vcpu = VcpuRings::new();
    for n in [5, 12, 29, 30] {
        store(&list, &mut vcpu, page(&a, n));
        store(&list, &mut vcpu, page(&b, n));
    }
    assert_eq!(sync(&rings), offsets(&b, [12, 29]));
    assert_eq!(sync(&bitmap), offsets(&a, [5, 12, 29, 30]));
    let scope = LogScope::Regions(vec![LogRegion::bytes(&b, 40 * PAGE_SIZE, PAGE_SIZE)]);
    let third = list.log(MIGRATION).scope(scope).rings(128).start();
    assert_eq!(third.unwrap_err(), LogError::Rings(RingStartError::Busy { client: MIGRATION }));
}

#[test]
fn rings_that_cannot_be_are_refused() {
    let list = list();
    let start = |entries| list.log(MIGRATION).rings(entries).start().unwrap_err();
    assert_eq!(start(100), LogError::Rings(RingStartError::Ring(RingError::Size { entries: 100 })));
    let _log = list.log(MIGRATION).rings(128).start().unwrap();
    assert_eq!(start(256), LogError::OtherBackend { client: MIGRATION, rings: true });
}

#[test]
fn a_block_that_is_plugged_is_reported_whole_and_then_as_the_others() {
    let list = list();
    block(&list, "ram", 100);
    let log = start(&list, MIGRATION, 128);
    let mut vcpu = VcpuRings::new();
    let new = block(&list, "new", 70);
    store(&list, &mut vcpu, page(&new, 3));
    assert_eq!(sync(&log), offsets(&new, 0..70));
    store(&list, &mut vcpu, page(&new, 69));
    assert_eq!(sync(&log), offsets(&new, [69]));
    assert_eq!(sync(&log), []);
}

/// Some of its bits are clear, from the old block; some are set, and their entries name the old one.
#[test]
fn a_block_at_the_addresses_of_another_is_reported_whole() {
    let list = list();
    let old = block(&list, "old", 100);
    let log = start(&list, MIGRATION, 128);
    let mut vcpu = VcpuRings::new();
    for n in [3, 4, 50] {
        store(&list, &mut vcpu, page(&old, n));
    }
    let at = old.offset();
    list.remove(&old).unwrap();
    drop(old);
    barrier().unwrap(); // the old one's last owner is a snapshot of the list
    let new = block(&list, "new", 100);
    assert_eq!(new.offset(), at);
    assert!(sync(&log).iter().filter(|n| new.pages().contains(PageIndex::new(**n))).count() == 100);
    store(&list, &mut vcpu, page(&new, 4));
    assert_eq!(sync(&log), offsets(&new, [4]));
}

#[test]
fn a_block_that_is_gone_is_not_reported() {
    let list = list();
    let (gone, stays) = (block(&list, "gone", 100), block(&list, "stays", 100));
    let log = start(&list, MIGRATION, 128);
    let mut vcpu = VcpuRings::new();
    store(&list, &mut vcpu, page(&gone, 3));
    store(&list, &mut vcpu, page(&stays, 3));
    list.remove(&gone).unwrap();
    store(&list, &mut vcpu, page(&gone, 4));
    assert_eq!(sync(&log), offsets(&stays, [3]));
}

proptest! {
    /// Against a set: two vCPUs and a device write, and somebody syncs now and then.
    #[test]
    fn each_page_is_reported_exactly_once_per_interval(
        steps in prop::collection::vec((0u32..10, 0u64..300), 1..800),
    ) {
        let list = list();
        let (a, b) = (block(&list, "a", 100), block(&list, "b", 200));
        let log = start(&list, MIGRATION, 128);
        let mut vcpus = [VcpuRings::new(), VcpuRings::new()];
        let mut dirty = BTreeSet::new();
        for (what, n) in steps {
            let at = if n < 100 { page(&a, n) } else { page(&b, n - 100) };
            match what {
                0 => {
                    prop_assert_eq!(sync(&log), dirty.iter().copied().collect::<Vec<_>>());
                    dirty.clear();
                }
                1 => {
                    list.dirty().set(PageRange::of_page(at), ClientMask::ALL, &pin());
                    dirty.insert(at.get());
                }
                n => {
                    store(&list, &mut vcpus[n as usize % 2], at);
                    dirty.insert(at.get());
                }
            }
        }
        prop_assert_eq!(sync(&log), dirty.into_iter().collect::<Vec<_>>());
    }
}

#[test]
fn a_take_has_no_page_twice_though_the_vcpus_go_on() {
    let list = list();
    let ram = block(&list, "ram", 64 * 64);
    let log = list.dirty().start_rings(MIGRATION, 1024).unwrap();
    let guard = pin();
    list.dirty().test_and_clear_range(ram.pages(), MIGRATION, &guard, |_, _| ());
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        for first in 0..2 {
            let (list, ram, stop) = (&list, &ram, &stop);
            s.spawn(move || {
                let mut vcpu = VcpuRings::new();
                for n in first.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    store(list, &mut vcpu, page(ram, n % 64 * 64));
                }
            });
        }
        let _stop = Ending(&stop);
        let mut found = 0;
        while found < 100_000 {
            let words = log.take(&list, None, &pin());
            let mut seen = BTreeSet::new();
            found += words.len();
            assert!(words.iter().all(|(first, bits)| *bits == 1 && seen.insert(first.get())), "a page came twice");
        }
    });
}

/// Ends the other threads, also if this one panics.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Each page's first word counts the stores to it. A harvester keeps the counts of the pages that it is told of, by slot;
/// in the end they are right for every block that is still there.
#[test]
fn no_store_is_missed_while_blocks_come_and_go() {
    const FIXED: u64 = 300;
    const PLUGGED: u64 = 64;
    let list = list();
    let fixed = block(&list, "fixed", FIXED);
    let log = start(&list, MIGRATION, 128);
    let plugged = Mutex::new(Arc::downgrade(&fixed));
    let (writing, ended) = (AtomicBool::new(true), AtomicBool::new(false));
    let write = |at: &RamBlock, n: u64| {
        // Writers of one page count from one cell: each has its own.
        let off = n * PAGE_SIZE;
        at.store_raw(off, 8, at.load(off, 8).unwrap() + 1).unwrap();
    };
    let mut last = None;
    std::thread::scope(|s| {
        let (list, fixed, log, plugged, writing, ended) = (&list, &fixed, &log, &plugged, &writing, &ended);
        let harvester = s.spawn(move || {
            let mut counts: HashMap<(u32, u64), u64> = HashMap::new();
            loop {
                let last = ended.load(Ordering::Acquire);
                let harvest = log.sync(None).unwrap();
                let guard = pin();
                for page in harvest.ranges().flat_map(|range| range.iter()) {
                    let Some(block) = list.find(page.base(), &guard) else { continue };
                    let off = page.base().get() - block.offset().get();
                    counts.insert((block.slot(), off / PAGE_SIZE), block.load(off, 8).unwrap());
                }
                drop(harvest.commit());
                if last {
                    return counts;
                }
            }
        });
        let mut writers = Vec::new();
        // Two vCPUs and a device, each with pages of its own.
        for who in 0..3u64 {
            writers.push(s.spawn(move || {
                let mut vcpu = VcpuRings::new();
                for n in (who..).step_by(3) {
                    if !writing.load(Ordering::Relaxed) {
                        return;
                    }
                    let new = plugged.lock().unwrap().upgrade();
                    for (block, pages) in [(Some(fixed), FIXED), (new.as_ref(), PLUGGED)] {
                        // A multiple of three pages each, so that pages stay with their writer.
                        let (Some(block), page_n) = (block, n % (pages / 3 * 3)) else { continue };
                        write(block, page_n);
                        if who == 2 {
                            list.dirty().set(PageRange::of_page(page(block, page_n)), ClientMask::ALL, &pin());
                        } else {
                            store(list, &mut vcpu, page(block, page_n));
                        }
                    }
                }
            }));
        }
        for n in 0..60 {
            let new = block(list, &format!("new{n}"), PLUGGED);
            *plugged.lock().unwrap() = Arc::downgrade(&new);
            for _ in 0..5 {
                std::thread::yield_now();
            }
            if n == 59 {
                last = Some(new);
            } else {
                list.remove(&new).unwrap();
            }
        }
        writing.store(false, Ordering::Relaxed);
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        ended.store(true, Ordering::Release);
        let counts = harvester.join().unwrap();
        for (block, pages) in [(fixed, FIXED), (last.as_ref().unwrap(), PLUGGED)] {
            for n in 0..pages {
                let now = block.load(n * PAGE_SIZE, 8).unwrap();
                let known = counts.get(&(block.slot(), n)).copied().unwrap_or(0);
                assert_eq!(known, now, "page {n} of {}", block.idstr());
            }
        }
    });
}

#[test]
fn each_vcpu_is_told_by_what_it_pushed() {
    use notdirty_core::VcpuId;
    let list = Arc::new(RamList::new());
    let block = list.add(RamBlockSpec::new("ram", 64 * PAGE_SIZE)).unwrap();
    let log = list.log(DirtyClient::MIGRATION).rings(128).start().unwrap();
    let ids = [VcpuId::fresh(), VcpuId::fresh()];
    let mut vcpus = ids.map(VcpuRings::of);
    let rings = log.rings().unwrap();
    assert_eq!(rings.pushed(), []);
    let first = block.offset().page().get();
    let mut dirty = |vcpu: usize, pages: core::ops::Range<u64>| {
        pages.for_each(|page| assert!(!store(&list, &mut vcpus[vcpu], PageIndex::new(first + page))));
    };
    dirty(0, 0..7);
    dirty(1, 5..10);
    let of = |id: VcpuId| rings.pushed().into_iter().find(|(vcpu, _)| *vcpu == id).map(|(_, pushed)| pushed);
    assert_eq!(ids.map(of), [Some(7), Some(3)], "a page counts for the first that dirties it");
    log.sync(None).unwrap().commit();
    dirty(1, 0..7);
    assert_eq!(ids.map(of), [Some(7), Some(10)], "and again behind a take");
}
