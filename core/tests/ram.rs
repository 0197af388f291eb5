//! RAM blocks from outside: what is mapped where, what is refused, and when memory goes.
#![cfg(not(loom))]

use notdirty_core::raw::RawDirty;
use notdirty_core::{
    ClientMask, DirtyClient, PAGE_SIZE, RamAddr, RamBlock, RamBlockSpec, RamError, RamFlags, RamList, RcuCell,
    WaitError, barrier, pin,
};
use std::ops::Range;
use std::sync::Arc;

const MIB: u64 = 1 << 20;

/// The rights of the host page at `at`, as the kernel tells them; `None` if nothing is mapped.
fn rights(at: u64) -> Option<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let number = |s| u64::from_str_radix(s, 16).unwrap();
        (number(start)..number(end)).contains(&at).then(|| rest[..4].to_owned())
    })
}

fn host(block: &RamBlock) -> u64 {
    block.host() as u64
}

#[test]
fn a_block_lies_between_guards_and_its_reserve_is_no_memory() {
    let list = RamList::new();
    let block = list.add(RamBlockSpec::new("ram", 4 * PAGE_SIZE).max_length(16 * PAGE_SIZE)).unwrap();
    let at = host(&block);
    assert_eq!(rights(at - 1).as_deref(), Some("---p"));
    assert_eq!(rights(at).as_deref(), Some("rw-p"));
    assert_eq!(rights(at + 4 * PAGE_SIZE - 1).as_deref(), Some("rw-p"));
    assert_eq!(rights(at + 4 * PAGE_SIZE).as_deref(), Some("---p"));
    assert_eq!(rights(at + 16 * PAGE_SIZE).as_deref(), Some("---p"));
    assert_eq!(block.reserved(), at - PAGE_SIZE..at + 17 * PAGE_SIZE);
    assert_eq!((block.used_length(), block.max_length()), (4 * PAGE_SIZE, 16 * PAGE_SIZE));
    assert_eq!(block.pages().len(), 4);
}

#[test]
fn new_memory_is_zero_and_dirty_for_everybody() {
    let list = RamList::new();
    let block = list.add(RamBlockSpec::new("ram", 8 * PAGE_SIZE)).unwrap();
    let mut bytes = vec![1; 8 * PAGE_SIZE as usize];
    block.read_bytes(0, &mut bytes).unwrap();
    assert!(bytes.iter().all(|b| *b == 0));
    let guard = pin();
    for page in block.pages().iter() {
        assert!(list.dirty().listening(page, &guard).is_empty());
        assert!(
            [DirtyClient::VGA, notdirty_core::raw::CODE, DirtyClient::MIGRATION]
                .iter()
                .all(|c| list.dirty().test(page, *c, &guard))
        );
    }
}

#[test]
fn accesses_inside_work_and_accesses_that_end_outside_change_nothing() {
    let list = RamList::new();
    let block = list.add(RamBlockSpec::new("ram", PAGE_SIZE).max_length(2 * PAGE_SIZE)).unwrap();
    block.write_raw(10, b"notdirty").unwrap();
    assert_eq!(block.load(10, 8).unwrap(), u64::from_le_bytes(*b"notdirty"));
    block.store_raw(PAGE_SIZE - 2, 2, 0xffff_1234).unwrap();
    assert_eq!(block.load(PAGE_SIZE - 2, 2).unwrap(), 0x1234);
    block.fill_raw(0, PAGE_SIZE, 7).unwrap();
    assert_eq!(block.load(123, 4).unwrap(), 0x0707_0707);

    let outside = |r: Result<(), RamError>| matches!(r, Err(RamError::OutOfBounds { used: PAGE_SIZE, .. }));
    assert!(outside(block.store_raw(PAGE_SIZE - 4, 8, 0)));
    assert!(outside(block.store_raw(u64::MAX, 1, 0)));
    assert!(outside(block.load(PAGE_SIZE, 1).map(drop)));
    assert!(outside(block.write_raw(PAGE_SIZE - 1, &[0, 0])));
    assert!(outside(block.read_bytes(u64::MAX - 1, &mut [0; 4])));
    assert!(outside(block.fill_raw(1, PAGE_SIZE, 0)));
    assert!(matches!(block.load(0, 3), Err(RamError::Width { bytes: 3 })));
    assert!(matches!(block.store_raw(0, 0, 0), Err(RamError::Width { bytes: 0 })));
    assert_eq!(block.load(PAGE_SIZE - 4, 4).unwrap(), 0x0707_0707);
    block.write_raw(PAGE_SIZE, &[]).unwrap();
}

#[test]
fn a_window_of_host_addresses_is_kept_if_it_has_room() {
    const LOW: Range<u64> = 0x1000_0000..0x1_0000_0000;
    let list = RamList::new();
    let spec = |name: &str| RamBlockSpec::new(name, 64 * MIB).near(LOW);
    let blocks = ["a", "b", "c"].map(|name| list.add(spec(name)).unwrap());
    for block in &blocks {
        let all = block.reserved();
        assert!(block.flags().contains(RamFlags::NEAR));
        assert!(LOW.contains(&all.start) && all.end <= LOW.end, "{all:x?}");
        assert_eq!(host(block) % (2 * MIB), 0);
        block.store_raw(64 * MIB - 8, 8, 1).unwrap();
    }
}

#[test]
fn a_window_without_room_is_given_up_without_an_error() {
    let list = RamList::new();
    for (name, window) in [
        ("small", 0x1000_0000..0x1000_1000),
        ("zero", 0..PAGE_SIZE),
        ("end", u64::MAX - MIB..u64::MAX),
        ("kernel", 1 << 63..(1 << 63) + 64 * MIB),
        #[expect(clippy::reversed_empty_ranges)]
        ("backwards", 9 * MIB..8 * MIB),
    ] {
        let block = list.add(RamBlockSpec::new(name, 4 * MIB).near(window)).unwrap();
        assert!(!block.flags().contains(RamFlags::NEAR));
        assert_eq!(host(&block) % (2 * MIB), 0);
        block.store_raw(0, 1, 1).unwrap();
    }
}

#[test]
fn a_window_as_wide_as_the_space_has_every_block_in_it() {
    let list = RamList::new();
    let block = list.add(RamBlockSpec::new("small", 4 * MIB).near(0..u64::MAX)).unwrap();
    assert!(block.flags().contains(RamFlags::NEAR));
    // The host may have room for as much, or not; in the window it is if it is anywhere.
    if let Ok(block) = list.add(RamBlockSpec::new("wide", 4 * MIB).max_length(1 << 46).near(0..u64::MAX)) {
        assert!(block.flags().contains(RamFlags::NEAR));
    }
}

#[test]
fn a_window_that_is_taken_is_left_alone() {
    let list = RamList::new();
    let first = list.add(RamBlockSpec::new("first", MIB)).unwrap();
    first.fill_raw(0, MIB, 0x5a).unwrap();
    let second = list.add(RamBlockSpec::new("second", MIB / 2).near(host(&first)..host(&first) + MIB)).unwrap();
    assert!(!second.flags().contains(RamFlags::NEAR));
    second.fill_raw(0, MIB / 2, 0).unwrap();
    assert_eq!(first.load(MIB / 4, 8).unwrap(), 0x5a5a_5a5a_5a5a_5a5a);
}

#[test]
fn shared_memory_can_be_read_through_its_descriptor() {
    use std::io::Read;
    let list = RamList::new();
    let name = "a name that is far too long for the kernel ".repeat(5);
    let spec = RamBlockSpec::new(name, 2 * PAGE_SIZE).max_length(4 * PAGE_SIZE).shared(true).near(0..1 << 31);
    let block = list.add(spec).unwrap();
    block.write_raw(PAGE_SIZE, b"hello").unwrap();
    let mut file = std::fs::File::from(block.fd().unwrap().try_clone_to_owned().unwrap());
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, 4 * PAGE_SIZE);
    assert_eq!(&bytes[PAGE_SIZE as usize..][..5], b"hello");
    assert_eq!(rights(host(&block)).as_deref(), Some("rw-s"));
    assert_eq!(rights(host(&block) + 2 * PAGE_SIZE).as_deref(), Some("---p"));
    let anonymous = list.add(RamBlockSpec::new("anonymous", PAGE_SIZE)).unwrap();
    assert!(anonymous.fd().is_none() && block.flags().contains(RamFlags::SHARED));
}

#[test]
fn flags_say_what_was_asked_for() {
    let list = RamList::new();
    let rom = list.add(RamBlockSpec::new("rom", PAGE_SIZE).readonly(true)).unwrap();
    assert!(rom.is_readonly());
    assert!(!list.add(RamBlockSpec::new("ram", PAGE_SIZE)).unwrap().is_readonly());
    rom.write_raw(0, &[1]).unwrap();
    assert!(!rom.flags().contains(RamFlags::HUGE_PAGES));
    let small = list.add(RamBlockSpec::new("no", 4 * MIB).huge_pages(false)).unwrap();
    assert!(!small.flags().contains(RamFlags::HUGE_PAGES));
    assert_eq!(format!("{:?}", rom.flags()), "{READONLY, MIGRATABLE, NORESERVE}");
}

#[test]
fn specs_that_make_no_sense_are_refused_and_leave_the_list_as_it_was() {
    let list = RamList::new();
    let kept = list.add(RamBlockSpec::new("ram", PAGE_SIZE)).unwrap();
    let version = list.version();
    let refused = |spec| list.add(spec).unwrap_err();
    assert!(matches!(refused(RamBlockSpec::new("ram", PAGE_SIZE)), RamError::DuplicateId { idstr } if idstr == "ram"));
    assert!(matches!(refused(RamBlockSpec::new("", PAGE_SIZE)), RamError::IdLength { len: 0 }));
    assert!(matches!(refused(RamBlockSpec::new("x".repeat(256), PAGE_SIZE)), RamError::IdLength { len: 256 }));
    assert!(matches!(refused(RamBlockSpec::new("a", 0)), RamError::OddLength { length: 0, .. }));
    assert!(matches!(refused(RamBlockSpec::new("a", 4097)), RamError::OddLength { length: 4097, .. }));
    let odd_max = RamBlockSpec::new("a", PAGE_SIZE).max_length(PAGE_SIZE + 1);
    assert!(matches!(refused(odd_max), RamError::OddLength { what: "maximum length", .. }));
    let small_max = RamBlockSpec::new("a", 2 * PAGE_SIZE).max_length(PAGE_SIZE);
    assert!(matches!(refused(small_max), RamError::UsedOverMax { used: 0x2000, max: 0x1000, .. }));
    assert!(matches!(refused(RamBlockSpec::new("a", !(PAGE_SIZE - 1))), RamError::Overflow { .. }));
    assert!(matches!(refused(RamBlockSpec::new("a", 1 << 62)), RamError::Host { length, .. } if length == 1 << 62));
    assert_eq!(list.version(), version);
    assert_eq!(list.blocks(&pin()).count(), 1);
    // No name and no address is lost by a refusal.
    let next = list.add(RamBlockSpec::new("a", PAGE_SIZE)).unwrap();
    assert_eq!(next.offset().get(), kept.offset().get() + 512 * PAGE_SIZE);
    list.add(RamBlockSpec::new("x".repeat(255), PAGE_SIZE)).unwrap();
}

#[test]
fn a_host_without_memory_is_an_error_that_says_so() {
    let list = RamList::new();
    let error = list.add(RamBlockSpec::new("big", 1 << 47)).unwrap_err();
    assert_eq!(error.to_string(), "RAM block big: cannot reserve 0x800000000000 bytes");
    let RamError::Host { source, .. } = error else { panic!("{error:?}") };
    assert_eq!(source.raw_os_error(), Some(libc::ENOMEM));
    list.add(RamBlockSpec::new("big", PAGE_SIZE)).unwrap();
}

#[test]
fn a_terabyte_that_nobody_touches_costs_nothing() {
    let list = RamList::new();
    let block = list.add(RamBlockSpec::new("huge", 1 << 40)).unwrap();
    block.store_raw((1 << 40) - 8, 8, 42).unwrap();
    assert_eq!(block.load((1 << 40) - 8, 8).unwrap(), 42);
}

#[test]
fn a_removed_block_stays_until_its_readers_are_gone_and_then_its_place_is_free() {
    let list = RamList::new();
    let block = list.add(RamBlockSpec::new("ram", MIB)).unwrap();
    let _after = list.add(RamBlockSpec::new("after", MIB)).unwrap();
    let offset = block.offset();
    block.store_raw(0, 8, 99).unwrap();
    list.dirty().test_and_clear(offset.page(), notdirty_core::raw::CODE, &pin());

    let guard = pin();
    let found = list.find(offset, &guard).unwrap();
    list.remove(&block).unwrap();
    drop(block);
    assert!(list.find(offset, &guard).is_none());
    assert!(matches!(barrier(), Err(WaitError::Pinned)));
    std::thread::sleep(std::time::Duration::from_millis(10));
    // `found` is still good: RCU. Its name is free, its addresses are not (RAM-1).
    assert_eq!(found.load(0, 8).unwrap(), 99);
    let other = list.add(RamBlockSpec::new("ram", MIB)).unwrap();
    assert_ne!(other.offset(), offset);
    drop(guard);

    // The kernel may give the addresses to another test's thread, so only our own list can tell: by the offset.
    barrier().unwrap();
    let again = list.add(RamBlockSpec::new("again", MIB)).unwrap();
    assert_eq!(again.offset(), offset);
    assert!(list.dirty().listening(offset.page(), &pin()).is_empty(), "the old block's bits are gone");
    assert_eq!(again.load(0, 8).unwrap(), 0);
}

#[test]
fn a_block_of_another_list_is_not_removed() {
    let (one, two) = (RamList::new(), RamList::new());
    let a = one.add(RamBlockSpec::new("ram", PAGE_SIZE)).unwrap();
    let b = two.add(RamBlockSpec::new("ram", PAGE_SIZE)).unwrap();
    assert_eq!(a.offset(), b.offset());
    assert!(matches!(one.remove(&b), Err(RamError::NotInList { .. })));
    assert_eq!(one.find(RamAddr::new(0), &pin()).unwrap().idstr(), "ram");
}

#[test]
fn readers_find_what_stays_while_blocks_come_and_go() {
    let list = RamList::new();
    let stays = list.add(RamBlockSpec::new("stays", PAGE_SIZE)).unwrap();
    stays.store_raw(0, 8, 1234).unwrap();
    std::thread::scope(|s| {
        let writers = [0, 1].map(|n| {
            let list = &list;
            s.spawn(move || {
                for m in 0..300 {
                    let block = list.add(RamBlockSpec::new(format!("{n}-{m}"), PAGE_SIZE)).unwrap();
                    list.dirty().set(block.pages(), ClientMask::ALL, &pin());
                    list.remove(&block).unwrap();
                }
            })
        });
        while !writers.iter().all(|w| w.is_finished()) {
            let guard = pin();
            assert_eq!(list.find(stays.offset(), &guard).unwrap().load(0, 8).unwrap(), 1234);
            assert!(list.find_host(stays.host(), &guard).is_some());
            for block in list.blocks(&guard) {
                assert!(block.load(0, 8).is_ok());
            }
        }
    });
    assert_eq!(list.blocks(&pin()).count(), 1);
}

/// As a device with memory of its own might, that dies when the last view with it is out of grace.
#[test]
fn a_destructor_that_runs_inside_the_list_may_change_the_list() {
    struct Device(Arc<RamList>, Arc<RamBlock>);
    impl Drop for Device {
        fn drop(&mut self) {
            self.0.remove(&self.1).unwrap();
            self.0.add(RamBlockSpec::new(format!("{} is gone", self.1.idstr()), PAGE_SIZE)).unwrap();
        }
    }
    let list = Arc::new(RamList::new());
    let device = |n| {
        let block = list.add(RamBlockSpec::new(format!("device{n}"), PAGE_SIZE)).unwrap();
        Device(list.clone(), block)
    };
    let view = RcuCell::new(device(0));
    for n in 1..200 {
        view.replace(device(n));
        let other = list.add(RamBlockSpec::new("other", PAGE_SIZE)).unwrap();
        list.remove(&other).unwrap();
    }
    barrier().unwrap();
    assert!(list.blocks(&pin()).any(|b| b.idstr() == "device100 is gone"));
}

#[test]
fn ten_thousand_blocks_are_found_each() {
    let list = RamList::new();
    let blocks: Vec<_> =
        (0..10_000).map(|n| list.add(RamBlockSpec::new(format!("dimm{n}"), PAGE_SIZE)).unwrap()).collect();
    let guard = pin();
    for (n, block) in blocks.iter().enumerate() {
        assert_eq!(list.find(block.offset(), &guard).unwrap().idstr(), format!("dimm{n}"));
        assert_eq!(list.find_host(block.host(), &guard).unwrap().0.offset(), block.offset());
    }
}
