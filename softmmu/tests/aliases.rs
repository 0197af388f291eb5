//! One page of RAM at many virtual addresses: what a store and a re-arm look at.
mod common;

use common::*;
use notdirty_core::raw::RawDirty;
use notdirty_core::{DirtyClient, PAGE_SIZE, PageIndex, PageRange, RamAddr, RamBlockSpec, RamList, pin};
use notdirty_softmmu::raw::Request;
use notdirty_softmmu::tlb::entry::{CODEPAGE, ENTRY_BITS, NOTDIRTY, WRITE};
use notdirty_softmmu::{
    Access, AddressSpace, CodeInvalidator, FaultCause, GuestPhys, Hooks, MemSize, MmuIdx, Physical, SlowStats,
    Translation,
};
use std::sync::Arc;

/// As many as there are slots, so that all entries are there at once.
const ALIASES: u64 = 16_384;
const VIRT: u64 = 0x10_0000_0000;
const SHOWN: u64 = 5;

/// All addresses show one page.
struct OnePage;

impl CodeInvalidator for OnePage {
    fn code_written(&mut self, _: RamAddr, _: u64) -> usize {
        0
    }
}

impl Hooks for OnePage {
    fn translate(&mut self, _: &mut Physical<'_>, access: Access) -> Result<Translation, FaultCause> {
        Ok(Translation { page: GuestPhys::new(RAM + SHOWN * PAGE_SIZE), ..Translation::identity(access.va) })
    }
}

struct World {
    ram: Arc<RamList>,
    space: Arc<AddressSpace>,
    mmu: Live,
    page: PageIndex,
}

impl World {
    /// Each alias has been stored through.
    fn new() -> World {
        let ram = Arc::new(RamList::new());
        let block = ram.add(RamBlockSpec::new("ram", 64 << 12)).unwrap();
        let space = AddressSpace::new(ram.clone());
        space.map_ram(GuestPhys::new(RAM), &block, 0, 64 << 12, 0).unwrap();
        let mmu = Live::new(&space, 0);
        let page = PageIndex::new(block.offset().page().get() + SHOWN);
        let mut world = World { ram, space, mmu, page };
        for n in 0..ALIASES {
            world.store(n, 0);
        }
        assert_eq!(world.fast(), ALIASES, "all of them are there at once");
        world
    }

    fn store(&mut self, alias: u64, off: u64) {
        let at = va(VIRT + alias * PAGE_SIZE + off);
        let _ = self.mmu.store(&mut OnePage, MmuIdx::S, at, MemSize::B8, alias).unwrap();
    }

    /// Aliases that are stored to without a call.
    fn fast(&self) -> u64 {
        (0..ALIASES).filter(|n| self.mmu.is_store_fast(va(VIRT + n * PAGE_SIZE))).count() as u64
    }

    fn flags(&self, alias: u64) -> u64 {
        let slot = (VIRT / PAGE_SIZE + alias) % ALIASES;
        let at = (slot << ENTRY_BITS) + self.mmu.table_offset() + WRITE as u64;
        // SAFETY: an entry of the set that is in use, below the number of its slots.
        let write = unsafe { self.mmu.table().cast::<u8>().add(at as usize).cast::<u64>().read() };
        write & (CODEPAGE | NOTDIRTY)
    }

    /// What `what` added to the counters.
    fn counted(&mut self, what: impl FnOnce(&mut World)) -> SlowStats {
        let before = *self.mmu.stats();
        what(self);
        let mut after = *self.mmu.stats();
        after.refreshed -= before.refreshed;
        after.armed -= before.armed;
        after.notdirty -= before.notdirty;
        after.code_page -= before.code_page;
        after
    }

    /// A client takes the page's bit and asks for `ranges` to be armed.
    fn rearm(&mut self, ranges: &[PageRange]) {
        self.ram.dirty().test_and_clear(self.page, DirtyClient::MIGRATION, &pin());
        for &range in ranges {
            post_all(&self.space, Request::Rearm(range));
        }
        let _ = self.mmu.serve(&mut OnePage);
    }
}

#[test]
fn a_re_arm_of_a_page_with_16384_aliases_visits_its_entries_once() {
    let mut world = World::new();
    let page = PageRange::of_page(world.page);
    let everything = PageRange { start: PageIndex::new(0), end: PageIndex::new(1 << 20) };
    // By the page, and by what is loose; the same page in two ranges of one re-arm too.
    for ranges in [vec![page], vec![page, page], vec![everything], vec![everything, page]] {
        let all = world.counted(|world| world.rearm(&ranges));
        assert_eq!(all.armed, ALIASES, "{ranges:?}");
        assert_eq!(world.fast(), 0);
        let none = world.counted(|world| world.rearm(&ranges));
        assert_eq!(none.armed, 0, "none was stored through since");
        world.store(7, 0);
        world.store(9, 0);
        let few = world.counted(|world| world.rearm(&ranges));
        assert_eq!(few.armed, 2, "those that were");
        for n in 0..ALIASES {
            world.store(n, 0);
        }
    }
}

#[test]
fn a_slow_store_to_a_page_with_16384_aliases_disarms_its_own_entry_only() {
    let mut world = World::new();
    world.rearm(&[PageRange::of_page(world.page)]);
    for (stored, alias) in [(1, 0), (2, 1), (3, ALIASES - 1), (4, 8000)] {
        let slow = world.counted(|world| world.store(alias, 8));
        assert_eq!((slow.notdirty, slow.refreshed, slow.armed), (1, 1, 0), "alias {alias}");
        let quick = world.counted(|world| world.store(alias, 16));
        assert_eq!((quick.notdirty, quick.refreshed, quick.armed), (0, 0, 0), "alias {alias}, again");
        assert_eq!(world.fast(), stored);
    }
}

#[test]
fn code_on_a_page_with_16384_aliases_arms_each_once_and_a_store_beside_it_looks_at_none() {
    let mut world = World::new();
    let page = world.page;
    let announced = world.counted(|world| {
        let _ = world.mmu.announce_code(page, 1);
    });
    assert_eq!(announced.armed, ALIASES);
    assert!((0..ALIASES).all(|n| world.flags(n) == CODEPAGE));
    // As the page says so already, more code of it finds them in their place; they are loose, as a client may come.
    let beside = world.counted(|world| world.store(3, 2048));
    assert_eq!((beside.code_page, beside.refreshed, beside.armed), (1, 0, 0));
    let taken = world.counted(|world| world.rearm(&[PageRange::of_page(page)]));
    assert_eq!(taken.armed, ALIASES);
    assert!((0..ALIASES).all(|n| world.flags(n) == NOTDIRTY));
    let told = world.counted(|world| world.store(3, 2048));
    assert_eq!((told.notdirty, told.refreshed, told.armed), (1, 1, 0));
    assert_eq!((world.flags(3), world.flags(4)), (CODEPAGE, NOTDIRTY));
}
