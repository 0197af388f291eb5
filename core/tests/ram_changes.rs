//! Blocks that come, go and change their length: who is told what, in which order, and what an error leaves.
#![cfg(not(loom))]

use notdirty_core::raw::RawDirty;
use notdirty_core::{
    BeforeWrite, CanWait, ClientMask, DirtyClient, PAGE_SIZE, PageIndex, PageRange, PageSet, RamAddr, RamBlock,
    RamBlockSpec, RamError, RamFlags, RamList, RamNotifier, pin,
};
use std::sync::{Arc, Mutex};

const P: u64 = PAGE_SIZE;

#[derive(Default)]
struct Told(Arc<Mutex<Vec<String>>>);

impl Told {
    fn note(&self, what: String) {
        self.0.lock().unwrap().push(what);
    }
}

impl RamNotifier for Told {
    fn added(&self, block: &Arc<RamBlock>) {
        self.note(format!("added {} {:#x}", block.idstr(), block.used_length()));
    }
    fn removed(&self, block: &Arc<RamBlock>) {
        self.note(format!("removed {}", block.idstr()));
    }
    fn resized(&self, block: &Arc<RamBlock>, old: u64, new: u64) {
        assert_eq!(block.used_length(), old, "told before the length changes");
        self.note(format!("resized {} {old:#x} {new:#x}", block.idstr()));
    }
}

fn growable(list: &RamList, name: &str) -> Arc<RamBlock> {
    list.add(RamBlockSpec::new(name, 4 * P).max_length(16 * P).resizable(true)).unwrap()
}

#[test]
fn a_growth_gives_memory_that_is_zero_and_dirty_and_then_calls_back() {
    let list = RamList::new();
    let log = Arc::new(Mutex::new(Vec::new()));
    let _told = list.notify(Arc::new(Told(log.clone())));
    let spec = RamBlockSpec::new("ram", 4 * P).max_length(16 * P).resizable(true);
    let block = list
        .add(spec.on_resized({
            let log = log.clone();
            move |name, len, host| log.lock().unwrap().push(format!("done {name} {len:#x} {}", !host.is_null()))
        }))
        .unwrap();
    assert!(block.flags().contains(RamFlags::RESIZABLE));
    block.store_raw(0, 8, 77).unwrap();
    let guard = pin();
    for client in [DirtyClient::VGA, notdirty_core::raw::CODE, DirtyClient::MIGRATION] {
        list.dirty().test_and_clear_range(block.pages(), client, &guard, |_, _| {});
    }
    let version = list.version();
    list.resize(&block, 16 * P).unwrap();
    assert!(list.version() > version, "logs remember how long blocks are");
    assert_eq!((block.used_length(), block.pages().len(), block.load(0, 8).unwrap()), (16 * P, 16, 77));
    assert_eq!(block.load(16 * P - 8, 8).unwrap(), 0);
    block.store_raw(16 * P - 8, 8, 1).unwrap();
    for (n, page) in block.pages().iter().enumerate() {
        // CODE says where translations are; a resize moves none.
        let listening = list.dirty().listening(page, &guard);
        assert!(if n < 4 { listening.only_code() } else { listening.is_empty() }, "page {n}");
    }
    list.resize(&block, 16 * P).unwrap(); // nothing changes, nobody is told
    let log = log.lock().unwrap();
    assert_eq!(*log, ["added ram 0x4000", "resized ram 0x4000 0x10000", "done ram 0x10000 true"]);
}

#[test]
fn a_shrink_leaves_the_tail_mapped_until_it_is_released() {
    let list = RamList::new();
    let block = growable(&list, "ram");
    list.resize(&block, 16 * P).unwrap();
    block.fill_raw(0, 16 * P, 0x5a).unwrap();
    let guard = pin();
    let all = block.pages();
    list.dirty().test_and_clear_range(all, DirtyClient::MIGRATION, &guard, |_, _| {});
    list.resize(&block, 2 * P).unwrap();
    assert!(matches!(block.load(2 * P, 1), Err(RamError::OutOfBounds { used: 0x2000, .. })));
    assert!(list.dirty().listening(PageIndex::new(all.start.get() + 9), &guard).is_empty(), "nobody listens there");
    // Somebody with an old view: no fault, and the bytes are there until they are given back.
    // SAFETY: mapped as long as the block lives.
    let stale = |at: u64| unsafe { block.host().add(at as usize).read_volatile() };
    assert_eq!((stale(2 * P), stale(16 * P - 1)), (0x5a, 0x5a));
    list.release_tail(&block).unwrap();
    assert_eq!((stale(2 * P - 1), stale(2 * P), stale(16 * P - 1)), (0x5a, 0, 0));
    list.resize(&block, 16 * P).unwrap();
    assert_eq!((block.load(P, 1).unwrap(), block.load(8 * P, 8).unwrap()), (0x5a, 0));
    // The address in between belongs to the block all the time.
    assert!(list.find(RamAddr::new(block.offset().get() + 9 * P), &guard).is_some());
}

#[test]
fn a_resize_that_cannot_be_is_refused_and_tells_nobody() {
    let list = RamList::new();
    let fixed = list.add(RamBlockSpec::new("fixed", P).max_length(2 * P)).unwrap();
    let block = growable(&list, "ram");
    let gone = growable(&list, "gone");
    list.remove(&gone).unwrap();
    let log = Arc::new(Mutex::new(Vec::new()));
    let _told = list.notify(Arc::new(Told(log.clone())));
    let version = list.version();
    assert!(matches!(list.resize(&fixed, 2 * P), Err(RamError::NotResizable { idstr }) if idstr == "fixed"));
    assert!(matches!(list.resize(&block, 17 * P), Err(RamError::UsedOverMax { used: 0x11000, max: 0x10000, .. })));
    assert!(matches!(list.resize(&block, 0), Err(RamError::OddLength { .. })));
    assert!(matches!(list.resize(&block, P + 1), Err(RamError::OddLength { length: 0x1001, .. })));
    assert!(matches!(list.resize(&gone, P), Err(RamError::NotInList { .. })));
    assert!(matches!(RamList::new().resize(&block, P), Err(RamError::NotInList { .. })));
    assert_eq!((block.used_length(), list.version()), (4 * P, version));
    assert!(log.lock().unwrap().is_empty());
}

/// The host's refusal is injected by a file that got shorter: the growth has no memory to give.
#[test]
fn a_growth_that_the_host_refuses_changes_nothing_and_can_be_tried_again() {
    let path = std::env::temp_dir().join(format!("notdirty-grow-{}", std::process::id()));
    let file = std::fs::File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    file.set_len(16 * P).unwrap();
    let list = RamList::new();
    let log = Arc::new(Mutex::new(Vec::new()));
    let _told = list.notify(Arc::new(Told(log.clone())));
    let spec = RamBlockSpec::new("ram", 4 * P).max_length(16 * P).resizable(true);
    let block = list.add(spec.file(file.try_clone().unwrap(), 0).shared(true)).unwrap();
    let guard = pin();
    list.dirty().test_and_clear_range(block.pages(), DirtyClient::MIGRATION, &guard, |_, _| {});
    file.set_len(8 * P).unwrap();
    let error = list.resize(&block, 9 * P).unwrap_err();
    assert!(matches!(error, RamError::ShortFile { needs: 0x9000, has: 0x8000, .. }), "{error}");
    assert_eq!(block.used_length(), 4 * P);
    assert!(!list.dirty().any_set(block.pages(), DirtyClient::MIGRATION, &guard), "no bit has changed");
    assert_eq!(*log.lock().unwrap(), ["added ram 0x4000"]);
    list.resize(&block, 8 * P).unwrap();
    block.store_raw(8 * P - 8, 8, 5).unwrap();
}

#[test]
fn a_host_that_does_not_promise_more_than_it_has_refuses_a_growth() {
    if std::fs::read_to_string("/proc/sys/vm/overcommit_memory").unwrap().trim() == "1" {
        eprintln!("skipped: this host promises everything");
        return;
    }
    let list = RamList::new();
    let spec = RamBlockSpec::new("ram", 4 * P).max_length(1 << 44).resizable(true);
    let block = list.add(spec.noreserve(false)).unwrap();
    assert!(!block.flags().contains(RamFlags::NORESERVE));
    let error = list.resize(&block, 1 << 44).unwrap_err();
    assert!(matches!(error, RamError::Host { length, .. } if length == 1 << 44), "{error}");
    assert_eq!(block.used_length(), 4 * P);
    list.resize(&block, 64 * P).unwrap();
    block.store_raw(64 * P - 8, 8, 5).unwrap();
}

#[test]
fn notifiers_hear_what_comes_and_goes_as_long_as_they_are_registered() {
    let list = RamList::new();
    let _before = growable(&list, "before");
    let log = Arc::new(Mutex::new(Vec::new()));
    let told = list.notify(Arc::new(Told(log.clone())));
    let block = growable(&list, "ram");
    assert!(list.add(RamBlockSpec::new("ram", P)).is_err());
    list.remove(&block).unwrap();
    assert!(list.remove(&block).is_err());
    drop(told);
    growable(&list, "after");
    assert_eq!(*log.lock().unwrap(), ["added ram 0x4000", "removed ram"]);
}

/// A notifier that changes the list from within each call, and asks for the block it is told of.
struct Meddler(Arc<RamList>, Mutex<Vec<String>>);

impl Meddler {
    fn meddle(&self, block: &Arc<RamBlock>, what: &str) {
        let list = &self.0;
        if block.idstr().starts_with("inner") {
            return;
        }
        assert!(matches!(list.remove(block), Err(RamError::Busy { .. })));
        assert!(matches!(list.resize(block, P), Err(RamError::Busy { .. })));
        assert!(list.find(block.offset(), &pin()).is_some_and(|found| Arc::ptr_eq(found, block)));
        let inner = growable(list, &format!("inner {what}"));
        list.resize(&inner, 8 * P).unwrap();
        list.remove(&inner).unwrap();
        self.1.lock().unwrap().push(what.to_owned());
    }
}

impl RamNotifier for Meddler {
    fn added(&self, block: &Arc<RamBlock>) {
        self.meddle(block, "added");
    }
    fn removed(&self, block: &Arc<RamBlock>) {
        self.meddle(block, "removed");
    }
    fn resized(&self, block: &Arc<RamBlock>, _: u64, _: u64) {
        self.meddle(block, "resized");
    }
}

#[test]
fn a_notifier_may_change_the_list_but_not_the_block_it_is_told_of() {
    let list = Arc::new(RamList::new());
    let meddler = Arc::new(Meddler(list.clone(), Mutex::default()));
    let _told = list.notify(meddler.clone());
    let block = growable(&list, "ram");
    list.resize(&block, 8 * P).unwrap();
    list.remove(&block).unwrap();
    assert_eq!(*meddler.1.lock().unwrap(), ["added", "resized", "removed"]);
    assert_eq!(list.blocks(&pin()).count(), 0);
}

#[test]
fn a_notifier_that_panics_leaves_a_list_that_works() {
    struct Panics;
    impl RamNotifier for Panics {
        fn removed(&self, _: &Arc<RamBlock>) {
            panic!("as asked");
        }
    }
    let list = RamList::new();
    let block = growable(&list, "ram");
    let told = list.notify(Arc::new(Panics));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| list.remove(&block))).is_err());
    drop(told);
    list.resize(&block, P).unwrap();
    list.remove(&block).unwrap();
}

#[test]
fn a_block_is_found_by_name_until_it_goes() {
    let list = RamList::new();
    let [a, b] = ["a", "b"].map(|name| growable(&list, name));
    let guard = pin();
    assert!(Arc::ptr_eq(list.find_id("b", &guard).unwrap(), &b));
    list.remove(&b).unwrap();
    assert!(list.find_id("b", &guard).is_none() && list.find_id("", &guard).is_none());
    assert!(Arc::ptr_eq(list.find_id("a", &guard).unwrap(), &a));
}

#[test]
fn the_hint_of_the_last_look_up_never_answers_for_another_address() {
    let list = RamList::new();
    let blocks: Vec<_> = (0..300).map(|n| growable(&list, &n.to_string())).collect();
    let guard = pin();
    let find = |at: u64| list.find(RamAddr::new(at), &guard).map(|b| b.idstr().to_owned());
    for (n, block) in blocks.iter().enumerate() {
        let at = block.offset().get();
        for _ in 0..2 {
            assert_eq!(find(at), Some(n.to_string()));
            assert_eq!(find(at + 16 * P - 1), Some(n.to_string()));
            assert_eq!(find(at + 16 * P), None, "the space up to the next block is nobody's");
            let host = block.host().wrapping_add(16 * P as usize);
            assert!(list.find_host(host, &guard).is_none(), "a guard is nobody's");
            assert_eq!(list.find_host(host.wrapping_sub(1), &guard).unwrap().1, 16 * P - 1);
        }
    }
    let last = blocks.last().unwrap();
    assert!(find(last.offset().get()).is_some());
    list.remove(last).unwrap();
    assert_eq!(find(last.offset().get()), None);
}

#[test]
fn readers_of_a_length_that_changes_never_meet_a_fault() {
    let list = RamList::new();
    let block = growable(&list, "ram");
    std::thread::scope(|s| {
        let writer = s.spawn(|| {
            for n in 0..3000 {
                list.resize(&block, (n % 16 + 1) * P).unwrap();
                if n % 7 == 0 {
                    list.release_tail(&block).unwrap();
                }
            }
        });
        while !writer.is_finished() {
            let used = block.used_length();
            // It may have shrunk meanwhile; then the access is refused, or lands in the tail.
            let _ = block.store_raw(used - 8, 8, used);
            // SAFETY: mapped as long as the block lives, since `used` once was its length.
            unsafe { block.host().add(used as usize - 1).read_volatile() };
        }
    });
}

/// With the bits and with rings, where the pages that a block grows by were never pushed.
#[test]
fn a_log_that_runs_reports_what_a_block_grows_by_and_not_what_was_cut_off() {
    for rings in [false, true] {
        let list = Arc::new(RamList::new());
        let block = growable(&list, "ram");
        let log = list.log(DirtyClient::MIGRATION);
        let log = if rings { log.rings(128) } else { log }.start().unwrap();
        let sync = || log.sync(None).unwrap().commit();
        let all = || block.pages().iter().collect::<Vec<_>>();
        let pages = |set: PageSet| set.ranges().flat_map(|range| range.iter()).collect::<Vec<_>>();
        assert!(sync().is_empty());
        list.resize(&block, 8 * P).unwrap();
        assert_eq!(pages(sync()), all(), "grown, rings: {rings}");
        list.resize(&block, 2 * P).unwrap();
        assert_eq!(pages(sync()), all(), "shrunk, rings: {rings}");
        list.resize(&block, 16 * P).unwrap();
        assert_eq!(pages(sync()), all(), "grown again, rings: {rings}");
        list.resize(&block, P).unwrap();
        list.resize(&block, 16 * P).unwrap();
        assert_eq!(pages(sync()), all(), "unseen in between, rings: {rings}");
        pages(sync()); // what the take before saw a little early
        assert!(sync().is_empty());
        list.dirty().set(PageRange::of_page(all()[9]), ClientMask::MIGRATION, &pin());
        assert_eq!(pages(sync()), [all()[9]], "rings: {rings}");
    }
}

#[test]
fn a_block_shrinks_down_to_what_is_mapped_of_it_and_below_that_once_nothing_is() {
    let list = RamList::new();
    let block = list.add(RamBlockSpec::new("ram", 16 * P).resizable(true)).unwrap();
    let mut map = block.mapping(0, 8 * P).unwrap();
    let refused = |length| matches!(list.resize(&block, length), Err(RamError::MappedBeyond { .. }));
    assert!(refused(7 * P));
    map.set_len(16 * P).unwrap();
    map.set_len(17 * P).unwrap_err();
    assert!(refused(15 * P), "a shrink that was refused changed no limit");
    map.set_len(8 * P).unwrap();
    list.resize(&block, 8 * P).unwrap();
    map.set_len(9 * P).unwrap_err();
    drop(map);
    list.resize(&block, 4 * P).unwrap();
}

/// A shrink asks subscribers last of all that can fail, when mappings beyond the new length are refused already.
#[test]
fn a_shrink_that_a_guard_of_the_caller_stops_lets_the_block_be_mapped_as_far_as_before() {
    struct Quiet;
    impl BeforeWrite for Quiet {
        fn before(&self, _: RamAddr, _: u64, _: &CanWait) {}
    }
    let list = Arc::new(RamList::new());
    let block = growable(&list, "ram");
    let log = Arc::new(Mutex::new(Vec::new()));
    let _told = list.notify(Arc::new(Told(log.clone())));
    let _subscribed = list.before_writes(None, Arc::new(Quiet));
    let guard = pin();
    assert!(matches!(list.resize(&block, 2 * P), Err(RamError::Pinned(_))));
    drop(guard);
    assert_eq!((block.used_length(), log.lock().unwrap().len()), (4 * P, 0));
    let map = block.mapping(0, 4 * P).unwrap();
    assert!(matches!(list.resize(&block, 2 * P), Err(RamError::MappedBeyond { .. })));
    drop(map);
    list.resize(&block, 2 * P).unwrap();
    block.mapping(0, 2 * P + 1).unwrap_err();
}

#[test]
fn a_mapping_within_a_block_ends_its_length_behind_its_start() {
    let list = RamList::new();
    let block = list.add(RamBlockSpec::new("ram", 16 * P).resizable(true)).unwrap();
    let mut map = block.mapping(2 * P, 3 * P).unwrap();
    assert!(map.off() == 2 * P && Arc::ptr_eq(map.block(), &block));
    let error = list.resize(&block, 4 * P).unwrap_err();
    assert!(matches!(error, RamError::MappedBeyond { length: 0x4000, end: 0x5000, .. }), "{error}");
    map.set_len(14 * P).unwrap();
    for beyond in [14 * P + 1, u64::MAX - 2 * P, u64::MAX] {
        map.set_len(beyond).unwrap_err();
        block.mapping(2 * P, beyond).unwrap_err();
    }
    map.set_len(3 * P).unwrap();
    list.resize(&block, 5 * P).unwrap();
}
