//! From a virtual address to a physical page, by the page tables of the privileged specification 1.13: Bare, Sv39, Sv48 and
//! Sv57 with superpages, Svnapot, Svpbmt (types are accepted, and mean nothing here), A and D by the walk (Svadu) or by a
//! fault (Svade).
//!
//! ```text
//!   va   63 ····· │ vpn[levels-1] │ ··· │ vpn[0] │ offset        bits above the first vpn repeat its sign
//!                        │                                       or nothing has this address: page fault
//!         root ─▶ table ─┴─▶ entry ─▶ table ─▶ ··· ─▶ leaf ─▶ page
//!
//!   entry  63 │ 62..61 │ 60..54   │ 53..10 │ 9..8 │ 7 6 5 4 3 2 1 0
//!          N  │ PBMT   │ reserved │ ppn    │ RSW  │ D A G U X W R V
//! ```
//!
//! The tables are read and changed by a [`Tables`], so a walk is a function of them alone. The implementor decides what a
//! walk may touch (PMP, devices, holes), and sets the dirty bits of its stores. A and D are set by a compare-and-swap of the entry
//! that was read; if another hart changed it meanwhile, the entry is looked at again.
//!
//! What comes back holds for the page and for these registers as long as the tables do, and is what a TLB may keep: stores are
//! among the rights only if D is set, so the first store to a page that was loaded from walks again.

use notdirty_softmmu::{AccessKind, FaultCause, Rights};

/// How addresses are translated; the number is `satp.MODE`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u8)]
pub enum Scheme {
    /// They are physical.
    #[default]
    Bare = 0,
    /// Three levels, 39 bits.
    Sv39 = 8,
    /// Four levels, 48 bits.
    Sv48 = 9,
    /// Five levels, 57 bits.
    Sv57 = 10,
}

impl Scheme {
    /// The scheme of a value of `satp`; `None` if its mode is reserved.
    pub const fn of_satp(satp: u64) -> Option<Scheme> {
        match satp >> 60 {
            0 => Some(Scheme::Bare),
            8 => Some(Scheme::Sv39),
            9 => Some(Scheme::Sv48),
            10 => Some(Scheme::Sv57),
            _ => None,
        }
    }

    /// Levels of tables.
    pub const fn levels(self) -> u32 {
        match self {
            Scheme::Bare => 0,
            Scheme::Sv39 => 3,
            Scheme::Sv48 => 4,
            Scheme::Sv57 => 5,
        }
    }
}

/// What decides over an access beside the tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Regime {
    /// `satp.MODE`.
    pub scheme: Scheme,
    /// `satp.PPN`.
    pub root: u64,
    /// By U-mode; else by S-mode. M-mode does not walk.
    pub user: bool,
    /// `mstatus.SUM`: S-mode may load from and store to pages of U-mode.
    pub sum: bool,
    /// `mstatus.MXR`: what can be fetched can be loaded.
    pub mxr: bool,
    /// `menvcfg.ADUE`: a walk sets A and D; else their absence is a page fault.
    pub adue: bool,
    /// `menvcfg.PBMTE`: entries may have memory types.
    pub pbmte: bool,
}

/// The memory that page tables lie in, by physical addresses, which are multiples of eight.
pub trait Tables {
    /// The entry there; `None` if a walk may not read there.
    fn read(&mut self, at: u64) -> Option<u64>;
    /// Replaces `old` by `new`, atomically; `Some(false)` if it is `old` no more, `None` if a walk may not write there.
    fn replace(&mut self, at: u64, old: u64, new: u64) -> Option<bool>;
}

/// Where a virtual address leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// The physical 4 KiB page.
    pub page: u64,
    /// Logarithm of what one leaf maps: 12 to 48.
    pub size_log2: u8,
    /// What the regime may do there without another walk. The access that was asked for is among them.
    pub rights: Rights,
    /// In every address space.
    pub global: bool,
}

const PAGE_BITS: u32 = 12;
const VPN_BITS: u32 = 9;
const V: u64 = 1 << 0;
const R: u64 = 1 << 1;
const W: u64 = 1 << 2;
const X: u64 = 1 << 3;
const U: u64 = 1 << 4;
const G: u64 = 1 << 5;
const A: u64 = 1 << 6;
const D: u64 = 1 << 7;
const RESERVED: u64 = 0x7f << 54;
const PBMT: u64 = 3 << 61;
const N: u64 = 1 << 63;
/// What an entry that leads to another table has not.
const NOT_OF_TABLES: u64 = A | D | U | N | PBMT | RESERVED;
/// Svnapot knows one size, 16 pages: what the low bits of its ppn are.
const NAPOT_64K: u64 = 0b1000;
const NAPOT_BITS: u32 = 4;

const fn ppn(entry: u64) -> u64 {
    entry >> 10 & ((1 << 44) - 1)
}

/// Translates `va` for an access of `kind`.
///
/// # Errors
/// [`FaultCause::Page`]: the tables refuse it. [`FaultCause::Access`]: they cannot be read or written.
pub fn walk(tables: &mut impl Tables, regime: Regime, va: u64, kind: AccessKind) -> Result<Leaf, FaultCause> {
    let levels = regime.scheme.levels();
    if levels == 0 {
        let page = va >> PAGE_BITS << PAGE_BITS;
        return Ok(Leaf { page, size_log2: PAGE_BITS as u8, rights: Rights::ALL, global: false });
    }
    let unused = 64 - (PAGE_BITS + VPN_BITS * levels);
    if (va << unused) as i64 >> unused != va as i64 {
        return Err(FaultCause::Page);
    }
    let (mut table, mut shift, mut above) = (regime.root << PAGE_BITS, PAGE_BITS + VPN_BITS * (levels - 1), 0);
    loop {
        let at = table | (va >> shift & ((1 << VPN_BITS) - 1)) << 3;
        let entry = tables.read(at).ok_or(FaultCause::Access)?;
        if entry & (V | R | W | X | NOT_OF_TABLES) == V && shift != PAGE_BITS {
            above |= entry;
            (table, shift) = (ppn(entry) << PAGE_BITS, shift - VPN_BITS);
            continue;
        }
        // Another entry that leads to a table is refused as a leaf that permits nothing.
        let size = leaf_size(regime, entry, shift).ok_or(FaultCause::Page)?;
        let rights = permitted(regime, entry);
        if !rights.has(kind) {
            return Err(FaultCause::Page);
        }
        let wanted = entry | A | if kind == AccessKind::Store { D } else { 0 };
        if entry != wanted {
            if !regime.adue {
                return Err(FaultCause::Page);
            }
            if !tables.replace(at, entry, wanted).ok_or(FaultCause::Access)? {
                // Another hart changed it: what is there now may be anything, another table too.
                continue;
            }
        }
        let inside = (1u64 << size) - 1;
        let page = ((ppn(entry) << PAGE_BITS) & !inside | va & inside) >> PAGE_BITS << PAGE_BITS;
        let rights = Rights { store: rights.store && wanted & D != 0, ..rights };
        return Ok(Leaf { page, size_log2: size as u8, rights, global: (above | entry) & G != 0 });
    }
}

/// What is wrong with the entry that a walk ended at, in words.
pub(super) fn refusal(regime: Regime, entry: u64, level: u32, kind: AccessKind) -> &'static str {
    if entry & V == 0 {
        return "not valid";
    }
    if entry & (R | W | X) == 0 {
        return if level == 0 { "leads to a table below the last" } else { "leads to a table, and has other bits" };
    }
    if entry & (R | W) == W {
        return "may be written, but not read";
    }
    if leaf_size(regime, entry, PAGE_BITS + VPN_BITS * level).is_none() {
        let odd = entry & (N | PBMT | RESERVED) != 0;
        return if odd { "has bits that are reserved" } else { "a superpage that is not aligned" };
    }
    let rights = permitted(regime, entry);
    match kind {
        _ if entry & U != 0 && !regime.user && (!regime.sum || kind == AccessKind::Fetch) => "of U-mode",
        _ if entry & U == 0 && regime.user => "not of U-mode",
        AccessKind::Load if !rights.load => "not to be loaded from",
        AccessKind::Store if !rights.store => "not to be stored to",
        AccessKind::Fetch if !rights.fetch => "not to be fetched from",
        _ if entry & A == 0 => "A is clear",
        AccessKind::Store if entry & D == 0 => "D is clear",
        _ => "allows it by now",
    }
}

/// The size that a leaf which stands for `1 << shift` bytes maps, as a logarithm; `None` if it is not valid.
#[inline]
fn leaf_size(regime: Regime, entry: u64, shift: u32) -> Option<u32> {
    if entry & V == 0 || entry & (R | W) == W {
        return None;
    }
    if entry & (N | PBMT | RESERVED) != 0 {
        return rare_size(regime, entry, shift);
    }
    (ppn(entry) & ((1 << (shift - PAGE_BITS)) - 1) == 0).then_some(shift)
}

/// The same of one with bits of an extension.
#[cold]
fn rare_size(regime: Regime, entry: u64, shift: u32) -> Option<u32> {
    let types = (entry & PBMT).count_ones();
    let types_ok = types == 0 || regime.pbmte && types == 1;
    if entry & RESERVED != 0 || !types_ok {
        return None;
    }
    if entry & N != 0 {
        let low = ppn(entry) & ((1 << NAPOT_BITS) - 1);
        return (shift == PAGE_BITS && low == NAPOT_64K).then_some(PAGE_BITS + NAPOT_BITS);
    }
    (ppn(entry) & ((1 << (shift - PAGE_BITS)) - 1) == 0).then_some(shift)
}

/// What a valid leaf permits, A and D aside.
#[inline]
fn permitted(regime: Regime, entry: u64) -> Rights {
    let of_user = entry & U != 0;
    let data = of_user == regime.user || of_user && regime.sum;
    Rights {
        load: data && (entry & R != 0 || regime.mxr && entry & X != 0),
        store: data && entry & W != 0,
        fetch: of_user == regime.user && entry & X != 0,
    }
}
