//! Guests that check themselves run at their target before their pages are there, while the channel is cut and recovered.
//!
//! `NOTDIRTY_POSTCOPIES=100` moves each so often, the one with checksums of its RAM with 1 GiB; `NOTDIRTY_POSTCOPIES=100,64M` with less.

#[path = "common/moves.rs"]
mod moves;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use notdirty::programs::targets::{CRASHES, INPUT, Planted, target};
use notdirty::programs::{GuestImage, smc, sums};
use notdirty::{
    Arrival, ArrivalState, ArrivalStatus, Beside, Cancel, Channel, Checkpoint, ExitBy, FaultKind, GuestExit,
    LeaveOptions, Listener, Machine, MachineBuilder, MachineExit, Migration, MigrationState, MigrationStatus, Postcopy,
    Program, Road, RunLimits, Uri,
};

const PATIENCE: Duration = Duration::from_secs(60);
const PASS: MachineExit = MachineExit::Guest(GuestExit { code: 0, by: ExitBy::Finisher });

/// How often, and log2 of the bytes of RAM that each of two harts writes.
fn size() -> (usize, u32) {
    let Ok(text) = std::env::var("NOTDIRTY_POSTCOPIES") else { return (3, 20) };
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
    std::env::temp_dir().join(format!("notdirty-postcopy-{}-{number}", std::process::id()))
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }
}

/// How one goes.
#[derive(Debug, Clone, Copy, Default)]
struct How {
    tcp: bool,
    /// Pages that are waited for come by a channel of their own, which is cut, too.
    preempt: bool,
    /// Rounds go by so many channels more.
    multifd: usize,
    rounds: u64,
    /// The source gives its memory back as it goes.
    release: bool,
    /// The channel is cut so long after the machine runs there, so often.
    cuts: u32,
    cut_after: Duration,
    /// Bytes a second of the sweep.
    bandwidth: Option<u64>,
    /// How missing pages are noticed.
    faults: FaultKind,
    /// Bytes of a page of the host, in place of its own.
    page: Option<u64>,
    /// The source rests after so many instructions, so that a short program is still under way.
    slice: Option<u64>,
}

impl How {
    fn target(&self) -> MachineBuilder {
        self.page.into_iter().fold(Machine::builder().postcopy_faults(self.faults), MachineBuilder::ram_page)
    }

    fn beside(&self) -> Beside {
        Beside { multifd: self.multifd, urgent: self.preempt }
    }
}

enum Gone {
    There(Box<Machine>, Box<(MigrationStatus, ArrivalStatus)>, MachineExit),
    Ended(MachineExit),
}

/// Both sides go on by another channel.
fn recover(listener: &Arc<Listener>, migration: &Migration, arrival: &Arrival, preempt: bool) -> Option<Channel> {
    let until = Instant::now() + PATIENCE;
    while migration.status().state != MigrationState::PostcopyPaused
        || arrival.wait_while(ArrivalState::Running, Duration::from_millis(1)) != ArrivalState::Paused
    {
        let status = migration.status();
        if status.state == MigrationState::Completed {
            return None;
        }
        assert!(Instant::now() < until, "{status:?}, {:?}", arrival.status());
    }
    // The second channel of a recovery that broke before the first one said of it was connected, and is no channel of this one.
    while listener.accept(Some(Duration::from_millis(1)), PATIENCE, &Cancel::default()).is_ok() {}
    let (road, from) = std::thread::scope(|scope| {
        let road = scope
            .spawn(|| Road::connect(&listener.uri(), Beside::urgent(preempt), PATIENCE, &Cancel::default()).unwrap());
        let from = listener.accept(Some(PATIENCE), PATIENCE, &Cancel::default()).unwrap().0;
        (road.join().unwrap(), from)
    });
    let urgent = beside(&road);
    let accepts = listener.clone();
    arrival.recover_with(from, Box::new(move |within| accept(&accepts, within))).unwrap();
    migration.recover(road).unwrap();
    urgent
}

/// The channel for urgent pages, to cut it.
fn beside(road: &Road) -> Option<Channel> {
    let Road::Channels(_, _, urgent) = road else { panic!() };
    urgent.as_ref().map(|urgent| urgent.channel().try_clone().unwrap())
}

fn accept(listener: &Listener, within: Duration) -> io::Result<Channel> {
    let (channel, _) = listener.accept(Some(within), PATIENCE, &Cancel::default()).map_err(io::Error::other)?;
    Ok(channel)
}

/// Moves the machine while it runs, `after` a moment, and runs it there until `until` says that it is enough.
fn go(machine: &mut Machine, how: How, after: Duration, limits: impl Fn(&mut Machine) -> RunLimits + Send) -> Gone {
    let uri: Uri = if how.tcp { "tcp:127.0.0.1:0".parse().unwrap() } else { Uri::Unix(temporary()) };
    let listener = Arc::new(uri.listen().unwrap());
    let (migrator, over) = (machine.migrator(), AtomicBool::new(false));
    let mut options = LeaveOptions::default();
    let mut postcopy = Postcopy::after(how.rounds);
    (postcopy.bandwidth, postcopy.release) = (how.bandwidth, how.release);
    options.postcopy = Some(postcopy);
    let here = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let (listener, over, here) = (&listener, &over, &here);
        let (tell, told) = std::sync::mpsc::channel::<(Migration, Option<Channel>)>();
        let target = scope.spawn(move || {
            let cancel = Cancel::default();
            let until = Instant::now() + PATIENCE;
            let main = loop {
                match listener.accept(Some(Duration::from_millis(50)), PATIENCE, &cancel) {
                    Ok((main, _)) => break main,
                    Err(_) if over.load(Ordering::Acquire) => return None,
                    Err(why) => assert!(Instant::now() < until, "{why}"),
                }
            };
            let mut more = |within| accept(listener, within);
            let mut machine = match how.target().receive_with(main, &mut more, |_| Ok(())) {
                Ok(machine) => machine,
                Err(_) if over.load(Ordering::Acquire) => return None,
                Err(why) => panic!("{why}"),
            };
            // The source stands still for good.
            here.store(false, Ordering::Release);
            let arrival = machine.arrival().unwrap();
            let (migration, mut urgent) = told.recv().unwrap();
            let exit = std::thread::scope(|scope| {
                let own = &arrival;
                let cuts = scope.spawn(move || {
                    let mut random = Random(how.cut_after.as_nanos() as u64 | 1);
                    for _ in 0..how.cuts {
                        std::thread::sleep(how.cut_after);
                        match urgent.take().filter(|_| random.below(2) == 0) {
                            Some(urgent) => urgent.shut(),
                            None => own.pause(),
                        }
                        if own.wait_while(ArrivalState::Running, PATIENCE) != ArrivalState::Paused {
                            break;
                        }
                        urgent = recover(listener, &migration, own, how.preempt);
                        // A channel may also be cut while it is being recovered.
                        while random.below(2) == 0
                            && own.wait_while(ArrivalState::Paused, PATIENCE) != ArrivalState::Running
                        {
                            std::thread::yield_now();
                        }
                    }
                    // Whatever the cuts left: all comes.
                    let until = Instant::now() + PATIENCE;
                    while own.wait_while(ArrivalState::Running, Duration::from_millis(20)) != ArrivalState::Complete {
                        let status = own.status();
                        assert!(status.state != ArrivalState::Failed && Instant::now() < until, "{status:?}");
                        if status.state == ArrivalState::Paused {
                            recover(listener, &migration, own, how.preempt);
                        }
                    }
                });
                let limits = limits(&mut machine);
                let exit = machine.run(&limits);
                cuts.join().unwrap();
                exit
            });
            Some((machine, arrival.status(), exit))
        });
        let moving = scope.spawn(move || {
            std::thread::sleep(after);
            if over.load(Ordering::Acquire) {
                return None;
            }
            let cancel = Cancel::default();
            let road = Road::connect(&listener.uri(), how.beside(), PATIENCE, &cancel).unwrap();
            let urgent = beside(&road);
            let migration = migrator.start(road, cancel, options).unwrap();
            let _ = tell.send((migration.clone(), urgent));
            Some(moves::to_its_end(&migration, over, how))
        });
        let exit = moves::run(machine, how.slice, Instant::now() + 2 * PATIENCE, || {
            assert!(here.load(Ordering::Acquire), "it ran here and there");
        });
        over.store(true, Ordering::Release);
        let status = moving.join().unwrap();
        match (exit, status, target.join().unwrap()) {
            (MachineExit::Migrated, Some(status), Some((there, arrival, exit))) => {
                assert_eq!(status.state, MigrationState::Completed);
                assert_eq!(arrival.state, ArrivalState::Complete);
                assert_eq!(arrival.left, 0);
                Gone::There(Box::new(there), Box::new((status, arrival)), exit)
            }
            (exit, ..) => {
                assert!(here.load(Ordering::Acquire), "{exit:?}, and it ran there");
                Gone::Ended(exit)
            }
        }
    })
}

fn builder(program: GuestImage, harts: usize, ram: u64) -> MachineBuilder {
    Machine::builder().ram_size(ram).harts(harts).program(Program::Image(program))
}

/// So long, from now.
fn soon(time: Duration) -> RunLimits {
    RunLimits { max_insns: None, deadline: Some(Instant::now() + time) }
}

#[test]
fn a_guest_that_keeps_checksums_of_what_it_stores_finds_no_wrong_byte() {
    keeps_checksums(FaultKind::Software, None);
}

#[test]
fn the_same_guest_finds_no_wrong_byte_where_the_hosts_mmu_notices_missing_pages() {
    match notdirty_core::UserFaults::open() {
        Ok(_) => keeps_checksums(FaultKind::Userfaultfd, None),
        Err(why) => println!("SKIPPED: {why}"),
    }
}

#[test]
fn the_same_guest_finds_no_wrong_byte_where_a_page_of_the_host_is_16_of_a_record() {
    keeps_checksums(FaultKind::Software, Some(64 << 10));
    if notdirty_core::UserFaults::open().is_ok() {
        keeps_checksums(FaultKind::Userfaultfd, Some(64 << 10));
    }
}

fn keeps_checksums(faults: FaultKind, page: Option<u64>) {
    let (times, bits) = size();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let own = builder(sums::sums(2, bits, 0), 2, (2 << bits) + (32 << 20));
    let mut machine = page.into_iter().fold(own, MachineBuilder::ram_page).build().unwrap();
    // All of its RAM has something in it.
    assert_eq!(machine.run(&soon(Duration::from_millis(100))), MachineExit::Deadline);
    let (mut waits, mut pauses, mut missing) = (0, 0, 0);
    let mut standing = Duration::ZERO;
    for n in 0..times {
        let how = How {
            tcp: n % 2 == 1,
            preempt: n % 4 != 0,
            rounds: n as u64 % 3 % 2,
            // With rounds and without.
            multifd: [0, 2, 0, 0, 1][n % 5],
            release: n % 2 == 0,
            cuts: 1 + n as u32 % 2,
            cut_after: Duration::from_micros(random.below(20_000)),
            // So that the sweep is still under way when it is cut.
            bandwidth: (n % 3 != 2).then(|| (16 << bits) >> random.below(2)),
            faults,
            page,
            ..How::default()
        };
        let after = Duration::from_millis(5 + random.below(30));
        match go(&mut machine, how, after, |_| soon(Duration::from_millis(60))) {
            Gone::There(there, went, exit) => {
                let (status, arrival) = *went;
                assert_eq!(exit, MachineExit::Deadline, "{n} {how:?}");
                assert_eq!(status.released != 0, how.release, "{n} {how:?}");
                assert_eq!(arrival.faults, faults);
                waits += arrival.requests;
                pauses += arrival.pauses;
                missing += arrival.missing;
                standing = standing.max(status.downtime);
                machine = *there;
            }
            Gone::Ended(exit) => panic!("{n} {how:?}: {exit:?}"),
        }
    }
    machine.write(sums::STOP, &[1]).unwrap();
    assert_eq!(machine.run_to_end(), PASS, "its own checksums");
    assert!(waits > 0 && missing > 0 && pauses > 0, "{waits} waits, {missing} missing, {pauses} pauses");
    println!(
        "{} MiB by {faults}: {times} moves, {missing} pages missing, {waits} waited for, {pauses} pauses, at most {:.1} ms of standing still",
        (2u64 << bits) >> 20,
        standing.as_secs_f64() * 1e3
    );
}

#[test]
fn code_that_changes_itself_changes_itself_on_the_way() {
    let times = size().0;
    let (mut moved, mut faults) = (0, 0);
    for (m, case) in smc::CASES.iter().filter(|case| case.alias.is_none()).enumerate() {
        for mode in [smc::Mode::Machine, smc::Mode::Supervisor].into_iter().filter(|mode| case.has(*mode)) {
            let program = (case.build)(smc::Form { mode, ..smc::Form::PLAIN });
            let mut whole = builder(program.clone(), case.harts, 4 << 20).build().unwrap();
            assert_eq!(whole.run_to_end(), PASS, "{}", case.name);
            let slice = whole.cpu().retired / 60 + 1;
            for time in 0..times.div_ceil(3).min(1 + 100 / smc::CASES.len()) {
                let mut machine = builder(program.clone(), case.harts, 4 << 20).build().unwrap();
                machine.run(&RunLimits { max_insns: Some(5 * slice), deadline: None });
                let how = How {
                    preempt: m % 2 == 0,
                    rounds: (m + time) as u64 % 2,
                    cuts: u32::from(m % 4 == 0),
                    bandwidth: (m % 3 != 0).then_some(4 << 20),
                    slice: Some(slice),
                    ..How::default()
                };
                let after = Duration::from_micros(200 * (1 + time as u64));
                let exit = match go(&mut machine, how, after, |_| soon(PATIENCE)) {
                    Gone::There(_, went, exit) => {
                        moved += 1;
                        faults += went.1.requests;
                        exit
                    }
                    Gone::Ended(exit) => exit,
                };
                assert_eq!(exit, PASS, "{} {mode:?} {how:?}", case.name);
            }
        }
    }
    println!("the self-modifying suite: {moved} moves, {faults} pages waited for");
    assert!(moved > 0 && faults > 0, "{moved} moves, {faults} pages waited for");
}

/// How the run of an input ended, and after how many instructions.
type End = (MachineExit, u64);

#[test]
fn a_fuzz_loop_goes_on_where_its_machine_went_and_finds_the_same_crashes() {
    let put = |machine: &mut Machine, input: &[u8]| {
        machine.write(INPUT, &[&(input.len() as u64).to_le_bytes()[..], input].concat()).unwrap();
    };
    let (mut moved, mut faults) = (0, 0);
    for (n, planted) in Planted::ALL.into_iter().enumerate() {
        let target = target(planted);
        let inputs = [planted.witness(), b"", b"\x10no harm", &[0, 3, 1, 7, 1, 1]];
        let watch = |machine: &mut Machine| {
            machine.set_exits(&[target.done]);
            machine.set_trap_exits(CRASHES);
        };
        // To where the input is read, from the start; a checkpoint there.
        let begin = |machine: &mut Machine| {
            machine.start_at(machine.ram_range().start).unwrap();
            machine.set_exits(&[target.ready]);
            assert_eq!(machine.run(&soon(PATIENCE)), MachineExit::Pc { hart: 0, pc: target.ready });
            watch(machine);
            machine.checkpoint().unwrap()
        };
        let ends = |machine: &mut Machine, start: &Checkpoint| -> Vec<End> {
            let each = inputs.iter().map(|input| {
                let before = machine.cpu().retired;
                put(machine, input);
                let exit = machine.run(&soon(PATIENCE));
                let end = (exit, machine.cpu().retired - before);
                machine.restore(start).unwrap();
                end
            });
            each.collect()
        };
        let mut machine = builder(target.image.clone(), 1, 1 << 20).build().unwrap();
        let mut start = begin(&mut machine);
        let wanted = ends(&mut machine, &start);
        assert!(matches!(wanted[0].0, MachineExit::Trap { .. }), "{planted:?}: {:?}", wanted[0]);
        for (m, (input, (wanted_exit, insns))) in inputs.iter().zip(&wanted).enumerate() {
            let before = machine.cpu().retired;
            put(&mut machine, input);
            let how =
                How { preempt: m % 2 == 0, cuts: u32::from(n % 2 == 0), slice: Some(insns / 40 + 1), ..How::default() };
            let gone = go(&mut machine, how, Duration::from_micros(200), |there| {
                watch(there);
                // A run that begins at an exit passes it: the input's had ended as the machine left.
                let ended = (there.cpu().pc == target.done).then_some(there.cpu().retired);
                RunLimits { max_insns: ended, ..soon(PATIENCE) }
            });
            match gone {
                Gone::There(there, went, exit) => {
                    let exit = match exit {
                        MachineExit::InsnLimit => MachineExit::Pc { hart: 0, pc: there.cpu().pc },
                        exit => exit,
                    };
                    let end = (exit, there.cpu().retired - before);
                    assert_eq!(end, (*wanted_exit, *insns), "{planted:?}, {input:x?}: {how:?}");
                    moved += 1;
                    faults += went.1.requests;
                    machine = *there;
                    start = begin(&mut machine);
                }
                Gone::Ended(exit) => {
                    assert_eq!(exit, *wanted_exit, "{planted:?}, {input:x?}: {how:?}");
                    machine.restore(&start).unwrap();
                }
            }
            assert_eq!(ends(&mut machine, &start), wanted, "{planted:?}, after {input:x?}");
        }
    }
    println!("five fuzz loops: {moved} moves, {faults} pages waited for");
    assert!(moved > 0 && faults > 0, "{moved} moves, {faults} pages waited for");
}

/// What is not here is not saved, and does not go on to elsewhere; what waits for it can be stopped.
#[test]
fn a_machine_whose_pages_are_yet_to_come_is_not_saved_and_does_not_leave() {
    let mut machine = builder(sums::sums(2, 21, 0), 2, 32 << 20).build().unwrap();
    assert_eq!(machine.run(&soon(Duration::from_millis(50))), MachineExit::Deadline);
    let mut postcopy = Postcopy::after(0);
    // A page a second: what is asked for comes, and nothing else.
    postcopy.bandwidth = Some(4096);
    let mut options = LeaveOptions::default();
    options.postcopy = Some(postcopy);
    let listener = Uri::Unix(temporary()).listen().unwrap();
    let (migrator, cancel) = (machine.migrator(), Cancel::default());
    std::thread::scope(|scope| {
        let source = scope.spawn(|| machine.run(&soon(2 * PATIENCE)));
        let target = scope.spawn(|| {
            let (main, _) = listener.accept(Some(PATIENCE), PATIENCE, &cancel).unwrap();
            Machine::builder().receive(main).unwrap()
        });
        let road = Road::connect(&listener.uri(), 0, PATIENCE, &cancel).unwrap();
        let migration = migrator.start(road, cancel.clone(), options).unwrap();
        let mut there = target.join().unwrap();
        let arrival = there.arrival().unwrap();
        let why = there.snapshot(temporary()).unwrap_err().to_string();
        assert!(why.contains("are yet to come"), "{why}");
        assert!(there.checkpoint().is_err());
        // Without a channel it waits; a deadline and a stop end that all the same.
        arrival.pause();
        assert_eq!(arrival.wait_while(ArrivalState::Running, PATIENCE), ArrivalState::Paused);
        let (onwards, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let channel = notdirty::Channel::new(onwards.into(), PATIENCE, Cancel::default()).unwrap();
        let again = there.migrator().start(channel, Cancel::default(), LeaveOptions::default()).unwrap();
        assert_eq!(there.run(&soon(Duration::from_millis(100))), MachineExit::Deadline);
        let why = again.wait(PATIENCE).unwrap().unwrap_err().to_string();
        assert!(why.contains("are yet to come"), "{why}");
        let status = arrival.status();
        assert!(status.requests > 0 && status.left > 0 && status.blocktime.waits > 0, "{status:?}");
        let stop = there.stop_handle();
        let stopped = scope.spawn(move || (there.run(&soon(PATIENCE)), there));
        std::thread::sleep(Duration::from_millis(20));
        stop.stop();
        let (exit, there) = stopped.join().unwrap();
        assert_eq!(exit, MachineExit::Stopped);
        // It is given up on both sides.
        drop(there);
        assert_eq!(arrival.wait_while(ArrivalState::Paused, PATIENCE), ArrivalState::Failed);
        let until = Instant::now() + PATIENCE;
        while migration.status().state != MigrationState::PostcopyPaused {
            assert!(Instant::now() < until, "{:?}", migration.status());
            std::thread::sleep(Duration::from_millis(1));
        }
        // Too late for that.
        migration.cancel();
        migration.abandon();
        assert!(migration.wait(PATIENCE).unwrap().is_err());
        assert_eq!(migration.status().state, MigrationState::Uncertain);
        assert_eq!(source.join().unwrap(), MachineExit::Migrated);
    });
    machine.take_back().unwrap();
    machine.write(sums::STOP, &[1]).unwrap();
    assert_eq!(machine.run_to_end(), PASS, "taken back");
}

/// Our kernel with its page tables, if it was built: it checks what its processes compute.
#[test]
fn a_kernel_with_its_page_tables_goes_from_machine_to_machine() {
    let elf = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/build/quick/kernel-2h.elf");
    if !elf.is_file() {
        println!("SKIPPED: no {} (make guests)", elf.display());
        return;
    }
    let (mut moved, mut faults) = (0, 0);
    for time in 0..size().0.max(2) as u64 - 1 {
        let built = Machine::builder().ram_size(32 << 20).harts(2).program(Program::File(elf.clone())).build();
        let mut machine = built.unwrap();
        let exit = loop {
            let how = How {
                tcp: time % 2 == 0,
                rounds: time % 3 % 2,
                cuts: 1,
                cut_after: Duration::from_millis(time % 4),
                bandwidth: Some(16 << 20),
                ..How::default()
            };
            match go(&mut machine, how, Duration::from_millis(2 + time % 5 * 3), |_| soon(Duration::from_millis(20))) {
                Gone::There(there, went, exit) => {
                    moved += 1;
                    faults += went.1.requests;
                    machine = *there;
                    if exit != MachineExit::Deadline {
                        break exit;
                    }
                }
                Gone::Ended(exit) => break exit,
            }
            if moved >= (time + 1) * 2 {
                break machine.run_to_end();
            }
        };
        assert!(matches!(exit, MachineExit::Guest(exit) if exit.code == 0), "{time}: {exit:?}");
    }
    println!("the kernel: {moved} moves, {faults} pages waited for");
    assert!(moved > 0 && faults > 0, "{moved} moves, {faults} pages waited for");
}
