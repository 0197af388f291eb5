//! Every control and status register by its number: one row is all that is known of it.
//!
//! ```text
//!   number:  bits 11..10 = 3: read-only     bits 9..8: the lowest mode that reaches it     (the manual's rule)
//!   row:     name │ what holds the value │ bits that a write changes, bits that read 1 │ rule │ what the hart does then
//!            │ what must be enabled
//! ```
//!
//! `csrrw` and its kin ([`super::execute`], for all engines), the translator (what is read and swapped in line), the
//! disassembler (names), and the program generator read it. A register of a mode or an extension that this hart does not
//! have is [`Value::Absent`]: it has a name and traps.
use super::{CsrEffect, Csrs, envcfg, irq, mstatus};
use crate::riscv::Privilege;
use std::fmt::{self, Display, Formatter};
use std::mem::offset_of;

/// What a register's value is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// Every access is illegal until the hart has this.
    Absent(&'static str),
    /// Only the bits that always read 1.
    Fixed,
    /// A word of [`Csrs`]; a row of several numbers has as many words.
    Word(Word),
    /// These bits of a word of another register.
    Part(Word, u64),
    /// The delegated bits of `mie`.
    Delegated,
    /// What devices and timers drive, and the word that software made pending.
    Pending(Word),
    /// The delegated bits of that.
    DelegatedPending,
    /// Bits of `fcsr`, from this one on. A write makes the floating-point unit dirty.
    Float(u8),
    /// A count that is an offset from the retired instructions, and its bit of `mcountinhibit`.
    Counter(Word, u8),
    /// The clock.
    Time,
    /// The extensions.
    Isa,
    /// The hart's number.
    HartId,
}

/// What a write does beyond the mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Nothing.
    Plain,
    /// `mstatus`, or a part of it: no reserved mode before; FS stays off without F; SD says that FS is dirty.
    Status,
    /// Counters stop and go on.
    Inhibit,
    /// Of each byte, W without R is reserved: it loses its W. One that is locked stands.
    Pmp,
    /// It cannot be written if its entry is locked, or the next one is, and begins there (TOR).
    PmpAddr,
    /// A mode that there is not leaves all as it was.
    Satp,
    /// The reserved value of CBIE is 0.
    Envcfg,
    /// `mip`, or the delegated part: what a timer drives is not software's.
    Pending,
}

/// What must hold, beyond the mode, for the register to be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Nothing.
    None,
    /// The floating-point unit is on.
    Float,
    /// The modes above have enabled this counter.
    Counter,
    /// They have enabled `time`, and there is `stimecmp`.
    Timer,
    /// `mstatus.TVM` is clear.
    Translation,
}

/// One register, or several in a row that behave alike.
#[derive(Debug)]
pub struct Row {
    /// The first number.
    pub first: u16,
    /// The last number.
    pub last: u16,
    name: &'static str,
    /// The number in the first one's name, where the name has one.
    numbered: Option<u16>,
    /// What it holds.
    pub value: Value,
    /// The bits that a write can change (WARL).
    pub mask: u64,
    /// The bits that read 1 whatever is written.
    pub ones: u64,
    /// What else a write does.
    pub rule: Rule,
    /// What a write means to the engine that runs the hart.
    pub effect: CsrEffect,
    /// When it is reached.
    pub gate: Gate,
}

macro_rules! words {
    ($($word:ident: $field:ident $([$index:ident])? $(. $inner:tt)?),* $(,)?) => {
        /// A word of [`Csrs`] that a row names.
        #[allow(missing_docs, reason = "the names are the manual's")]
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Word { $($word),* }

        impl Word {
            /// Where the word, or the first of several, is in [`Csrs`].
            pub const fn offset(self) -> usize {
                match self { $(Word::$word => offset_of!(Csrs, $field)),* }
            }
        }

        impl Csrs {
            pub(super) fn word(&self, word: Word, index: u16) -> u64 {
                match word { $(Word::$word => self.$field $([{ let $index = index; usize::from($index) }])? $(. $inner)?),* }
            }

            pub(super) fn word_mut(&mut self, word: Word, index: u16) -> &mut u64 {
                match word { $(Word::$word => &mut self.$field $([{ let $index = index; usize::from($index) }])? $(. $inner)?),* }
            }
        }
    };
}

words! {
    Mstatus: mstatus, Mie: mie, Mtvec: mtvec, Mscratch: mscratch, Mepc: mepc, Mcause: mcause, Mtval: mtval,
    Mcountinhibit: mcountinhibit, Cycle: cycle.0, Instret: instret.0, Pmpcfg0: pmpcfg0, Pmpcfg2: pmpcfg2,
    Pmpaddr: pmpaddr[n], Medeleg: medeleg, Mideleg: mideleg, Mip: mip, Mcounteren: mcounteren, Menvcfg: menvcfg,
    Stvec: stvec, Sscratch: sscratch, Sepc: sepc, Scause: scause, Stval: stval, Scounteren: scounteren,
    Senvcfg: senvcfg, Stimecmp: stimecmp, Satp: satp,
}

macro_rules! table {
    ($($id:ident $(..= $last_id:ident)? = $first:literal $(..= $last:literal)?: $row:expr;)*) => {
        /// CSR numbers, by the manual's names.
        #[allow(missing_docs, reason = "the names are the manual's")]
        pub mod num {
            $(pub const $id: u16 = $first; $(pub const $last_id: u16 = $last;)?)*
        }

        /// All registers, by number.
        pub const TABLE: &[Row] = &[$({
            let mut row: Row = $row;
            (row.first, row.last) = ($first, $first);
            $(row.last = $last;)?
            row
        }),*];
    };
}

const V: Value = Value::Absent("V");
const MORE_PMP: Value = Value::Absent("more than 16 PMP entries");
const DEBUG: Value = Value::Absent("debug mode");

table! {
    FFLAGS = 0x001: row("fflags", Value::Float(0)).gate(Gate::Float).mask(0x1f);
    FRM = 0x002: row("frm", Value::Float(5)).gate(Gate::Float).mask(7);
    FCSR = 0x003: row("fcsr", Value::Float(0)).gate(Gate::Float).mask(0xff);
    VSTART = 0x008: row("vstart", V);
    VXSAT = 0x009: row("vxsat", V);
    VXRM = 0x00a: row("vxrm", V);
    VCSR = 0x00f: row("vcsr", V);
    SEED = 0x015: row("seed", Value::Absent("Zkr"));
    JVT = 0x017: row("jvt", Value::Absent("Zcmt"));

    SSTATUS = 0x100: row("sstatus", Value::Part(Word::Mstatus, mstatus::SSTATUS))
        .mask(mstatus::SIE | mstatus::SPIE | mstatus::SPP | mstatus::FS | mstatus::SUM | mstatus::MXR)
        .rule(Rule::Status).effect(CsrEffect::Interrupts);
    SIE = 0x104: row("sie", Value::Delegated).mask(irq::SUPERVISOR).effect(CsrEffect::Interrupts);
    STVEC = 0x105: row("stvec", Value::Word(Word::Stvec)).mask(!2);
    SCOUNTEREN = 0x106: row("scounteren", Value::Word(Word::Scounteren)).mask(0xffff_ffff);
    SENVCFG = 0x10a: row("senvcfg", Value::Word(Word::Senvcfg)).mask(envcfg::SENVCFG).rule(Rule::Envcfg);
    SSCRATCH = 0x140: row("sscratch", Value::Word(Word::Sscratch)).mask(!0);
    SEPC = 0x141: row("sepc", Value::Word(Word::Sepc)).mask(!1);
    SCAUSE = 0x142: row("scause", Value::Word(Word::Scause)).mask(!0);
    STVAL = 0x143: row("stval", Value::Word(Word::Stval)).mask(!0);
    SIP = 0x144: row("sip", Value::DelegatedPending).mask(irq::SSI).rule(Rule::Pending).effect(CsrEffect::Interrupts);
    STIMECMP = 0x14d: row("stimecmp", Value::Word(Word::Stimecmp)).mask(!0).gate(Gate::Timer).effect(CsrEffect::Deadline);
    // Any ASID of 16 bits, any page of a 56-bit address.
    SATP = 0x180: row("satp", Value::Word(Word::Satp)).mask(!0).rule(Rule::Satp).gate(Gate::Translation)
        .effect(CsrEffect::Memory);

    MSTATUS = 0x300: row("mstatus", Value::Word(Word::Mstatus))
        .mask(mstatus::SIE | mstatus::MIE | mstatus::SPIE | mstatus::MPIE | mstatus::SPP | mstatus::MPP | mstatus::FS
            | mstatus::MPRV | mstatus::SUM | mstatus::MXR | mstatus::TVM | mstatus::TW | mstatus::TSR)
        .ones(mstatus::UXL | mstatus::SXL).rule(Rule::Status).effect(CsrEffect::Interrupts);
    MISA = 0x301: row("misa", Value::Isa);
    // All that the hart raises but the call from M-mode, which stays there.
    MEDELEG = 0x302: row("medeleg", Value::Word(Word::Medeleg)).mask(0xb3ff);
    MIDELEG = 0x303: row("mideleg", Value::Word(Word::Mideleg)).mask(irq::SUPERVISOR).effect(CsrEffect::Interrupts);
    MIE = 0x304: row("mie", Value::Word(Word::Mie)).mask(irq::ALL).effect(CsrEffect::Interrupts);
    // Modes 2 and 3 are reserved; they become 0 and 1.
    MTVEC = 0x305: row("mtvec", Value::Word(Word::Mtvec)).mask(!2);
    MCOUNTEREN = 0x306: row("mcounteren", Value::Word(Word::Mcounteren)).mask(0xffff_ffff);
    MENVCFG = 0x30a: row("menvcfg", Value::Word(Word::Menvcfg)).mask(envcfg::MENVCFG).rule(Rule::Envcfg)
        .effect(CsrEffect::Deadline);
    MCOUNTINHIBIT = 0x320: row("mcountinhibit", Value::Word(Word::Mcountinhibit)).mask(5).rule(Rule::Inhibit);
    MHPMEVENT3 ..= MHPMEVENT31 = 0x323 ..= 0x33f: row("mhpmevent", Value::Fixed).numbered(3);
    MSCRATCH = 0x340: row("mscratch", Value::Word(Word::Mscratch)).mask(!0);
    MEPC = 0x341: row("mepc", Value::Word(Word::Mepc)).mask(!1);
    MCAUSE = 0x342: row("mcause", Value::Word(Word::Mcause)).mask(!0);
    MTVAL = 0x343: row("mtval", Value::Word(Word::Mtval)).mask(!0);
    // M-mode's interrupts belong to the devices: a write changes none of those.
    MIP = 0x344: row("mip", Value::Pending(Word::Mip)).mask(irq::SUPERVISOR).rule(Rule::Pending)
        .effect(CsrEffect::Interrupts);
    // Of each entry L, A, X, W, R.
    PMPCFG0 = 0x3a0: row("pmpcfg0", Value::Word(Word::Pmpcfg0)).mask(0x9f9f_9f9f_9f9f_9f9f).rule(Rule::Pmp)
        .effect(CsrEffect::Memory);
    PMPCFG2 = 0x3a2: row("pmpcfg2", Value::Word(Word::Pmpcfg2)).mask(0x9f9f_9f9f_9f9f_9f9f).rule(Rule::Pmp)
        .effect(CsrEffect::Memory);
    PMPCFG4 = 0x3a4: row("pmpcfg4", MORE_PMP);
    PMPCFG6 = 0x3a6: row("pmpcfg6", MORE_PMP);
    PMPCFG8 = 0x3a8: row("pmpcfg8", MORE_PMP);
    PMPCFG10 = 0x3aa: row("pmpcfg10", MORE_PMP);
    PMPCFG12 = 0x3ac: row("pmpcfg12", MORE_PMP);
    PMPCFG14 = 0x3ae: row("pmpcfg14", MORE_PMP);
    // Bits 55..2 of a 56-bit address.
    PMPADDR0 ..= PMPADDR15 = 0x3b0 ..= 0x3bf: row("pmpaddr", Value::Word(Word::Pmpaddr)).numbered(0).mask((1 << 54) - 1)
        .rule(Rule::PmpAddr).effect(CsrEffect::Memory);
    PMPADDR16 ..= PMPADDR63 = 0x3c0 ..= 0x3ef: row("pmpaddr", MORE_PMP).numbered(16);
    MSECCFG = 0x747: row("mseccfg", Value::Absent("Smepmp or Zkr"));
    // Triggers of no type.
    TSELECT = 0x7a0: row("tselect", Value::Fixed);
    TDATA1 = 0x7a1: row("tdata1", Value::Fixed);
    TDATA2 = 0x7a2: row("tdata2", Value::Fixed);
    TDATA3 = 0x7a3: row("tdata3", Value::Fixed);
    DCSR = 0x7b0: row("dcsr", DEBUG);
    DPC = 0x7b1: row("dpc", DEBUG);
    DSCRATCH0 = 0x7b2: row("dscratch0", DEBUG);
    DSCRATCH1 = 0x7b3: row("dscratch1", DEBUG);

    MCYCLE = 0xb00: row("mcycle", Value::Counter(Word::Cycle, 0)).mask(!0);
    MINSTRET = 0xb02: row("minstret", Value::Counter(Word::Instret, 2)).mask(!0);
    // Counters without events.
    MHPMCOUNTER3 ..= MHPMCOUNTER31 = 0xb03 ..= 0xb1f: row("mhpmcounter", Value::Fixed).numbered(3);

    CYCLE = 0xc00: row("cycle", Value::Counter(Word::Cycle, 0)).gate(Gate::Counter);
    TIME = 0xc01: row("time", Value::Time).gate(Gate::Counter);
    INSTRET = 0xc02: row("instret", Value::Counter(Word::Instret, 2)).gate(Gate::Counter);
    HPMCOUNTER3 ..= HPMCOUNTER31 = 0xc03 ..= 0xc1f: row("hpmcounter", Value::Fixed).numbered(3)
        .gate(Gate::Counter);
    VL = 0xc20: row("vl", V);
    VTYPE = 0xc21: row("vtype", V);
    VLENB = 0xc22: row("vlenb", V);
    MVENDORID = 0xf11: row("mvendorid", Value::Fixed);
    MARCHID = 0xf12: row("marchid", Value::Fixed);
    MIMPID = 0xf13: row("mimpid", Value::Fixed);
    MHARTID = 0xf14: row("mhartid", Value::HartId);
    MCONFIGPTR = 0xf15: row("mconfigptr", Value::Fixed);
}

/// A register whose writes change nothing.
const fn row(name: &'static str, value: Value) -> Row {
    let (rule, effect, gate) = (Rule::Plain, CsrEffect::None, Gate::None);
    Row { first: 0, last: 0, name, numbered: None, value, mask: 0, ones: 0, rule, effect, gate }
}

impl Row {
    const fn mask(self, mask: u64) -> Row {
        Row { mask, ..self }
    }

    const fn ones(self, ones: u64) -> Row {
        Row { ones, ..self }
    }

    const fn rule(self, rule: Rule) -> Row {
        Row { rule, ..self }
    }

    const fn effect(self, effect: CsrEffect) -> Row {
        Row { effect, ..self }
    }

    const fn gate(self, gate: Gate) -> Row {
        Row { gate, ..self }
    }

    const fn numbered(self, first: u16) -> Row {
        Row { numbered: Some(first), ..self }
    }

    /// Does this hart have it?
    pub const fn present(&self) -> bool {
        !matches!(self.value, Value::Absent(_))
    }

    /// Where in [`Csrs`] the word of register `csr` of this row is, if that word is its value as it stands.
    pub const fn offset(&self, csr: u16) -> Option<usize> {
        match self.value {
            Value::Word(word) => Some(word.offset() + 8 * csr.saturating_sub(self.first) as usize),
            _ => None,
        }
    }
}

/// The lowest mode that reaches a register. What would be a hypervisor's is M-mode's.
pub const fn lowest_mode(csr: u16) -> Privilege {
    match csr >> 8 & 3 {
        0 => Privilege::U,
        1 => Privilege::S,
        _ => Privilege::M,
    }
}

/// Is every write illegal?
pub const fn read_only(csr: u16) -> bool {
    csr >> 10 == 3
}

/// For each number its row, from one; 0 where there is none.
static INDEX: [u8; 4096] = index();

const fn index() -> [u8; 4096] {
    let mut index = [0; 4096];
    let mut n = 0;
    while n < TABLE.len() {
        let row = &TABLE[n];
        let mut csr = row.first as usize;
        assert!(csr <= row.last as usize, "a row is empty");
        while csr <= row.last as usize {
            assert!(index[csr] == 0, "two rows have one number");
            index[csr] = n as u8 + 1;
            csr += 1;
        }
        n += 1;
    }
    assert!(TABLE.len() < 256);
    index
}

/// The row of a number, present or absent.
#[inline]
pub fn find(csr: u16) -> Option<&'static Row> {
    static ROWS: &[Row] = TABLE;
    let at = INDEX.get(usize::from(csr))?;
    ROWS.get(usize::from(at.checked_sub(1)?))
}

/// A register's name, or its number if it has none.
#[derive(Debug, Clone, Copy)]
pub struct Name(pub u16);

impl Display for Name {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match find(self.0) {
            Some(Row { name, numbered: Some(from), first, .. }) => write!(f, "{name}{}", from + self.0 - first),
            Some(row) => f.write_str(row.name),
            None => write!(f, "{:#x}", self.0),
        }
    }
}
