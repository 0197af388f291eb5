//! The smallest embedding: a guest in a value, its output in a string, its code patched from outside while it runs.

use notdirty::programs::{basic, smc};
use notdirty::{BuildError, Captured, Console, Machine, MachineExit, Program, RunLimits};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    hello()?;
    patched()
}

/// A program that prints and ends.
fn hello() -> Result<(), BuildError> {
    let printed = Captured::default();
    let console = Console::new(Box::new(printed.clone()));
    let mut machine = Machine::builder().console(console).program(Program::Image(basic::hello())).build()?;
    let exit = machine.run_to_end();
    println!("the guest printed {:?} and ended with {exit:?}", printed.text());
    Ok(())
}

/// A program that calls a function for ever, until the host has changed what the function returns, and a flag.
fn patched() -> Result<(), Box<dyn std::error::Error>> {
    let mut machine =
        Machine::builder().ram_size(1 << 20).program(Program::Image(smc::polling(smc::Form::PLAIN))).build()?;
    let until = |insns| RunLimits { max_insns: Some(insns), deadline: None };
    assert_eq!(machine.run(&until(10_000)), MachineExit::InsnLimit);
    println!("after {} instructions the sum is {}", machine.cpu().retired, machine.cpu().x[18]);

    let load_42 = 0x02a0_0513u32; // addi a0, zero, 42
    let report = machine.write(smc::POLL_FUNCTION, &load_42.to_le_bytes())?;
    assert_eq!(machine.run(&until(20_000)), MachineExit::InsnLimit);
    println!("patched, {} translations dropped; now the sum is {}", report.tbs_killed, machine.cpu().x[18]);

    machine.write(smc::POLL_FLAG, &[1])?;
    println!("and it ends with {:?}", machine.run_to_end());
    Ok(())
}
