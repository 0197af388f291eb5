//! The kernel's dirty ring, driven through `/dev/kvm`, where that works.
//!
//! ```text
//!   slot 0   0x0000   code, the list of addresses, page tables that map the first 32 MiB to themselves; not logged
//!   slot 1   1 MiB    16 MiB that are stored to; logged
//! ```
//!
//! The guest runs as a user in long mode, for some hosts emulate anything less. core/tests/kvm_ring has the protocol.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub use here::Kernel;

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
pub use elsewhere::Kernel;

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
mod elsewhere {
    use crate::dirty::row::Sample;

    /// None.
    pub enum Kernel {}

    impl Kernel {
        pub fn new(_entries: u32) -> Result<Self, String> {
            Err("KVM on x86-64 only".into())
        }
        pub fn time_stores(&mut self) -> Result<Sample, String> {
            match *self {}
        }
        pub fn time_harvest(&mut self) -> Result<Sample, String> {
            match *self {}
        }
    }
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod here {
    use std::os::fd::AsRawFd;
    use std::ptr;
    use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

    use kvm_bindings::{
        KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_DIRTY_LOG_PAGE_OFFSET, KVM_MEM_LOG_DIRTY_PAGES,
        kvm_enable_cap, kvm_regs, kvm_segment, kvm_userspace_memory_region,
    };
    use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
    use notdirty_core::ring::{DIRTY, RESET};

    use crate::dirty::clock::timed;
    use crate::dirty::ring::{PAGES, striped};
    use crate::dirty::row::Sample;

    /// `_IO(KVMIO, 0xc7)`.
    const KVM_RESET_DIRTY_RINGS: libc::c_ulong = 0xaec7;
    const PAGE: u64 = 4096;
    const LOGGED: u64 = 1 << 20;
    const LOGGED_PAGES: u64 = 4096;
    const CODE: u64 = 0x1000;
    const LIST: u64 = 0x2000;
    const LOW: usize = 0x10000;
    /// For each of rcx addresses at rsi, store ecx there; then leave.
    const GUEST: [u8; 7] = [
        0xad, // again: lodsd
        0x89, 0x08, // mov [rax], ecx
        0xe2, 0xfb, // loop again
        0xe6, 0x10, // out 0x10, al
    ];
    const PML4: u64 = 0x8000;
    const PDPT: u64 = 0x9000;
    const PD: u64 = 0xa000;
    /// Present, writable, the user's, accessed, dirty.
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

    struct Map {
        at: *mut u8,
        len: usize,
    }

    impl Map {
        fn new(len: usize, fd: i32, offset: i64) -> Result<Map, String> {
            let flags = if fd < 0 { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS } else { libc::MAP_SHARED };
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: a new mapping at an address that the kernel chooses.
            let at = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, fd, offset) };
            if at == libc::MAP_FAILED {
                return Err(format!("mmap: {}", std::io::Error::last_os_error()));
            }
            Ok(Map { at: at.cast(), len })
        }
    }

    impl Drop for Map {
        fn drop(&mut self) {
            // SAFETY: from `mmap`; whoever used it was dropped before, see the order of fields in `Kernel`.
            unsafe { libc::munmap(self.at.cast(), self.len) };
        }
    }

    /// A VM with one vCPU, its ring, and a guest that stores to the pages of a list.
    pub struct Kernel {
        vcpu: VcpuFd,
        vm: VmFd,
        ring: Map,
        low: Map,
        _logged: Map,
        entries: u32,
        fetch: u32,
    }

    impl Kernel {
        /// With a ring of `entries`; or why there is none.
        pub fn new(entries: u32) -> Result<Kernel, String> {
            let said = |what: &'static str| move |e: kvm_ioctls::Error| format!("{what}: {e}");
            let vm = Kvm::new().and_then(|kvm| kvm.create_vm()).map_err(said("/dev/kvm"))?;
            let caps = [KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL];
            let cap = caps.into_iter().find(|cap| vm.check_extension_raw((*cap).into()) > 0);
            let cap = cap.ok_or("this kernel has no dirty rings")?;
            let bytes = entries as usize * size_of::<Entry>();
            vm.enable_cap(&kvm_enable_cap { cap, args: [bytes as u64, 0, 0, 0], ..Default::default() })
                .map_err(said("the ring"))?;
            let low = Map::new(LOW, -1, 0)?;
            let logged = Map::new((LOGGED_PAGES * PAGE) as usize, -1, 0)?;
            for (slot, flags, base, map) in [(0, 0, 0, &low), (1, KVM_MEM_LOG_DIRTY_PAGES, LOGGED, &logged)] {
                let region = kvm_userspace_memory_region {
                    slot,
                    flags,
                    guest_phys_addr: base,
                    memory_size: map.len as u64,
                    userspace_addr: map.at as u64,
                };
                // SAFETY: the mapping outlives the VM: see the order of fields.
                unsafe { vm.set_user_memory_region(region) }.map_err(said("memory"))?;
            }
            let vcpu = vm.create_vcpu(0).map_err(said("a vCPU"))?;
            let ring = Map::new(bytes, vcpu.as_raw_fd(), i64::from(KVM_DIRTY_LOG_PAGE_OFFSET) * PAGE as i64)?;
            let mut sregs = vcpu.get_sregs().map_err(said("KVM_GET_SREGS"))?;
            let segment = |selector, type_, l| kvm_segment {
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
            let data = segment(0x2b, 3, 0);
            (sregs.cs, sregs.ds, sregs.es, sregs.ss) = (segment(0x33, 11, 1), data, data, data);
            // PE, NE, PG, and a coprocessor; PAE; long mode, enabled and active.
            (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (0x8000_0033, PML4, 0x20, 0x500);
            vcpu.set_sregs(&sregs).map_err(said("KVM_SET_SREGS"))?;
            let kernel = Kernel { vcpu, vm, ring, low, _logged: logged, entries, fetch: 0 };
            kernel.put(CODE, &GUEST)?;
            kernel.put(PML4, &(PDPT | ENTRY).to_le_bytes())?;
            kernel.put(PDPT, &(PD | ENTRY).to_le_bytes())?;
            for n in 0..16 {
                kernel.put(PD + 8 * n, &(n << 21 | ENTRY | LARGE).to_le_bytes())?;
            }
            let list: Vec<u8> =
                striped(LOGGED_PAGES).iter().flat_map(|page| ((LOGGED + page * PAGE) as u32).to_le_bytes()).collect();
            kernel.put(LIST, &list)?;
            Ok(kernel)
        }

        fn put(&self, at: u64, bytes: &[u8]) -> Result<(), String> {
            if at as usize + bytes.len() > self.low.len {
                return Err("the guest is too large".into());
            }
            // SAFETY: inside the mapping, checked above; the guest does not run.
            unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.low.at.add(at as usize), bytes.len()) };
            Ok(())
        }

        /// The guest stores to each of the pages.
        fn store(&mut self) -> Result<(), String> {
            let regs = kvm_regs { rip: CODE, rsi: LIST, rcx: PAGES, rflags: RFLAGS, ..Default::default() };
            self.vcpu.set_regs(&regs).map_err(|e| format!("KVM_SET_REGS: {e}"))?;
            loop {
                match self.vcpu.run() {
                    Ok(VcpuExit::IoOut(0x10, _)) => return Ok(()),
                    Ok(other) => return Err(format!("KVM's guest left with {other:?}")),
                    Err(e) if e.errno() == libc::EINTR => {}
                    Err(e) => return Err(format!("KVM_RUN: {e}")),
                }
            }
        }

        /// Takes all entries and gives them back; how many.
        fn harvest(&mut self) -> Result<u64, String> {
            let mut pages = 0;
            loop {
                let at = (self.fetch & (self.entries - 1)) as usize;
                // SAFETY: inside the mapping of `entries` entries, plain words that both sides access atomically.
                let entry = unsafe { &*self.ring.at.cast::<Entry>().add(at) };
                if entry.flags.load(Ordering::Acquire) & (DIRTY | RESET) != DIRTY {
                    break;
                }
                std::hint::black_box((entry.slot.load(Ordering::Relaxed), entry.offset.load(Ordering::Relaxed)));
                entry.flags.store(RESET, Ordering::Release);
                self.fetch = self.fetch.wrapping_add(1);
                pages += 1;
            }
            // SAFETY: no argument, a VM's descriptor.
            let freed = unsafe { libc::ioctl(self.vm.as_raw_fd(), KVM_RESET_DIRTY_RINGS as _, 0) };
            match u64::try_from(freed) {
                Ok(freed) if freed == pages => Ok(pages),
                _ => Err(format!("KVM_RESET_DIRTY_RINGS of {pages} gave {freed}")),
            }
        }

        /// The guest's stores, each with whatever makes its page dirty.
        pub fn time_stores(&mut self) -> Result<Sample, String> {
            let mut stored = Ok(());
            let sample = timed(PAGES as f64, || {
                stored = self.store();
                0
            });
            stored?;
            Ok(Sample { check: self.harvest()?, ..sample })
        }

        /// The harvest and the reset.
        pub fn time_harvest(&mut self) -> Result<Sample, String> {
            self.store()?;
            let mut pages = Ok(0);
            let sample = timed(PAGES as f64, || {
                pages = self.harvest();
                0
            });
            Ok(Sample { check: pages?, ..sample })
        }
    }
}
