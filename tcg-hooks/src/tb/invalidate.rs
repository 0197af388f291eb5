//! The one door by which translated code dies because bytes were written.
//!
//! ```text
//!   bytes ─▶ page, lines ─▶ TBs whose lines meet ─▶ those whose spans meet ─▶ kill
//!   kill: off the table, jump cache, links both ways, page lists; then the page's lines are counted
//!         again, and a page without any gives its CODE bit back
//! ```
//!
//! Keeps CODE-2: a killed TB may still be running (it made the store). Its bytes are released here, but written again
//! only by `TbCache::add`, which the exec loop calls when no emitted code is on the stack; by then every pointer into
//! them is gone.
use super::cache::lines;
use super::jumps::JumpTable;
use super::{Tb, TbCache, TbId};
use crate::clock::cpu_time;
use crate::fetch::prefetch;
use crate::heat::WARM;
use crate::ir::Span;
use crate::jit::LOCAL_BITS;
use crate::jit::code_cache::place_bytes;
use crate::jit::context::Context;
use notdirty_core::{PAGE_SIZE, PageIndex, RamAddr, RamList, pin};
use notdirty_softmmu::lines_of;

/// Dead TBs that are kept for their memory: about as many as a chunk of the code cache has.
const MAX_SPARE: usize = 1024;
/// How many TBs ahead of a kill its memory is asked for.
const AHEAD: usize = 2;

impl TbCache {
    /// Bytes `[ram, ram + len)` were written: drops every TB made from any of them; returns how many. With `compare` those
    /// stay whose bytes are in RAM now: for what others wrote, who are many and may put back what was there.
    ///
    /// That they stay is right whoever else writes meanwhile: whatever lands after the comparison is told after it.
    pub(crate) fn invalidate(&mut self, ctx: &mut Context, ram: RamAddr, len: u64, compare: bool) -> usize {
        let (mut at, end) = (ram.get(), ram.get().saturating_add(len));
        let mut killed = 0;
        let kept = self.stats.unchanged;
        while at < end {
            let page = RamAddr::new(at).page();
            let from = at % PAGE_SIZE;
            let count = (end - at).min(PAGE_SIZE - from);
            let (lines, before) = (lines_of(from, count), killed);
            let (ids, steps) = self.pages.on(page, lines);
            self.stats.steps += steps as u64;
            for id in ids {
                let Some(tb) = self.get(id).filter(|tb| tb.overlaps(page, from, from + count)) else { continue };
                if compare && tb.stands(self.space.ram()) {
                    self.stats.unchanged += 1;
                } else {
                    self.kill_written(id, ctx);
                    killed += 1;
                }
            }
            if killed == before && self.stats.unchanged == kept {
                self.count_halves(page, lines);
            }
            at += count;
        }
        self.stats.invalidated += killed as u64;
        #[cfg(any(test, feature = "testkit"))]
        self.checkpoint(ctx, "a kill");
        killed
    }

    /// A store hit code that is no more: the next one shall not.
    fn count_halves(&self, page: PageIndex, lines: u64) {
        let (listed, _) = self.pages.on(page, lines);
        let tbs = listed.iter().filter_map(|&id| self.get(id));
        let spans = tbs.flat_map(|tb| tb.spans_on(page)).map(|s| (s.start.into(), s.end.into()));
        self.space.code().set_halves(page, lines, spans, self.vcpu);
    }

    /// Drops a TB whose bytes were written.
    pub(super) fn kill_written(&mut self, id: TbId, ctx: &mut Context) {
        let Some((pc, born)) = self.get(id).map(|tb| (tb.key.pc, tb.born)) else { return };
        self.kill(id, ctx);
        let age = ctx.cpu.retired.wrapping_sub(born);
        let runs = self.heat.died(pc, age);
        self.stats.died_young += u64::from(runs > WARM);
        if let Some(deaths) = &mut self.deaths {
            deaths.push((pc, age, runs));
        }
    }

    /// Counts a page's lines again: some were announced for what did not become a TB.
    pub(crate) fn recount(&self, page: PageIndex) {
        let own = self.pages.lines(page);
        self.space.ram().dirty().set_code_lines(page, own, self.vcpu, &pin());
    }

    /// Drops one TB.
    pub(super) fn kill(&mut self, id: TbId, ctx: &mut Context) {
        self.unlink_incoming(id);
        self.unlink_outgoing(id);
        let Some(tb) = self.tbs[id as usize].take() else { return };
        self.kept -= tb.kept();
        self.live -= place_bytes(tb.code.1 as usize);
        self.by_key.remove(&tb.key);
        for set in self.sets_of(&tb.key) {
            ctx.forget_jump(set, tb.key.pc);
            self.jumps[set].remove(tb.key.pc);
        }
        let guard = pin();
        for (n, page) in [Some(tb.pages.0), tb.pages.1].into_iter().enumerate() {
            let Some(page) = page else { continue };
            let (left, steps) = self.pages.remove(page, id, lines(&tb.spans, n as u8));
            self.stats.steps += steps as u64;
            self.space.ram().dirty().set_code_lines(page, left, self.vcpu, &guard);
        }
        self.code.release(tb.code.0, tb.code.1 as usize);
        // Off its chunk's list; the last one takes its place. A list that kept the dead would grow for ever where one
        // site is patched again and again, as their code goes to the same place each time.
        let list = &mut self.chunk_tbs[tb.chunk];
        list.swap_remove(tb.place as usize);
        if let Some(&moved) = list.get(tb.place as usize)
            && let Some(moved) = self.tbs[moved as usize].as_mut()
        {
            moved.place = tb.place;
        }
        self.free.push(id);
        if self.spare.len() < MAX_SPARE {
            self.spare.push(tb);
        }
    }

    /// Makes room in the code cache: a chunk that is not in use yet if what would die is wanted and the limit allows,
    /// else the oldest, whose TBs die.
    pub(super) fn reclaim(&mut self, ctx: &mut Context) {
        let start = cpu_time();
        let regret = self.ghosts.regret();
        let grow = self.code.must_evict() && self.has_room() && (regret || self.is_wanted());
        let chunk = self.code.next_chunk(grow);
        self.evict(chunk, ctx);
        self.code.restart_chunk();
        self.stats.longest_reclaim = self.stats.longest_reclaim.max(cpu_time().saturating_sub(start));
    }

    /// May there be another chunk? If all are as full of TBs of the present size, the limit holds.
    fn has_room(&self) -> bool {
        let chunks = self.code.in_use() + self.code.chunk_len();
        chunks + (chunks as u128 * self.kept as u128 / self.live.max(1) as u128) as usize <= self.code.limit()
    }

    /// Drops the oldest chunks while they and what is kept of TBs take more than the limit: what is kept of small TBs
    /// is more than their code.
    pub(super) fn keep_limit(&mut self, ctx: &mut Context) {
        while self.code.in_use() + self.kept > self.code.limit() {
            let Some(chunk) = self.code.oldest() else { break };
            self.evict(chunk, ctx);
            self.code.retire_oldest();
        }
    }

    /// Is an eighth of the oldest chunk code that is likely to run again? With tier 0 all that lives is: it was run
    /// often enough. Else what other TBs jump to.
    fn is_wanted(&self) -> bool {
        let Some(chunk) = self.code.oldest() else { return false };
        let tbs = self.chunk_tbs[chunk].iter().filter_map(|&id| Some((id, self.get(id)?)));
        let wanted =
            tbs.filter(|(id, tb)| self.flags.tier0 || tb.incoming.iter().any(|number| number >> LOCAL_BITS != *id));
        8 * wanted.map(|(_, tb)| tb.code.1 as usize).sum::<usize>() >= self.code.chunk_len()
    }

    /// Drops the TBs of a chunk.
    fn evict(&mut self, chunk: usize, ctx: &mut Context) {
        if self.chunk_tbs[chunk].is_empty() {
            return;
        }
        // Each kill pins; this makes that a count.
        let _pinned = pin();
        log::debug!("the code cache evicts the {} TBs of its oldest chunk", self.chunk_tbs[chunk].len());
        while let Some(&id) = self.chunk_tbs[chunk].last() {
            // First where it is, then what it leads to.
            let ahead = |n: usize| self.chunk_tbs[chunk].iter().rev().nth(n).and_then(|&id| self.get(id));
            if let Some(later) = ahead(2 * AHEAD) {
                let at: *const Tb = later;
                prefetch(at.cast(), size_of::<Tb>());
            }
            if let Some(soon) = ahead(AHEAD) {
                prefetch(soon.exits.as_ptr().cast(), size_of_val(soon.exits.as_slice()).min(128));
            }
            // With tier 0, what dies here was wanted, or there was no room: regret would tell nothing.
            if let (Some(tb), false) = (self.get(id), self.flags.tier0) {
                let pc = tb.key.pc;
                self.ghosts.evicted(pc);
            }
            self.kill(id, ctx);
            self.stats.evicted += 1;
        }
    }

    /// The guest pages of `[first, last]` were RAM from `ram` on, and are no more: drops every TB with a guest address
    /// there, be it its second page only (CHAIN-1, RAM-1). An alias of the same RAM keeps its own.
    pub(crate) fn unmapped(&mut self, ctx: &mut Context, first: u64, last: u64, ram: RamAddr) {
        let from = ram.page().get();
        let end = from + ((last - first) / PAGE_SIZE + 1);
        // By pages, or by those that hold code, whichever are fewer.
        let pages: Vec<PageIndex> = if end - from <= self.pages.len() as u64 {
            (from..end).map(PageIndex::new).filter(|page| self.pages.has(*page)).collect()
        } else {
            self.pages.all().filter(|page| (from..end).contains(&page.get())).collect()
        };
        for page in pages {
            for id in self.pages.on(page, u64::MAX).0 {
                let here = |pc: u64| (first..=last).contains(&pc);
                let gone = self.get(id).is_some_and(|tb| {
                    let start = tb.key.pc & !(PAGE_SIZE - 1);
                    // Where a translated one is seen says nothing of where it lies.
                    tb.key.is_translated() || here(start) || tb.pages.1.is_some() && here(start.wrapping_add(PAGE_SIZE))
                });
                if gone {
                    self.kill(id, ctx);
                    self.stats.evicted += 1;
                }
            }
        }
        #[cfg(any(test, feature = "testkit"))]
        self.checkpoint(ctx, "an unmapping");
    }

    /// Drops every TB: the memory map changed, and with it what any pc means.
    pub(crate) fn clear(&mut self, ctx: &mut Context) {
        for id in 0..self.tbs.len() {
            if self.tbs[id].is_some() {
                self.kill(id as TbId, ctx);
                self.stats.evicted += 1;
            }
        }
        ctx.forget_jumps();
        self.jumps.iter_mut().for_each(JumpTable::clear);
        self.restart_mappings(ctx);
    }
}

impl Tb {
    /// Are the bytes that it was made from in RAM?
    #[cold]
    fn stands(&self, ram: &RamList) -> bool {
        let guard = pin();
        let mut bytes = self.bytes.as_slice();
        let mut now = [0; PAGE_SIZE as usize];
        let same = |span: &Span| {
            let page = if span.page == 0 { Some(self.pages.0) } else { self.pages.1 }?;
            let at = RamAddr::new(page.base().get() + u64::from(span.start));
            let (was, rest) = bytes.split_at_checked((span.end - span.start).into())?;
            let block = ram.find(at, &guard)?;
            bytes = rest;
            let now = &mut now[..was.len()];
            block.read_bytes(at.get() - block.offset().get(), now).ok()?;
            (now == was).then_some(())
        };
        // None were kept of a TB that would not stand still.
        !self.bytes.is_empty() && self.spans.iter().map(same).all(|same| same.is_some())
    }

    /// Was it made from any byte of `[from, to)` of this page?
    fn overlaps(&self, page: PageIndex, from: u64, to: u64) -> bool {
        self.spans_on(page).any(|s| u64::from(s.start) < to && from < u64::from(s.end))
    }

    /// The bytes on this page that it was made from.
    fn spans_on(&self, page: PageIndex) -> impl Iterator<Item = &Span> {
        self.spans
            .iter()
            .filter(move |s| page == if s.page == 0 { self.pages.0 } else { self.pages.1.unwrap_or(self.pages.0) })
    }
}
