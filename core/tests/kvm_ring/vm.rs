//! A VM with one vCPU, its ring, and a guest that stores to the pages of a list. The benchmarks have it too, by its path.
//!
//! ```text
//!   slot 0      0x0000   code, the list of addresses, page tables that map the first 32 MiB to themselves; not logged
//!   slot of     1 MiB    the pages that are stored to; logged
//!   the caller
//! ```
//!
//! The guest runs as a user in long mode: some hosts execute anything less in an emulator, whose stores are pushed each
//! time and many between two looks at the ring.

use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_DIRTY_LOG_PAGE_OFFSET, KVM_MEM_LOG_DIRTY_PAGES,
    kvm_enable_cap, kvm_regs, kvm_segment, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use notdirty_core::ring::{DIRTY, RESET};
use std::io::Error;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// `_IO(KVMIO, 0xc7)`.
const KVM_RESET_DIRTY_RINGS: libc::c_ulong = 0xaec7;
const PAGE: u64 = 4096;
/// Where the logged pages are.
pub const LOGGED: u64 = 1 << 20;
const CODE: u64 = 0x1000;
/// Where the guest finds its addresses.
pub const LIST: u64 = 0x2000;
const LOW: usize = 0x10000;
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
pub struct Entry {
    pub flags: AtomicU32,
    pub slot: AtomicU32,
    pub offset: AtomicU64,
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

/// It. The vCPU and the VM go before the memory that they were given.
pub struct Vm {
    pub vcpu: VcpuFd,
    vm: VmFd,
    ring: Map,
    low: Map,
    _logged: Map,
    entries: u32,
    fetch: u32,
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

impl Vm {
    /// With a ring of `entries`, `pages` that are logged as `slot`, and this guest; or why there is none.
    pub fn new(entries: u32, guest: &[u8], slot: u32, pages: u64) -> Result<Self, String> {
        let kvm = Kvm::new().map_err(|e| format!("/dev/kvm: {e}"))?;
        let vm = vm_with_rings(&kvm, entries)?.map_err(|e| format!("a ring of {entries}: {e}"))?;
        let map = |len, fd, offset| Map::new(len, fd, offset).map_err(|e| format!("mmap: {e}"));
        let low = map(LOW, -1, 0)?;
        let logged = map((pages * PAGE) as usize, -1, 0)?;
        for (slot, flags, base, map) in [(0, 0, 0, &low), (slot, KVM_MEM_LOG_DIRTY_PAGES, LOGGED, &logged)] {
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
        let new = Self { vcpu, vm, ring, low, _logged: logged, entries, fetch: 0 };
        new.put(CODE, guest);
        new.put(PML4, &(PDPT | ENTRY).to_le_bytes());
        new.put(PDPT, &(PD | ENTRY).to_le_bytes());
        for n in 0..16 {
            new.put(PD + 8 * n, &(n << 21 | ENTRY | LARGE).to_le_bytes());
        }
        Ok(new)
    }

    /// What `KVM_ENABLE_CAP` says to a ring of this size.
    pub fn refuses(entries: u32) -> Option<bool> {
        let kvm = Kvm::new().ok()?;
        Some(vm_with_rings(&kvm, entries).ok()?.is_err())
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        assert!(at as usize + bytes.len() <= self.low.len, "the guest is too large");
        // SAFETY: inside the mapping, checked above; the guest does not run.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.low.at.add(at as usize), bytes.len()) };
    }

    /// The pages of the logged slot that `start` makes the guest store to.
    pub fn list(&self, pages: &[u64]) {
        let list: Vec<u8> = pages.iter().flat_map(|page| ((LOGGED + page * PAGE) as u32).to_le_bytes()).collect();
        self.put(LIST, &list);
    }

    /// The next run is from the start, with so many of the list.
    pub fn start(&mut self, count: u64) -> Result<(), String> {
        let regs = kvm_regs { rip: CODE, rsi: LIST, rcx: count, rflags: RFLAGS, ..Default::default() };
        self.vcpu.set_regs(&regs).map_err(|e| format!("KVM_SET_REGS: {e}"))
    }

    /// An entry of the ring.
    pub fn entry(&self, index: u32) -> &Entry {
        let at = (index & (self.entries - 1)) as usize;
        // SAFETY: inside the mapping of `entries` entries, which are plain words; both sides access them atomically.
        unsafe { &*self.ring.at.cast::<Entry>().add(at) }
    }

    /// Harvests the next entry: its slot and page.
    pub fn harvest(&mut self) -> Option<(u32, u64)> {
        let entry = self.entry(self.fetch);
        if entry.flags.load(Ordering::Acquire) & (DIRTY | RESET) != DIRTY {
            return None;
        }
        let page = (entry.slot.load(Ordering::Relaxed), entry.offset.load(Ordering::Relaxed));
        entry.flags.store(RESET, Ordering::Release);
        self.fetch = self.fetch.wrapping_add(1);
        Some(page)
    }

    /// Frees what was harvested: how many entries.
    pub fn reset(&self) -> Result<u32, String> {
        // SAFETY: no argument, a VM's descriptor.
        let freed = unsafe { libc::ioctl(self.vm.as_raw_fd(), KVM_RESET_DIRTY_RINGS as _, 0) };
        u32::try_from(freed).map_err(|_| format!("KVM_RESET_DIRTY_RINGS: {}", Error::last_os_error()))
    }
}
