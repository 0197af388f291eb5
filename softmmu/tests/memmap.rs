//! The rendered map against the rules, with enough regions to split and join chunks.

mod common;

use common::{Regs, pa};
use notdirty_core::{PAGE_SIZE, RamBlockSpec, RamList, pin};
use notdirty_softmmu::{AddressSpace, GuestPhys, MapError, MmioDevice, RegionId, Resolved, SizeMask};
use proptest::prelude::*;
use std::sync::Arc;

const SPACE: u64 = 3000;

/// Device number and offset at an address.
fn at(space: &AddressSpace, devices: &[Arc<dyn MmioDevice>], addr: u64) -> Option<(usize, u64)> {
    match space.view(&pin()).resolve(pa(addr)) {
        Resolved::Mmio { dev, off, len_left } => {
            assert!(len_left > 0);
            devices.iter().position(|d| Arc::ptr_eq(d, dev)).map(|n| (n, off))
        }
        Resolved::Ram { .. } => panic!("no RAM was mapped"),
        Resolved::None => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn the_view_shows_the_winner_at_every_address(
        steps in prop::collection::vec((0..SPACE, 1..12u64, 0..3i32, 0..4usize, 0..100u8), 200..1500),
    ) {
        let space = AddressSpace::new(Arc::new(RamList::new()));
        let devices: Vec<Arc<dyn MmioDevice>> = (0..4).map(|_| Regs::new(SizeMask::ALL) as _).collect();
        let mut mapped: Vec<(RegionId, u64, u64, i32, usize)> = Vec::new();
        let count = steps.len();
        for (n, (base, len, priority, dev, dice)) in steps.into_iter().enumerate() {
            // Mostly growing at first, shrinking in the last third.
            let shrink = if n < 2 * count / 3 { dice < 10 } else { dice < 85 };
            if shrink && !mapped.is_empty() {
                let at = (base as usize * 7919) % mapped.len();
                let (id, ..) = mapped.swap_remove(at);
                space.unmap(id).unwrap();
                prop_assert_eq!(space.unmap(id), Err(MapError::UnknownRegion(id)));
            } else {
                // Now and then something that covers hundreds of ranges.
                let len = if dice > 97 { len * 200 } else { len };
                let id = space.map_mmio(pa(base), len, devices[dev].clone(), priority).unwrap();
                mapped.push((id, base, len, priority, dev));
            }
            if n % 64 != 0 && n + 1 != count {
                continue;
            }
            mapped.sort_by_key(|r| (r.3, r.0));
            let mut want = vec![None; SPACE as usize + 3000];
            for &(_, base, len, _, dev) in &mapped {
                for into in 0..len {
                    want[(base + into) as usize] = Some((dev, into));
                }
            }
            for (addr, want) in want.iter().enumerate() {
                prop_assert_eq!(at(&space, &devices, addr as u64), *want, "{:#x}", addr);
            }
            let guard = pin();
            let mut end = None;
            for (start, last, _) in space.view(&guard).ranges() {
                prop_assert!(start <= last && end.is_none_or(|end| end < start), "sorted, without overlap");
                end = Some(last);
            }
        }
    }
}

#[test]
fn ten_thousand_dimms_are_all_found_and_neighbours_join() {
    let ram = Arc::new(RamList::new());
    let block = ram.add(RamBlockSpec::new("ram", 64 * PAGE_SIZE)).unwrap();
    let space = AddressSpace::new(ram);
    let base = |n: u64| pa(0x1_0000_0000 + n * 0x1_0000);
    // Scattered order: 7919 and 10,000 have no common factor.
    let order = (0..10_000u64).map(|n| n * 7919 % 10_000);
    let ids: Vec<_> =
        order.clone().map(|n| space.map_ram(base(n), &block, n % 64 * PAGE_SIZE, PAGE_SIZE, 0).unwrap()).collect();
    let guard = pin();
    for n in 0..10_000 {
        let Resolved::Ram { off, len_left, .. } = space.view(&guard).resolve(base(n)) else { panic!("{n}") };
        assert_eq!((off, len_left), (n % 64 * PAGE_SIZE, PAGE_SIZE));
    }
    assert_eq!(space.view(&guard).ranges().count(), 10_000);
    for (id, n) in ids.into_iter().zip(order).filter(|(_, n)| n % 3 != 0) {
        space.unmap(id).unwrap();
        assert!(matches!(space.view(&guard).resolve(base(n)), Resolved::None));
    }
    assert_eq!(space.view(&guard).ranges().count(), 3334);

    let joined = AddressSpace::new(space.ram().clone());
    let hole = pa(0x1000_0000 + 5 * PAGE_SIZE);
    joined.map_ram(pa(0x1000_0000), &block, 0, 64 * PAGE_SIZE, 0).unwrap();
    let id = joined.map_mmio(hole, 16, Regs::new(SizeMask::ALL), 1).unwrap();
    assert_eq!(joined.view(&guard).ranges().count(), 3);
    joined.unmap(id).unwrap();
    assert_eq!(joined.view(&guard).ranges().count(), 1, "what a device had cut apart is one range again");
}

#[test]
fn an_alias_follows_what_its_target_shows() {
    let ram = Arc::new(RamList::new());
    let block = ram.add(RamBlockSpec::new("ram", 16 * PAGE_SIZE)).unwrap();
    let space = AddressSpace::new(ram);
    let ram_at = |addr: u64| match space.view(&pin()).resolve(pa(addr)) {
        Resolved::Ram { off, .. } => Some(off),
        _ => None,
    };
    space.map_alias(pa(0x10_0000), pa(0x8_0000), 0x4000, 0).unwrap();
    space.map_alias(pa(0x20_0000), pa(0x10_1000), 0x1000, 0).unwrap();
    assert_eq!(ram_at(0x10_1000), None);
    let id = space.map_ram(pa(0x8_0000), &block, 0x2000, 0x2000, 0).unwrap();
    assert_eq!((ram_at(0x10_1008), ram_at(0x20_0008)), (Some(0x3008), Some(0x3008)));
    assert_eq!(ram_at(0x10_2000), None, "a hole of the target is a hole of the alias");
    space.map_ram(pa(0x10_0000), &block, 0x8000, 0x4000, -1).unwrap();
    assert_eq!(ram_at(0x10_2000), Some(0xa000), "through which the next priority shows");
    space.unmap(id).unwrap();
    assert_eq!(ram_at(0x20_0008), Some(0x9008));
    // Aliases that show each other end somewhere.
    space.map_alias(pa(0x30_0000), pa(0x40_0000), 0x1000, 0).unwrap();
    space.map_alias(pa(0x40_0000), pa(0x30_0000), 0x1000, 0).unwrap();
    assert_eq!(ram_at(0x30_0000), None);
}

#[test]
fn maps_that_cannot_be_are_refused_with_the_numbers() {
    let ram = Arc::new(RamList::new());
    let block = ram.add(RamBlockSpec::new("ram", 4 * PAGE_SIZE)).unwrap();
    let space = AddressSpace::new(ram);
    let dev = || Regs::new(SizeMask::ALL);
    let far = u64::MAX - 0xfff;
    assert_eq!(space.map_ram(pa(0), &block, 0, 0, 0), Err(MapError::Empty { base: pa(0) }));
    let beyond = MapError::BeyondBlock { block: "ram".into(), off: 0x1000, len: 0x4000, used: 0x4000 };
    assert_eq!(space.map_ram(pa(0), &block, 0x1000, 0x4000, 0), Err(beyond));
    assert!(space.map_ram(pa(0), &block, u64::MAX, 2, 0).is_err());
    let alien = RamList::new().add(RamBlockSpec::new("alien", PAGE_SIZE)).unwrap();
    let other = MapError::OtherList { block: "alien".into() };
    assert_eq!(space.map_ram(pa(0), &alien, 0, PAGE_SIZE, 0), Err(other.clone()));
    assert_eq!(space.map_rom(pa(0), &alien, 0, PAGE_SIZE, 0), Err(other));
    let crooked = MapError::Misaligned { base: pa(0x800), target: 0 };
    assert_eq!(space.map_ram(pa(0x800), &block, 0, 0x1000, 0), Err(crooked));
    assert_eq!(space.map_mmio(pa(far), 0x1001, dev(), 0), Err(MapError::Wraps { base: pa(far), len: 0x1001 }));
    assert!(space.map_mmio(pa(far), 0x1000, dev(), 0).is_ok());
    assert!(space.map_mmio(pa(0), u64::MAX, dev(), 0).is_ok());
    assert!(space.map_alias(pa(0), pa(far), 0x2000, 0).is_err());
    assert!(space.map_alias(pa(0), pa(1), 0x2000, 0).is_err());
    assert!(matches!(space.view(&pin()).resolve(GuestPhys::new(u64::MAX)), Resolved::Mmio { off: 0xfff, .. }));
}

#[test]
fn a_device_may_change_the_map_while_it_is_dropped() {
    struct Leaving(std::sync::Weak<AddressSpace>, Option<RegionId>);
    impl MmioDevice for Leaving {
        fn read(&self, _: u64, _: notdirty_softmmu::MemSize) -> u64 {
            0
        }
        fn write(&self, _: u64, _: notdirty_softmmu::MemSize, _: u64) {}
    }
    impl Drop for Leaving {
        fn drop(&mut self) {
            if let (Some(space), Some(id)) = (self.0.upgrade(), self.1) {
                let _ = space.unmap(id);
            }
        }
    }
    let space = AddressSpace::new(Arc::new(RamList::new()));
    for n in 0..200u64 {
        let other = space.map_mmio(pa(0x1_0000 + n * 32), 16, Regs::new(SizeMask::ALL), 0).unwrap();
        let leaving = Arc::new(Leaving(Arc::downgrade(&space), Some(other)));
        let id = space.map_mmio(pa(0x8_0000), 16, leaving, 0).unwrap();
        space.unmap(id).unwrap();
    }
}

#[test]
fn a_device_that_nobody_saw_may_change_the_map_while_it_is_dropped() {
    struct Leaving(std::sync::Weak<AddressSpace>, RegionId);
    impl MmioDevice for Leaving {
        fn read(&self, _: u64, _: notdirty_softmmu::MemSize) -> u64 {
            0
        }
        fn write(&self, _: u64, _: notdirty_softmmu::MemSize, _: u64) {}
    }
    impl Drop for Leaving {
        fn drop(&mut self) {
            self.0.upgrade().expect("it is there").unmap(self.1).unwrap();
        }
    }
    let (done, end) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let space = AddressSpace::new(Arc::new(RamList::new()));
        let over = space.map_mmio(pa(0x8_0000), 16, Regs::new(SizeMask::ALL), 1).unwrap();
        // No view has it: the region is its last owner.
        let leaving = Arc::new(Leaving(Arc::downgrade(&space), over));
        let id = space.map_mmio(pa(0x8_0000), 16, leaving, 0).unwrap();
        space.unmap(id).unwrap();
        notdirty_core::barrier().unwrap();
        done.send(matches!(space.view(&pin()).resolve(pa(0x8_0000)), Resolved::None)).unwrap();
    });
    assert_eq!(end.recv_timeout(std::time::Duration::from_secs(20)), Ok(true));
}
