//! What the memory of a block is: files, shared and private, preallocated, discarded.
#![cfg(not(loom))]

use notdirty_core::{PAGE_SIZE, RamBlock, RamBlockSpec, RamError, RamFlags, RamList, pin};
use std::fs::File;
use std::os::unix::fs::FileExt;

const P: u64 = PAGE_SIZE;
const HUGE: u64 = 2 << 20;

/// A file of `pages` pages, page n full of n, that nobody else finds.
fn file(name: &str, pages: u64) -> File {
    let path = std::env::temp_dir().join(format!("notdirty-{name}-{}", std::process::id()));
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    for n in 0..pages {
        file.write_all_at(&[n as u8; P as usize], n * P).unwrap();
    }
    file
}

fn byte(block: &RamBlock, page: u64) -> u64 {
    block.load(page * P + 5, 1).unwrap()
}

fn on_disk(file: &File, page: u64) -> u8 {
    let mut byte = [0];
    file.read_exact_at(&mut byte, page * P + 5).unwrap();
    byte[0]
}

#[test]
fn a_shared_file_gives_bytes_and_gets_them() {
    let (list, on) = (RamList::new(), file("shared", 8));
    let spec = RamBlockSpec::new("ram", 2 * P).max_length(6 * P).resizable(true).shared(true);
    let block = list.add(spec.file(on.try_clone().unwrap(), 2 * P)).unwrap();
    assert_eq!((byte(&block, 0), byte(&block, 1), block.fd_offset()), (2, 3, 2 * P));
    assert!(block.fd().is_some() && block.flags().contains(RamFlags::SHARED));
    block.store_raw(P + 5, 1, 99).unwrap();
    assert_eq!(on_disk(&on, 3), 99);
    list.resize(&block, 6 * P).unwrap();
    assert_eq!((byte(&block, 1), byte(&block, 2), byte(&block, 5)), (99, 4, 7));
    block.discard_raw(P, P).unwrap();
    assert_eq!((byte(&block, 0), byte(&block, 1), byte(&block, 2), on_disk(&on, 3)), (2, 0, 4, 0));
}

#[test]
fn a_private_file_gives_the_first_bytes_and_sees_no_store() {
    let (list, on) = (RamList::new(), file("private", 4));
    let block = list.add(RamBlockSpec::new("rom", 4 * P).readonly(true).file(on.try_clone().unwrap(), 0)).unwrap();
    assert!(!block.flags().contains(RamFlags::SHARED) && block.is_readonly());
    block.store_raw(3 * P + 5, 1, 99).unwrap();
    assert_eq!((byte(&block, 3), on_disk(&on, 3)), (99, 3));
    block.discard_raw(3 * P, P).unwrap();
    assert_eq!(byte(&block, 3), 3, "as the file has it");
}

#[test]
fn who_is_given_a_shared_blocks_memfd_cannot_change_its_length() {
    let list = RamList::new();
    let block = list.add(RamBlockSpec::new("ram", 4 * P).max_length(8 * P).shared(true)).unwrap();
    let given = File::from(block.fd().unwrap().try_clone_to_owned().unwrap());
    assert!(given.set_len(P).is_err() && given.set_len(16 * P).is_err());
    given.write_all_at(&[7], 3 * P + 5).unwrap();
    assert_eq!(byte(&block, 3), 7);
    block.discard_raw(3 * P, P).unwrap();
    assert_eq!((byte(&block, 3), on_disk(&given, 3)), (0, 0));
}

#[test]
fn a_file_that_is_too_short_or_cannot_be_mapped_so_is_refused() {
    let (list, on) = (RamList::new(), file("short", 4));
    let clone = || on.try_clone().unwrap();
    let spec = |len| RamBlockSpec::new("ram", P).max_length(len);
    let error = list.add(spec(4 * P).file(clone(), P)).unwrap_err();
    assert!(matches!(error, RamError::ShortFile { needs: 0x5000, has: 0x4000, .. }), "{error}");
    let error = list.add(spec(P).file(clone(), u64::MAX - P + 1)).unwrap_err();
    assert!(matches!(error, RamError::ShortFile { .. }), "{error}");
    let error = list.add(spec(P).file(clone(), 5)).unwrap_err();
    assert!(matches!(error, RamError::OddLength { what: "file offset", length: 5, .. }), "{error}");
    let read_only = File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&on))).unwrap();
    let error = list.add(spec(P).file(read_only.try_clone().unwrap(), 0).shared(true)).unwrap_err();
    let RamError::Host { doing: "map", source, .. } = &error else { panic!("{error:?}") };
    assert_eq!(source.raw_os_error(), Some(libc::EACCES));
    assert_eq!(list.blocks(&pin()).count(), 0);
    // Private stores need no right to write the file.
    list.add(spec(P).file(read_only, 0)).unwrap().store_raw(0, 8, 1).unwrap();
}

#[test]
fn memory_is_given_back_in_the_pieces_that_the_host_has() {
    let list = RamList::new();
    let small = list.add(RamBlockSpec::new("small", 4 * P)).unwrap();
    assert_eq!(small.page_size(), P);
    for shared in [false, true] {
        let name = format!("shared {shared}");
        let block = list.add(RamBlockSpec::new(name, 4 * P).shared(shared)).unwrap();
        block.fill_raw(0, 4 * P, 7).unwrap();
        block.discard_raw(P, 2 * P).unwrap();
        assert_eq!([0, 1, 2, 3].map(|n| byte(&block, n)), [7, 0, 0, 7]);
        assert!(matches!(block.discard_raw(0, P - 1), Err(RamError::OddLength { .. })));
        assert!(matches!(block.discard_raw(1, P), Err(RamError::OddLength { .. })));
        assert!(matches!(block.discard_raw(P, 4 * P), Err(RamError::OutOfBounds { .. })));
        assert!(matches!(block.discard_raw(u64::MAX - P + 1, 2 * P), Err(RamError::OutOfBounds { .. })));
        block.discard_raw(0, 0).unwrap();
    }
    let block = list.add(RamBlockSpec::new("big", 2 * HUGE + P)).unwrap();
    if block.flags().contains(RamFlags::HUGE_PAGES) {
        assert_eq!(block.page_size(), P);
    }
    block.fill_raw(0, 2 * HUGE + P, 7).unwrap();
    block.discard_raw(HUGE - P, P).unwrap();
    assert_eq!([510, 511, 512].map(|n| byte(&block, n)), [7, 0, 7]);
    block.discard_raw(HUGE, HUGE + P).unwrap();
    assert_eq!([510, 512, 1024].map(|n| byte(&block, n)), [7, 0, 0]);
}

/// The pages of the block that the host holds in memory.
fn resident(block: &RamBlock) -> usize {
    let mut pages = vec![0u8; (block.used_length() / P) as usize];
    // SAFETY: the block's own memory, and a byte for each page of it.
    let done = unsafe { libc::mincore(block.host().cast(), block.used_length() as usize, pages.as_mut_ptr()) };
    assert_eq!(done, 0);
    pages.iter().filter(|page| **page & 1 != 0).count()
}

#[test]
fn preallocated_memory_is_there_before_it_is_touched() {
    let list = RamList::new();
    for shared in [false, true] {
        let spec = |name: &str| RamBlockSpec::new(format!("{name} {shared}"), 8 * P).shared(shared).max_length(16 * P);
        let lazy = list.add(spec("lazy")).unwrap();
        let ready = list.add(spec("ready").prealloc(true).resizable(true)).unwrap();
        assert_eq!((resident(&lazy), resident(&ready)), (0, 8));
        list.resize(&ready, 16 * P).unwrap();
        assert_eq!(resident(&ready), 16);
        assert!(ready.flags().contains(RamFlags::PREALLOC) && !lazy.flags().contains(RamFlags::PREALLOC));
    }
}
