//! Chains of loads: the addend of one is guessed, so that the next does not wait for its TLB entry.
//!
//! ```text
//!   … the probe, for any addend (mem.rs)
//!   mov rax, [rbp + guess] ; cmp rax, [rdx + rcx + addend] ; jne wrong         the load before it at this site had this one
//!   mov dst, [base + rax + imm]
//!
//!   wrong:  mov rax, [rdx + rcx + addend] ; mov [rbp + guess], rax ; dec [rbp + left] ; jns the load
//!           mov [rbp + wrong_site], site ; jmp the load                        looked at after the slice: `Context::wrong_guesses`
//! ```
//!
//! The entry is compared as ever; only the host's branch predictor runs ahead of it. Right guesses take a chain from eleven
//! cycles a load to four, as without page tables. But a guess takes two operations more than the entry's addend does, and a wrong one
//! twenty cycles: only loads whose value is the base of another load guess, and of those none that is often wrong (`tb/sites.rs`).
use super::asm::{Flag, Hole};
use super::mem::Taken;
use super::offsets::{GUESSES_LEFT, WRONG_SITE, guess_off};
use super::regs::RAX;
use super::{Emitter, LOCAL_BITS};
use crate::ir::{Ir, Kind, MemOp, Region};
use crate::jit::context::GUESSES;
use crate::tb::SiteSet;
use dynasmrt::dynasm;
use notdirty_softmmu::tlb::entry::ADDEND;

/// How many ops behind a load its value is looked for.
const REACH: usize = 64;

/// What is behind a wrong guess.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wrong {
    from: Hole,
    /// Where the load itself is.
    back: u32,
    site: u16,
    slot: u8,
}

impl Emitter {
    /// A load that would take the addend of its entry guesses it, if that is worth it.
    #[inline(always)]
    pub(super) fn guessed(&self, addend: Taken, site: u16) -> Taken {
        if addend != Taken::EntryOf || !self.guessing.has(site) {
            return addend;
        }
        // Neighbours have places of their own.
        Taken::Guessed((self.tb.wrapping_mul(13).wrapping_add(site.into()) % GUESSES as u32) as u8)
    }

    /// Finds the loads of the region that guess.
    pub(super) fn find_guessing(&mut self, region: &Region) {
        self.guessing = SiteSet::NONE;
        if !self.flags.guess || !self.translated || self.known.elsewhere.is_empty() {
            return;
        }
        for (at, ir) in region.ops.iter().enumerate() {
            if matches!(ir.kind, Kind::Load(mem) if mem.bytes() == 8)
                && self.known.elsewhere.has(ir.site)
                && !self.known.varied.has(ir.site)
                && leads_on(&region.ops, at)
            {
                self.guessing.add(ir.site.into());
            }
        }
    }

    /// The load, once it was checked, if its guess is right.
    #[inline(never)]
    pub(super) fn load_guessed(&mut self, base: u8, ir: &Ir, mem: MemOp, slot: u8) {
        dynasm!(self.ops; .arch x64; mov rax, [rbp + guess_off(slot)]; cmp rax, [rdx + rcx + ADDEND]);
        let from = self.ops.jump_if(Flag::NotEqual);
        self.wrong.push(Wrong { from, back: self.here(), site: ir.site, slot });
        self.load_into(ir.rd, mem, base, Some((RAX, 0)), ir.imm as i32);
    }

    /// Behind a wrong guess: the next one is the entry's own addend, which this load takes.
    pub(super) fn wrong_part(&mut self, n: usize) {
        let Wrong { from, back, site, slot } = self.wrong[n];
        self.ops.close(from);
        dynasm!(self.ops; .arch x64
            ; mov rax, [rdx + rcx + ADDEND]
            ; mov [rbp + guess_off(slot)], rax
            ; dec DWORD [rbp + GUESSES_LEFT]);
        self.ops.jump_back_if(Flag::NotSign, back);
        let number = self.tb << LOCAL_BITS | u32::from(site);
        dynasm!(self.ops; .arch x64; mov DWORD [rbp + WRONG_SITE], number as i32);
        self.ops.jump_to(back);
    }
}

/// Is the value of the load at `at` the base of another, or of itself? As if the ops of a region ran one behind the other, and
/// again from the first one: nearly so, which is enough.
fn leads_on(ops: &[Ir], at: usize) -> bool {
    let rd = ops[at].rd;
    for ir in ops.iter().cycle().skip(at + 1).take(REACH.min(ops.len())) {
        if matches!(ir.kind, Kind::Load(_)) && ir.a == rd {
            return rd != 0;
        }
        if ir.rd == rd {
            return false;
        }
    }
    false
}
