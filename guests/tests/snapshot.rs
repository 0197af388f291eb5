//! A machine in a file: it goes on from there as if it had not stopped, QEMU's own tool reads it, and what is not whole is refused.

use std::fs;
use std::path::{Path, PathBuf};

use notdirty::programs::{draw, hotplug, smc, smp, timer};
use notdirty::{
    Cancel, Captured, ClockKind, Console, EngineKind, ExitBy, GuestExit, JitFlags, LeaveOptions, Machine,
    MachineBuilder, MachineExit, MigrationError, PlugSpec, Program, Road, RunLimits, SnapshotOptions, snapshot_info,
};
use notdirty_core::migration::FieldValue;
use notdirty_softmmu::{DeviceState, GuestPhys, MemSize, MmioDevice, Stateful};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const RAM: u64 = 0x8000_0000;
const SIZE: u64 = 16 << 20;

/// A file that goes with the test.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str) -> Temporary {
        Temporary(std::env::temp_dir().join(format!("notdirty-{}-{name}", std::process::id())))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn builder(engine: EngineKind) -> MachineBuilder {
    Machine::builder().ram_size(SIZE).engine(engine).clock(ClockKind::Insns)
}

fn up_to(machine: &mut Machine, count: u64) -> MachineExit {
    machine.run(&RunLimits { max_insns: Some(count), deadline: None })
}

fn ram(machine: &Machine, base: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    machine.read(base, &mut bytes).unwrap();
    bytes
}

#[test]
fn a_restored_machine_goes_on_as_the_one_that_was_saved_on_whatever_engine() {
    let file = Temporary::new("goes-on");
    // In machine mode and under page tables, one after the other.
    let cases = smc::CASES.iter().filter(|case| case.harts == 1 && case.alias.is_none() && !case.paged).step_by(5);
    let modes = [smc::Mode::Machine, smc::Mode::Supervisor].into_iter().cycle();
    let programs = cases.zip(modes).map(|(case, mode)| (case.build)(smc::Form { mode, ..smc::Form::PLAIN }));
    for program in programs.chain([timer::timer_irq(30, 50)]) {
        let mut whole = builder(EngineKind::Jit).program(Program::Image(program.clone())).build().unwrap();
        let end = whole.run_to_end();
        let total = whole.cpu().retired;
        for (part, engine) in [(1, EngineKind::Interp), (2, EngineKind::Jit), (3, EngineKind::Jit)] {
            let mut first = builder(EngineKind::Jit).program(Program::Image(program.clone())).build().unwrap();
            up_to(&mut first, total * part / 4);
            first.snapshot(&file.0).unwrap();
            let flags = JitFlags { tier0: part == 3, ..JitFlags::default() };
            let mut second = Machine::builder().engine(engine).jit_flags(flags).restore(&file.0).unwrap();
            assert_eq!(second.cpu(), first.cpu(), "{part}");
            assert_eq!(second.run_to_end(), end, "{part}");
            assert_eq!(second.cpu(), whole.cpu(), "{part}");
            assert!(ram(&second, RAM, SIZE) == ram(&whole, RAM, SIZE), "{part}");
            // And the one that was saved was not changed by it.
            assert_eq!((first.run_to_end(), first.cpu().retired), (end, total), "{part}");
        }
    }
}

#[test]
fn a_guest_saved_between_a_change_of_its_page_table_and_the_fence_goes_by_the_table_at_once() {
    let case = smc::CASES.iter().find(|case| case.name == "rights_taken_away").unwrap();
    let program = (case.build)(smc::Form { mode: smc::Mode::Supervisor, ..smc::Form::PLAIN });
    let mut first = builder(EngineKind::Jit).program(Program::Image(program)).build().unwrap();
    // s1 is the page that may not be run any more, and 132 where its fence is.
    while first.cpu().pc != first.cpu().x[9] + 132 {
        let next = first.cpu().retired + 1;
        assert_eq!(up_to(&mut first, next), MachineExit::InsnLimit);
    }
    let file = Temporary::new("fence");
    first.snapshot(&file.0).unwrap();
    let mut second = Machine::builder().restore(&file.0).unwrap();
    for machine in [&mut first, &mut second] {
        let exit = GuestExit { code: 0, by: ExitBy::Finisher };
        assert_eq!(machine.run_to_end(), MachineExit::Guest(exit));
    }
}

#[test]
fn harts_that_take_turns_take_them_on() {
    let file = Temporary::new("turns");
    let build =
        || builder(EngineKind::Jit).harts(2).turns(9).program(Program::Image(smp::ipi(2, 300))).build().unwrap();
    let mut whole = build();
    let end = whole.run_to_end();
    let state = |machine: &Machine| [0, 1].map(|hart| machine.vcpu(hart).unwrap().cpu().clone());
    for part in 1..6 {
        let mut first = build();
        up_to(&mut first, whole.cpu().retired * part / 6);
        first.snapshot(&file.0).unwrap();
        let mut second = Machine::builder().restore(&file.0).unwrap();
        assert_eq!((second.run_to_end(), state(&second)), (end, state(&whole)), "{part}");
    }
}

#[test]
fn plugged_ram_screens_and_unread_input_come_along() {
    let file = Temporary::new("plugged");
    let console = || Console::new(Box::new(Captured::default()));
    let mut first =
        builder(EngineKind::Jit).framebuffer(64, 32).console(console()).program(Program::Image(hotplug::resident()));
    first = first.max_ram(1 << 30);
    let mut first = first.build().unwrap();
    let memory = first.memory();
    memory.plug("dimm0", 0x1_0000_0000, 0x20_0000, PlugSpec::default().max_size(0x80_0000)).unwrap();
    memory.plug("dimm1", 0x2_0000_0000, 0x1000, PlugSpec::default().shared(true)).unwrap();
    memory.write(0x1_001f_f000, b"the last page").unwrap();
    memory.write(0x2_0000_0ff8, b"its end.").unwrap();
    memory.write(0x5000_0010, b"pixels").unwrap();
    first.console().feed(b"not read yet").unwrap();
    first.snapshot(&file.0).unwrap();
    let mut second = Machine::builder().console(console()).restore(&file.0).unwrap();
    assert_eq!(second.memory().blocks(), first.memory().blocks());
    for (at, text) in [(0x1_001f_f000, "the last page"), (0x2_0000_0ff8, "its end."), (0x5000_0010, "pixels")] {
        assert_eq!(ram(&second, at, text.len() as u64), text.as_bytes());
    }
    let rest: Vec<u8> = std::iter::from_fn(|| second.console().take()).collect();
    assert_eq!(rest, b"not read yet");
    assert_eq!(second.framebuffer().unwrap().size(), (64, 32));
    second.framebuffer().unwrap().redraw(None).unwrap();
    assert_eq!(second.memory().max_ram(), 1 << 30);
    second.add_ram("dimm2", 0x3_0000_0000, 0x1000).unwrap();
}

#[test]
fn a_picture_that_is_half_drawn_is_drawn_to_its_end() {
    let file = Temporary::new("picture");
    let screen = |machine: &Machine| {
        machine.framebuffer().unwrap().redraw(None).unwrap();
        let mut image = Vec::new();
        machine.framebuffer().unwrap().write_ppm(&mut image).unwrap();
        image
    };
    let program = || Program::Image(draw::draw(300, 7, (0, 64)));
    let mut whole = builder(EngineKind::Jit).framebuffer(64, 64).program(program()).build().unwrap();
    whole.run_to_end();
    let mut first = builder(EngineKind::Jit).framebuffer(64, 64).program(program()).build().unwrap();
    up_to(&mut first, whole.cpu().retired / 2);
    assert!(screen(&first) != screen(&whole));
    first.snapshot(&file.0).unwrap();
    let mut second = Machine::builder().restore(&file.0).unwrap();
    second.run_to_end();
    assert!(screen(&second) == screen(&whole));
}

#[test]
fn what_a_hole_covers_is_zero_and_what_was_zero_is_a_hole() {
    use std::os::unix::fs::MetadataExt;
    let file = Temporary::new("holes");
    let mut machine = builder(EngineKind::Jit).ram_size(256 << 20).build().unwrap();
    machine.write(RAM + (100 << 20), &[1; 4096]).unwrap();
    // Written, and zero again.
    machine.write(RAM + (200 << 20), &[1; 4096]).unwrap();
    machine.write(RAM + (200 << 20), &[0; 4096]).unwrap();
    let done = machine.snapshot(&file.0).unwrap();
    assert_eq!((done.pages, done.zero_pages), (1, 65535));
    let metadata = fs::metadata(&file.0).unwrap();
    assert!(metadata.len() <= (256 << 20) + (2 << 20), "RAM, 1 MiB a block, and the state");
    assert!(metadata.blocks() * 512 < 1 << 20, "{} bytes of disk", metadata.blocks() * 512);
    let info = snapshot_info(&file.0).unwrap();
    assert_eq!((info.blocks.len(), info.blocks[0].1), (1, 1));
    // A target whose RAM is not zero: a device of its own has written there before the pages came.
    let restored = Machine::builder().restore_with(&file.0, |target| {
        target.write(RAM + (50 << 20), &[7; 5000]).unwrap();
        target.write(RAM + (100 << 20) - 1, &[7; 5000]).unwrap();
        Ok(())
    });
    let restored = restored.unwrap();
    assert!(ram(&restored, RAM, 256 << 20) == ram(&machine, RAM, 256 << 20));
}

/// Counts its reads, and says so or not.
struct Counter {
    reads: AtomicU64,
    says: bool,
}

notdirty_softmmu::fields! {
    struct Reads: "reads", version 1 { reads: u64 }
}

impl Stateful for Counter {
    type State = Reads;
    fn save(&self) -> Reads {
        Reads { reads: self.reads.load(Ordering::Relaxed) }
    }
    fn restore(&self, state: &Reads) {
        self.reads.store(state.reads, Ordering::Relaxed);
    }
}

impl MmioDevice for Counter {
    fn read(&self, _: u64, _: MemSize) -> u64 {
        self.reads.fetch_add(1, Ordering::Relaxed)
    }
    fn write(&self, _: u64, _: MemSize, _: u64) {}
    fn state(&self) -> DeviceState<'_> {
        if self.says { DeviceState::Kept(self) } else { DeviceState::Unknown }
    }
    fn name(&self) -> &str {
        "counter"
    }
}

const DEVICE: u64 = 0x4000_0000;

fn attach(machine: &mut Machine, says: bool) -> Arc<Counter> {
    let counter = Arc::new(Counter { reads: AtomicU64::new(0), says });
    machine.space().map_mmio(GuestPhys::new(DEVICE), 0x100, counter.clone(), 0).unwrap();
    counter
}

#[test]
fn devices_of_ones_own_come_along_if_they_say_what_they_remember() {
    let file = Temporary::new("devices");
    let mut machine = builder(EngineKind::Jit).build().unwrap();
    attach(&mut machine, true).reads.store(77, Ordering::Relaxed);
    machine.snapshot(&file.0).unwrap();
    let mut there = None;
    Machine::builder()
        .restore_with(&file.0, |machine| {
            there = Some(attach(machine, true));
            Ok(())
        })
        .unwrap();
    assert_eq!(there.unwrap().reads.load(Ordering::Relaxed), 77);
    let why = Machine::builder().restore(&file.0).err().unwrap().to_string();
    assert_eq!(why, "the stream has a section reads 0, and nothing here is called so");

    let kept = fs::read(&file.0).unwrap();
    let mut silent = builder(EngineKind::Jit).build().unwrap();
    attach(&mut silent, false);
    let why = silent.snapshot(&file.0).unwrap_err().to_string();
    assert!(why.contains("the device counter at 0x40000000 cannot be saved"), "{why}");
    assert!(fs::read(&file.0).unwrap() == kept, "the file of before stays");
    silent.map_alias(0x9000_0000, RAM, 0x1000).unwrap();
    let why = silent.snapshot(&file.0).unwrap_err();
    assert!(matches!(why, MigrationError::Mapped { at: 0x9000_0000, .. }), "{why}");
}

/// A whole snapshot of a small machine, its bytes.
fn small(file: &Path) -> Vec<u8> {
    let mut machine = Machine::builder().ram_size(0x4000).build().unwrap();
    machine.write(RAM + 0x1000, b"page one").unwrap();
    machine.snapshot(file).unwrap();
    fs::read(file).unwrap()
}

#[test]
fn a_file_that_is_cut_anywhere_or_has_a_flipped_bit_is_refused() {
    let file = Temporary::new("spoiled");
    let whole = small(&file.0);
    let restore = |bytes: &[u8]| {
        fs::write(&file.0, bytes).unwrap();
        let _ = snapshot_info(&file.0);
        Machine::builder().restore(&file.0)
    };
    // What is between the list of RAM and its pages is a hole.
    let state = (0x10_0000 + 0x4000) as usize;
    assert!(whole.len() > state && whole.len() < state + 16384);
    let interesting = |n: &usize| *n < 0x400 || *n >= state;
    for len in (0..whole.len()).filter(interesting).step_by(61) {
        assert!(restore(&whole[..len]).is_err(), "cut at {len:#x}");
    }
    // Behind the bitmap nothing is read up to the pages.
    let bitmap_end =
        whole.windows(15).position(|bytes| bytes == b"\x03ram\0\0\0\0\0\0\x40\0\0\0\0").unwrap() + 12 + 28 + 8;
    // One of the pages is in the file; it is here, too.
    let places = (0..bitmap_end).chain(0x10_1000..0x10_1010).chain(state..whole.len());
    for (n, place) in places.step_by(23).enumerate() {
        let mut bytes = whole.clone();
        bytes[place] ^= 1 << (n % 8);
        let why = restore(&bytes).err().unwrap_or_else(|| panic!("byte {place:#x}, bit {}", n % 8));
        assert!(!why.to_string().is_empty());
    }
}

/// The same without checksums, as builds before them wrote it.
fn of_an_older_build(whole: &[u8]) -> Vec<u8> {
    let section = whole.windows(10).rposition(|bytes| bytes == b"\x09integrity").unwrap() - 5;
    let text = section + whole[section..].iter().rposition(|byte| *byte == b'\x06').unwrap() + 5;
    let json = String::from_utf8(whole[text..].to_vec()).unwrap();
    let (json, _) = json.rsplit_once(",\"crc32\"").unwrap();
    let mut older = whole[..section].to_vec();
    older.extend([0, 6]);
    older.extend((json.len() as u32 + 2).to_be_bytes());
    older.extend(json.bytes());
    older.extend(b"}}");
    older
}

#[test]
fn a_file_of_a_build_without_checksums_is_a_machine() {
    let file = Temporary::new("older");
    let whole = small(&file.0);
    fs::write(&file.0, of_an_older_build(&whole)).unwrap();
    let machine = Machine::builder().restore(&file.0).unwrap();
    assert_eq!(ram(&machine, RAM + 0x1000, 8), b"page one");
    // One that says it has checksums, and lacks them, is none.
    let end_of = |bytes: &[u8]| bytes.windows(2).rposition(|bytes| bytes == b"\x00\x06").unwrap();
    let (cut, end) = (end_of(&of_an_older_build(&whole)), end_of(&whole));
    fs::write(&file.0, [&whole[..cut], &whole[end..]].concat()).unwrap();
    let why = Machine::builder().restore(&file.0).err().unwrap().to_string();
    assert!(why.contains("no mark that the file is complete"), "{why}");
}

#[test]
fn a_changed_byte_is_refused_by_the_name_of_what_it_is_in() {
    let file = Temporary::new("changed");
    let whole = small(&file.0);
    let find = |text: &[u8]| whole.windows(text.len()).rposition(|window| window == text).unwrap();
    for (at, what) in [(find(b"page one"), "RAM block ram"), (find(b"\x04mepc") + 2, "cpu 0")] {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x20;
        fs::write(&file.0, bytes).unwrap();
        let why = Machine::builder().restore(&file.0).err().unwrap().to_string();
        assert!(why.contains(&format!("the checksum of {what} is ")), "{why}");
    }
}

#[test]
fn a_refusal_names_the_section_the_place_and_the_field() {
    let file = Temporary::new("names");
    let whole = small(&file.0);
    let find = |text: &[u8]| whole.windows(text.len()).position(|window| window == text).unwrap();
    let refused = |at: usize, byte: u8| {
        // As another build might write it.
        let mut bytes = whole.clone();
        bytes[at] = byte;
        fs::write(&file.0, of_an_older_build(&bytes)).unwrap();
        Machine::builder().restore(&file.0).err().unwrap().to_string()
    };
    assert!(refused(0, b'X').starts_with("header, byte 0x4 of the stream: the magic number is 0x5845564d"));
    assert!(refused(7, 9).contains("the version of the file is 0x9, must be 3"));
    // The field mepc of the hart, as another build might call it.
    assert_eq!(refused(find(b"\x04mepc") + 1, b'n'), "cpu 0: the field mepc is missing");
    assert_eq!(refused(find(b"\x08ram_size") + 1, b's'), "machine 0: the field ram_size is missing");
    let end = find(b"\"complete\":true");
    assert!(refused(end + 1, b'C').contains("VM description"), "{}", refused(end + 1, b'C'));
    // The bitmap has a page that the block has not.
    let mapped = find(b"\x03ram\x00\x00\x00\x00\x00\x00\x40\x00") + 12;
    let why = refused(mapped + 28, 0x12);
    assert!(why.contains("RAM block ram: its bitmap has page 0x4, and the block 0x4"), "{why}");
    let why = refused(mapped + 27, 1);
    assert!(why.contains("the place of the pages is 0x100001, must be the first multiple of 0x100000"), "{why}");
}

/// How many pages of a file the host's cache has, from a place on.
fn cached(file: &Path, from: usize) -> usize {
    let file = fs::File::open(file).unwrap();
    let len = file.metadata().unwrap().len() as usize;
    // SAFETY: a mapping of its own, which is not touched, but asked of.
    unsafe {
        let (fd, at) = (std::os::fd::AsRawFd::as_raw_fd(&file), std::ptr::null_mut());
        let at = libc::mmap(at, len, libc::PROT_READ, libc::MAP_SHARED, fd, 0);
        assert_ne!(at, libc::MAP_FAILED);
        let mut there = vec![0u8; len.div_ceil(4096)];
        assert_eq!(libc::mincore(at, len, there.as_mut_ptr()), 0);
        libc::munmap(at, len);
        there.iter().skip(from / 4096).filter(|page| **page & 1 != 0).count()
    }
}

#[test]
fn direct_io_writes_and_reads_the_same_pages_and_leaves_the_hosts_cache_alone() {
    // Not on a file system in memory, if there is another.
    let beside = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let name = |what: &str| Temporary(beside.join(format!("notdirty-{}-direct-{what}", std::process::id())));
    let [plain, direct, live] = ["plain", "direct", "live"].map(name);
    let mut machine = builder(EngineKind::Jit).program(Program::Image(smp::ipi(1, 30))).build().unwrap();
    for page in 0..900u64 {
        machine.write(RAM + 0x20_0000 + (page + page / 200) * 4096, &(page + 1).to_le_bytes()).unwrap();
    }
    machine.snapshot(&plain.0).unwrap();
    let mut options = SnapshotOptions::default();
    (options.direct_io, options.sync) = (true, true);
    machine.set_snapshot_options(options);
    if let Err(why) = machine.snapshot(&direct.0) {
        assert!(why.to_string().contains("direct I/O"), "{why}");
        assert!(!direct.0.exists());
        println!("SKIPPED: {why}");
        return;
    }
    assert!(fs::read(&plain.0).unwrap() == fs::read(&direct.0).unwrap(), "the same file");
    // Of pages, which begin at 1 MiB.
    assert!(cached(&plain.0, 2 << 20) >= 900);
    machine.snapshot(&direct.0).unwrap();
    assert!(cached(&direct.0, 2 << 20) < 100);
    let target = Machine::builder().snapshot_options(options).restore(&direct.0).unwrap();
    assert!(cached(&direct.0, 2 << 20) < 100, "nor by a restore");
    assert!(ram(&target, RAM, SIZE) == ram(&machine, RAM, SIZE));
    // And of a machine that runs.
    let mut leave = LeaveOptions::default();
    leave.file = options;
    let (migrator, stop) = (machine.migrator(), machine.stop_handle());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let migration = migrator.start(Road::File(live.0.clone(), false), Cancel::default(), leave).unwrap();
            let ended = migration.wait(std::time::Duration::from_secs(60)).unwrap();
            stop.stop();
            ended.unwrap();
        });
        while machine.run_to_end() != MachineExit::Migrated && !machine.is_gone() {}
    });
    assert!(cached(&live.0, 2 << 20) < 100);
    let target = Machine::builder().snapshot_options(options).restore(&live.0).unwrap();
    assert!(ram(&target, RAM, SIZE) == ram(&machine, RAM, SIZE));
}

#[test]
fn the_hosts_time_goes_on_from_where_a_machine_came_whether_or_not_its_guest_looks() {
    let (first, second) = (Temporary::new("time-1"), Temporary::new("time-2"));
    let mtime = |file: &Temporary| {
        let info = snapshot_info(&file.0).unwrap();
        let clock = info.sections.iter().find(|section| section.name == "clock").unwrap();
        match clock.get("mtime") {
            Some(FieldValue::U64(mtime)) => *mtime,
            other => panic!("{other:?}"),
        }
    };
    builder(EngineKind::Jit).clock(ClockKind::Host).build().unwrap().snapshot(&first.0).unwrap();
    let mut machine = Machine::builder().restore(&first.0).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    machine.snapshot(&second.0).unwrap();
    let (before, after) = (mtime(&first), mtime(&second));
    // 10 MHz.
    assert!(after - before >= 200_000, "{before}, {after}");
}
