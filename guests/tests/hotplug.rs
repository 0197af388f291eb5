//! RAM that comes and goes under a running guest: through the API from other threads, and from the command line.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use notdirty::programs::hotplug::{Mail, RESIDENT_STORES_AT, finder, resident, returns};
use notdirty::{EngineKind, ExitBy, GuestExit, GuestPhys, Machine, MachineExit, Memory, PlugError, PlugSpec, Plugged};
use notdirty::{Program, ResizeError, UnplugError};
use notdirty_core::raw::RawDirty;
use notdirty_core::{DirtyClient, PageRange, RamAddr, RamError, barrier, pin};
use notdirty_softmmu::{AddressSpace, MapError, MemSize, MmioDevice, SizeMask};

const AT: u64 = 0x1_0000_0000;
const SIZE: u64 = 1 << 20;
const ENGINES: [EngineKind; 2] = [EngineKind::Jit, EngineKind::Interp];
const PASS: MachineExit = MachineExit::Guest(GuestExit { code: 0, by: ExitBy::Finisher });
/// Beyond any honest wait here.
const PATIENCE: Duration = Duration::from_secs(60);

fn word(memory: &Memory, mail: Mail) -> u64 {
    let mut bytes = [0; 8];
    memory.read(mail.address(), &mut bytes).expect("boot RAM");
    u64::from_le_bytes(bytes)
}

fn send(memory: &Memory, mail: Mail, value: u64) {
    memory.write(mail.address(), &value.to_le_bytes()).expect("boot RAM");
}

/// Waits until the guest has got further in this count by two: the second of them began after the call.
fn further(memory: &Memory, mail: Mail) {
    let start = word(memory, mail);
    until(|| word(memory, mail) >= start + 2);
}

fn until(done: impl Fn() -> bool) {
    let limit = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < limit, "the guest does not get there");
        std::thread::yield_now();
    }
}

fn plug(memory: &Memory) -> Plugged {
    memory.plug("dimm", AT, SIZE, PlugSpec::default()).expect("it fits")
}

/// Runs the resident guest on each engine while `test` works on its memory; the guest has to end well.
fn beside_the_guest(test: impl Fn(&Memory) + Sync) {
    for engine in ENGINES {
        let mut machine =
            Machine::builder().engine(engine).program(Program::Image(resident())).build().expect("it is built");
        let memory = machine.memory();
        send(&memory, Mail::Probe, AT);
        std::thread::scope(|scope| {
            let test = &test;
            scope.spawn(move || {
                // Also when the test fails: or the guest would run for ever.
                let _stop = Stop(&memory);
                test(&memory);
            });
            assert_eq!(machine.run_to_end(), PASS, "{engine:?}");
        });
    }
}

/// After the grace period the place in the space of all RAM is free again.
fn pass_grace() {
    barrier().unwrap();
}

fn assert_some_used_twice(mut offsets: Vec<RamAddr>) {
    let used = offsets.len();
    offsets.sort();
    offsets.dedup();
    assert!(offsets.len() < used, "no ram_addr was used twice, so nothing was tested");
}

struct Stop<'a>(&'a Memory);
impl Drop for Stop<'_> {
    fn drop(&mut self) {
        send(self.0, Mail::Stop, 1);
    }
}

#[test]
fn a_guest_finds_ram_that_is_plugged_while_it_runs_and_faults_when_it_is_gone() {
    beside_the_guest(|memory| {
        further(memory, Mail::Faults);
        assert_eq!(word(memory, Mail::Hits), 0);
        for round in 1..20 {
            let dimm = plug(memory);
            further(memory, Mail::Hits);
            memory.write(AT, &returns(round)).expect("RAM is there");
            further(memory, Mail::Hits);
            assert_eq!(word(memory, Mail::Returned), u64::from(round));
            memory.unplug(&dimm, PATIENCE).expect("the guest lets go");
            assert!(memory.read(AT, &mut [0]).is_err());
            let hits = word(memory, Mail::Hits);
            further(memory, Mail::Faults);
            assert!(word(memory, Mail::Hits) <= hits + 1, "the round of the unplug may have ended well, no later one");
        }
    });
}

#[test]
fn code_in_new_ram_is_the_new_code_at_reused_guest_and_ram_addresses() {
    beside_the_guest(|memory| {
        let mut offsets = Vec::new();
        for round in 1..40u16 {
            let dimm = plug(memory);
            let info = memory.blocks().into_iter().find(|info| info.base.get() == AT).expect("it is plugged");
            offsets.push(info.offset);
            let mut first = [1; 8];
            memory.read(AT, &mut first).expect("RAM is there");
            assert_eq!(first, [0; 8], "new RAM is zero");
            memory.write(AT, &returns(round)).expect("RAM is there");
            further(memory, Mail::Hits);
            // Long enough for the code to be translated.
            for _ in 0..20 {
                further(memory, Mail::Hits);
                assert_eq!(word(memory, Mail::Returned), u64::from(round));
            }
            memory.unplug(&dimm, PATIENCE).expect("the guest lets go");
            pass_grace();
        }
        assert_some_used_twice(offsets);
    });
}

#[test]
fn ram_at_a_reused_ram_addr_is_dirty_for_everybody_and_holds_no_code() {
    for engine in ENGINES {
        let mut machine =
            Machine::builder().engine(engine).program(Program::Image(resident())).build().expect("it is built");
        let memory = machine.memory();
        let space: Arc<AddressSpace> = machine.space().clone();
        send(&memory, Mail::Probe, AT);
        std::thread::scope(|scope| {
            let memory = &memory;
            scope.spawn(move || {
                let _stop = Stop(memory);
                let mut offsets = Vec::new();
                for round in 1..20 {
                    let dimm = plug(memory);
                    let info = memory.blocks().pop().expect("it is plugged");
                    let pages = PageRange::of_bytes(info.offset, info.size);
                    for page in pages.iter() {
                        let listening = space.ram().dirty().listening(page, &pin());
                        assert!(listening.is_empty(), "round {round}: {listening:?} listen to new RAM");
                        let lines = space.code().page(page).map_or(0, |code| code.mask.load(Ordering::SeqCst));
                        assert_eq!(lines, 0, "round {round}: lines with code in new RAM");
                    }
                    offsets.push(info.offset);
                    memory.write(AT, &returns(round)).expect("RAM is there");
                    // Somebody listens to all of it, until it goes.
                    space.ram().dirty().test_and_clear_range(pages, DirtyClient::MIGRATION, &pin(), |_, _| {});
                    assert!(space.ram().rearm(&[pages], Some(PATIENCE)).is_ok());
                    for _ in 0..20 {
                        further(memory, Mail::Hits);
                    }
                    let stored = RamAddr::new(info.offset.get() + RESIDENT_STORES_AT).page();
                    assert!(space.ram().dirty().test(stored, DirtyClient::MIGRATION, &pin()), "the guest stored there");
                    memory.unplug(&dimm, PATIENCE).expect("the guest lets go");
                    pass_grace();
                }
                assert_some_used_twice(offsets);
            });
            assert_eq!(machine.run_to_end(), PASS, "{engine:?}");
        });
    }
}

#[test]
fn a_guest_that_probes_finds_ram_uses_it_and_runs_code_that_it_patches_there() {
    for engine in ENGINES {
        let program = Program::Image(finder(AT, i32::MAX));
        let mut machine = Machine::builder().engine(engine).program(program).build().expect("it is built");
        let memory = machine.memory();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(20));
                plug(&memory);
            });
            assert_eq!(machine.run_to_end(), PASS, "{engine:?}");
        });
        let mut machine =
            Machine::builder().engine(engine).program(Program::Image(finder(AT, 1000))).build().expect("it is built");
        let never = MachineExit::Guest(GuestExit { code: 3, by: ExitBy::Finisher });
        assert_eq!(machine.run_to_end(), never, "{engine:?}");
    }
}

#[test]
fn a_plug_that_cannot_be_is_refused_and_changes_nothing() {
    let machine = Machine::builder().ram_size(1 << 20).max_ram(4 << 20).build().expect("it is built");
    let memory = machine.memory();
    let dimm = plug(&memory);
    let before = memory.blocks();
    let refused = |name: &str, base, size| memory.plug(name, base, size, PlugSpec::default()).expect_err("refused");
    assert!(matches!(refused("a", 2 * AT, 4 << 20), PlugError::Limit { present, .. } if present == 2 << 20));
    assert!(matches!(refused("a", AT + 4096, 4096), PlugError::Taken { at, .. } if at.get() == AT + 4096));
    assert!(matches!(refused("a", 0x1000_0000, 4096), PlugError::Taken { .. }), "the UART is there");
    assert!(matches!(refused("dimm", 2 * AT, 4096), PlugError::Ram(RamError::DuplicateId { .. })));
    assert!(matches!(refused("a", 2 * AT, 4095), PlugError::Ram(RamError::OddLength { .. })));
    assert!(matches!(refused("a", 2 * AT, 0), PlugError::Ram(RamError::OddLength { .. })));
    assert!(matches!(refused("a", 2 * AT + 1, 4096), PlugError::Unaligned { .. }));
    assert!(matches!(refused("", 2 * AT, 4096), PlugError::Ram(RamError::IdLength { .. })));
    assert!(matches!(refused("a", u64::MAX - 4095, 8192), PlugError::Map(MapError::Wraps { .. })));
    assert_eq!(memory.blocks(), before);
    assert_eq!(machine.space().ram().blocks(&pin()).count(), 2);
    memory.unplug(&dimm, PATIENCE).expect("nothing runs");
    assert_eq!(memory.unplug(&dimm, PATIENCE), Err(UnplugError::NotPlugged));
    plug(&memory);
    assert_eq!(memory.unplug(&dimm, PATIENCE), Err(UnplugError::NotPlugged), "that is another");
}

#[test]
fn ram_that_is_mapped_twice_stays_until_it_is_not() {
    let mut machine = Machine::builder().build().expect("it is built");
    let memory = machine.memory();
    let dimm = plug(&memory);
    let again = machine.map_again(&dimm, 2 * AT).expect("it fits");
    assert_eq!(memory.unplug(&dimm, PATIENCE), Err(UnplugError::Busy));
    memory.write(AT, b"here").expect("it stayed");
    machine.unmap(again).expect("it is mapped");
    memory.unplug(&dimm, PATIENCE).expect("nothing runs");
    assert!(memory.read(AT, &mut [0]).is_err());
}

/// A device that keeps the hart until it is told to let go.
#[derive(Default)]
struct Holds {
    /// Is the hart here; may it go?
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Holds {
    fn wait(&self, done: impl Fn(&(bool, bool)) -> bool) {
        let state = self.state.lock().expect("no thread panics here");
        drop(self.changed.wait_while(state, |state| !done(state)).expect("no thread panics here"));
    }

    fn set(&self, change: impl Fn(&mut (bool, bool))) {
        change(&mut self.state.lock().expect("no thread panics here"));
        self.changed.notify_all();
    }
}

impl MmioDevice for Holds {
    fn read(&self, _: u64, _: MemSize) -> u64 {
        self.set(|state| state.0 = true);
        self.wait(|state| state.1);
        0
    }
    fn write(&self, _: u64, _: MemSize, _: u64) {}
    fn sizes(&self) -> SizeMask {
        SizeMask::of(&[MemSize::B4, MemSize::B8])
    }
}

#[test]
fn an_unplug_that_runs_out_of_time_leaves_the_ram_where_it_was() {
    let mut machine = Machine::builder().program(Program::Image(resident())).build().expect("it is built");
    let memory = machine.memory();
    let holds = Arc::new(Holds::default());
    machine.space().map_mmio(GuestPhys::new(2 * AT), 4096, holds.clone(), 0).expect("it fits");
    send(&memory, Mail::Probe, 2 * AT);
    let dimm = plug(&memory);
    memory.write(AT, b"stays").expect("RAM is there");
    std::thread::scope(|scope| {
        let memory = &memory;
        scope.spawn(move || {
            let _stop = Stop(memory);
            holds.wait(|state| state.0);
            assert_eq!(memory.unplug(&dimm, Duration::from_millis(20)), Err(UnplugError::Timeout));
            let mut bytes = [0; 5];
            memory.read(AT, &mut bytes).expect("RAM is there again");
            assert_eq!(&bytes, b"stays");
            send(memory, Mail::Probe, AT);
            holds.set(|state| state.1 = true);
            memory.unplug(&dimm, PATIENCE).expect("the guest lets go");
        });
        assert_eq!(machine.run_to_end(), PASS);
    });
}

#[test]
fn ram_grows_and_shrinks_under_the_guest_and_comes_back_empty() {
    beside_the_guest(|memory| {
        let dimm = memory.plug("dimm", AT, SIZE, PlugSpec::default().max_size(4 * SIZE)).expect("it fits");
        // The guest probes and stores in the first page behind what is there, which comes and goes.
        send(memory, Mail::Probe, AT + SIZE);
        for round in 1..20 {
            further(memory, Mail::Faults);
            memory.resize(&dimm, 4 * SIZE, PATIENCE).expect("it fits");
            let mut first = [1; 8];
            memory.read(AT + SIZE, &mut first).expect("RAM is there");
            assert_eq!(first, [0; 8], "what was cut off is gone");
            further(memory, Mail::Hits);
            memory.write(AT + SIZE, &returns(round)).expect("RAM is there");
            for _ in 0..10 {
                further(memory, Mail::Hits);
            }
            assert_eq!(word(memory, Mail::Returned), u64::from(round));
            memory.resize(&dimm, SIZE, PATIENCE).expect("the guest lets go");
            assert!(memory.read(AT + SIZE, &mut [0]).is_err());
            memory.read(AT, &mut [0]).expect("this much stays");
        }
        memory.unplug(&dimm, PATIENCE).expect("the guest lets go");
    });
}

#[test]
fn a_resize_that_cannot_be_is_refused_and_changes_nothing() {
    let mut machine = Machine::builder().ram_size(SIZE).max_ram(8 * SIZE).build().expect("it is built");
    let memory = machine.memory();
    let dimm = memory.plug("dimm", AT, SIZE, PlugSpec::default().max_size(16 * SIZE)).expect("it fits");
    let fixed = memory.plug("fixed", AT + 4 * SIZE, SIZE, PlugSpec::default()).expect("it fits");
    let before = memory.blocks();
    let refused = |dimm: &Plugged, size| memory.resize(dimm, size, PATIENCE).expect_err("refused");
    assert!(matches!(refused(&dimm, 5 * SIZE), ResizeError::Refused(PlugError::Taken { .. })));
    assert!(matches!(refused(&dimm, 16 * SIZE), ResizeError::Refused(PlugError::Limit { .. })));
    assert!(matches!(refused(&dimm, 0), ResizeError::Refused(PlugError::Map(MapError::Empty { .. }))));
    assert!(matches!(refused(&dimm, SIZE - 1), ResizeError::Refused(_)));
    assert!(matches!(refused(&fixed, 2 * SIZE), ResizeError::Refused(PlugError::Ram(RamError::NotResizable { .. }))));
    let again = machine.map_again(&dimm, 2 * AT).expect("it fits");
    assert!(matches!(refused(&dimm, SIZE / 2), ResizeError::InUse(UnplugError::Busy)));
    machine.unmap(again).expect("it is mapped");
    assert_eq!(memory.blocks(), before);
    // The bound counts what is there, not what was refused.
    memory.resize(&dimm, 4 * SIZE, PATIENCE).expect("it fits");
    memory.plug("rest", 3 * AT, 2 * SIZE, PlugSpec::default()).expect("it fits");
    assert!(memory.plug("more", 4 * AT, 4096, PlugSpec::default()).is_err());
    memory.resize(&dimm, SIZE, PATIENCE).expect("nothing runs");
    memory.plug("more", 4 * AT, 3 * SIZE, PlugSpec::default()).expect("it fits again");
}
