//! Where an address leads, for crash reports and debuggers, which look at a hart from outside and change nothing.
//!
//! It goes by the registers and the page tables as they are, not by what a TLB keeps. A walk that would set marks counts as having
//! set them, where it may; nothing is written.

use super::Privilege;
use super::csr::satp;
use super::mmu::regime;
use super::pmp::{ENTRIES, Pmp};
use super::walk::{Scheme, Tables, refusal, walk};
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

impl CpuState {
    /// What `satp` says, in words: `Sv39, ASID 3, root at 0x80010000`.
    pub fn paging(&self) -> String {
        let satp = self.csr.satp;
        let scheme = Scheme::of_satp(satp).unwrap_or_default();
        if scheme == Scheme::Bare {
            return "addresses are physical".into();
        }
        let (asid, root) = (satp >> satp::ASID_SHIFT & 0xffff, (satp & satp::PPN) << 12);
        format!("{scheme:?}, ASID {asid}, root at {root:#x}")
    }
}

/// The last entry that a walk read.
struct Noted<T> {
    tables: T,
    reads: u32,
    last: Option<(u64, Option<u64>)>,
}

impl<T: Tables> Tables for Noted<T> {
    fn read(&mut self, at: u64) -> Option<u64> {
        let entry = self.tables.read(at);
        (self.reads, self.last) = (self.reads + 1, Some((at, entry)));
        entry
    }

    fn replace(&mut self, at: u64, old: u64, new: u64) -> Option<bool> {
        self.tables.replace(at, old, new)
    }
}

impl CpuState {
    /// Where an access of this mode ends that cannot be made, in words: the entry of a page table, and what is wrong with it, or the physical address
    /// that PMP or the lack of memory is about. Nothing of an access that page tables have no part in. `read` is as in
    /// [`physical`](Self::physical).
    pub fn why_not(
        &self,
        mode: Privilege,
        va: u64,
        kind: AccessKind,
        read: impl FnMut(u64) -> Option<u64>,
    ) -> Option<String> {
        let (csr, idx) = (&self.csr, self.data_idx_of(mode));
        let regime = regime(csr.satp, csr.menvcfg, idx);
        let levels = regime.scheme.levels();
        if idx == MmuIdx::M || levels == 0 {
            return None;
        }
        let addresses = std::array::from_fn(|n| csr.pmpaddr(n));
        let pmp = Pmp::new(&std::array::from_fn::<_, ENTRIES, _>(|n| csr.pmpcfg(n)), &addresses);
        let mut tables = Noted { tables: Seen { read, pmp: &pmp }, reads: 0, last: None };
        let found = walk(&mut tables, regime, va, kind);
        let Some((at, entry)) = tables.last else { return Some("no address: its upper bits are not all alike".into()) };
        let level = levels - tables.reads.min(levels);
        Some(match (found, entry) {
            (Ok(leaf), _) => format!("its page is at {:#x}: no memory, or PMP closes it", leaf.page),
            (Err(_), None) => format!("no entry of level {level} at {at:#x}: no memory, or PMP closes it"),
            (Err(_), Some(entry)) => {
                format!("entry {entry:#x} of level {level} at {at:#x}: {}", refusal(regime, entry, level, kind))
            }
        })
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
    fn a_fault_is_told_with_the_entry_that_it_is_about() {
        let cpu = cpu();
        let why = |va: u64, kind: AccessKind, bits: u64| {
            let tables = tables(bits);
            let zero = |at| (ROOT..ROOT + 0x3000).contains(&at).then_some(0);
            cpu.why_not(Privilege::S, va, kind, |at| tables.get(&at).copied().or(zero(at))).unwrap()
        };
        let (load, store, fetch) = (AccessKind::Load, AccessKind::Store, AccessKind::Fetch);
        for (va, kind, bits, wanted) in [
            (0x6000, load, 0xcf, "entry 0x0 of level 0 at 0x80002030: not valid"),
            (0x5000, load, 0xc5, "entry 0x200024c5 of level 0 at 0x80002028: may be written, but not read"),
            (0x5000, load, 0xdf, "entry 0x200024df of level 0 at 0x80002028: of U-mode"),
            (0x5000, store, 0xc3, "entry 0x200024c3 of level 0 at 0x80002028: not to be stored to"),
            (0x5000, fetch, 0xc7, "entry 0x200024c7 of level 0 at 0x80002028: not to be fetched from"),
            (0x5000, load, 0x8f, "entry 0x2000248f of level 0 at 0x80002028: A is clear"),
            (0x5000, store, 0x4f, "entry 0x2000244f of level 0 at 0x80002028: D is clear"),
            (0x5000, load, 0x01, "entry 0x20002401 of level 0 at 0x80002028: leads to a table below the last"),
            (
                0x5000,
                load,
                1 << 60 | 0xcf,
                "entry 0x10000000200024cf of level 0 at 0x80002028: has bits that are reserved",
            ),
            (1 << 40, load, 0xcf, "no address: its upper bits are not all alike"),
            (0x5000, load, 0xcf, "its page is at 0x80009000: no memory, or PMP closes it"),
        ] {
            assert_eq!(why(va, kind, bits), wanted);
        }
        let superpage = |at: u64| Some(if at == ROOT { 0x2000_04cf } else { 0 });
        assert_eq!(
            cpu.why_not(Privilege::S, 0, load, superpage).unwrap(),
            "entry 0x200004cf of level 2 at 0x80000000: a superpage that is not aligned"
        );
        let nowhere = cpu.why_not(Privilege::S, 0, load, |_| None).unwrap();
        assert_eq!(nowhere, "no entry of level 2 at 0x80000000: no memory, or PMP closes it");
        assert_eq!(cpu.why_not(Privilege::M, 0x5000, load, |_| None), None);
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
