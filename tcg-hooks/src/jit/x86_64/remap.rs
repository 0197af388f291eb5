//! A region with loops may give host registers to other guest registers than the fixed map does, while it runs.
//!
//! ```text
//!   entry:  [g] ← h ; h ← [r]        h: host register, g: whose it is elsewhere, r: whose it is in this region
//!   …loops: r is in h, g is a memory operand
//!   out:    [r] ← h ; h ← [g]        before every exit and before a site; after a site, h ← [r]
//! ```
//!
//! At its borders the fixed map holds, so chains, the jump cache, the thunks and the helpers know nothing of it. The
//! way out is a subroutine of the TB: a call is one jump more, on paths that leave loops.
use super::asm::Label;
use super::encode::{MOV, MOV_TO, WIDE};
use super::regs::{PINS, RegMap};
use super::{Emitter, off};
use crate::ir::{Kind, Region, Term};
use dynasmrt::dynasm;

/// A register must be worth this much more than the one it replaces: three uses in a loop.
const GAIN: u32 = 24;

/// Host register, the guest register it has elsewhere, and the one it has here.
pub(super) type Swap = (u8, u8, u8);

/// The exchange in force in the region being emitted.
#[derive(Default)]
pub(super) struct Remap {
    swaps: Vec<Swap>,
    /// The way out and the way back in, once somebody asked for them.
    out: Option<Label>,
    back: Option<Label>,
}

impl Remap {
    /// Nothing is exchanged.
    pub(super) fn forget(&mut self) {
        self.swaps.clear();
        (self.out, self.back) = (None, None);
    }
}

/// Which exchanges pay for this region.
fn choose(region: &Region, swaps: &mut Vec<Swap>) {
    swaps.clear();
    if !region.loops {
        return;
    }
    let mut uses = [0u32; 32];
    for (block, weight) in region.blocks.iter().zip(region.weights()) {
        // Floating-point registers are never in these.
        let mut used = |register: u8| {
            if let Some(uses) = uses.get_mut(usize::from(register)) {
                *uses += weight;
            }
        };
        for ir in &region.ops[block.first as usize..block.end as usize] {
            match ir.kind {
                Kind::Rust | Kind::Fence | Kind::FenceI | Kind::FloatOn | Kind::Box => continue,
                Kind::Cover | Kind::Hook | Kind::Tell => continue,
                Kind::Li | Kind::ReadState | Kind::ReadCounter => used(ir.rd),
                Kind::Store(_) | Kind::Operands => {
                    used(ir.a);
                    used(ir.b);
                }
                Kind::Reg(_) | Kind::Bits(_) | Kind::Amo(..) | Kind::StoreConditional(_) => {
                    used(ir.rd);
                    used(ir.a);
                    used(ir.b);
                }
                _ => {
                    used(ir.rd);
                    used(ir.a);
                }
            }
        }
        match block.term {
            Term::Branch { a, b, .. } => {
                used(a);
                used(b);
            }
            Term::Indirect { base, .. } => used(base),
            _ => {}
        }
    }
    uses[0] = 0;
    let mut pinned = PINS;
    pinned.sort_unstable_by_key(|&(guest, _)| uses[usize::from(guest)]);
    let mut others: [u8; 32] = std::array::from_fn(|i| i as u8);
    others.sort_unstable_by_key(|&guest| std::cmp::Reverse(uses[usize::from(guest)]));
    let others = others.into_iter().filter(|&r| PINS.iter().all(|p| p.0 != r));
    for ((g, h), r) in pinned.into_iter().zip(others) {
        if uses[usize::from(r)] < uses[usize::from(g)] + GAIN {
            break;
        }
        swaps.push((h, g, r));
    }
}

impl Emitter {
    /// Decides on the region's map.
    pub(super) fn remap(&mut self, region: &Region) {
        self.map = RegMap::new(self.flags.pinned);
        self.remap.forget();
        if self.flags.pinned && self.flags.remap {
            choose(region, &mut self.remap.swaps);
        }
        for &(h, g, r) in &self.remap.swaps {
            self.map.exchange(h, g, r);
        }
    }

    /// Does the region have a map of its own?
    pub(super) fn is_remapped(&self) -> bool {
        !self.remap.swaps.is_empty()
    }

    /// Are values moved when control comes in and goes out?
    pub(super) fn moves_at_borders(&self) -> bool {
        self.is_remapped() || self.is_named()
    }

    /// At the region's entry: from the fixed map to its own.
    pub(super) fn swap_at_entry(&mut self) {
        for &(h, g, r) in &self.remap.swaps {
            self.ops.slot(WIDE, MOV_TO, h, off(g));
            self.ops.slot(WIDE, MOV, h, off(r));
        }
    }

    /// Back to the fixed map; rax, rcx, rdx and the flags survive.
    pub(super) fn swap_out(&mut self) {
        if self.is_remapped() {
            let ops = &mut self.ops;
            let label = *self.remap.out.get_or_insert_with(|| ops.new_label());
            dynasm!(self.ops; .arch x64; call =>label);
        }
    }

    /// After a site: from the fixed map to the region's own.
    pub(super) fn swap_in(&mut self) {
        if self.is_remapped() {
            let ops = &mut self.ops;
            let label = *self.remap.back.get_or_insert_with(|| ops.new_label());
            dynasm!(self.ops; .arch x64; call =>label);
        }
    }

    /// The subroutines that were asked for.
    pub(super) fn swap_routines(&mut self) {
        if let Some(label) = self.remap.out {
            dynasm!(self.ops; .arch x64; =>label);
            for &(h, g, r) in &self.remap.swaps {
                self.ops.slot(WIDE, MOV_TO, h, off(r));
                self.ops.slot(WIDE, MOV, h, off(g));
            }
            dynasm!(self.ops; .arch x64; ret);
        }
        if let Some(label) = self.remap.back {
            dynasm!(self.ops; .arch x64; =>label);
            for &(h, _, r) in &self.remap.swaps {
                self.ops.slot(WIDE, MOV, h, off(r));
            }
            dynasm!(self.ops; .arch x64; ret);
        }
    }
}
