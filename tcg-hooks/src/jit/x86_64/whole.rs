//! Loads that look for no TLB entry: what they compare with instead.
//!
//! ```text
//!   machine mode   lea rax,[base+imm-start]               ; cmp rax,[whole] ; jae slow     flat RAM (`Selected::whole`)
//!   page tables    lea rax,[base+imm] ; sub rax,[start]   ; cmp rax,[run]   ; jae slow     a run of pages (`Selected::run`)
//!   several        … the first one's place in rax   ; lea rcx,[rax+more] ; or rax,rcx ; cmp rax,[len] ; jae slow
//! ```
//!
//! Two places are each less than a length if both together, bit by bit, are; where they lie on one page nothing else is more. `slow` is
//! the routine of the access, which looks for the entry then (`again.rs`).
use super::asm::{Flag, Hole};
use super::encode::{CMP, LEA, SUB, WIDE};
use super::mem::Taken;
use super::offsets::{RUN, RUN_START, WHOLE};
use super::regs::RAX;
use super::{Addend, Emitter};
use dynasmrt::dynasm;
use notdirty_softmmu::tlb::entry::WIDEST;

/// Where loads find RAM with the assumed addend, whatever entries there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whole {
    /// In flat RAM, of machine mode: what is added to an address for the place in it.
    Flat(i32),
    /// In the run of pages of the regime's set.
    Run,
}

/// Several loads in a run of pages, which may be short, are one answer if they begin so near each other: what lies on two pages
/// is seldom.
const NEAR: i32 = 256;

/// How far behind the first byte the last load may begin: any that begins at a place in it lies in it whole, of up to so many bytes.
pub(super) fn starts((first, last): (i32, i32)) -> i32 {
    (last - first - (WIDEST as i32 - 1)).max(0)
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

    /// Are several loads, from the first byte to the last, in it? If not, it jumps; also where they are, but on two pages whose places
    /// together make a higher one than there is.
    pub(super) fn probe_whole_group(&mut self, base: u8, reach: (i32, i32), whole: Whole) -> (Hole, Option<Hole>) {
        let (first, more) = (reach.0, starts(reach));
        if more == 0 || whole == Whole::Run && more > NEAR {
            return self.probe_whole_reach(base, reach, false, whole);
        }
        self.place_in(base, first, whole);
        dynasm!(self.ops; .arch x64; lea rcx, [rax + more]; or rax, rcx);
        self.ops.slot(WIDE, CMP, RAX, whole.len());
        (self.ops.jump_if(Flag::NotBelow), None)
    }

    /// The same with an answer for the first and one for the last, wherever they lie; or for loads that need one.
    pub(super) fn probe_whole_reach(
        &mut self,
        base: u8,
        (first, last): (i32, i32),
        alone: bool,
        whole: Whole,
    ) -> (Hole, Option<Hole>) {
        let more = if alone { 0 } else { starts((first, last)) };
        let from = self.probe_whole(base, first, whole);
        (from, (more > 0).then(|| self.probe_whole(base, first + more, whole)))
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
