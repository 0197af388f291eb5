//! The kernel's ring, through `/dev/kvm`.
//!
//! ```text
//!   slot 0   0x0000   code, the list of addresses, page tables that map the first 32 MiB to themselves; not logged
//!   slot 5   1 MiB    the pages that are stored to; logged
//! ```
//!
//! The guest runs as a user in long mode: some hosts execute anything less in an emulator, whose stores are pushed each
//! time and many between two looks at the ring.

use super::{Left, PAGES, Vcpu};
use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_DIRTY_LOG_PAGE_OFFSET, KVM_EXIT_DIRTY_RING_FULL,
    KVM_MEM_LOG_DIRTY_PAGES, kvm_enable_cap, kvm_regs, kvm_segment, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use notdirty_core::DirtyGfn;
use notdirty_core::ring::{DIRTY, RESET};
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// `_IO(KVMIO, 0xc7)`.
const KVM_RESET_DIRTY_RINGS: libc::c_ulong = 0xaec7;
const PAGE: usize = 4096;
const SLOT: u32 = 5;
const LOGGED: u64 = 1 << 20;
const CODE: u64 = 0x1000;
const LIST: u64 = 0x2000;
const LOW: usize = 0x10000;

/// For each of rcx addresses at rsi, store ecx there; then say so. The guest leaves after each store, so that a log of the
/// hardware's is handed over each time, and the ring is full after the same store on every host.
const GUEST: [u8; 9] = [
    0xad, // again: lodsd
    0x89, 0x08, // mov [rax], ecx
    0xe6, 0x11, // out 0x11, al
    0xe2, 0xf9, // loop again
    0xe6, 0x10, // out 0x10, al
];
/// Page tables: each entry present, writable, the user's, accessed and dirty.
const PML4: u64 = 0x8000;
const PDPT: u64 = 0x9000;
const PD: u64 = 0xa000;
const ENTRY: u64 = 0x67;
/// A page of 2 MiB.
const LARGE: u64 = 0x80;
/// `out` by a user is allowed; and the bit that is always set.
const RFLAGS: u64 = 0x3002;

/// An entry, as both sides share it.
#[repr(C)]
struct Entry {
    flags: AtomicU32,
    slot: AtomicU32,
    offset: AtomicU64,
}

/// Memory of our own that the kernel was given, or of the kernel's that we were given.
struct Map {
    at: *mut u8,
    len: usize,
}

impl Map {
    fn new(len: usize, fd: i32, offset: i64) -> std::io::Result<Self> {
        let flags = if fd < 0 { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS } else { libc::MAP_SHARED };
        // SAFETY: a new mapping at an address that the kernel chooses.
        let at = unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, fd, offset) };
        if at == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        Ok(Self { at: at.cast(), len })
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: from `mmap` in `new`, and whoever used it was dropped before: see the order of fields in `Kernel`.
        unsafe { libc::munmap(self.at.cast(), self.len) };
    }
}

pub struct Kernel {
    vcpu: VcpuFd,
    vm: VmFd,
    ring: Map,
    low: Map,
    _logged: Map,
    entries: u32,
    fetch: u32,
}

/// Does this host log dirty pages in hardware (and hand them over 512 at a time)?
pub fn has_hardware_log() -> bool {
    ["kvm_intel", "kvm_amd"].iter().any(|module| {
        let pml = std::fs::read_to_string(format!("/sys/module/{module}/parameters/pml"));
        pml.is_ok_and(|pml| pml.starts_with(['Y', '1']))
    })
}

/// A VM whose vCPUs will have rings of `entries`; why not, if not.
fn vm_with_rings(kvm: &Kvm, entries: u32) -> Result<Result<VmFd, kvm_ioctls::Error>, String> {
    let vm = kvm.create_vm().map_err(|e| format!("KVM_CREATE_VM: {e}"))?;
    let caps = [KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL];
    let cap = caps.into_iter().find(|cap| vm.check_extension_raw((*cap).into()) > 0);
    let cap = cap.ok_or("this kernel has no dirty rings")?;
    let bytes = u64::from(entries) * size_of::<Entry>() as u64;
    let enabled = vm.enable_cap(&kvm_enable_cap { cap, args: [bytes, 0, 0, 0], ..Default::default() });
    Ok(enabled.map(|()| vm))
}

impl Kernel {
    /// A vCPU with a ring of `entries`, and a guest that waits for work.
    pub fn new(entries: u32) -> Result<Self, String> {
        let kvm = Kvm::new().map_err(|e| format!("/dev/kvm: {e}"))?;
        let vm = vm_with_rings(&kvm, entries)?.map_err(|e| format!("a ring of {entries}: {e}"))?;
        let map = |len, fd, offset| Map::new(len, fd, offset).map_err(|e| format!("mmap: {e}"));
        let low = map(LOW, -1, 0)?;
        let logged = map(PAGES as usize * PAGE, -1, 0)?;
        for (slot, flags, base, map) in [(0, 0, 0, &low), (SLOT, KVM_MEM_LOG_DIRTY_PAGES, LOGGED, &logged)] {
            let region = kvm_userspace_memory_region {
                slot,
                flags,
                guest_phys_addr: base,
                memory_size: map.len as u64,
                userspace_addr: map.at as u64,
            };
            // SAFETY: the mapping lives until after the VM: see the order of fields.
            unsafe { vm.set_user_memory_region(region) }.map_err(|e| format!("memory: {e}"))?;
        }
        let vcpu = vm.create_vcpu(0).map_err(|e| format!("KVM_CREATE_VCPU: {e}"))?;
        let bytes = entries as usize * size_of::<Entry>();
        let ring = map(bytes, vcpu.as_raw_fd(), i64::from(KVM_DIRTY_LOG_PAGE_OFFSET) * PAGE as i64)?;

        let mut sregs = vcpu.get_sregs().map_err(|e| format!("KVM_GET_SREGS: {e}"))?;
        let flat = |selector, type_, l| kvm_segment {
            base: 0,
            limit: u32::MAX,
            selector,
            type_,
            present: 1,
            dpl: 3,
            db: 1 - l,
            s: 1,
            l,
            g: 1,
            ..Default::default()
        };
        let data = flat(0x2b, 3, 0);
        (sregs.cs, sregs.ds, sregs.es, sregs.ss) = (flat(0x33, 11, 1), data, data, data);
        // PE, NE, PG, and a coprocessor; PAE; long mode, enabled and active.
        (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (0x8000_0033, PML4, 0x20, 0x500);
        vcpu.set_sregs(&sregs).map_err(|e| format!("KVM_SET_SREGS: {e}"))?;
        let kernel = Self { vcpu, vm, ring, low, _logged: logged, entries, fetch: 0 };
        kernel.put(CODE, &GUEST);
        kernel.put(PML4, &(PDPT | ENTRY).to_le_bytes());
        kernel.put(PDPT, &(PD | ENTRY).to_le_bytes());
        for n in 0..16 {
            kernel.put(PD + 8 * n, &(n << 21 | ENTRY | LARGE).to_le_bytes());
        }
        Ok(kernel)
    }

    /// Does the kernel refuse a ring of this size? `None` if it cannot be asked.
    pub fn refuses(entries: u32) -> Option<bool> {
        let kvm = Kvm::new().ok()?;
        Some(vm_with_rings(&kvm, entries).ok()?.is_err())
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        assert!(at as usize + bytes.len() <= self.low.len);
        // SAFETY: inside the mapping, checked above; the guest does not run.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.low.at.add(at as usize), bytes.len()) };
    }

    fn entry(&self, index: u32) -> &Entry {
        let at = (index & (self.entries - 1)) as usize;
        // SAFETY: inside the mapping of `entries` entries, which are plain words; both sides access them atomically.
        unsafe { &*self.ring.at.cast::<Entry>().add(at) }
    }

    /// Marks an entry as harvested, in its turn or not.
    pub fn mark_reset(&self, index: u32) {
        self.entry(index).flags.store(RESET, Ordering::Release);
    }
}

impl Vcpu for Kernel {
    fn size(&self) -> u32 {
        self.entries
    }

    fn store(&mut self, pages: &[u64]) -> Left {
        let list: Vec<u8> = pages.iter().flat_map(|page| (LOGGED as u32 + *page as u32 * 4096).to_le_bytes()).collect();
        self.put(LIST, &list);
        let regs = kvm_regs { rip: CODE, rsi: LIST, rcx: pages.len() as u64, rflags: RFLAGS, ..Default::default() };
        self.vcpu.set_regs(&regs).unwrap();
        self.resume()
    }

    fn resume(&mut self) -> Left {
        loop {
            match self.vcpu.run() {
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
        self.vcpu.get_regs().unwrap().rcx
    }

    fn harvest(&mut self, max: u32) -> Vec<u64> {
        let mut pages = Vec::new();
        while (pages.len() as u32) < max {
            let entry = self.entry(self.fetch);
            if entry.flags.load(Ordering::Acquire) & (DIRTY | RESET) != DIRTY {
                break;
            }
            assert_eq!(entry.slot.load(Ordering::Relaxed), SLOT);
            pages.push(entry.offset.load(Ordering::Relaxed));
            entry.flags.store(RESET, Ordering::Release);
            self.fetch = self.fetch.wrapping_add(1);
        }
        pages
    }

    fn reset(&mut self) -> u32 {
        // SAFETY: no argument, a VM's descriptor.
        let freed = unsafe { libc::ioctl(self.vm.as_raw_fd(), KVM_RESET_DIRTY_RINGS as _, 0) };
        assert!(freed >= 0, "KVM_RESET_DIRTY_RINGS: {}", std::io::Error::last_os_error());
        freed as u32
    }

    fn peek(&self, index: u32) -> DirtyGfn {
        let entry = self.entry(index);
        let flags = entry.flags.load(Ordering::Acquire);
        DirtyGfn { flags, slot: entry.slot.load(Ordering::Relaxed), offset: entry.offset.load(Ordering::Relaxed) }
    }
}
