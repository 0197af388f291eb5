//! Guest bytes to a [`Region`]: which instructions belong to it, and where its blocks begin.
//!
//! ```text
//!   explore   from the entry along branches and jumps, inside the entry's page and the next one:
//!             read, decode, note leaders ──▶ announce the lines, read again: the same? (CODE-1)
//!   build     leaders in order of address become blocks ──▶ lower.rs makes the ops
//! ```
//!
//! Keeps CODE-1: the lines are announced before the reading that counts. The first reading only finds out which
//! lines there are; the bytes are compared after the announcement, and a difference starts over.
mod lower;
mod source;

use crate::ir::{Block, Region, Site, Span, Target, Term};
use crate::riscv::{Insn, Op, decode_any};
use notdirty_core::{PAGE_SIZE, PageIndex, RamAddr};
use notdirty_softmmu::{GuestVirt, Hooks, MemFault, MmuIdx, SoftMmu};
use std::collections::VecDeque;

pub(crate) use source::Source;

/// Halfwords in the two pages that a region may span.
const WINDOW: usize = 2 * PAGE_SIZE as usize / 2;
const NONE: u16 = u16::MAX;

/// Limits of a region.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Guest instructions at most.
    pub insns: usize,
    /// Follow branches and jumps? Otherwise the region is one basic block.
    pub regions: bool,
    /// Fold constants and drop dead writes?
    pub optimise: bool,
}

/// The most instructions that emitted code runs between two polls of the budget.
pub const MAX_INSNS: usize = 256;

#[derive(Clone, Copy)]
struct Page {
    ram: RamAddr,
    host: *const u8,
    start: u64,
    end: u64,
}

/// Makes regions; keeps its memory from one to the next.
pub struct Translator {
    /// Index into `found` for each halfword of the window, or `NONE`.
    at: Box<[u16; WINDOW]>,
    leader: Box<[bool; WINDOW]>,
    found: Vec<(u32, Insn, u32)>,
    leaders: Vec<u32>,
    queue: VecDeque<u32>,
    pages: [Option<Page>; 2],
    base: u64,
    /// What was made.
    pub region: Region,
}

// SAFETY: the page pointers are only followed inside `translate`, which gets them anew from the `SoftMmu` it is given.
unsafe impl Send for Translator {}

impl Default for Translator {
    fn default() -> Self {
        Translator {
            at: Box::new([NONE; WINDOW]),
            leader: Box::new([false; WINDOW]),
            found: Vec::new(),
            leaders: Vec::new(),
            queue: VecDeque::new(),
            pages: [None; 2],
            base: 0,
            region: Region::default(),
        }
    }
}

impl Translator {
    /// Translates from `pc`. The result is in `region`; returned are the RAM pages it lies on (the second only if
    /// it has bytes there).
    pub fn translate<H: Hooks>(
        &mut self,
        mmu: &mut SoftMmu,
        hooks: &mut H,
        pc: u64,
        limits: Limits,
    ) -> Result<(PageIndex, Option<PageIndex>), MemFault> {
        self.base = pc & !(PAGE_SIZE - 1);
        self.pages = [None; 2];
        loop {
            self.forget();
            self.explore(mmu, hooks, pc, limits)?;
            self.make_spans();
            // CODE-1: announce, then read what counts.
            for (n, page) in self.pages.iter().enumerate() {
                let spans = self.region.spans.iter().filter(|s| usize::from(s.page) == n);
                let lines =
                    spans.fold(0, |m, s| m | notdirty_softmmu::lines_of(s.start.into(), u64::from(s.end - s.start)));
                if let (Some(page), true) = (page, lines != 0) {
                    let _ = mmu.announce_code(page.ram.page(), lines);
                }
            }
            if self.found.iter().all(|&(off, _, bits)| self.read(off) == Some(bits)) {
                break;
            }
        }
        self.build(pc, limits);
        let second = self.region.spans.iter().any(|s| s.page == 1);
        let page = |n: usize| self.pages[n].map(|p: Page| p.ram.page());
        let first = page(0).expect("the entry was read from it");
        Ok((first, if second { page(1) } else { None }))
    }

    fn forget(&mut self) {
        for &(off, ..) in &self.found {
            self.at[off as usize / 2] = NONE;
        }
        for &off in &self.leaders {
            self.leader[off as usize / 2] = false;
        }
        self.found.clear();
        self.leaders.clear();
        self.queue.clear();
        self.region.clear();
    }

    fn page<H: Hooks>(&mut self, mmu: &mut SoftMmu, hooks: &mut H, off: u32) -> Result<(), MemFault> {
        let n = (u64::from(off) / PAGE_SIZE) as usize;
        let inside = u64::from(off) % PAGE_SIZE;
        let va = GuestVirt::new(self.base.wrapping_add(off.into()));
        let Some(&slot) = self.pages.get(n) else {
            return Err(MemFault::access(notdirty_softmmu::AccessKind::Fetch, va));
        };
        if slot.is_some_and(|p| (p.start..p.end).contains(&inside)) {
            return Ok(());
        }
        let got = mmu.fetch(hooks, MmuIdx::M, va)?;
        let page = Page { ram: got.ram, host: got.host, start: inside, end: inside + got.len_ok };
        match slot {
            // Asked for from an earlier byte on: the same range if it ends at the same place.
            Some(old) if old.ram != page.ram || old.host != page.host || old.end != page.end => {
                // A page of several ranges: one region stays within one of them.
                Err(MemFault::access(notdirty_softmmu::AccessKind::Fetch, va))
            }
            _ => {
                self.pages[n] = Some(page);
                Ok(())
            }
        }
    }

    /// The halfword at `off`, if its page was asked for.
    fn half(&self, off: u32) -> Option<u16> {
        let page = self.pages.get(off as usize / PAGE_SIZE as usize).copied().flatten()?;
        let inside = u64::from(off) % PAGE_SIZE;
        if !(page.start <= inside && inside + 2 <= page.end) {
            return None;
        }
        // SAFETY: inside the bytes that `fetch` said can be read; the page lives until the next `serve`, which
        // `translate` does not call. Guest RAM may change under us, hence volatile.
        Some(u16::from_le(unsafe { page.host.add(inside as usize).cast::<u16>().read_volatile() }))
    }

    /// The bits of the instruction at `off`.
    fn read(&self, off: u32) -> Option<u32> {
        let low = self.half(off)?;
        if low & 3 != 3 { Some(low.into()) } else { Some(u32::from(self.half(off + 2)?) << 16 | u32::from(low)) }
    }

    fn mark(&mut self, off: u32) {
        if !std::mem::replace(&mut self.leader[off as usize / 2], true) {
            self.leaders.push(off);
        }
    }

    fn offset(&self, pc: u64) -> Option<u32> {
        let off = pc.wrapping_sub(self.base);
        (off < 2 * PAGE_SIZE).then_some(off as u32)
    }

    /// Finds the region's instructions, the likeliest first: straight on before aside.
    fn explore<H: Hooks>(&mut self, mmu: &mut SoftMmu, hooks: &mut H, pc: u64, limits: Limits) -> Result<(), MemFault> {
        let entry = (pc - self.base) as u32;
        self.queue.push_back(entry);
        self.mark(entry);
        while let Some(start) = self.queue.pop_front() {
            let mut off = start;
            loop {
                if off as usize >= 2 * WINDOW || self.found.len() >= limits.insns {
                    break;
                }
                if self.at[off as usize / 2] != NONE {
                    self.mark(off);
                    break;
                }
                // Only the first instruction's fault is the guest's; others are met when they are reached.
                let fetched = self.page(mmu, hooks, off).and_then(|()| {
                    if self.half(off).is_some_and(|low| low & 3 == 3) { self.page(mmu, hooks, off + 2) } else { Ok(()) }
                });
                match (fetched, self.read(off)) {
                    (Ok(()), Some(bits)) => {
                        let insn = decode_any(bits as u16, bits);
                        self.at[off as usize / 2] = self.found.len() as u16;
                        self.found.push((off, insn, bits));
                        let next = off + u32::from(insn.len);
                        if !self.follow(off, &insn, next, limits.regions) {
                            break;
                        }
                        off = next;
                    }
                    (fetched, _) if self.found.is_empty() => {
                        let va = GuestVirt::new(pc.wrapping_add(2));
                        return Err(fetched.err().unwrap_or(MemFault::access(notdirty_softmmu::AccessKind::Fetch, va)));
                    }
                    _ => break,
                }
            }
        }
        Ok(())
    }

    /// Notes where `insn` may go; does exploring go straight on?
    fn follow(&mut self, off: u32, insn: &Insn, next: u32, regions: bool) -> bool {
        let op = insn.op;
        let pc = self.base.wrapping_add(off.into());
        let known = if op.is_branch() || (op == Op::Jal && insn.rd == 0) { Some(insn.target(pc)) } else { None };
        if let (Some(target), true) = (known, regions)
            && let Some(target) = self.offset(target)
        {
            self.queue.push_back(target);
            self.mark(target);
        }
        if op.is_branch() {
            if regions && (next as usize) < 2 * WINDOW {
                self.mark(next);
            }
            return regions;
        }
        !(op.is_jump() || ends_region(op))
    }

    fn make_spans(&mut self) {
        let mut order: Vec<(u32, u32)> = self.found.iter().map(|f| (f.0, f.0 + u32::from(f.1.len))).collect();
        order.sort_unstable();
        let spans = &mut self.region.spans;
        spans.clear();
        let page = PAGE_SIZE as u32;
        for (start, end) in order {
            // An instruction over the page's end is a piece of each page.
            let cut = (start / page + 1) * page;
            for (s, e) in [(start, end.min(cut)), (cut, end)] {
                if s >= e {
                    continue;
                }
                let (n, s, e) = ((s / page) as u8, (s % page) as u16, ((e - 1) % page + 1) as u16);
                match spans.last_mut() {
                    Some(last) if last.page == n && s <= last.end => last.end = last.end.max(e),
                    _ => spans.push(Span { page: n, start: s, end: e }),
                }
            }
        }
    }

    /// Makes blocks of what was found.
    fn build(&mut self, pc: u64, limits: Limits) {
        // Leaders that were not reached are exits.
        let at = &self.at;
        self.leaders.retain(|&l| {
            let reached = at[l as usize / 2] != NONE;
            if !reached {
                self.leader[l as usize / 2] = false;
            }
            reached
        });
        self.leaders.sort_unstable();
        self.region.pc = pc;
        self.region.insns = self.found.len() as u32;
        let mut lower = lower::Lower::new(limits.optimise);
        for i in 0..self.leaders.len() {
            let start = self.leaders[i];
            if start == (pc - self.base) as u32 {
                self.region.entry = i as u16;
            }
            self.block(start, &mut lower);
        }
        self.mark_polls();
    }

    fn target(&self, pc: u64) -> Target {
        match self.offset(pc) {
            Some(off) if off & 1 == 0 && self.leader[off as usize / 2] => {
                Target::Block(self.leaders.binary_search(&off).expect("a leader") as u16)
            }
            _ => Target::Exit(pc),
        }
    }

    fn block(&mut self, start: u32, lower: &mut lower::Lower) {
        // First its length: each site must know how much of the block's charge is still to come.
        let (mut off, mut count) = (start, 0u16);
        let last = loop {
            let insn = self.found[self.at[off as usize / 2] as usize].1;
            count += 1;
            let next = off + u32::from(insn.len);
            let ends = insn.op.is_branch() || insn.op.is_jump() || ends_region(insn.op);
            let known = (next as usize) < 2 * WINDOW && self.at[next as usize / 2] != NONE;
            if ends || !known || self.leader[next as usize / 2] {
                break (off, insn, ends);
            }
            off = next;
        };
        let first = self.region.ops.len() as u32;
        lower.start(&mut self.region);
        let (mut off, mut left) = (start, count);
        let mut term = None;
        while left > 0 {
            let insn = self.found[self.at[off as usize / 2] as usize].1;
            let pc = self.base.wrapping_add(off.into());
            let next = pc.wrapping_add(insn.len.into());
            if left == 1 && last.2 {
                let targets = (self.target(insn.target(pc)), self.target(next));
                term = Some(lower.terminator(&mut self.region, Site { pc, insn, refund: 1 }, targets));
            } else {
                lower.insn(&mut self.region, Site { pc, insn, refund: left });
            }
            off += u32::from(insn.len);
            left -= 1;
        }
        let next = self.base.wrapping_add(off.into());
        let term = term.unwrap_or(Term::Goto(self.target(next)));
        let end = self.region.ops.len() as u32;
        let pc = self.base.wrapping_add(start.into());
        self.region.blocks.push(Block { pc, insns: count, first, end, poll: false, term });
    }

    /// A block polls if it is the entry (chains and indirect jumps come in there) or if an edge goes back to it.
    fn mark_polls(&mut self) {
        let entry = self.region.entry as usize;
        self.region.blocks[entry].poll = true;
        for i in 0..self.region.blocks.len() {
            for target in self.region.blocks[i].term.targets() {
                if let Target::Block(b) = target
                    && usize::from(b) <= i
                {
                    self.region.blocks[usize::from(b)].poll = true;
                }
            }
        }
    }
}

/// Instructions after which control does not simply go on: Rust executes them, at a site that ends the block.
fn ends_region(op: Op) -> bool {
    matches!(op, Op::Ecall | Op::Ebreak | Op::Mret | Op::Wfi | Op::Illegal)
}
