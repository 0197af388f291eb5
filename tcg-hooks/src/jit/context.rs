//! What emitted code sees of its vCPU: one struct in front of the TLB, reached from one register.
//!
//! ```text
//!   a register ─▶ Context { cpu: CpuState, budget, jump caches } │ TlbEntry[16384]
//! ```
//!
//! An indirect jump asks the jump cache in line, and behind it the table of all TBs that were looked up
//! (`tb/jumps.rs`), so no two pcs that share a place in the cache are far dearer than others. Each regime has a jump cache
//! and a table of its own (`tb/regimes.rs`), and a TB is of one mode: its code for M-mode knows where that cache is, the others load
//! its place.
use super::{Backend, Host};
use crate::cpu::CpuState;
use crate::guest::hart;
use std::mem::offset_of;

/// Of so many stores beside code Rust sees one, while it learns by it.
const SAMPLE: i32 = 64;
/// The same where it never does.
const MOST_SELDOM: i32 = 1 << 20;
/// Addends that checks keep at a time: those in front of a loop, then those of the groups of a block.
pub(super) const KEPT: usize = 16;
/// Addends that loads guess: those of a few TBs share them.
pub(super) const GUESSES: usize = 64;
/// So many wrong guesses are worth a look at how many were right.
const GUESSED_WRONG: i32 = 64;
/// A wrong guess costs what so many instructions cost, or less.
const WORTH_GUESSING: u64 = 128;
/// Jump caches: one for each regime in use.
pub(crate) const JUMP_SETS: usize = 16;
/// Entries of a jump cache.
pub(super) const JUMP_ENTRIES: usize = 4096;

/// The multiplier of [`spread`].
pub(super) const SPREAD: i32 = 0x61c8_8647;
/// The low bits of the product that are left out.
const SPREAD_SHIFT: u8 = 31;
/// The same for an offset in a table of [`JumpEntry`]s, whose low bits a mask takes off.
pub(super) const OFFSET_SHIFT: i8 = SPREAD_SHIFT as i8 - 4;

/// A pc as an index of the table behind the jump cache, to be cut to its size. Neighbours are near each other.
#[inline]
pub(crate) const fn spread(pc: u64) -> u64 {
    pc.wrapping_mul(SPREAD as u64) >> SPREAD_SHIFT
}

/// A guest pc, and the host code for it. `pc` is odd when the entry is empty, so that it never matches.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct JumpEntry {
    pub(crate) pc: u64,
    pub(crate) host: u64,
}

impl JumpEntry {
    pub(crate) const EMPTY: JumpEntry = JumpEntry { pc: 1, host: 0 };
}

/// Shared by emitted code, the helpers and the exec loop, one at a time, on the vCPU's thread.
#[repr(C)]
pub(crate) struct Context {
    /// Architectural state; stale in pinned registers while emitted code runs.
    pub(crate) cpu: CpuState,
    /// Instructions that may still be run; in a register while emitted code runs.
    pub(crate) budget: i64,
    /// What the slice started with; retired = `cpu.retired` + `slice` - `budget`.
    pub(crate) slice: i64,
    /// The engine that helpers work for.
    pub(crate) engine: *mut core::ffi::c_void,
    /// Loads and stores of the blocks that were entered, if they are counted.
    pub(crate) accesses: u64,
    /// Not zero while a `fence.i` has something to do: provisional TBs, stores that waited for it.
    pub(crate) code_work: u64,
    /// The vCPU's kick, a byte that is not zero when it was kicked; set with `engine`.
    pub(crate) kick: *const u8,
    /// The host's control and status of floating point for the guest, as the back end has them: to nearest even, and the flags raised so far.
    /// In the host's own register while emitted code runs; there, and nowhere else.
    pub(crate) float_unit: u32,
    /// Stores beside code until Rust is asked again: see `tb/sites.rs`.
    pub(super) beside: i32,
    /// Of so many Rust sees one.
    every: i32,
    /// The same of accesses to RAM that has another addend than assumed, or is not in the run of pages.
    pub(super) elsewhere: i32,
    elsewhere_every: i32,
    /// Of checks for several accesses: see `a back end's `mem.rs``.
    pub(super) kept: [u64; KEPT],
    /// Where the clock of a loop is when its checks hold no more: see `tier2/split.rs`.
    pub(super) limit: u64,
    /// The jump cache of the regime that the hart is in.
    pub(super) near_jumps: *mut JumpEntry,
    /// Where the table behind it is, and the bits of an offset in it. It has an empty entry.
    pub(super) far_jumps: *const JumpEntry,
    pub(super) far_mask: u64,
    /// Which of `jumps` the two are of, and which of those were ever used, a bit each: the others are not initialised.
    jump_set: u32,
    used_sets: u32,
    /// Stands for all mappings of the code that this set's jumps lead to: another number once one of them may have changed.
    pub(crate) mappings: u32,
    /// The exit whose link did not hold, so that it can be renewed.
    pub(super) links_not: u32,
    /// A jump cache for each regime: M-mode's with physical addresses, then the others.
    pub(super) jumps: [[JumpEntry; JUMP_ENTRIES]; JUMP_SETS],
    /// What loads guess, how many more wrong guesses are let pass, the site of one that was wrong then, and how many instructions
    /// had retired when the count began: see `tb/sites.rs`.
    pub(super) guesses: [u64; GUESSES],
    pub(super) guesses_left: i32,
    pub(super) wrong_site: u32,
    guessing_since: u64,
}

/// Bytes reserved before the TLB.
pub(crate) const PREFIX: usize = size_of::<Context>().next_multiple_of(64);

/// What no set's number is.
pub(crate) const NO_MAPPINGS: u32 = u32::MAX;

const _: () = assert!(offset_of!(Context, cpu) == 0 && offset_of!(CpuState, x) == 0);
const _: () = assert!(size_of::<JumpEntry>() == 16);

/// What a jump finds where nothing was looked up yet.
static NO_JUMPS: [JumpEntry; 1] = [JumpEntry::EMPTY];

impl Context {
    /// Brings `fflags` up to what the host's unit noted.
    pub(crate) fn settle_flags(&mut self) {
        hart::raise(&mut self.cpu, Host::raised(self.float_unit));
        self.float_unit = Host::FLOAT_AT_REST;
    }

    /// The entry for a pc in the jump cache of a set. One that was never used is empty.
    pub(crate) fn jump_slot(&mut self, set: usize, pc: u64) -> &mut JumpEntry {
        self.prepare_jumps(set);
        &mut self.jumps[set][(pc >> 1) as usize % JUMP_ENTRIES]
    }

    /// The same of the set that emitted code goes by.
    #[inline]
    pub(crate) fn near_slot(&mut self, pc: u64) -> &mut JumpEntry {
        // It was prepared when it was selected. Masked twice, so that no bound is left to look at.
        let at = self.jump_set as usize * JUMP_ENTRIES + (pc >> 1) as usize % JUMP_ENTRIES;
        &mut self.jumps.as_flattened_mut()[at % (JUMP_SETS * JUMP_ENTRIES)]
    }

    #[inline]
    fn prepare_jumps(&mut self, set: usize) {
        if self.used_sets >> set & 1 == 0 {
            self.used_sets |= 1 << set;
            self.jumps[set] = [JumpEntry::EMPTY; JUMP_ENTRIES];
        }
    }

    /// No jump cache leads to the TB at `pc` any more.
    pub(crate) fn forget_jump(&mut self, set: usize, pc: u64) {
        if self.used_sets >> set & 1 != 0 && self.jump_slot(set, pc).pc == pc {
            *self.jump_slot(set, pc) = JumpEntry::EMPTY;
        }
    }

    /// No jump of this set leads anywhere. The caller selects it again, if it is in use.
    pub(crate) fn forget_set(&mut self, set: usize) {
        self.used_sets &= !(1 << set);
    }

    /// The set of jumps that emitted code goes by.
    #[inline]
    pub(crate) fn jump_set(&self) -> usize {
        self.jump_set as usize % JUMP_SETS
    }

    /// Emitted code goes by this set from now on; the caller names its table.
    pub(crate) fn select_jumps(&mut self, set: usize) {
        self.prepare_jumps(set);
        (self.jump_set, self.near_jumps) = (set as u32, self.jumps[set].as_mut_ptr());
        self.set_far_jumps(&NO_JUMPS);
    }

    /// The exit whose link did not hold last, if none was renewed since.
    pub(crate) fn take_broken_link(&mut self) -> Option<u32> {
        Some(std::mem::replace(&mut self.links_not, 0)).filter(|&number| number != 0)
    }

    /// What all jump caches hold, with their sets.
    #[cfg(any(test, feature = "testkit"))]
    pub(crate) fn jumps(&self) -> impl Iterator<Item = (usize, &JumpEntry)> {
        let used = (0..JUMP_SETS).filter(|set| self.used_sets >> set & 1 != 0);
        // An odd pc is that of an empty entry.
        used.flat_map(|set| self.jumps[set].iter().filter(|entry| entry.pc & 1 == 0).map(move |entry| (set, entry)))
    }

    /// Is it time to look at a store beside code? Not again for some time.
    pub(crate) fn take_sample(&mut self) -> bool {
        let due = self.beside < 0;
        self.beside = if due { self.every } else { self.beside };
        due
    }

    /// Is it time to look at an access to RAM elsewhere?
    pub(crate) fn take_elsewhere(&mut self) -> bool {
        let due = self.elsewhere < 0;
        self.elsewhere = if due { self.elsewhere_every } else { self.elsewhere };
        due
    }

    /// As [`Context::sample_again`].
    pub(crate) fn elsewhere_again(&mut self, learned: bool) {
        self.elsewhere_every = if learned { SAMPLE } else { (2 * self.elsewhere_every).clamp(SAMPLE, MOST_SELDOM) };
        self.elsewhere = self.elsewhere_every;
    }

    /// Looks at one of few stores; of fewer still, if the last look taught nothing.
    pub(crate) fn sample_again(&mut self, learned: bool) {
        self.every = if learned { SAMPLE } else { (2 * self.every).min(MOST_SELDOM) };
        self.beside = self.every;
    }

    /// Counts wrong guesses from here on.
    pub(crate) fn count_guesses(&mut self) {
        (self.guesses_left, self.guessing_since) = (GUESSED_WRONG, self.cpu.retired);
    }

    /// After a slice: a site that guesses wrong, if that is too often for as many instructions.
    pub(crate) fn wrong_guesses(&mut self) -> Option<u32> {
        if self.guesses_left >= 0 {
            return None;
        }
        let wrong = i64::from(GUESSED_WRONG) - i64::from(self.guesses_left);
        let insns = self.cpu.retired.wrapping_sub(self.guessing_since);
        self.count_guesses();
        (insns < wrong as u64 * WORTH_GUESSING).then_some(self.wrong_site)
    }

    /// Empties the jump caches, and leaves no table behind the one that is in use.
    pub(crate) fn forget_jumps(&mut self) {
        self.used_sets = 0;
        self.select_jumps(self.jump_set());
    }

    /// Names the table behind the jump cache. Its length is a power of two and an entry is empty; the caller names
    /// another, or calls [`Context::forget_jumps`], before it moves.
    pub(crate) fn set_far_jumps(&mut self, table: &[JumpEntry]) {
        debug_assert!(table.len().is_power_of_two());
        self.far_jumps = table.as_ptr();
        self.far_mask = ((table.len() - 1) * size_of::<JumpEntry>()) as u64;
    }
}
