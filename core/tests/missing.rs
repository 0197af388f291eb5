//! Pages of RAM that are yet to come: what waits for them, what places them, and a naive model of both.
#![cfg(not(loom))]

use notdirty_core::{
    DirtyClient, FaultKind, FaultSource, MissingError, MissingPages, MissingPhase, PAGE_SIZE, PageBytes, PageSource,
    Placing, RamAddr, RamBlock, RamBlockSpec, RamError, RamList, SoftwareFaults, WaitToken, Waiter, pin,
};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::time::{Duration, Instant};

struct Stream(Mutex<Sender<(Arc<RamBlock>, u64)>>);

impl PageSource for Stream {
    fn request(&self, block: &Arc<RamBlock>, off: u64) {
        let _ = self.0.lock().unwrap().send((block.clone(), off));
    }
}

type Wanted = Receiver<(Arc<RamBlock>, u64)>;

fn stream() -> (Arc<Stream>, Wanted) {
    let (to, wanted) = channel();
    (Arc::new(Stream(Mutex::new(to))), wanted)
}

fn ram(pages: u64) -> (Arc<RamList>, Arc<RamBlock>) {
    let list = Arc::new(RamList::new());
    let block = list.add(RamBlockSpec::new("ram", pages * PAGE_SIZE).huge_pages(false)).unwrap();
    (list, block)
}

fn page(byte: u8) -> Vec<u8> {
    vec![byte; PAGE_SIZE as usize]
}

fn listening(pages: u64) -> (Arc<RamList>, Arc<RamBlock>, Arc<MissingPages>, Wanted) {
    let (list, block) = ram(pages);
    let (source, wanted) = stream();
    let missing = list.set_missing(source, [block.clone()]).unwrap();
    missing.listen().unwrap();
    (list, block, missing, wanted)
}

fn at(block: &RamBlock, off: u64) -> RamAddr {
    RamAddr::new(block.offset().get() + off)
}

fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_millis(5))
}

#[test]
fn a_host_write_waits_for_its_pages_and_asks_once_for_each() {
    let (list, block, missing, wanted) = listening(8);
    assert!(list.has_missing() && list.is_missing(block.offset()));
    std::thread::scope(|scope| {
        // Over the end of page 1, by two threads.
        for byte in [1, 2] {
            let (list, block) = (&list, &block);
            scope.spawn(move || list.write(block, 2 * PAGE_SIZE - byte, &[byte as u8; 3]).unwrap());
        }
        let mut asked: Vec<_> = (0..2).map(|_| wanted.recv().unwrap().1 / PAGE_SIZE).collect();
        asked.sort_unstable();
        assert_eq!(asked, [1, 2]);
        for n in [2, 1] {
            assert!(missing.place(&block, n * PAGE_SIZE, PageBytes::Copy(&page(9))).unwrap());
        }
    });
    assert!(wanted.try_recv().is_err(), "asked for once each");
    let mut bytes = [0; 6];
    block.read_bytes(2 * PAGE_SIZE - 3, &mut bytes).unwrap();
    assert!(bytes[..2] == [9, 2] && [1, 2].contains(&bytes[2]) && bytes[4..] == [1, 9], "{bytes:?}");
    assert_eq!((missing.left(), missing.requests()), (6, 2));
    let times = missing.blocktime();
    assert!(times.waits >= 1 && times.host_waits == times.waits && times.total_ns > 0);
}

#[test]
fn the_second_placement_of_a_page_is_refused_and_changes_nothing() {
    let (list, block, missing, _wanted) = listening(2);
    assert!(missing.place(&block, 0, PageBytes::Copy(&page(1))).unwrap());
    list.write(&block, 5, &[5]).unwrap();
    assert!(!missing.place(&block, 0, PageBytes::Copy(&page(2))).unwrap());
    assert!(!missing.place(&block, 0, PageBytes::Zero).unwrap());
    assert_eq!(block.load(4, 2).unwrap(), 0x0501);
    assert!(missing.place(&block, PAGE_SIZE, PageBytes::Zero).unwrap());
    assert!(block.is_zero(1));
    assert_eq!((missing.phase(), list.has_missing()), (MissingPhase::Complete, false));
    assert!(list.missing().is_none());
    assert!(!missing.place(&block, 0, PageBytes::Zero).unwrap(), "nor does one after the end");
}

#[test]
fn pages_are_placed_whole_and_within_what_is_missing() {
    let (list, block) = ram(3);
    let other = list.add(RamBlockSpec::new("other", PAGE_SIZE)).unwrap();
    let (source, _wanted) = stream();
    let missing = list.set_missing(source.clone(), [block.clone()]).unwrap();
    assert!(matches!(list.set_missing(source.clone(), [other.clone()]), Err(MissingError::AlreadyMissing)));
    missing.listen().unwrap();
    assert!(matches!(missing.listen(), Err(MissingError::Phase { phase: MissingPhase::Missing, .. })));
    let bytes = page(1);
    for (off, len) in [(1, 4096), (0, 4095), (8, 8), (2048, 4096)] {
        let placed = missing.place(&block, off, PageBytes::Copy(&bytes[..len]));
        assert!(matches!(placed, Err(MissingError::OddPage { .. })), "{off} {len}");
    }
    let beyond = missing.place(&block, 3 * PAGE_SIZE, PageBytes::Copy(&bytes));
    assert!(matches!(beyond, Err(MissingError::OutOfBounds { length: 0x3000, .. })));
    assert!(matches!(missing.place(&block, u64::MAX - 4095, PageBytes::Zero), Err(MissingError::OutOfBounds { .. })));
    assert!(matches!(missing.place(&other, 0, PageBytes::Zero), Err(MissingError::UnknownBlock { .. })));
    assert!(matches!(missing.discard(&block, 0, 1), Err(MissingError::Phase { .. })));
    assert!(!list.is_missing(other.offset()));
    list.write(&other, 0, &[1]).unwrap();
    assert_eq!(missing.left(), 3);
    let foreign = RamList::new().add(RamBlockSpec::new("ram", PAGE_SIZE)).unwrap();
    let list = Arc::new(RamList::new());
    assert!(matches!(list.set_missing(source, [foreign]), Err(MissingError::UnknownBlock { .. })));
}

#[test]
fn a_wait_ends_by_interruption_by_time_and_by_the_end_of_it_all() {
    let (list, block, missing, wanted) = listening(4);
    let at = block.offset();
    let token = WaitToken::default();
    assert!(matches!(missing.wait(at, 1, &token, soon()), Err(MissingError::Late)));
    token.interrupt();
    assert!(matches!(missing.wait(at, 1, &token, None), Err(MissingError::Interrupted)));
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| missing.wait(at, 1, &token, None));
        while missing.requested().is_empty() {
            std::thread::yield_now();
        }
        token.interrupt();
        assert!(matches!(waiter.join().unwrap(), Err(MissingError::Interrupted)));
        let guard = pin();
        assert!(matches!(list.write(&block, 0, &[1]), Err(RamError::Missing(MissingError::Pinned))));
        drop(guard);
        let waiter = scope.spawn(|| list.write(&block, PAGE_SIZE, &[1]));
        assert_eq!([wanted.recv().unwrap().1, wanted.recv().unwrap().1], [0, PAGE_SIZE]);
        missing.end("the source is gone");
        let error = waiter.join().unwrap().unwrap_err().to_string();
        assert!(error.contains("the source is gone"), "{error}");
    });
    assert!(matches!(list.wait_for(at, 1), Err(MissingError::Ended { .. })));
    assert!(matches!(missing.place(&block, 0, PageBytes::Zero), Err(MissingError::Phase { .. })));
    assert!(list.has_missing(), "what is missing is not zero");
    list.forget_missing("no guest runs on it");
    assert!(!list.has_missing());
    list.write(&block, 0, &[1]).unwrap();
}

#[test]
fn a_lost_channel_keeps_what_waits_and_asks_again() {
    let (list, block, missing, wanted) = listening(4);
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| list.write(&block, 2 * PAGE_SIZE, &[1]));
        assert_eq!(wanted.recv().unwrap().1, 2 * PAGE_SIZE);
        assert!(missing.place(&block, 3 * PAGE_SIZE, PageBytes::Zero).unwrap());
        // What the peer is told, and what it is asked for over the new channel.
        assert_eq!(missing.received(&block).unwrap(), [0b1000]);
        assert_eq!(missing.request_again(), 1);
        assert_eq!(wanted.recv().unwrap().1, 2 * PAGE_SIZE);
        assert!(!waiter.is_finished());
        missing.place(&block, 2 * PAGE_SIZE, PageBytes::Zero).unwrap();
        waiter.join().unwrap().unwrap();
    });
    assert!(missing.requested().is_empty());
}

#[test]
fn what_precopy_brought_is_here_and_what_it_discards_is_missing_and_zero() {
    for shared in [false, true] {
        let list = Arc::new(RamList::new());
        let spec = RamBlockSpec::new("ram", 130 * PAGE_SIZE).huge_pages(false).shared(shared);
        let block = list.add(spec).unwrap();
        block.fill_raw(0, 130 * PAGE_SIZE, 0xaa).unwrap();
        let log = list.log(DirtyClient::VGA).start().unwrap();
        let (source, _wanted) = stream();
        let missing = list.set_missing(source, [block.clone()]).unwrap();
        assert!((0..130).all(|n| block.is_zero(n)), "what was there is given back");
        assert_eq!(log.sync(None).unwrap().commit().count(), 130, "and logs hear of it");
        block.fill_raw(0, 130 * PAGE_SIZE, 0xbb).unwrap();
        missing.mark_received(&block, 0, 130 * PAGE_SIZE).unwrap();
        assert_eq!(missing.left(), 0);
        assert!(!list.has_missing(), "nothing waits yet");
        // Rounded out to host pages.
        missing.discard(&block, 63 * PAGE_SIZE + 8, 2 * PAGE_SIZE).unwrap();
        missing.discard(&block, 129 * PAGE_SIZE, PAGE_SIZE).unwrap();
        missing.discard(&block, 64 * PAGE_SIZE, PAGE_SIZE).unwrap();
        assert_eq!(missing.left(), 4);
        let gone: Vec<_> = (0..130).filter(|n| block.is_zero(*n)).collect();
        assert_eq!(gone, [63, 64, 65, 129]);
        let words = missing.received(&block).unwrap();
        assert_eq!(words, [!(1 << 63), !3, 1], "{words:x?}");
        missing.set_received(&block, &[0, 1]).unwrap();
        missing.listen().unwrap();
        assert_eq!((missing.left(), missing.next_missing(&block, 0)), (3, Some(63 * PAGE_SIZE)));
        assert_eq!(missing.next_missing(&block, 64 * PAGE_SIZE), Some(65 * PAGE_SIZE));
        assert!(!missing.place(&block, 0, PageBytes::Zero).unwrap(), "precopy brought it");
        for n in [63, 65, 129] {
            assert!(missing.place(&block, n * PAGE_SIZE, PageBytes::Zero).unwrap());
        }
        assert!(!list.has_missing());
    }
}

#[test]
fn a_block_is_missing_as_far_as_it_was_when_that_was_fixed() {
    let list = Arc::new(RamList::new());
    let spec = RamBlockSpec::new("ram", 2 * PAGE_SIZE).max_length(200 * PAGE_SIZE).resizable(true);
    let block = list.add(spec).unwrap();
    let (source, _wanted) = stream();
    let missing = list.set_missing(source, [block.clone()]).unwrap();
    list.resize(&block, 100 * PAGE_SIZE).unwrap();
    assert_eq!(missing.left(), 100);
    missing.mark_received(&block, 90 * PAGE_SIZE, 10 * PAGE_SIZE).unwrap();
    list.resize(&block, 95 * PAGE_SIZE).unwrap();
    assert_eq!(missing.left(), 90);
    missing.listen().unwrap();
    assert_eq!(missing.left_of(&block), 90);
    assert!(matches!(list.remove(&block), Err(RamError::Missing(MissingError::Phase { .. }))));
    // The guest's own resize: what comes is not missing, what goes is placed where nothing looks.
    list.resize(&block, 120 * PAGE_SIZE).unwrap();
    assert!(!list.is_missing(at(&block, 96 * PAGE_SIZE)));
    list.resize(&block, PAGE_SIZE).unwrap();
    for n in 0..90 {
        assert!(missing.place(&block, n * PAGE_SIZE, PageBytes::Copy(&page(n as u8))).unwrap(), "{n}");
    }
    assert_eq!((missing.phase(), missing.left_of(&block)), (MissingPhase::Complete, 0));
    list.remove(&block).unwrap();
}

#[test]
fn each_waiter_of_a_page_is_woken_and_no_other() {
    let (_list, block, missing, _wanted) = listening(128);
    let (here, same, other) = (Counter::default(), Counter::default(), Counter::default());
    let at = |n: u64| at(&block, n * PAGE_SIZE);
    let wait = |n: u64, counter: &Counter, who| missing.begin_wait(at(n), counter.waker(), who).unwrap().unwrap();
    missing.set_vcpus(2);
    let (first, second) = (wait(1, &here, Waiter::Vcpu(0)), wait(1, &same, Waiter::Vcpu(1)));
    // 64 pages apart: the same lock.
    let _third = wait(65, &other, Waiter::Host);
    missing.place(&block, PAGE_SIZE, PageBytes::Zero).unwrap();
    assert_eq!([here.count(), same.count(), other.count()], [1, 1, 0]);
    assert!(first.is_over() && second.is_over());
    assert!(missing.begin_wait(at(1), here.waker(), Waiter::Host).unwrap().is_none());
    drop((first, second));
    let times = missing.blocktime();
    assert_eq!((times.waits, times.vcpus.len()), (2, 2));
    assert!(times.overlapped_ns > 0 && times.overlapped_ns <= times.vcpus[1].ns);
    // One that left is not woken, and its time ended.
    drop(wait(2, &here, Waiter::Vcpu(0)));
    missing.place(&block, 2 * PAGE_SIZE, PageBytes::Zero).unwrap();
    assert_eq!((here.count(), missing.blocktime().vcpus[0].waits), (1, 2));
}

#[derive(Default)]
struct Counter(Arc<Woken>);

#[derive(Default)]
struct Woken(AtomicU64);

impl Counter {
    fn waker(&self) -> Waker {
        self.0.clone().into()
    }
    fn count(&self) -> u64 {
        self.0.0.load(Ordering::Relaxed)
    }
}

impl std::task::Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Mark(u64, u64),
    Discard(u64, u64),
    Place(u64, u8),
    Zero(u64),
    Listen,
    Write(u64, u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let pages = 150 * PAGE_SIZE;
    prop::collection::vec(
        prop_oneof![
            (0..150u64, 0..90u64).prop_map(|(at, len)| Step::Mark(at, len)),
            (0..pages, 0..90 * PAGE_SIZE).prop_map(|(at, len)| Step::Discard(at, len)),
            (0..150u64, 1..=255u8).prop_map(|(at, byte)| Step::Place(at, byte)),
            (0..150u64, 1..=255u8).prop_map(|(at, byte)| Step::Place(at, byte)),
            (0..150u64).prop_map(Step::Zero),
            Just(Step::Listen),
            (0..pages, any::<u8>()).prop_map(|(at, byte)| Step::Write(at, byte)),
        ],
        1..60,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn what_is_missing_is_what_a_set_of_pages_says(steps in steps()) {
        let (list, block) = ram(150);
        let (source, _wanted) = stream();
        let missing = list.set_missing(source, [block.clone()]).unwrap();
        let mut model: BTreeSet<u64> = (0..150).collect();
        let mut bytes = vec![0u8; 150 * PAGE_SIZE as usize];
        let mut phase = MissingPhase::Gathering;
        for step in steps {
            match step {
                Step::Mark(at, len) if at + len <= 150 => {
                    let done = missing.mark_received(&block, at * PAGE_SIZE, len * PAGE_SIZE);
                    prop_assert_eq!(done.is_ok(), phase == MissingPhase::Gathering);
                    if done.is_ok() {
                        model.retain(|page| !(at..at + len).contains(page));
                    }
                }
                Step::Discard(at, len) if at + len <= 150 * PAGE_SIZE => {
                    let done = missing.discard(&block, at, len);
                    prop_assert_eq!(done.is_ok(), phase == MissingPhase::Gathering);
                    if done.is_ok() && len > 0 {
                        let pages = at / PAGE_SIZE..(at + len).div_ceil(PAGE_SIZE);
                        bytes[(pages.start * PAGE_SIZE) as usize..(pages.end * PAGE_SIZE) as usize].fill(0);
                        model.extend(pages);
                    }
                }
                Step::Place(at, byte) => {
                    let placed = missing.place(&block, at * PAGE_SIZE, PageBytes::Copy(&page(byte))).unwrap();
                    prop_assert_eq!(placed, model.remove(&at));
                    if placed {
                        bytes[(at * PAGE_SIZE) as usize..][..PAGE_SIZE as usize].fill(byte);
                    }
                }
                Step::Zero(at) => {
                    let placed = missing.place(&block, at * PAGE_SIZE, PageBytes::Zero).unwrap();
                    prop_assert_eq!(placed, model.remove(&at));
                }
                Step::Listen => {
                    prop_assert_eq!(missing.listen().is_ok(), phase == MissingPhase::Gathering);
                    if phase == MissingPhase::Gathering {
                        phase = MissingPhase::Missing;
                    }
                }
                Step::Write(off, byte) => {
                    let (at, at_byte) = (off, self::at(&block, off));
                    let waits = phase == MissingPhase::Missing && model.contains(&(at / PAGE_SIZE));
                    let until = Some(Instant::now());
                    let here = !list.has_missing()
                        || missing.wait(at_byte, 1, &WaitToken::default(), until).is_ok();
                    prop_assert_eq!(here, !waits);
                    // A page that is not here is zero until it is placed.
                    if here && !model.contains(&(at / PAGE_SIZE)) {
                        list.write(&block, at, &[byte]).unwrap();
                        bytes[at as usize] = byte;
                    }
                }
                _ => {}
            }
            if phase == MissingPhase::Missing && model.is_empty() {
                phase = MissingPhase::Complete;
            }
            prop_assert_eq!(missing.phase(), phase);
            prop_assert_eq!(missing.left(), model.len() as u64);
            prop_assert_eq!(list.has_missing(), phase == MissingPhase::Missing);
            let first = model.first().map(|page| page * PAGE_SIZE);
            prop_assert_eq!(missing.next_missing(&block, 0), first);
            let words = missing.received(&block).unwrap();
            for page in 0..150 {
                let here = words[page as usize / 64] >> (page % 64) & 1 != 0;
                prop_assert_eq!(here, !model.contains(&page));
                prop_assert_eq!(missing.is_received(&block, page * PAGE_SIZE + 9).unwrap(), here);
            }
        }
        let mut all = vec![0; bytes.len()];
        block.read_bytes(0, &mut all).unwrap();
        prop_assert!(all == bytes);
    }
}

#[test]
fn pages_of_a_map_are_missing_and_a_page_of_zeros_clears_what_had_come() {
    let list = Arc::new(RamList::new());
    let block = list.add(RamBlockSpec::new("ram", 300 * PAGE_SIZE)).unwrap();
    let (source, _wanted) = stream();
    let missing = list.set_missing(source, [block.clone()]).unwrap();
    missing.mark_received(&block, 0, 300 * PAGE_SIZE).unwrap();
    for page in [64, 70, 130] {
        block.write_raw(page * PAGE_SIZE, &[7; PAGE_SIZE as usize]).unwrap();
    }
    // 64 and 130 had come, 65 had not, 70 stays.
    missing.discard_map(&block, 64, &[0b11, 0b100], &[0b1, 0b100]).unwrap();
    missing.forget(&block, 200 * PAGE_SIZE, PAGE_SIZE).unwrap();
    assert_eq!(missing.left(), 4);
    let here: Vec<_> = [64, 65, 70, 130, 200].map(|page| missing.is_received(&block, page * PAGE_SIZE).unwrap()).into();
    assert_eq!(here, [false, false, true, false, false]);
    assert!(missing.discard_map(&block, 256, &[1 << 44], &[0]).is_err(), "behind its end");
    missing.listen().unwrap();
    assert!(missing.discard_map(&block, 64, &[1], &[0]).is_err());
    for page in [64, 65, 200] {
        assert!(missing.place(&block, page * PAGE_SIZE, PageBytes::Zero).unwrap());
    }
    assert!(missing.place(&block, 130 * PAGE_SIZE, PageBytes::Copy(&[9; PAGE_SIZE as usize])).unwrap());
    assert_eq!(missing.left(), 0);
    let byte = |page: u64| {
        let mut bytes = [1; PAGE_SIZE as usize];
        block.read_bytes(page * PAGE_SIZE, &mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == bytes[0]));
        bytes[0]
    };
    assert_eq!([64, 65, 70, 130, 200].map(byte), [0, 0, 7, 9, 0]);
}

/// Placing fails once, and says when it begins to.
struct Fails {
    begun: Mutex<Sender<()>>,
    go_on: Mutex<Receiver<()>>,
    failed: AtomicU64,
}

impl FaultSource for Fails {
    fn kind(&self) -> FaultKind {
        FaultKind::Software
    }
    fn check(&self, _: &Arc<RamBlock>) -> Result<(), MissingError> {
        Ok(())
    }
    fn arm(&self, _: &Arc<MissingPages>) -> Result<(), MissingError> {
        Ok(())
    }
    fn place(&self, at: Placing<'_>, bytes: PageBytes<'_>) -> Result<(), MissingError> {
        if self.failed.swap(1, Ordering::AcqRel) != 0 {
            return SoftwareFaults.place(at, bytes);
        }
        self.begun.lock().unwrap().send(()).unwrap();
        self.go_on.lock().unwrap().recv().unwrap();
        Err(MissingError::Late)
    }
    fn disarm(&self) {}
}

#[test]
fn a_page_that_another_thread_fails_to_place_is_placed_by_the_one_that_came_second() {
    let (list, block) = ram(2);
    let ((tell, begun), (go, go_on)) = (channel(), channel());
    let faults = Fails { begun: Mutex::new(tell), go_on: Mutex::new(go_on), failed: AtomicU64::new(0) };
    let pages = list.set_missing_by(Arc::new(faults), stream().0, [block.clone()]).unwrap();
    pages.listen().unwrap();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| pages.place(&block, 0, PageBytes::Copy(&page(1))));
        begun.recv().unwrap();
        let (tell, told) = channel();
        let (pages, block) = (&pages, &block);
        scope.spawn(move || tell.send(pages.place(block, 0, PageBytes::Copy(&page(1))).unwrap()).unwrap());
        // What came behind this page would be answered for.
        let early = told.recv_timeout(Duration::from_millis(50));
        go.send(()).unwrap();
        assert!(early.is_err(), "it is not here yet");
        assert!(told.recv().unwrap());
        assert!(matches!(first.join().unwrap(), Err(MissingError::Late)));
    });
    assert!(!pages.is_missing(block.offset()) && pages.left() == 1);
}
