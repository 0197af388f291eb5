//! Counters, and `fence.i` with nothing to do, in line; what is not so simple is a site behind the TB.
//!
//! ```text
//!   minstret:  inhibited? ──▶ site      retired + slice - budget - refund + offset, as `Context::settle` counts
//!   fence.i:   kicked? anything to compare or to drop? ──▶ site
//! ```
use super::asm::{Flag, Hole};
use super::offsets::{BASE, BUDGET, CODE_WORK, KICK, SLICE, STOPPED};
use super::regs::RAX;
use super::{Cold, Emitter};
use crate::cpu::CpuState;
use crate::ir::Ir;
use dynasmrt::dynasm;
use std::mem::offset_of;

const RETIRED: i32 = offset_of!(CpuState, retired) as i32 - BASE;

impl Emitter {
    /// Reads a counter: `imm` is where its offset is in the state, `a` its bit of what stops counters, and `b` how many
    /// instructions of its block there are before and with this one (which is what a block can have).
    pub(super) fn read_counter(&mut self, ir: &Ir) {
        let refund = i32::from(self.block_insns) - i32::from(ir.b);
        dynasm!(self.ops; .arch x64; test BYTE [rbp + STOPPED], 1 << ir.a);
        let inhibited = self.ops.jump_if(Flag::NotEqual);
        dynasm!(self.ops; .arch x64
            ; mov rax, [rbp + RETIRED]
            ; add rax, [rbp + SLICE]
            ; add rax, [rbp + (ir.imm as i32 - BASE)]
            ; sub rax, DWORD refund);
        if self.flags.budget_register {
            dynasm!(self.ops; .arch x64; sub rax, r15);
        } else {
            dynasm!(self.ops; .arch x64; sub rax, [rbp + BUDGET]);
        }
        if ir.rd != 0 {
            self.put(ir.rd, RAX);
        }
        self.site_behind(&[inhibited], ir.site);
    }

    pub(super) fn fence_i(&mut self, site: u16) {
        dynasm!(self.ops; .arch x64; cmp QWORD [rbp + CODE_WORK], 0);
        let work = self.ops.jump_if(Flag::NotEqual);
        // What another hart stored before a flag that this one has read was posted before the flag (TB-1); the host
        // loads in order.
        dynasm!(self.ops; .arch x64; mov rax, [rbp + KICK]; cmp BYTE [rax], 0);
        let kicked = self.ops.jump_if(Flag::NotEqual);
        self.site_behind(&[work, kicked], site);
    }

    /// These jumps lead to a site behind the TB, from which control comes back to here.
    fn site_behind(&mut self, from: &[Hole], site: u16) {
        let back = self.here();
        self.cold.extend(from.iter().map(|&from| Cold::Site { from, site, back }));
    }
}
