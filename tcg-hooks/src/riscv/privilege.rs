//! The privilege modes of a hart.
use super::Op;
use super::csr::{envcfg, mstatus};
use crate::cpu::CpuState;
use core::fmt::{self, Display, Formatter};

/// A privilege mode; a greater one may do more.
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Privilege {
    /// User.
    U = 0,
    /// Supervisor.
    S = 1,
    /// Machine: where a hart is after reset.
    #[default]
    M = 3,
}

impl Privilege {
    /// All of them, the machine's first: by [`Privilege::index`].
    pub const ALL: [Privilege; 3] = [Privilege::M, Privilege::S, Privilege::U];

    /// That after reset.
    pub(crate) const FIRST: Privilege = Privilege::M;

    /// What the two bits of a field such as `mstatus.MPP` mean. The reserved value is U.
    pub const fn from_bits(bits: u64) -> Privilege {
        match bits & 3 {
            3 => Privilege::M,
            1 => Privilege::S,
            _ => Privilege::U,
        }
    }

    /// Its bits in such a field.
    pub const fn bits(self) -> u64 {
        self as u64
    }

    /// What is said behind a pc, where M-mode goes without saying: ` in S-mode`.
    pub const fn beside_pc(self) -> &'static str {
        match self {
            Privilege::M => "",
            Privilege::S => " in S-mode",
            Privilege::U => " in U-mode",
        }
    }

    /// Its place in [`Privilege::ALL`]: M is 0, so that what is made for a hart without other modes has no mode at all.
    pub const fn index(self) -> usize {
        match self {
            Privilege::M => 0,
            Privilege::S => 1,
            Privilege::U => 2,
        }
    }
}

impl CpuState {
    /// May an instruction that exists be executed in the hart's mode, as things are? Of those that a mode may be denied;
    /// CSRs and the floating-point unit have rules of their own.
    #[inline]
    pub fn may_execute(&self, op: Op) -> bool {
        let (mode, status) = (self.privilege, self.csr.mstatus);
        let in_s = |trapped: u64| mode == Privilege::M || mode == Privilege::S && status & trapped == 0;
        match op {
            Op::Mret => mode == Privilege::M,
            Op::Sret => in_s(mstatus::TSR),
            // U-mode waits for no time at all.
            Op::Wfi => in_s(mstatus::TW),
            Op::SfenceVma | Op::SinvalVma => in_s(mstatus::TVM),
            Op::SfenceWInval | Op::SfenceInvalIr => in_s(0),
            Op::CboInval => self.is_granted(envcfg::CBIE),
            Op::CboClean | Op::CboFlush => self.is_granted(envcfg::CBCFE),
            Op::CboZero => self.is_granted(envcfg::CBZE),
            _ => true,
        }
    }

    /// Have the modes above set a bit of this field?
    fn is_granted(&self, field: u64) -> bool {
        let granted = |word: u64| word & field != 0;
        match self.privilege {
            Privilege::M => true,
            Privilege::S => granted(self.csr.menvcfg),
            Privilege::U => granted(self.csr.menvcfg) && granted(self.csr.senvcfg),
        }
    }
}

/// `M-mode`.
impl Display for Privilege {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}-mode")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_ordered_numbered_and_named() {
        assert!(Privilege::M > Privilege::S && Privilege::S > Privilege::U);
        for (index, mode) in Privilege::ALL.into_iter().enumerate() {
            assert_eq!((mode.index(), Privilege::from_bits(mode.bits())), (index, mode));
        }
        assert_eq!(Privilege::from_bits(2), Privilege::U);
        assert_eq!(Privilege::S.to_string(), "S-mode");
    }
}
