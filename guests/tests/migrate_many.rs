//! Guests that check themselves go from machine to machine many times, by every channel, also from a checkpoint and from a checkpoint's
//! child, and while RAM comes, goes and changes its size.
//!
//! `NOTDIRTY_MIGRATIONS=100` moves each so often, the one with checksums of its RAM with 1 GiB; `NOTDIRTY_MIGRATIONS=100,64M` with less.

#[path = "common/moves.rs"]
mod moves;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use notdirty::programs::{GuestImage, basic, smc, sums};
use notdirty::{
    Cancel, ExitBy, GuestExit, LeaveOptions, Machine, MachineBuilder, MachineExit, MigrationState, MigrationStatus,
    PlugError, PlugSpec, Program, Road, RunLimits, UnplugError, Uri,
};

const PATIENCE: Duration = Duration::from_secs(60);
const PASS: MachineExit = MachineExit::Guest(GuestExit { code: 0, by: ExitBy::Finisher });

/// By what it goes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Tcp,
    Unix,
    Multifd,
    Mapped,
}

const WAYS: [Way; 4] = [Way::Tcp, Way::Unix, Way::Multifd, Way::Mapped];

/// How often, and log2 of the bytes of RAM that each of two harts writes.
fn size() -> (usize, u32) {
    let Ok(text) = std::env::var("NOTDIRTY_MIGRATIONS") else { return (1, 20) };
    let (times, most) = text.split_once(',').unwrap_or((&text, "1G"));
    let bytes = match most.strip_suffix('M') {
        Some(mib) => mib.parse::<u64>().unwrap() << 20,
        None => most.strip_suffix('G').unwrap().parse::<u64>().unwrap() << 30,
    };
    (times.parse().unwrap(), bytes.ilog2() - 1)
}

fn temporary() -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("notdirty-many-{}-{number}", std::process::id()))
}

/// What came of it: a machine that came, or the guest ended before.
enum Gone {
    There(Box<Machine>, MigrationStatus),
    Ended(MachineExit),
}

/// Moves the machine while it runs, `after` a moment; `meanwhile` is called once it has begun. With `slice` it rests after so many
/// instructions, so that a short program is still under way when its pages are.
fn go(machine: &mut Machine, way: Way, after: Duration, slice: Option<u64>, meanwhile: impl FnOnce() + Send) -> Gone {
    let path = temporary();
    let uri: Uri = match way {
        Way::Tcp => "tcp:127.0.0.1:0".parse().unwrap(),
        _ => Uri::Unix(path.clone()),
    };
    let listener = (way != Way::Mapped).then(|| uri.listen().unwrap());
    let (migrator, over) = (machine.migrator(), AtomicBool::new(false));
    let mut options = LeaveOptions::default();
    // All of RAM is dirty again before it is there: the last round may have all of it.
    options.limits.downtime = Duration::from_secs(5);
    let (exit, status, target) = std::thread::scope(|scope| {
        let (listener, over, path) = (&listener, &over, &path);
        let target = scope.spawn(move || {
            let listener = listener.as_ref()?;
            let cancel = Cancel::default();
            let mut more = |within| Ok(listener.accept(Some(within), PATIENCE, &cancel).unwrap().0);
            let until = Instant::now() + PATIENCE;
            // Until the guest has ended: then nothing comes.
            let main = loop {
                match listener.accept(Some(Duration::from_millis(50)), PATIENCE, &cancel) {
                    Ok((main, _)) => break main,
                    Err(_) if over.load(Ordering::Acquire) => return None,
                    Err(why) => assert!(Instant::now() < until, "{why}"),
                }
            };
            Some(Machine::builder().receive_with(main, &mut more, |_| Ok(())))
        });
        let moving = scope.spawn(move || {
            std::thread::sleep(after);
            if over.load(Ordering::Acquire) {
                return None;
            }
            let cancel = Cancel::default();
            let beside = if way == Way::Multifd { 2 } else { 0 };
            let road = match listener {
                Some(listener) => Road::connect(&listener.uri(), beside, PATIENCE, &cancel).unwrap(),
                None => Road::File(path.clone(), false),
            };
            let migration = migrator.start(road, cancel, options).unwrap();
            meanwhile();
            Some(moves::to_its_end(&migration, over, way))
        });
        let exit = moves::run(machine, slice, Instant::now() + 4 * PATIENCE, || ());
        over.store(true, Ordering::Release);
        let status = moving.join().unwrap();
        (exit, status, target.join().unwrap())
    });
    let gone = match (exit, status) {
        (MachineExit::Migrated, Some(status)) => {
            assert_eq!(status.state, MigrationState::Completed, "{way:?}");
            let target = target.unwrap_or_else(|| Machine::builder().restore(&path)).unwrap();
            Gone::There(Box::new(target), status)
        }
        (exit, _) => Gone::Ended(exit),
    };
    let _ = std::fs::remove_file(&path);
    gone
}

/// Each byte of RAM, a MiB at a time, and each hart.
fn assert_same(source: &Machine, target: &Machine, way: Way) {
    let blocks = source.memory().blocks();
    let places = |machine: &Machine| {
        let places = machine.memory().blocks().into_iter();
        places.map(|block| (block.name, block.base, block.size, block.max_size)).collect::<Vec<_>>()
    };
    assert_eq!(places(source), places(target), "{way:?}");
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    for block in blocks {
        for at in (0..block.size).step_by(1 << 20) {
            let len = (block.size - at).min(1 << 20) as usize;
            source.read(block.base.get() + at, &mut a[..len]).unwrap();
            target.read(block.base.get() + at, &mut b[..len]).unwrap();
            let differ = a[..len].iter().zip(&b[..len]).position(|(a, b)| a != b);
            assert_eq!(differ.map(|n| at + n as u64), None, "{way:?}, {}", block.name);
        }
    }
    for hart in 0..source.harts() {
        assert_eq!(source.vcpu(hart).unwrap().cpu(), target.vcpu(hart).unwrap().cpu(), "{way:?}, hart {hart}");
    }
}

/// Where a machine is before it goes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum From {
    /// It runs as it was started.
    Start,
    /// It was restored to a checkpoint, which its stores are noted for.
    Checkpoint,
    /// It began at a checkpoint of another machine, and shares RAM with it.
    Child,
}

/// The machine there, after it has run for a moment.
fn begun(mut machine: Machine, from: From) -> Option<Machine> {
    let some = |machine: &mut Machine| {
        let soon = Instant::now() + Duration::from_millis(10);
        machine.run(&RunLimits { max_insns: None, deadline: Some(soon) }) == MachineExit::Deadline
    };
    if from == From::Start {
        return Some(machine);
    }
    if !some(&mut machine) {
        return None;
    }
    let checkpoint = machine.checkpoint().unwrap();
    if !some(&mut machine) {
        return None;
    }
    if from == From::Checkpoint {
        machine.restore(&checkpoint).unwrap();
        return Some(machine);
    }
    let baseline = machine.share(&checkpoint).unwrap();
    Some(Machine::builder().build_on(&baseline).unwrap())
}

#[derive(Default)]
struct Figures {
    moved: usize,
    total: Duration,
    downtime: Duration,
    rounds: u64,
}

impl Figures {
    fn add(&mut self, status: &MigrationStatus) {
        self.moved += 1;
        self.total += status.total;
        self.downtime = self.downtime.max(status.downtime);
        self.rounds += status.progress.rounds;
    }

    fn show(&self, what: &str) {
        let mean = self.total.as_secs_f64() * 1e3 / self.moved.max(1) as f64;
        let (moved, rounds, longest) = (self.moved, self.rounds, self.downtime.as_secs_f64() * 1e3);
        println!(
            "{what}: {moved} migrations, {rounds} rounds, {mean:.1} ms each, at most {longest:.1} ms of standing still"
        );
    }
}

fn builder(program: GuestImage, harts: usize, ram: u64) -> MachineBuilder {
    Machine::builder().ram_size(ram).harts(harts).program(Program::Image(program))
}

#[test]
fn a_guest_that_keeps_checksums_of_what_it_stores_finds_no_wrong_byte() {
    let (times, bits) = size();
    for from in [From::Start, From::Checkpoint, From::Child] {
        for way in WAYS {
            let mut figures = Figures::default();
            let began = builder(sums::sums(2, bits, 0), 2, (2 << bits) + (32 << 20)).build().unwrap();
            let mut machine = begun(began, from).unwrap();
            for n in 0..times {
                let after = Duration::from_millis(5 + n as u64 % 7 * 10);
                match go(&mut machine, way, after, None, || ()) {
                    Gone::There(target, status) => {
                        figures.add(&status);
                        assert_same(&machine, &target, way);
                        // From a checkpoint again, where it is now.
                        machine = begun(*target, from).unwrap();
                    }
                    Gone::Ended(exit) => panic!("{from:?} {way:?} {n}: {exit:?}"),
                }
            }
            machine.write(sums::STOP, &[1]).unwrap();
            assert_eq!(machine.run_to_end(), PASS, "{from:?} {way:?}: its own checksums");
            figures.show(&format!("{} MiB, {from:?}, {way:?}", (2 << bits) >> 20));
        }
    }
}

#[test]
fn code_that_changes_itself_changes_itself_on_the_way() {
    let times = size().0;
    for (n, way) in WAYS.into_iter().enumerate() {
        let mut figures = Figures::default();
        for (m, case) in smc::CASES.iter().filter(|case| case.alias.is_none()).enumerate() {
            for mode in [smc::Mode::Machine, smc::Mode::Supervisor].into_iter().filter(|mode| case.has(*mode)) {
                // Each case once, by one of the ways.
                if times == 1 && (m + mode as usize) % 4 != n {
                    continue;
                }
                let program = (case.build)(smc::Form { mode, ..smc::Form::PLAIN });
                let mut whole = builder(program.clone(), case.harts, 4 << 20).build().unwrap();
                assert_eq!(whole.run_to_end(), PASS, "{}", case.name);
                let slice = whole.cpu().retired / 60 + 1;
                for time in 0..times.min(1 + 100 / smc::CASES.len()) {
                    let from = [From::Start, From::Checkpoint, From::Child][(m + n + time) % 3];
                    let mut machine = builder(program.clone(), case.harts, 4 << 20).build().unwrap();
                    machine.run(&RunLimits { max_insns: Some(5 * slice), deadline: None });
                    let checkpoint = (from != From::Start).then(|| machine.checkpoint().unwrap());
                    if let Some(checkpoint) = checkpoint.filter(|_| from == From::Child) {
                        let baseline = machine.share(&checkpoint).unwrap();
                        machine = Machine::builder().build_on(&baseline).unwrap();
                    }
                    let after = Duration::from_micros(200 * (1 + time as u64));
                    let exit = match go(&mut machine, way, after, Some(slice), || ()) {
                        Gone::There(mut target, status) => {
                            figures.add(&status);
                            assert_same(&machine, &target, way);
                            target.run_to_end()
                        }
                        Gone::Ended(exit) => exit,
                    };
                    assert_eq!(exit, PASS, "{} {mode:?} {from:?} {way:?}", case.name);
                }
            }
        }
        figures.show(&format!("the self-modifying suite, {way:?}"));
    }
}

/// Our kernel with its page tables, if it was built: it checks what its processes compute.
#[test]
fn a_kernel_with_its_page_tables_goes_from_machine_to_machine() {
    let elf = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/build/quick/kernel-2h.elf");
    if !elf.is_file() {
        println!("SKIPPED: no {} (make guests)", elf.display());
        return;
    }
    let times = size().0;
    for (n, way) in WAYS.into_iter().enumerate().filter(|(n, _)| times > 1 || n % 2 == 1) {
        let mut figures = Figures::default();
        for time in 0..times {
            let from = [From::Start, From::Checkpoint, From::Child][(n + time) % 3];
            let built = Machine::builder().ram_size(32 << 20).harts(2).program(Program::File(elf.clone())).build();
            let Some(mut machine) = begun(built.unwrap(), from) else { continue };
            // As often as it takes to its end.
            let exit = loop {
                match go(&mut machine, way, Duration::from_millis(2 + time as u64 % 5 * 3), None, || ()) {
                    Gone::There(target, status) => {
                        figures.add(&status);
                        assert_same(&machine, &target, way);
                        machine = *target;
                    }
                    Gone::Ended(exit) => break exit,
                }
                if figures.moved >= (time + 1) * 2 {
                    break machine.run_to_end();
                }
            };
            assert!(matches!(exit, MachineExit::Guest(exit) if exit.code == 0), "{from:?} {way:?}: {exit:?}");
        }
        figures.show(&format!("the kernel, {way:?}"));
    }
}

#[test]
fn ram_that_comes_goes_and_grows_meanwhile_is_refused_or_arrives() {
    let times = size().0;
    for (n, way) in WAYS.into_iter().cycle().take(4 * times).enumerate() {
        let from = [From::Start, From::Checkpoint, From::Child][n % 3];
        let began = builder(sums::sums(2, 20, 0), 2, 32 << 20).max_ram(1 << 30).build().unwrap();
        let mut machine = begun(began, from).unwrap();
        let memory = machine.memory();
        let (at, size) = (0x1_0000_0000, 0x20_0000);
        let dimm = memory.plug("kept", at, size, PlugSpec::default().max_size(2 * size)).unwrap();
        let goes = memory.plug("goes", 0x2_0000_0000, size, PlugSpec::default()).unwrap();
        memory.write(at + size - 8, b"the end.").unwrap();
        let stop = AtomicBool::new(false);
        // Before, while and after: each change is whole, or refused.
        let gone = std::thread::scope(|scope| {
            let (memory, stop) = (&memory, &stop);
            let changes = scope.spawn(move || {
                let (mut done, mut refused, mut large) = (0, 0, false);
                let mut come = Some(goes);
                while !stop.load(Ordering::Acquire) {
                    std::thread::sleep(Duration::from_micros(200));
                    match come.take() {
                        Some(there) => match memory.unplug(&there, Duration::from_secs(10)) {
                            Ok(()) => done += 1,
                            Err(UnplugError::Migrating) => {
                                refused += 1;
                                come = Some(there);
                            }
                            Err(why) => panic!("{why}"),
                        },
                        None => match memory.plug("goes", 0x2_0000_0000, size, PlugSpec::default()) {
                            Ok(there) => {
                                done += 1;
                                come = Some(there);
                            }
                            Err(PlugError::Migrating) => refused += 1,
                            Err(why) => panic!("{why}"),
                        },
                    }
                    let length = if large { size } else { 2 * size };
                    match memory.resize(&dimm, length, Duration::from_secs(10)) {
                        Ok(_) => (done, large) = (done + 1, !large),
                        Err(why) if why.to_string().contains("is migrating") => refused += 1,
                        Err(why) => panic!("{why}"),
                    }
                }
                (done, refused)
            });
            let rest = || std::thread::sleep(Duration::from_millis(1));
            let gone = go(&mut machine, way, Duration::from_millis(20), None, rest);
            stop.store(true, Ordering::Release);
            let (done, refused) = changes.join().unwrap();
            println!("{way:?} {from:?}: {done} changes, {refused} refused");
            gone
        });
        match gone {
            Gone::There(mut target, _) => {
                let mut end = [0; 8];
                target.read(at + size - 8, &mut end).unwrap();
                assert_eq!(&end, b"the end.");
                target.write(sums::STOP, &[1]).unwrap();
                assert_eq!(target.run_to_end(), PASS, "{way:?}");
            }
            Gone::Ended(exit) => panic!("{way:?} {from:?}: {exit:?}"),
        }
    }
}

/// What it shares is in no page table of its own.
#[test]
fn pages_that_a_child_has_never_touched_arrive() {
    let mut first = builder(basic::spin(), 1, 32 << 20).build().unwrap();
    for page in (0x100..0x1f00).step_by(3) {
        first.write(0x8000_0000 + page * 4096 + page % 4000, &[page as u8 | 1]).unwrap();
    }
    let checkpoint = first.checkpoint().unwrap();
    let baseline = first.share(&checkpoint).unwrap();
    for way in WAYS {
        let mut machine = Machine::builder().build_on(&baseline).unwrap();
        let Gone::There(target, status) = go(&mut machine, way, Duration::from_millis(1), None, || ()) else {
            panic!()
        };
        assert!(status.progress.pages >= (0x1f00 - 0x100) / 3, "{way:?}: {status:?}");
        assert_same(&machine, &target, way);
    }
    let (path, mut machine) = (temporary(), Machine::builder().build_on(&baseline).unwrap());
    machine.snapshot(&path).unwrap();
    let restored = Machine::builder().restore(&path);
    let _ = std::fs::remove_file(&path);
    assert_same(&machine, &restored.unwrap(), Way::Mapped);
}
