//! How a hart's addresses become physical ones: page tables, then PMP, of which the softmmu keeps what it may.
//!
//! ```text
//!   cpu.data_idx(), fetch_idx() ─▶ M: physical, and nothing is refused that M-mode is not refused
//!                               └▶ mode, SUM, MXR: a set of its own, by satp's mode and ASID
//!   a miss ─▶ Hooks::translate ─▶ Memory::translate ─ walk (its reads and marks under PMP, as S-mode's) ─▶ PMP ─▶ softmmu
//!   satp, pmpcfg, pmpaddr written ─▶ changed        sfence.vma, sinval.vma ─▶ fence
//! ```
//!
//! While S-mode and U-mode are not translated, and PMP leaves all memory to them, they see what M-mode does, in its set. A
//! switch of `satp.MODE` needs no fence, as another mode is another set; that of a root does, by the specification.

use super::csr::{Csrs, envcfg, mstatus, satp};
use super::decode::Insn;
use super::pmp::{ENTRIES, PageRights, Pmp, cfg};
use super::walk::{Leaf, Regime, Scheme, Tables, walk};
use super::{Op, Privilege};
use crate::cpu::CpuState;
use crate::tb::Regime as CodeRegime;
use notdirty_core::{PAGE_SIZE, RamAddr};
use notdirty_softmmu::{
    Access, AccessKind, Asid, CodeInvalidator, FaultCause, GuestPhys, GuestVirt, Hooks, LiveMmu, MemSize, MmuIdx,
    Physical, Rights, Translation,
};

/// Bits of an [`MmuIdx`] beside the mode.
const SUM: u8 = 1 << 2;
const MXR: u8 = 1 << 3;
/// Of an entry that matches everything.
const EVERYTHING: u8 = cfg::R | cfg::W | cfg::X;

impl CpuState {
    /// How instructions are fetched.
    #[inline]
    pub fn fetch_idx(&self) -> MmuIdx {
        self.csr.idx(self.privilege, 0)
    }

    /// How loads and stores find memory: as in the mode of `mstatus.MPP` while `MPRV` is set.
    #[inline]
    pub fn data_idx(&self) -> MmuIdx {
        let status = self.csr.mstatus;
        let mprv = status & mstatus::MPRV != 0;
        self.data_idx_of(if mprv { Privilege::from_bits(status >> mstatus::MPP_SHIFT) } else { self.privilege })
    }

    /// How loads and stores of this mode find memory.
    #[inline]
    pub(super) fn data_idx_of(&self, mode: Privilege) -> MmuIdx {
        let status = self.csr.mstatus;
        let sum = if status & mstatus::SUM != 0 && mode == Privilege::S { SUM } else { 0 };
        let mxr = if status & mstatus::MXR != 0 { MXR } else { 0 };
        self.csr.idx(mode, sum | mxr)
    }

    /// In M-mode, which neither page tables nor the mode of an earlier trap have to do with.
    #[inline]
    pub(crate) fn is_in_plain_mode(&self) -> bool {
        self.privilege == Privilege::M && self.csr.mstatus & mstatus::MPRV == 0
    }

    /// As what emitted code for the hart is made: all of its addresses are physical, and found in M-mode's set, or they are not.
    #[inline]
    pub(crate) fn regime(&self) -> CodeRegime {
        if self.is_in_plain_mode() {
            return CodeRegime::physical(Privilege::M);
        }
        if self.fetch_idx() == MmuIdx::M && self.data_idx() == MmuIdx::M {
            return CodeRegime::physical(self.privilege);
        }
        CodeRegime::translated(self.privilege, asid(self.csr.satp).0)
    }
}

impl Csrs {
    #[inline]
    fn idx(&self, mode: Privilege, more: u8) -> MmuIdx {
        if mode == Privilege::M || self.satp >> satp::MODE_SHIFT == 0 && self.pmp_is_open() {
            return MmuIdx::M;
        }
        MmuIdx(mode as u8 | more)
    }

    /// Does the first entry of PMP match all that there is, and allow everything?
    #[inline]
    fn pmp_is_open(&self) -> bool {
        let (config, address) = (self.pmpcfg(0), self.pmpaddr(0));
        let all = match config & cfg::A {
            // But for the last four bytes of what 56 bits can name, where nothing is.
            cfg::TOR => address >= (1 << 54) - 1,
            cfg::NAPOT => address & ((1 << 53) - 1) == (1 << 53) - 1,
            _ => false,
        };
        all && config & EVERYTHING == EVERYTHING
    }
}

/// What the translation of an address depends on, apart from the hart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Memory {
    satp: u64,
    menvcfg: u64,
    config: [u64; 2],
    addresses: [u64; ENTRIES],
}

impl Memory {
    /// As the registers are now.
    pub(crate) fn of(csr: &Csrs) -> Memory {
        let (config, addresses) = csr.pmp_words();
        Memory { satp: csr.satp, menvcfg: csr.menvcfg, config, addresses: *addresses }
    }

    /// But for the page table, are they the same?
    pub(crate) fn has_rights_of(&self, other: &Memory) -> bool {
        *self == Memory { satp: self.satp, ..*other }
    }

    /// Does PMP bind M-mode?
    fn is_locked(&self) -> bool {
        (self.config[0] | self.config[1]) & u64::from_ne_bytes([cfg::L; 8]) != 0
    }
}

/// What a translation goes by. Where PMP leaves all memory to S-mode and U-mode, it need not be asked.
pub(crate) struct Walker {
    satp: u64,
    menvcfg: u64,
    pmp: Option<Pmp>,
}

impl Walker {
    /// As the registers are now, for accesses of this regime.
    #[inline]
    pub(crate) fn new(csr: &Csrs, idx: MmuIdx) -> Walker {
        let free = if idx == MmuIdx::M { !csr.pmp_is_locked() } else { csr.pmp_is_open() };
        Walker { satp: csr.satp, menvcfg: csr.menvcfg, pmp: if free { None } else { Some(Walker::pmp(csr)) } }
    }

    #[cold]
    fn pmp(csr: &Csrs) -> Pmp {
        let (config, addresses) = csr.pmp_words();
        let config = std::array::from_fn(|n| config[n / 8].to_le_bytes()[n % 8]);
        Pmp::new(&config, addresses)
    }

    /// Where an access goes. `hooks` is told of the marks that it leaves in page tables; if it may leave none, it is refused.
    #[inline]
    pub(crate) fn translate<H: Hooks>(
        &self,
        hooks: &mut H,
        memory: &mut Physical<'_>,
        access: Access,
        marks: bool,
    ) -> Result<Translation, FaultCause> {
        let Access { idx, va, len, kind } = access;
        let machine = idx == MmuIdx::M;
        let Walker { satp, menvcfg, pmp } = self;
        if machine && pmp.is_none() {
            return Ok(Translation { everywhere: true, ..Translation::identity(va) });
        }
        let leaf = if machine {
            let page = va.page_base().get();
            Leaf { page, size_log2: 12, rights: Rights::ALL, global: false }
        } else {
            let regime = regime(*satp, *menvcfg, idx);
            walk(&mut Guarded { memory, hooks, pmp: pmp.as_ref(), marks }, regime, va.get(), kind)?
        };
        let Leaf { page, size_log2, rights, global } = leaf;
        let page_of = GuestPhys::new(page);
        let to = Translation { page: page_of, size_log2, rights, global, lasting: true, everywhere: false };
        let Some(pmp) = pmp else { return Ok(to) };
        let (allowed, lasting) = match pmp.page(machine, page) {
            PageRights::Whole(rights) => (rights, true),
            PageRights::Ask => {
                let allowed = pmp.allows(machine, page | va.page_offset(), len, kind);
                (if allowed { Rights::ALL } else { Rights::NONE }, false)
            }
        };
        // The softmmu takes a missing right for an access fault.
        Ok(Translation { rights: rights & allowed, lasting, ..to })
    }
}

/// What a walk goes by, of registers as they are and the regime of the access.
#[inline]
pub(super) fn regime(satp: u64, menvcfg: u64, idx: MmuIdx) -> Regime {
    Regime {
        scheme: Scheme::of_satp(satp).unwrap_or_default(),
        root: satp & satp::PPN,
        user: idx.0 & 3 == Privilege::U as u8,
        sum: idx.0 & SUM != 0,
        mxr: idx.0 & MXR != 0,
        adue: menvcfg & envcfg::ADUE != 0,
        pbmte: menvcfg & envcfg::PBMTE != 0,
    }
}

/// Page tables in memory under PMP.
struct Guarded<'a, 'm, H> {
    memory: &'a mut Physical<'m>,
    hooks: &'a mut H,
    pmp: Option<&'a Pmp>,
    marks: bool,
}

impl<H: Hooks> Tables for Guarded<'_, '_, H> {
    fn read(&mut self, at: u64) -> Option<u64> {
        if self.pmp.is_some_and(|pmp| !pmp.allows(false, at, 8, AccessKind::Load)) {
            return None;
        }
        self.memory.read(GuestPhys::new(at))
    }

    fn replace(&mut self, at: u64, old: u64, new: u64) -> Option<bool> {
        let allowed = self.pmp.is_none_or(|pmp| pmp.allows(false, at, 8, AccessKind::Store));
        if !self.marks || !allowed {
            return None;
        }
        self.memory.replace(self.hooks, GuestPhys::new(at), old, new)
    }
}

/// The address space of a value of `satp`, among those that the softmmu keeps apart.
fn asid(satp: u64) -> Asid {
    Asid((satp >> satp::ASID_SHIFT) as u32)
}

/// The hart is about to use memory: as its `satp` says. Was something forgotten, as its address space has another root than before?
#[inline]
pub(crate) fn follow(csr: &Csrs, mmu: &mut LiveMmu) -> bool {
    let space = asid(csr.satp);
    mmu.set_asid(space);
    csr.satp >> satp::MODE_SHIFT != 0 && mmu.set_root(space, csr.satp & satp::PPN)
}

/// What a change of registers does to what was translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Changed {
    /// Nothing that is kept.
    Nothing,
    /// The root of this address space: its translations are forgotten, and so must be what is known of its jumps.
    Space(u16),
    /// What S-mode and U-mode may do is another thing: their translations are forgotten, and so must be what is known of their jumps.
    Below,
    /// M-mode may not fetch what it might, or may what it might not: translated code must be forgotten, too.
    All,
}

/// Something changed that `before` says of the past: what may be kept no more is forgotten.
#[must_use]
pub(crate) fn changed(before: &Memory, csr: &Csrs, mmu: &mut LiveMmu) -> Changed {
    let now = Memory::of(csr);
    let moved = follow(csr, mmu);
    if (before.config, before.addresses) == (now.config, now.addresses) {
        return if moved { Changed::Space(asid(csr.satp).0 as u16) } else { Changed::Nothing };
    }
    if before.is_locked() || now.is_locked() {
        mmu.flush_tlb();
        return Changed::All;
    }
    mmu.flush_translations(None, None);
    Changed::Below
}

/// What `sfence.vma`, and what Svinval makes of it, is about: a virtual address, an address space; or all of them.
pub(crate) fn fenced(cpu: &CpuState, insn: &Insn) -> Option<(Option<u64>, Option<u16>)> {
    let register = |n: u8| (n != 0).then(|| cpu.x[usize::from(n & 31)]);
    // What the other two order is in order.
    matches!(insn.op, Op::SfenceVma | Op::SinvalVma)
        .then(|| (register(insn.rs1), register(insn.rs2).map(|asid| asid as u16)))
}

/// Forgets translations of data, and how code is fetched.
pub(crate) fn fence(mmu: &mut LiveMmu, va: Option<u64>, asid: Option<u16>) {
    let va = va.map(GuestVirt::new);
    match asid {
        None => mmu.flush_translations(va, None),
        Some(asid) => {
            for scheme in [Scheme::Bare, Scheme::Sv39, Scheme::Sv48, Scheme::Sv57] {
                let scheme = (scheme as u32) << (satp::MODE_SHIFT - satp::ASID_SHIFT);
                mmu.flush_translations(va, Some(Asid(scheme | u32::from(asid))));
            }
        }
    }
}

/// Hooks of an engine that knows no page tables, with a hart's. What its registers say is only looked at by a miss.
pub(crate) struct Translated<'a, H> {
    pub(crate) csr: &'a Csrs,
    pub(crate) hooks: &'a mut H,
}

impl<H: Hooks> CodeInvalidator for Translated<'_, H> {
    fn code_written(&mut self, ram: RamAddr, len: u64) -> usize {
        self.hooks.code_written(ram, len)
    }
}

impl<H: Hooks> Hooks for Translated<'_, H> {
    fn translate(&mut self, memory: &mut Physical<'_>, access: Access) -> Result<Translation, FaultCause> {
        Walker::new(self.csr, access.idx).translate(self.hooks, memory, access, true)
    }
    fn accessed(&mut self, va: GuestVirt, size: MemSize, value: u64, store: bool) -> bool {
        self.hooks.accessed(va, size, value, store)
    }

    fn before_mmio(&mut self) {
        self.hooks.before_mmio();
    }
    fn unmapped(&mut self, start: GuestPhys, last: GuestPhys, ram: RamAddr) {
        self.hooks.unmapped(start, last, ram);
    }
    fn flushed(&mut self) {
        self.hooks.flushed();
    }
}

const _: () = assert!(PAGE_SIZE == 1 << 12);
