//! Which jumps emitted code goes by: a jump cache, with the table behind it, for each way in which the hart sees its code.
//!
//! ```text
//!   Regime: mode, are addresses translated, in which address space ─▶ a set of jumps (context.rs, jumps.rs)
//!            0: M-mode, physical. Emitted code knows where its jump cache is
//!            else the one used longest ago makes room
//!   sfence.vma, PMP ─▶ fenced: sets whose code lies on what was mapped anew are emptied, at the cost of what they hold
//! ```
//!
//! What a set holds is right while the mappings of its code are. A TB itself is known by the RAM that it lies on, so it outlives
//! every change of mappings, and is found again where the code turns up.
use super::{TbCache, TbKey};
use crate::guest::Mode;
use crate::jit::Backend;
use crate::jit::context::{Context, JUMP_SETS, NO_MAPPINGS};
use hashbrown::HashSet;
use notdirty_core::PAGE_BITS;

/// How a hart sees its memory, as far as translations of code differ by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Regime(u64);

const MODE: u64 = 3;
const TRANSLATED: u64 = 1 << 2;
const FLAT: u64 = 1 << 3;
const SPACE_SHIFT: u32 = 32;

impl Regime {
    /// All addresses are physical.
    #[inline]
    pub(crate) const fn physical(mode: Mode) -> Regime {
        Regime(mode.index() as u64)
    }

    /// Loads and stores, and code, or only the former, go by page tables or PMP.
    #[inline]
    pub(crate) const fn translated(mode: Mode, space: u32) -> Regime {
        Regime(mode.index() as u64 | TRANSLATED | (space as u64) << SPACE_SHIFT)
    }

    /// The same, where what loads and stores find has the addend of flat RAM mostly, as in machine mode: it is at its physical address.
    #[inline]
    const fn flat(self) -> Regime {
        Regime(self.0 | FLAT)
    }

    /// What a translation of code depends on: [`TbKey::flags`].
    #[inline]
    pub(crate) const fn flags(self) -> u32 {
        (self.0 & (MODE | TRANSLATED | FLAT)) as u32
    }

    const fn is_translated(self) -> bool {
        self.0 & TRANSLATED != 0
    }

    /// Of the numbers of address spaces, the ASID is the low half.
    const fn asid(self) -> u16 {
        (self.0 >> SPACE_SHIFT) as u16
    }
}

impl TbKey {
    /// The mode that the translation is for.
    pub(crate) fn mode(&self) -> Mode {
        Mode::ALL[(u64::from(self.flags) & MODE) as usize % Mode::ALL.len()]
    }

    /// Are its loads and stores translated?
    pub(crate) fn is_translated(&self) -> bool {
        u64::from(self.flags) & TRANSLATED != 0
    }

    /// Do they take the addend of flat RAM for a constant, though they are?
    pub(crate) fn is_flat(&self) -> bool {
        u64::from(self.flags) & FLAT != 0
    }
}

/// What is in a set of jumps, if its addresses are translated.
#[derive(Debug, Default)]
struct Set {
    regime: Regime,
    used: u64,
    /// [`Context::mappings`], while it is the set in use.
    mappings: u32,
    /// Where its jumps lead; some of them more than once.
    noted: Vec<u64>,
    /// What its code lies on: a page or a superpage by its address, with the logarithm of its size in the low bits.
    code: HashSet<u64>,
    /// The sizes that there are, a bit each.
    sizes: u64,
    last: u64,
}

/// The sets of a vCPU.
#[derive(Debug)]
pub(super) struct Regimes {
    sets: [Set; JUMP_SETS],
    len: usize,
    clock: u64,
    /// The number of mappings that was given last.
    mappings: u32,
}

impl Default for Regimes {
    fn default() -> Self {
        // The first is M-mode's.
        Regimes { sets: Default::default(), len: 1, clock: 0, mappings: 0 }
    }
}

#[cfg(any(test, feature = "testkit"))]
impl Regimes {
    /// The flags of the TBs that a set has jumps to, if there may be one to `pc`.
    pub(super) fn knows(&self, set: usize, pc: u64) -> Option<u32> {
        let set = self.sets[..self.len].get(set)?;
        (!set.regime.is_translated() || set.noted.contains(&pc)).then(|| set.regime.flags())
    }
}

impl Set {
    /// A jump leads to `pc`, on a page that is mapped with so much around it.
    fn note(&mut self, pc: u64, size_log2: u8) {
        if self.noted.len() == self.noted.capacity() {
            self.note_once();
        }
        self.noted.push(pc);
        let key = key(pc, size_log2);
        if key != self.last {
            self.last = key;
            self.sizes |= 1 << (size_log2 & 63);
            self.code.insert(key);
        }
    }

    /// What is translated again and again, without a fence between, takes no more room.
    #[cold]
    fn note_once(&mut self) {
        self.noted.sort_unstable();
        self.noted.dedup();
        // At least half of it is free then, so that this is seldom.
        self.noted.reserve(self.noted.len().max(64));
    }

    /// Does any of its code lie on what `va` was mapped with?
    fn has(&self, va: u64) -> bool {
        let mut sizes = self.sizes;
        while sizes != 0 {
            let size = sizes.trailing_zeros() as u8;
            sizes &= sizes - 1;
            if self.code.contains(&key(va, size)) {
                return true;
            }
        }
        false
    }

    fn forget(&mut self) {
        self.noted.clear();
        self.code.clear();
        (self.sizes, self.last) = (0, 0);
    }
}

const fn key(va: u64, size_log2: u8) -> u64 {
    va >> (size_log2 & 63) << (size_log2 & 63) | size_log2 as u64
}

impl TbCache {
    /// The hart may be in another regime than emitted code went by. `flat`: the set that it looks in has the addend of flat RAM.
    #[inline]
    pub(crate) fn follow_regime(&mut self, ctx: &mut Context, flat: bool) {
        let regime = ctx.cpu.regime();
        let regime =
            if flat && regime.is_translated() && self.emitter.has_constant_addend() { regime.flat() } else { regime };
        if regime != self.regimes.sets[ctx.jump_set()].regime {
            self.change_regime(ctx, regime);
        }
    }

    /// The regime that emitted code goes by.
    #[inline]
    pub(crate) fn regime(&self, ctx: &Context) -> Regime {
        self.regimes.sets[ctx.jump_set()].regime
    }

    #[inline(never)]
    fn change_regime(&mut self, ctx: &mut Context, regime: Regime) {
        let Regimes { sets, len, clock, .. } = &mut self.regimes;
        *clock += 1;
        let known = sets[..*len].iter().position(|set| set.regime == regime);
        let set = known.unwrap_or_else(|| {
            if *len < JUMP_SETS {
                *len += 1;
                return *len - 1;
            }
            (1..JUMP_SETS).min_by_key(|&set| sets[set].used).unwrap_or(1)
        });
        sets[set].used = *clock;
        if known.is_none() {
            self.empty(ctx, set);
            self.regimes.sets[set].regime = regime;
        }
        ctx.select_jumps(set);
        ctx.mappings = self.regimes.sets[set].mappings;
        self.jumps[set].publish(ctx);
    }

    /// No jump of this set leads anywhere.
    fn empty(&mut self, ctx: &mut Context, set: usize) {
        if self.regimes.sets[set].regime.is_translated() {
            for &pc in &self.regimes.sets[set].noted {
                ctx.forget_jump(set, pc);
                self.jumps[set].remove(pc);
            }
        } else {
            ctx.forget_set(set);
            self.jumps[set].clear();
            if set == ctx.jump_set() {
                ctx.select_jumps(set);
            }
        }
        self.regimes.sets[set].forget();
        // No link made so far holds. When all numbers are gone none does any more.
        let number = &mut self.regimes.mappings;
        *number = (*number + 1).min(NO_MAPPINGS - 1);
        self.regimes.sets[set].mappings = *number;
        if set == ctx.jump_set() {
            ctx.mappings = *number;
        }
    }

    /// Are no numbers left? Then links to other pages are made no more, until all TBs are gone.
    #[inline]
    pub(crate) fn has_no_mappings(&self) -> bool {
        self.regimes.mappings >= NO_MAPPINGS - 1
    }

    /// No TB is left, so no guard has a number: they are given out from the first on.
    pub(super) fn restart_mappings(&mut self, ctx: &mut Context) {
        let Regimes { sets, len, mappings, .. } = &mut self.regimes;
        for (number, set) in (0..).zip(&mut sets[..*len]) {
            (set.mappings, *mappings) = (number, number);
        }
        ctx.mappings = sets[ctx.jump_set()].mappings;
    }

    /// The number that was given last.
    #[cfg(any(test, feature = "testkit"))]
    pub(crate) fn last_mappings(&mut self) -> &mut u32 {
        &mut self.regimes.mappings
    }

    /// A jump to `pc` was noted in the set in use; its page, and the next if it has bytes there, are mapped with so much around them.
    pub(super) fn noted(&mut self, ctx: &Context, pc: u64, sizes: (u8, Option<u8>)) {
        let set = &mut self.regimes.sets[ctx.jump_set()];
        if set.regime.is_translated() {
            set.note(pc, sizes.0);
            if let Some(size) = sizes.1 {
                set.note((pc >> PAGE_BITS << PAGE_BITS).wrapping_add(1 << PAGE_BITS), size);
            }
        }
    }

    /// Every jump must be looked up again, in whatever set.
    pub(crate) fn forget_all_jumps(&mut self, ctx: &mut Context) {
        for n in 0..self.regimes.len {
            self.empty(ctx, n);
        }
        self.jumps[ctx.jump_set()].publish(ctx);
    }

    /// What was translated of `va`, or everything, of one address space or all, must be looked up again.
    pub(crate) fn fenced(&mut self, ctx: &mut Context, va: Option<u64>, asid: Option<u16>) {
        for n in 1..self.regimes.len {
            let set = &self.regimes.sets[n];
            let meant = set.regime.is_translated() && asid.is_none_or(|asid| set.regime.asid() == asid);
            if meant && !set.noted.is_empty() && va.is_none_or(|va| set.has(va)) {
                self.empty(ctx, n);
            }
        }
    }

    /// The sets that jumps to this TB may be in.
    pub(super) fn sets_of(&self, key: &TbKey) -> impl Iterator<Item = usize> + use<> {
        let flags = key.flags;
        let mut all = 0u32;
        for (n, set) in self.regimes.sets[..self.regimes.len].iter().enumerate() {
            all |= u32::from(set.regime.flags() == flags) << n;
        }
        (0..JUMP_SETS).filter(move |n| all >> n & 1 != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_that_is_translated_again_and_again_is_noted_in_no_more_room() {
        let mut set = Set::default();
        for n in 0..1_000_000u64 {
            set.note(0x8000_0000 + n % 300 * 2, 12);
        }
        assert!(set.noted.capacity() < 4096, "{}", set.noted.capacity());
        assert!(
            (0..300).all(|n| set.noted.contains(&(0x8000_0000 + n * 2)))
                && set.has(0x8000_0258)
                && !set.has(0x8000_1000)
        );
        set.note(0x8020_1000, 21);
        assert!(set.has(0x803f_f000) && !set.has(0x8040_0000), "a fence of a superpage is one of all its code");
        set.forget();
        assert!(set.noted.is_empty() && !set.has(0x8000_0000));
    }
}
