//! Memory that is given back, and destructors that run where they may.
#![cfg(not(loom))]

use notdirty_core::raw::RawDirty;
use notdirty_core::{
    ClientMask, DirtyClient, DirtyLog, LogError, RamBlock, RamBlockSpec, RamList, RcuCell, barrier, pin,
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

/// The tests look at all that the process has mapped, and at how much memory it has: they take turns.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The size of a block that is looked for by its address.
const BIG: u64 = 1 << 30;

/// The address of the block's middle. In its turn no other test maps as much, and what is smaller, as a thread's stack, is put at
/// an end of the hole that the block leaves: what is mapped here is the block.
fn middle(block: &RamBlock) -> u64 {
    block.host() as u64 + BIG / 2
}

/// Whether anything is mapped at this address.
fn is_mapped(at: u64) -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().any(|line| {
        let hex = |s| u64::from_str_radix(s, 16).unwrap();
        let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        (hex(start)..hex(end)).contains(&at)
    })
}

/// KiB of memory that the process has.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Waits for what was at `at` to be unmapped, and fails if it takes too long.
fn until_unmapped(at: u64, mut meanwhile: impl FnMut()) {
    let start = Instant::now();
    while is_mapped(at) {
        assert!(start.elapsed() < Duration::from_secs(10), "still mapped");
        meanwhile();
    }
}

#[test]
fn the_memory_of_a_removed_block_is_unmapped_though_nobody_does_anything_more() {
    let _turn = turn();
    let list = RamList::new();
    let block = list.add(RamBlockSpec::new("big", BIG)).unwrap();
    block.fill_raw(0, 8 * MIB, 1).unwrap();
    let at = middle(&block);
    list.remove(&block).unwrap();
    drop(block);
    until_unmapped(at, || std::thread::sleep(Duration::from_millis(1)));
}

/// Weaker than `..._after_a_barrier`: it allows time, ten seconds of marks, because without a barrier the unmapping is another
/// thread's work, and that thread may have to wait for a processor. With a barrier nothing more may be needed.
#[test]
fn the_memory_of_a_removed_block_is_unmapped_though_marks_of_other_blocks_go_on_without_a_barrier() {
    let _turn = turn();
    let list = RamList::new();
    let keep = list.add(RamBlockSpec::new("keep", 2 * MIB)).unwrap();
    let block = list.add(RamBlockSpec::new("big", BIG)).unwrap();
    let at = middle(&block);
    list.remove(&block).unwrap();
    drop(block);
    until_unmapped(at, || (0..1000).for_each(|_| list.dirty().set(keep.pages(), ClientMask::ALL, &pin())));
}

#[test]
fn the_memory_of_a_removed_block_is_unmapped_after_a_barrier() {
    let _turn = turn();
    let list = RamList::new();
    for n in 0..20 {
        let block = list.add(RamBlockSpec::new("big", BIG)).unwrap();
        let at = middle(&block);
        list.remove(&block).unwrap();
        drop(block);
        barrier().unwrap();
        assert!(!is_mapped(at), "round {n}");
    }
}

#[test]
fn plugs_and_unplugs_in_a_loop_keep_the_memory_of_the_process_flat() {
    let _turn = turn();
    let list = RamList::new();
    let round = || {
        let block = list.add(RamBlockSpec::new("dimm", 64 * MIB)).unwrap();
        block.fill_raw(0, 16 * MIB, 1).unwrap();
        list.dirty().test_and_clear_range(block.pages(), DirtyClient::MIGRATION, &pin(), |_, _| {});
        list.remove(&block).unwrap();
    };
    (0..4).for_each(|_| round());
    let before = resident();
    let most = (0..60).map(|_| {
        round();
        resident()
    });
    let more = most.max().unwrap().saturating_sub(before) / 1024;
    // A few blocks may wait for the thread that unmaps them; sixty would be 960 MiB.
    assert!(more < 200, "{more} MiB more");
}

/// What a device that goes with an old view may hold.
struct Device(#[allow(dead_code)] Option<DirtyLog>);

#[test]
fn a_log_that_goes_with_a_retired_value_waits_for_no_log_that_is_being_started() {
    let _turn = turn();
    let (round, rounds) = mpsc::channel();
    let logs = std::thread::spawn(move || {
        let (list, other) = (Arc::new(RamList::new()), Arc::new(RamList::new()));
        list.add(RamBlockSpec::new("ram", 2 * MIB)).unwrap();
        let elsewhere = other.add(RamBlockSpec::new("elsewhere", 2 * MIB)).unwrap();
        for n in 0..200 {
            // It may have to wait until the last round's has gone: that one has the same pages, so this one joins it.
            let log = list.log(DirtyClient::VGA).start().unwrap();
            let cell = RcuCell::new(Device(Some(log)));
            cell.replace(Device(None));
            // One that is refused, and drops its client with the registry's lock held.
            let client = list.add_client("checkpoint").unwrap();
            assert!(matches!(list.log(client).blocks([&elsewhere]).start(), Err(LogError::NotInList { .. })));
            list.dirty().set(list.blocks(&pin()).next().unwrap().pages(), ClientMask::ALL, &pin());
            round.send(n).unwrap();
        }
        list
    });
    for n in 0..200 {
        assert_eq!(rounds.recv_timeout(Duration::from_secs(10)), Ok(n), "the registry's lock waits for itself");
    }
    let list = logs.join().unwrap();
    barrier().unwrap();
    let all = list.blocks(&pin()).next().unwrap().pages();
    assert!(list.dirty().listening(all.start, &pin()).is_empty(), "every log has stopped");
}
