//! Figures, no claims: `cargo test --release -p notdirty-softmmu --test figures -- --ignored --nocapture`.

mod common;

use common::{Live, RAM, pa, va};
use notdirty_core::raw::RawDirty;
use notdirty_core::{DirtyClient, RamAddr, RamBlockSpec, RamList, pin};
use notdirty_softmmu::{
    Access, AddressSpace, Asid, CodeInvalidator, FaultCause, Hooks, MemSize, MmioDevice, MmuIdx, NoHooks, Physical,
    Translation,
};
use std::sync::Arc;
use std::time::Instant;

#[test]
#[ignore = "a figure"]
fn writes_of_the_host_of_little_and_of_much() {
    let ram = Arc::new(RamList::new());
    let space = AddressSpace::new(ram.clone());
    let len = 16u64 << 30;
    let block = ram.add(RamBlockSpec::new("ram", len)).unwrap();
    space.map_ram(pa(RAM), &block, 0, len, 0).unwrap();
    let told = |what: &str| {
        let start = Instant::now();
        ram.after(block.offset(), len);
        println!("16 GiB written, {what}: {:?}", start.elapsed());
    };
    told("no code");
    let mut mmu = Live::new(&space, 0);
    let _ = mmu.announce_code(block.offset().page(), 1);
    told("one page of code");
    const TIMES: u64 = 1_000_000;
    let each = |what: &str, mut access: Box<dyn FnMut(u64) + '_>| {
        let start = Instant::now();
        (0..TIMES).for_each(|n| access(RAM + (n % 4096) * 64));
        println!("{what} of 64 bytes: {:.0} ns", start.elapsed().as_nanos() as f64 / TIMES as f64);
    };
    each("write", Box::new(|at| space.write(pa(at), &[0; 64]).unwrap()));
    each("read", Box::new(|at| space.read(pa(at), &mut [0; 64]).unwrap()));
    let big = vec![1u8; 64 << 20];
    for what in ["first", "again"] {
        let start = Instant::now();
        space.write(pa(RAM), &big).unwrap();
        println!("write of 64 MiB, {what}: {:?}", start.elapsed());
    }
    let mut copy = vec![0u8; big.len()];
    for what in ["first", "again"] {
        let start = Instant::now();
        copy.copy_from_slice(&big);
        println!("memcpy of 64 MiB, {what}: {:?}", start.elapsed());
    }
    assert_eq!(copy, big);
}

#[test]
#[ignore = "a figure"]
fn a_background_region_under_many_blocks() {
    struct Dev;
    impl MmioDevice for Dev {
        fn read(&self, _: u64, _: MemSize) -> u64 {
            0
        }
        fn write(&self, _: u64, _: MemSize, _: u64) {}
    }
    for regions in [1000u64, 2000, 4000, 8000] {
        let ram = Arc::new(RamList::new());
        let space = AddressSpace::new(ram.clone());
        let block = ram.add(RamBlockSpec::new("ram", 1 << 30)).unwrap();
        for n in 0..regions {
            space.map_ram(pa(n << 21), &block, n << 13, 0x1000, 0).unwrap();
        }
        let start = Instant::now();
        let id = space.map_mmio(pa(0), 1 << 40, Arc::new(Dev), -1).unwrap();
        let (mapped, start) = (start.elapsed(), Instant::now());
        space.unmap(id).unwrap();
        println!("a background under {regions} regions: mapped in {mapped:?}, unmapped in {:?}", start.elapsed());
    }
}

/// Three levels of tables at the start of RAM; each page is the one behind them that `page` says.
struct Walker {
    page: fn(u64) -> u64,
}
impl CodeInvalidator for Walker {
    fn code_written(&mut self, _: RamAddr, _: u64) -> usize {
        0
    }
}
impl Hooks for Walker {
    fn translate(&mut self, memory: &mut Physical<'_>, access: Access) -> Result<Translation, FaultCause> {
        let n = access.va.get() >> 12;
        for level in 0..3 {
            memory.read(pa(RAM + level * 0x1000 + n % 512 * 8)).ok_or(FaultCause::Access)?;
        }
        Ok(Translation { page: pa(RAM + 0x4000 + (self.page)(n) * 0x1000), ..Translation::identity(access.va) })
    }
}

#[test]
#[ignore = "a figure"]
fn what_fills_flushes_switches_and_aliases_cost() {
    let ram = Arc::new(RamList::new());
    let block = ram.add(RamBlockSpec::new("ram", 256 << 20)).unwrap();
    let space = AddressSpace::new(ram.clone());
    space.map_ram(pa(RAM), &block, 0, 256 << 20, 0).unwrap();
    let mut mmu = Live::new(&space, 0);
    let told = |what: &str, start: Instant, n: u64| {
        println!("{what}: {:.1} ns", start.elapsed().as_nanos() as f64 / n as f64);
    };
    // 32,768 pages for 16,384 slots: each store of machine mode misses.
    for _ in 0..3 {
        let start = Instant::now();
        for n in 0..1 << 19 {
            let _ = mmu.store(&mut NoHooks, MmuIdx::M, va(RAM + n % 32768 * 0x1000), MemSize::B8, n).unwrap();
        }
        told("a store of machine mode that misses", start, 1 << 19);
    }
    let page = |n: u64| 0x10_0000_0000 + n * 0x1000;
    for (what, to) in [("1,000 pages", (|n| n % 32768) as fn(u64) -> u64), ("1,000 aliases", |_| 5)] {
        let mut walker = Walker { page: to };
        for flush in ["first", "again"] {
            let start = Instant::now();
            for n in 0..1000 {
                let _ = mmu.store(&mut walker, MmuIdx::S, va(page(n)), MemSize::B8, n).unwrap();
            }
            told(&format!("a walk and a fill, {what}, {flush}"), start, 1000);
            let start = Instant::now();
            mmu.flush_translations(None, Some(Asid(0)));
            told(&format!("a flush of them, an entry, {flush}"), start, 1000);
        }
    }
    let mut walker = Walker { page: |_| 5 };
    let start = Instant::now();
    for n in 0..1u64 << 20 {
        mmu.flush_translations(Some(va(page(n % 1000))), None);
    }
    told("a flush of a page that is not there", start, 1 << 20);
    let start = Instant::now();
    for n in 0..1u64 << 20 {
        mmu.set_asid(Asid(n as u32 % 4));
        mmu.select(MmuIdx::S);
    }
    told("a switch to another of 4 address spaces", start, 1 << 20);
    mmu.set_asid(Asid(0));
    let shown = RamAddr::new(block.offset().get() + 0x9000).page();
    for aliases in [1u64, 16_384] {
        mmu.flush_translations(None, None);
        for n in 0..aliases {
            let _ = mmu.store(&mut walker, MmuIdx::S, va(page(n)), MemSize::B8, n).unwrap();
        }
        let mut rearm = |what: &str| {
            ram.dirty().test_and_clear(shown, DirtyClient::MIGRATION, &pin());
            common::rearm(&space, shown);
            let start = Instant::now();
            let _ = mmu.serve(&mut walker);
            told(&format!("a re-arm of a page with {aliases} aliases, {what}"), start, 1);
        };
        rearm("all disarmed");
        rearm("none");
        let mut slow = 0;
        for _ in 0..1000 {
            let start = Instant::now();
            let _ = mmu.store(&mut walker, MmuIdx::S, va(page(0)), MemSize::B8, 1).unwrap();
            slow += start.elapsed().as_nanos();
            ram.dirty().test_and_clear(shown, DirtyClient::MIGRATION, &pin());
            common::rearm(&space, shown);
            let _ = mmu.serve(&mut walker);
        }
        println!("a slow store to a page with {aliases} aliases: {} ns", slow / 1000);
    }
}
