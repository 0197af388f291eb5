//! The kernel's ring, through `/dev/kvm`.

use super::vm::Vm;
use super::{Left, PAGES, Vcpu};
use kvm_bindings::KVM_EXIT_DIRTY_RING_FULL;
use kvm_ioctls::VcpuExit;
use notdirty_core::DirtyGfn;
use notdirty_core::ring::RESET;
use std::sync::atomic::Ordering;

const SLOT: u32 = 5;

/// For each of rcx addresses at rsi, store ecx there; then say so. The guest leaves after each store, so that a log of the
/// hardware's is handed over each time, and the ring is full after the same store on every host.
const GUEST: [u8; 9] = [
    0xad, // again: lodsd
    0x89, 0x08, // mov [rax], ecx
    0xe6, 0x11, // out 0x11, al
    0xe2, 0xf9, // loop again
    0xe6, 0x10, // out 0x10, al
];
pub struct Kernel {
    vm: Vm,
    entries: u32,
}

/// Does this host log dirty pages in hardware (and hand them over 512 at a time)?
pub fn has_hardware_log() -> bool {
    ["kvm_intel", "kvm_amd"].iter().any(|module| {
        let pml = std::fs::read_to_string(format!("/sys/module/{module}/parameters/pml"));
        pml.is_ok_and(|pml| pml.starts_with(['Y', '1']))
    })
}

impl Kernel {
    /// A vCPU with a ring of `entries`, and a guest that waits for work.
    pub fn new(entries: u32) -> Result<Self, String> {
        Ok(Self { vm: Vm::new(entries, &GUEST, SLOT, PAGES)?, entries })
    }

    /// Does the kernel refuse a ring of this size? `None` if it cannot be asked.
    pub fn refuses(entries: u32) -> Option<bool> {
        Vm::refuses(entries)
    }

    /// Marks an entry as harvested, in its turn or not.
    pub fn mark_reset(&self, index: u32) {
        self.vm.entry(index).flags.store(RESET, Ordering::Release);
    }
}

impl Vcpu for Kernel {
    fn size(&self) -> u32 {
        self.entries
    }

    fn store(&mut self, pages: &[u64]) -> Left {
        self.vm.list(pages);
        self.vm.start(pages.len() as u64).unwrap();
        self.resume()
    }

    fn resume(&mut self) -> Left {
        loop {
            match self.vm.vcpu.run() {
                Ok(VcpuExit::IoOut(0x10, _)) => return Left::Done,
                Ok(VcpuExit::IoOut(0x11, _)) => {}
                Ok(VcpuExit::Unsupported(KVM_EXIT_DIRTY_RING_FULL)) => return Left::RingFull,
                Ok(other) => panic!("{other:?}"),
                Err(e) if e.errno() == libc::EINTR => {}
                Err(e) => panic!("KVM_RUN: {e}"),
            }
        }
    }

    fn left(&self) -> u64 {
        self.vm.vcpu.get_regs().unwrap().rcx
    }

    fn harvest(&mut self, max: u32) -> Vec<u64> {
        let mut pages = Vec::new();
        while (pages.len() as u32) < max {
            let Some((slot, page)) = self.vm.harvest() else { break };
            assert_eq!(slot, SLOT);
            pages.push(page);
        }
        pages
    }

    fn reset(&mut self) -> u32 {
        self.vm.reset().unwrap()
    }

    fn peek(&self, index: u32) -> DirtyGfn {
        let entry = self.vm.entry(index);
        let flags = entry.flags.load(Ordering::Acquire);
        DirtyGfn { flags, slot: entry.slot.load(Ordering::Relaxed), offset: entry.offset.load(Ordering::Relaxed) }
    }
}
