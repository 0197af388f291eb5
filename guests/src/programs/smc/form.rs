//! What a program is built for: a cache model, and the mode that it runs in.

/// What the program may expect of the instruction cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheModel {
    /// The very next instruction sees a write.
    #[default]
    Coherent,
    /// Old or new until `fence.i`, new after it: what the ISA promises.
    FenceI,
}

/// The mode that the program runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Machine mode, all addresses physical.
    #[default]
    Machine,
    /// Supervisor mode under Sv39, in pages of 4 KiB: `supervisor.rs`.
    Supervisor,
}

/// Both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Form {
    /// The cache model.
    pub cache: CacheModel,
    /// The mode.
    pub mode: Mode,
}

/// The CSRs of a trap, as machine mode and supervisor mode both have them: the lower digits of their numbers.
#[derive(Debug, Clone, Copy)]
pub(super) enum TrapCsr {
    Tvec = 0x05,
    Epc = 0x41,
    Cause = 0x42,
    Tval = 0x43,
}

/// Numbers of registers, for instructions that are put together here.
pub(super) const T0: u32 = 5;
pub(super) const A0: u32 = 10;

impl Form {
    /// A program of the coherent model in machine mode.
    pub const PLAIN: Form = Form { cache: CacheModel::Coherent, mode: Mode::Machine };

    /// What stands between a write and its use.
    pub(super) fn sync(self) -> &'static [u8] {
        match self.cache {
            CacheModel::Coherent => &[],
            CacheModel::FenceI => &[0x0f, 0x10, 0, 0],
        }
    }

    fn csr(self, csr: TrapCsr) -> u32 {
        let base = match self.mode {
            Mode::Machine => 0x300,
            Mode::Supervisor => 0x100,
        };
        (base | csr as u32) << 20
    }

    /// `csrw` of the mode's own CSR.
    pub(super) fn csrw(self, csr: TrapCsr, from: u32) -> u32 {
        self.csr(csr) | from << 15 | 0x1073
    }

    /// `csrr` of the mode's own CSR.
    pub(super) fn csrr(self, to: u32, csr: TrapCsr) -> u32 {
        self.csr(csr) | to << 7 | 0x2073
    }

    /// `mret` or `sret`.
    pub(super) fn ret(self) -> u32 {
        match self.mode {
            Mode::Machine => 0x3020_0073,
            Mode::Supervisor => 0x1020_0073,
        }
    }
}
