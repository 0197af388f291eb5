//! Figures, no claims: `cargo test --release -p notdirty-softmmu --test figures -- --ignored --nocapture`.

mod common;

use common::{Live, RAM, pa};
use notdirty_core::{RamBlockSpec, RamList};
use notdirty_softmmu::{AddressSpace, MemSize, MmioDevice};
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
