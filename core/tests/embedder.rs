//! What is an embedder's: it calls back from where it is called, and goes while it is called.
#![cfg(not(loom))]

use notdirty_core::migration::{BlockMigration, ChunkShift, sync};
use notdirty_core::{
    Answers, BeforeWrite, CanWait, DirtyClient, DirtyListener, LogError, NotServed, PAGE_SIZE, PageIndex, PageRange,
    PageSet, RamAddr, RamBlock, RamBlockSpec, RamList, VcpuId, barrier, pin, synchronize,
};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(20);

#[test]
fn what_a_callback_owned_may_call_the_list_when_its_block_could_not_be_made() {
    struct Asks(Arc<RamList>, mpsc::Sender<bool>);
    impl Drop for Asks {
        fn drop(&mut self) {
            let _ = self.1.send(self.0.find_id("ram", &pin()).is_none());
        }
    }
    let list = Arc::new(RamList::new());
    let (sender, dropped) = mpsc::channel();
    let asks = Asks(list.clone(), sender);
    let adder = std::thread::spawn(move || {
        let empty = std::fs::File::open("/dev/null").unwrap();
        let spec = RamBlockSpec::new("ram", PAGE_SIZE).file(empty, 0).on_resized(move |_, _, _| {
            let _ = &asks;
        });
        list.add(spec).map(drop).unwrap_err();
    });
    assert!(dropped.recv_timeout(LONG).expect("not with the list's lock held"));
    adder.join().unwrap();
}

/// Tells the name of the thread that drops it.
struct Told(mpsc::Sender<Option<String>>);

impl Drop for Told {
    fn drop(&mut self) {
        let _ = self.0.send(std::thread::current().name().map(str::to_owned));
    }
}

#[test]
fn a_listener_that_goes_while_it_is_told_of_a_kill_is_destroyed_by_no_writer() {
    struct Goes(Mutex<Option<Arc<Goes>>>, #[allow(dead_code)] Told);
    impl DirtyListener for Goes {
        fn rearm(&self, _: &[PageRange]) -> Option<Box<dyn Answers>> {
            None
        }
        fn kill_code(&self, _: &[VcpuId], _: RamAddr, _: u64) {
            drop(self.0.lock().unwrap().take());
        }
    }
    let list = Arc::new(RamList::new());
    let (sender, told) = mpsc::channel();
    let goes = Arc::new(Goes(Mutex::default(), Told(sender)));
    list.add_listener(Arc::downgrade(&goes));
    let last = goes.clone();
    *goes.0.lock().unwrap() = Some(last);
    drop(goes);
    list.kill_code(&[VcpuId::fresh()], RamAddr::new(0), 8);
    barrier().unwrap();
    assert_eq!(told.recv_timeout(LONG).unwrap().as_deref(), Some("notdirty-rcu"));
}

#[test]
fn the_pages_of_a_set_of_all_there_can_be_are_counted() {
    let mut all = PageSet::new();
    all.push_words(PageIndex::new(0), u64::MAX, !0);
    assert_eq!(all.count(), u64::MAX);
}

#[test]
fn spans_of_code_that_end_before_they_start_are_none() {
    let list = RamList::new();
    let ram = list.add(RamBlockSpec::new("ram", PAGE_SIZE)).unwrap();
    let (page, guard) = (ram.offset().page(), pin());
    for span in [(5, 3), (u64::MAX, 0), (u64::MAX, u64::MAX)] {
        list.dirty().announce_spans(page, [span].into_iter(), VcpuId::fresh(), &guard);
        assert!(!list.dirty().is_code_protected(page, &guard), "{span:?}");
    }
}

struct Writes(Arc<RamList>, Arc<RamBlock>, AtomicU32);

impl BeforeWrite for Writes {
    fn before(&self, _: RamAddr, len: u64, _: &CanWait) {
        assert_ne!(len, 0);
        // Without an end it would be one of the stack.
        if self.2.fetch_add(1, Ordering::Relaxed) < 10 {
            self.0.write(&self.1, PAGE_SIZE, &[1; 8]).unwrap();
        }
    }
}

#[test]
fn a_subscriber_that_writes_is_not_asked_about_its_own_write() {
    let list = Arc::new(RamList::new());
    let ram = list.add(RamBlockSpec::new("ram", 2 * PAGE_SIZE)).unwrap();
    let writes = Arc::new(Writes(list.clone(), ram.clone(), AtomicU32::new(0)));
    let _subscribed = list.before_writes(None, writes.clone());
    list.write(&ram, 0, &[]).unwrap();
    list.write(&ram, 0, &[1; 8]).unwrap();
    assert_eq!(writes.2.load(Ordering::Relaxed), 1);
}

/// The answer of a vCPU that is in a subscriber which waits for a grace period.
#[derive(Debug)]
struct AfterGrace(Arc<AtomicBool>);

impl Answers for AfterGrace {
    fn is_served(&mut self) -> bool {
        self.0.load(Ordering::Acquire)
    }
    fn wait(&self, _: Option<Instant>) -> Result<(), NotServed> {
        while !self.0.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl DirtyListener for AfterGrace {
    fn rearm(&self, _: &[PageRange]) -> Option<Box<dyn Answers>> {
        Some(Box::new(AfterGrace(self.0.clone())))
    }
}

#[test]
fn a_thread_with_a_guard_is_told_so_and_does_not_wait_for_a_vcpu_that_waits_for_its_guard() {
    let list = Arc::new(RamList::new());
    let ram = list.add(RamBlockSpec::new("ram", 4 * PAGE_SIZE)).unwrap();
    let log = list.log(DirtyClient::MIGRATION).start().unwrap();
    let vcpu = Arc::new(AfterGrace(Arc::default()));
    list.add_listener(Arc::downgrade(&vcpu));
    list.fill(&ram, 0, 1, 1).unwrap();
    let page = PageRange::of_page(ram.offset().page());
    let (done, is_done) = mpsc::channel();
    std::thread::spawn(move || {
        let guard = pin();
        let answered = vcpu.0.clone();
        let running = std::thread::spawn(move || {
            synchronize().unwrap();
            answered.store(true, Ordering::Release);
        });
        assert_eq!(log.sync(None).err(), Some(LogError::NotServed(NotServed::Pinned)));
        assert_eq!(list.log(DirtyClient::VGA).start().err(), Some(LogError::NotServed(NotServed::Pinned)));
        assert_eq!(list.rearm(&[page], None), Err(NotServed::Pinned));
        drop(guard);
        // Nothing is lost of it.
        assert_eq!(log.sync(None).unwrap().commit().ranges().collect::<Vec<_>>(), [page]);
        running.join().unwrap();
        // With all answers there, nothing is waited for.
        let _guard = pin();
        assert_eq!(list.rearm(&[page], None), Ok(()));
        done.send(()).unwrap();
    });
    assert_eq!(is_done.recv_timeout(LONG), Ok(()), "each waits for the other");
}

/// Whoever waits for these may wait for a grace period, too: a vCPU that has to answer may be in a subscriber that does.
#[derive(Debug)]
struct MayWait;

impl Answers for MayWait {
    fn is_served(&mut self) -> bool {
        false
    }
    fn wait(&self, _: Option<Instant>) -> Result<(), NotServed> {
        synchronize().expect("no guard is held");
        Ok(())
    }
}

impl DirtyListener for MayWait {
    fn rearm(&self, _: &[PageRange]) -> Option<Box<dyn Answers>> {
        Some(Box::new(MayWait))
    }
}

#[test]
fn a_log_waits_for_answers_with_no_guard_held() {
    let list = Arc::new(RamList::new());
    let ram = list.add(RamBlockSpec::new("ram", 8 * PAGE_SIZE)).unwrap();
    let listener = Arc::new(MayWait);
    list.add_listener(Arc::downgrade(&listener));
    let start = || list.log(DirtyClient::MIGRATION).start().unwrap();
    let (first, joins) = (start(), start());
    list.write(&ram, 0, &[1; 2 * PAGE_SIZE as usize]).unwrap();
    assert_eq!(first.sync_within(&[PageRange::of_page(ram.offset().page())], None).unwrap().commit().count(), 1);
    assert_eq!(first.sync(None).unwrap().commit().count(), 1);
    let _sent = BlockMigration::need_dirty(&ram, ChunkShift::default());
    assert_eq!(sync(&joins, &[(ram.clone(), 0..8)], None).unwrap(), 2);
    list.rearm(&[ram.pages()], None).unwrap();
}
