//! Do all structures that know of a TB agree? For tests: every translation and every kill can be followed by this.
//!
//! ```text
//!   live TBs ─┬─ by key            each found by its key, no key names another
//!             ├─ numbers           every number is a live TB's or free, none is both
//!             ├─ pages             the lists are what the TBs' spans say; the vCPU's lines are their union, the masks have
//!             │                    them all (CODE-1);
//!             │                    the CODE bit is clear exactly where the mask is not empty
//!             ├─ TLB               no entry of a page with code lets a store through in silence
//!             ├─ exits             each jump goes where it is linked to, or to its own stub; incoming lists match (CHAIN-1)
//!             ├─ jump cache        entries, and those of the table behind it, lead to the entry of a live TB at that pc
//!             └─ code cache        no two TBs, dead places or the unfilled rest overlap; chunk lists name them all
//! ```
//!
//! It holds while nobody else writes: one vCPU, and no other thread with requests under way.
use super::{Tb, TbCache, TbId};
use crate::jit::context::Context;
use crate::jit::{Backend, Host, LOCAL_BITS, Link};
use hashbrown::{HashMap, HashSet};
use notdirty_core::{PageIndex, pin};
use notdirty_softmmu::tlb::entry::{
    ADDEND, AUX, BIAS, CODEPAGE, DISCARD, FLAGS, INVALID, MMIO, NOTDIRTY, TLB_ENTRIES, TlbEntry, WRITE,
};
use std::ptr::NonNull;
use std::sync::atomic::Ordering;

/// With more TBs than that, a check takes its time, and only one event in so many is checked.
const CROWD: usize = 256;
const SAMPLE: u64 = 64;

/// Whether and with what result the checks run by themselves.
#[derive(Debug, Default)]
pub(crate) struct Checker {
    /// The vCPU's TLB; `None`: no checks but those that are asked for.
    pub(crate) table: Option<NonNull<TlbEntry>>,
    /// Translations and kills seen.
    events: u64,
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
        self.checker.events += 1;
        if self.tbs.len() > CROWD && !self.checker.events.is_multiple_of(SAMPLE) {
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
        let kept: usize = self.live().map(|(_, tb)| tb.kept()).sum();
        ensure!(kept == self.kept, "{kept} bytes are kept of TBs, {} are counted", self.kept);
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
                // Counted byte by byte: what is checked is not asked.
                let spans = tb.spans.iter().filter(|s| usize::from(s.page) == n);
                let code = page.and_then(|page| self.space.code().page(page));
                for s in spans.clone() {
                    let all = code.is_some_and(|code| code.has_all_halves(s.start.into(), u64::from(s.end - s.start)));
                    ensure!(
                        all,
                        "a store to bytes {:#x}..{:#x} of {page:?} would not be heard by TB {id}",
                        s.start,
                        s.end
                    );
                }
                let lines = spans.flat_map(|s| s.start..s.end).fold(0u64, |m, byte| m | 1 << (byte / 64));
                match page {
                    Some(page) => want.entry(page).or_default().push((id, lines)),
                    None => ensure!(lines == 0, "TB {id} has bytes on a page it does not name"),
                }
            }
        }
        let mut listed = 0;
        for (page, list) in self.pages.iter() {
            let mut list = list;
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
                let own = space.code().lines_of_vcpu(page, self.vcpu);
                let union = want.get(&page).map_or(0, |list| list.iter().fold(0, |m, e| m | e.1));
                ensure!(own == union, "{page:?} has the line mask {own:#x}, its TBs are on {union:#x}");
                // Other vCPUs may have lines there too.
                ensure!(own & !mask == 0, "{page:?} has the line mask {mask:#x}, without all of {own:#x}");
                let clear = dirty.is_code_protected(page, &guard);
                ensure!(
                    clear == (mask != 0),
                    "{page:?} has the line mask {mask:#x}, but its CODE bit is clear: {clear}"
                );
            }
        }
        Ok(())
    }

    fn check_tlb(&self, table: NonNull<TlbEntry>) -> Result<(), String> {
        // SAFETY: the table of our own vCPU's TLB, which lives as long as we do; nobody but this thread writes it
        // (TLB-1). Slots are below TLB_ENTRIES, and offsets those of words of an entry.
        let word = |slot: usize, offset: i32| unsafe {
            table.as_ptr().add(slot).cast::<u8>().add(offset as usize).cast::<u64>().read()
        };
        // Most of it is empty.
        for first in (0..TLB_ENTRIES).step_by(16) {
            let slots = first..first + 16;
            if slots.clone().fold(0, |any, slot| any | word(slot, WRITE)) & !FLAGS != 0 {
                slots.into_iter().try_for_each(|s| self.check_entry(word(s, WRITE), word(s, ADDEND), word(s, AUX)))?;
            }
        }
        Ok(())
    }

    /// One entry of the TLB.
    fn check_entry(&self, write: u64, addend: u64, aux: u64) -> Result<(), String> {
        if write & !FLAGS == 0 || write & (INVALID | MMIO | DISCARD) != 0 {
            return Ok(());
        }
        let guard = pin();
        let va = (write & !FLAGS).wrapping_sub(BIAS);
        let host = va.wrapping_add(addend) as *const u8;
        // RAM that is gone is flushed at the next safe point.
        let Some((block, off)) = self.space.ram().find_host(host, &guard) else { return Ok(()) };
        let Some(page) = block.offset().checked_add(off).map(|at| at.page()) else { return Ok(()) };
        let code = self.space.code().page(page);
        let mask = code.map_or(0, |p| p.mask.load(Ordering::SeqCst));
        let heard = write & (NOTDIRTY | CODEPAGE) != 0;
        ensure!(mask == 0 || heard, "the TLB lets stores at {va:#x} through, where {page:?} has code");
        let right = code.is_some_and(|p| std::ptr::from_ref(p).addr() as u64 == aux);
        ensure!(write & CODEPAGE == 0 || right, "the TLB tests the lines of another page for stores at {va:#x}");
        Ok(())
    }

    fn check_exits(&self, id: TbId, tb: &Tb) -> Result<(), String> {
        let code = tb.code.0..tb.code.0 + tb.code.1;
        ensure!(code.contains(&tb.entry), "TB {id} is entered outside its code");
        for (slot, exit) in tb.exits.iter().enumerate() {
            let name = format!("exit {slot} of TB {id}");
            let number = id << LOCAL_BITS | slot as u32;
            // A poll is not linked. It has no jump of its own, and its stub is all there is.
            let way = &exit.way;
            ensure!(code.contains(&way.stub), "{name} has its stub elsewhere");
            let link = Host::linked(&self.code, way, number).map_err(|what| format!("the stub of {name} {what}"))?;
            if way.field == 0 {
                ensure!(exit.to.is_none(), "{name} is linked without a jump");
                continue;
            }
            ensure!(code.contains(&way.field) && code.contains(&(way.field + 3)), "{name} has its jump elsewhere");
            let Some(to) = exit.to else {
                let unlinked = matches!(link, Link::Stub | Link::Jump);
                ensure!(unlinked, "{name} is not linked, but jumps: {link:x?}");
                continue;
            };
            let target = self.get(to).ok_or(format!("{name} is linked to TB {to}, which is dead"))?;
            let stays = !tb.key.is_translated() || tb.maps(&target.key) && target.pages.1.is_none();
            ensure!(stays || way.via != 0, "{name} leads where its pages do not");
            let (goes, guarded) = match link {
                Link::To(goes) => (Some(goes), false),
                Link::While(goes, _) => (Some(goes), true),
                Link::Stub | Link::Jump => (None, way.guarded || !stays),
            };
            ensure!(guarded == (way.guarded || !stays), "{name} leads where its pages do not, and does not ask");
            ensure!(goes == Some(target.entry), "{name} is linked to TB {to}, but jumps: {link:x?}");
            ensure!(target.key.flags == tb.key.flags, "{name} leads from one mode to another");
            let alike = target.key.instrumentation == tb.key.instrumentation;
            ensure!(alike, "{name} leads to code with other hooks or exits");
            ensure!(target.key.pc == way.pc, "{name} leads to {:#x}, but to a TB at {:#x}", way.pc, target.key.pc);
            let listed = target.incoming.get(exit.place as usize);
            ensure!(listed == Some(&number), "{name} is linked to TB {to}, which lists {listed:x?} in its place");
        }
        Ok(())
    }

    fn check_incoming(&self, id: TbId, tb: &Tb) -> Result<(), String> {
        for (place, &number) in tb.incoming.iter().enumerate() {
            let (from, slot) = (number >> LOCAL_BITS, number % (1 << LOCAL_BITS));
            let exit = self.exit(number);
            let to = exit.and_then(|e| e.to);
            ensure!(to == Some(id), "TB {id} knows of exit {slot} of TB {from}, which is linked to {to:?}");
            let own = exit.map(|e| e.place as usize);
            ensure!(own == Some(place), "TB {id} lists exit {slot} of TB {from} in place {place}, which says {own:?}");
        }
        Ok(())
    }

    fn check_jumps(&self, ctx: &Context) -> Result<(), String> {
        let tables = self.jumps.iter().enumerate();
        let used = ctx.jumps().chain(tables.flat_map(|(set, table)| table.iter().map(move |entry| (set, entry))));
        let mut entries = HashSet::new();
        for (_, tb) in self.live() {
            entries.insert((tb.key.flags, tb.key.pc, self.code.address(tb.entry) as u64));
        }
        for (set, e) in used {
            let known = self.regimes.knows(set, e.pc);
            let known = known.is_some_and(|flags| entries.contains(&(flags, e.pc, e.host)));
            ensure!(known, "the jump cache leads from {:#x} to no TB", e.pc);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::JitFlags;
    use crate::jit::context::PREFIX;
    use crate::jit::helpers::execute_site;
    use crate::riscv::Op;
    use crate::tb::{Found, TbKey};
    use crate::testkit::{Runs, encode};
    use crate::translate::{Limits, MAX_INSNS, Translator};
    use notdirty_core::raw::RawDirty;
    use notdirty_core::{PageRange, RamAddr, RamBlockSpec, RamList};
    use notdirty_softmmu::{AddressSpace, GuestPhys, GuestVirt, MemSize, MmuIdx, NoHooks};

    const BASE: u64 = 0x8000_0000;
    /// The same RAM again.
    const ALIAS: u64 = 0x9000_0000;
    const A: u64 = BASE;
    const B: u64 = BASE + 0x400;
    /// Its last instruction is on the next page.
    const C: u64 = BASE + 0xffc;

    /// A calls B, B goes on to C, C returns: three TBs, linked, with all caches warm.
    struct World {
        mmu: Runs,
        tbs: TbCache,
        a: Found,
        b: Found,
        c: Found,
    }

    impl World {
        fn new() -> World {
            let list = std::sync::Arc::new(RamList::new());
            let block = list.add(RamBlockSpec::new("ram", 0x4000)).unwrap();
            let space = AddressSpace::new(list);
            for base in [BASE, ALIAS] {
                space.map_ram(GuestPhys::new(base), &block, 0, 0x4000, 0).unwrap();
            }
            let put = |at: u64, words: [u32; 2]| {
                let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
                space.write(GuestPhys::new(at), &bytes).unwrap();
            };
            let (add, jump) = (encode(Op::Addi, 10, 10, 0, 1), |from, to| encode(Op::Jal, 0, 0, 0, (to - from) as i32));
            put(A, [add, encode(Op::Jal, 1, 0, 0, (B - A - 4) as i32)]);
            put(B, [add, jump(B + 4, C)]);
            put(C, [add, encode(Op::Jalr, 0, 1, 0, 0)]);
            let mut mmu = Runs::new(&space, PREFIX);
            // RAM that is only written, and then becomes code.
            let _ = mmu.store(&mut NoHooks, MmuIdx::M, GuestVirt::new(ALIAS + 0x800), MemSize::B8, 7).unwrap();
            // One basic block each, or A would swallow the rest.
            let flags = JitFlags { regions: false, ..JitFlags::default() };
            let tbs =
                TbCache::new(&space, mmu.port().id(), 1, flags, crate::jit::Flat::default(), execute_site).unwrap();
            let none = Found { id: 0, entry: 0 };
            let mut world = World { mmu, tbs, a: none, b: none, c: none };
            world.ctx().forget_jumps();
            (world.a, world.b, world.c) = (world.add(A), world.add(B), world.add(C));
            for (from, pc, to) in [(world.a, B, world.b), (world.b, C, world.c)] {
                let exits = &world.tbs.get(from.id).unwrap().exits;
                let slot = exits.iter().position(|e| e.way.pc == pc).unwrap() as u32;
                let ctx = world.ctx();
                world.tbs.link(ctx, from.id << LOCAL_BITS | slot, to.id);
            }
            world
        }

        fn ctx(&mut self) -> &'static mut Context {
            // SAFETY: the prefix has PREFIX bytes, zeroed, which is a valid `Context`. A test keeps no two of these
            // references, and none behind its world's end.
            unsafe { self.mmu.prefix().cast().as_mut() }
        }

        fn add(&mut self, pc: u64) -> Found {
            let limits = Limits { insns: MAX_INSNS, regions: false, optimise: true, heads: false };
            let mut translator = Translator::default();
            let pages = translator.translate(&mut self.mmu, &mut NoHooks, pc, limits).unwrap();
            let ram = RamAddr::new(pages.0.base().get() + pc % 4096);
            let key = TbKey { ram, pc, flags: 0, instrumentation: 0 };
            let ctx = self.ctx();
            let found = self.tbs.add(ctx, key, pages, &translator.region, &mut Vec::new(), false);
            self.tbs.remember(ctx, &key, found, false, (12, None));
            found
        }

        fn check(&mut self) -> Result<(), String> {
            let (ctx, table) = (self.ctx(), self.mmu.table());
            self.tbs.check(ctx, table)
        }

        fn tb(&mut self, found: Found) -> &mut Tb {
            self.tbs.tbs[found.id as usize].as_mut().unwrap()
        }

        fn page(&self) -> PageIndex {
            self.tbs.get(self.a.id).unwrap().pages.0
        }

        fn store(&mut self, at: u64) {
            let _ = self.mmu.store(&mut NoHooks, MmuIdx::M, GuestVirt::new(at), MemSize::B8, 0).unwrap();
        }
    }

    /// Does the damage, and wants it to be called by its name.
    #[track_caller]
    fn caught(name: &str, damage: impl FnOnce(&mut World)) {
        let mut world = World::new();
        assert_eq!(world.check(), Ok(()));
        damage(&mut world);
        let found = world.check();
        assert!(found.as_ref().is_err_and(|e| e.contains(name)), "{name}: {found:?}");
    }

    #[test]
    fn a_cache_in_order_has_nothing_to_report_whoever_dies_in_it() {
        for n in 0..3 {
            let mut w = World::new();
            let dead = [w.a, w.b, w.c][n];
            let ctx = w.ctx();
            w.tbs.kill(dead.id, ctx);
            assert_eq!(w.check(), Ok(()), "{n}");
            w.add([A, B, C][n]);
            assert_eq!(w.check(), Ok(()), "{n} again");
            let ctx = w.ctx();
            w.tbs.clear(ctx);
            assert_eq!(w.check(), Ok(()), "{n} and all");
        }
    }

    #[test]
    fn a_tb_that_is_not_where_it_is_looked_for_is_caught() {
        caught("not found by its key", |w| {
            let key = w.tb(w.b).key;
            w.tbs.by_key.remove(&key);
        });
        caught("4 keys for 3 TBs", |w| {
            let key = TbKey { pc: 0, ..w.tb(w.b).key };
            w.tbs.by_key.insert(key, w.b.id);
        });
        caught("the number of a live TB", |w| w.tbs.free.push(w.b.id));
        caught("neither free nor", |w| w.tbs.tbs.push(None));
    }

    #[test]
    fn page_lists_line_masks_and_code_bits_that_disagree_are_caught() {
        caught("lists", |w| {
            let page = w.page();
            let lines = super::super::cache::lines(&w.tb(w.b).spans, 0);
            w.tbs.pages.remove(page, w.b.id, lines);
        });
        caught("lists", |w| {
            let page = w.page();
            w.tbs.pages.add(page, w.b.id, 2);
        });
        caught("without any TB", |w| w.tbs.pages.add(PageIndex::new(w.page().get() + 2), 0, 1));
        caught("has the line mask", |w| {
            let page = w.page();
            w.tbs.space.code().page_or_insert(page).mask.fetch_and(!1, Ordering::SeqCst);
        });
        caught("has the line mask", |w| {
            // Announced, and never taken back.
            let page = PageIndex::new(w.page().get() + 3);
            let _ = w.mmu.announce_code(page, 1);
        });
        caught("CODE bit", |w| {
            let range = PageRange::of_page(w.page());
            w.tbs.space.ram().dirty().unprotect_code(range, &pin());
        });
    }

    #[test]
    fn a_tlb_entry_that_was_not_armed_is_caught_at_every_alias() {
        for base in [BASE, ALIAS] {
            caught("lets stores", |w| {
                let (page, guard) = (w.page(), pin());
                let (code, ram) = (w.tbs.space.code(), w.tbs.space.ram());
                let mask = code.page(page).unwrap().mask.load(Ordering::SeqCst);
                ram.dirty().set_code_lines(page, 0, w.tbs.vcpu, &guard);
                // Nobody listens: the entry becomes fast. Then the lines are back, and nobody armed it.
                w.store(base + 0x800);
                w.tbs.space.ram().dirty().set_code_lines(page, mask, w.tbs.vcpu, &guard);
            });
        }
    }

    #[test]
    fn jumps_that_go_elsewhere_are_caught() {
        caught("is linked to TB", |w| {
            let way = linked(w.tb(w.a));
            Host::link(&mut w.tbs.code, &w.tbs.shared, &way, Link::Stub);
        });
        caught("is not linked, but jumps", |w| {
            let (way, entry) = (linked(w.tb(w.a)), w.b.entry);
            let tb = w.tb(w.a);
            tb.exits.iter_mut().find(|e| e.way.field == way.field).unwrap().to = None;
            w.tb(w.b).incoming.clear();
            Host::link(&mut w.tbs.code, &w.tbs.shared, &way, Link::To(entry));
        });
        caught("which lists None in its place", |w| w.tb(w.b).incoming.clear());
        caught("in place 1, which says Some(0)", |w| {
            let noted = w.tb(w.b).incoming[0];
            w.tb(w.b).incoming.push(noted);
        });
        caught("which is linked to None", |w| {
            let id = w.c.id;
            w.tb(w.b).incoming.push(id << LOCAL_BITS);
        });
        caught("which is dead", |w| {
            // Its links are not taken back.
            w.tb(w.c).incoming.clear();
            let (c, ctx) = (w.c.id, w.ctx());
            w.tbs.kill(c, ctx);
        });
        caught("but to a TB at", |w| w.tb(w.a).exits.iter_mut().for_each(|e| e.way.pc ^= 2));
        caught("the stub of exit", |w| {
            let stub = w.tb(w.b).exits[0].way.stub;
            w.tbs.code.patch(stub, [0; 4]);
        });
    }

    fn linked(tb: &Tb) -> crate::jit::Way {
        tb.exits.iter().find(|e| e.to.is_some()).unwrap().way
    }

    #[test]
    fn jump_cache_entries_of_the_dead_are_caught() {
        caught("the jump cache leads", |w| {
            let old = *w.ctx().jump_slot(0, C);
            let (c, ctx) = (w.c.id, w.ctx());
            w.tbs.kill(c, ctx);
            *ctx.jump_slot(0, C) = old;
        });
        caught("the jump cache leads", |w| w.ctx().jump_slot(0, B).host += 1);
        caught("the jump cache leads", |w| w.tbs.jumps[0].insert(B, 16));
        caught("the jump cache leads", |w| w.tbs.jumps[0].insert(B + 2, 16));
        // A TB of another mode.
        caught("the jump cache leads", |w| {
            let entry = *w.ctx().jump_slot(0, B);
            *w.ctx().jump_slot(1, B) = entry;
        });
        caught("the jump cache leads", |w| {
            let entry = *w.ctx().jump_slot(0, B);
            w.tbs.jumps[2].insert(B, entry.host);
        });
    }

    #[test]
    fn links_between_modes_are_caught() {
        caught("leads from one mode to another", |w| {
            let (id, key) = (w.a.id, w.tb(w.a).key);
            let other = TbKey { flags: 1, ..key };
            w.ctx().forget_jump(0, key.pc);
            w.tbs.jumps[0].remove(key.pc);
            w.tbs.by_key.remove(&key);
            w.tbs.by_key.insert(other, id);
            w.tb(w.a).key = other;
        });
    }

    #[test]
    fn code_in_two_hands_is_caught() {
        caught("share code", |w| {
            let at = w.tb(w.b).code.0;
            w.tbs.code.release(at, 64);
        });
        caught("share code", |w| {
            let at = w.tbs.code.reserve(64).unwrap();
            w.tbs.code.release(at, 64);
            w.tbs.code.release(at, 64);
        });
        caught("share code", |w| {
            // Filled again while its TBs live.
            while w.tbs.code.next_chunk(false) != 0 {}
        });
        caught("has None in its place", |w| w.tbs.chunk_tbs[0].clear());
        caught("list 4 TBs", |w| w.tbs.chunk_tbs[0].push(77));
    }

    #[test]
    fn damage_is_kept_until_somebody_asks() {
        let mut w = World::new();
        w.tbs.checker.table = Some(w.mmu.table());
        let ctx = w.ctx();
        w.tbs.invalidate(ctx, RamAddr::new(0), 4, false);
        assert_eq!((w.tbs.checker.checks, &w.tbs.checker.damage), (1, &None));
        w.tbs.free.push(w.b.id);
        w.add(A + 4);
        let damage = w.tbs.checker.damage.as_deref().unwrap();
        assert!(damage.contains("after a translation"), "{damage}");
    }
}
