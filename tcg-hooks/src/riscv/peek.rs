//! Where an address leads, for crash reports and debuggers, which look at a hart from outside and change nothing.
//!
//! It goes by the registers and the page tables as they are, not by what a TLB keeps. A walk that would set marks counts as having
//! set them, where it may; nothing is written.

use super::Privilege;
use super::mmu::regime;
use super::pmp::{ENTRIES, Pmp};
use super::walk::{Tables, walk};
use crate::cpu::CpuState;
use notdirty_softmmu::{AccessKind, FaultCause, MmuIdx};

/// Page tables under PMP, which stay as they are.
struct Seen<'a, R> {
    read: R,
    pmp: &'a Pmp,
}

impl<R: FnMut(u64) -> Option<u64>> Tables for Seen<'_, R> {
    fn read(&mut self, at: u64) -> Option<u64> {
        if self.pmp.allows(false, at, 8, AccessKind::Load) { (self.read)(at) } else { None }
    }

    fn replace(&mut self, at: u64, _: u64, _: u64) -> Option<bool> {
        self.pmp.allows(false, at, 8, AccessKind::Store).then_some(true)
    }
}

impl CpuState {
    /// The physical address of `len` bytes (1 or more, on one page) at `va`, for an access of this mode; `read` has the eight bytes of RAM at a
    /// physical address, if there are any.
    ///
    /// # Errors
    /// [`FaultCause::Page`]: they are not mapped so. [`FaultCause::Access`]: PMP refuses them, or there are no tables.
    pub fn physical(
        &self,
        mode: Privilege,
        (va, len): (u64, u64),
        kind: AccessKind,
        read: impl FnMut(u64) -> Option<u64>,
    ) -> Result<u64, FaultCause> {
        let csr = &self.csr;
        let addresses = std::array::from_fn(|n| csr.pmpaddr(n));
        let pmp = Pmp::new(&std::array::from_fn::<_, ENTRIES, _>(|n| csr.pmpcfg(n)), &addresses);
        let idx = self.data_idx_of(mode);
        let at = if idx == MmuIdx::M {
            va
        } else {
            walk(&mut Seen { read, pmp: &pmp }, regime(csr.satp, csr.menvcfg, idx), va, kind)?.page | va & 0xfff
        };
        if pmp.allows(mode == Privilege::M, at, len, kind) { Ok(at) } else { Err(FaultCause::Access) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::riscv::csr::{self, CsrEffect, num};
    use std::collections::HashMap;

    const ROOT: u64 = 0x8000_0000;

    /// Page 5 of the address space is at 0x8000_9000, with these bits; its table at 0x8000_2000.
    fn tables(bits: u64) -> HashMap<u64, u64> {
        let pointer = |at: u64| at >> 2 | 1;
        HashMap::from([
            (ROOT, pointer(ROOT + 0x1000)),
            (ROOT + 0x1000, pointer(ROOT + 0x2000)),
            (ROOT + 0x2000 + 5 * 8, 0x8000_9000 >> 2 | bits),
        ])
    }

    fn cpu() -> CpuState {
        let mut cpu = CpuState::new(0, ROOT);
        cpu.csr.allow_all_memory();
        cpu.csr.satp = 8 << 60 | ROOT >> 12;
        cpu
    }

    fn at(cpu: &CpuState, mode: Privilege, va: u64, kind: AccessKind, bits: u64) -> Result<u64, FaultCause> {
        let tables = tables(bits);
        let zero = |at| (ROOT..ROOT + 0x3000).contains(&at).then_some(0);
        cpu.physical(mode, (va, 8), kind, |at| tables.get(&at).copied().or(zero(at)))
    }

    #[test]
    fn an_address_is_looked_up_as_the_hart_would_in_each_mode() {
        let mut cpu = cpu();
        let (load, store, fetch) = (AccessKind::Load, AccessKind::Store, AccessKind::Fetch);
        let (of_s, of_u) = (0xcf, 0xdf);
        assert_eq!(at(&cpu, Privilege::S, 0x5ff8, load, of_s), Ok(0x8000_9ff8));
        assert_eq!(at(&cpu, Privilege::U, 0x5ff8, load, of_s), Err(FaultCause::Page));
        assert_eq!(at(&cpu, Privilege::U, 0x5008, fetch, of_u), Ok(0x8000_9008));
        assert_eq!(at(&cpu, Privilege::S, 0x6000, load, of_s), Err(FaultCause::Page), "no entry");
        assert_eq!(at(&cpu, Privilege::S, 1 << 40 | 0x5000, load, of_s), Err(FaultCause::Page), "no address");
        // M-mode goes by no table, whatever MPRV is for.
        cpu.csr.mstatus |= 1 << 17;
        assert_eq!(at(&cpu, Privilege::M, 0x5ff8, store, of_s), Ok(0x5ff8));
        // S-mode reaches a page of U-mode for data, if it said so; X is R, if it said that.
        assert_eq!(at(&cpu, Privilege::S, 0x5000, load, of_u), Err(FaultCause::Page));
        assert_eq!(at(&cpu, Privilege::S, 0x5000, load, 0xc9), Err(FaultCause::Page));
        cpu.csr.mstatus |= 3 << 18;
        assert_eq!(at(&cpu, Privilege::S, 0x5000, load, of_u), Ok(0x8000_9000));
        assert_eq!(at(&cpu, Privilege::S, 0x5000, fetch, of_u), Err(FaultCause::Page));
        assert_eq!(at(&cpu, Privilege::S, 0x5000, load, 0xc9), Ok(0x8000_9000));
        // Marks that a walk may set are as good as set.
        assert_eq!(at(&cpu, Privilege::S, 0x5000, store, 0x0f), Err(FaultCause::Page));
        cpu.csr.menvcfg = 1 << 61;
        assert_eq!(at(&cpu, Privilege::S, 0x5000, store, 0x0f), Ok(0x8000_9000));
    }

    #[test]
    fn what_protection_refuses_or_has_no_table_is_an_access_fault() {
        let (load, s) = (AccessKind::Load, Privilege::S);
        let mut cpu = cpu();
        let set = |cpu: &mut CpuState, csr, value| {
            let _: CsrEffect = csr::csr_write(cpu, csr, value).expect("M-mode may");
        };
        cpu.csr.satp += 0x100;
        assert_eq!(at(&cpu, s, 0x5000, load, 0xcf), Err(FaultCause::Access), "the root is not there");
        cpu.csr.satp -= 0x100;
        // The upper half of the page is refused: a locked entry, of the last four bytes at first.
        set(&mut cpu, num::PMPADDR0 + 1, (1 << 54) - 1);
        set(&mut cpu, num::PMPADDR0, 0x8000_9ffc >> 2);
        set(&mut cpu, num::PMPCFG0, 0x1f << 8 | 0x90);
        assert_eq!(at(&cpu, s, 0x5ff0, load, 0xcf), Ok(0x8000_9ff0));
        assert_eq!(at(&cpu, s, 0x5ff8, load, 0xcf), Err(FaultCause::Access), "some of its bytes");
        assert_eq!(at(&cpu, Privilege::M, 0x8000_9ff8, load, 0xcf), Err(FaultCause::Access), "the lock binds M-mode");
        // A table that may not be read.
        let mut cpu = self::cpu();
        set(&mut cpu, num::PMPADDR0 + 1, (1 << 54) - 1);
        set(&mut cpu, num::PMPADDR0, (ROOT + 0x2000) >> 2 | 0x1ff);
        set(&mut cpu, num::PMPCFG0, 0x1f << 8 | 0x18);
        assert_eq!(at(&cpu, s, 0x5000, load, 0xcf), Err(FaultCause::Access));
        assert_eq!(at(&cpu, Privilege::M, ROOT + 0x2000, load, 0xcf), Ok(ROOT + 0x2000), "no lock");
    }
}
