//! A hart's state as named values, for streams.
//!
//! All of it but two: a reservation is a host address and means nothing elsewhere. A hart that comes from a stream has none, so its
//! next SC fails, as the ISA lets it at any time. Poison and canaries are a fuzzer's, and go where it does.

use super::VcpuState;
use crate::cpu::CpuState;
use crate::riscv::disasm::{FLOAT_REGISTERS, REGISTERS};
use crate::riscv::{Extension, Isa, Privilege};
use notdirty_softmmu::{Fields, Value};

impl Fields for VcpuState {
    const NAME: &'static str = "cpu";
    const VERSION: u32 = 1;

    fn each(&mut self, visit: &mut dyn FnMut(&'static str, Value<'_>)) {
        // All of it, so that a field that comes is not forgotten here.
        let VcpuState { cpu, waiting, trap_loop, told, unhandled, irq, timer_deadline, reservation: _, marks: _ } =
            self;
        let CpuState { x, pc, retired, f, privilege, hart_id, isa, csr } = cpu;
        for (name, register) in REGISTERS.iter().zip(x.iter_mut()).skip(1) {
            visit(name, Value::U64(register));
        }
        visit("pc", Value::U64(pc));
        *pc &= !1;
        visit("retired", Value::U64(retired));
        for (name, register) in FLOAT_REGISTERS.iter().zip(f.iter_mut()) {
            visit(name, Value::U64(register));
        }
        mode("privilege", privilege, visit);
        // A stream for another hart is refused: this one keeps its number.
        let mut id = *hart_id;
        visit("hart_id", Value::U64(&mut id));
        let mut bits = isa.bits();
        visit("isa", Value::U32(&mut bits));
        *isa = Isa::from_bits(bits);
        csr.each(isa.has(Extension::F), visit);
        visit("waiting", Value::Bool(waiting));
        visit("trap_loop", Value::Bool(trap_loop));
        told.each(visit);
        unhandled.each(visit);
        visit("irq", Value::U64(irq));
        visit("timer_deadline", Value::U64(timer_deadline));
    }
}

/// A mode by its bits.
pub(in crate::exec) fn mode(name: &'static str, mode: &mut Privilege, visit: &mut dyn FnMut(&'static str, Value<'_>)) {
    let mut bits = mode.bits() as u8;
    visit(name, Value::U8(&mut bits));
    *mode = Privilege::from_bits(bits.into());
}
