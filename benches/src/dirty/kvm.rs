//! The kernel's dirty ring, driven through `/dev/kvm`, where that works.
//!
//! The VM is the one of core/tests/kvm_ring, which has the protocol; its guest here leaves when it is done, and not
//! before.

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
#[path = "../../../core/tests/kvm_ring/vm.rs"]
#[allow(missing_docs, dead_code, reason = "a test's, which uses more of it")]
mod vm;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod here {
    use super::vm::Vm;
    use kvm_ioctls::VcpuExit;

    use crate::dirty::clock::timed;
    use crate::dirty::ring::{PAGES, striped};
    use crate::dirty::row::Sample;

    const LOGGED_PAGES: u64 = 4096;
    /// For each of rcx addresses at rsi, store ecx there; then leave.
    const GUEST: [u8; 7] = [
        0xad, // again: lodsd
        0x89, 0x08, // mov [rax], ecx
        0xe2, 0xfb, // loop again
        0xe6, 0x10, // out 0x10, al
    ];

    /// A VM with one vCPU, its ring, and a guest that stores to the pages of a list.
    pub struct Kernel(Vm);

    impl Kernel {
        /// With a ring of `entries`; or why there is none.
        pub fn new(entries: u32) -> Result<Kernel, String> {
            let vm = Vm::new(entries, &GUEST, 1, LOGGED_PAGES)?;
            vm.list(&striped(LOGGED_PAGES));
            Ok(Kernel(vm))
        }

        /// The guest stores to each of the pages.
        fn store(&mut self) -> Result<(), String> {
            self.0.start(PAGES)?;
            loop {
                match self.0.vcpu.run() {
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
            while let Some(page) = self.0.harvest() {
                std::hint::black_box(page);
                pages += 1;
            }
            match u64::from(self.0.reset()?) {
                freed if freed == pages => Ok(pages),
                freed => Err(format!("KVM_RESET_DIRTY_RINGS of {pages} gave {freed}")),
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
