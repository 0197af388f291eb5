//! One RAM block: a name, a place in the space of all RAM, and the memory.
//!
//! What writes here is raw, and says so in its name: bounds-checked, and nothing more. It marks no page dirty and kills no
//! translation; the calls that do are the list's ([`RamList::write`], and the rest of `door.rs`).

use super::mapped::{Leaving, Mapped, MappingError, RamMapping, Shrinking};
use super::mapping::{Failure, HUGE, Mapping, Request, host_page};
use super::offsets::Lease;
use super::spec::{RamBlockSpec, RamFlags, Resized};
use super::{RamError, RamList, access};
use crate::addr::{PAGE_SIZE, PageRange, RamAddr};
use crate::hint::{self, Soon};
use crate::migration::BlockMigration;
use crate::sync::{AtomicU64, Ordering};
use core::fmt;
use core::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU16;

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
///
/// Of what QEMU's structure carries one thing is absent on purpose: `colo_cache`, a second copy of all RAM for a
/// machine that is run twice in lock step. Nothing here runs a machine twice, and a copy of RAM belongs to its keeper.
/// What a migration needs for each block exists only while one does: [`migration`](Self::migration).
pub struct RamBlock {
    idstr: String,
    home: Home,
    /// Written by resizes, with Release, once the memory is there; a reader's Acquire sees a length that is mapped.
    used_length: AtomicU64,
    max_length: u64,
    page_size: u64,
    mapped_page: u64,
    flags: RamFlags,
    /// Flags that hold for a time.
    now: AtomicU16,
    resized: Option<Arc<Resized>>,
    migration: BlockMigration,
    mapped: Mapped,
    // Before the lease: the memory goes first, then its addresses may be used again (RAM-1).
    mapping: Mapping,
    lease: Lease,
}

impl RamBlock {
    /// Maps the memory of `spec`, which `check` found good with `max_length`.
    pub(super) fn map(spec: RamBlockSpec, max_length: u64, lease: Lease, home: Home) -> Result<Self, RamError> {
        let (page_size, mapped_page) = (spec.page_size, spec.mapped_page());
        let request = Request {
            name: &spec.idstr,
            used: spec.used_length,
            max: max_length,
            shared: spec.shared,
            file: spec.file,
            noreserve: spec.noreserve,
            prealloc: spec.prealloc,
            near: spec.near,
            huge_pages: spec.huge_pages.unwrap_or(spec.used_length > HUGE),
        };
        let mapping = Mapping::new(request).map_err(|failure| host_error(&spec.idstr, max_length, failure))?;
        let flags = RamFlags::default()
            .with(RamFlags::READONLY, spec.readonly)
            .with(RamFlags::SHARED, spec.shared)
            .with(RamFlags::HUGE_PAGES, mapping.is_huge())
            .with(RamFlags::NEAR, mapping.is_near())
            .with(RamFlags::RESIZABLE, spec.resizable)
            .with(RamFlags::MIGRATABLE, spec.migratable)
            .with(RamFlags::PREALLOC, spec.prealloc)
            .with(RamFlags::NORESERVE, spec.noreserve || mapping.fd().is_some());
        Ok(Self {
            idstr: spec.idstr,
            home,
            used_length: AtomicU64::new(spec.used_length),
            max_length,
            page_size: page_size.unwrap_or(mapped_page),
            mapped_page,
            flags,
            now: AtomicU16::new(0),
            resized: spec.resized,
            migration: BlockMigration::default(),
            mapped: Mapped::new(spec.used_length),
            mapping,
            lease,
        })
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

    /// Whether the host gives huge pages for what is touched from now on, if this block is to have them. Without, a few pages far apart
    /// take no more memory, and no more time, than they are.
    pub(crate) fn touch_huge(&self, on: bool) {
        self.mapping.touch_huge(on);
    }

    /// Notes one more mapping of the block, of `len` bytes from `off` on. Refused if the block has left its list, as no log
    /// would hear of stores to it, and where it has no memory.
    ///
    /// # Errors
    /// [`MappingError`] if the block has left its list, or has no memory there.
    pub fn mapping(self: &Arc<Self>, off: u64, len: u64) -> Result<RamMapping, MappingError> {
        RamMapping::new(self, off, len)
    }

    pub(super) fn mapped(&self) -> &Mapped {
        &self.mapped
    }

    /// The block leaves its list, unless it is mapped.
    pub(super) fn leave(&self) -> Result<Leaving<'_>, RamError> {
        self.mapped.leave(&self.idstr)
    }

    /// The block is about to have `length` bytes of memory, and no mapping has more.
    pub(super) fn shrink(&self, length: u64) -> Result<Shrinking<'_>, RamError> {
        self.mapped.shrink(&self.idstr, length)
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
        self.flags.with(RamFlags::from_bits(self.now.load(Ordering::Acquire)), true)
    }

    /// A flag holds from here on, or not any more.
    pub(crate) fn set_flag(&self, flag: RamFlags, on: bool) {
        match on {
            true => self.now.fetch_or(flag.bits(), Ordering::AcqRel),
            false => self.now.fetch_and(!flag.bits(), Ordering::AcqRel),
        };
    }

    /// Whether guest stores are discarded.
    pub fn is_readonly(&self) -> bool {
        self.flags.contains(RamFlags::READONLY)
    }

    /// The pages of the used length.
    pub fn pages(&self) -> PageRange {
        PageRange::of_bytes(self.offset(), self.used_length())
    }

    /// Where the memory is: raw, as [`write_raw`](Self::write_raw) is. Stays so as long as the block lives; `used_length` bytes may be accessed, by raw pointer
    /// and atomically or volatile only, since a guest may write them at any time.
    pub fn host(&self) -> *mut u8 {
        self.mapping.host().as_ptr()
    }

    /// The file behind the memory: the one that was given, or the memfd of a shared block.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.mapping.fd().map(|(fd, _)| fd)
    }

    /// Where in [`fd`](Self::fd) the memory starts; 0 without one.
    pub fn fd_offset(&self) -> u64 {
        self.mapping.fd().map_or(0, |(_, offset)| offset)
    }

    /// The size of the pieces in which the block's memory is given back, and placed when it is missing: the host's page, that of a file of hugetlbfs, or what
    /// [`RamBlockSpec::page_size`](super::RamBlockSpec::page_size) said. Huge pages under it are transparent, the host splits them
    /// ([`RamFlags::HUGE_PAGES`] says whether it may use them).
    pub fn page_size(&self) -> u64 {
        self.page_size
    }

    /// Bytes that are memory: whole pages of the host.
    pub(crate) fn committed(&self) -> u64 {
        self.mapping.committed().next_multiple_of(host_page())
    }

    /// Bytes that the host's MMU maps at once.
    pub(crate) fn mapped_page(&self) -> u64 {
        self.mapped_page
    }

    /// Its pages are of hugetlbfs.
    pub(crate) fn is_hugetlb(&self) -> bool {
        self.mapped_page > host_page()
    }

    /// What a migration keeps for this block, while one does.
    pub fn migration(&self) -> &BlockMigration {
        &self.migration
    }

    /// As [`RamList::discard`], and marks nothing, as [`write_raw`](Self::write_raw).
    ///
    /// # Errors
    /// [`RamError::OutOfBounds`]; [`RamError::OddLength`] if it is not whole pages; [`RamError::Host`].
    pub fn discard_raw(&self, off: u64, len: u64) -> Result<(), RamError> {
        let memory = self.mapping.committed();
        let end = match off.checked_add(len) {
            Some(end) if end <= memory => end,
            _ => return Err(RamError::OutOfBounds { idstr: self.idstr.clone(), off, len, used: memory }),
        };
        let page = self.page_size();
        for (what, length, odd) in [
            ("offset to discard", off, !off.is_multiple_of(page)),
            ("length to discard", len, !end.is_multiple_of(page) && end != memory),
        ] {
            if odd {
                return Err(RamError::OddLength { idstr: self.idstr.clone(), what, length, page });
            }
        }
        if len == 0 {
            return Ok(());
        }
        self.mapping.discard(off, len).map_err(|failure| host_error(&self.idstr, len, failure))
    }

    /// As [`discard_raw`](Self::discard_raw), of many runs in rising order, of which those without memory cost nothing.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn discard_runs(&self, runs: &[Range<u64>]) -> Result<(), RamError> {
        let (Some(first), Some(last)) = (runs.first(), runs.last()) else { return Ok(()) };
        let unit = self.page_size;
        let mut mapped =
            self.mapped_pages(first.start / PAGE_SIZE..last.end.div_ceil(PAGE_SIZE)).into_iter().peekable();
        let mut left = Vec::new();
        for run in runs {
            let mut from = run.start;
            while let Some(part) = mapped.peek() {
                // By whole pages of the host.
                let (start, end) =
                    (part.start * PAGE_SIZE / unit * unit, (part.end * PAGE_SIZE).next_multiple_of(unit));
                if start >= run.end {
                    break;
                }
                let both = start.max(from)..end.min(run.end);
                if !both.is_empty() {
                    from = both.end;
                    left.push(both);
                }
                if end > run.end {
                    break;
                }
                mapped.next();
            }
        }
        let inside = runs.iter().all(|run| run.start <= run.end && run.end <= self.mapping.committed());
        if inside && left.len() > 1 && self.mapping.discard_runs(&left) {
            return Ok(());
        }
        left.iter().try_for_each(|run| self.discard_raw(run.start, run.end - run.start))
    }

    /// What is mapped of the first `len` bytes of shared memory is not; the file keeps its bytes.
    pub(crate) fn drop_mapped(&self, len: u64) -> Result<(), RamError> {
        let len = len.min(self.mapping.committed());
        self.mapping.drop_mapped(len).map_err(|failure| host_error(&self.idstr, len, failure))
    }

    /// As `discard`, of all memory above the used length, but for what shares a host page with it.
    pub(super) fn discard_tail(&self) -> Result<(), RamError> {
        let start = self.used_length().next_multiple_of(self.page_size());
        match self.mapping.committed().checked_sub(start) {
            None | Some(0) => Ok(()),
            Some(len) => self.mapping.discard(start, len).map_err(|failure| host_error(&self.idstr, len, failure)),
        }
    }

    /// Private memory gets the bytes of a file, from the same place on, copied as they are written. `false` if it is not private, and nothing was
    /// done.
    pub(super) fn lie_on(&self, bytes: Range<u64>, file: &std::os::fd::OwnedFd) -> std::io::Result<bool> {
        self.mapping.lie_on(bytes, file)
    }

    /// Whether some of it was made to lie on a file.
    pub(super) fn lies(&self) -> bool {
        self.mapping.lies()
    }

    /// Makes the bytes up to `to` memory. No reader sees a difference yet.
    pub(super) fn commit(&self, to: u64) -> Result<(), RamError> {
        self.mapping.grow(self.used_length(), to).map_err(|failure| host_error(&self.idstr, to, failure))
    }

    /// Tells readers of a length that is memory.
    pub(super) fn publish_length(&self, length: u64) {
        self.used_length.store(length, Ordering::Release);
    }

    /// Calls the block's own callback.
    pub(super) fn call_resized(&self) {
        if let Some(call) = &self.resized {
            call(&self.idstr, self.used_length(), self.host());
        }
    }

    /// The host addresses that belong to the block, guards included. Only the used part is accessible.
    pub fn reserved(&self) -> Range<u64> {
        self.mapping.reserved()
    }

    /// Copies bytes out.
    ///
    /// # Errors
    /// [`RamError::OutOfBounds`].
    pub fn read_bytes(&self, off: u64, to: &mut [u8]) -> Result<(), RamError> {
        let from = self.at(off, to.len() as u64)?;
        // SAFETY: `at` checked that the bytes are inside the used length, which is mapped as long as `self` lives.
        unsafe { access::copy_out(from, to) };
        Ok(())
    }

    /// Copies bytes in, and marks nothing: no log hears of it, and translations of them live on. For memory that no guest
    /// reaches yet, and for what stands between [`RamList::before`] and [`RamList::after`]; else [`RamList::write`].
    ///
    /// # Errors
    /// [`RamError::OutOfBounds`].
    pub fn write_raw(&self, off: u64, from: &[u8]) -> Result<(), RamError> {
        let to = self.at(off, from.len() as u64)?;
        // SAFETY: as in `read_bytes`; the used length is writable.
        unsafe { access::copy_in(to, from) };
        Ok(())
    }

    /// Bytes of a page that was missing, where there is memory: also beyond a length that has shrunk meanwhile. Marks nothing.
    pub(crate) fn place_raw(&self, off: u64, from: &[u8]) {
        let memory = self.mapping.committed();
        let count = memory.saturating_sub(off).min(from.len() as u64) as usize;
        let (to, from) = (self.host().wrapping_add(off.min(memory) as usize), &from[..count]);
        let lines = [to.addr(), from.as_ptr().addr(), count].iter().all(|n| n.is_multiple_of(64));
        // SAFETY: memory that was committed stays mapped, and writable, as long as `self` lives; `from` has `count` bytes, and is no RAM
        // of a guest's, as a reference to it exists.
        unsafe {
            match lines {
                true => (0..count).step_by(64).for_each(|n| access::copy_line(to.add(n), from.as_ptr().add(n))),
                false => access::copy_in(to, from),
            }
        }
    }

    /// The lines of a page are about to be written: they come while the caller does something else. Advice.
    pub(crate) fn expect_raw(&self, off: u64) {
        let Ok(at) = self.at(off, crate::addr::PAGE_SIZE) else { return };
        for line in (0..crate::addr::PAGE_SIZE as usize).step_by(64) {
            hint::expect(at.wrapping_add(line), Soon::Written);
        }
    }

    /// Sets `len` bytes to `value`, and marks nothing, as [`write_raw`](Self::write_raw); else [`RamList::fill`].
    ///
    /// # Errors
    /// [`RamError::OutOfBounds`].
    pub fn fill_raw(&self, off: u64, len: u64, value: u8) -> Result<(), RamError> {
        let to = self.at(off, len)?;
        // SAFETY: as in `write_bytes`; a length inside a mapping fits usize.
        unsafe { access::fill(to, len as usize, value) };
        Ok(())
    }

    /// Loads 1, 2, 4 or 8 little-endian bytes, zero-extended; not torn if aligned.
    ///
    /// # Errors
    /// [`RamError::Width`], [`RamError::OutOfBounds`].
    pub fn load(&self, off: u64, bytes: u32) -> Result<u64, RamError> {
        width(bytes)?;
        let at = self.at(off, bytes.into())?;
        // SAFETY: as in `read_bytes`.
        Ok(unsafe { access::load(at, bytes) })
    }

    /// Stores the low 1, 2, 4 or 8 bytes of `value`, little-endian; not torn if aligned. Marks nothing, as
    /// [`write_raw`](Self::write_raw); else [`RamList::store`].
    ///
    /// # Errors
    /// [`RamError::Width`], [`RamError::OutOfBounds`].
    pub fn store_raw(&self, off: u64, bytes: u32, value: u64) -> Result<(), RamError> {
        width(bytes)?;
        let at = self.at(off, bytes.into())?;
        // SAFETY: as in `write_bytes`.
        unsafe { access::store(at, bytes, value) };
        Ok(())
    }

    /// The host address of `len` bytes at `off`, if all of them are in use.
    #[inline]
    pub(super) fn at(&self, off: u64, len: u64) -> Result<*mut u8, RamError> {
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

/// What the host, or a file, refused to the block.
fn host_error(idstr: &str, length: u64, failure: Failure) -> RamError {
    let idstr = idstr.to_owned();
    match failure {
        Failure::Host { doing, source } => RamError::Host { idstr, doing, length, source },
        Failure::ShortFile { needs, has } => RamError::ShortFile { idstr, needs, has },
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
