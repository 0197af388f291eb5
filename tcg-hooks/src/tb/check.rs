//! Do all structures that know of a TB agree? For tests: every translation and every kill can be followed by this.
//!
//! ```text
//!   live TBs ─┬─ by key            each found by its key, no key names another
//!             ├─ numbers           every number is a live TB's or free, none is both
//!             ├─ pages             the lists are what the TBs' spans say; the line masks are their union (CODE-1);
//!             │                    the CODE bit is clear exactly where the mask is not empty
//!             ├─ TLB               no entry of a page with code lets a store through in silence
//!             ├─ exits             each jump goes where it is linked to, or to its own stub; incoming lists match (CHAIN-1)
//!             ├─ jump cache        entries lead to the entry of a live TB at that pc
//!             ├─ return stack      entries lead to a return of a live TB to that pc
//!             └─ code cache        no two TBs, dead places or the unfilled rest overlap; chunk lists name them all
//! ```
//!
//! It holds while nobody else writes: one vCPU, and no other thread with requests under way.
use super::{Tb, TbCache, TbId, cache::lines};
use crate::jit::code_cache::CodeOffset;
use crate::jit::x86_64::LOCAL_BITS;
use crate::jit::x86_64::context::Context;
use hashbrown::{HashMap, HashSet};
use notdirty_core::{DirtyClient, PageIndex, pin};
use notdirty_softmmu::tlb::entry::{
    ADDEND, AUX, BIAS, CODEPAGE, DISCARD, FLAGS, INVALID, MMIO, NOTDIRTY, TLB_ENTRIES, TlbEntry, WRITE,
};
use std::ptr::NonNull;
use std::sync::atomic::Ordering;

/// Whether and with what result the checks run by themselves.
#[derive(Debug, Default)]
pub(crate) struct Checker {
    /// The vCPU's TLB; `None`: no checks but those that are asked for.
    pub(crate) table: Option<NonNull<TlbEntry>>,
    /// Checks so far.
    pub(crate) checks: u64,
    /// The first disagreement, and after what. A panic could not leave emitted code, so it is kept for whoever asks.
    pub(crate) damage: Option<String>,
}

macro_rules! ensure {
    ($that:expr, $($text:tt)+) => {
        if !$that {
            return Err(format!($($text)+));
        }
    };
}

impl TbCache {
    /// Checks everything, if that is wanted, after `what`.
    pub(super) fn checkpoint(&mut self, ctx: &Context, what: &str) {
        let Some(table) = self.checker.table else { return };
        if self.checker.damage.is_some() {
            return;
        }
        self.checker.checks += 1;
        let found = self.check(ctx, table);
        self.checker.damage = found.err().map(|e| format!("{e} (after {what} at pc {:#x})", ctx.cpu.pc));
    }

    /// Compares everything with everything; the first disagreement in words. `table` is the TLB of the vCPU that
    /// `self` and `ctx` belong to.
    pub(crate) fn check(&self, ctx: &Context, table: NonNull<TlbEntry>) -> Result<(), String> {
        self.check_numbers()?;
        self.check_pages()?;
        self.check_tlb(table)?;
        for (id, tb) in self.live() {
            self.check_exits(id, tb)?;
            self.check_incoming(id, tb)?;
        }
        self.check_jumps(ctx)?;
        self.check_returns(ctx)?;
        self.check_places()
    }

    fn live(&self) -> impl Iterator<Item = (TbId, &Tb)> {
        self.tbs.iter().enumerate().filter_map(|(id, tb)| Some((id as TbId, tb.as_deref()?)))
    }

    fn check_numbers(&self) -> Result<(), String> {
        for (id, tb) in self.live() {
            let found = self.by_key.get(&tb.key);
            ensure!(found == Some(&id), "TB {id} is not found by its key, but {found:?}");
        }
        let live = self.live().count();
        ensure!(self.by_key.len() == live, "{} keys for {live} TBs", self.by_key.len());
        let free: HashSet<TbId> = self.free.iter().copied().collect();
        ensure!(free.len() == self.free.len(), "a free number is listed twice");
        ensure!(free.iter().all(|&id| self.get(id).is_none()), "the number of a live TB is listed as free");
        ensure!(free.len() + live == self.tbs.len(), "a number is neither free nor a live TB's");
        Ok(())
    }

    fn check_pages(&self) -> Result<(), String> {
        let mut want: HashMap<PageIndex, Vec<(TbId, u64)>> = HashMap::new();
        for (id, tb) in self.live() {
            for (n, page) in [Some(tb.pages.0), tb.pages.1].into_iter().enumerate() {
                let lines = lines(&tb.spans, n as u8);
                match page {
                    Some(page) => want.entry(page).or_default().push((id, lines)),
                    None => ensure!(lines == 0, "TB {id} has bytes on a page it does not name"),
                }
            }
        }
        let mut listed = 0;
        for (page, list) in self.pages.iter() {
            let mut list = list.to_vec();
            list.sort_unstable();
            listed += 1;
            let want = want.get_mut(&page).ok_or(format!("{page:?} lists {list:?} without any TB"))?;
            want.sort_unstable();
            ensure!(list == *want, "{page:?} lists {list:x?}, its TBs are {want:x?}");
        }
        ensure!(listed == want.len(), "a page with TBs has no list");
        let guard = pin();
        let (space, dirty) = (&self.space, self.space.ram().dirty());
        for block in space.ram().blocks(&guard) {
            for page in block.pages().iter() {
                let mask = space.code().page(page).map_or(0, |p| p.mask.load(Ordering::SeqCst));
                let union = want.get(&page).map_or(0, |list| list.iter().fold(0, |m, e| m | e.1));
                ensure!(mask == union, "{page:?} has the line mask {mask:#x}, its TBs are on {union:#x}");
                let clear = !dirty.test(page, DirtyClient::Code, &guard);
                ensure!(
                    clear == (mask != 0),
                    "{page:?} has the line mask {mask:#x}, but its CODE bit is clear: {clear}"
                );
            }
        }
        Ok(())
    }

    fn check_tlb(&self, table: NonNull<TlbEntry>) -> Result<(), String> {
        let guard = pin();
        for slot in 0..TLB_ENTRIES {
            // SAFETY: the table of our own vCPU's TLB, which lives as long as we do and has so many entries of words;
            // nobody but this thread writes it (TLB-1).
            let (write, addend, aux) = unsafe {
                let entry = table.as_ptr().add(slot).cast::<u8>();
                let word = |offset: i32| entry.add(offset as usize).cast::<u64>().read();
                (word(WRITE), word(ADDEND), word(AUX))
            };
            if write & !FLAGS == 0 || write & (INVALID | MMIO | DISCARD) != 0 {
                continue;
            }
            let va = (write & !FLAGS).wrapping_sub(BIAS);
            let host = va.wrapping_add(addend) as *const u8;
            // RAM that is gone is flushed at the next safe point.
            let Some((block, off)) = self.space.ram().find_host(host, &guard) else { continue };
            let Some(page) = block.offset().checked_add(off).map(|at| at.page()) else { continue };
            let code = self.space.code().page(page);
            let mask = code.map_or(0, |p| p.mask.load(Ordering::SeqCst));
            let heard = write & (NOTDIRTY | CODEPAGE) != 0;
            ensure!(mask == 0 || heard, "the TLB lets stores at {va:#x} through, where {page:?} has code");
            let right = code.is_some_and(|p| std::ptr::from_ref(p).addr() as u64 == aux);
            ensure!(write & CODEPAGE == 0 || right, "the TLB tests the lines of another page for stores at {va:#x}");
        }
        Ok(())
    }

    /// Where the jump whose displacement is at `field` goes.
    fn jump_target(&self, field: CodeOffset) -> i64 {
        let bytes = self.code.bytes(field, 4);
        let rel = bytes.try_into().map_or(0, i32::from_le_bytes);
        i64::from(field) + 4 + i64::from(rel)
    }

    fn check_exits(&self, id: TbId, tb: &Tb) -> Result<(), String> {
        let code = tb.code.0..tb.code.0 + tb.code.1;
        ensure!(code.contains(&tb.entry), "TB {id} is entered outside its code");
        for (slot, exit) in tb.exits.iter().enumerate() {
            let name = format!("exit {slot} of TB {id}");
            let number = id << LOCAL_BITS | slot as u32;
            // A poll is not linked. It has no jump of its own, and its stub is all there is.
            ensure!(code.contains(&exit.stub) && code.contains(&(exit.stub + 4)), "{name} has its stub elsewhere");
            // mov eax, number
            let stub = self.code.bytes(exit.stub, 5);
            ensure!(stub[0] == 0xb8 && stub[1..] == number.to_le_bytes(), "the stub of {name} says {stub:x?}");
            if exit.field == 0 {
                ensure!(exit.to.is_none(), "{name} is linked without a jump");
                continue;
            }
            ensure!(code.contains(&exit.field) && code.contains(&(exit.field + 3)), "{name} has its jump elsewhere");
            let goes = self.jump_target(exit.field);
            let Some(to) = exit.to else {
                ensure!(goes == i64::from(exit.stub), "{name} is not linked, but jumps to {goes:#x}");
                continue;
            };
            let target = self.get(to).ok_or(format!("{name} is linked to TB {to}, which is dead"))?;
            ensure!(goes == i64::from(target.entry), "{name} is linked to TB {to}, but jumps to {goes:#x}");
            ensure!(target.key.pc == exit.pc, "{name} leads to {:#x}, but to a TB at {:#x}", exit.pc, target.key.pc);
            let noted = target.incoming.iter().filter(|&&i| i == (id, slot as u16)).count();
            ensure!(noted == 1, "{name} is linked to TB {to}, which knows of it {noted} times");
        }
        Ok(())
    }

    fn check_incoming(&self, id: TbId, tb: &Tb) -> Result<(), String> {
        for &(from, slot) in &tb.incoming {
            let exit = self.get(from).and_then(|tb| tb.exits.get(usize::from(slot)));
            let to = exit.and_then(|e| e.to);
            ensure!(to == Some(id), "TB {id} knows of exit {slot} of TB {from}, which is linked to {to:?}");
        }
        Ok(())
    }

    fn check_jumps(&self, ctx: &Context) -> Result<(), String> {
        // An odd pc is that of an empty entry.
        let used = ctx.jumps.iter().filter(|e| e.pc & 1 == 0);
        let mut entries = HashSet::new();
        for (_, tb) in self.live() {
            entries.insert((tb.key.pc, self.code.address(tb.entry) as u64));
        }
        for e in used {
            ensure!(entries.contains(&(e.pc, e.host)), "the jump cache leads from {:#x} to no TB", e.pc);
        }
        Ok(())
    }

    fn check_returns(&self, ctx: &Context) -> Result<(), String> {
        for e in ctx.returns.iter().filter(|e| e.pc & 1 == 0) {
            // It points at the jump of an exit, one byte before its displacement.
            let at = e.host.wrapping_sub(self.code.address(0) as u64).wrapping_add(1);
            let leads = |tb: &Tb| tb.exits.iter().any(|x| x.field != 0 && u64::from(x.field) == at && x.pc == e.pc);
            ensure!(self.live().any(|(_, tb)| leads(tb)), "the return stack leads from {:#x} to no live TB", e.pc);
        }
        Ok(())
    }

    fn check_places(&self) -> Result<(), String> {
        let (unit, free, rest) = self.code.places();
        let mut all: Vec<(usize, usize, String)> = Vec::new();
        for (id, tb) in self.live() {
            let start = tb.code.0 as usize;
            let chunk = self.code.chunk_of(tb.code.0);
            ensure!(tb.chunk == chunk, "TB {id} is in chunk {chunk}, not in {}", tb.chunk);
            let listed = self.chunk_tbs[chunk].get(tb.place as usize);
            ensure!(listed == Some(&id), "TB {id} is in chunk {chunk}, whose list has {listed:?} in its place");
            all.push((start, start + (tb.code.1 as usize).next_multiple_of(unit), format!("TB {id}")));
        }
        let listed: usize = self.chunk_tbs.iter().map(Vec::len).sum();
        ensure!(listed == all.len(), "the chunks list {listed} TBs, {} live", all.len());
        all.extend(free.into_iter().map(|p| (p.start, p.end, "a dead place".into())));
        all.push((rest.start, rest.end, "the unfilled rest".into()));
        all.sort_unstable();
        for pair in all.windows(2) {
            let ((a, b), text) = ((&pair[0], &pair[1]), "share code");
            ensure!(a.1 <= b.0 || a.0 == a.1 || b.0 == b.1, "{} and {} {text} at {:#x}", a.2, b.2, b.0);
        }
        Ok(())
    }
}
