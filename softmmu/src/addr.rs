//! Addresses and sizes as the guest means them: before the page walk, after it, and how wide.

use notdirty_core::PAGE_SIZE;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The address with this number.
            #[inline]
            pub const fn new(raw: u64) -> Self {
                $name(raw)
            }
            /// The number of this address.
            #[inline]
            pub const fn get(self) -> u64 {
                self.0
            }
            /// Place inside the 4 KiB page.
            #[inline]
            pub const fn page_offset(self) -> u64 {
                self.0 & (PAGE_SIZE - 1)
            }
            /// First byte of the page.
            #[inline]
            pub const fn page_base(self) -> Self {
                $name(self.0 & !(PAGE_SIZE - 1))
            }
            /// The address `n` bytes further, modulo the address space, as guest arithmetic has it.
            #[inline]
            pub const fn wrapping_add(self, n: u64) -> Self {
                $name(self.0.wrapping_add(n))
            }
            /// The address `n` bytes further, if the address space reaches that far.
            #[inline]
            pub const fn checked_add(self, n: u64) -> Option<Self> {
                match self.0.checked_add(n) {
                    Some(raw) => Some($name(raw)),
                    None => None,
                }
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address! {
    /// An address as an instruction computes it: before the page walk.
    GuestVirt
}
address! {
    /// An address on the guest's bus: after the page walk.
    GuestPhys
}

/// The translation regime of an access: the privilege that it is made with. Each has translations of its own; an embedder may use
/// other numbers than these.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MmuIdx(pub u8);

impl MmuIdx {
    /// User mode.
    pub const U: MmuIdx = MmuIdx(0);
    /// Supervisor mode.
    pub const S: MmuIdx = MmuIdx(1);
    /// Machine mode: one address space. [`Hooks::translate`](crate::Hooks::translate) is asked here too, for what protection says; what
    /// it answered is forgotten by [`LiveMmu::flush_tlb`](crate::LiveMmu::flush_tlb) only.
    pub const M: MmuIdx = MmuIdx(3);
}

/// Width of one access; the discriminant is the logarithm.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum MemSize {
    /// One byte.
    B1 = 0,
    /// Two bytes.
    B2 = 1,
    /// Four bytes.
    B4 = 2,
    /// Eight bytes.
    B8 = 3,
}

impl MemSize {
    /// All sizes, narrowest first.
    pub const ALL: [MemSize; 4] = [MemSize::B1, MemSize::B2, MemSize::B4, MemSize::B8];

    /// Width in bytes.
    #[inline]
    pub const fn bytes(self) -> u64 {
        1 << self as u8
    }
    /// The size with `1 << log2` bytes; `None` above 3.
    #[inline]
    pub const fn from_log2(log2: u8) -> Option<MemSize> {
        match log2 {
            0 => Some(MemSize::B1),
            1 => Some(MemSize::B2),
            2 => Some(MemSize::B4),
            3 => Some(MemSize::B8),
            _ => None,
        }
    }
    /// The widest size of at most `bytes` bytes (`bytes` is at least 1).
    #[inline]
    pub(crate) const fn at_most(bytes: u64) -> MemSize {
        match bytes {
            0 | 1 => MemSize::B1,
            2 | 3 => MemSize::B2,
            4..=7 => MemSize::B4,
            _ => MemSize::B8,
        }
    }
    /// All value bits of this width.
    #[inline]
    pub const fn mask(self) -> u64 {
        u64::MAX >> (64 - 8 * self.bytes())
    }
}
