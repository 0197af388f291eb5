//! Tier 2: a region that is hot gets host registers for its values, not for guest registers.
//!
//! ```text
//!   Region of guest registers ─▶ simplify rotations; ops that nothing asks for go
//!                             ─▶ webs     a value, from the writes that make it to the last place that may want it
//!                             ─▶ alloc    busiest first, each the first host register that is free where it is used
//!                             ─▶ narrow   which need no sign extension
//!                             ─▶ rewrite  the same ops on host registers (`HOST` + k) and on memory
//!                                frames   what is where at the entry, at each exit, at each site
//! ```
//!
//! Memory is the guest register's own place in `CpuState`: the *home* of each of its values, one after the other. A value is
//!
//! ```text
//!   in a register as long as anything may ask for it      a site or an exit writes it home, out of line      REG
//!   in a register where it is used, and written home      where it is made: later askers find it there       BOTH
//!   at home only                                          the host's instructions have it as memory operand  HOME
//! ```
//!
//! So a guest register that holds one temporary after the other costs a host register only from each write to its last use.
//! At the region's borders the back end's fixed map holds: chains and the jump cache know nothing of this.
//!
//! A site may trap and show every register, so nearly every value is wanted until its register is written again: that is the
//! *cold* part of its life; the *hot* part ends with its last use by an op.
mod alloc;
mod index;
mod narrow;
pub(crate) mod reach;
mod share;
mod simplify;
mod sink;
mod split;
mod turns;
mod webs;

pub(crate) use index::MOST as MOST_INDEX;
pub(crate) use split::DISPLACEMENT;
pub(crate) use split::MOST_CHECKS;

use crate::ir::{Ir, Kind, Operands, Region, Target, Term};

/// Operands from here on are host registers, by their place in [`PINNED`].
pub(crate) const HOST: u8 = 64;
/// Host registers that are given out.
pub(crate) const HOSTS: usize = 10;
/// The guest register that each host register has at the region's borders.
pub(crate) const PINNED: [u8; HOSTS] = [2, 8, 9, 10, 11, 12, 13, 14, 15, 16];
/// The host registers that a call to Rust leaves alone, a bit each.
pub(crate) const SAVED: u16 = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 9;

/// The host register that has a guest register at the borders.
pub(crate) fn pin_of(guest: u8) -> Option<u8> {
    PINNED.iter().position(|&g| g == guest).map(|k| k as u8)
}

/// A guest register and the host register that has its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// The guest register.
    pub(crate) guest: u8,
    /// Its host register, by its place in [`PINNED`].
    pub(crate) host: u8,
    /// Are its 32 low bits all that counts there? At home it is sign-extended.
    pub(crate) narrow: bool,
}

/// Part of [`Frames::places`].
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Places {
    from: u32,
    to: u32,
}

/// Where values are at the borders of a region, and at its sites.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    places: Vec<Place>,
    /// At the entry: these are written home; these are loaded into registers.
    home: Places,
    load: Places,
    /// At the head of each block, and at its end: in registers, and not at home.
    heads: Vec<Places>,
    terms: Vec<Places>,
    /// The same at each site; and what is in registers behind it.
    sites: Vec<(Places, Places)>,
}

impl Frames {
    /// Is there anything? A region of guest registers has no frames.
    pub(crate) fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.places.clear();
        self.heads.clear();
        self.terms.clear();
        self.sites.clear();
    }

    /// A copy, in memory that is there.
    pub(crate) fn copy_from(&mut self, other: &Frames) {
        let Frames { places, home, load, heads, terms, sites } = other;
        self.places.clone_from(places);
        self.heads.clone_from(heads);
        self.terms.clone_from(terms);
        self.sites.clone_from(sites);
        (self.home, self.load) = (*home, *load);
    }

    fn add(&mut self, places: impl Iterator<Item = Place>) -> Places {
        let from = self.places.len() as u32;
        self.places.extend(places);
        Places { from, to: self.places.len() as u32 }
    }

    fn get(&self, places: Places) -> &[Place] {
        &self.places[places.from as usize..places.to as usize]
    }

    /// Of the fixed map: to be written home at the entry.
    pub(crate) fn home(&self) -> &[Place] {
        self.get(self.home)
    }

    /// In registers from the entry on.
    pub(crate) fn load(&self) -> &[Place] {
        self.get(self.load)
    }

    /// In registers and not at home at the head of a block.
    pub(crate) fn head(&self, block: u16) -> &[Place] {
        self.get(self.heads[usize::from(block)])
    }

    /// The same at its end.
    pub(crate) fn term(&self, block: u16) -> &[Place] {
        self.get(self.terms[usize::from(block)])
    }

    /// The same at a site.
    pub(crate) fn before(&self, site: u16) -> &[Place] {
        self.get(self.sites[usize::from(site)].0)
    }

    /// What a site must put back into registers.
    pub(crate) fn behind(&self, site: u16) -> &[Place] {
        self.get(self.sites[usize::from(site)].1)
    }
}

/// What an op does with guest registers.
#[derive(Clone, Copy)]
struct Roles {
    writes: Option<u8>,
    reads: [Option<u8>; 2],
    /// May Rust execute it, and show every register?
    site: bool,
}

/// An integer register other than `x0`.
fn register(id: u8) -> Option<u8> {
    (1..32).contains(&id).then_some(id)
}

fn roles(ir: &Ir) -> Roles {
    let (writes, a, b, site) = match ir.kind {
        Kind::Li | Kind::ReadState => (true, false, false, false),
        Kind::Mov | Kind::Imm(_) | Kind::NarrowRotate | Kind::SwapState => (true, true, false, false),
        Kind::Reg(_) => (true, true, true, false),
        Kind::Bits(op) => (true, true, op.operands() == Operands::Two, false),
        Kind::Load(_) | Kind::LoadReserved(_) => (true, true, false, true),
        Kind::Store(_) => (false, true, true, true),
        // The other operands are floating-point registers.
        Kind::Float(_) => (true, true, false, true),
        Kind::Amo(..) | Kind::StoreConditional(_) => (true, true, true, true),
        Kind::ReadCounter | Kind::Rust => (true, false, false, true),
        Kind::FloatOn | Kind::FenceI | Kind::Hook | Kind::Tell => (false, false, false, true),
        Kind::Check | Kind::Operands => (false, true, true, false),
        Kind::LoadFast(..) => (true, true, true, false),
        Kind::StoreFast(_) => (false, true, true, false),
        Kind::Box | Kind::Fence | Kind::Cover => (false, false, false, false),
    };
    let get = |has: bool, id: u8| if has { register(id) } else { None };
    Roles { writes: get(writes, ir.rd), reads: [get(a, ir.a), get(b, ir.b)], site }
}

fn reads_of(term: &Term) -> [Option<u8>; 2] {
    match *term {
        Term::Branch { a, b, .. } | Term::Again { a, b, .. } => [register(a), register(b)],
        Term::Indirect { base, .. } => [register(base), None],
        Term::Count { turns, .. } => [register(turns.clock), register(turns.bound)],
        Term::Turn { clock, .. } => [register(clock), None],
        Term::Goto(_) | Term::Fork { .. } | Term::System { .. } => [None, None],
    }
}

/// May control leave the region behind this?
fn leaves(term: &Term) -> bool {
    let mut leaves = matches!(term, Term::Indirect { .. } | Term::System { .. });
    term.each_target(|target| leaves |= matches!(target, Target::Exit(_)));
    leaves
}

/// What was learned of the instruction at a pc: that its accesses are often misaligned, or beside code, or to RAM that has not the
/// addend which is assumed.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Learned {
    pub(crate) odd: bool,
    pub(crate) beside: bool,
    pub(crate) elsewhere: bool,
    /// It loads from pages outside the run that needs no entries.
    pub(crate) beside_run: bool,
}

/// What may be checked ahead of where it is used, and how loops may be split.
#[derive(Clone, Copy)]
pub(crate) struct Ahead<'a> {
    /// Of their accesses.
    pub(crate) learned: &'a dyn Fn(u64) -> Learned,
    /// Are turns counted?
    pub(crate) turns: bool,
    /// Are values made where they are used?
    pub(crate) sink: bool,
    /// Are the values of turns that are counted apart from those around them?
    pub(crate) apart: bool,
    /// Is anything checked at the region's entry?
    pub(crate) share: bool,
}

/// Gives the region's values host registers, if that is worth it, or `always`, where it has not too many ops; `ahead`, if loops
/// may be split.
pub(crate) fn optimise(region: &mut Region, always: bool, ahead: Option<Ahead>) {
    simplify::simplify(region);
    if !webs::fits(region) {
        return;
    }
    region.weights.clear();
    region.weights.extend_from_slice(&region.weights_of_cycles()[..region.blocks.len()]);
    let mut always = always;
    if let Some(ahead) = ahead {
        always |= split::split(region, ahead);
        if ahead.share {
            share::share(region, ahead);
        }
    }
    let webs = webs::Webs::of(region);
    let homes = alloc::allocate(&webs);
    if always || alloc::cost(region, &webs, &homes) < alloc::cost_before(&webs) {
        alloc::rewrite(region, &webs, &homes);
    }
}
