//! Missing pages that the host's MMU notices: threads that follow raw pointers, system calls, and how each of it ends.
#![cfg(all(not(loom), not(miri)))]

use notdirty_core::{
    FaultKind, FaultSource, MissingError, MissingPages, PAGE_SIZE, PageBytes, PageSource, Part, RamAddr, RamBlock,
    RamBlockSpec, RamFlags, RamList, TemporaryPage, UserFaults, UserfaultLack,
};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);
const PAGE: usize = PAGE_SIZE as usize;

/// Keeps what is asked for: where, and how many bytes.
struct Stream(Mutex<Sender<(u64, u64)>>, Mutex<()>);

impl PageSource for Stream {
    fn request(&self, block: &Arc<RamBlock>, off: u64) {
        self.request_run(block, off, PAGE_SIZE);
    }

    fn request_run(&self, _block: &Arc<RamBlock>, off: u64, len: u64) {
        self.0.lock().unwrap().send((off, len)).unwrap();
        // Held by a test that wants faults to gather.
        drop(self.1.lock().unwrap());
    }
}

struct Ram {
    list: Arc<RamList>,
    block: Arc<RamBlock>,
    pages: Arc<MissingPages>,
    stream: Arc<Stream>,
    asked: Receiver<(u64, u64)>,
}

fn source() -> Option<Arc<UserFaults>> {
    UserFaults::open().map_err(|why| println!("SKIPPED: {why}")).ok()
}

/// So many pages, none of them here yet.
fn gathering(pages: u64, shared: bool) -> Option<Ram> {
    let faults = source()?;
    let list = Arc::new(RamList::new());
    let block = list.add(RamBlockSpec::new("ram", pages * PAGE_SIZE).shared(shared)).unwrap();
    let (to, asked) = channel();
    let stream = Arc::new(Stream(Mutex::new(to), Mutex::new(())));
    let pages = list.set_missing_by(faults, stream.clone(), [block.clone()]).unwrap();
    assert_eq!(pages.fault_kind(), FaultKind::Userfaultfd);
    Some(Ram { list, block, pages, stream, asked })
}

fn listening(pages: u64, shared: bool) -> Option<Ram> {
    let ram = gathering(pages, shared)?;
    ram.pages.listen().unwrap();
    Some(ram)
}

/// By pointer, as code does that knows nothing of missing pages.
fn peek(block: &RamBlock, off: u64) -> u8 {
    assert!(off < block.used_length());
    // SAFETY: inside of the block's memory.
    unsafe { block.host().add(off as usize).read_volatile() }
}

fn page(byte: u8) -> Vec<u8> {
    vec![byte; PAGE]
}

/// So many threads wait in the kernel, and their faults were not read.
fn pending(count: u64) {
    let until = Instant::now() + PATIENCE;
    loop {
        let mut most = 0;
        for fd in std::fs::read_dir("/proc/self/fdinfo").unwrap().flatten() {
            let text = std::fs::read_to_string(fd.path()).unwrap_or_default();
            let number = text.lines().find_map(|line| line.strip_prefix("pending:"));
            most = most.max(number.map_or(0, |number| number.trim().parse().unwrap()));
        }
        if most >= count {
            return;
        }
        assert!(Instant::now() < until, "{most} of {count}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn what_follows_a_pointer_finds_the_sources_bytes() {
    for shared in [false, true] {
        let Some(ram) = gathering(64, shared) else { return };
        // Written by a precopy, then discarded; and one that came and was never written.
        ram.block.write_raw(3 * PAGE_SIZE, &[1; 16]).unwrap();
        ram.block.write_raw(4 * PAGE_SIZE, &[2; 16]).unwrap();
        ram.pages.mark_received(&ram.block, 4 * PAGE_SIZE, 2 * PAGE_SIZE).unwrap();
        ram.pages.listen().unwrap();
        let (block, pages) = (&ram.block, &ram.pages);
        assert_eq!((peek(block, 4 * PAGE_SIZE), peek(block, 5 * PAGE_SIZE)), (2, 0));
        assert!(block.flags().contains(RamFlags::UF_ZEROPAGE));
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..2).map(|_| scope.spawn(|| peek(block, 3 * PAGE_SIZE + 7))).collect();
            assert_eq!(ram.asked.recv_timeout(PATIENCE).unwrap(), (3 * PAGE_SIZE, PAGE_SIZE));
            std::thread::sleep(Duration::from_millis(2));
            assert!(pages.place(block, 3 * PAGE_SIZE, PageBytes::Copy(&page(9))).unwrap());
            assert!(!pages.place(block, 3 * PAGE_SIZE, PageBytes::Copy(&page(8))).unwrap(), "once");
            assert!(readers.into_iter().all(|reader| reader.join().unwrap() == 9));
            // A store by pointer, to a page of zeros.
            let writer = scope.spawn(|| {
                // SAFETY: inside of the block's memory.
                unsafe { block.host().add(6 * PAGE + 1).write_volatile(5) };
                peek(block, 6 * PAGE_SIZE)
            });
            assert_eq!(ram.asked.recv_timeout(PATIENCE).unwrap().0, 6 * PAGE_SIZE);
            pages.place(block, 6 * PAGE_SIZE, PageBytes::Zero).unwrap();
            assert_eq!((writer.join().unwrap(), peek(block, 6 * PAGE_SIZE + 1)), (0, 5));
            // The kernel's own store into it.
            let file = File::open("/dev/zero").unwrap();
            let read = scope.spawn(move || {
                let to = block.host().wrapping_add(7 * PAGE + 8);
                // SAFETY: eight bytes inside of the block's memory.
                unsafe { libc::pread(std::os::fd::AsRawFd::as_raw_fd(&file), to.cast(), 8, 0) }
            });
            assert_eq!(ram.asked.recv_timeout(PATIENCE).unwrap().0, 7 * PAGE_SIZE);
            pages.place(block, 7 * PAGE_SIZE, PageBytes::Copy(&page(3))).unwrap();
            assert_eq!(read.join().unwrap(), 8);
            let bytes = [7, 8, 15, 16].map(|n| peek(block, 7 * PAGE_SIZE + n));
            assert_eq!(bytes, [3, 0, 0, 3]);
        });
        let times = pages.blocktime();
        assert!((2..=4).contains(&times.host_waits) && times.total_ns >= 2_000_000, "{times:?}");
        assert_eq!((pages.left(), pages.requests()), (59, 3));
        // The rest comes by itself, and then it is plain memory.
        while let Some(off) = pages.next_missing(block, 0) {
            pages.place(block, off, PageBytes::Copy(&page((off / PAGE_SIZE) as u8))).unwrap();
        }
        pages.close_faults();
        assert!(!ram.list.has_missing() && !block.flags().contains(RamFlags::UF_ZEROPAGE));
        let whole: Vec<_> = (0..64).map(|n| peek(block, n * PAGE_SIZE + 9)).collect();
        let expected: Vec<u8> = (0..3).chain([9, 2, 0, 0, 0]).chain(8..64).collect();
        assert_eq!(whole, expected, "{shared}");
    }
}

#[test]
fn neighbours_that_are_waited_for_are_one_request() {
    let Some(ram) = listening(64, false) else { return };
    let block = &ram.block;
    std::thread::scope(|scope| {
        let held = ram.stream.1.lock().unwrap();
        scope.spawn(|| peek(block, 0));
        // The thread that reads faults stands in the source now.
        assert_eq!(ram.asked.recv_timeout(PATIENCE).unwrap(), (0, PAGE_SIZE));
        for n in [12, 10, 11, 30, 13, 12] {
            scope.spawn(move || peek(block, n * PAGE_SIZE));
        }
        pending(6);
        drop(held);
        assert_eq!(ram.asked.recv_timeout(PATIENCE).unwrap(), (10 * PAGE_SIZE, 4 * PAGE_SIZE));
        assert_eq!(ram.asked.recv_timeout(PATIENCE).unwrap(), (30 * PAGE_SIZE, PAGE_SIZE));
        assert_eq!(ram.pages.requests(), 6);
        while let Some(off) = ram.pages.next_missing(block, 0) {
            ram.pages.place(block, off, PageBytes::Copy(&page(1))).unwrap();
        }
    });
    assert_eq!(ram.pages.blocktime().host_waits, 7);
}

#[test]
fn what_waits_goes_on_when_no_page_comes_any_more_from_each_state() {
    // Never listened; listened; with a thread that waits; complete; and the handle that is dropped in place of an end.
    for state in 0..5 {
        let Some(ram) = gathering(8, state % 2 == 1) else { return };
        let Ram { list, block, pages, asked, .. } = ram;
        if state > 0 {
            pages.listen().unwrap();
        }
        std::thread::scope(|scope| {
            let block = &block;
            let waits = (state == 2 || state == 4).then(|| scope.spawn(|| peek(block, PAGE_SIZE)));
            if waits.is_some() {
                asked.recv_timeout(PATIENCE).unwrap();
                assert!(pages.is_missing(block.offset()));
            }
            if state == 3 {
                (0..8).for_each(|n| assert!(pages.place(block, n * PAGE_SIZE, PageBytes::Zero).unwrap()));
            }
            if state == 4 {
                drop(list);
                drop(pages);
            } else {
                pages.end("the machine is gone");
                pages.close_faults();
                let late = pages.place(block, 2 * PAGE_SIZE, PageBytes::Zero);
                assert!(matches!(late, Err(MissingError::Phase { .. })) != (state == 3), "{late:?}");
            }
            // Its memory is zero, and `is_missing` says that it never came.
            assert!(waits.is_none_or(|waits| waits.join().unwrap() == 0));
            assert_eq!(peek(block, 0), 0);
        });
    }
}

/// So many runs that a file is not punched, and each page of it is a minor fault; of anonymous memory each run is given back.
#[test]
fn pages_that_were_written_before_they_were_missing_are_waited_for_too() {
    [true, false].into_iter().for_each(stale);
}

fn stale(shared: bool) {
    const PAGES: u64 = 4096;
    let Some(ram) = gathering(PAGES, shared) else { return };
    let block = &ram.block;
    for n in 0..PAGES {
        block.write_raw(n * PAGE_SIZE, &[1 + (n % 2) as u8; 8]).unwrap();
    }
    ram.pages.mark_received(block, 0, PAGES * PAGE_SIZE).unwrap();
    // Every second one is yet to come.
    let words = vec![0x5555_5555_5555_5555; PAGES as usize / 64];
    ram.pages.discard_map(block, 0, &words, &words).unwrap();
    ram.pages.listen().unwrap();
    assert_eq!(ram.pages.left(), PAGES / 2);
    std::thread::scope(|scope| {
        let pages = &ram.pages;
        let reader = scope.spawn(|| (0..PAGES).map(|n| peek(block, n * PAGE_SIZE)).collect::<Vec<_>>());
        let mut served = 0;
        while let Ok((off, len)) = ram.asked.recv_timeout(if reader.is_finished() { Duration::ZERO } else { PATIENCE })
        {
            assert_eq!(len, PAGE_SIZE, "{off:#x}");
            let zero = off % (8 * PAGE_SIZE) == 0;
            let bytes = page(7);
            pages.place(block, off, if zero { PageBytes::Zero } else { PageBytes::Copy(&bytes) }).unwrap();
            served += 1;
            if served == PAGES / 2 {
                break;
            }
        }
        let expected = (0..PAGES).map(|n| if n % 2 == 1 { 2 } else { 7 * u8::from(n % 8 != 0) });
        assert!(reader.join().unwrap().into_iter().eq(expected));
        assert_eq!(pages.left(), 0);
    });
}

#[test]
fn where_it_is_not_to_be_had_the_reason_is_told() {
    let no = |errno| move || Err::<OwnedFd, _>(io::Error::from_raw_os_error(errno));
    let lack = |errno| UserFaults::open_by(no(errno)).unwrap_err();
    assert_eq!(lack(libc::EPERM).lack, UserfaultLack::Permission);
    assert_eq!(lack(libc::EACCES).lack, UserfaultLack::Permission);
    assert_eq!(lack(libc::ENOSYS).lack, UserfaultLack::Kernel);
    assert_eq!(lack(libc::EMFILE).lack, UserfaultLack::Host);
    assert!(lack(libc::EPERM).to_string().contains("vm.unprivileged_userfaultfd"), "{}", lack(libc::EPERM));
    // What agrees on nothing.
    let why = UserFaults::open_by(|| File::open("/dev/null").map(OwnedFd::from)).unwrap_err();
    assert_eq!(why.lack, UserfaultLack::Feature);

    // Memory of which no fault is told, by the block's name, before anything is missing.
    let Some(faults) = source() else { return };
    let path = std::env::temp_dir().join(format!("notdirty-userfault-{}", std::process::id()));
    std::fs::write(&path, page(1)).unwrap();
    let list = Arc::new(RamList::new());
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let rom = list.add(RamBlockSpec::new("rom", PAGE_SIZE).file(file, 0)).unwrap();
    std::fs::remove_file(&path).unwrap();
    let (to, _asked) = channel();
    let stream = Arc::new(Stream(Mutex::new(to), Mutex::new(())));
    assert!(faults.check(&rom).is_err());
    match list.set_missing_by(faults, stream, [rom.clone()]) {
        Err(why @ MissingError::Userfault { .. }) => assert!(why.to_string().contains("RAM block rom"), "{why}"),
        other => println!("SKIPPED: a private file is taken here: {other:?}"),
    }
    assert_eq!(peek(&rom, 0), 1);
}

/// A file of hugetlbfs, if the host has so many pages of 2 MiB to spare.
fn huge(pages: u64) -> Option<File> {
    let free = std::fs::read_to_string("/proc/meminfo").unwrap();
    let number = |name: &str| {
        let line = free.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().trim_end_matches(" kB").parse::<u64>().ok()
    };
    if number("Hugepagesize") != Some(2048) || number("HugePages_Free").is_none_or(|free| free < pages) {
        println!("SKIPPED: the host has no {pages} pages of hugetlbfs free (/proc/sys/vm/nr_hugepages)");
        return None;
    }
    // SAFETY: a text with its NUL.
    let fd = unsafe { libc::memfd_create(c"huge".as_ptr(), libc::MFD_HUGETLB | libc::MFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: made just now, and has no other owner.
    let file = File::from(unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) });
    file.set_len(pages << 21).unwrap();
    Some(file)
}

#[test]
fn a_page_of_hugetlbfs_is_placed_whole_by_either_source_of_faults() {
    const HUGE: u64 = 2 << 20;
    let (Some(file), Some(faults)) = (huge(3), source()) else { return };
    let list = RamList::new();
    let spec =
        |used| RamBlockSpec::new("ram", used).max_length(3 * HUGE).shared(true).file(file.try_clone().unwrap(), 0);
    let odd = list.add(spec(HUGE + PAGE_SIZE)).unwrap_err().to_string();
    assert!(odd.contains("used length 0x201000 is not a positive multiple of the page size 0x200000"), "{odd}");
    for faults in [faults as Arc<dyn FaultSource>, Arc::new(notdirty_core::SoftwareFaults)] {
        let list = Arc::new(RamList::new());
        let block = list.add(spec(3 * HUGE)).unwrap();
        assert_eq!(block.page_size(), HUGE);
        block.fill_raw(0, 3 * HUGE, 9).unwrap();
        let (to, asked) = channel();
        let stream = Arc::new(Stream(Mutex::new(to), Mutex::new(())));
        let pages = list.set_missing_by(faults, stream, [block.clone()]).unwrap();
        // Here, and never written.
        pages.mark_received(&block, 2 * HUGE, HUGE).unwrap();
        pages.listen().unwrap();
        assert_eq!(pages.left(), 2);
        let (tell, told) = channel();
        let (reads, waits) = (block.clone(), list.clone());
        // Not joined: without an answer it waits in the kernel.
        std::thread::spawn(move || {
            for off in [2 * HUGE + 5, HUGE + 3 * PAGE_SIZE, 7] {
                let mut byte = [1];
                if waits.missing().is_some_and(|pages| pages.fault_kind() == FaultKind::Software) {
                    waits.wait_for(RamAddr::new(reads.offset().get() + off), 1).unwrap();
                }
                reads.read_bytes(off, &mut byte).unwrap();
                let _ = tell.send(byte[0]);
            }
        });
        assert_eq!(told.recv_timeout(PATIENCE), Ok(0));
        assert_eq!(asked.recv_timeout(PATIENCE).map(|(off, _)| off), Ok(HUGE));
        let mut page = TemporaryPage::default();
        let mut add = |part: u64, bytes: PageBytes<'_>| page.add(&pages, &block, part * PAGE_SIZE, bytes).unwrap();
        for part in 512..1023 {
            let bytes = [part as u8; PAGE];
            assert_eq!(add(part, if part == 515 { PageBytes::Copy(&bytes) } else { PageBytes::Zero }), Part::Kept);
        }
        assert!(told.try_recv().is_err());
        assert_eq!(add(1023, PageBytes::Zero), Part::Placed(HUGE..2 * HUGE));
        assert_eq!(told.recv_timeout(PATIENCE), Ok(3));
        assert_eq!(asked.recv_timeout(PATIENCE).map(|(off, _)| off), Ok(0));
        assert!((0..511).all(|part| add(part, PageBytes::Zero) == Part::Kept));
        assert_eq!(add(511, PageBytes::Zero), Part::Placed(0..HUGE));
        assert_eq!(told.recv_timeout(PATIENCE), Ok(0));
        assert!(!list.has_missing());
        pages.close_faults();
    }
}
