//! Loads that look for no TLB entry: what they compare with instead.
//!
//! ```text
//!   machine mode   lea rax,[base+imm-start]               ; cmp rax,[whole] ; jae slow     flat RAM (`Selected::whole`)
//!   page tables    lea rax,[base+imm] ; sub rax,[start]   ; cmp rax,[run]   ; jae slow     a run of pages (`Selected::run`)
//! ```
//!
//! Several loads are one comparison of their last byte with what is left behind the first bytes. `slow` is the routine of the access,
//! which looks for the entry then (`again.rs`).
use super::asm::{Flag, Hole};
use super::encode::{CMP, LEA, SUB, WIDE};
use super::mem::Taken;
use super::offsets::{RUN, RUN_BEHIND, RUN_BEHIND_START, RUN_START, WHOLE, WHOLE_BEHIND};
use super::regs::RAX;
use super::{Addend, Emitter};
use dynasmrt::dynasm;
use notdirty_softmmu::tlb::entry::{FIRST_BYTES, RUN_FIRST};

/// Where loads find RAM with the assumed addend, whatever entries there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whole {
    /// In flat RAM, of machine mode: what is added to an address for the place in it.
    Flat(i32),
    /// In the run of pages of the regime's set.
    Run,
}

impl Whole {
    /// How many places there are.
    pub(super) fn len(self) -> i32 {
        match self {
            Whole::Flat(_) => WHOLE,
            Whole::Run => RUN,
        }
    }
}

impl Emitter {
    /// What a load goes by that need not look for an entry. `beside`: it was seen to be outside the run.
    #[inline(always)]
    pub(super) fn whole_for(&self, addend: Taken, beside: bool) -> Option<Whole> {
        match (addend, self.translated) {
            _ if self.known.asked => None,
            (Taken::Assumed, false) => self.whole.map(Whole::Flat),
            (Taken::Assumed, true) if self.runs && !beside && self.addend != Addend::Entry => Some(Whole::Run),
            _ => None,
        }
    }

    /// The same of the load at a site.
    #[inline(always)]
    pub(super) fn whole_at(&self, addend: Taken, site: u16) -> Option<Whole> {
        self.whole_for(addend, self.learned && self.known.beside_run.has(site))
    }

    /// Are several loads, within a page's length, from there, as far as that can be said at once? If not, it jumps.
    pub(super) fn probe_whole_group(
        &mut self,
        base: u8,
        (first, last): (i32, i32),
        whole: Whole,
    ) -> (Hole, Option<Hole>) {
        match whole {
            Whole::Flat(start) => {
                self.distance(base, last, start);
                dynasm!(self.ops; .arch x64; sub rax, DWORD FIRST_BYTES as i32; cmp rax, [rbp + WHOLE_BEHIND]);
            }
            Whole::Run if last - first < RUN_FIRST as i32 => {
                self.ops.near(WIDE, LEA, RAX, base, last);
                dynasm!(self.ops; .arch x64; sub rax, [rbp + RUN_BEHIND_START]; cmp rax, [rbp + RUN_BEHIND]);
            }
            Whole::Run => return self.probe_whole_reach(base, (first, last), false, whole),
        }
        (self.ops.jump_if(Flag::NotBelow), None)
    }

    /// The same for loads from the first byte to the last, wherever in it; or for one alone, which needs one answer.
    pub(super) fn probe_whole_reach(
        &mut self,
        base: u8,
        (first, last): (i32, i32),
        alone: bool,
        whole: Whole,
    ) -> (Hole, Option<Hole>) {
        let from = self.probe_whole(base, first, whole);
        (from, (!alone).then(|| self.probe_whole(base, last, whole)))
    }

    /// The same for loads on the page of a constant address; rax survives.
    pub(super) fn probe_whole_constant(&mut self, address: u64) -> Option<Hole> {
        let Whole::Flat(start) = self.whole_for(Taken::Assumed, false)? else { return None };
        let behind = i32::try_from(address.wrapping_add_signed(start.into()) as i64 + 1).ok().filter(|&at| at > 0)?;
        dynasm!(self.ops; .arch x64; cmp QWORD [BYTE rbp + WHOLE as i8], behind);
        Some(self.ops.jump_if(Flag::Below))
    }

    /// Is it a load from there? rax is lost, and the base register survives.
    pub(super) fn probe_whole(&mut self, base: u8, imm: i32, whole: Whole) -> Hole {
        self.place_in(base, imm, whole);
        self.ops.slot(WIDE, CMP, RAX, whole.len());
        self.ops.jump_if(Flag::NotBelow)
    }

    /// How far in it that is, in rax.
    pub(super) fn place_in(&mut self, base: u8, imm: i32, whole: Whole) {
        match whole {
            Whole::Flat(start) => self.distance(base, imm, start),
            Whole::Run => {
                self.ops.near(WIDE, LEA, RAX, base, imm);
                self.ops.slot(WIDE, SUB, RAX, RUN_START);
            }
        }
    }

    /// The same of flat RAM.
    fn distance(&mut self, base: u8, imm: i32, start: i32) {
        match start.checked_add(imm) {
            Some(both) => self.ops.far(WIDE, LEA, RAX, base, both),
            None => {
                self.ops.near(WIDE, LEA, RAX, base, imm);
                dynasm!(self.ops; .arch x64; add rax, DWORD start);
            }
        }
    }
}
