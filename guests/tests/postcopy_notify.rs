//! What is told of a postcopy's steps at its target, and what a refusal of each does to both sides.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use notdirty::programs::basic;
use notdirty::{
    ArrivalState, Cancel, Channel, LeaveOptions, Machine, MachineExit, MigrationError, MigrationState, Postcopy,
    Program, RunLimits,
};
use notdirty_core::migration::postcopy::{Moment, Notifiers, Outcome};
use notdirty_softmmu::{DeviceState, GuestPhys, MemSize, MmioDevice, Stateful};

const PATIENCE: Duration = Duration::from_secs(20);

fn channel(socket: UnixStream) -> Channel {
    Channel::new(OwnedFd::from(socket), PATIENCE, Cancel::default()).unwrap()
}

type Gone = (Vec<String>, MigrationState, Option<String>, Result<Machine, MigrationError>);

/// It goes on where it is.
fn runs(machine: &mut Machine) {
    let end = machine.cpu().retired + 20_000;
    let mut exits = (0..2).map(|_| machine.run(&RunLimits { max_insns: Some(end), deadline: None }));
    // A stop of before may be met first.
    assert_eq!(exits.find(|exit| *exit != MachineExit::Stopped), Some(MachineExit::InsnLimit));
}

/// A device of one's own that remembers nothing, and says so.
struct Blank;

notdirty_softmmu::fields! {
    struct Nothing: "nothing", version 1 { none: u64 }
}

impl Stateful for Blank {
    type State = Nothing;
    fn save(&self) -> Nothing {
        Nothing { none: 0 }
    }
    fn restore(&self, _: &Nothing) {}
}

impl MmioDevice for Blank {
    fn read(&self, _: u64, _: MemSize) -> u64 {
        0
    }
    fn write(&self, _: u64, _: MemSize, _: u64) {}
    fn state(&self) -> DeviceState<'_> {
        DeviceState::Kept(self)
    }
}

/// Moves a guest, and "net0" refuses that step; what was told, how it ended here, and the machine there.
fn go(refused: Option<Moment>) -> Gone {
    let machine = Machine::builder().ram_size(2 << 20).program(Program::Image(basic::spin())).build().unwrap();
    go_with(machine, refused)
}

fn go_with(mut machine: Machine, refused: Option<Moment>) -> Gone {
    machine.write(0x8010_0000, b"text").unwrap();
    let (notifiers, told) = (Notifiers::default(), Arc::new(Mutex::new(Vec::new())));
    let _guards: Vec<_> = ["first", "net0", "last"]
        .into_iter()
        .map(|name| {
            let told = told.clone();
            notifiers.add(name, move |notice| {
                let blocks = notice.pages.map_or(0, |pages| pages.blocks().count());
                match notice.moment {
                    Moment::Probe => assert_eq!(blocks, 0),
                    Moment::End(Outcome::Failed) => {}
                    _ => assert_ne!(blocks, 0),
                }
                let text = match notice.moment {
                    Moment::End(outcome) => format!("{name} end {outcome:?}"),
                    moment => format!("{name} {moment}"),
                };
                told.lock().unwrap().push(text);
                if name == "net0" && refused == Some(notice.moment) { Err("the wire is cut".into()) } else { Ok(()) }
            })
        })
        .collect();
    let (a, b) = UnixStream::pair().unwrap();
    let (migrator, stop) = (machine.migrator(), machine.stop_handle());
    let mut options = LeaveOptions::default();
    options.postcopy = Some(Postcopy::after(0));
    let (state, why, there) = std::thread::scope(|scope| {
        let target = scope.spawn(|| Machine::builder().postcopy_notifiers(&notifiers).receive(channel(b)));
        let moving = scope.spawn(move || {
            let migration = migrator.start(channel(a), Cancel::default(), options).unwrap();
            let ended = migration.wait(PATIENCE).expect("it hangs");
            stop.stop();
            (migration.status().state, ended.err().map(|why| why.to_string()))
        });
        let exit = machine.run(&RunLimits { max_insns: None, deadline: Some(Instant::now() + 3 * PATIENCE) });
        let (state, why) = moving.join().unwrap();
        let expected = if state == MigrationState::Completed { MachineExit::Migrated } else { MachineExit::Stopped };
        assert_eq!(exit, expected, "{why:?}");
        (state, why, target.join().unwrap())
    });
    if let Ok(there) = &there {
        let arrival = there.arrival().unwrap();
        assert_ne!(arrival.wait_while(ArrivalState::Running, PATIENCE), ArrivalState::Running);
    }
    // Where it did not leave it runs on.
    assert_eq!(machine.is_gone(), there.is_ok());
    if !machine.is_gone() {
        runs(&mut machine);
    }
    let told = std::mem::take(&mut *told.lock().unwrap());
    (told, state, why, there)
}

#[test]
fn each_step_is_told_once_and_in_order() {
    let (told, state, _, there) = go(None);
    let all = ["probe", "advise", "listen", "end Complete"];
    let expected: Vec<_> =
        all.iter().flat_map(|step| ["first", "net0", "last"].map(|name| format!("{name} {step}"))).collect();
    assert_eq!((told, state), (expected, MigrationState::Completed));
    assert_eq!(there.unwrap().arrival().unwrap().status().state, ArrivalState::Complete);
}

#[test]
fn a_step_that_is_refused_ends_the_migration_by_name_and_the_source_runs_on() {
    for (n, moment) in [Moment::Probe, Moment::Advise, Moment::Listen].into_iter().enumerate() {
        let (told, state, why, there) = go(Some(moment));
        let said = format!("net0 refuses postcopy ({moment}): the wire is cut");
        assert_eq!(state, MigrationState::Failed);
        assert!(why.as_ref().is_some_and(|why| why.contains(&said)), "{why:?}");
        assert!(there.is_err_and(|why| why.to_string() == said));
        // What stands behind it hears nothing of this step, and each that heard anything hears the end.
        let ends = told.iter().filter(|text| text.ends_with("end Failed")).count();
        let last = told.iter().filter(|text| text.starts_with("last")).count();
        assert_eq!((told.len(), ends, last), ([4, 8, 11][n], [2, 3, 3][n], [0, 2, 3][n]), "{told:?}");
    }
}

#[test]
fn an_end_that_is_refused_leaves_the_machine_where_its_pages_are() {
    let (told, state, _, there) = go(Some(Moment::End(Outcome::Complete)));
    assert_eq!((told.len(), state), (12, MigrationState::Completed));
    let mut there = there.unwrap();
    let status = there.arrival().unwrap().status();
    let why = status.why.unwrap();
    assert_eq!((status.state, status.left), (ArrivalState::Failed, 0), "{why}");
    assert_eq!(why, "net0 refuses postcopy (end): the wire is cut");
    runs(&mut there);
}

#[test]
fn a_host_with_other_pages_is_refused_by_both_sizes_before_anything_is_missing_and_the_source_runs_on() {
    let builder = || Machine::builder().ram_size(2 << 20).program(Program::Image(basic::spin()));
    let (told, state, why, there) = go_with(builder().ram_page(16 << 10).build().unwrap(), None);
    let said = "its blocks have pages of 0x4000, ours of 0x1000: postcopy needs the same";
    assert!(there.is_err_and(|why| why.to_string().contains(said)));
    assert!(why.as_ref().is_some_and(|why| why.contains(said)), "{why:?}");
    assert_eq!((told.len(), state), (6, MigrationState::Failed), "{told:?}");
}

#[test]
fn a_section_that_the_target_cannot_take_is_told_to_the_source_which_runs_on() {
    let machine = Machine::builder().ram_size(2 << 20).program(Program::Image(basic::spin())).build().unwrap();
    machine.space().map_mmio(GuestPhys::new(0x4000_0000), 0x100, Arc::new(Blank), 0).unwrap();
    let (_, state, why, there) = go_with(machine, None);
    let said = "the stream has a section nothing 0, and nothing here is called so";
    assert!(there.is_err_and(|why| why.to_string() == said));
    assert_eq!(state, MigrationState::Failed);
    assert!(why.as_ref().is_some_and(|why| why.contains(said)), "{why:?}");
}
