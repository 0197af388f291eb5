//! What a migration keeps for each block: the sync against naive sets, and members that exist while somebody has them.
#![cfg(not(loom))]

use notdirty_core::migration::{BlockMigration, ChunkShift, SyncError, sync};
use notdirty_core::raw::RawDirty;
use notdirty_core::{
    Answers, ClientMask, DirtyClient, DirtyListener, LogError, NotServed, PAGE_SIZE, PageIndex, PageRange, PageSet,
    RamBlock, RamBlockSpec, RamList, pin,
};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Pages of one dirty block of the global bitmap.
const ROW: u64 = 2 << 20;

fn block(list: &RamList, name: &str, pages: u64) -> Arc<RamBlock> {
    list.add(RamBlockSpec::new(name, pages * PAGE_SIZE)).unwrap()
}

fn shift(shift: u8) -> ChunkShift {
    ChunkShift::new(shift).unwrap()
}

/// The pages of a block, in the space of all RAM.
fn pages_of(block: &RamBlock, start: u64, end: u64) -> PageRange {
    let page = |n| PageIndex::new(block.offset().page().get() + n);
    PageRange { start: page(start), end: page(end) }
}

fn set(list: &RamList, block: &RamBlock, start: u64, end: u64) {
    list.dirty().set(pages_of(block, start, end), ClientMask::MIGRATION, &pin());
}

#[derive(Clone, Debug)]
enum Step {
    Mark(usize, u64, u64),
    /// Every so many-th page: words in a row that differ.
    Scatter(usize, u64, u64),
    Sync(usize, u64, u64),
    SyncAll,
    Send(usize, u64),
}

/// Places near those where something ends: words, lines, chunks, rows of the global bitmap, the block.
fn place() -> impl Strategy<Value = u64> {
    let ends = prop::sample::select(vec![0, 64, 128, 512, 1024, ROW - 512, ROW, ROW + 64, ROW + 700, 2 * ROW]);
    (ends, 0..8u64, any::<bool>()).prop_map(|(end, n, below)| if below { end.saturating_sub(n) } else { end + n })
}

fn run() -> impl Strategy<Value = (u64, u64)> {
    prop_oneof![
        (place(), 0..70u64).prop_map(|(start, len)| (start, start + len)),
        (place(), place()).prop_map(|(a, b)| (a.min(b), a.max(b).min(a.min(b) + 3000))),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3usize, run()).prop_map(|(b, (start, end))| Step::Mark(b, start, end)),
        2 => (0..3usize, place(), 3..90u64).prop_map(|(b, start, gap)| Step::Scatter(b, start, gap)),
        2 => (0..3usize, run()).prop_map(|(b, (start, end))| Step::Sync(b, start, end)),
        1 => Just(Step::SyncAll),
        2 => (0..3usize, place()).prop_map(|(b, page)| Step::Send(b, page)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 96, ..ProptestConfig::default() })]

    /// The second block begins inside a row and ends inside another one; none is a whole number of words.
    #[test]
    fn a_sync_moves_exactly_what_is_dirty_and_counts_what_is_new(
        steps in prop::collection::vec(step(), 1..60),
        chunk in 6..=12u8,
    ) {
        const LENGTHS: [u64; 3] = [1000, ROW + 777, 65];
        let list = Arc::new(RamList::new());
        let blocks = [0, 1, 2].map(|n| block(&list, &n.to_string(), LENGTHS[n]));
        let maps = blocks.each_ref().map(|block| BlockMigration::need_dirty(block, shift(chunk)));
        let log = list.log(DirtyClient::MIGRATION).start().unwrap();
        let mut dirty: [BTreeSet<u64>; 3] = Default::default();
        let mut sent = dirty.clone();
        let mut chunks = dirty.clone();
        let all = |n: usize| (blocks[n].clone(), 0..u64::MAX);
        for step in steps {
            let (what, model) = match step {
                Step::Mark(n, start, end) => {
                    let end = end.min(LENGTHS[n]);
                    set(&list, &blocks[n], start.min(end), end);
                    dirty[n].extend(start.min(end)..end);
                    continue;
                }
                Step::Scatter(n, start, gap) => {
                    for page in (start..LENGTHS[n].min(start + 2000)).step_by(gap as usize) {
                        set(&list, &blocks[n], page, page + 1);
                        dirty[n].insert(page);
                    }
                    continue;
                }
                Step::Send(n, page) => {
                    let want = chunks[n].remove(&(page >> chunk)).then_some(page >> chunk << chunk);
                    prop_assert_eq!(maps[n].take_chunk(page).map(|range| range.start), want);
                    prop_assert_eq!(maps[n].take(page), sent[n].remove(&page));
                    continue;
                }
                Step::Sync(n, start, end) => (vec![(blocks[n].clone(), start..end)], vec![(n, start..end)]),
                Step::SyncAll => ([0, 1, 2].map(all).to_vec(), [0, 1, 2].map(|n| (n, 0..u64::MAX)).to_vec()),
            };
            let newly = sync(&log, &what, None).unwrap();
            let mut want = 0;
            for (n, range) in model {
                let taken: Vec<u64> = dirty[n].range(range).copied().collect();
                for page in taken {
                    dirty[n].remove(&page);
                    chunks[n].insert(page >> chunk);
                    want += u64::from(sent[n].insert(page));
                }
            }
            prop_assert_eq!(newly, want);
            for n in 0..3 {
                prop_assert_eq!(maps[n].count(), sent[n].len() as u64);
                let pages: Vec<u64> = std::iter::successors(maps[n].next(0), |page| maps[n].next(page + 1)).collect();
                prop_assert!(pages.iter().eq(sent[n].iter()), "block {n}: {pages:?}, not {:?}", sent[n]);
                let left = list.dirty().snapshot_and_clear(blocks[n].pages(), DirtyClient::MIGRATION, &pin());
                let base = blocks[n].offset().page().get();
                prop_assert!(left.pages().ranges().flat_map(|r| r.iter()).map(|p| p.get() - base).eq(dirty[n].iter().copied()));
                left.pages().ranges().for_each(|r| list.dirty().set(r, ClientMask::MIGRATION, &pin()));
            }
        }
    }

    #[test]
    fn shared_bits_are_a_set(
        len in 1..300u64,
        steps in prop::collection::vec((any::<bool>(), 0..320u64, 0..320u64), 1..60),
    ) {
        let list = RamList::new();
        let ram = block(&list, "ram", len);
        let (received, file) = (BlockMigration::need_received(&ram), BlockMigration::need_file(&ram, 4096, 1 << 20));
        let mut model = BTreeSet::new();
        for (add, a, b) in steps {
            if add {
                let new = a < len && model.insert(a);
                prop_assert_eq!((received.set(a), file.set(a)), (new, new));
            } else {
                let range = a.min(b)..a.max(b);
                let had = range.clone().filter(|page| model.remove(page)).count() as u64;
                prop_assert_eq!((received.clear(range.clone()), file.clear(range)), (had, had));
            }
            prop_assert!((0..330).all(|n| received.test(n) == model.contains(&n) && file.test(n) == model.contains(&n)));
            prop_assert_eq!((received.count(), file.count()), (model.len() as u64, model.len() as u64));
        }
    }
}

#[test]
fn members_are_there_while_somebody_has_them() {
    let list = Arc::new(RamList::new());
    let log = list.log(DirtyClient::MIGRATION).start().unwrap();
    let ram = list.add(RamBlockSpec::new("ram", PAGE_SIZE).max_length(1000 * PAGE_SIZE).resizable(true)).unwrap();
    let m = ram.migration();
    assert!(m.dirty().is_none() && m.file().is_none() && m.received().is_none() && m.postcopy_length().is_none());
    let map = BlockMigration::need_dirty(&ram, ChunkShift::default());
    let again = BlockMigration::need_dirty(&ram, shift(6));
    assert!(Arc::ptr_eq(&map, &again) && again.chunks().get() == 18, "who comes second gets the first one's");
    drop(map);
    assert!(m.dirty().is_some());
    drop(again);
    assert!(m.dirty().is_none());
    let file = BlockMigration::need_file(&ram, 123, 1 << 20);
    assert_eq!((file.bitmap_offset(), file.pages_offset()), (123, 1 << 20));
    m.set_postcopy_length(Some(4096));
    assert_eq!(m.postcopy_length(), Some(4096));
    m.set_postcopy_length(None);
    assert_eq!(m.postcopy_length(), None);
    // Sized by the maximum length: a resize finds room.
    let map = BlockMigration::need_dirty(&ram, shift(6));
    list.resize(&ram, 1000 * PAGE_SIZE).unwrap();
    assert_eq!(sync(&log, &[(ram.clone(), 0..u64::MAX)], None).unwrap(), 1000);
    assert_eq!((map.test(999), map.test(1000), map.take_chunk(999)), (true, false, Some(960..1000)));
    assert_eq!((ChunkShift::new(5), ChunkShift::new(32)), (None, None));
}

/// Remembers what it was asked, and answers if it is told to.
#[derive(Default, Debug)]
struct Ears {
    asked: Mutex<Vec<PageRange>>,
    deaf: AtomicBool,
}

impl DirtyListener for Ears {
    fn rearm(&self, pages: &[PageRange]) -> Option<Box<dyn Answers>> {
        self.asked.lock().unwrap().extend_from_slice(pages);
        self.deaf.load(Ordering::Relaxed).then(|| Box::new(Never) as Box<dyn Answers>)
    }
}

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

/// A list with ears, kept by the result.
fn with_ears() -> (Arc<RamList>, Arc<Ears>) {
    let (list, ears) = (Arc::new(RamList::new()), Arc::new(Ears::default()));
    list.add_listener(Arc::downgrade(&ears));
    (list, ears)
}

#[test]
fn a_sync_that_fails_leaves_all_dirty_and_nothing_new() {
    let (list, ears) = with_ears();
    let ram = block(&list, "ram", 100);
    let log = list.log(DirtyClient::MIGRATION).start().unwrap();
    set(&list, &ram, 0, 100);
    let all = [(ram.clone(), 0..100)];
    assert!(matches!(sync(&log, &all, None), Err(SyncError::NoBitmap { idstr }) if idstr == "ram"));
    let map = BlockMigration::need_dirty(&ram, ChunkShift::default());
    let other = Arc::new(RamList::new()).log(DirtyClient::MIGRATION).start().unwrap();
    assert!(matches!(sync(&other, &all, None), Err(SyncError::OtherList { .. })));
    ears.deaf.store(true, Ordering::Relaxed);
    assert!(matches!(sync(&log, &all, None), Err(SyncError::Log(LogError::NotServed(_)))));
    ears.deaf.store(false, Ordering::Relaxed);
    assert_eq!((map.count(), map.take_chunk(0)), (0, None));
    assert_eq!(sync(&log, &all, None).unwrap(), 100);
    assert_eq!(sync(&log, &all, None).unwrap(), 0);
}

#[test]
fn pages_that_the_log_does_not_have_are_an_error_and_no_success() {
    let list = Arc::new(RamList::new());
    let (ram, other) = (block(&list, "ram", 100), block(&list, "other", 100));
    let log = list.log(DirtyClient::MIGRATION).blocks([&ram]).start().unwrap();
    let _maps = [&ram, &other].map(|block| BlockMigration::need_dirty(block, ChunkShift::default()));
    let what = [(ram.clone(), 0..100), (other.clone(), 3..5)];
    let got = sync(&log, &what, None);
    assert!(matches!(got, Err(SyncError::NotLogged { idstr, pages }) if idstr == "other" && pages == (3..5)));
}

#[test]
fn a_sync_beside_another_user_of_the_log_takes_nothing_from_it() {
    let list = Arc::new(RamList::new());
    let ram = block(&list, "ram", 100);
    let log = list.log(DirtyClient::MIGRATION).start().unwrap();
    let _map = BlockMigration::need_dirty(&ram, ChunkShift::MIN);
    let own = list.log(DirtyClient::MIGRATION).start().unwrap();
    set(&list, &ram, 3, 4);
    set(&list, &ram, 50, 51);
    assert_eq!(sync(&own, &[(ram.clone(), 0..10)], None).unwrap(), 1);
    assert_eq!(log.sync(None).unwrap().commit().count(), 2, "each user gets every page written since its last sync");
    assert_eq!(sync(&own, &[(ram.clone(), 0..100)], None).unwrap(), 1, "what was not asked for comes when it is");
}

#[test]
fn lines_of_unlike_words_that_were_not_answered_for_come_with_the_next_sync() {
    let (list, ears) = with_ears();
    let (other, ram) = (block(&list, "other", 700), block(&list, "ram", 5000));
    let maps = [&other, &ram].map(|block| BlockMigration::need_dirty(block, ChunkShift::MIN));
    let log = list.log(DirtyClient::MIGRATION).start().unwrap();
    let user = list.log(DirtyClient::MIGRATION).start().unwrap();
    let all = [(ram.clone(), 3..u64::MAX)];
    let scatter = |from: u64| (from..5000).step_by(7).for_each(|n| set(&list, &ram, n, n + 1));
    for round in 0..3 {
        scatter(3 + round);
        ears.deaf.store(true, Ordering::Relaxed);
        assert!(matches!(sync(&log, &all, None), Err(SyncError::Log(LogError::NotServed(_)))));
        ears.deaf.store(false, Ordering::Relaxed);
        set(&list, &ram, 5 + round, 1000 + round);
        ears.asked.lock().unwrap().clear();
        let wanted = (0..5000).filter(|n| n % 7 == (3 + round) % 7 && *n >= 3 || (5 + round..1000 + round).contains(n));
        assert_eq!(sync(&log, &all, None).unwrap(), wanted.clone().count() as u64);
        assert!((0..5000).all(|n| maps[1].test(n) == wanted.clone().any(|page| page == n)));
        let asked = ears.asked.lock().unwrap().clone();
        assert!(wanted.clone().all(|n| asked.iter().any(|range| range.contains(pages_of(&ram, n, n + 1).start))));
        let got: BTreeSet<u64> =
            user.sync(None).unwrap().commit().ranges().flat_map(|r| r.iter()).map(|p| p.get()).collect();
        assert_eq!(got, wanted.map(|n| ram.offset().page().get() + n).collect());
        for n in 0..5000 {
            let _ = maps[1].take(n);
        }
    }
    assert_eq!(maps[0].count(), 0);
}

/// What was taken is re-armed, be it new in the block's own bitmap or not: else the next store would not be heard.
#[test]
fn a_page_that_is_still_to_be_sent_is_armed_again() {
    let (list, ears) = with_ears();
    let _other = block(&list, "other", 700);
    let ram = block(&list, "ram", 100);
    let _map = BlockMigration::need_dirty(&ram, ChunkShift::default());
    let log = list.log(DirtyClient::MIGRATION).start().unwrap();
    let all = [(ram.clone(), 0..u64::MAX)];
    for newly in [3, 0] {
        set(&list, &ram, 7, 10);
        ears.asked.lock().unwrap().clear();
        assert_eq!(sync(&log, &all, None).unwrap(), newly);
        assert_eq!(*ears.asked.lock().unwrap(), [pages_of(&ram, 7, 10)]);
    }
}

#[test]
fn pages_of_a_run_that_crosses_blocks_go_to_each_block() {
    let list = RamList::new();
    let (a, b) = (block(&list, "a", 512), block(&list, "b", 512));
    let map = |block| BlockMigration::need_dirty(block, ChunkShift::MIN);
    let border = b.offset().page().get();
    assert_eq!(a.pages().end.get(), border);
    // One run of each: of ones, of words that are alike, of both blocks whole and of what lies around them.
    let of_ones = PageSet::from_words(vec![(PageIndex::new(border - 64), !0), (PageIndex::new(border), !0)]);
    let alike = PageSet::from_words(vec![(PageIndex::new(border - 64), 5), (PageIndex::new(border), 5)]);
    let mut all = PageSet::new();
    all.insert(PageRange { start: a.pages().start, end: PageIndex::new(border + 5000) });
    for (pages, each) in [(of_ones, 64), (alike, 2), (all, 512)] {
        let maps = (map(&a), map(&b));
        assert_eq!((maps.0.absorb(&pages), maps.1.absorb(&pages)), (each, each), "{pages:?}");
        assert_eq!((maps.0.count(), maps.1.count()), (each, each));
        assert_eq!(maps.1.next(0), Some(0));
        assert!(maps.1.take_chunk(0).is_some() && maps.0.take_chunk(511).is_some());
        assert_eq!((maps.0.absorb(&pages), maps.1.absorb(&pages)), (0, 0), "the second time nothing is new");
    }
}

/// What this thread has had of a processor: others may want it at the same time.
fn spent() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a place for the answer.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) }, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[test]
fn a_sync_over_many_blocks_costs_the_blocks_and_what_is_dirty() {
    let timed = |blocks: u64| {
        let list = Arc::new(RamList::new());
        let blocks: Vec<_> = (0..blocks).map(|n| block(&list, &n.to_string(), 1024)).collect();
        let maps: Vec<_> = blocks.iter().map(|block| BlockMigration::need_dirty(block, ChunkShift::MIN)).collect();
        let what: Vec<_> = blocks.iter().map(|block| (block.clone(), 0..u64::MAX)).collect();
        let log = list.log(DirtyClient::MIGRATION).start().unwrap();
        let best = (0..5).map(|_| {
            blocks.iter().for_each(|block| (0..16).for_each(|n| set(&list, block, n * 65, n * 65 + 1)));
            let start = spent();
            sync(&log, &what, None).unwrap();
            spent() - start
        });
        let best = best.min().unwrap();
        assert!(maps.iter().all(|map| map.count() == 16));
        best
    };
    let (few, many) = (timed(256), timed(2048));
    // Eight times the blocks; blocks times runs would be 64 times as many steps.
    println!("256 blocks {few:?}, 2,048 blocks {many:?}");
    assert!(many < few * 24, "{many:?}, {few:?}");
}

#[test]
fn a_sync_of_a_terabyte_costs_what_is_dirty() {
    let list = Arc::new(RamList::new());
    let ram = block(&list, "ram", 1 << 28);
    let map = BlockMigration::need_dirty(&ram, ChunkShift::default());
    let log = list.log(DirtyClient::MIGRATION).start().unwrap();
    set(&list, &ram, 0, 1 << 28);
    let all = [(ram.clone(), 0..u64::MAX)];
    let timed = || {
        let start = Instant::now();
        (sync(&log, &all, None).unwrap(), start.elapsed())
    };
    let (newly, full) = timed();
    assert_eq!(newly, 1 << 28);
    // The shortest of some: another program may have had the processor.
    let few = (0..5).map(|_| {
        (0..1000).for_each(|n| set(&list, &ram, n * 268_000, n * 268_000 + 1));
        let (newly, few) = timed();
        assert_eq!((newly, map.count()), (0, 1 << 28));
        few
    });
    let few = few.min().unwrap();
    println!("1 TiB: all dirty {full:?}, 1,000 pages {few:?}");
    assert!(few * 10 < full, "{few:?} for 1,000 pages, {full:?} for all");
}
