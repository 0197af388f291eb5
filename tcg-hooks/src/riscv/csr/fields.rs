//! What the bits of registers mean.

/// Fields of `mstatus`, and of `sstatus`, which is a part of it.
pub mod mstatus {
    /// Interrupts are enabled in S-mode.
    pub const SIE: u64 = 1 << 1;
    /// Interrupts are enabled in M-mode.
    pub const MIE: u64 = 1 << 3;
    /// What SIE was before the trap.
    pub const SPIE: u64 = 1 << 5;
    /// What MIE was before the trap.
    pub const MPIE: u64 = 1 << 7;
    /// The mode before a trap to S-mode: S, or else U.
    pub const SPP: u64 = 1 << SPP_SHIFT;
    /// Where SPP is.
    pub const SPP_SHIFT: u32 = 8;
    /// The mode before a trap to M-mode.
    pub const MPP: u64 = 3 << MPP_SHIFT;
    /// Where MPP begins.
    pub const MPP_SHIFT: u32 = 11;
    /// The state of the floating-point unit: off, initial, clean, dirty.
    pub const FS: u64 = 3 << 13;
    /// FS: on, and as after reset.
    pub const FS_INITIAL: u64 = 1 << 13;
    /// The state of further extensions: there are none.
    pub const XS: u64 = 3 << 15;
    /// Loads and stores are made as in the mode MPP.
    pub const MPRV: u64 = 1 << 17;
    /// S-mode reaches pages of U-mode.
    pub const SUM: u64 = 1 << 18;
    /// What may be executed may be read.
    pub const MXR: u64 = 1 << 19;
    /// `satp` and the fences of translation are illegal in S-mode.
    pub const TVM: u64 = 1 << 20;
    /// `wfi` is illegal below M-mode.
    pub const TW: u64 = 1 << 21;
    /// `sret` is illegal in S-mode.
    pub const TSR: u64 = 1 << 22;
    /// Registers of U-mode have 64 bits, always.
    pub const UXL: u64 = 2 << 32;
    /// Registers of S-mode have 64 bits, always.
    pub const SXL: u64 = 2 << 34;
    /// Some state is dirty: FS is.
    pub const SD: u64 = 1 << 63;
    /// What `sstatus` shows.
    pub const SSTATUS: u64 = SIE | SPIE | SPP | FS | XS | SUM | MXR | 3 << 32 | SD;
    /// Interrupts off, no MPRV. The mode before, which the manual leaves open, is U: so it is in QEMU and Spike, and upstream's tests
    /// set it without clearing it.
    pub(in super::super) const RESET: u64 = UXL | SXL;
}

/// Bits of `mie`, `mip`, and `mideleg`.
pub mod irq {
    /// Supervisor software interrupt.
    pub const SSI: u64 = 1 << 1;
    /// Machine software interrupt.
    pub const MSI: u64 = 1 << 3;
    /// Supervisor timer interrupt.
    pub const STI: u64 = 1 << 5;
    /// Machine timer interrupt.
    pub const MTI: u64 = 1 << 7;
    /// Supervisor external interrupt.
    pub const SEI: u64 = 1 << 9;
    /// Machine external interrupt.
    pub const MEI: u64 = 1 << 11;
    /// Those of S-mode, which can be delegated to it.
    pub const SUPERVISOR: u64 = SSI | STI | SEI;
    /// All that there are.
    pub const ALL: u64 = MSI | MTI | MEI | SUPERVISOR;
}

/// Fields of `menvcfg` and `senvcfg`: what lower modes may do.
pub mod envcfg {
    /// Fences of device accesses are fences of memory accesses, too.
    pub const FIOM: u64 = 1;
    /// `cbo.inval` is legal: as a flush (1), or as what it is (3).
    pub const CBIE: u64 = 3 << 4;
    /// `cbo.clean` and `cbo.flush` are legal.
    pub const CBCFE: u64 = 1 << 6;
    /// `cbo.zero` is legal.
    pub const CBZE: u64 = 1 << 7;
    /// A walk of page tables sets A and D itself (Svadu). Of `menvcfg` only.
    pub const ADUE: u64 = 1 << 61;
    /// Page tables may give memory types (Svpbmt). Of `menvcfg` only.
    pub const PBMTE: u64 = 1 << 62;
    /// There is `stimecmp` (Sstc). Of `menvcfg` only.
    pub const STCE: u64 = 1 << 63;
    /// What both have.
    pub const SENVCFG: u64 = FIOM | CBIE | CBCFE | CBZE;
    /// What `menvcfg` has.
    pub const MENVCFG: u64 = SENVCFG | ADUE | PBMTE | STCE;
}

/// Fields of `satp`.
pub mod satp {
    /// Where the mode begins.
    pub const MODE_SHIFT: u32 = 60;
    /// The modes that can be set, a bit each: none, Sv39, Sv48, Sv57.
    pub const MODES: u16 = 1 | 1 << 8 | 1 << 9 | 1 << 10;
    /// Where the number of the address space is: 16 bits.
    pub const ASID_SHIFT: u32 = 44;
    /// The page of the root of the page tables.
    pub const PPN: u64 = (1 << ASID_SHIFT) - 1;
}

/// Fields of an entry of `pmpcfg`.
pub mod pmpcfg {
    /// Reads are allowed.
    pub const R: u8 = 1;
    /// Writes are allowed; reserved without R.
    pub const W: u8 = 1 << 1;
    /// Fetches are allowed.
    pub const X: u8 = 1 << 2;
    /// How the address is meant: off, TOR, NA4, NAPOT.
    pub const A: u8 = 3 << 3;
    /// A: up to the address, from that of the entry before.
    pub const TOR: u8 = 1 << 3;
    /// The entry binds M-mode, too, and stands until reset.
    pub const L: u8 = 1 << 7;
    /// The fields that there are.
    pub const ALL: u8 = R | W | X | A | L;
}
