//! A vCPU without instructions: an address space, its `SoftMmu`, and an engine that only remembers translations.
#![allow(dead_code, reason = "each test file uses its own part")]

use notdirty_core::raw::RawDirty;
use notdirty_core::{DirtyClient, PAGE_SIZE, PageIndex, PageRange, RamAddr, RamBlock, RamBlockSpec, RamList, pin};
use notdirty_softmmu::raw::{self, Request, Ticket};
use notdirty_softmmu::tlb::entry;
use notdirty_softmmu::{
    AddressSpace, CodeInvalidator, GuestPhys, GuestVirt, Hooks, LiveMmu, MemFault, MemSize, MmioDevice, MmuIdx,
    NoHooks, ServeReport, SizeMask, SoftMmu, Started, StoreEffect, VcpuId, VcpuPort, lines_of,
};
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub const RAM: u64 = 0x8000_0000;
pub const ROM: u64 = 0x1000;
pub const DEV: u64 = 0x1000_0000;

/// Remembers translated byte ranges, and drops those that are overwritten, as a TB cache does.
pub struct Tbs {
    pub ram: Arc<RamList>,
    pub tbs: Vec<(u64, u64)>,
    pub heard: Vec<(u64, u64)>,
    pub before_mmio: u32,
    pub unmapped: Vec<(u64, u64, u64)>,
    pub vcpu: VcpuId,
}

impl Tbs {
    pub fn new(ram: &Arc<RamList>) -> Self {
        Tbs {
            ram: ram.clone(),
            tbs: Vec::new(),
            heard: Vec::new(),
            before_mmio: 0,
            unmapped: Vec::new(),
            vcpu: VcpuId::default(),
        }
    }

    /// Translates `len` bytes at `at`: announce, arm, remember.
    pub fn translate(&mut self, mmu: &mut LiveMmu, at: u64, len: u64) {
        self.vcpu = mmu.port().id();
        for (page, lines) in pages(at, len) {
            let _ = mmu.announce_code(page, lines);
        }
        self.tbs.push((at, len));
    }

    pub fn lines_on(&self, page: PageIndex) -> u64 {
        let on_page = self.tbs.iter().flat_map(|&(at, len)| pages(at, len));
        on_page.filter(|(p, _)| *p == page).fold(0, |mask, (_, lines)| mask | lines)
    }
}

pub fn pages(at: u64, len: u64) -> Vec<(PageIndex, u64)> {
    let mut out = Vec::new();
    let mut from = at;
    while from < at + len {
        let to = (from / PAGE_SIZE + 1) * PAGE_SIZE;
        out.push((PageIndex::new(from / PAGE_SIZE), lines_of(from % PAGE_SIZE, to.min(at + len) - from)));
        from = to;
    }
    out
}

impl CodeInvalidator for Tbs {
    fn code_written(&mut self, ram: RamAddr, len: u64) -> usize {
        self.heard.push((ram.get(), len));
        let (at, end) = (ram.get(), ram.get() + len);
        let dead: Vec<_> = self.tbs.iter().copied().filter(|&(a, l)| a < end && at < a + l).collect();
        self.tbs.retain(|tb| !dead.contains(tb));
        for (page, _) in dead.iter().flat_map(|&(a, l)| pages(a, l)) {
            self.ram.dirty().set_code_lines(page, self.lines_on(page), self.vcpu, &pin());
        }
        dead.len()
    }
}

impl Hooks for Tbs {
    fn before_mmio(&mut self) {
        self.before_mmio += 1;
    }
    fn unmapped(&mut self, start: GuestPhys, last: GuestPhys, ram: RamAddr) {
        self.unmapped.push((start.get(), last.get(), ram.get()));
    }
}

/// A device of registers: remembers stores, answers loads with the last value stored at that offset.
pub struct Regs {
    pub log: Mutex<Vec<(u64, MemSize, u64)>>,
    pub sizes: SizeMask,
}

impl Regs {
    pub fn new(sizes: SizeMask) -> Arc<Regs> {
        Arc::new(Regs { log: Mutex::default(), sizes })
    }
    pub fn log(&self) -> Vec<(u64, MemSize, u64)> {
        self.log.lock().unwrap().clone()
    }
}

impl MmioDevice for Regs {
    fn read(&self, offset: u64, _: MemSize) -> u64 {
        self.log.lock().unwrap().iter().rev().find(|e| e.0 == offset).map_or(0, |e| e.2)
    }
    fn write(&self, offset: u64, size: MemSize, value: u64) {
        self.log.lock().unwrap().push((offset, size, value));
    }
    fn sizes(&self) -> SizeMask {
        self.sizes
    }
}

/// A vCPU that runs, and can be parked.
pub struct Live {
    mmu: SoftMmu,
    started: Option<Started>,
}

impl Live {
    pub fn new(space: &Arc<AddressSpace>, prefix: usize) -> Live {
        let mut live = Live { mmu: SoftMmu::new(space, prefix).unwrap(), started: None };
        let _ = live.start(&mut NoHooks);
        live
    }

    pub fn park(&mut self) {
        self.started = None;
    }

    /// Sleeps, parked, and runs again.
    pub fn wait(&mut self, timeout: Option<Duration>) -> ServeReport {
        self.started = None;
        self.mmu.wait(timeout);
        self.start(&mut NoHooks)
    }

    /// It runs again, and has served what was posted.
    pub fn start(&mut self, hooks: &mut impl Hooks) -> ServeReport {
        let (started, served) = self.mmu.start(hooks).expect("it was parked");
        self.started = Some(started);
        served
    }
}

impl Deref for Live {
    type Target = LiveMmu;
    fn deref(&self) -> &LiveMmu {
        &self.mmu
    }
}

impl DerefMut for Live {
    fn deref_mut(&mut self) -> &mut LiveMmu {
        // SAFETY: `started` drops by `&mut self` only, and no test swaps two of these.
        unsafe { self.mmu.live() }.expect("it runs")
    }
}

/// A re-arm of this page is posted, and not waited for.
pub fn rearm(space: &AddressSpace, page: PageIndex) {
    post_all(space, Request::Rearm(PageRange::of_page(page)));
}

/// To every vCPU, and not waited for.
pub fn post_all(space: &AddressSpace, request: Request) -> Vec<(Arc<VcpuPort>, Ticket)> {
    let ports = space.vcpus().all().into_iter();
    ports.map(|port| (port.clone(), raw::post(&port, request))).collect()
}

/// To every vCPU; whether all have served it in time.
pub fn post_all_and_wait(space: &AddressSpace, request: Request, timeout: Option<Duration>) -> bool {
    post_all(space, request).iter().all(|(port, ticket)| raw::wait_served(port, *ticket, timeout))
}

/// 64 KiB of RAM, 8 KiB of ROM and a device of two pages, with a vCPU on them.
pub struct Vm {
    pub ram: Arc<RamList>,
    pub block: Arc<RamBlock>,
    pub rom: Arc<RamBlock>,
    pub dev: Arc<Regs>,
    pub space: Arc<AddressSpace>,
    pub mmu: Live,
    pub tbs: Tbs,
}

impl Vm {
    pub fn new() -> Vm {
        let ram = Arc::new(RamList::new());
        let block = ram.add(RamBlockSpec::new("ram", 0x1_0000)).unwrap();
        let rom = ram.add(RamBlockSpec::new("rom", 0x2000)).unwrap();
        let dev = Regs::new(SizeMask::ALL);
        let space = AddressSpace::new(ram.clone());
        space.map_ram(pa(RAM), &block, 0, 0x1_0000, 0).unwrap();
        space.map_rom(pa(ROM), &rom, 0, 0x2000, 0).unwrap();
        space.map_mmio(pa(DEV), 0x2000, dev.clone(), 0).unwrap();
        let mmu = Live::new(&space, 4096);
        let tbs = Tbs::new(&ram);
        Vm { ram, block, rom, dev, space, mmu, tbs }
    }

    pub fn store(&mut self, at: u64, size: MemSize, value: u64) -> Result<StoreEffect, MemFault> {
        self.mmu.store(&mut self.tbs, MmuIdx::M, va(at), size, value)
    }
    /// A store of which only the bytes matter.
    pub fn put(&mut self, at: u64, size: MemSize, value: u64) {
        let _ = self.store(at, size, value).unwrap();
    }
    pub fn load(&mut self, at: u64, size: MemSize) -> Result<u64, MemFault> {
        self.mmu.load(&mut self.tbs, MmuIdx::M, va(at), size)
    }
    /// Somebody starts to track the page: takes its bit and posts the re-arm.
    pub fn track(&self, page: PageIndex, client: DirtyClient) -> bool {
        let was = self.ram.dirty().test_and_clear(page, client, &pin());
        rearm(&self.space, page);
        was
    }
    pub fn is_set(&self, page: PageIndex, client: DirtyClient) -> bool {
        self.ram.dirty().test(page, client, &pin())
    }
    /// RAM page of an offset in the block.
    pub fn page(&self, off: u64) -> PageIndex {
        RamAddr::new(self.block.offset().get() + off).page()
    }
    /// RAM address of an offset in the block.
    pub fn at(&self, off: u64) -> u64 {
        self.block.offset().get() + off
    }
}

pub fn va(at: u64) -> GuestVirt {
    GuestVirt::new(at)
}
pub fn pa(at: u64) -> GuestPhys {
    GuestPhys::new(at)
}

/// The probe as emitted code does it: raw loads from the table, one compare.
pub fn emitted_probe_hits(mmu: &LiveMmu, at: u64, size: MemSize, comparator: i32) -> bool {
    let biased = at.wrapping_add(entry::BIAS);
    let index = (biased >> 12) & (entry::TLB_ENTRIES as u64 - 1);
    let at_byte = (index << entry::ENTRY_BITS) as usize + comparator as usize;
    // SAFETY: the index is masked to the table, and the offset is one of the entry's.
    let found = unsafe { mmu.table().cast::<u8>().add(at_byte).cast::<u64>().read() };
    // By the page of the last byte, or, for AMO, LR and SC, with the alignment.
    let last = biased.wrapping_add(size.bytes() - 1) & !0xfff;
    found == last || found == biased & !(0xfff ^ (size.bytes() - 1))
}
