//! What one regime and address space has beside its table: which slots are filled, fetch translations, devices, superpages.

use super::Id;
use super::entry::{BIAS, FLAGS};
use super::run::Run;
use crate::addr::MmuIdx;
use crate::mmio::{MmioDevice, SizeMask};
use crate::rights::Rights;
use crate::translate::Asid;
use hashbrown::HashMap;
use std::ptr::NonNull;

pub(super) const FETCH_ENTRIES: usize = 64;
pub(super) const DEVICE_BITS: u32 = 4;

/// The regime and the address space that a set is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Key {
    pub(super) idx: MmuIdx,
    pub(super) asid: Asid,
}

/// How far a translation reaches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Reach {
    /// Logarithm of what one leaf of the page tables maps: flushed together.
    pub(super) size_log2: u8,
    /// It holds in every address space.
    pub(super) global: bool,
}

/// A device on one page. The device is kept alive by the vCPU's view, which outlives the entry.
#[derive(Clone, Copy)]
pub(crate) struct DeviceEntry {
    /// Biased page address.
    pub(super) tag: u64,
    /// The bytes of the page that are the device's: `[from, to)`. Most boards give small devices less than a page.
    pub(crate) from: u32,
    pub(crate) to: u32,
    /// Offset in the region of the page's first byte (wrapping, if the region starts later).
    pub(crate) off: u64,
    pub(crate) dev: NonNull<dyn MmioDevice>,
    pub(crate) sizes: SizeMask,
    pub(crate) rights: Rights,
    /// The physical page.
    pub(super) page: u64,
    pub(super) reach: Reach,
}

/// A page to fetch from.
#[derive(Clone, Copy)]
pub(crate) struct FetchEntry {
    /// Biased page address; zero is empty.
    pub(crate) tag: u64,
    pub(crate) host: *const u8,
    pub(crate) ram: u64,
    /// The physical page.
    pub(super) page: u64,
    /// Offsets in the page between which there is RAM.
    pub(crate) from: u32,
    pub(crate) to: u32,
    /// Was it kept?
    pub(crate) lasting: bool,
    pub(super) reach: Reach,
}

impl FetchEntry {
    /// Logarithm of what one leaf maps there.
    pub(crate) fn size_log2(&self) -> u8 {
        self.reach.size_log2
    }
}

pub(super) const NO_FETCH: FetchEntry = FetchEntry {
    tag: 0,
    host: std::ptr::null(),
    ram: 0,
    page: 0,
    from: 0,
    to: 0,
    lasting: false,
    reach: Reach { size_log2: notdirty_core::PAGE_BITS as u8, global: false },
};

/// The entries that superpages were cut into: by a superpage, the first of a chain.
#[derive(Default)]
pub(super) struct BigPages {
    /// By the superpage's address, with the logarithm of its size in the low bits.
    pub(super) heads: HashMap<u64, Id>,
    /// The sizes that there may be: bit n for 2^n bytes.
    pub(super) sizes: u64,
}

impl BigPages {
    pub(super) const fn key(va: u64, size_log2: u8) -> u64 {
        va >> size_log2 << size_log2 | size_log2 as u64
    }
}

pub(super) struct Set {
    pub(super) key: Key,
    /// When it was selected last.
    pub(super) used: u64,
    /// The addend that its entries are likely to have: that of the first, since the set was empty.
    pub(super) flat: Option<u64>,
    /// The pages that loads need no entry for.
    pub(super) run: Run,
    /// How often a page could not join, since one did.
    pub(super) votes: u32,
    /// How many entries had it, and how many another, of late.
    pub(super) near: u32,
    pub(super) elsewhere: u32,
    /// Filled slots; those of global entries are in the second.
    pub(super) filled: [Vec<u16>; 2],
    /// Is there anything in `fetch` or `devices`?
    pub(super) beside: bool,
    /// The superpages that some of it is part of, or was: by [`BigPages::key`].
    pub(super) big_beside: Vec<u64>,
    pub(super) fetch: Box<[FetchEntry; FETCH_ENTRIES]>,
    pub(super) devices: Box<[Option<DeviceEntry>; 1 << DEVICE_BITS]>,
    pub(super) big: BigPages,
}

impl Set {
    pub(super) fn new(key: Key) -> Set {
        Set {
            key,
            used: 0,
            flat: None,
            run: Run::default(),
            votes: 0,
            near: 0,
            elsewhere: 0,
            filled: Default::default(),
            beside: false,
            big_beside: Vec::new(),
            fetch: Box::new([NO_FETCH; FETCH_ENTRIES]),
            devices: Box::new([None; 1 << DEVICE_BITS]),
            big: BigPages::default(),
        }
    }

    /// An entry was filled, with the flat addend or another.
    pub(super) fn count_fill(&mut self, near: bool) {
        let count = if near { &mut self.near } else { &mut self.elsewhere };
        *count += 1;
        if *count == 1 << 16 {
            (self.near, self.elsewhere) = (self.near / 2, self.elsewhere / 2);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Filled slots.
    pub(super) fn len(&self) -> usize {
        self.filled[0].len() + self.filled[1].len()
    }

    /// Neighbours share no slot, mostly; nor do a program and its libraries, which lie at round distances.
    #[inline]
    fn fetch_slot(biased: u64) -> usize {
        let page = biased >> notdirty_core::PAGE_BITS;
        (page ^ (page >> 6).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58) as usize & (FETCH_ENTRIES - 1)
    }
    #[inline]
    pub(super) fn fetch_entry(&self, biased: u64) -> Option<FetchEntry> {
        let entry = self.fetch[Self::fetch_slot(biased)];
        let tag = biased & !FLAGS;
        (entry.tag == tag && tag != 0).then_some(entry)
    }
    pub(super) fn set_fetch(&mut self, entry: FetchEntry) {
        if entry.tag != 0 {
            self.beside = true;
            self.note_beside(entry.tag, entry.reach);
            self.fetch[Self::fetch_slot(entry.tag)] = entry;
        }
    }

    /// Fibonacci hashing: boards put devices at round addresses.
    #[inline]
    fn device_slot(tag: u64) -> usize {
        ((tag >> notdirty_core::PAGE_BITS).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - DEVICE_BITS)) as usize
    }
    #[inline]
    pub(super) fn device(&self, biased: u64) -> Option<&DeviceEntry> {
        let tag = biased & !FLAGS;
        self.devices[Self::device_slot(tag)].as_ref().filter(|entry| entry.tag == tag)
    }
    pub(super) fn set_device(&mut self, entry: DeviceEntry) {
        if entry.tag != 0 {
            self.beside = true;
            self.note_beside(entry.tag, entry.reach);
            self.devices[Self::device_slot(entry.tag)] = Some(entry);
        }
    }

    fn note_beside(&mut self, tag: u64, reach: Reach) {
        if u32::from(reach.size_log2) != notdirty_core::PAGE_BITS {
            let key = BigPages::key(tag.wrapping_sub(BIAS), reach.size_log2);
            if !self.big_beside.contains(&key) {
                if self.big_beside.len() == 2 * (FETCH_ENTRIES + (1 << DEVICE_BITS)) {
                    self.count_beside();
                }
                self.big_beside.push(key);
            }
        }
    }

    /// Drops superpages of which nothing is there any more.
    #[cold]
    fn count_beside(&mut self) {
        let fetches = self.fetch.iter().filter(|fetch| fetch.tag != 0).map(|fetch| (fetch.tag, fetch.reach));
        let devices = self.devices.iter().flatten().map(|device| (device.tag, device.reach));
        let keys = fetches.chain(devices).map(|(tag, reach)| BigPages::key(tag.wrapping_sub(BIAS), reach.size_log2));
        self.big_beside = keys.filter(|&key| key as u32 & 63 != notdirty_core::PAGE_BITS).collect();
    }

    /// Nothing of the page of `va`, nor of what was mapped together with it, is in `fetch` and `devices`, but what `stays`.
    pub(super) fn forget_beside(&mut self, va: u64, stays: impl Fn(bool) -> bool) {
        if self.big_beside.iter().any(|&key| key == BigPages::key(va, key as u8 & 63)) {
            let other = |tag: u64, size: u8| tag.wrapping_sub(BIAS) >> size != va >> size;
            self.retain_beside(
                |fetch| stays(fetch.reach.global) || other(fetch.tag, fetch.reach.size_log2),
                |device| stays(device.reach.global) || other(device.tag, device.reach.size_log2),
            );
        } else if self.beside {
            let tag = va.wrapping_add(BIAS) & !FLAGS;
            let fetch = &mut self.fetch[Self::fetch_slot(tag)];
            if fetch.tag == tag && !stays(fetch.reach.global) {
                *fetch = NO_FETCH;
            }
            let device = &mut self.devices[Self::device_slot(tag)];
            if device.as_ref().is_some_and(|device| device.tag == tag && !stays(device.reach.global)) {
                *device = None;
            }
        }
    }

    /// Keeps of fetch translations and devices those that the functions name.
    pub(super) fn retain_beside(
        &mut self,
        fetch: impl Fn(&FetchEntry) -> bool,
        devices: impl Fn(&DeviceEntry) -> bool,
    ) {
        if !self.beside {
            return;
        }
        self.beside = false;
        for entry in self.fetch.iter_mut().filter(|entry| entry.tag != 0) {
            if fetch(entry) {
                self.beside = true;
            } else {
                *entry = NO_FETCH;
            }
        }
        for entry in self.devices.iter_mut() {
            *entry = entry.filter(&devices);
            self.beside |= entry.is_some();
        }
    }
}
