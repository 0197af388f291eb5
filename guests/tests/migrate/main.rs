//! A machine goes to another one while it runs: every byte of RAM and every register arrives, by every channel, whatever is written
//! meanwhile. `ends.rs`: whatever happens to the channel, one side can run.

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../common/writers.rs"]
mod writers;

mod ends;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use notdirty::{
    Cancel, Channel, LeaveOptions, Listener, Machine, MachineExit, Memory, Migration, MigrationError, MigrationState,
    MigrationStatus, PlugError, PlugSpec, Road, RunLimits, Uri,
};
use writers::{RAM, start, with_dma};

const PATIENCE: Duration = Duration::from_secs(20);
const SIZE: u64 = 24 << 20;
/// Sixteen MiB are written.
const MASK: u64 = 0xff_ffff;

fn source(harts: usize, seed: u64) -> Machine {
    let mut machine = Machine::builder().ram_size(SIZE).harts(harts).max_ram(1 << 30).build().unwrap();
    start(&mut machine, seed);
    with_dma(&mut machine);
    for hart in 0..harts {
        machine.vcpu_mut(hart).unwrap().cpu_mut().x[18] = MASK;
    }
    machine
}

fn attach(machine: &mut Machine) -> Result<(), MigrationError> {
    with_dma(machine);
    Ok(())
}

fn channel(socket: UnixStream, cancel: &Cancel) -> Channel {
    Channel::new(socket.into(), PATIENCE, cancel.clone()).unwrap()
}

fn all_ram(machine: &Machine) -> Vec<u8> {
    let mut bytes = Vec::new();
    for block in machine.memory().blocks() {
        let start = bytes.len();
        bytes.resize(start + block.size as usize, 0);
        machine.read(block.base.get(), &mut bytes[start..]).unwrap();
    }
    bytes
}

/// Where they differ, if they do.
fn assert_same(source: &Machine, target: &Machine, what: &str) {
    let (a, b) = (all_ram(source), all_ram(target));
    let differ = a.iter().zip(&b).position(|(a, b)| a != b);
    assert_eq!((a.len(), differ), (b.len(), None), "{what}");
    for hart in 0..source.harts() {
        assert_eq!(source.vcpu(hart).unwrap().cpu(), target.vcpu(hart).unwrap().cpu(), "{what}, hart {hart}");
    }
}

/// Waits until the guest has written here and there.
fn under_way(memory: &Memory, size: u64) {
    let until = Instant::now() + Duration::from_secs(20);
    let written = |at: u64| {
        let mut page = [0; 4096];
        memory.read(RAM + at, &mut page).unwrap();
        page != [0; 4096]
    };
    let part = (size - 0x2_0000) / 128 / 4096 * 4096;
    let places = (0..64).map(|n| 0x2_0000 + n * part.max(4096)).filter(|at| at + 4096 <= size);
    let places: Vec<_> = places.collect();
    while places.iter().filter(|at| written(**at)).count() < places.len() / 3 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs the source on this thread until it has left, while `begin` starts the migration after a moment.
fn leave(machine: &mut Machine, begin: impl FnOnce() -> Migration + Send) -> (MachineExit, MigrationStatus) {
    let over = AtomicBool::new(false);
    let (memory, size) = (machine.memory(), machine.ram_range().end - machine.ram_range().start);
    std::thread::scope(|scope| {
        let stop = machine.stop_handle();
        let over = &over;
        let waiting = scope.spawn(move || {
            under_way(&memory, size);
            let migration = begin();
            let ended = migration.wait(Duration::from_secs(60)).expect("it ends in time");
            let state = migration.status().state;
            // The run ends by itself if the machine has left.
            std::thread::sleep(Duration::from_millis(20));
            if !over.load(Ordering::Relaxed) {
                stop.stop();
            }
            if let Err(why) = &ended {
                println!("{why}");
            }
            assert_eq!(ended.is_ok(), state == MigrationState::Completed, "{ended:?}");
            migration.status()
        });
        let exit =
            machine.run(&RunLimits { max_insns: None, deadline: Some(Instant::now() + Duration::from_secs(90)) });
        over.store(true, Ordering::Relaxed);
        (exit, waiting.join().unwrap())
    })
}

/// Another thread writes to RAM all the time; what it was told is written has to arrive.
struct Writer<'a>(&'a AtomicBool);

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// By what a machine goes.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// A socket, and so many channels beside it.
    Socket(&'static str, usize),
    /// A stream in a file.
    File(&'static str),
    /// A file in which each page has its place.
    Mapped,
}

/// A machine of two harts goes that way, while another thread writes to its RAM.
fn go(way: Way, seed: u64, stays: bool) -> (Machine, MigrationStatus, Machine) {
    let file = std::env::temp_dir().join(format!("notdirty-{}-{seed}", std::process::id()));
    let stop = AtomicBool::new(false);
    let mut machine = source(2, seed);
    let migrator = machine.migrator();
    let memory = machine.memory();
    memory.plug("dimm", 0x1_0000_0000, 0x10_0000, PlugSpec::default()).unwrap();
    let place = |form: &str| form.replace("FILE", &file.display().to_string()).parse::<Uri>().unwrap();
    let listener = match way {
        Way::Socket(form, _) => Some(place(form).listen().unwrap()),
        _ => None,
    };
    let listen = |listener: &Listener, cancel: &Cancel| {
        let mut more = |within| Ok(listener.accept(Some(within), PATIENCE, cancel).unwrap().0);
        let main = more(PATIENCE).unwrap();
        Machine::builder().receive_with(main, &mut more, attach)
    };
    let (status, target) = std::thread::scope(|scope| {
        let _writer = Writer(&stop);
        scope.spawn(|| {
            let mut value = 0u64;
            while !stop.load(Ordering::Relaxed) {
                value += 1;
                // Refused once the machine has left.
                let _ = memory.write(0x1_0000_0000 + value * 4099 % 0xf_0000, &value.to_le_bytes());
            }
        });
        let target = listener.as_ref().map(|listener| scope.spawn(|| listen(listener, &Cancel::default())));
        let (exit, status) = leave(&mut machine, || {
            let cancel = Cancel::default();
            let road = match way {
                Way::Mapped => Road::File(file.clone(), stays),
                Way::File(form) => Road::connect(&place(form), 0, PATIENCE, &cancel).unwrap(),
                Way::Socket(_, beside) => {
                    let uri = listener.as_ref().unwrap().uri();
                    Road::connect(&uri, beside, PATIENCE, &cancel).unwrap()
                }
            };
            let migration = migrator.start(road, cancel, LeaveOptions::default()).unwrap();
            let plugged = memory.plug("no", 0x2_0000_0000, 0x1000, PlugSpec::default());
            assert!(matches!(plugged, Err(PlugError::Migrating)));
            migration.wait(Duration::from_secs(60)).unwrap().unwrap();
            migration
        });
        let wanted = if stays { MachineExit::Stopped } else { MachineExit::Migrated };
        assert_eq!((exit, status.state), (wanted, MigrationState::Completed), "{way:?}");
        (status, target.map(|target| target.join().unwrap()))
    });
    let target = target.unwrap_or_else(|| match way {
        Way::Mapped => Machine::builder().restore_with(&file, attach),
        _ => {
            let uri: Uri = place("file:FILE");
            listen(&uri.listen().unwrap(), &Cancel::default())
        }
    });
    let _ = std::fs::remove_file(&file);
    (machine, status, target.unwrap_or_else(|why| panic!("{way:?}: {why}")))
}

#[test]
fn two_harts_that_store_and_patch_and_devices_that_write_move_without_one_wrong_byte() {
    let ways = [
        Way::Socket("tcp:127.0.0.1:0", 0),
        Way::Socket("unix:FILE", 0),
        Way::Socket("unix:FILE", 2),
        Way::Socket("tcp:127.0.0.1:0", 5),
        Way::File("file:FILE"),
        Way::File("exec:cat > FILE"),
        Way::Mapped,
    ];
    let times = std::env::var("NOTDIRTY_MOVES").ok().and_then(|times| times.parse().ok()).unwrap_or(1);
    for (n, way) in (0..times).flat_map(|_| ways).enumerate() {
        let (mut machine, _, mut target) = go(way, 5 + n as u64, false);
        assert_same(&machine, &target, &format!("{way:?}"));
        assert_eq!(machine.run_to_end(), MachineExit::Migrated, "it does not run here any more");
        assert!(machine.memory().write(RAM, &[0]).is_err(), "and nothing writes to it");
        let before = target.stats().retired;
        let furthest = [0, 1].map(|hart| target.vcpu(hart).unwrap().cpu().retired).into_iter().max().unwrap();
        let some = furthest + 100_000;
        assert_eq!(target.run(&RunLimits { max_insns: Some(some), deadline: None }), MachineExit::InsnLimit);
        assert!(target.stats().retired > before, "it runs there");
        // And from there it goes on, to a third one.
        let third = hop(&mut target).1.unwrap();
        assert_same(&target, &third, "the second time");
    }
}

#[test]
fn rings_find_the_pages_as_bits_do() {
    let mut machine = source(2, 21);
    let migrator = machine.migrator();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut options = LeaveOptions::default();
    options.rings = Some(1024);
    // Slow enough for rings to be full.
    options.limits.bandwidth = Some(128 << 20);
    // What the guest dirties in a round may go then, or harts are made slower: on no host does it take for ever.
    options.limits.downtime = Duration::from_millis(150);
    options.auto_converge = true;
    let (status, target) = std::thread::scope(|scope| {
        let target = scope.spawn(|| {
            let mut none = |_| Err(std::io::ErrorKind::NotConnected.into());
            Machine::builder().receive_with(channel(theirs, &Cancel::default()), &mut none, attach)
        });
        let (_, status) = leave(&mut machine, || {
            let cancel = Cancel::default();
            migrator.start(channel(ours, &cancel), cancel, options).unwrap()
        });
        (status, target.join().unwrap())
    });
    assert_eq!(status.state, MigrationState::Completed, "{status:?}, {:?}", target.err());
    assert_same(&machine, &target.unwrap(), "by rings");
}

#[test]
fn a_snapshot_of_a_machine_that_runs_on_is_of_the_moment_at_which_it_stood_still() {
    let (mut machine, status, mut target) = go(Way::Mapped, 77, true);
    assert!(!machine.is_gone() && status.downtime < status.total);
    // Their counts of instructions say how far each is: the snapshot is not ahead, and runs.
    let retired = |machine: &Machine| [0, 1].map(|hart| machine.vcpu(hart).unwrap().cpu().retired);
    assert!(retired(&machine).iter().zip(retired(&target)).all(|(now, then)| *now >= then));
    for machine in [&mut machine, &mut target] {
        let soon = Instant::now() + Duration::from_millis(20);
        assert_eq!(machine.run(&RunLimits { max_insns: None, deadline: Some(soon) }), MachineExit::Deadline);
    }
}

#[test]
fn a_guest_that_dirties_more_than_goes_out_is_made_slower_until_it_fits() {
    let mut machine = source(2, 11);
    let migrator = machine.migrator();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut options = LeaveOptions::default();
    options.auto_converge = true;
    // 16 MiB are dirtied in no time.
    options.limits.bandwidth = Some(64 << 20);
    options.limits.downtime = Duration::from_millis(60);
    options.deltas = Some(4 << 20);
    let (status, target) = std::thread::scope(|scope| {
        let target = scope.spawn(|| {
            let mut none = |_| Err(std::io::ErrorKind::NotConnected.into());
            Machine::builder().receive_with(channel(theirs, &Cancel::default()), &mut none, attach)
        });
        let (_, status) = leave(&mut machine, || {
            let cancel = Cancel::default();
            migrator.start(channel(ours, &cancel), cancel, options).unwrap()
        });
        (status, target.join().unwrap())
    });
    assert_eq!(status.state, MigrationState::Completed, "{status:?}, {:?}", target.err());
    assert!(status.progress.deltas > 0, "{status:?}");
    assert!(status.progress.rounds > 2 && status.downtime < Duration::from_secs(5), "{status:?}");
    assert_eq!(status.dirtied.len() as u64, status.progress.rounds + 1, "{status:?}");
    assert_same(&machine, &target.unwrap(), "after a throttle");
}

#[test]
fn a_hart_that_dirties_more_than_its_limit_is_slowed_and_one_that_does_not_is_not() {
    let mut machine = source(2, 31);
    // Two pages, of its own code among them.
    machine.vcpu_mut(1).unwrap().cpu_mut().x[18] = 0xfff;
    let migrator = machine.migrator();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut options = LeaveOptions::default();
    options.dirty_limit = Some(1 << 20);
    // 16 MiB are dirtied in no time, and take half a second to go; with 1 MiB a second what is left fits.
    options.limits.bandwidth = Some(32 << 20);
    options.limits.downtime = Duration::from_millis(30);
    let mut both = LeaveOptions::default();
    (both.auto_converge, both.dirty_limit) = (true, Some(1));
    let refused = migrator.start(Road::File("/nonexistent".into(), true), Cancel::default(), both);
    assert!(matches!(refused, Err(MigrationError::Options(_))));
    let target = std::thread::spawn(move || {
        let mut none = |_| Err(std::io::ErrorKind::NotConnected.into());
        Machine::builder().receive_with(channel(theirs, &Cancel::default()), &mut none, attach)
    });
    let retired = |machine: &Machine| [0, 1].map(|hart| machine.vcpu(hart).unwrap().cpu().retired);
    let run = |machine: &mut Machine, until| machine.run(&RunLimits { max_insns: None, deadline: Some(until) });
    // It has dirtied what it can before.
    run(&mut machine, Instant::now() + Duration::from_millis(200));
    let cancel = Cancel::default();
    let migration = migrator.start(channel(ours, &cancel), cancel, options).unwrap();
    let (mut free, end) = (None, Instant::now() + Duration::from_secs(60));
    while run(&mut machine, Instant::now() + Duration::from_millis(5)) == MachineExit::Deadline {
        if free.is_none() && migration.status().throttled {
            free = Some(retired(&machine));
        }
        assert!(Instant::now() < end, "{:?}", migration.status());
    }
    let status = migration.wait(PATIENCE).unwrap().unwrap();
    assert_same(&machine, &target.join().unwrap().unwrap(), "after naps");
    let dirtied = &status.dirtied;
    // The first round finds what the harts dirty when nothing holds them.
    assert!(dirtied[0] > 4 * dirtied[dirtied.len() - 2], "{dirtied:?}");
    let (free, all) = (free.unwrap(), retired(&machine));
    let ran = [0, 1].map(|hart| all[hart] - free[hart]);
    if ran == [0, 0] {
        println!("SKIPPED: a busy host let neither run while one was held");
        return;
    }
    assert!(ran[1] > 6 * ran[0], "{ran:?}");
}

/// Moves a machine to a new one in this process.
fn hop(machine: &mut Machine) -> (MigrationStatus, Result<Machine, MigrationError>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let migrator = machine.migrator();
    std::thread::scope(|scope| {
        let target = scope.spawn(|| {
            let mut none = |_| Err(std::io::ErrorKind::NotConnected.into());
            Machine::builder().receive_with(channel(theirs, &Cancel::default()), &mut none, attach)
        });
        let (_, status) = leave(machine, || {
            let cancel = Cancel::default();
            migrator.start(channel(ours, &cancel), cancel, LeaveOptions::default()).unwrap()
        });
        (status, target.join().unwrap())
    })
}

#[test]
fn a_migration_that_is_cancelled_leaves_a_machine_that_runs_and_may_be_moved_again() {
    let mut machine = source(2, 3);
    let migrator = machine.migrator();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (exit, status) = leave(&mut machine, || {
        let cancel = Cancel::default();
        // Nobody reads.
        let migration = migrator.start(channel(ours, &cancel), cancel, LeaveOptions::default()).unwrap();
        let cancel = Cancel::default();
        let again = migrator.start(channel(theirs.try_clone().unwrap(), &cancel), cancel, LeaveOptions::default());
        assert!(matches!(again, Err(MigrationError::UnderWay)));
        std::thread::sleep(Duration::from_millis(50));
        migration.cancel();
        migration
    });
    assert_eq!((exit, status.state), (MachineExit::Stopped, MigrationState::Cancelled));
    machine.memory().plug("yes", 0x2_0000_0000, 0x1000, PlugSpec::default()).unwrap();
    let (status, target) = hop(&mut machine);
    assert_eq!(status.state, MigrationState::Completed);
    assert_same(&machine, &target.unwrap(), "after a cancel");
}

#[test]
fn a_guest_that_sleeps_for_ever_leaves_if_it_is_run_again_and_again() {
    let program = notdirty::Program::Image(notdirty::programs::basic::hang());
    let mut machine = Machine::builder().ram_size(1 << 20).program(program).build().unwrap();
    let migrator = machine.migrator();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let target = std::thread::spawn(|| Machine::builder().receive(channel(theirs, &Cancel::default())));
    assert_eq!(machine.run_to_end(), MachineExit::Hung);
    let cancel = Cancel::default();
    let migration = migrator.start(channel(ours, &cancel), cancel, LeaveOptions::default()).unwrap();
    while migration.wait(Duration::from_millis(5)).is_none() {
        assert!(matches!(machine.run_to_end(), MachineExit::Hung | MachineExit::Migrated));
    }
    let mut target = target.join().unwrap().unwrap();
    assert_eq!(machine.run_to_end(), MachineExit::Migrated);
    assert_same(&machine, &target, "hung");
    assert_eq!(target.run_to_end(), MachineExit::Hung);
}

#[test]
fn a_machine_with_a_silent_device_does_not_begin_to_leave() {
    let mut machine = source(1, 1);
    let (ours, _theirs) = UnixStream::pair().unwrap();
    struct Silent;
    impl notdirty_softmmu::MmioDevice for Silent {
        fn read(&self, _: u64, _: notdirty_softmmu::MemSize) -> u64 {
            0
        }
        fn write(&self, _: u64, _: notdirty_softmmu::MemSize, _: u64) {}
    }
    let space = machine.space().clone();
    space.map_mmio(notdirty::GuestPhys::new(0x4100_0000), 0x100, Arc::new(Silent), 0).unwrap();
    let migrator = machine.migrator();
    let (exit, status) = leave(&mut machine, || {
        let cancel = Cancel::default();
        migrator.start(channel(ours, &cancel), cancel, LeaveOptions::default()).unwrap()
    });
    assert_eq!((exit, status.state, status.progress.bytes), (MachineExit::Stopped, MigrationState::Failed, 0));
}

/// A migration asks twice, the second time at once if there is little to send: neither is to be missed.
#[test]
fn a_machine_with_next_to_no_ram_leaves_each_time() {
    for n in 0..100 {
        let mut machine = Machine::builder().ram_size(0x4000).build().unwrap();
        start(&mut machine, n);
        machine.cpu_mut().x[9] = RAM + 0x2000;
        machine.cpu_mut().x[18] = 0xff;
        let (migrator, file) = (machine.migrator(), std::fs::File::create("/dev/null").unwrap());
        let cancel = Cancel::default();
        let channel = Channel::new(file.into(), PATIENCE, cancel.clone()).unwrap();
        let migration = migrator.start(channel, cancel, LeaveOptions::default()).unwrap();
        let until = Some(Instant::now() + PATIENCE);
        assert_eq!(machine.run(&RunLimits { max_insns: None, deadline: until }), MachineExit::Migrated, "{n}");
        assert!(migration.wait(PATIENCE).unwrap().is_ok(), "{n}");
    }
}
