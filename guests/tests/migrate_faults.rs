//! Each phase of a migration, and each thing that can happen to a channel in it: afterwards exactly one side can run, no byte is lost,
//! nothing hangs, and the error says what happened.
//!
//! `NOTDIRTY_FAULTS=all` tries each of them; without it some are. `NOTDIRTY_FAULTS=show` prints what each ended with.

#[path = "common/wire.rs"]
mod wire;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "common/writers.rs"]
mod writers;

use std::collections::HashSet;
use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use notdirty::{
    Cancel, LeaveOptions, Machine, MachineExit, MigrationError, MigrationState, MigrationStatus, Road, RunLimits, Uri,
};
use wire::{Between, Fault, Phase, Plan, end};
use writers::{RAM, start};

const SIZE: u64 = 0x6_0000;
/// A wait for what does not come; and one for what is merely late, on a busy host.
const BRIEF: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(20);
/// No migration takes so long.
const LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Way {
    Tcp,
    Unix,
    /// By two channels beside the stream.
    Multifd,
}

/// A socket that the source connects to, in front of the target's.
enum Front {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Front {
    fn new(way: Way, number: u32) -> Front {
        match way {
            Way::Tcp => Front::Tcp(TcpListener::bind("127.0.0.1:0").unwrap()),
            _ => {
                let name = format!("notdirty-{}-front-{number}", std::process::id());
                let path = std::env::temp_dir().join(name);
                Front::Unix(UnixListener::bind(&path).unwrap(), path)
            }
        }
    }

    fn uri(&self) -> Uri {
        match self {
            Front::Tcp(listener) => Uri::Tcp("127.0.0.1".into(), listener.local_addr().unwrap().port()),
            Front::Unix(_, path) => Uri::Unix(path.clone()),
        }
    }

    fn accept(&self) -> File {
        match self {
            Front::Tcp(listener) => end(listener.accept().unwrap().0),
            Front::Unix(listener, _) => end(listener.accept().unwrap().0),
        }
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        if let Front::Unix(_, path) = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn connect(uri: &Uri) -> File {
    match uri {
        Uri::Tcp(host, port) => end(TcpStream::connect((host.as_str(), *port)).unwrap()),
        Uri::Unix(path) => end(UnixStream::connect(path).unwrap()),
        other => panic!("{other}"),
    }
}

/// What came of one migration.
struct Ended {
    machine: Machine,
    status: MigrationStatus,
    why: Option<Arc<MigrationError>>,
    target: Result<Machine, MigrationError>,
    met: bool,
    phases: Vec<(usize, Phase)>,
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A machine whose guest stores to a few pages leaves by several rounds: another thread writes to all of RAM in the first of them.
fn go(way: Way, plan: Option<Plan>) -> Ended {
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    // What is reset or cut ends by itself, but for a channel that never comes.
    let (harmless, patience) = match plan.map(|plan| plan.fault) {
        Some(Fault::Reset | Fault::Cut) => (false, 5 * BRIEF),
        Some(fault) if !fault.is_harmless() => (false, BRIEF),
        _ => (true, LONG),
    };
    let mut machine = Machine::builder().ram_size(SIZE).build().unwrap();
    start(&mut machine, 7);
    machine.cpu_mut().x[18] = 0x3fff;
    let (migrator, memory, stop) = (machine.migrator(), machine.memory(), machine.stop_handle());
    let between = Arc::new(Between { plan, ..Between::default() });
    let front = Front::new(way, number);
    let behind = match way {
        Way::Tcp => "tcp:127.0.0.1:0".to_owned(),
        _ => format!(
            "unix:{}.behind",
            std::env::temp_dir().join(format!("nd-{}-{number}", std::process::id())).display()
        ),
    };
    let listener = behind.parse::<Uri>().unwrap().listen().unwrap();
    let channels = if way == Way::Multifd { 2 } else { 0 };
    let mut options = LeaveOptions::default();
    // What the guest itself dirties fits into the downtime, and what the writer does not.
    options.limits.bandwidth = Some(20 << 20);
    options.limits.downtime = Duration::from_millis(6);
    let began = Instant::now();
    let (status, why, target) = std::thread::scope(|scope| {
        let (between, front, listener, stop) = (&between, &front, &listener, &stop);
        // The target, with channels as they come.
        let target = scope.spawn(move || {
            let cancel = Cancel::default();
            let (main, _) = listener.accept(Some(LONG), patience, &cancel).map_err(no_channel)?;
            let mut more = |within| {
                let within = if harmless { within } else { BRIEF };
                listener
                    .accept(Some(within), patience, &cancel)
                    .map(|(channel, _)| channel)
                    .map_err(std::io::Error::other)
            };
            Machine::builder().receive_with(main, &mut more, |_| Ok(()))
        });
        scope.spawn(move || {
            for channel in 0..=channels {
                let (theirs, ours) = (front.accept(), connect(&listener.uri()));
                if channel == 0 {
                    let (theirs, ours) = (theirs.try_clone().unwrap(), ours.try_clone().unwrap());
                    scope.spawn(move || between.back(ours, theirs));
                }
                scope.spawn(move || between.there(channel, theirs, ours));
            }
        });
        let moving = scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(2));
            let cancel = Cancel::default();
            let road = Road::connect(&front.uri(), channels, patience, &cancel).unwrap();
            let migration = migrator.start(road, cancel, options).unwrap();
            let mut value = 0u64;
            let ended = loop {
                if migration.status().state == MigrationState::Device {
                    between.stands.store(true, Ordering::Release);
                }
                if between.pieces.load(Ordering::Acquire) < 3 {
                    for page in 0x28..SIZE >> 12 {
                        value += 1;
                        let _ = memory.write(RAM + (page << 12) + value % 500 * 8, &value.to_le_bytes());
                    }
                }
                if let Some(ended) = migration.wait(Duration::from_micros(200)) {
                    break ended;
                }
                assert!(began.elapsed() < LIMIT, "{plan:?}: it hangs: {:?}", migration.status());
            };
            between.over.store(true, Ordering::Release);
            std::thread::sleep(Duration::from_millis(5));
            stop.stop();
            (migration.status(), ended.err())
        });
        let exit = machine.run(&RunLimits { max_insns: None, deadline: Some(began + 2 * LIMIT) });
        assert!(matches!(exit, MachineExit::Migrated | MachineExit::Stopped), "{exit:?}");
        let (status, why) = moving.join().unwrap();
        let target = target.join().unwrap();
        (status, why, target)
    });
    assert!(began.elapsed() < LIMIT, "{plan:?}");
    let phases = between.phases.lock().unwrap().clone();
    Ended { machine, status, why, target, met: between.met.load(Ordering::Acquire), phases }
}

fn no_channel(why: notdirty::UriError) -> MigrationError {
    MigrationError::Host(std::io::Error::other(why))
}

fn same(source: &Machine, target: &Machine, what: &str) {
    let ram = |machine: &Machine| {
        let mut bytes = vec![0; SIZE as usize];
        machine.read(RAM, &mut bytes).unwrap();
        bytes
    };
    let differ = ram(source).iter().zip(&ram(target)).position(|(a, b)| a != b);
    assert_eq!((differ, source.cpu()), (None, target.cpu()), "{what}");
}

/// It goes on where it is.
fn runs(machine: &mut Machine, what: &str) {
    let end = machine.cpu().retired + 20_000;
    let mut exits = (0..2).map(|_| machine.run(&RunLimits { max_insns: Some(end), deadline: None }));
    // A stop of before may be met first.
    let exit = exits.find(|exit| *exit != MachineExit::Stopped);
    assert_eq!(exit, Some(MachineExit::InsnLimit), "{what}");
}

fn check(way: Way, plan: Plan, ended: &mut Ended) {
    let Ended { machine, status, why, target, .. } = ended;
    let what = format!("{way:?} {plan:?}: {:?}, {:?}, {:?}", status.state, why, target.as_ref().err());
    if std::env::var("NOTDIRTY_FAULTS").is_ok_and(|which| which == "show") {
        let texts = [why.as_ref().map(ToString::to_string), target.as_ref().err().map(ToString::to_string)];
        println!("{way:?} {plan:?}: {:?}, {texts:?}", status.state);
    }
    let told = matches!(plan.phase, Phase::Run | Phase::Pong);
    let asked = matches!(plan.phase, Phase::Ping | Phase::Alive);
    match (status.state, target) {
        (MigrationState::Completed, Ok(target)) => {
            assert!(machine.is_gone(), "{what}");
            assert_eq!(machine.run_to_end(), MachineExit::Migrated, "{what}");
            same(machine, target, &what);
            runs(target, &what);
        }
        (MigrationState::Failed, Err(theirs)) => {
            assert!(!machine.is_gone(), "{what}");
            // It never stood still for a target that was gone.
            assert!(!asked || status.downtime.is_zero(), "{what}");
            assert!(!theirs.to_string().is_empty() && !why.as_ref().unwrap().to_string().is_empty(), "{what}");
            runs(machine, &what);
        }
        // It was told to run, and has not answered: this side stands still, and is whole.
        (MigrationState::Uncertain, target) => {
            assert!(machine.is_gone() && told, "{what}");
            match target {
                Ok(target) => {
                    same(machine, target, &what);
                    runs(target, &what);
                }
                Err(_) => {
                    assert_eq!(machine.run_to_end(), MachineExit::Migrated, "{what}");
                    machine.take_back().unwrap();
                    runs(machine, &what);
                }
            }
        }
        _ => panic!("{what}"),
    }
    if plan.fault.is_harmless() {
        assert_eq!(status.state, MigrationState::Completed, "{what}");
    }
}

#[test]
fn whatever_happens_in_whatever_phase_exactly_one_side_can_run() {
    let all = std::env::var("NOTDIRTY_FAULTS").is_ok();
    let (mut tried, mut missed) = (0, Vec::new());
    let left = Mutex::new(HashSet::new());
    for way in [Way::Unix, Way::Tcp, Way::Multifd] {
        let mut whole = go(way, None);
        assert_eq!(whole.status.state, MigrationState::Completed, "{way:?}: {:?}", whole.why);
        same(&whole.machine, whole.target.as_ref().unwrap(), "no fault");
        runs(whole.target.as_mut().unwrap(), "no fault");
        // As they were met; those that come again and again once or twice.
        let mut phases: Vec<(usize, Phase)> = Vec::new();
        for at in whole.phases {
            let late = matches!(at.1, Phase::Piece(4..) | Phase::Packet(4..) | Phase::Sync(3..) | Phase::Device(4..));
            if !late && !phases.contains(&at) {
                phases.push(at);
            }
        }
        assert!(phases.contains(&(0, Phase::Piece(3))) && phases.contains(&(0, Phase::Pong)), "{phases:?}");
        for (n, (channel, phase)) in phases.into_iter().enumerate() {
            for (m, fault) in Fault::ALL.into_iter().enumerate() {
                // Each phase and each fault comes, over the three ways.
                if !all && !(n + 3 * m + way as usize * 4).is_multiple_of(13) {
                    continue;
                }
                let plan = Plan { channel, phase, fault };
                let mut ended = go(way, Some(plan));
                if ended.met {
                    tried += 1;
                    left.lock().unwrap().insert((way, phase));
                } else {
                    // A piece more or less; or a brief wait was too brief for a busy host.
                    missed.push((way, plan));
                }
                check(way, plan, &mut ended);
            }
        }
    }
    println!("{tried} faults, {} phases; not met: {missed:?}", left.lock().unwrap().len());
    assert!(missed.len() * 8 < tried, "{missed:?}");
}

/// A file's units, each with each fault that a file can have.
#[test]
fn a_stream_in_a_file_that_was_spoiled_in_whatever_phase_is_refused_or_is_the_machine() {
    let path = std::env::temp_dir().join(format!("notdirty-{}-spoiled-stream", std::process::id()));
    let uri = Uri::File(path.clone(), None);
    let mut source = Machine::builder().ram_size(SIZE).build().unwrap();
    start(&mut source, 3);
    let (migrator, memory) = (source.migrator(), source.memory());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            memory.write(RAM + 0x4_0000, &[5; 0x1_0000]).unwrap();
            let cancel = Cancel::default();
            let road = Road::connect(&uri, 0, LONG, &cancel).unwrap();
            migrator.start(road, cancel, LeaveOptions::default()).unwrap().wait(LONG).unwrap().unwrap();
        });
        let until = Some(Instant::now() + LIMIT);
        assert_eq!(source.run(&RunLimits { max_insns: None, deadline: until }), MachineExit::Migrated);
    });
    let whole = std::fs::read(&path).unwrap();
    let (mut units, mut reader) = (Vec::new(), wire::Units::new(&whole[..], false));
    while let Some(unit) = reader.next().unwrap() {
        units.push(unit);
    }
    assert_eq!(units.iter().map(|(_, bytes)| bytes.len()).sum::<usize>(), whole.len());
    let receive = |bytes: Vec<u8>| {
        std::fs::write(&path, bytes).unwrap();
        let (channel, _end) = uri.listen().unwrap().accept(None, LONG, &Cancel::default()).unwrap();
        Machine::builder().receive(channel)
    };
    let join = |units: &[(Phase, Vec<u8>)]| units.iter().flat_map(|(_, bytes)| bytes.clone()).collect::<Vec<u8>>();
    same(&source, &receive(join(&units)).unwrap(), "whole");
    let (mut refused, mut taken) = (0, Vec::new());
    for n in 0..units.len() {
        for fault in [Fault::Cut, Fault::Flip(3), Fault::Flip(501), Fault::Lost, Fault::Twice, Fault::Swapped] {
            let mut spoiled = units.clone();
            let phase = spoiled[n].0;
            match fault {
                Fault::Cut => {
                    spoiled.truncate(n + 1);
                    let half = spoiled[n].1.len() / 2;
                    spoiled[n].1.truncate(half);
                }
                Fault::Flip(bit) => {
                    let bytes = &mut spoiled[n].1;
                    let at = (bytes.len() / 2 + bit as usize / 8).min(bytes.len() - 1);
                    bytes[at] ^= 1 << (bit % 8);
                }
                Fault::Lost => drop(spoiled.remove(n)),
                Fault::Twice => spoiled.insert(n, units[n].clone()),
                _ if n + 1 < units.len() => spoiled.swap(n, n + 1),
                _ => continue,
            }
            match receive(join(&spoiled)) {
                Err(why) => {
                    assert!(!why.to_string().is_empty());
                    refused += 1;
                }
                Ok(target) => {
                    same(&source, &target, &format!("{phase:?} {fault:?}"));
                    taken.push((phase, fault));
                }
            }
        }
    }
    let _ = std::fs::remove_file(&path);
    println!("{refused} refused; not noticed, and harmless: {taken:?}");
    // The same twice or the other way round is the same machine; so is it without a piece whose pages came again, or that has none.
    let harmless = |(phase, fault): &(Phase, Fault)| match fault {
        Fault::Twice => matches!(phase, Phase::Piece(_) | Phase::Integrity | Phase::End),
        Fault::Swapped => matches!(phase, Phase::Piece(_) | Phase::RamEnd),
        // A page that came again.
        Fault::Lost | Fault::Flip(_) => matches!(phase, Phase::Piece(_)),
        _ => false,
    };
    assert!(taken.iter().all(harmless), "{taken:?}");
    // This side has gone, and can be had back.
    source.take_back().unwrap();
    runs(&mut source, "taken back");
}
