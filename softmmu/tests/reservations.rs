//! Reservations that any other store to their set breaks: what does, what does not, and from when on.

mod common;

use common::{Live, RAM, Vm, pa, va};
use notdirty_core::{DirtyClient, RamAddr, RamBlockSpec, RamList};
use notdirty_softmmu::MemSize::{B4, B8};
use notdirty_softmmu::{
    Access, AddressSpace, AmoOp, CodeInvalidator, FaultCause, Hooks, LiveMmu, MmuIdx, NoHooks, Physical, Translation,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const M: MmuIdx = MmuIdx::M;
const CELL: u64 = RAM + 0x1040;

/// Two vCPUs on one thread.
struct Two {
    vm: Vm,
    other: Live,
}

impl Two {
    /// Where other stores break reservations.
    fn strict() -> Two {
        Two::made(|ram| ram.break_reservations())
    }

    fn made(ask: impl FnOnce(&RamList)) -> Two {
        let vm = Vm::new();
        ask(&vm.ram);
        let other = Live::new(&vm.space, 0);
        Two { vm, other }
    }

    fn lr(&mut self) -> u64 {
        lr(&mut self.vm.mmu, CELL)
    }

    fn sc(&mut self, value: u64) -> bool {
        sc(&mut self.vm.mmu, CELL, value)
    }

    /// An LR that reserves: the other vCPU has answered.
    fn reserve(&mut self) -> u64 {
        self.lr();
        let _ = self.other.serve(&mut NoHooks);
        self.lr()
    }

    fn other_stores(&mut self, at: u64, value: u64) {
        let _ = self.other.store(&mut NoHooks, M, va(at), B8, value).unwrap();
    }

    /// Does this, done while the first vCPU has the cell reserved, break its reservation?
    fn breaks(&mut self, what: impl FnOnce(&mut Two)) -> bool {
        let old = self.reserve();
        what(self);
        !self.sc(old)
    }
}

fn lr(mmu: &mut LiveMmu, at: u64) -> u64 {
    mmu.lr(&mut NoHooks, M, va(at), B8).unwrap()
}

fn sc(mmu: &mut LiveMmu, at: u64, value: u64) -> bool {
    mmu.sc(&mut NoHooks, M, va(at), B8, value).unwrap().0
}

#[test]
fn nothing_is_reserved_before_every_other_vcpu_has_answered_for_its_stores() {
    let mut two = Two::strict();
    // It may store to the page without a call.
    two.other_stores(CELL, 1);
    assert!(two.other.is_store_fast(va(CELL)));
    for _ in 0..3 {
        assert_eq!(two.lr(), 1);
        assert!(!two.sc(2));
    }
    let _ = two.other.serve(&mut NoHooks);
    assert!(!two.other.is_store_fast(va(CELL)));
    assert_eq!(two.lr(), 1);
    assert!(two.sc(2));
    assert!(!two.sc(3), "used up");
    assert_eq!(two.lr(), 2);
}

#[test]
fn a_store_of_the_same_value_by_another_vcpu_breaks_a_reservation() {
    let mut two = Two::strict();
    assert!(two.breaks(|two| two.other_stores(CELL, 0)));
    assert!(!two.breaks(|_| {}), "nothing was stored");
    assert!(two.breaks(|two| {
        two.other_stores(CELL, 222);
        two.other_stores(CELL, 0);
    }));
    let odd = |two: &mut Two| {
        let _ = two.other.store(&mut NoHooks, M, va(CELL - 3), B4, 0).unwrap();
    };
    assert!(two.breaks(odd), "its last byte is in the set");
}

#[test]
fn a_store_over_two_pages_breaks_the_reservations_of_both() {
    let mut two = Two::strict();
    for at in [RAM + 0x1ff8, RAM + 0x2000] {
        let mmu = &mut two.vm.mmu;
        lr(mmu, at);
        let _ = two.other.serve(&mut NoHooks);
        lr(mmu, at);
        let _ = two.other.store(&mut NoHooks, M, va(RAM + 0x1ffc), B8, 0).unwrap();
        assert!(!sc(mmu, at, 1), "{at:#x}");
    }
}

#[test]
fn an_amo_that_changes_nothing_breaks_a_reservation_and_so_does_an_sc() {
    let mut two = Two::strict();
    assert!(two.breaks(|two| {
        let _ = two.other.amo(&mut NoHooks, M, va(CELL + 4), B4, AmoOp::Or, 0).unwrap();
    }));
    assert!(two.breaks(|two| {
        let old = lr(&mut two.other, CELL);
        assert!(sc(&mut two.other, CELL, old));
    }));
    assert!(!two.breaks(|two| {
        assert!(!sc(&mut two.other, CELL, 9), "it has no reservation");
    }));
}

#[test]
fn a_write_of_the_host_breaks_a_reservation_whatever_it_writes() {
    let mut two = Two::strict();
    assert!(two.breaks(|two| two.vm.space.write(pa(CELL), &[0; 8]).unwrap()));
    assert!(two.breaks(|two| two.vm.space.write(pa(CELL - 1), &[0; 2]).unwrap()));
    assert!(two.breaks(|two| two.vm.ram.fill(&two.vm.block, 0, 0x1_0000, 0).unwrap()));
    assert!(two.breaks(|two| two.vm.ram.store(&two.vm.block, CELL - RAM, 1, 0).unwrap()));
    assert!(!two.breaks(|two| two.vm.space.write(pa(CELL + 8), &[0; 8]).unwrap()));
    assert!(!two.breaks(|two| two.vm.space.write(pa(CELL - 8), &[0; 8]).unwrap()));
}

/// One page table entry, at [`CELL`]; each walk for a store sets its mark.
struct Walker;

impl CodeInvalidator for Walker {
    fn code_written(&mut self, _: RamAddr, _: u64) -> usize {
        0
    }
}

impl Hooks for Walker {
    fn translate(&mut self, memory: &mut Physical<'_>, access: Access) -> Result<Translation, FaultCause> {
        if access.idx != M {
            let entry = memory.read(pa(CELL)).unwrap();
            assert_eq!(memory.replace(self, pa(CELL), entry, entry), Some(true));
        }
        Ok(Translation { page: pa(RAM), ..Translation::identity(access.va) })
    }
}

#[test]
fn a_mark_of_a_page_walk_breaks_a_reservation() {
    let mut two = Two::strict();
    assert!(two.breaks(|two| {
        two.other.load(&mut Walker, MmuIdx::S, va(RAM + 0x8000), B8).unwrap();
    }));
}

#[test]
fn stores_to_other_sets_break_no_reservation_and_those_beside_it_cost_no_more_than_beside_code() {
    let mut two = Two::strict();
    for at in [CELL - 8, CELL + 8, CELL + 64, RAM + 0x3000] {
        assert!(!two.breaks(|two| two.other_stores(at, 7)), "{at:#x}");
    }
    assert!(!two.breaks(|two| {
        two.other.load(&mut NoHooks, M, va(CELL), B8).unwrap();
        lr(&mut two.other, CELL);
    }));
    assert!(two.other.is_store_fast(va(RAM + 0x3000)), "of another page: no test at all");
}

#[test]
fn an_alias_is_the_same_set() {
    let mut two = Two::strict();
    two.vm.space.map_ram(pa(0x4000_0000), &two.vm.block, 0x1000, 0x1000, 0).unwrap();
    let _ = (two.vm.mmu.serve(&mut NoHooks), two.other.serve(&mut NoHooks));
    assert!(two.breaks(|two| two.other_stores(0x4000_0040, 0)));
}

#[test]
fn a_value_that_was_changed_and_changed_back_is_not_noticed_unless_that_was_asked_for() {
    let mut two = Two::made(|_| {});
    assert!(!two.breaks(|two| {
        two.other_stores(CELL, 222);
        two.other_stores(CELL, 0);
    }));
    assert!(two.other.is_store_fast(va(CELL)), "and nothing is heard for it");
}

#[test]
fn with_one_writer_nothing_is_heard_and_values_are_compared() {
    let mut vm = Vm::new();
    vm.ram.break_reservations();
    assert!(vm.space.vcpus().promise_one_writer());
    vm.put(CELL, B8, 5);
    assert_eq!(lr(&mut vm.mmu, CELL), 5);
    assert!(sc(&mut vm.mmu, CELL, 6));
    assert!(vm.mmu.is_store_fast(va(CELL)));
}

#[test]
fn a_second_vcpu_ends_what_the_one_writer_reserved() {
    let mut vm = Vm::new();
    vm.ram.break_reservations();
    assert!(vm.space.vcpus().promise_one_writer());
    lr(&mut vm.mmu, CELL);
    vm.mmu.park();
    let mut other = Live::new(&vm.space, 0);
    let _ = vm.mmu.start(&mut NoHooks);
    let _ = other.store(&mut NoHooks, M, va(CELL), B8, 0).unwrap();
    assert!(!sc(&mut vm.mmu, CELL, 1));
}

#[test]
fn an_sc_marks_its_page_for_a_log_and_kills_code_in_its_set() {
    let mut two = Two::strict();
    two.reserve();
    let (page, at) = (two.vm.page(CELL - RAM), two.vm.at(CELL - RAM));
    two.vm.track(page, DirtyClient::MIGRATION);
    let _ = (two.vm.mmu.serve(&mut NoHooks), two.other.serve(&mut NoHooks));
    two.lr();
    assert!(two.sc(1) && two.vm.is_set(page, DirtyClient::MIGRATION));
    let Two { vm, other } = &mut two;
    vm.tbs.translate(&mut vm.mmu, at + 4, 4);
    let _ = other.serve(&mut NoHooks);
    lr(&mut vm.mmu, CELL);
    let (wrote, effect) = vm.mmu.sc(&mut vm.tbs, M, va(CELL), B8, 2).unwrap();
    assert!(wrote && effect.killed == 1 && vm.tbs.tbs.is_empty());
}

#[test]
fn code_that_comes_and_goes_in_the_line_of_a_set_leaves_its_stores_heard() {
    let mut two = Two::strict();
    two.reserve();
    for len in [4, 64] {
        let at = two.vm.at(CELL - RAM);
        two.vm.tbs.translate(&mut two.vm.mmu, at, len);
        let _ = two.other.serve(&mut NoHooks);
        two.vm.put(CELL, B4, 3);
        assert!(two.vm.tbs.tbs.is_empty(), "it died");
        // The translator finds no code in halves that are set.
        two.vm.space.code().set_halves(two.vm.page(CELL - RAM), u64::MAX, [].into_iter(), two.vm.tbs.vcpu);
        assert!(two.breaks(|two| two.other_stores(CELL, 3)));
        let heard = two.vm.tbs.heard.len();
        two.vm.put(CELL, B4, 3);
        assert_eq!(two.vm.tbs.heard.len(), heard, "no code there: the translator is not asked");
    }
}

#[test]
fn the_oldest_of_too_many_sets_is_forgotten_with_what_is_reserved_there() {
    let mut two = Two::made(|ram| ram.break_reservations_of(2));
    let old = two.reserve();
    for at in [RAM + 0x3000, RAM + 0x4000] {
        lr(&mut two.other, at);
        let _ = two.vm.mmu.serve(&mut NoHooks);
    }
    // Its page is as if no LR had been, and its stores are heard by nothing.
    two.other_stores(CELL, old);
    two.other_stores(CELL, old);
    assert!(two.other.is_store_fast(va(CELL)));
    assert!(!two.sc(1));
    assert!(two.breaks(|two| two.other_stores(CELL, old)), "and announced again");
    assert!(!two.breaks(|_| {}));
}

#[test]
fn memory_that_comes_where_other_memory_was_is_announced_anew() {
    let ram = Arc::new(RamList::new());
    ram.break_reservations();
    let space = AddressSpace::new(ram.clone());
    let (mut one, mut other) = (Live::new(&space, 0), Live::new(&space, 0));
    let mut offsets = Vec::new();
    for _ in 0..2 {
        let block = ram.add(RamBlockSpec::new("ram", 0x4000)).unwrap();
        offsets.push(block.offset());
        let id = space.map_ram(pa(RAM), &block, 0, 0x4000, 0).unwrap();
        let _ = (one.serve(&mut NoHooks), other.serve(&mut NoHooks));
        let _ = other.store(&mut NoHooks, M, va(CELL), B8, 0).unwrap();
        lr(&mut one, CELL);
        let _ = other.serve(&mut NoHooks);
        lr(&mut one, CELL);
        let _ = other.store(&mut NoHooks, M, va(CELL), B8, 0).unwrap();
        assert!(!sc(&mut one, CELL, 1));
        lr(&mut one, CELL);
        assert!(sc(&mut one, CELL, 1));
        space.unmap(id).unwrap();
        let _ = (one.serve(&mut NoHooks), other.serve(&mut NoHooks));
        ram.remove(&block).unwrap();
        drop(block);
        notdirty_core::synchronize().unwrap();
        notdirty_core::barrier().unwrap();
    }
    assert_eq!(offsets[0], offsets[1], "the test is about one that is used again");
}

/// Pops by LR, a load and SC, without a count beside the pointer.
fn pop(mmu: &mut LiveMmu, head: u64) -> u64 {
    loop {
        let _ = mmu.serve(&mut NoHooks);
        let node = lr(mmu, head);
        if node == 0 {
            return 0;
        }
        let next = mmu.load(&mut NoHooks, M, va(node), B8).unwrap();
        if sc(mmu, head, next) {
            return node;
        }
    }
}

fn push(mmu: &mut LiveMmu, head: u64, node: u64) {
    loop {
        let _ = mmu.serve(&mut NoHooks);
        let first = lr(mmu, head);
        let _ = mmu.store(&mut NoHooks, M, va(node), B8, first).unwrap();
        if sc(mmu, head, node) {
            return;
        }
    }
}

#[test]
fn a_list_that_is_swung_without_a_count_stays_whole_among_three_vcpus_and_a_host_that_writes() {
    const NODES: u64 = 4;
    let vm = Vm::new();
    let (ram, block, space) = (vm.ram.clone(), vm.block.clone(), vm.space.clone());
    drop(vm);
    ram.break_reservations();
    let node = |n: u64| RAM + 0x2000 + 64 * n;
    for n in 0..NODES {
        let next = if n + 1 < NODES { node(n + 1) } else { 0 };
        space.write(pa(node(n)), &next.to_le_bytes()).unwrap();
    }
    space.write(pa(CELL), &node(0).to_le_bytes()).unwrap();
    let owners: [AtomicU64; NODES as usize] = Default::default();
    let (owners, done) = (&owners, &AtomicU64::new(0));
    std::thread::scope(|scope| {
        for me in 1..=3 {
            let space = &space;
            scope.spawn(move || {
                let mut mmu = Live::new(space, 0);
                for _ in 0..3000 {
                    let taken = [pop(&mut mmu, CELL), pop(&mut mmu, CELL)];
                    for node in taken.into_iter().filter(|node| *node != 0) {
                        let owner = &owners[(node - RAM - 0x2000) as usize / 64];
                        assert_eq!(owner.swap(me, Ordering::SeqCst), 0, "a node has two owners");
                        owner.store(0, Ordering::SeqCst);
                        push(&mut mmu, CELL, node);
                    }
                }
                mmu.park();
                done.fetch_add(1, Ordering::SeqCst);
            });
        }
        // Beside the head, and now and then a byte of it that is what it was: its top one.
        while done.load(Ordering::SeqCst) < 3 {
            ram.store(&block, CELL - RAM + 8, 8, 1).unwrap();
            ram.store(&block, CELL - RAM + 7, 1, 0).unwrap();
            std::thread::yield_now();
        }
    });
    let mut mmu = Live::new(&space, 0);
    let left = std::iter::from_fn(|| Some(pop(&mut mmu, CELL)).filter(|node| *node != 0)).take(20);
    assert_eq!(left.count(), NODES as usize);
}
