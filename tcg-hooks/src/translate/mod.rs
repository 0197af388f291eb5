//! Guest bytes to a [`Region`]: which instructions belong to it, and where its blocks begin.
//!
//! ```text
//!   explore   from the entry along branches and jumps, inside the entry's page and the next one:      explore.rs
//!             read, decode, note leaders ──▶ announce the lines, read again: the same? (CODE-1)
//!   build     leaders in order of address become blocks ──▶ the guest's `Lower` makes the ops
//! ```
//!
//! Keeps CODE-1: the lines are announced before the reading that counts. The first reading only finds out which
//! lines there are; the bytes are compared after the announcement, and a difference starts over. What others may still
//! store unheard is `tb/provisional.rs`'s part.
mod explore;
mod source;
#[cfg(test)]
mod tests;

use crate::cover::{self, Compares, Edges};
use crate::exec::Stops;
use crate::guest::{Features, Goes, Insn, Lower, Mode, Packed, flow, push_site};
use crate::hooks::{Plan as HookPlan, Wanted};
use crate::ir::{Block, Does, Region, Target, Term};
use notdirty_core::{PAGE_SIZE, PageIndex, RamAddr};
use notdirty_softmmu::{Hooks, LiveMmu, MemFault, MmuIdx, Pending};
use std::sync::Arc;

pub(crate) use source::Source;

/// Halfwords in the two pages that a region may span.
const WINDOW: usize = 2 * PAGE_SIZE as usize / 2;
/// Bytes of the same, and of an instruction that begins in the last of them.
const READ: usize = 2 * WINDOW + 4;
const NONE: u16 = u16::MAX;
/// An instruction where a run shall end, before it was met.
const EXIT: u16 = u16::MAX - 1;
/// Where a region ends because another begins there.
const STOP: u16 = u16::MAX - 2;
/// A leader, before blocks have numbers.
const UNNUMBERED: u16 = u16::MAX - 1;

/// How often bytes that change while they are translated are read anew.
const TRIES: u32 = 8;

/// Limits of a region.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Guest instructions at most.
    pub insns: usize,
    /// Follow branches and jumps? Otherwise the region is one basic block.
    pub regions: bool,
    /// Fold constants and drop dead writes?
    pub optimise: bool,
    /// If there is no room for all, end at the heads of loops that begin before the entry?
    pub heads: bool,
}

/// The most instructions that emitted code runs between two polls of the budget: those of a hot region.
pub const MAX_INSNS: usize = 512;
/// The most of a region that is merely warm.
pub(crate) const WARM_INSNS: usize = 256;

#[derive(Clone, Copy)]
struct Page {
    ram: RamAddr,
    host: *const u8,
    start: u64,
    end: u64,
    /// Logarithm of what it was mapped with.
    size_log2: u8,
}

/// An instruction that was explored: where, what was read, what it means.
#[derive(Clone, Copy)]
struct Found {
    off: u32,
    bits: u32,
    insn: Packed,
}

impl Found {
    /// What follows it.
    fn next(&self) -> u32 {
        self.off + self.insn.len()
    }
}

/// What is known of a halfword of the window.
#[derive(Clone, Copy)]
struct Slot {
    /// Index into `found`, or `NONE`.
    at: u16,
    /// The number of the block that begins here, or `UNNUMBERED`, or `NONE`.
    block: u16,
}

impl Slot {
    const NONE: Slot = Slot { at: NONE, block: NONE };
}

/// Instructions: their offsets from the start of the first page, and their bits.
pub(crate) type Insns = Box<[(u32, u32)]>;

/// Makes regions; keeps its memory from one to the next.
pub struct Translator {
    slots: Box<[Slot; WINDOW]>,
    found: Vec<Found>,
    leaders: Vec<u32>,
    /// Where exploring goes on, in turn.
    queue: Vec<u32>,
    /// What was passed and has yet to be followed, by its place in `found`.
    branches: Vec<u16>,
    /// Where exploring does not go: heads of loops that are in this region's way.
    heads: Vec<u32>,
    /// Addresses at which the next region ends, as others begin there.
    stops: Vec<u64>,
    /// What was explored in one go: from, to.
    runs: Vec<(u32, u32)>,
    pages: [Option<Page>; 2],
    base: u64,
    lower: Lower,
    /// Who has yet to hear of the lines.
    pending: Pending,
    /// Did the bytes stand still, and were lines announced only once?
    still: bool,
    /// What was read, at its place in the two pages; of instructions that overlap, what was read last.
    read: Box<[u8; READ]>,
    /// The bytes of the region's spans, one behind the other, as they were translated; nothing, if they did not stand still.
    bytes: Vec<u8>,
    /// What is an instruction at all.
    pub isa: Features,
    /// The mode that it is translated for.
    pub mode: Mode,
    /// How it is fetched.
    pub idx: MmuIdx,
    /// Where a run shall end: the instructions there are sites that leave.
    pub(crate) exits: Arc<Stops>,
    /// If edges are counted, their numbers.
    pub edges: Option<Arc<Edges>>,
    /// If operands of comparisons are noted, their places.
    pub compares: Option<Arc<Compares>>,
    /// What is hooked.
    pub(crate) hooks: Arc<HookPlan>,
    /// Of each block, where its last instruction is, and what; kept if edges are counted, or blocks hooked.
    lasts: Vec<(u64, Option<Goes>)>,
    /// What was made.
    pub region: Region,
}

// SAFETY: the page pointers are only followed inside `translate`, which gets them anew from the `LiveMmu` it is given.
unsafe impl Send for Translator {}

impl Default for Translator {
    fn default() -> Self {
        Translator {
            slots: Box::new([Slot::NONE; WINDOW]),
            found: Vec::new(),
            leaders: Vec::new(),
            queue: Vec::new(),
            branches: Vec::new(),
            heads: Vec::new(),
            stops: Vec::new(),
            runs: Vec::new(),
            pages: [None; 2],
            base: 0,
            lower: Lower::default(),
            pending: Pending::default(),
            still: true,
            read: Box::new([0; READ]),
            bytes: Vec::new(),
            isa: Features::ALL,
            mode: Mode::FIRST,
            idx: MmuIdx::M,
            exits: Arc::default(),
            edges: None,
            hooks: Arc::default(),
            compares: None,
            lasts: Vec::new(),
            region: Region::default(),
        }
    }
}

impl Translator {
    /// Translates from `pc`. The result is in `region`; returned are the RAM pages it lies on (the second only if
    /// it has bytes there).
    ///
    /// # Errors
    /// [`MemFault`] of the first instruction at `pc`: then there is no TB.
    pub fn translate<H: Hooks>(
        &mut self,
        mmu: &mut LiveMmu,
        hooks: &mut H,
        pc: u64,
        limits: Limits,
    ) -> Result<(PageIndex, Option<PageIndex>), MemFault> {
        self.translate_among(mmu, hooks, pc, limits, |_, _| false)
    }

    /// The same, among other regions that begin where they are `known` to.
    pub(crate) fn translate_among<H: Hooks>(
        &mut self,
        mmu: &mut LiveMmu,
        hooks: &mut H,
        pc: u64,
        limits: Limits,
        known: impl Fn(&H, u64) -> bool,
    ) -> Result<(PageIndex, Option<PageIndex>), MemFault> {
        self.base = pc & !(PAGE_SIZE - 1);
        self.pages = [None; 2];
        // Until it is known that there will be a TB: a fault waits for nobody, and keeps nobody's port.
        let mut pending = Pending::default();
        self.still = true;
        for left in (0..TRIES).rev() {
            self.forget();
            self.heads.clear();
            self.stops.clear();
            self.explore_to_exits(mmu, hooks, pc, limits)?;
            if limits.heads && self.found.len() >= limits.insns && self.find_heads(pc) {
                self.forget();
                self.explore_to_exits(mmu, hooks, pc, limits)?;
            }
            if limits.heads && self.found.len() >= limits.insns {
                self.build(pc, limits);
                self.find_stops(|pc| known(hooks, pc));
                self.forget();
                self.explore_to_exits(mmu, hooks, pc, limits)?;
                self.stops.clear();
            }
            self.make_spans();
            // CODE-1: announce, then read what counts.
            for (n, page) in self.pages.iter().enumerate() {
                let mut spans = self.region.spans.iter().filter(|s| usize::from(s.page) == n).peekable();
                if let (Some(page), true) = (page, spans.peek().is_some()) {
                    let spans = spans.map(|s| (s.start.into(), s.end.into()));
                    pending.absorb(mmu.announce_spans(page.ram.page(), spans));
                }
            }
            // Where somebody writes all the time, old bytes must do for now, as they would a little earlier: the TB is
            // compared again before it counts.
            self.copy_spans();
            if self.unchanged() {
                break;
            }
            self.bytes.clear();
            if left == 0 {
                break;
            }
            self.still = false;
        }
        self.pending = pending;
        self.build(pc, limits);
        let second = self.region.spans.iter().any(|s| s.page == 1);
        let page = |n: usize| self.pages[n].map(|p: Page| p.ram.page());
        let first = page(0).expect("the entry was read from it");
        Ok((first, if second { page(1) } else { None }))
    }

    /// Logarithm of what the second page was mapped with, if the region has bytes there.
    pub(crate) fn second_size(&self) -> Option<u8> {
        let used = self.region.spans.iter().any(|span| span.page != 0);
        self.pages[1].filter(|_| used).map(|page| page.size_log2)
    }

    /// What is left to do for who translated: other vCPUs that have yet to answer, or bytes that would not stand
    /// still. With the instructions, by their place in the two pages.
    pub(crate) fn doubts(&mut self) -> Option<(Pending, Insns)> {
        let pending = std::mem::take(&mut self.pending);
        let insns = || self.found.iter().map(|found| (found.off, found.bits)).collect();
        (!pending.is_empty() || !self.still).then(|| (pending, insns()))
    }

    /// The bytes that the region was made from, span by span; none, if they would not stand still. Another's memory in
    /// exchange.
    pub(crate) fn swap_bytes(&mut self, other: &mut Vec<u8>) {
        std::mem::swap(&mut self.bytes, other);
    }

    /// The pages whose lines may have been announced for instructions that were not there any more.
    pub(crate) fn overannounced(&self) -> impl Iterator<Item = PageIndex> {
        self.pages.iter().flatten().filter(|_| !self.still).map(|page| page.ram.page())
    }

    fn explore_to_exits<H: Hooks>(
        &mut self,
        mmu: &mut LiveMmu,
        hooks: &mut H,
        pc: u64,
        limits: Limits,
    ) -> Result<(), MemFault> {
        self.mark_exits(EXIT);
        self.mark_stops(NONE, STOP);
        let explored = self.explore(mmu, hooks, pc, limits);
        self.mark_stops(STOP, NONE);
        self.mark_exits(NONE);
        explored
    }

    /// Where a run shall end, as far as that was not met, and may yet be.
    fn mark_exits(&mut self, mark: u16) {
        let set = |slot: &mut Slot| {
            if matches!(slot.at, NONE | EXIT) {
                slot.at = mark;
            }
        };
        let first = self.exits.pcs.partition_point(|pc| *pc < self.base);
        for pc in &self.exits.pcs[first..] {
            let Some(slot) = self.slots.get_mut((pc - self.base) as usize / 2) else { break };
            set(slot);
        }
        if !self.exits.is_code(self.base, self.base.wrapping_add(2 * PAGE_SIZE - 1)) {
            for (n, slot) in self.slots.iter_mut().enumerate() {
                let pc = self.base.wrapping_add(2 * n as u64);
                if !self.exits.is_code(pc, pc) {
                    set(slot);
                }
            }
        }
    }

    fn mark_stops(&mut self, from: u16, to: u16) {
        for n in 0..self.stops.len() {
            let slot = self.offset(self.stops[n]).map(|off| &mut self.slots[off as usize / 2]);
            if let Some(slot) = slot.filter(|slot| slot.at == from) {
                slot.at = to;
            }
        }
    }

    fn forget(&mut self) {
        for &(start, end) in &self.runs {
            self.slots[start as usize / 2..(end as usize / 2).min(WINDOW)].fill(Slot::NONE);
        }
        for &off in &self.leaders {
            self.slots[off as usize / 2].block = NONE;
        }
        self.found.clear();
        self.leaders.clear();
        self.queue.clear();
        self.runs.clear();
        self.lasts.clear();
        self.region.clear();
    }

    fn offset(&self, pc: u64) -> Option<u32> {
        let off = pc.wrapping_sub(self.base);
        (off < 2 * PAGE_SIZE).then_some(off as u32)
    }

    /// Makes blocks of what was found.
    fn build(&mut self, pc: u64, limits: Limits) {
        // Leaders that were not reached are exits.
        self.leaders.retain(|&l| {
            let slot = &mut self.slots[l as usize / 2];
            let reached = slot.at != NONE;
            if !reached {
                slot.block = NONE;
            }
            reached
        });
        if !self.leaders.is_sorted() {
            self.leaders.sort_unstable();
        }
        for (n, &off) in self.leaders.iter().enumerate() {
            self.slots[off as usize / 2].block = n as u16;
        }
        self.region.pc = pc;
        self.region.hooked = !self.hooks.is_empty();
        self.region.noted = self.compares.is_some();
        self.region.insns = self.found.len() as u32;
        self.region.entry = self.slots[(pc - self.base) as usize / 2].block;
        self.lower.set(limits.optimise, self.mode);
        for n in 0..self.leaders.len() {
            if self.hooks.has_insns() || self.compares.is_some() {
                self.block::<true>(n)
            } else {
                self.block::<false>(n)
            }
        }
        self.mark_polls();
        if self.follows_flow() {
            cover::cover(&mut self.region, &self.lasts, self.edges.as_deref(), &self.hooks);
        }
    }

    /// Is something done where control goes?
    fn follows_flow(&self) -> bool {
        self.edges.is_some() || self.hooks.has_blocks()
    }

    fn target(&self, pc: u64) -> Target {
        match self.offset(pc).map(|off| self.slots[off as usize / 2].block) {
            None | Some(NONE) => Target::Exit(pc),
            Some(block) => Target::Block(block),
        }
    }

    /// Makes the block of a leader; `HOOKED`: instructions may be.
    fn block<const HOOKED: bool>(&mut self, number: usize) {
        let start = self.leaders[number];
        let (first, sites) = (self.region.ops.len() as u32, self.region.sites.len());
        self.lower.start();
        let mut count = 0u16;
        let slot = self.slots[start as usize / 2];
        let mut rest = self.found[usize::from(slot.at)..].iter();
        // Where the next block begins, if this one comes there: up to there it need not be asked whether there is one.
        let mut following = number + 1;
        let mut stop = self.leaders.get(following).map_or(u32::MAX, |&leader| leader);
        loop {
            let found = rest.next().expect("what a slot has was found");
            let (packed, next) = (found.insn, found.next());
            count += 1;
            if packed.ends_block() {
                break;
            }
            let pc = self.base.wrapping_add(found.off.into());
            if HOOKED {
                let insn = found.insn.insn();
                self.lower.hook(&mut self.region, pc, insn, count, self.hooks.insn(pc, &insn));
                if let Some(compares) = self.compares.as_deref().filter(|_| flow::compares(&insn)) {
                    self.lower.operands(&mut self.region, insn, compares.number(pc));
                }
            }
            self.lower.insn(&mut self.region, pc, &found.insn, count);
            if next >= stop {
                // Over one that begins inside an instruction.
                while stop < next {
                    following += 1;
                    stop = self.leaders.get(following).map_or(u32::MAX, |&leader| leader);
                }
                if stop == next {
                    break;
                }
            }
            // Mostly the one behind, or else known by its place.
            if rest.as_slice().first().is_none_or(|found| found.off != next) {
                match self.slots.get(next as usize / 2) {
                    Some(&Slot { at, .. }) if at != NONE => rest = self.found[usize::from(at)..].iter(),
                    _ => break,
                }
            }
        }
        let last = self.found.len() - rest.len() - 1;
        self.close(start, (first, sites), count, last);
    }

    /// Ends a block with what was found last.
    // Apart from what runs for each instruction, to which it leaves its registers.
    #[inline(never)]
    fn close(&mut self, start: u32, (first, sites): (u32, usize), count: u16, last: usize) {
        let found = &self.found[last];
        let (packed, off, next) = (found.insn, found.off, found.next());
        let insn = packed.insn();
        let at = self.base.wrapping_add(off.into());
        // Where a run ends, the hooks are called when the next one begins.
        if self.hooks.has_insns() && packed.ends_block() && !self.exits.has(at) {
            self.lower.hook(&mut self.region, at, insn, count, self.hooks.insn(at, &insn));
        }
        if let Some(compares) = self.compares.as_deref().filter(|_| flow::of(&insn) == Some(Goes::Branch)) {
            self.lower.operands(&mut self.region, insn, compares.number(at));
        }
        self.lower.end(&mut self.region);
        if self.follows_flow() {
            self.lasts.push((self.base.wrapping_add(off.into()), flow::of(&insn)));
        }
        let fall = self.target(self.base.wrapping_add(next.into()));
        let pc = self.base.wrapping_add(off.into());
        let block = (start, first, count);
        match packed.condition() {
            // Here, and not in `Lower`: a terminator is too wide to be made in one place and kept in another.
            Some(cond) => {
                let taken = self.target(insn.target(pc));
                let Insn { rs1: a, rs2: b, .. } = insn;
                self.push_block(block, Term::Branch { cond, a, b, word: false, taken, fall });
            }
            _ if packed.ends_block() => {
                let to = if flow::of(&insn) == Some(Goes::Indirect) { fall } else { self.target(insn.target(pc)) };
                let mut term = self.lower.terminator(&mut self.region, packed, pc, insn, count, to);
                if let Term::Indirect { tells, .. } = &mut term
                    && let wanted @ (Wanted::Light(_) | Wanted::Full(_)) = self.hooks.any_block()
                {
                    // Behind the jump, which has retired.
                    let does = Does::ArriveAt { light: matches!(wanted, Wanted::Light(_)) };
                    *tells = Some(push_site(&mut self.region, pc, insn, count + 1, does));
                }
                self.push_block(block, term);
            }
            _ => self.push_block(block, Term::Goto(fall)),
        }
        // Sites have their place in the block; what counts is how much of its charge is still to come.
        for site in &mut self.region.sites[sites..] {
            site.refund = count + 1 - site.refund;
        }
    }

    #[inline(always)]
    fn push_block(&mut self, (start, first, insns): (u32, u32, u16), term: Term) {
        let (pc, end) = (self.base.wrapping_add(start.into()), self.region.ops.len() as u32);
        let shares = self.lower.shares();
        self.region.blocks.push(Block { pc, insns, first, end, poll: false, shares, term });
    }

    /// A block polls if it is the entry (chains and indirect jumps come in there) or if an edge goes back to it.
    fn mark_polls(&mut self) {
        let entry = self.region.entry as usize;
        self.region.blocks[entry].poll = true;
        for i in 0..self.region.blocks.len() {
            let term = self.region.blocks[i].term;
            term.each_target(|target| {
                if let Target::Block(b) = target
                    && usize::from(b) <= i
                {
                    self.region.blocks[usize::from(b)].poll = true;
                    self.region.loops = true;
                }
            });
        }
    }
}
