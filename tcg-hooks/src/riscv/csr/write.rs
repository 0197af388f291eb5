//! What a write leaves in a register: its mask, and the rules that a mask cannot say.
use super::fields::{envcfg, irq, mstatus, pmpcfg, satp};
use super::{Counter, CsrEffect, Csrs, Row, Rule, Value};
use crate::cpu::CpuState;
use crate::riscv::Privilege;
use crate::riscv::isa::Extension;

impl Csrs {
    /// How PMP entry `n` is configured; one that is not there is off.
    pub fn pmpcfg(&self, n: usize) -> u8 {
        let words = [self.pmpcfg0, self.pmpcfg2];
        words.get(n / 8).map_or(0, |word| word.to_le_bytes()[n % 8])
    }

    /// The address register of PMP entry `n`: bits 55..2 of an address; 0 of an entry that is not there.
    pub fn pmpaddr(&self, n: usize) -> u64 {
        self.pmpaddr.get(n).copied().unwrap_or(0)
    }

    /// All of PMP: eight entries' configuration in a word, and the addresses.
    pub(crate) fn pmp_words(&self) -> ([u64; 2], &[u64; 16]) {
        ([self.pmpcfg0, self.pmpcfg2], &self.pmpaddr)
    }

    /// Is an entry locked, so that M-mode is bound?
    #[inline]
    pub(crate) fn pmp_is_locked(&self) -> bool {
        (self.pmpcfg0 | self.pmpcfg2) & u64::from_ne_bytes([pmpcfg::L; 8]) != 0
    }

    /// Entry 0 of PMP allows everything to all modes: what firmware does before it leaves M-mode, as other modes are refused
    /// what no entry matches. Its lock stays open.
    pub fn allow_all_memory(&mut self) {
        (self.pmpcfg0, self.pmpaddr[0]) = (self.pmpcfg0 & !0xff | 0x1f, (1 << 54) - 1);
    }

    /// Does the address of entry `n` stand until reset? Its own lock says so, or that of a range that begins there.
    fn pmpaddr_is_locked(&self, n: usize) -> bool {
        let (own, next) = (self.pmpcfg(n), self.pmpcfg(n + 1));
        own & pmpcfg::L != 0 || next & pmpcfg::L != 0 && next & pmpcfg::A == pmpcfg::TOR
    }
}

/// Eight entries of `pmpcfg`: those that are locked keep what they have, and W without R is reserved and loses its W.
pub(super) fn pmp(old: u64, new: u64) -> u64 {
    let (old, mut new) = (old.to_le_bytes(), new.to_le_bytes());
    for (new, old) in new.iter_mut().zip(old) {
        *new &= pmpcfg::ALL;
        if *new & (pmpcfg::R | pmpcfg::W) == pmpcfg::W {
            *new &= !pmpcfg::W;
        }
        if old & pmpcfg::L != 0 {
            *new = old;
        }
    }
    u64::from_le_bytes(new)
}

/// A legal `mstatus`: no reserved mode, FS stays off without F, SD says that FS is dirty.
pub(super) fn status(new: u64, has_f: bool) -> u64 {
    let mpp = Privilege::from_bits(new >> mstatus::MPP_SHIFT).bits() << mstatus::MPP_SHIFT;
    let fs = if has_f { new & mstatus::FS } else { 0 };
    let sd = if fs == mstatus::FS { mstatus::SD } else { 0 };
    new & !(mstatus::MPP | mstatus::FS | mstatus::SD) | mpp | fs | sd
}

pub(super) fn write(cpu: &mut CpuState, row: &Row, csr: u16, value: u64) -> CsrEffect {
    let mut new = value & row.mask | row.ones;
    let (retired, c) = (cpu.retired, &mut cpu.csr);
    let index = csr - row.first;
    match row.rule {
        Rule::Plain => {}
        Rule::Status => {
            let kept = if matches!(row.value, Value::Part(..)) { c.mstatus & !row.mask } else { 0 };
            new = status(kept | new, cpu.isa.has(Extension::F));
        }
        Rule::Inhibit => {
            let (cycle, instret) = (c.inhibited(0), c.inhibited(2));
            c.cycle.switch(cycle, new & 1 != 0, retired);
            c.instret.switch(instret, new & 4 != 0, retired);
        }
        Rule::Pmp => {
            if let Value::Word(word) = row.value {
                new = pmp(c.word(word, index), new);
            }
        }
        Rule::PmpAddr if c.pmpaddr_is_locked(index.into()) => return CsrEffect::None,
        Rule::PmpAddr => {}
        Rule::Satp if satp::MODES >> (new >> satp::MODE_SHIFT) & 1 == 0 => return CsrEffect::None,
        Rule::Satp => {}
        Rule::Envcfg => {
            // The reserved one of four.
            if new & envcfg::CBIE == 2 << 4 {
                new &= !envcfg::CBIE;
            }
            if matches!(row.value, Value::Word(super::Word::Menvcfg)) && new & envcfg::STCE != 0 {
                // From here on it is the timer's.
                c.mip &= !irq::STI;
            }
        }
        Rule::Pending => {
            let mut mask = row.mask;
            if matches!(row.value, Value::DelegatedPending) {
                mask &= c.mideleg;
            }
            if c.menvcfg & envcfg::STCE != 0 {
                mask &= !irq::STI;
            }
            new = c.mip & !mask | new & mask;
        }
    }
    match row.value {
        Value::Word(word) | Value::Part(word, _) | Value::Pending(word) => *c.word_mut(word, index) = new,
        Value::DelegatedPending => c.mip = new,
        Value::Delegated => c.mie = c.mie & !c.mideleg | new & c.mideleg,
        Value::Float(shift) => {
            let fcsr = c.fcsr() & !(row.mask << shift) | new << shift;
            (c.fflags, c.frm) = (fcsr as u8 & 31, (fcsr >> 5) as u8 & 7);
            c.mstatus |= mstatus::FS | mstatus::SD;
        }
        Value::Counter(word, bit) => {
            let mut counter = Counter(0);
            counter.set(c.inhibited(bit), retired, new);
            *c.word_mut(word, 0) = counter.0;
        }
        Value::Absent(_) | Value::Fixed | Value::Time | Value::Isa | Value::HartId => {}
    }
    row.effect
}
