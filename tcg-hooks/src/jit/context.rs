//! What emitted code sees of its vCPU: one struct in front of the TLB, reached from one register.
//!
//! ```text
//!   rbp ─▶ Context { cpu: CpuState, budget, jump caches } │ TlbEntry[16384]
//!          rbp = start + 128, so that all guest registers are one byte away
//! ```
//!
//! An indirect jump asks the jump cache in line, and behind it the table of all TBs that were looked up
//! (`tb/jumps.rs`), so no two pcs that share a place in the cache are far dearer than others. Each regime has a jump cache
//! and a table of its own (`tb/regimes.rs`), and a TB is of one mode: its code for M-mode knows where that cache is, the others load
//! its place.
use crate::cpu::CpuState;
use crate::riscv::csr::Csrs;
use notdirty_softmmu::tlb::entry::{NOTED_LIST, NotedList, SELECTED, Selected};
use notdirty_softmmu::tlb::{COVERAGE_AT, OPERANDS_AT};
use std::mem::offset_of;

/// Of so many stores beside code Rust sees one, while it learns by it.
const SAMPLE: i32 = 64;
/// The same where it never does.
const MOST_SELDOM: i32 = 1 << 20;
/// Added to the start of the context to get `rbp`.
pub(super) const BASE: i32 = 128;
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
    /// The host's control and status of floating point for the guest: to nearest even, and the flags raised so far.
    /// In the host's own register while emitted code runs; there, and nowhere else.
    pub(crate) mxcsr: u32,
    /// Stores beside code until Rust is asked again: see `tb/sites.rs`.
    beside: i32,
    /// Of so many Rust sees one.
    every: i32,
    /// The same of accesses to RAM that has another addend than assumed, or is not in the run of pages.
    elsewhere: i32,
    elsewhere_every: i32,
    /// Of checks for several accesses: see `jit/x86_64/mem.rs`.
    kept: [u64; KEPT],
    /// Where the clock of a loop is when its checks hold no more: see `tier2/split.rs`.
    limit: u64,
    /// The jump cache of the regime that the hart is in.
    near_jumps: *mut JumpEntry,
    /// Where the table behind it is, and the bits of an offset in it. It has an empty entry.
    far_jumps: *const JumpEntry,
    far_mask: u64,
    /// Which of `jumps` the two are of, and which of those were ever used, a bit each: the others are not initialised.
    jump_set: u32,
    used_sets: u32,
    /// Stands for all mappings of the code that this set's jumps lead to: another number once one of them may have changed.
    pub(crate) mappings: u32,
    /// The exit whose link did not hold, so that it can be renewed.
    links_not: u32,
    /// A jump cache for each regime: M-mode's with physical addresses, then the others.
    jumps: [[JumpEntry; JUMP_ENTRIES]; JUMP_SETS],
    /// What loads guess, how many more wrong guesses are let pass, the site of one that was wrong then, and how many instructions
    /// had retired when the count began: see `tb/sites.rs`.
    guesses: [u64; GUESSES],
    guesses_left: i32,
    wrong_site: u32,
    guessing_since: u64,
}

/// Bytes reserved before the TLB.
pub(crate) const PREFIX: usize = size_of::<Context>().next_multiple_of(64);

pub(super) const PC: i32 = offset_of!(Context, cpu) as i32 + offset_of!(CpuState, pc) as i32 - BASE;
pub(super) const MAPPINGS: i32 = offset_of!(Context, mappings) as i32 - BASE;
pub(super) const LINKS_NOT: i32 = offset_of!(Context, links_not) as i32 - BASE;
/// What no set's number is.
pub(crate) const NO_MAPPINGS: u32 = u32::MAX;
pub(super) const ENGINE: i32 = offset_of!(Context, engine) as i32 - BASE;
pub(super) const BUDGET: i32 = offset_of!(Context, budget) as i32 - BASE;
pub(super) const ACCESSES: i32 = offset_of!(Context, accesses) as i32 - BASE;
pub(super) const SLICE: i32 = offset_of!(Context, slice) as i32 - BASE;
pub(super) const CODE_WORK: i32 = offset_of!(Context, code_work) as i32 - BASE;
pub(super) const KICK: i32 = offset_of!(Context, kick) as i32 - BASE;
/// From the table to that of the regime of loads and stores, where that one is, and its flat addend.
pub(super) const TABLE_OFFSET: i32 = TABLE + SELECTED + offset_of!(Selected, offset) as i32;
pub(super) const SET_TABLE: i32 = TABLE + SELECTED + offset_of!(Selected, table) as i32;
pub(super) const SET_ADDEND: i32 = TABLE + SELECTED + offset_of!(Selected, addend) as i32;
/// How much of flat RAM loads need no entry for.
pub(super) const WHOLE: i32 = TABLE + SELECTED + offset_of!(Selected, whole) as i32;
pub(super) const WHOLE_BEHIND: i32 = TABLE + SELECTED + offset_of!(Selected, whole_behind) as i32;
/// The same of a run of pages: see softmmu's `tlb/run.rs`.
pub(super) const RUN_START: i32 = TABLE + SELECTED + offset_of!(Selected, run_start) as i32;
pub(super) const RUN: i32 = TABLE + SELECTED + offset_of!(Selected, run) as i32;
pub(super) const RUN_BEHIND_START: i32 = TABLE + SELECTED + offset_of!(Selected, run_behind_start) as i32;
pub(super) const RUN_BEHIND: i32 = TABLE + SELECTED + offset_of!(Selected, run_behind) as i32;
/// The pages whose lines were noted: see softmmu's `lines.rs`.
pub(super) const NOTED_TOP: i32 = TABLE + NOTED_LIST + offset_of!(NotedList, top) as i32;
pub(super) const NOTED_END: i32 = TABLE + NOTED_LIST + offset_of!(NotedList, end) as i32;
/// The counters of coverage.
pub(super) const COVERAGE: i32 = TABLE + COVERAGE_AT;
/// What was compared.
pub(super) const OPERANDS: i32 = TABLE + OPERANDS_AT;
pub(super) const NOTED_ALONE: i32 = TABLE + NOTED_LIST + offset_of!(NotedList, alone) as i32;
pub(super) const ELSEWHERE: i32 = offset_of!(Context, elsewhere) as i32 - BASE;
const KEPT_AT: i32 = offset_of!(Context, kept) as i32 - BASE;
const GUESSES_AT: i32 = offset_of!(Context, guesses) as i32 - BASE;
pub(super) const GUESSES_LEFT: i32 = offset_of!(Context, guesses_left) as i32 - BASE;
pub(super) const WRONG_SITE: i32 = offset_of!(Context, wrong_site) as i32 - BASE;
pub(super) const LIMIT: i32 = offset_of!(Context, limit) as i32 - BASE;
pub(super) const BESIDE: i32 = offset_of!(Context, beside) as i32 - BASE;
pub(super) const MXCSR: i32 = offset_of!(Context, mxcsr) as i32 - BASE;
pub(super) const FRM: i32 = CSR + offset_of!(Csrs, frm) as i32;
pub(super) const MSTATUS: i32 = CSR + offset_of!(Csrs, mstatus) as i32;
const CSR: i32 = offset_of!(Context, cpu) as i32 + offset_of!(CpuState, csr) as i32 - BASE;
const FLOATS: i32 = offset_of!(Context, cpu) as i32 + offset_of!(CpuState, f) as i32 - BASE;
pub(super) const NEAR_JUMPS: i32 = offset_of!(Context, near_jumps) as i32 - BASE;
pub(super) const FAR_JUMPS: i32 = offset_of!(Context, far_jumps) as i32 - BASE;
pub(super) const FAR_MASK: i32 = offset_of!(Context, far_mask) as i32 - BASE;
pub(super) const JUMPS: i32 = offset_of!(Context, jumps) as i32 - BASE;
pub(super) const TABLE: i32 = PREFIX as i32 - BASE;

const _: () = assert!(offset_of!(Context, cpu) == 0 && offset_of!(CpuState, x) == 0);
const _: () = assert!(size_of::<JumpEntry>() == 16);

/// All exceptions masked, to nearest even, no flags: what Rust runs under, and what the guest's unit is after reset.
pub(crate) const MXCSR_DEFAULT: u32 = 0x1f80;

/// Displacement of a floating-point register in the context.
pub(super) const fn float_off(register: u8) -> i32 {
    FLOATS + 8 * (register as i32 & 31)
}

/// Displacement of an addend that a check keeps.
pub(super) const fn kept_off(slot: u8) -> i32 {
    KEPT_AT + 8 * (slot as i32 % KEPT as i32)
}

/// Displacement of an addend that a load guesses.
pub(super) const fn guess_off(slot: u8) -> i32 {
    GUESSES_AT + 8 * (slot as i32 % GUESSES as i32)
}

/// What a jump finds where nothing was looked up yet.
static NO_JUMPS: [JumpEntry; 1] = [JumpEntry::EMPTY];

impl Context {
    /// Brings `fflags` up to what the host's unit noted.
    pub(crate) fn settle_flags(&mut self) {
        let raised = self.mxcsr & 0x3d;
        if raised != 0 {
            let bit = |from: u32, to: u32| (raised >> from & 1) << to;
            self.cpu.csr.fflags |= (bit(0, 4) | bit(2, 3) | bit(3, 2) | bit(4, 1) | bit(5, 0)) as u8;
        }
        self.mxcsr = MXCSR_DEFAULT;
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
