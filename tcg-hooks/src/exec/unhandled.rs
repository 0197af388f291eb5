//! Traps that nobody handles: the first of them is remembered, as all that follow only say that there was no handler.
//!
//! ```text
//!   exception ─▶ first ─▶ handler ─┬─ mret, sret, or a long time without a trap ─▶ handled: forgotten
//!                                  └─ exception in the handler ─▶ registers are kept ─▶ the same again ─▶ stuck
//! ```
//!
//! Stuck is a hart whose handler cannot be fetched or traps at its first instruction: nothing will retire again. So is one whose
//! handler, straight from its start, faults at the same place some times in a row, and any whose handler does so
//! for what is an eternity; a handler that leaves by a jump and not by `mret` or `sret`, for a program that means to fault in a
//! loop, is neither. `ecall` and `ebreak` in a handler are meant, so they count only at its first instruction.

use crate::cpu::CpuState;
use crate::guest::{Mode, Trap, hart};
use notdirty_softmmu::Value;

/// Instructions without a trap after which a handler is thought to have done its work, though no return said so.
const CHAIN: u64 = 1 << 16;
/// Faults in a row, near the handler's start.
const NEAR: u32 = 8;
/// Faults in a row, anywhere.
const FAR: u32 = 1 << 20;

/// A trap and where it was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct TrapAt {
    /// Why.
    pub trap: Trap,
    /// The instruction that did not complete.
    pub pc: u64,
    /// The mode that it was in.
    pub mode: Mode,
}

/// A trap that nobody handles; see [`Vcpu::unhandled`](super::Vcpu::unhandled).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnhandledTrap {
    /// The first one.
    pub first: TrapAt,
    /// What its handler, or the attempt to enter it, came to.
    pub handler: TrapAt,
    /// Where the handler should be: `mtvec`, or `stvec` of a trap that is delegated.
    pub vector: u64,
    /// The integer registers when the handler trapped: those of the first trap, if it retired no instruction.
    pub x: [u64; 32],
    /// How many it retired.
    pub retired: u64,
}

/// A hart's exceptions since the last return from a trap.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Traps {
    open: bool,
    /// An exception came while it was open: `x` and `nested` are those of its first, `last` is the last.
    nested: bool,
    stuck: bool,
    /// Somebody was told of it.
    told: bool,
    repeats: u32,
    vector: u64,
    /// When the last one was taken.
    retired: u64,
    /// Instructions between the last two.
    gap: u64,
    first: TrapAt,
    last: TrapAt,
    inner: TrapAt,
    inner_gap: u64,
    x: [u64; 32],
}

impl TrapAt {
    fn each(&mut self, names: [&'static str; 4], visit: &mut dyn FnMut(&'static str, Value<'_>)) {
        let TrapAt { trap: Trap { cause, tval }, pc, mode } = self;
        let [cause_name, tval_name, pc_name, mode_name] = names;
        visit(cause_name, Value::U64(cause));
        visit(tval_name, Value::U64(tval));
        visit(pc_name, Value::U64(pc));
        hart::mode(mode_name, mode, visit);
    }
}

impl Traps {
    /// As named values.
    pub(crate) fn each(&mut self, visit: &mut dyn FnMut(&'static str, Value<'_>)) {
        let Traps { open, nested, stuck, told, repeats, vector, retired, gap, first, last, inner, inner_gap, x } = self;
        visit("trap_open", Value::Bool(open));
        visit("trap_nested", Value::Bool(nested));
        visit("trap_stuck", Value::Bool(stuck));
        visit("trap_told", Value::Bool(told));
        visit("trap_repeats", Value::U32(repeats));
        visit("trap_vector", Value::U64(vector));
        visit("trap_retired", Value::U64(retired));
        visit("trap_gap", Value::U64(gap));
        first.each(["trap_first_cause", "trap_first_tval", "trap_first_pc", "trap_first_mode"], visit);
        last.each(["trap_last_cause", "trap_last_tval", "trap_last_pc", "trap_last_mode"], visit);
        inner.each(["trap_inner_cause", "trap_inner_tval", "trap_inner_pc", "trap_inner_mode"], visit);
        visit("trap_inner_gap", Value::U64(inner_gap));
        let mut registers = x.to_vec();
        visit("trap_registers", Value::U64s(&mut registers));
        *x = std::array::from_fn(|n| registers.get(n).copied().unwrap_or(0));
    }

    /// An exception is about to be taken at `cpu.pc`; `vector` is `mtvec` or `stvec`. Is the hart stuck?
    #[inline]
    pub(crate) fn exception(&mut self, cpu: &CpuState, trap: &Trap, vector: u64) -> bool {
        let gap = cpu.retired.wrapping_sub(self.retired);
        self.retired = cpu.retired;
        if self.open && gap <= CHAIN && self.vector == vector {
            return self.again(cpu, trap, gap);
        }
        self.first = TrapAt { trap: *trap, pc: cpu.pc, mode: cpu.privilege };
        self.vector = vector;
        (self.open, self.nested, self.stuck, self.told, self.repeats) = (true, false, false, false, 0);
        false
    }

    #[cold]
    fn again(&mut self, cpu: &CpuState, trap: &Trap, gap: u64) -> bool {
        let this = TrapAt { trap: *trap, pc: cpu.pc, mode: cpu.privilege };
        let before = if self.nested { self.last } else { self.first };
        if !self.nested {
            (self.nested, self.x, self.inner, self.inner_gap) = (true, cpu.x, this, gap);
        }
        // Only the values of `mtval` may differ: a stack pointer that sinks.
        let same = before.pc == this.pc && before.trap.cause == this.trap.cause;
        self.repeats = if same && (self.repeats == 0 || gap == self.gap) { self.repeats + 1 } else { 0 };
        (self.last, self.gap) = (this, gap);
        let base = hart::code_at(self.vector);
        let near = this.pc >= base && (this.pc - base) / 4 <= gap;
        let fault = !hart::is_meant(trap);
        self.stuck = if this.pc == base && gap == 0 {
            self.repeats > 0
        } else {
            fault && self.repeats >= if near { NEAR } else { FAR }
        };
        self.stuck
    }

    /// `mret` or `sret`: what trapped was handled.
    #[inline]
    pub(crate) fn returned(&mut self) {
        self.open = false;
    }

    /// Nothing of what was is of concern to what comes.
    pub(crate) fn forget(&mut self) {
        *self = Traps::default();
    }

    /// The first time that somebody asks while the hart is stuck.
    pub(crate) fn take_news(&mut self) -> bool {
        self.stuck && !std::mem::replace(&mut self.told, true)
    }

    /// What the hart is stuck in, if it has not come out of it since.
    pub(crate) fn unhandled(&self, cpu: &CpuState) -> Option<UnhandledTrap> {
        let alike = self.last.pc == self.inner.pc && self.last.trap.cause == self.inner.trap.cause;
        // Of a stack pointer that sinks, where it was; else what it has come to by now.
        let (handler, retired) = if alike { (self.inner, self.inner_gap) } else { (self.last, self.gap) };
        (self.open && self.stuck && cpu.pc == hart::code_at(self.vector)).then_some(UnhandledTrap {
            first: self.first,
            handler,
            vector: self.vector,
            x: self.x,
            retired,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::riscv::Privilege;
    use crate::riscv::trap::{self, cause};

    const LOAD: Trap = Trap { cause: cause::LOAD_ACCESS, tval: 0x10 };
    const STORE: Trap = Trap { cause: cause::STORE_ACCESS, tval: 0x8 };
    const FETCH: Trap = Trap { cause: cause::FETCH_ACCESS, tval: 0 };

    fn cpu(mtvec: u64) -> CpuState {
        let mut cpu = CpuState::new(0, 0x8000_0000);
        cpu.csr.mtvec = mtvec;
        cpu
    }

    /// `insns` later, at `pc`.
    fn trap(traps: &mut Traps, cpu: &mut CpuState, insns: u64, pc: u64, trap: Trap) -> bool {
        cpu.retired += insns;
        cpu.pc = pc;
        let stuck = traps.exception(cpu, &trap, cpu.csr.mtvec);
        cpu.pc = cpu.csr.mtvec & !3;
        stuck
    }

    #[test]
    fn without_a_handler_the_first_trap_is_kept() {
        let (mut traps, mut cpu) = (Traps::default(), cpu(0));
        assert!(!trap(&mut traps, &mut cpu, 100, 0x8000_0040, LOAD));
        assert!(!trap(&mut traps, &mut cpu, 0, 0, FETCH));
        assert!(trap(&mut traps, &mut cpu, 0, 0, FETCH));
        let unhandled = traps.unhandled(&cpu).unwrap();
        assert_eq!(unhandled.first, TrapAt { trap: LOAD, pc: 0x8000_0040, mode: Privilege::M });
        assert_eq!((unhandled.handler, unhandled.retired), (TrapAt { trap: FETCH, pc: 0, mode: Privilege::M }, 0));
        assert!(traps.take_news() && !traps.take_news());
        cpu.pc = 0x8000_0000;
        assert_eq!(traps.unhandled(&cpu), None, "it goes on elsewhere");
    }

    #[test]
    fn a_handler_that_faults_on_its_own_stack_is_stuck_after_some_rounds() {
        let (mut traps, mut cpu) = (Traps::default(), cpu(0x8000_0100));
        trap(&mut traps, &mut cpu, 100, 0x8000_0040, LOAD);
        cpu.x[2] = 0x800;
        let rounds = (1..100).find(|n| {
            let tval = 0x1000 - 16 * n;
            trap(&mut traps, &mut cpu, 1, 0x8000_0104, Trap { tval, ..STORE })
        });
        assert_eq!(rounds, Some(u64::from(NEAR) + 1));
        let unhandled = traps.unhandled(&cpu).unwrap();
        assert_eq!((unhandled.first.trap, unhandled.x[2], unhandled.retired), (LOAD, 0x800, 1));
        assert_eq!(unhandled.handler.trap.tval, 0x1000 - 16, "the first one in the handler");
    }

    #[test]
    fn a_delegated_trap_is_stuck_in_the_handler_of_its_own_mode() {
        let (mut traps, mut cpu) = (Traps::default(), cpu(0x8000_0100));
        (cpu.csr.stvec, cpu.csr.medeleg, cpu.privilege) =
            (1, 1 << cause::FETCH_ACCESS | 1 << cause::LOAD_ACCESS, Privilege::U);
        cpu.pc = 0x8000_0040;
        let mut stuck = [false; 3];
        for (stuck, cause) in stuck.iter_mut().zip([LOAD, FETCH, FETCH]) {
            let vector = if trap::is_delegated(&cpu, &cause) { cpu.csr.stvec } else { cpu.csr.mtvec };
            *stuck = traps.exception(&cpu, &cause, vector);
            let pc = cpu.pc;
            trap::take_trap(&mut cpu, &cause, pc);
        }
        assert_eq!(stuck, [false, false, true]);
        let unhandled = traps.unhandled(&cpu).unwrap();
        assert_eq!((unhandled.vector, unhandled.first.mode, unhandled.handler.mode), (1, Privilege::U, Privilege::S));
    }

    #[test]
    fn what_is_handled_is_forgotten() {
        let (mut traps, mut cpu) = (Traps::default(), cpu(0x8000_0100));
        for _ in 0..1000 {
            assert!(!trap(&mut traps, &mut cpu, 50, 0x8000_0040, LOAD));
            traps.returned();
        }
        // A handler that jumps away, for a program that faults on purpose: far from the handler, again and again.
        for _ in 0..1000 {
            assert!(!trap(&mut traps, &mut cpu, 50, 0x8000_1040, LOAD));
        }
        // A program that calls itself from its handler.
        for _ in 0..1000 {
            assert!(!trap(&mut traps, &mut cpu, 1, 0x8000_0104, Trap::ecall(Privilege::M)));
        }
    }
}
