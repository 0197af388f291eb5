//! One RAM block: a name, a place in the space of all RAM, and the memory.
//!
//! Accesses here are raw: bounds-checked, and nothing more. They mark no page dirty and invalidate no code; MARK-1 is
//! the business of whoever calls them.

use super::mapping::{Failure, HUGE, Mapping, Request};
use super::offsets::Lease;
use super::{RamError, RamList, access};
use crate::addr::{PAGE_SIZE, PageRange, RamAddr};
use crate::sync::{AtomicU64, Ordering};
use core::fmt;
use core::ops::Range;
use std::os::fd::BorrowedFd;

/// What a block is like.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct RamFlags(u8);

impl RamFlags {
    /// ROM: guest stores are discarded. The host may still write it; it is how a ROM gets its content.
    pub const READONLY: Self = Self(1);
    /// Backed by a memfd, so that another process can map it.
    pub const SHARED: Self = Self(2);
    /// Huge pages were asked for, and the host agreed to try.
    pub const HUGE_PAGES: Self = Self(4);
    /// Lies inside the window of host addresses that was asked for.
    pub const NEAR: Self = Self(8);

    /// Whether all of `other` hold.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    const fn with(self, other: Self, on: bool) -> Self {
        Self(if on { self.0 | other.0 } else { self.0 })
    }
}

impl fmt::Debug for RamFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [
            (Self::READONLY, "READONLY"),
            (Self::SHARED, "SHARED"),
            (Self::HUGE_PAGES, "HUGE_PAGES"),
            (Self::NEAR, "NEAR"),
        ];
        let mut set = f.debug_set();
        for (_, name) in all.iter().filter(|(flag, _)| self.contains(*flag)) {
            set.entry(&format_args!("{name}"));
        }
        set.finish()
    }
}

/// What a new block should be like.
#[derive(Clone, Debug)]
#[must_use = "a spec is nothing until it is given to RamList::add"]
pub struct RamBlockSpec {
    idstr: String,
    used_length: u64,
    max_length: Option<u64>,
    readonly: bool,
    shared: bool,
    near: Option<Range<u64>>,
    huge_pages: Option<bool>,
}

impl RamBlockSpec {
    /// A block `idstr` (1 to 255 bytes, unique in its list) of `used_length` bytes, a multiple of the page size.
    pub fn new(idstr: impl Into<String>, used_length: u64) -> Self {
        Self {
            idstr: idstr.into(),
            used_length,
            max_length: None,
            readonly: false,
            shared: false,
            near: None,
            huge_pages: None,
        }
    }

    /// Reserves room to grow; without this, just the used length.
    pub fn max_length(mut self, bytes: u64) -> Self {
        self.max_length = Some(bytes);
        self
    }

    /// Guest stores are discarded.
    pub fn readonly(mut self, on: bool) -> Self {
        self.readonly = on;
        self
    }

    /// Backed by a memfd.
    pub fn shared(mut self, on: bool) -> Self {
        self.shared = on;
        self
    }

    /// Host addresses that the whole block should lie in, if there is room.
    pub fn near(mut self, window: Range<u64>) -> Self {
        self.near = Some(window);
        self
    }

    /// Whether to ask for huge pages; without this, yes for blocks of at least one huge page.
    pub fn huge_pages(mut self, on: bool) -> Self {
        self.huge_pages = Some(on);
        self
    }

    /// The name asked for.
    pub(super) fn idstr(&self) -> &str {
        &self.idstr
    }

    /// Checks all that can be checked without a list, and tells the length to reserve.
    pub(super) fn check(&self) -> Result<u64, RamError> {
        let max = self.max_length.unwrap_or(self.used_length);
        if !(1..=255).contains(&self.idstr.len()) {
            return Err(RamError::IdLength { len: self.idstr.len() });
        }
        for (what, length) in [("used length", self.used_length), ("maximum length", max)] {
            if length == 0 || !length.is_multiple_of(PAGE_SIZE) {
                let idstr = self.idstr.clone();
                return Err(RamError::OddLength { idstr, what, length, page: PAGE_SIZE });
            }
        }
        if self.used_length > max {
            return Err(RamError::UsedOverMax { idstr: self.idstr.clone(), used: self.used_length, max });
        }
        Ok(max)
    }
}

/// Which block of which list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Home {
    /// The list's number; no two lists of a process share one.
    pub(super) list: u64,
    /// The block's number in it; no two blocks of a list ever share one.
    pub(super) slot: u32,
}

/// A block of guest RAM or ROM. Made by [`RamList::add`](super::RamList::add); its memory lives until the last `Arc`
/// is gone.
pub struct RamBlock {
    idstr: String,
    home: Home,
    /// Written by resizes, with Release, once the memory is there; a reader's Acquire sees a length that is mapped.
    used_length: AtomicU64,
    max_length: u64,
    flags: RamFlags,
    // Before the lease: the memory goes first, then its addresses may be used again (RAM-1).
    mapping: Mapping,
    lease: Lease,
}

impl RamBlock {
    /// Maps the memory of `spec`, which `check` found good with `max_length`.
    pub(super) fn map(spec: RamBlockSpec, max_length: u64, lease: Lease, home: Home) -> Result<Self, RamError> {
        let request = Request {
            name: &spec.idstr,
            used: spec.used_length,
            max: max_length,
            shared: spec.shared,
            near: spec.near,
            huge_pages: spec.huge_pages.unwrap_or(spec.used_length >= HUGE),
        };
        let mapping = match Mapping::new(&request) {
            Ok(mapping) => mapping,
            Err(Failure { doing, source }) => {
                return Err(RamError::Host { idstr: spec.idstr, doing, length: max_length, source });
            }
        };
        let flags = RamFlags::default()
            .with(RamFlags::READONLY, spec.readonly)
            .with(RamFlags::SHARED, spec.shared)
            .with(RamFlags::HUGE_PAGES, mapping.is_huge())
            .with(RamFlags::NEAR, mapping.is_near());
        let used_length = AtomicU64::new(spec.used_length);
        Ok(Self { idstr: spec.idstr, home, used_length, max_length, flags, mapping, lease })
    }

    /// The block's name.
    pub fn idstr(&self) -> &str {
        &self.idstr
    }

    /// The block's number, by which a dirty ring names it. Its list gives no number out twice, so an entry of a block
    /// that is gone is recognised.
    pub fn slot(&self) -> u32 {
        self.home.slot
    }

    /// Whether `list` made this block. An offset or a slot means something in its own list only.
    pub fn belongs_to(&self, list: &RamList) -> bool {
        self.home.list == list.id()
    }

    /// Where the block starts in the space of all RAM; a multiple of 512 pages (SUM-1).
    pub fn offset(&self) -> RamAddr {
        self.lease.start()
    }

    /// How many bytes are memory now. They stay mapped as long as the block lives, also if this shrinks.
    #[inline]
    pub fn used_length(&self) -> u64 {
        self.used_length.load(Ordering::Acquire)
    }

    /// How many bytes are reserved.
    pub fn max_length(&self) -> u64 {
        self.max_length
    }

    /// What the block is like.
    pub fn flags(&self) -> RamFlags {
        self.flags
    }

    /// Whether guest stores are discarded.
    pub fn is_readonly(&self) -> bool {
        self.flags.contains(RamFlags::READONLY)
    }

    /// The pages of the used length.
    pub fn pages(&self) -> PageRange {
        PageRange::of_bytes(self.offset(), self.used_length())
    }

    /// Where the memory is. Stays so as long as the block lives; `used_length` bytes may be accessed, by raw pointer
    /// and atomically or volatile only, since a guest may write them at any time.
    pub fn host(&self) -> *mut u8 {
        self.mapping.host().as_ptr()
    }

    /// The memfd of a shared block.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.mapping.fd()
    }

    /// The host addresses that belong to the block, guards included. Only the used part is accessible.
    pub fn reserved(&self) -> Range<u64> {
        self.mapping.reserved()
    }

    /// Copies bytes out.
    pub fn read_bytes(&self, off: u64, to: &mut [u8]) -> Result<(), RamError> {
        let from = self.at(off, to.len() as u64)?;
        // SAFETY: `at` checked that the bytes are inside the used length, which is mapped as long as `self` lives.
        unsafe { access::copy_out(from, to) };
        Ok(())
    }

    /// Copies bytes in. Marks nothing.
    pub fn write_bytes(&self, off: u64, from: &[u8]) -> Result<(), RamError> {
        let to = self.at(off, from.len() as u64)?;
        // SAFETY: as in `read_bytes`; the used length is writable.
        unsafe { access::copy_in(to, from) };
        Ok(())
    }

    /// Sets `len` bytes to `value`. Marks nothing.
    pub fn fill(&self, off: u64, len: u64, value: u8) -> Result<(), RamError> {
        let to = self.at(off, len)?;
        // SAFETY: as in `write_bytes`; a length inside a mapping fits usize.
        unsafe { access::fill(to, len as usize, value) };
        Ok(())
    }

    /// Loads 1, 2, 4 or 8 little-endian bytes, zero-extended; not torn if aligned.
    pub fn load(&self, off: u64, bytes: u32) -> Result<u64, RamError> {
        width(bytes)?;
        let at = self.at(off, bytes.into())?;
        // SAFETY: as in `read_bytes`.
        Ok(unsafe { access::load(at, bytes) })
    }

    /// Stores the low 1, 2, 4 or 8 bytes of `value`, little-endian; not torn if aligned. Marks nothing.
    pub fn store(&self, off: u64, bytes: u32, value: u64) -> Result<(), RamError> {
        width(bytes)?;
        let at = self.at(off, bytes.into())?;
        // SAFETY: as in `write_bytes`.
        unsafe { access::store(at, bytes, value) };
        Ok(())
    }

    /// The host address of `len` bytes at `off`, if all of them are in use.
    #[inline]
    fn at(&self, off: u64, len: u64) -> Result<*mut u8, RamError> {
        match off.checked_add(len) {
            Some(end) if end <= self.used_length() => Ok(self.host().wrapping_add(off as usize)),
            _ => Err(self.out_of_bounds(off, len)),
        }
    }

    #[cold]
    fn out_of_bounds(&self, off: u64, len: u64) -> RamError {
        RamError::OutOfBounds { idstr: self.idstr.clone(), off, len, used: self.used_length() }
    }
}

/// Refuses a width that no access has.
fn width(bytes: u32) -> Result<(), RamError> {
    if matches!(bytes, 1 | 2 | 4 | 8) { Ok(()) } else { Err(RamError::Width { bytes }) }
}

impl fmt::Debug for RamBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RamBlock")
            .field("idstr", &self.idstr)
            .field("slot", &self.slot())
            .field("offset", &self.offset())
            .field("used_length", &format_args!("{:#x}", self.used_length()))
            .field("max_length", &format_args!("{:#x}", self.max_length))
            .field("host", &self.host())
            .field("flags", &self.flags)
            .finish()
    }
}
