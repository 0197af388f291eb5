//! The cases of the self-modifying suite in which the host writes, by the API of Unicorn; the names are those of
//! `notdirty smc-test`, where they have one.

use unicorn_engine::{Arch, Mode, Prot, RegisterRISCV, Unicorn, uc_error};

const RAM: u64 = 0x8000_0000;
const RAM_SIZE: u64 = 1 << 20;
const FUNCTION: u64 = RAM + 0x1000;
/// Where the function returns to, and the run ends.
const BACK: u64 = RAM;
const ROUNDS: u32 = 50;

/// A case: its name, and what runs it; `Err` says what went wrong.
pub type Case = (&'static str, fn() -> Result<(), String>);

/// All of them.
pub const CASES: &[Case] = &[
    ("host_write", || host_write(Write::Plain)),
    ("host_write, then remove_cache", || host_write(Write::RemoveCache)),
    ("host_write_at_pc", host_write_at_pc),
    ("host_write_in_hook", host_write_in_hook),
    ("remapped", remapped),
];

#[derive(Clone, Copy)]
enum Write {
    /// `uc_mem_write`, which is what people write.
    Plain,
    /// And the call that the documentation asks for.
    RemoveCache,
}

/// `addi a0, zero, value`.
fn load_a0(value: u32) -> [u8; 4] {
    (value << 20 | 0x513).to_le_bytes()
}

/// `addi a0, zero, value; ret`.
fn returns(value: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&load_a0(value));
    bytes[4..].copy_from_slice(&0x8067u32.to_le_bytes());
    bytes
}

fn said(error: uc_error) -> String {
    format!("Unicorn: {error:?}")
}

fn engine<'a>() -> Result<Unicorn<'a, ()>, String> {
    let mut uc = Unicorn::new(Arch::RISCV, Mode::RISCV64).map_err(said)?;
    uc.mem_map(RAM, RAM_SIZE, Prot::ALL).map_err(said)?;
    uc.mem_write(FUNCTION, &returns(0)).map_err(said)?;
    Ok(uc)
}

/// Runs from `pc` until the function has returned; what it returned.
fn run(uc: &mut Unicorn<'_, ()>, pc: u64) -> Result<u64, String> {
    uc.reg_write(RegisterRISCV::X1, BACK).map_err(said)?;
    uc.emu_start(pc, BACK, 0, 0).map_err(said)?;
    uc.reg_read(RegisterRISCV::X10).map_err(said)
}

fn expect(got: u64, wanted: u32) -> Result<(), String> {
    if got == u64::from(wanted) { Ok(()) } else { Err(format!("WRONG VALUE, {got} for {wanted}")) }
}

fn host_write(how: Write) -> Result<(), String> {
    let mut uc = engine()?;
    for value in 0..ROUNDS {
        uc.mem_write(FUNCTION, &returns(value)).map_err(said)?;
        if matches!(how, Write::RemoveCache) {
            uc.ctl_remove_cache(FUNCTION, FUNCTION + 8).map_err(said)?;
        }
        expect(run(&mut uc, FUNCTION)?, value)?;
    }
    Ok(())
}

/// Stopped before the function's second instruction, which is then written.
fn host_write_at_pc() -> Result<(), String> {
    let mut uc = engine()?;
    let mut code = Vec::new();
    code.extend(load_a0(1));
    code.extend(returns(2));
    uc.mem_write(FUNCTION, &code).map_err(said)?;
    expect(run(&mut uc, FUNCTION)?, 2)?;
    for value in 0..ROUNDS {
        uc.emu_start(FUNCTION, FUNCTION + 4, 0, 0).map_err(said)?;
        uc.mem_write(FUNCTION + 4, &load_a0(value)).map_err(said)?;
        expect(run(&mut uc, FUNCTION + 4)?, value)?;
        expect(run(&mut uc, FUNCTION)?, value)?;
    }
    Ok(())
}

/// A hook on the function's first instruction writes its second (issues 1148 and 2053).
fn host_write_in_hook() -> Result<(), String> {
    let mut uc = engine()?;
    let mut code = Vec::new();
    code.extend(load_a0(1000));
    code.extend(returns(1000));
    uc.mem_write(FUNCTION, &code).map_err(said)?;
    let mut value = 0;
    let hook = move |uc: &mut Unicorn<'_, ()>, _: u64, _: u32| {
        uc.mem_write(FUNCTION + 4, &load_a0(value)).ok();
        value += 1;
    };
    uc.add_code_hook(FUNCTION, FUNCTION, hook).map_err(said)?;
    (0..ROUNDS).try_for_each(|value| expect(run(&mut uc, FUNCTION)?, value))
}

/// Memory is taken away and comes back with other code (zhkl0228/unidbg issue 407).
fn remapped() -> Result<(), String> {
    let mut uc = engine()?;
    for value in 0..ROUNDS {
        uc.mem_unmap(RAM, RAM_SIZE).map_err(said)?;
        uc.mem_map(RAM, RAM_SIZE, Prot::ALL).map_err(said)?;
        uc.mem_write(FUNCTION, &returns(value)).map_err(said)?;
        expect(run(&mut uc, FUNCTION)?, value)?;
    }
    Ok(())
}
