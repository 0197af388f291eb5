//! What is an embedder's goes or calls back in the middle of what it is called from; and names of another machine's.

mod common;

use common::{Vm, pa};
use notdirty_core::{RamAddr, RamList, barrier};
use notdirty_softmmu::raw::Request;
use notdirty_softmmu::{AddressSpace, CodeInvalidator, Hooks, MapError, MemSize, MmioDevice, RegionId};
use std::sync::{Arc, OnceLock, Weak, mpsc};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(20);
const COMES: u64 = 0x7000_0000;
const GOES: u64 = 0x7001_0000;

/// A device that comes in the middle of an access. Told of the first store, it unmaps itself; and it tells which thread drops it.
struct Goes {
    space: Weak<AddressSpace>,
    id: Arc<OnceLock<RegionId>>,
    dropped: mpsc::Sender<Option<String>>,
}

impl Goes {
    fn map(space: &Arc<AddressSpace>, dropped: &mpsc::Sender<Option<String>>) -> Arc<OnceLock<RegionId>> {
        let id = Arc::new(OnceLock::new());
        let dev = Goes { space: Arc::downgrade(space), id: id.clone(), dropped: dropped.clone() };
        id.set(space.map_mmio(pa(GOES), 4096, Arc::new(dev), 0).unwrap()).unwrap();
        id
    }
}

/// No more of the device than what this thread has.
fn unmap(space: &AddressSpace, id: &OnceLock<RegionId>) {
    space.unmap(*id.get().unwrap()).unwrap();
    barrier().unwrap();
}

impl MmioDevice for Goes {
    fn read(&self, _: u64, _: MemSize) -> u64 {
        unmap(&self.space.upgrade().unwrap(), &self.id);
        0
    }
    fn write(&self, _: u64, _: MemSize, _: u64) {
        unmap(&self.space.upgrade().unwrap(), &self.id);
    }
}

impl Drop for Goes {
    fn drop(&mut self) {
        let _ = self.dropped.send(std::thread::current().name().map(str::to_owned));
    }
}

#[test]
fn a_device_that_came_and_went_since_the_vcpu_looked_is_not_dropped_inside_of_its_store() {
    /// Its stores and loads are those of another device, which is mapped first.
    struct Dma(Weak<AddressSpace>, mpsc::Sender<Option<String>>);
    impl MmioDevice for Dma {
        fn read(&self, _: u64, _: MemSize) -> u64 {
            let space = self.0.upgrade().unwrap();
            Goes::map(&space, &self.1);
            space.read(pa(GOES), &mut [0; 4]).unwrap();
            0
        }
        fn write(&self, _: u64, _: MemSize, _: u64) {
            let space = self.0.upgrade().unwrap();
            Goes::map(&space, &self.1);
            space.write(pa(GOES), &[0; 4]).unwrap();
        }
    }
    let mut vm = Vm::new();
    let (sender, dropped) = mpsc::channel();
    vm.space.map_mmio(pa(COMES), 4096, Arc::new(Dma(Arc::downgrade(&vm.space), sender)), 0).unwrap();
    let _ = vm.mmu.serve(&mut vm.tbs);
    vm.put(COMES, MemSize::B4, 1);
    assert_eq!(dropped.recv_timeout(LONG).unwrap().as_deref(), Some("notdirty-rcu"), "of a store");
    let _ = vm.mmu.serve(&mut vm.tbs);
    vm.load(COMES, MemSize::B4).unwrap();
    assert_eq!(dropped.recv_timeout(LONG).unwrap().as_deref(), Some("notdirty-rcu"), "of a load");
}

#[test]
fn a_device_that_goes_while_a_vcpu_flushes_is_not_dropped_by_the_vcpu() {
    struct Unmaps(Arc<AddressSpace>, Arc<OnceLock<RegionId>>);
    impl CodeInvalidator for Unmaps {
        fn code_written(&mut self, _: RamAddr, _: u64) -> usize {
            0
        }
    }
    impl Hooks for Unmaps {
        fn flushed(&mut self) {
            unmap(&self.0, &self.1);
        }
    }
    let mut vm = Vm::new();
    let (sender, dropped) = mpsc::channel();
    let id = Goes::map(&vm.space, &sender);
    common::post_all(&vm.space, Request::FlushAll);
    let _ = vm.mmu.serve(&mut Unmaps(vm.space.clone(), id));
    assert_eq!(dropped.recv_timeout(LONG).unwrap().as_deref(), Some("notdirty-rcu"));
}

#[test]
fn a_region_of_another_address_space_names_nothing_here() {
    let spaces = [(); 2].map(|()| AddressSpace::new(Arc::new(RamList::new())));
    let dev = || common::Regs::new(notdirty_softmmu::SizeMask::ALL);
    let [here, there] = spaces.each_ref().map(|space| space.map_mmio(pa(COMES), 4096, dev(), 0).unwrap());
    assert_eq!(spaces[0].unmap(there), Err(MapError::UnknownRegion(there)));
    assert_eq!(spaces[0].resize_mapping(there, 64).err(), Some(MapError::UnknownRegion(there)));
    spaces[0].unmap(here).unwrap();
    spaces[1].unmap(there).unwrap();
}
