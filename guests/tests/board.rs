//! The board as its guests see it: edges and widths of devices, and HTIF however it is stored.

mod common;

use common::Elf;
use notdirty::programs::board::{self, Probe, TOHOST};
use notdirty::programs::semihost;
use notdirty::{
    Captured, ClockKind, Console, EngineKind, ExitBy, GuestExit, JitFlags, Machine, MachineBuilder, MachineExit,
    Program, RunLimits,
};
use std::time::{Duration, Instant};

const ENGINES: [EngineKind; 2] = [EngineKind::Jit, EngineKind::Interp];
const LOAD_FAULT: u64 = 5;
const STORE_FAULT: u64 = 7;

fn soon() -> RunLimits {
    RunLimits { max_insns: None, deadline: Some(Instant::now() + Duration::from_secs(60)) }
}

fn ends(builder: MachineBuilder, what: &str) -> u64 {
    let mut machine = builder.ram_size(4 << 20).build().unwrap();
    match machine.run(&soon()) {
        MachineExit::Guest(exit) => exit.code,
        exit => panic!("{what}: {exit:?}"),
    }
}

#[test]
fn devices_end_where_those_of_qemu_end_and_take_the_same_widths() {
    let load = |width, at, fault| -> Probe { (false, width, at, if fault { LOAD_FAULT } else { 0 }) };
    let store = |width, at, fault| -> Probe { (true, width, at, if fault { STORE_FAULT } else { 0 }) };
    // As measured on QEMU 10.0.2.
    let probes = [
        load(3, 0x200_0000, true),
        load(2, 0x200_0000, false),
        load(1, 0x200_0000, true),
        load(0, 0x200_0000, true),
        store(3, 0x200_0000, true),
        store(2, 0x200_0100, false),
        load(2, 0x200_3ffc, false),
        load(3, 0x200_4000, false),
        load(0, 0x200_4000, true),
        load(3, 0x200_4800, false),
        store(2, 0x200_bff0, false),
        load(2, 0x200_bffc, false),
        load(0, 0x200_bff8, true),
        load(3, 0x200_c000, true),
        store(3, 0x200_c000, true),
        load(2, 0x200_fff8, true),
        load(0, 0x1000_0007, false),
        load(3, 0x1000_0000, false),
        load(0, 0x1000_0008, true),
        store(0, 0x1000_0008, true),
        load(0, 0x1000_00ff, true),
        load(1, 0x10_0000, false),
        load(2, 0x10_0ffc, false),
        load(0, 0x10_0000, true),
        load(3, 0x10_0000, true),
        store(0, 0x10_0000, true),
    ];
    for engine in ENGINES {
        let image = board::probes(&probes);
        let failed = ends(Machine::builder().engine(engine).program(Program::Image(image)), "probes") as usize;
        assert_eq!(failed, 0, "{engine:?}: {:x?}", probes.get(failed.wrapping_sub(1)));
    }
}

#[test]
fn one_store_of_the_low_half_of_tohost_ends_the_run_and_no_printed_byte_does() {
    for (engine, clock, harts) in [
        (EngineKind::Jit, ClockKind::Host, 1),
        (EngineKind::Jit, ClockKind::Insns, 1),
        (EngineKind::Interp, ClockKind::Insns, 1),
        (EngineKind::Jit, ClockKind::Host, 2),
    ] {
        let mut elf = {
            let image = board::halves("aesop cuts\n", 21);
            Elf::new(image.load_addr, image.bytes)
        };
        elf.symbols.push(("tohost", TOHOST, 8));
        let seen = Captured::default();
        let builder = Machine::builder().engine(engine).clock(clock).harts(harts).ram_size(4 << 20);
        let builder = builder.console(Console::new(Box::new(seen.clone())));
        let mut machine = builder.program(Program::ElfBytes("halves".into(), elf.bytes())).build().unwrap();
        let what = format!("{engine:?}, {clock:?}, {harts} harts");
        let want = MachineExit::Guest(GuestExit { code: 21, by: ExitBy::Tohost });
        assert_eq!(machine.run(&soon()), want, "{what}");
        assert_eq!(seen.text(), "aesop cuts\n", "{what}");
    }
}

#[test]
fn a_run_in_pieces_ends_by_one_store_of_the_low_half_too() {
    let mut elf = {
        let image = board::halves("", 3);
        Elf::new(image.load_addr, image.bytes)
    };
    elf.symbols.push(("tohost", TOHOST, 8));
    let mut machine =
        Machine::builder().ram_size(4 << 20).program(Program::ElfBytes("half".into(), elf.bytes())).build().unwrap();
    let exit = loop {
        let max = machine.cpu().retired + 7;
        match machine.run(&RunLimits { max_insns: Some(max), ..soon() }) {
            MachineExit::InsnLimit => assert_eq!(machine.cpu().retired, max, "limits stay exact"),
            exit => break exit,
        }
    };
    assert_eq!(exit, MachineExit::Guest(GuestExit { code: 3, by: ExitBy::Tohost }));
}

#[test]
fn semihosting_calls_are_known_by_their_sequence_and_are_exceptions_when_they_are_off() {
    let jit = JitFlags::default();
    for (engine, flags) in
        [(EngineKind::Jit, jit), (EngineKind::Jit, JitFlags { tier0: false, ..jit }), (EngineKind::Interp, jit)]
    {
        for on in [true, false] {
            let seen = Captured::default();
            let console = Console::new(Box::new(seen.clone()));
            console.feed_from(&b"a line\nand more"[..]).unwrap();
            let builder = Machine::builder().engine(engine).jit_flags(flags).console(console).ram_size(4 << 20);
            let image = Program::Image(semihost::talk(37));
            let mut machine = builder.semihosting(on).program(image).build().unwrap();
            let exit = machine.run(&soon());
            match on {
                true => {
                    assert_eq!(exit, MachineExit::Guest(GuestExit { code: 37, by: ExitBy::Semihosting }), "{engine:?}");
                    assert_eq!(seen.text(), "hello\n!a line\nand more");
                }
                // The program's handler for traps that it did not mean.
                false => assert_eq!(exit, MachineExit::Guest(GuestExit { code: 99, by: ExitBy::Finisher })),
            }
        }
    }
}

#[test]
fn a_semihosting_call_that_waits_for_input_meets_its_limits() {
    for engine in ENGINES {
        let image = Program::Image(semihost::talk(1));
        let mut machine = Machine::builder().engine(engine).ram_size(4 << 20).program(image).build().unwrap();
        let limits = RunLimits { max_insns: None, deadline: Some(Instant::now() + Duration::from_millis(100)) };
        assert_eq!(machine.run(&limits), MachineExit::Deadline);
        let limits = RunLimits { max_insns: Some(machine.cpu().retired + 3), deadline: None };
        assert_eq!(machine.run(&limits), MachineExit::InsnLimit);
    }
}
