//! What a block is asked to be, and what it is.

use super::RamError;
use super::mapping::{host_page, huge_page_of};
use crate::addr::PAGE_SIZE;
use core::fmt;
use core::ops::Range;
use std::fs::File;
use std::sync::Arc;

/// What a block is like.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct RamFlags(u16);

impl RamFlags {
    /// ROM: guest stores are discarded. The host may still write it; it is how a ROM gets its content.
    pub const READONLY: Self = Self(1);
    /// Backed by a memfd or a file, and what is written is seen by every other mapping of that.
    pub const SHARED: Self = Self(2);
    /// Huge pages were asked for, and the host agreed to try.
    pub const HUGE_PAGES: Self = Self(4);
    /// Lies inside the window of host addresses that was asked for.
    pub const NEAR: Self = Self(8);
    /// [`RamList::resize`](super::RamList::resize) is allowed.
    pub const RESIZABLE: Self = Self(16);
    /// Its bytes go along when the machine moves. For the migration: [`migration::sync`](crate::migration::sync) takes
    /// the blocks it is given, and nothing here sends any.
    pub const MIGRATABLE: Self = Self(32);
    /// The host's memory was taken when the block was made or grew: no access fails later for want of it.
    pub const PREALLOC: Self = Self(64);
    /// The host has not set memory aside for it.
    pub const NORESERVE: Self = Self(128);
    /// Its missing pages are noticed by userfaultfd at this time, which places zeros without a copy ([`UserFaults`](crate::UserFaults)).
    pub const UF_ZEROPAGE: Self = Self(256);

    /// Whether all of `other` hold.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    pub(super) const fn bits(self) -> u16 {
        self.0
    }

    pub(super) const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    pub(super) const fn with(self, other: Self, on: bool) -> Self {
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
            (Self::RESIZABLE, "RESIZABLE"),
            (Self::MIGRATABLE, "MIGRATABLE"),
            (Self::PREALLOC, "PREALLOC"),
            (Self::NORESERVE, "NORESERVE"),
            (Self::UF_ZEROPAGE, "UF_ZEROPAGE"),
        ];
        let mut set = f.debug_set();
        for (_, name) in all.iter().filter(|(flag, _)| self.contains(*flag)) {
            set.entry(&format_args!("{name}"));
        }
        set.finish()
    }
}

/// Called when a resize of the block is done: with its name, the length and the memory.
pub(super) type Resized = dyn Fn(&str, u64, *mut u8) + Send + Sync;

/// What a new block should be like.
#[derive(Clone)]
#[must_use = "a spec is nothing until it is given to RamList::add"]
pub struct RamBlockSpec {
    pub(super) idstr: String,
    pub(super) used_length: u64,
    pub(super) max_length: Option<u64>,
    pub(super) resized: Option<Arc<Resized>>,
    pub(super) resizable: bool,
    pub(super) readonly: bool,
    pub(super) shared: bool,
    pub(super) migratable: bool,
    pub(super) prealloc: bool,
    pub(super) noreserve: bool,
    pub(super) file: Option<(Arc<File>, u64)>,
    pub(super) near: Option<Range<u64>>,
    pub(super) huge_pages: Option<bool>,
    pub(super) page_size: Option<u64>,
}

impl RamBlockSpec {
    /// A block `idstr` (1 to 255 bytes, unique in its list) of `used_length` bytes, a multiple of the page size.
    pub fn new(idstr: impl Into<String>, used_length: u64) -> Self {
        Self {
            idstr: idstr.into(),
            used_length,
            max_length: None,
            resized: None,
            resizable: false,
            readonly: false,
            shared: false,
            migratable: true,
            prealloc: false,
            noreserve: true,
            file: None,
            near: None,
            huge_pages: None,
            page_size: None,
        }
    }

    /// Reserves room to grow; without this, just the used length.
    pub fn max_length(mut self, bytes: u64) -> Self {
        self.max_length = Some(bytes);
        self
    }

    /// Allows resizes, up to the maximum length.
    pub fn resizable(mut self, on: bool) -> Self {
        self.resizable = on;
        self
    }

    /// Called at the end of each resize with the name, the new length and the memory, on the thread that resizes and
    /// with no lock held.
    pub fn on_resized(mut self, call: impl Fn(&str, u64, *mut u8) + Send + Sync + 'static) -> Self {
        self.resized = Some(Arc::new(call));
        self
    }

    /// Guest stores are discarded.
    pub fn readonly(mut self, on: bool) -> Self {
        self.readonly = on;
        self
    }

    /// Backed by a memfd, or with [`file`](Self::file) by that, whose bytes are then the block's. The memfd's length
    /// is sealed: a process that is given it can map it, and write it, and not take its memory away.
    pub fn shared(mut self, on: bool) -> Self {
        self.shared = on;
        self
    }

    /// Backed by `file` from `offset` on, a multiple of the host's page size; it has to have the maximum length.
    /// Shared, or else private: the file gives the first bytes and sees no store.
    ///
    /// The file must stay that long, and its pages to be had, until the last `Arc` of the block is gone; any other that
    /// can write it is trusted with this process. If it is made shorter, or is sparse and its file system is full, the
    /// next access to what is not there is a SIGBUS from the kernel: the guest's and the host's, and a private block's
    /// too: its own stores past the end are gone with the file's bytes. Nothing here handles that signal, so the
    /// process ends, as QEMU's does, which raises it again unless the hardware reports bad memory.
    /// One of hugetlbfs has all lengths, and the offset, in its own pages, by which its memory is given back and placed.
    /// [`prealloc`](Self::prealloc) asks for the pages of a sparse file at once, and fails as an error; against a
    /// shorter file nothing helps but a memfd that is sealed, as that of a [`shared`](Self::shared) block without a file.
    pub fn file(mut self, file: File, offset: u64) -> Self {
        self.file = Some((Arc::new(file), offset));
        self
    }

    /// Whether the bytes go along when the machine moves; without this, yes.
    pub fn migratable(mut self, on: bool) -> Self {
        self.migratable = on;
        self
    }

    /// Takes all memory of the used length from the host at once, or fails.
    pub fn prealloc(mut self, on: bool) -> Self {
        self.prealloc = on;
        self
    }

    /// Whether the host may promise more memory than it has; without this, yes, for guests are sparse. If not, the host
    /// sets the used length aside or refuses. Only anonymous memory can be set aside so.
    pub fn noreserve(mut self, on: bool) -> Self {
        self.noreserve = on;
        self
    }

    /// Host addresses that the whole block should lie in, if there is room.
    pub fn near(mut self, window: Range<u64>) -> Self {
        self.near = Some(window);
        self
    }

    /// Whether to ask for huge pages; without this, yes for blocks of more than one. The first 2 MiB of a block are small pages in any case:
    /// what is loaded there costs what is written.
    pub fn huge_pages(mut self, on: bool) -> Self {
        self.huge_pages = Some(on);
        self
    }

    /// Its memory is given back, and placed when it is missing, in pieces of so many bytes: a power of two, from the host's page on, of which the
    /// maximum length is a multiple. Without this, the host's page.
    pub fn page_size(mut self, bytes: u64) -> Self {
        self.page_size = Some(bytes);
        self
    }

    /// Bytes that the host maps at once: its page, or that of a file of hugetlbfs.
    pub(super) fn mapped_page(&self) -> u64 {
        self.file.as_ref().and_then(|(file, _)| huge_page_of(file)).unwrap_or_else(host_page)
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
            check_length(&self.idstr, what, length, max)?;
        }
        let (host, idstr) = (self.mapped_page(), || self.idstr.clone());
        if let Some(page) = self.page_size {
            if !page.is_power_of_two() || page < host {
                return Err(RamError::OddLength { idstr: idstr(), what: "page size", length: page, page: host });
            }
            if !max.is_multiple_of(page) {
                return Err(RamError::OddLength { idstr: idstr(), what: "maximum length", length: max, page });
            }
        }
        if host > host_page() {
            for (what, length) in [("used length", self.used_length), ("maximum length", max)] {
                if !length.is_multiple_of(host) {
                    return Err(RamError::OddLength { idstr: idstr(), what, length, page: host });
                }
            }
        }
        if let Some((_, offset)) = &self.file
            && !offset.is_multiple_of(host)
        {
            return Err(RamError::OddLength { idstr: idstr(), what: "file offset", length: *offset, page: host });
        }
        Ok(max)
    }
}

/// Refuses a length of a block that is no positive number of pages, or over the maximum.
pub(super) fn check_length(idstr: &str, what: &'static str, length: u64, max: u64) -> Result<(), RamError> {
    if length == 0 || !length.is_multiple_of(PAGE_SIZE) {
        return Err(RamError::OddLength { idstr: idstr.to_owned(), what, length, page: PAGE_SIZE });
    }
    if length > max {
        return Err(RamError::UsedOverMax { idstr: idstr.to_owned(), used: length, max });
    }
    Ok(())
}

impl fmt::Debug for RamBlockSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RamBlockSpec")
            .field("idstr", &self.idstr)
            .field("used_length", &self.used_length)
            .field("max_length", &self.max_length)
            .field("shared", &self.shared)
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}
