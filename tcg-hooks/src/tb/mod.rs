//! Translated blocks: what they are, where they are found, how they die.
//!
//! ```text
//!   TbCache ── by key: (ram address, pc, flags, instrumentation) ─▶ TbId     cache.rs
//!           ├─ jumps: pc ─▶ host code, behind the jump cache                  jumps.rs
//!           ├─ regimes: which of those, by mode and address space             regimes.rs
//!           ├─ pages: RAM page ─▶ [(TbId, its 64-byte lines)]                pages.rs
//!           ├─ exits and incoming links of each Tb                           chain.rs
//!           ├─ invalidate(bytes): everything that overlaps dies              invalidate.rs
//!           ├─ hot: TBs that tier 2 is to make                                hot.rs
//!           ├─ odd, beside: sites with code made for what they do             sites.rs
//!           └─ provisional: bytes to be compared once every vCPU answered    provisional.rs
//! ```
//!
//! Keeps TB-1: all of this belongs to one vCPU and is touched by its thread only. Others post kills.
mod cache;
mod chain;
#[cfg(any(test, feature = "testkit"))]
mod check;
mod ghosts;
mod hot;
mod invalidate;
mod jumps;
mod pages;
mod provisional;
mod regimes;
mod show;
mod sites;

pub use cache::TbStats;
pub(crate) use cache::{Found, TbCache};
pub(crate) use regimes::Regime;
pub(crate) use sites::SiteSet;

use crate::ir::{Region, Site, Span};
use crate::jit::Way;
use crate::jit::code_cache::CodeOffset;
use notdirty_core::{PageIndex, RamAddr};
use smallvec::SmallVec;

/// Number of a TB in its cache; used again after its death.
pub(crate) type TbId = u32;

/// What makes two translations the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TbKey {
    /// Where the first byte is in all RAM.
    pub ram: RamAddr,
    /// The guest address it is executed at.
    pub pc: u64,
    /// What the translation assumed of the hart: its mode (`Mode::index`), and whether addresses
    /// are translated (4); M-mode without is 0.
    pub flags: u32,
    /// Which set of hooks was compiled in; 0 is none.
    pub instrumentation: u32,
}

/// A way out of a TB.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Exit {
    pub(crate) way: Way,
    /// A poll gives back this many instructions.
    pub(crate) refund: u16,
    /// The TB it is linked to.
    to: Option<TbId>,
    /// Where that TB lists it among its incoming exits.
    place: u32,
}

impl Exit {
    /// Is it one that leads nowhere, as what is checked at the entry did not hold?
    pub(crate) fn is_refusal(&self) -> bool {
        self.way.field == 0 && self.refund == 0
    }
}

/// What the tables hold of a TB: two thirds of a key, with its number, in use; a third of an entry of the table of jumps;
/// its places in the lists of its page and chunk; its number's slot, and its box's overhead.
const LISTED: usize = (size_of::<(TbKey, TbId)>() + 1) * 3 / 2 + 3 * 16 + 32 + 24;

/// One translated region.
#[derive(Debug)]
pub(crate) struct Tb {
    pub(crate) key: TbKey,
    /// Where it is entered.
    pub(crate) entry: CodeOffset,
    /// Its code: start and length.
    pub(crate) code: (CodeOffset, u32),
    /// Which chunk of the code cache holds it.
    chunk: usize,
    /// Where it is in that chunk's list of TBs.
    place: u32,
    /// Instructions that had retired when it was made.
    born: u64,
    /// Never another's.
    serial: u64,
    /// Slices that ended here.
    samples: u8,
    /// The RAM pages of its bytes: that of the entry, and the next one.
    pub(crate) pages: (PageIndex, Option<PageIndex>),
    /// The bytes it was made from.
    pub(crate) spans: SmallVec<[Span; 4]>,
    /// Those bytes, span by span; nothing, if they did not stand still.
    pub(super) bytes: Vec<u8>,
    pub(crate) sites: Vec<Site>,
    pub(crate) exits: Vec<Exit>,
    /// Numbers of the exits, of others or its own, that are linked to it, in no order: an exit knows its place here.
    incoming: SmallVec<[u32; 4]>,
}

impl Tb {
    /// Memory for one.
    fn empty(key: TbKey, pages: (PageIndex, Option<PageIndex>)) -> Tb {
        Tb {
            key,
            pages,
            entry: 0,
            code: (0, 0),
            chunk: 0,
            place: 0,
            born: 0,
            serial: 0,
            samples: 0,
            spans: SmallVec::new(),
            bytes: Vec::new(),
            sites: Vec::new(),
            exits: Vec::new(),
            incoming: SmallVec::new(),
        }
    }

    /// Becomes what was made of a region.
    fn renew(&mut self, region: &Region, exits: impl ExactSizeIterator<Item = Exit>) {
        self.sites.clear();
        self.sites.reserve_exact(region.sites.len());
        self.exits.clear();
        self.exits.reserve_exact(exits.len());
        self.spans.clear();
        self.spans.extend_from_slice(&region.spans);
        self.sites.extend_from_slice(&region.sites);
        self.exits.extend(exits);
        self.incoming.clear();
    }
    /// Bytes that are kept of it beside its code, here and in the tables and lists that name it.
    fn kept(&self) -> usize {
        // A link is listed where it leads to.
        let exit = size_of::<Exit>() + size_of::<u32>();
        let spans = if self.spans.spilled() { self.spans.capacity() * size_of::<Span>() } else { 0 };
        LISTED
            + self.bytes.capacity()
            + size_of::<Tb>()
            + self.sites.capacity() * size_of::<Site>()
            + self.exits.capacity() * exit
            + spans
    }
}
