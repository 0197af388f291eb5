//! Cases in which the host writes: its API, the loader, the address map, and where a run was stopped.

use notdirty_softmmu::AccessError;
use notdirty_tcg::RunLimits;

use super::{Case, Kind, Outcome, TRAPPED, judge, limits, unbuilt};
use crate::load::Program;
use crate::machine::{Machine, MachineExit, RAM_BASE};
use crate::programs::smc::{self, Form, Mode, POLL_FUNCTION};
use crate::programs::{GuestImage, basic};

/// A case of the host's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Host {
    /// The program in its machine.
    pub(super) image: fn(Form) -> GuestImage,
    /// Runs the case; `Err` holds anything but a pass.
    pub(super) run: fn(&mut Machine, Form) -> Result<(), Outcome>,
    /// Whether it is one in supervisor mode, too.
    paged: bool,
}

impl Host {
    /// Whether there is such a case.
    pub(super) fn has(&self, mode: Mode) -> bool {
        self.paged || mode == Mode::Machine
    }
}

fn next_instruction(form: Form) -> GuestImage {
    smc::case("next_instruction").map_or_else(|| smc::polling(form), |case| (case.build)(form))
}

const fn case(
    name: &'static str,
    run: fn(&mut Machine, Form) -> Result<(), Outcome>,
    paged: bool,
    patches: u32,
    retells: &'static [&'static str],
    about: &'static str,
) -> Case {
    Case { name, about, retells, patches, kind: Kind::Host(Host { image: smc::polling, run, paged }) }
}

/// All of them.
#[rustfmt::skip]
pub(super) const CASES: &[Case] = &[
    case("host_write", host_write, true, 200, &["unicorn#1561"], "the host writes a function between two runs of its caller"),
    case("host_write_at_pc", host_write_at_pc, true, 100, &["unicorn#1561", "unicorn#2053"], "the host writes the very instruction at which the run was stopped"),
    case("host_write_illegal", host_write_illegal, true, 40, &["unicorn#1148"], "the host writes an illegal instruction over code that ran: the guest has to trap there"),
    case("host_write_alias", host_write_alias, false, 100, &[], "the host writes code through its second address"),
    case("loader_over_code", loader_over_code, false, 40, &["unicorn#2258"], "another program is loaded over one that ran"),
    case("remapped", remapped, false, 100, &["unidbg#407"], "other RAM is mapped where code ran"),
    Case {
        kind: Kind::Host(Host { image: next_instruction, run: single_steps, paged: true }),
        ..case("single_steps", single_steps, true, 1000, &["libriscv#415"], "a guest that patches its running block, one instruction at a time")
    },
];

/// `addi a0, zero, value; ret`.
fn returns(value: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&(value << 20 | 0x513).to_le_bytes());
    bytes[4..].copy_from_slice(&0x8067u32.to_le_bytes());
    bytes
}

fn no_access(e: AccessError) -> Outcome {
    Outcome::Crash(format!("no access: {e}"))
}

/// Instructions after which a program is in its loop, page tables or not.
const SETTLED: u64 = 10_000;

/// Runs `count` instructions more.
fn advance(machine: &mut Machine, count: u64) -> Result<(), Outcome> {
    let until = machine.cpu().retired + count;
    match machine.run(&RunLimits { max_insns: Some(until), ..limits() }) {
        MachineExit::InsnLimit => Ok(()),
        MachineExit::Deadline => Err(Outcome::Timeout),
        other => Err(Outcome::Fail(format!("{other:?}"))),
    }
}

fn expect(check: u64, good: bool) -> Result<(), Outcome> {
    if good { Ok(()) } else { Err(Outcome::WrongValue(check)) }
}

/// Calls the two instructions at `at`; they return to the start of RAM with a0.
fn call(machine: &mut Machine, at: u64) -> Result<u64, Outcome> {
    let cpu = machine.cpu_mut();
    cpu.pc = at;
    cpu.x[1] = RAM_BASE;
    advance(machine, 2)?;
    expect(9, machine.cpu().pc == RAM_BASE)?;
    Ok(machine.cpu().x[10])
}

fn host_write(machine: &mut Machine, _: Form) -> Result<(), Outcome> {
    // Stopped anywhere: in the caller, or between the function's two instructions.
    advance(machine, SETTLED)?;
    for value in 2..202 {
        machine.write(POLL_FUNCTION, &returns(value)).map_err(no_access)?;
        // The call under way may still end with the old value, of which the run after it has no trace.
        advance(machine, 14)?;
        let (calls, sum) = (machine.cpu().x[8], machine.cpu().x[18]);
        advance(machine, 7 * 20)?;
        expect(1, machine.cpu().x[8] - calls == 20)?;
        expect(2, machine.cpu().x[18] - sum == 20 * u64::from(value))?;
    }
    Ok(())
}

fn host_write_at_pc(machine: &mut Machine, _: Form) -> Result<(), Outcome> {
    advance(machine, SETTLED)?;
    for value in 2..102 {
        // A whole round at most to the function's first instruction.
        for _ in 0..8 {
            if machine.cpu().pc == POLL_FUNCTION {
                break;
            }
            advance(machine, 1)?;
        }
        expect(1, machine.cpu().pc == POLL_FUNCTION)?;
        machine.write(POLL_FUNCTION, &returns(value)[..4]).map_err(no_access)?;
        advance(machine, 1)?;
        expect(2, machine.cpu().x[10] == u64::from(value))?;
        advance(machine, 70)?;
    }
    Ok(())
}

fn host_write_illegal(machine: &mut Machine, form: Form) -> Result<(), Outcome> {
    for round in 0..20 {
        advance(machine, SETTLED)?;
        let victim = POLL_FUNCTION + 4 * (round & 1);
        machine.write(victim, &[0xff; 4]).map_err(no_access)?;
        match machine.run(&limits()) {
            MachineExit::Guest(exit) => expect(1, exit.code == TRAPPED)?,
            other => return Err(judge(other)),
        }
        let csr = &machine.cpu().csr;
        let told = match form.mode {
            Mode::Machine => (csr.mcause, csr.mepc),
            Mode::Supervisor => (csr.scause, csr.sepc),
        };
        expect(2, told == (2, victim))?;
        let entry = machine.load(&Program::Image(smc::polling(form))).map_err(unbuilt)?;
        machine.start_at(entry).map_err(unbuilt)?;
    }
    Ok(())
}

fn host_write_alias(machine: &mut Machine, _: Form) -> Result<(), Outcome> {
    let distance = 0x1_0000_0000;
    let alias = machine.map_alias(RAM_BASE + distance, RAM_BASE, 1 << 20);
    alias.map_err(|e| Outcome::Crash(format!("no alias: {e}")))?;
    for value in 0..100 {
        let written = POLL_FUNCTION + if value % 2 == 0 { distance } else { 0 };
        machine.write(written, &returns(value)).map_err(no_access)?;
        expect(1, call(machine, POLL_FUNCTION)? == u64::from(value))?;
        expect(2, call(machine, POLL_FUNCTION + distance)? == u64::from(value))?;
    }
    Ok(())
}

fn loader_over_code(machine: &mut Machine, _: Form) -> Result<(), Outcome> {
    for round in 1..=20 {
        advance(machine, SETTLED)?;
        for program in [basic::exit_with(round), smc::polling(Form::PLAIN)] {
            let exits = program.name != smc::polling(Form::PLAIN).name;
            let entry = machine.load(&Program::Image(program)).map_err(unbuilt)?;
            machine.start_at(entry).map_err(unbuilt)?;
            if exits {
                match machine.run(&limits()) {
                    MachineExit::Guest(exit) => expect(1, exit.code == u64::from(round))?,
                    other => return Err(judge(other)),
                }
            }
        }
    }
    Ok(())
}

fn remapped(machine: &mut Machine, _: Form) -> Result<(), Outcome> {
    let no_map = |e: &dyn std::fmt::Display| Outcome::Crash(format!("no map: {e}"));
    let (one, two, place) = (0x2_0000_0000, 0x3_0000_0000, 0x4_0000_0000);
    let first = machine.add_ram("first", one, 1 << 20).map_err(|e| no_map(&e))?;
    let second = machine.add_ram("second", two, 1 << 20).map_err(|e| no_map(&e))?;
    machine.write(one, &returns(1)).map_err(no_access)?;
    machine.write(two, &returns(2)).map_err(no_access)?;
    for _ in 0..50 {
        for (ram, value) in [(&first, 1), (&second, 2)] {
            let region = machine.map_again(ram, place).map_err(|e| no_map(&e))?;
            expect(1, call(machine, place)? == value)?;
            expect(2, call(machine, place)? == value)?;
            machine.unmap(region).map_err(|e| no_map(&e))?;
        }
    }
    Ok(())
}

fn single_steps(machine: &mut Machine, _: Form) -> Result<(), Outcome> {
    let patience = limits();
    loop {
        let until = machine.cpu().retired + 1;
        match machine.run(&RunLimits { max_insns: Some(until), ..patience }) {
            MachineExit::InsnLimit => {}
            exit => {
                return match judge(exit) {
                    Outcome::Pass => Ok(()),
                    other => Err(other),
                };
            }
        }
    }
}
