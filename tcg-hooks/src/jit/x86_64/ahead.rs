//! What is checked in front of a loop, and the accesses that need no check then: see `tier2/split.rs`.
use super::Emitter;
use super::context::LIMIT;
use super::regs::{RAX, RCX, RDX};
use crate::ir::{Check, Ir, MemOp};
use dynasmrt::dynasm;
use notdirty_core::PAGE_SIZE;
use notdirty_softmmu::tlb::entry::{READ, WRITE};

impl Emitter {
    /// The bytes lie on pages of RAM at K; if the base moves, on one page, and the turns are counted that they stay on it.
    pub(super) fn check_ahead(&mut self, ir: &Ir) {
        let Check { store, first, last, step, lone, cold, .. } = self.checks[ir.imm as usize];
        let comparator = if store { WRITE } else { READ };
        let base = self.source(ir.a, RDX);
        let cold = self.blocks[usize::from(cold)];
        let fail = match lone {
            Some(bytes) => self.probe_sized(base, first, bytes.into(), comparator),
            None => {
                let fail = self.probe_first(base, first, comparator);
                self.ops.aim(fail, cold);
                if step == 0 {
                    self.probe_first(base, last, comparator)
                } else {
                    self.probe_last(base, last, comparator)
                }
            }
        };
        self.ops.aim(fail, cold);
        if step != 0 {
            self.count_trips(base, if step > 0 { last } else { first }, step);
        }
    }

    /// How many turns more byte `ahead` of the base stays on its page; the fewest of all bases of this loop.
    fn count_trips(&mut self, base: u8, ahead: i32, step: i32) {
        dynasm!(self.ops; .arch x64; lea eax, [Rq(base) + ahead]; and eax, PAGE_SIZE as i32 - 1);
        if step > 0 {
            dynasm!(self.ops; .arch x64; xor eax, PAGE_SIZE as i32 - 1);
        }
        let by = step.unsigned_abs();
        if by.is_power_of_two() {
            dynasm!(self.ops; .arch x64; shr eax, by.trailing_zeros() as i8);
        } else {
            // At most what a division gives.
            dynasm!(self.ops; .arch x64; imul eax, eax, (0x1_0000 / by) as i32; shr eax, 16);
        }
        if self.counts_trips {
            dynasm!(self.ops; .arch x64; mov ecx, [rbp + LIMIT]; cmp eax, ecx; cmova eax, ecx);
        }
        self.counts_trips = true;
        dynasm!(self.ops; .arch x64; mov [rbp + LIMIT], eax);
    }

    /// Of the turns that were counted, where the clock is behind the last.
    pub(super) fn set_limit(&mut self, clock: u8, step: i32) {
        let clock = self.source(clock, RDX);
        dynasm!(self.ops; .arch x64
            ; mov eax, [rbp + LIMIT]
            ; inc eax
            ; imul rax, rax, step
            ; add rax, Rq(clock)
            ; mov [rbp + LIMIT], rax);
    }

    /// A load that was checked before, maybe with an index.
    pub(super) fn load_fast(&mut self, ir: &Ir, mem: MemOp, shift: u8) {
        let base = self.source(ir.a, RDX);
        if ir.b == 0 {
            return self.load_from_ram(base, ir, mem);
        }
        let index = self.source(ir.b, RCX);
        let disp = self.flat.unwrap_or_default() + ir.imm as i32;
        self.load_into(ir.rd, mem, base, Some((index, shift)), disp);
    }
}

const _: () = assert!(RAX == 0 && RCX == 1, "count_trips names them");
