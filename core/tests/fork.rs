//! A fork, as of a fuzzer's fork server: the child has one thread, whatever the others of the parent were doing.
#![cfg(all(target_os = "linux", not(loom)))]

use notdirty_core::{DirtyClient, PAGE_SIZE, RamBlockSpec, RamList, barrier, drop_later, pin, synchronize};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::time::Duration;

struct Counted(Arc<AtomicU32>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// What a child does: 0 if all went well.
fn in_child(list: &Arc<RamList>, dropped: &Arc<AtomicU32>) -> i32 {
    let before = dropped.load(Ordering::SeqCst);
    drop_later(Counted(dropped.clone()));
    if synchronize().is_err() || barrier().is_err() {
        return 1;
    }
    if dropped.load(Ordering::SeqCst) <= before {
        return 2;
    }
    let Ok(block) = list.add(RamBlockSpec::new("dimm", 16 * PAGE_SIZE)) else { return 3 };
    let Ok(log) = list.log(DirtyClient::MIGRATION).start() else { return 4 };
    if list.write(&block, 0, b"bytes").is_err() || log.sync(None).map(|h| h.commit().count()).ok() != Some(1) {
        return 5;
    }
    drop(log);
    if list.remove(&block).is_err() || barrier().is_err() { 6 } else { 0 }
}

/// Forks; what the child did, by its exit status: 0 if `child` said 0.
fn fork(child: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child calls this crate and ends itself; it returns from nowhere.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: ends this process if it hangs.
        unsafe { libc::alarm(20) };
        let code = child();
        // SAFETY: ends the process, and runs no more of the parent's code.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: a child of ours, and a place for its status.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    status
}

#[test]
fn a_child_of_a_fork_drops_what_its_parent_had_retired_and_not_dropped() {
    let dropped = Arc::new(AtomicU32::new(0));
    let (begun, forked) = (Barrier::new(2), Barrier::new(2));
    std::thread::scope(|scope| {
        // A guard, so that there is no end of a grace period before the fork.
        scope.spawn(|| {
            let _guard = pin();
            begun.wait();
            forked.wait();
        });
        begun.wait();
        drop_later(Counted(dropped.clone()));
        let status = fork(|| match barrier() {
            Ok(()) => i32::from(dropped.load(Ordering::SeqCst) != 1),
            Err(_) => 2,
        });
        forked.wait();
        assert_eq!(status, 0, "14 is an alarm: the barrier of the child waits for a thread that it has not");
    });
    barrier().unwrap();
    assert_eq!(dropped.load(Ordering::SeqCst), 1);
}

#[test]
fn a_fork_waits_for_a_destructor_so_the_child_finds_no_lock_taken_by_it() {
    static LOCK: Mutex<()> = Mutex::new(());
    /// Has the lock for a while, a part of the time that a fork waits.
    struct Locks(mpsc::Sender<()>);
    impl Drop for Locks {
        fn drop(&mut self) {
            let _held = LOCK.lock().unwrap();
            self.0.send(()).unwrap();
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    let (sender, within) = mpsc::channel();
    drop_later(Locks(sender));
    within.recv().unwrap();
    assert_eq!(fork(|| i32::from(LOCK.try_lock().is_err())), 0);
    drop(LOCK.lock().unwrap());
}

#[test]
fn a_child_of_a_fork_frees_what_it_retires_whatever_other_threads_of_the_parent_did() {
    let (list, dropped) = (Arc::new(RamList::new()), Arc::new(AtomicU32::new(0)));
    let (stop, begun) = (AtomicBool::new(false), Barrier::new(3));
    std::thread::scope(|scope| {
        // A guard that is never dropped in the child, and a queue that is locked now and then.
        scope.spawn(|| {
            let mut guard = pin();
            begun.wait();
            while !stop.load(Ordering::Relaxed) {
                std::thread::yield_now();
                guard.repin();
            }
        });
        scope.spawn(|| {
            begun.wait();
            while !stop.load(Ordering::Relaxed) {
                drop_later(Counted(dropped.clone()));
                std::thread::yield_now();
            }
        });
        begun.wait();
        let mut codes = Vec::new();
        for _ in 0..40 {
            let status = fork(|| in_child(&list, &dropped));
            codes.push(status);
            if status != 0 {
                break; // each may take as long as its alarm
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(codes.iter().all(|status| *status == 0), "{codes:?}");
    });
    // The parent goes on as before.
    barrier().unwrap();
    let before = dropped.load(Ordering::SeqCst);
    drop_later(Counted(dropped.clone()));
    barrier().unwrap();
    assert_eq!(dropped.load(Ordering::SeqCst), before + 1);
}
