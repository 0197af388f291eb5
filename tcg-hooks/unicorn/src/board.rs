//! The board of `notdirty`, as far as Unicorn's callbacks can play it.

use std::cell::Cell;
use std::io::Write;
use std::rc::Rc;
use std::time::Instant;

use unicorn_engine::{Arch, Mode, Prot, RegisterRISCV, Unicorn, uc_error};

use crate::elf::Program;

const RAM: u64 = 0x8000_0000;
const RAM_SIZE: u64 = 128 << 20;
const FINISHER: u64 = 0x10_0000;
const CLINT: u64 = 0x200_0000;
const UART: u64 = 0x1000_0000;
const MTIME: u64 = 0xbff8;
const LSR: u64 = 5;
const SCR: u64 = 7;
/// Transmitter empty, and its shift register too.
const LSR_IDLE: u64 = 0x60;

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The guest wrote to the finisher: its exit code.
    Finished(u16),
    /// An exception that the guest's own handler never saw: Unicorn's number for it, and the pc it shows.
    Trap {
        /// Unicorn's number of the exception.
        number: u32,
        /// Where it says the guest was; see the crate's list of known faults.
        pc: u64,
    },
    /// Unicorn gave up.
    Error(uc_error),
}

/// What each of 16 further blocks of 2 MiB takes, in nanoseconds, when there are `present` of them.
pub fn time_mem_map(present: u64) -> Result<Vec<u128>, uc_error> {
    let mut uc = Unicorn::new(Arch::RISCV, Mode::RISCV64)?;
    let mut times = Vec::new();
    for n in 0..present + 16 {
        let start = Instant::now();
        uc.mem_map((1 << 36) + (n << 22), 2 << 20, Prot::ALL)?;
        if n >= present {
            times.push(start.elapsed().as_nanos());
        }
    }
    Ok(times)
}

/// Runs a program to its end; what it prints goes to `console`.
pub fn run(program: &Program<'_>, console: &mut dyn Write) -> Result<End, uc_error> {
    let finished = Rc::new(Cell::new(None));
    let trapped = Rc::new(Cell::new(None));
    let mut uc = Unicorn::new(Arch::RISCV, Mode::RISCV64)?;
    uc.mem_map(RAM, RAM_SIZE, Prot::ALL)?;
    for &(address, bytes, _) in &program.segments {
        uc.mem_write(address, bytes)?; // RAM starts out as zeroes: nothing to do for .bss
    }
    let end = finished.clone();
    uc.mmio_map_wo(FINISHER, 0x1000, move |uc, _, _, value| {
        let code = match value & 0xffff {
            0x5555 => 0,
            0x3333 => (value >> 16) as u16,
            _ => return,
        };
        end.set(Some(code));
        uc.emu_stop().ok();
    })?;
    let start = Instant::now();
    let clint_read = move |_: &mut Unicorn<'_, ()>, offset: u64, size: usize| match offset & !7 {
        MTIME => {
            let ticks = (start.elapsed().as_nanos() / 100) as u64 >> (8 * (offset & 7));
            if size == 8 { ticks } else { ticks & ((1 << (8 * size)) - 1) }
        }
        _ => 0,
    };
    uc.mmio_map(CLINT, 0x1_0000, Some(clint_read), Some(|_: &mut Unicorn<'_, ()>, _, _, _| {}))?;
    // The console is borrowed for the run only, and callbacks want to own what they use: they fill a buffer of bytes.
    let (printed, scratch) = (Rc::new(Cell::new(Vec::new())), Rc::new(Cell::new(0)));
    let (print, scratch_write) = (printed.clone(), scratch.clone());
    uc.mmio_map(
        UART,
        0x1000,
        Some(move |_: &mut Unicorn<'_, ()>, offset: u64, _: usize| match offset {
            LSR => LSR_IDLE,
            SCR => scratch.get(),
            _ => 0,
        }),
        Some(move |_: &mut Unicorn<'_, ()>, offset: u64, _: usize, value: u64| match offset {
            0 => {
                let mut bytes = print.take();
                bytes.push(value as u8);
                print.set(bytes);
            }
            SCR => scratch_write.set(value & 0xff),
            _ => {}
        }),
    )?;
    let trap = trapped.clone();
    uc.add_intr_hook(move |uc, number| {
        trap.set(Some((number, uc.reg_read(RegisterRISCV::PC).unwrap_or_default())));
        uc.emu_stop().ok();
    })?;
    let result = uc.emu_start(program.entry, u64::MAX, 0, 0);
    console.write_all(&printed.take()).ok();
    Ok(match (finished.get(), trapped.get(), result) {
        (Some(code), _, _) => End::Finished(code),
        (_, Some((number, pc)), _) => End::Trap { number, pc },
        (_, _, Err(error)) => End::Error(error),
        (_, _, Ok(())) => End::Error(uc_error::OK),
    })
}
