//! The door for writers where something ends meanwhile: a client, a subscriber, a write halfway.
#![cfg(not(loom))]

use notdirty_core::{BeforeWrite, CanWait, DirtyClient, PAGE_SIZE, RamAddr, RamBlockSpec, RamList, barrier, pin};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

#[test]
fn a_write_for_a_log_whose_client_is_gone_is_told_to_who_has_its_column_now() {
    let list = Arc::new(RamList::new());
    let block = list.add(RamBlockSpec::new("ram", 16 * PAGE_SIZE)).unwrap();
    let old = list.add_client("old").unwrap();
    let stale = list.log(old.client()).start().unwrap();
    drop(old);
    let new = list.add_client("new").unwrap();
    let log = list.log(new.client()).start().unwrap();
    assert_eq!(new.client().column(), stale.client().column(), "it is about one column");
    list.write_for(&stale, &block, 2 * PAGE_SIZE, &[1; 8]).unwrap();
    assert_eq!(log.sync(None).unwrap().commit().count(), 1);
}

#[test]
fn what_is_written_for_a_log_is_told_to_all_but_its_user() {
    let list = Arc::new(RamList::new());
    let [ram, other] = ["ram", "other"].map(|id| list.add(RamBlockSpec::new(id, 16 * PAGE_SIZE)).unwrap());
    let log = |block| list.log(DirtyClient::MIGRATION).blocks([block]).start().unwrap();
    let (writer, same, elsewhere) = (log(&ram), log(&ram), log(&other));
    let vga = list.log(DirtyClient::VGA).start().unwrap();
    let told = || [&writer, &same, &elsewhere, &vga].map(|log| log.sync(None).unwrap().commit().count());
    list.write_for(&writer, &ram, 0, &[1; 2 * PAGE_SIZE as usize]).unwrap();
    assert_eq!(told(), [0, 2, 0, 2]);
    list.write_for(&writer, &other, 0, &[1; 8]).unwrap();
    assert_eq!(told(), [0, 0, 1, 1], "a page that the log does not have is another log's of the same client");
}

/// Counts its calls.
struct Calls(AtomicU32);

impl BeforeWrite for Calls {
    fn before(&self, _: RamAddr, _: u64, _: &CanWait) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn of_some_subscribers_those_that_stay_are_called_and_with_the_last_one_gone_a_writer_may_hold_a_guard() {
    let list = Arc::new(RamList::new());
    let ram = list.add(RamBlockSpec::new("ram", 16 * PAGE_SIZE)).unwrap();
    let calls = [(); 4].map(|()| Arc::new(Calls(AtomicU32::new(0))));
    let mut subscribed: Vec<_> = calls.iter().map(|calls| Some(list.before_writes(None, calls.clone()))).collect();
    let mut wanted = [0; 4];
    for goes in [2, 0, 3, 1] {
        list.write(&ram, 0, &[1; 8]).unwrap();
        (0..4).filter(|n| subscribed[*n].is_some()).for_each(|n| wanted[n] += 1);
        assert_eq!([0, 1, 2, 3].map(|n| calls[n].0.load(Ordering::Relaxed)), wanted);
        assert!(pinned(|| list.before(ram.offset(), 8).is_err()), "a subscriber may have to wait");
        subscribed[goes] = None;
    }
    assert!(pinned(|| list.before(ram.offset(), 8).is_ok()), "nothing subscribes");
    list.write(&ram, 0, &[1; 8]).unwrap();
    assert_eq!([0, 1, 2, 3].map(|n| calls[n].0.load(Ordering::Relaxed)), wanted);
}

/// The answer of a caller that has a guard pinned.
fn pinned<T>(call: impl FnOnce() -> T) -> T {
    let _guard = pin();
    call()
}

#[test]
fn what_is_written_for_a_log_is_not_asked_of_its_subscriber_and_of_any_other() {
    let list = Arc::new(RamList::new());
    let ram = list.add(RamBlockSpec::new("ram", 16 * PAGE_SIZE)).unwrap();
    let logs = [DirtyClient::MIGRATION, DirtyClient::VGA].map(|client| list.log(client).start().unwrap());
    let calls = [(); 2].map(|()| Arc::new(Calls(AtomicU32::new(0))));
    let _subscribed = [0, 1].map(|n| list.before_writes(Some(&logs[n]), calls[n].clone()));
    list.write_for(&logs[0], &ram, 0, &[1; 8]).unwrap();
    assert_eq!([0, 1].map(|n| calls[n].0.load(Ordering::Relaxed)), [0, 1]);
}

#[test]
fn the_second_half_of_a_raw_write_is_told_to_every_log() {
    let list = Arc::new(RamList::new());
    let ram = list.add(RamBlockSpec::new("ram", 16 * PAGE_SIZE)).unwrap();
    let log = list.log(DirtyClient::MIGRATION).start().unwrap();
    ram.write_raw(PAGE_SIZE - 4, &[1; 8]).unwrap();
    list.after(ram.offset().checked_add(PAGE_SIZE - 4).unwrap(), 8);
    assert_eq!(log.sync(None).unwrap().commit().count(), 2);
}

#[test]
fn a_discard_that_fails_halfway_is_told_to_every_log() {
    let list = Arc::new(RamList::new());
    let block = list.add(RamBlockSpec::new("ram", 16 * PAGE_SIZE)).unwrap();
    list.fill(&block, 0, 4 * PAGE_SIZE, 7).unwrap();
    // The host discards no locked memory: it ends there.
    let locked = block.host().wrapping_add(2 * PAGE_SIZE as usize);
    // SAFETY: pages of the block, which is alive; locking changes no byte.
    assert_eq!(unsafe { libc::mlock(locked.cast(), PAGE_SIZE as usize) }, 0);
    let log = list.log(DirtyClient::MIGRATION).start().unwrap();
    list.discard(&block, 0, 4 * PAGE_SIZE).unwrap_err();
    let mut bytes = [7; 8];
    block.read_bytes(0, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 8], "the host did not come so far");
    assert!(log.sync(None).unwrap().commit().contains(block.pages().start), "changed, and not told");
}

#[test]
fn a_subscriber_that_was_dropped_while_it_was_called_is_destroyed_by_no_writer() {
    /// Is within its call until it is let go.
    struct Slow {
        within: mpsc::Sender<()>,
        go: Mutex<mpsc::Receiver<()>>,
        dropped: mpsc::Sender<std::thread::ThreadId>,
    }
    impl BeforeWrite for Slow {
        fn before(&self, _: RamAddr, _: u64, _: &CanWait) {
            self.within.send(()).unwrap();
            self.go.lock().unwrap().recv().unwrap();
        }
    }
    impl Drop for Slow {
        fn drop(&mut self) {
            let _ = self.dropped.send(std::thread::current().id());
        }
    }
    let list = Arc::new(RamList::new());
    let block = list.add(RamBlockSpec::new("ram", 16 * PAGE_SIZE)).unwrap();
    let (within, is_within) = mpsc::channel();
    let (let_go, go) = mpsc::channel();
    let (dropped, is_dropped) = mpsc::channel();
    let registration = list.before_writes(None, Arc::new(Slow { within, go: Mutex::new(go), dropped }));
    let writer = std::thread::spawn({
        let list = list.clone();
        move || list.write(&block, 0, &[1]).unwrap()
    });
    let writers = writer.thread().id();
    is_within.recv().unwrap();
    drop(registration);
    let_go.send(()).unwrap();
    writer.join().unwrap();
    barrier().unwrap();
    assert_ne!(is_dropped.recv_timeout(Duration::from_secs(20)).unwrap(), writers);
}
