//! What is checked and counted in front of a loop, and the accesses that need no check then: see `tier2/split.rs`, `turns.rs`.
use super::alu::with;
use super::asm::{Flag, Label};
use super::mem::{NOWHERE, Taken};
use super::offsets::{BUDGET, LIMIT, SET_ADDEND, kept_off};
use super::regs::{RAX, RCX, RDX, RegMap};
use super::whole::{Whole, starts};
use super::{Addend, Cold, Emitter};
use crate::ir::{Check, Cond, Ir, MemOp, Turns};
use crate::tier2::MOST_INDEX;
use dynasmrt::dynasm;
use notdirty_core::PAGE_SIZE;
use notdirty_softmmu::tlb::entry::{READ, WRITE};

/// Bytes of flat RAM that the turns of a loop go through between two checks, at most. Two orders of size below [`MOST_INDEX`], so that
/// no index leaves its range on the way.
const STRETCH: i32 = 1 << 20;

impl Emitter {
    /// The bytes lie on pages of RAM at K; if the base moves, on one page or in flat RAM, and the turns are counted that they stay there.
    pub(super) fn check_ahead(&mut self, ir: &Ir) {
        let Check { store, index, first, last, step, lone, kept, beside_run, cold, .. } = self.checks[ir.imm as usize];
        let comparator = if store { WRITE } else { READ };
        let mut base = self.source(ir.a, RDX);
        let cold = Label::first(cold);
        if let Some((_, shift)) = index {
            let index = self.source(ir.b, RAX);
            dynasm!(self.ops; .arch x64; cmp Rq(index), MOST_INDEX);
            let fail = self.ops.jump_if(Flag::NotBelow);
            self.ops.aim(fail, cold);
            match shift {
                0 => dynasm!(self.ops; .arch x64; lea rdx, [Rq(base) + Rq(index)]),
                1 => dynasm!(self.ops; .arch x64; lea rdx, [Rq(base) + Rq(index) * 2]),
                2 => dynasm!(self.ops; .arch x64; lea rdx, [Rq(base) + Rq(index) * 4]),
                _ => dynasm!(self.ops; .arch x64; lea rdx, [Rq(base) + Rq(index) * 8]),
            }
            base = RDX;
        }
        let own = kept.is_some();
        // Loads that look for no entry leave none behind for a check to find.
        let whole = if store || own { None } else { self.whole_for(Taken::Assumed, beside_run) };
        match whole {
            Some(whole) => {
                let (fail, other) = self.probe_whole_reach(base, (first, last), lone.is_some(), whole);
                [Some(fail), other].into_iter().flatten().for_each(|fail| self.ops.aim(fail, cold));
            }
            None => self.check_entries((base, first, last), (lone, step), comparator, (kept, cold)),
        }
        match (step, whole) {
            (0, _) => {}
            (_, None) => self.count_trips(base, if step > 0 { last } else { first }, step),
            // Where it begins is enough of one access: see `Selected::whole`.
            (_, Some(whole)) => {
                let ahead = if step > 0 && lone.is_none() { first + starts((first, last)) } else { first };
                self.count_trips_in_ram(base, ahead, step, whole);
            }
        }
    }

    /// Do these bytes lie on pages with entries, now and while the base stays on its page? Else it goes on at the label.
    fn check_entries(
        &mut self,
        (base, first, last): (u8, i32, i32),
        (lone, step): (Option<u8>, i32),
        comparator: i32,
        (kept, cold): (Option<u8>, Label),
    ) {
        let own = kept.is_some();
        let fail = match lone {
            Some(bytes) => self.probe_sized(base, first, bytes.into(), comparator, own),
            None if step == 0 => self.probe_first(base, first, comparator, own),
            None => self.probe_span(base, (first, last), comparator, own),
        };
        self.ops.aim(fail, cold);
        if let Some(slot) = kept {
            self.keep_addend(slot);
        }
        if lone.is_none() && step == 0 {
            let fail = self.probe_first(base, last, comparator, own);
            self.ops.aim(fail, cold);
            if let Some(slot) = kept {
                let fail = self.compare_addend(slot);
                self.ops.aim(fail, cold);
            }
        }
    }

    /// What a region checks at its entry, where all registers are as between TBs.
    pub(super) fn check_shared(&mut self, shared: &[Check]) {
        if shared.is_empty() {
            return;
        }
        self.map = RegMap::new(self.flags.pinned);
        let label = self.ops.new_label();
        for &Check { base, store, first, last, lone, beside_run, .. } in shared {
            let comparator = if store { WRITE } else { READ };
            if base == 0 && lone.is_some() {
                let address = self.region_pc.wrapping_add_signed(first.into());
                let flat = if store { None } else { self.probe_whole_constant(address) };
                let fail = flat.unwrap_or_else(|| self.probe_constant(address, comparator));
                self.ops.aim(fail, label);
                continue;
            }
            if let Some(bytes) = lone {
                let base = self.source(base, RDX);
                if let Some(whole) = self.whole_for(Taken::Assumed, beside_run).filter(|_| !store) {
                    let (fail, _) = self.probe_whole_reach(base, (first, last), true, whole);
                    self.ops.aim(fail, label);
                    continue;
                }
                let fail = self.probe_sized(base, first, bytes.into(), comparator, false);
                self.ops.aim(fail, label);
                continue;
            }
            let (base, first, last) = match base {
                0 => {
                    self.constant(RDX, self.region_pc.wrapping_add_signed(first.into()) as i64);
                    (RDX, 0, last - first)
                }
                _ => (self.source(base, RDX), first, last),
            };
            if let Some(whole) = self.whole_for(Taken::Assumed, beside_run).filter(|_| !store) {
                let (fail, other) = self.probe_whole_reach(base, (first, last), false, whole);
                [Some(fail), other].into_iter().flatten().for_each(|fail| self.ops.aim(fail, label));
                continue;
            }
            for at in [first, last] {
                let fail = self.probe_first(base, at, comparator, false);
                self.ops.aim(fail, label);
            }
        }
        let exit = self.exit(self.region_pc, 0);
        self.cold.push(Cold::Refusal { label, exit });
    }

    /// What follows begins in a block of 32 bytes, as TBs do: a short loop is fetched in as few pieces as can be then. One that
    /// begins at the end of a block takes up to a seventh longer (Zen 5, a store beside code with its check behind the TB).
    pub(super) fn align(&mut self) {
        // In few instructions, as code that comes from above executes them: up to 11 bytes, of which any host decodes one in a step.
        const LONGEST: [u8; 11] = [0x66, 0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0]; // nop cs:[rax + rax + 0]
        let mut left = self.here().wrapping_neg() % 32;
        while left > 0 {
            let nop: &[u8] = match left {
                1 => &[0x90],
                2 => &[0x66, 0x90],
                3 => &[0x0f, 0x1f, 0],
                4 => &[0x0f, 0x1f, 0x40, 0],
                5 => &[0x0f, 0x1f, 0x44, 0, 0],
                6 => &[0x66, 0x0f, 0x1f, 0x44, 0, 0],
                7 => &[0x0f, 0x1f, 0x80, 0, 0, 0, 0],
                8..=10 => &LONGEST[11 - left as usize..],
                _ => &LONGEST,
            };
            nop.iter().for_each(|&byte| self.ops.push(byte));
            left -= nop.len() as u32;
        }
    }

    /// How many turns more byte `ahead` of the base stays on its page; the fewest of all bases of this loop.
    fn count_trips(&mut self, base: u8, ahead: i32, step: i32) {
        dynasm!(self.ops; .arch x64; lea eax, [Rq(base) + ahead]; and eax, PAGE_SIZE as i32 - 1);
        if step > 0 {
            dynasm!(self.ops; .arch x64; xor eax, PAGE_SIZE as i32 - 1);
        }
        self.note_trips(step);
    }

    /// How many turns more byte `ahead` of the base stays in flat RAM or the run of pages, which it is in; of a stretch that is long enough, and no more.
    fn count_trips_in_ram(&mut self, base: u8, ahead: i32, step: i32, whole: Whole) {
        self.place_in(base, ahead, whole);
        if step > 0 {
            dynasm!(self.ops; .arch x64; not rax; add rax, [rbp + whole.len()]);
        }
        dynasm!(self.ops; .arch x64; mov ecx, STRETCH - 1; cmp rax, rcx; cmova rax, rcx);
        self.note_trips(step);
    }

    /// Turns of so many bytes in rax, fewer than [`STRETCH`].
    fn note_trips(&mut self, step: i32) {
        let by = step.unsigned_abs();
        if by.is_power_of_two() {
            self.divide_by(by);
        } else {
            // At most what a division gives.
            dynasm!(self.ops; .arch x64; imul rax, rax, (0x1_0000 / by) as i32; shr rax, 16);
        }
        if self.counts_trips {
            dynasm!(self.ops; .arch x64; mov ecx, [rbp + LIMIT]; cmp eax, ecx; cmova eax, ecx);
        }
        self.counts_trips = true;
        dynasm!(self.ops; .arch x64; mov [rbp + LIMIT], eax);
    }

    /// rax, by a power of two.
    fn divide_by(&mut self, by: u32) {
        if by != 1 {
            dynasm!(self.ops; .arch x64; shr rax, by.trailing_zeros() as i8);
        }
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

    /// Charges the turns that the loop takes until its condition may fail, until a page ends or the budget does, whichever comes
    /// first, and sets the limit where all of them but one are done. To `cold` if there are none; to `once` if there is one, or to
    /// `cold` again.
    pub(super) fn count_turns(&mut self, turns: &Turns, once: Option<Label>, cold: Label) {
        let Turns { clock, step, bound, cond, word, insns } = *turns;
        if word {
            // What is no extension of 32 bits, or wraps on the way, is not counted.
            for register in [clock, bound] {
                let x = self.source(register, RDX);
                dynasm!(self.ops; .arch x64; movsxd rax, Rd(x); cmp rax, Rq(x));
                let fail = self.ops.jump_if(Flag::NotEqual);
                self.ops.aim(fail, cold);
            }
        }
        // Tests that will hold: (to - from) / step, or one less if they fail where both are the same.
        let (from, to) = if step > 0 { (clock, bound) } else { (bound, clock) };
        with!(self, mov, Rq, RAX, to);
        with!(self, sub, Rq, RAX, from);
        let strict = !matches!(cond, Cond::Ge | Cond::Geu);
        if strict {
            dynasm!(self.ops; .arch x64; sub rax, 1);
        }
        if word || cond != Cond::Ne {
            dynasm!(self.ops; .arch x64; xor ecx, ecx);
            let x = self.source(from, RDX);
            with!(self, cmp, Rq, x, to);
            match (matches!(cond, Cond::Ltu | Cond::Geu), strict) {
                (false, true) => dynasm!(self.ops; .arch x64; cmovge rax, rcx),
                (false, false) => dynasm!(self.ops; .arch x64; cmovg rax, rcx),
                (true, true) => dynasm!(self.ops; .arch x64; cmovae rax, rcx),
                (true, false) => dynasm!(self.ops; .arch x64; cmova rax, rcx),
            }
        }
        let by = step.unsigned_abs();
        if by.is_power_of_two() {
            self.divide_by(by);
        }
        if !self.counts_trips || !by.is_power_of_two() {
            dynasm!(self.ops; .arch x64; mov ecx, i32::MAX; cmp rax, rcx; cmova rax, rcx);
        }
        if !by.is_power_of_two() {
            // At most what a division gives.
            dynasm!(self.ops; .arch x64; imul rax, rax, (u32::MAX / by) as i32; shr rax, 32);
        }
        if self.counts_trips {
            dynasm!(self.ops; .arch x64; mov ecx, [rbp + LIMIT]; cmp rax, rcx; cmova rax, rcx);
        }
        if self.flags.budget_register {
            dynasm!(self.ops; .arch x64; mov rcx, r15);
        } else {
            dynasm!(self.ops; .arch x64; mov rcx, [rbp + BUDGET]);
        }
        let shift = u32::from(insns).next_power_of_two().trailing_zeros();
        dynasm!(self.ops; .arch x64; sar rcx, shift as i8; sub rcx, 1);
        let fail = self.ops.jump_if(Flag::Less);
        self.ops.aim(fail, cold);
        dynasm!(self.ops; .arch x64; cmp rax, rcx; cmova rax, rcx);
        if once.is_none() {
            dynasm!(self.ops; .arch x64; test eax, eax);
            let one = self.ops.jump_if(Flag::Equal);
            self.ops.aim(one, cold);
        }
        dynasm!(self.ops; .arch x64; lea rcx, [rax + 1]; imul rcx, rcx, insns.into());
        if self.flags.budget_register {
            dynasm!(self.ops; .arch x64; sub r15, rcx);
        } else {
            dynasm!(self.ops; .arch x64; sub [rbp + BUDGET], rcx);
        }
        if let Some(once) = once {
            dynasm!(self.ops; .arch x64; test eax, eax);
            let one = self.ops.jump_if(Flag::Equal);
            self.ops.aim(one, once);
        }
        if step != 1 {
            dynasm!(self.ops; .arch x64; imul rax, rax, step);
        }
        with!(self, add, Rq, RAX, clock);
        dynasm!(self.ops; .arch x64; mov [rbp + LIMIT], rax);
    }

    /// A store that was checked before.
    pub(super) fn store_fast(&mut self, ir: &Ir, mem: MemOp) {
        if ir.a == 0 {
            let (base, disp) = self.place_of(ir.imm);
            return self.store_into((base, false), disp, ir.b, mem.bytes());
        }
        let base = self.source(ir.a, RDX);
        self.store_at(base, ir, mem, Taken::of(ir));
    }

    /// Where the host has what is at a constant address: a register, or [`NOWHERE`], and a displacement.
    fn place_of(&mut self, address: i64) -> (u8, i32) {
        if let Addend::Flat(k) = self.addend
            && let Ok(place) = i32::try_from(address.wrapping_add(k.into()))
        {
            return (NOWHERE, place);
        }
        match self.addend {
            Addend::Flat(k) => self.constant(RDX, address.wrapping_add(k.into())),
            _ => {
                self.constant(RDX, address);
                dynasm!(self.ops; .arch x64; add rdx, [rbp + SET_ADDEND]);
            }
        }
        (RDX, 0)
    }

    /// A load that was checked before, maybe with an index.
    pub(super) fn load_fast(&mut self, ir: &Ir, mem: MemOp, shift: u8) {
        if ir.a == 0 {
            let (base, disp) = self.place_of(ir.imm);
            return self.load_into(ir.rd, mem, base, None, disp);
        }
        let base = self.source(ir.a, RDX);
        if ir.b == 0 {
            return self.load_at(base, ir, mem, Taken::of(ir));
        }
        let index = self.source(ir.b, RCX);
        let imm = ir.imm as i32;
        let at = match (ir.kept(), self.addend) {
            (None, Addend::Flat(k)) => return self.load_into(ir.rd, mem, base, Some((index, shift)), k + imm),
            (None, _) => SET_ADDEND,
            (Some(slot), _) => kept_off(slot),
        };
        dynasm!(self.ops; .arch x64; mov rax, [rbp + at]; add rax, Rq(base));
        self.load_into(ir.rd, mem, RAX, Some((index, shift)), imm);
    }
}

const _: () = assert!(RAX == 0 && RCX == 1, "count_trips names them");
