//! TLB, address space and code lines against a model that knows none of them: regions in a list, bytes in vectors,
//! every byte of every access looked up by itself.

mod common;

use common::{Live, Tbs, emitted_probe_hits, pa, pages, va};
use notdirty_core::raw::RawDirty;
use notdirty_core::{DirtyClient, PAGE_SIZE, PageIndex, PageRange, RamBlock, RamBlockSpec, RamList, pin};
use notdirty_softmmu::raw::Request;
use notdirty_softmmu::tlb::entry::{READ, WRITE};
use notdirty_softmmu::{
    AccessKind, AddressSpace, AmoOp, FaultCause, MapError, MemFault, MemSize, MmioDevice, MmuIdx, RegionId,
};
use proptest::prelude::*;
use std::sync::{Arc, Mutex};

const BLOCK: u64 = 8 * PAGE_SIZE;
/// Places where things are mapped: two share TLB slots (64 MiB apart), one is the end of the address space, one is
/// the start of it.
const WINDOWS: [u64; 5] = [0x8000_0000, 0x8400_0000, 0x9000_3000, 0u64.wrapping_sub(BLOCK), 0];

/// A device that is eight pages of bytes.
struct Bytes(Mutex<Vec<u8>>);
impl MmioDevice for Bytes {
    fn read(&self, offset: u64, size: MemSize) -> u64 {
        let bytes = self.0.lock().unwrap();
        (0..size.bytes()).fold(0, |v, n| v | u64::from(bytes[(offset + n) as usize]) << (8 * n))
    }
    fn write(&self, offset: u64, size: MemSize, value: u64) {
        let mut bytes = self.0.lock().unwrap();
        for n in 0..size.bytes() {
            bytes[(offset + n) as usize] = (value >> (8 * n)) as u8;
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Ram { off: u64, readonly: bool },
    Device,
    Alias { target: u64 },
}

#[derive(Clone, Debug)]
struct ModelRegion {
    id: RegionId,
    base: u64,
    len: u64,
    priority: i32,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Byte {
    Ram { off: u64, readonly: bool },
    Device { off: u64 },
    Nothing,
}

/// The byte at an address, by the rules as `region.rs` states them.
fn byte_at(regions: &[ModelRegion], addr: u64, depth: u32) -> Byte {
    let mut over: Vec<_> = regions.iter().filter(|r| addr.wrapping_sub(r.base) < r.len && addr >= r.base).collect();
    over.sort_by_key(|r| std::cmp::Reverse((r.priority, r.id)));
    for region in over {
        let into = addr - region.base;
        match region.kind {
            Kind::Ram { off, readonly } => return Byte::Ram { off: off + into, readonly },
            Kind::Device => return Byte::Device { off: into },
            Kind::Alias { target } if depth < 4 => match byte_at(regions, target + into, depth + 1) {
                Byte::Nothing => {}
                byte => return byte,
            },
            Kind::Alias { .. } => {}
        }
    }
    Byte::Nothing
}

struct World {
    ram: Arc<RamList>,
    block: Arc<RamBlock>,
    dev: Arc<Bytes>,
    space: Arc<AddressSpace>,
    mmu: Live,
    tbs: Tbs,
    regions: Vec<ModelRegion>,
    /// What the vCPU knows: as of its last safe point.
    seen: Vec<ModelRegion>,
    ram_bytes: Vec<u8>,
    dev_bytes: Vec<u8>,
    tracked: Vec<(PageIndex, DirtyClient)>,
    model_tbs: Vec<(u64, u64)>,
}

#[derive(Clone, Debug)]
enum Op {
    MapRam {
        window: usize,
        page: u64,
        cut: u64,
        off: u64,
        len: u64,
        readonly: bool,
        priority: i32,
    },
    MapDevice {
        at: u64,
        len: u64,
        priority: i32,
        window: usize,
    },
    MapAlias {
        window: usize,
        page: u64,
        from: usize,
        from_page: u64,
        len: u64,
        priority: i32,
    },
    Unmap(usize),
    Serve,
    Store {
        at: (usize, u64),
        size: MemSize,
        value: u64,
    },
    Load {
        at: (usize, u64),
        size: MemSize,
    },
    Amo {
        at: (usize, u64),
        size: MemSize,
        value: u64,
    },
    LrSc {
        at: (usize, u64),
        size: MemSize,
        value: u64,
    },
    Translate {
        off: u64,
        len: u64,
    },
    Track {
        page: u64,
        client: DirtyClient,
    },
    HostWrite {
        at: (usize, u64),
        len: u64,
        value: u8,
    },
    FlatAddend {
        window: usize,
    },
    /// Loads from every page, so that every alias has its entry.
    Touch,
}

fn size() -> impl Strategy<Value = MemSize> {
    (0u8..4).prop_map(|n| MemSize::from_log2(n).unwrap())
}

/// Addresses gather where things change: starts of pages, of lines, of small devices, of windows.
fn place() -> impl Strategy<Value = (usize, u64)> {
    let near = prop_oneof![
        (0..9u64, -9..9i64).prop_map(|(p, d)| (p * PAGE_SIZE).wrapping_add_signed(d)),
        (0..9u64, 0..8u64, -9..9i64).prop_map(|(p, l, d)| (p * PAGE_SIZE + l * 64).wrapping_add_signed(d)),
        0..BLOCK,
    ];
    (0..WINDOWS.len(), near)
}

fn op() -> impl Strategy<Value = Op> {
    let window = || 0..WINDOWS.len();
    let page = || 0..8u64;
    let client = prop_oneof![Just(DirtyClient::VGA), Just(DirtyClient::MIGRATION)];
    prop_oneof![
        2 => (window(), page(), prop_oneof![4 => Just(0u64), 1 => 1..PAGE_SIZE], page(), 1..8u64, any::<bool>(), -1..3i32)
            .prop_map(|(window, page, cut, off, len, readonly, priority)|
                Op::MapRam { window, page, cut, off, len, readonly: readonly && priority == 2, priority }),
        1 => (window(), 0..BLOCK, prop_oneof![1..64u64, Just(16), Just(PAGE_SIZE), Just(2 * PAGE_SIZE)], -1..3i32)
            .prop_map(|(window, at, len, priority)| Op::MapDevice { at, len, priority, window }),
        1 => (window(), page(), window(), page(), 1..6u64, -1..3i32)
            .prop_map(|(window, page, from, from_page, len, priority)|
                Op::MapAlias { window, page, from, from_page, len, priority }),
        1 => (0..16usize).prop_map(Op::Unmap),
        3 => Just(Op::Serve),
        12 => (place(), size(), any::<u64>()).prop_map(|(at, size, value)| Op::Store { at, size, value }),
        6 => (place(), size()).prop_map(|(at, size)| Op::Load { at, size }),
        2 => (place(), size(), any::<u64>()).prop_map(|(at, size, value)| Op::Amo { at, size, value }),
        1 => (place(), size(), any::<u64>()).prop_map(|(at, size, value)| Op::LrSc { at, size, value }),
        4 => (0..BLOCK - 200, 1..200u64).prop_map(|(off, len)| Op::Translate { off, len }),
        2 => (page(), client).prop_map(|(page, client)| Op::Track { page, client }),
        1 => (place(), 0..5000u64, any::<u8>()).prop_map(|(at, len, value)| Op::HostWrite { at, len, value }),
        1 => window().prop_map(|window| Op::FlatAddend { window }),
        2 => Just(Op::Touch),
    ]
}

impl World {
    fn new() -> World {
        let ram = Arc::new(RamList::new());
        // Another block first, so that offsets in the block and RAM addresses differ.
        ram.add(RamBlockSpec::new("other", PAGE_SIZE)).unwrap();
        let block = ram.add(RamBlockSpec::new("ram", BLOCK)).unwrap();
        let space = AddressSpace::new(ram.clone());
        let mut mmu = Live::new(&space, 4096);
        let mut tbs = Tbs::new(&ram);
        let _ = mmu.serve(&mut tbs);
        World {
            ram,
            block,
            dev: Arc::new(Bytes(Mutex::new(vec![0; BLOCK as usize]))),
            space,
            mmu,
            tbs,
            regions: Vec::new(),
            seen: Vec::new(),
            ram_bytes: vec![0; BLOCK as usize],
            dev_bytes: vec![0; BLOCK as usize],
            tracked: Vec::new(),
            model_tbs: Vec::new(),
        }
    }

    fn mapped(&mut self, id: Result<RegionId, MapError>, base: u64, len: u64, priority: i32, kind: Kind) {
        if let Ok(id) = id {
            self.regions.push(ModelRegion { id, base, len, priority, kind });
        }
    }

    fn serve(&mut self) {
        let _ = self.mmu.serve(&mut self.tbs);
        self.seen = self.regions.clone();
    }

    fn model_lines(&self, page: PageIndex) -> u64 {
        let all = self.model_tbs.iter().flat_map(|&(at, len)| pages(at, len));
        all.filter(|(p, _)| *p == page).fold(0, |mask, (_, lines)| mask | lines)
    }

    /// Bytes of an access, or the fault it must end in.
    fn resolve(&self, at: u64, size: MemSize, kind: AccessKind) -> Result<Vec<Byte>, MemFault> {
        let aligned = at.is_multiple_of(size.bytes());
        let mut bytes = Vec::new();
        for n in 0..size.bytes() {
            let byte = byte_at(&self.seen, at.wrapping_add(n), 0);
            let bad = match byte {
                Byte::Nothing => true,
                Byte::Device { .. } => !aligned,
                Byte::Ram { .. } => false,
            };
            if bad {
                // A device refuses from its first byte in the access on; so does a hole.
                return Err(MemFault { kind, cause: FaultCause::Access, addr: va(at.wrapping_add(n)) });
            }
            bytes.push(byte);
        }
        Ok(bytes)
    }

    fn value(&self, bytes: &[Byte]) -> u64 {
        bytes.iter().rev().fold(0, |value, byte| {
            value << 8
                | u64::from(match *byte {
                    Byte::Ram { off, .. } => self.ram_bytes[off as usize],
                    Byte::Device { off } => self.dev_bytes[off as usize],
                    Byte::Nothing => unreachable!(),
                })
        })
    }

    /// Applies a store to the model; returns the TBs that must die, and whether a line with code was touched.
    fn model_store(&mut self, bytes: &[Byte], value: u64) -> (usize, bool) {
        let start = self.block.offset().get();
        let (mut killed, mut hit) = (0, false);
        let mut touched = Vec::new();
        for (n, byte) in bytes.iter().enumerate() {
            let new = (value >> (8 * n)) as u8;
            match *byte {
                Byte::Ram { off, readonly: false } => {
                    self.ram_bytes[off as usize] = new;
                    touched.push(start + off);
                }
                Byte::Device { off } => self.dev_bytes[off as usize] = new,
                _ => {}
            }
        }
        for &ram in &touched {
            hit |= pages(ram, 1).iter().any(|&(page, line)| self.model_lines(page) & line != 0);
            self.tracked.retain(|(page, _)| *page != PageIndex::new(ram / PAGE_SIZE));
        }
        self.model_tbs.retain(|&(at, len)| {
            let dies = touched.iter().any(|&ram| (at..at + len).contains(&ram));
            killed += usize::from(dies);
            !dies
        });
        (killed, hit)
    }

    fn check_store(&mut self, bytes: &[Byte], value: u64, effect: notdirty_softmmu::StoreEffect) {
        let heard_before = std::mem::take(&mut self.tbs.heard);
        let (killed, hit) = self.model_store(bytes, value);
        assert_eq!(effect.killed as usize, killed);
        assert_eq!(!heard_before.is_empty(), hit, "code_written is called exactly when a line with code is touched");
        assert_eq!(effect.mmio, bytes.iter().any(|b| matches!(b, Byte::Device { .. })));
    }

    fn step(&mut self, op: Op) {
        let idx = MmuIdx::M;
        let addr = |(window, off): (usize, u64)| WINDOWS[window].wrapping_add(off);
        match op {
            Op::MapRam { window, page, cut, off, len, readonly, priority } => {
                let base = addr((window, page * PAGE_SIZE + cut));
                let (off, len) = (off * PAGE_SIZE + cut, len * PAGE_SIZE - cut);
                let id = if readonly {
                    self.space.map_rom(pa(base), &self.block, off, len, priority)
                } else {
                    self.space.map_ram(pa(base), &self.block, off, len, priority)
                };
                self.mapped(id, base, len, priority, Kind::Ram { off, readonly });
            }
            Op::MapDevice { at, len, priority, window } => {
                let base = addr((window, at));
                let id = self.space.map_mmio(pa(base), len, self.dev.clone(), priority);
                self.mapped(id, base, len, priority, Kind::Device);
            }
            Op::MapAlias { window, page, from, from_page, len, priority } => {
                let (base, target) = (addr((window, page * PAGE_SIZE)), addr((from, from_page * PAGE_SIZE)));
                let len = len * PAGE_SIZE;
                // Two that show each other's past the depth are the renderer's business alone.
                let aliases = self.regions.iter().filter(|r| matches!(r.kind, Kind::Alias { .. })).count();
                if aliases < 4 {
                    let id = self.space.map_alias(pa(base), pa(target), len, priority);
                    self.mapped(id, base, len, priority, Kind::Alias { target });
                }
            }
            Op::Unmap(n) if n < self.regions.len() => {
                let region = self.regions.remove(n);
                self.space.unmap(region.id).unwrap();
            }
            Op::Unmap(_) => {}
            Op::Serve => self.serve(),
            Op::Load { at, size } => {
                let at = addr(at);
                let want = self.resolve(at, size, AccessKind::Load).map(|bytes| self.value(&bytes));
                assert_eq!(self.mmu.load(&mut self.tbs, idx, va(at), size), want, "{at:#x} {size:?}");
            }
            Op::Store { at, size, value } => {
                let at = addr(at);
                let want = self.resolve(at, size, AccessKind::Store);
                self.tbs.heard.clear();
                match (self.mmu.store(&mut self.tbs, idx, va(at), size, value), want) {
                    (Ok(effect), Ok(bytes)) => self.check_store(&bytes, value, effect),
                    (got, want) => assert_eq!(got.map(|_| vec![]), want.map(|_| vec![Byte::Nothing]), "{at:#x}"),
                }
            }
            Op::Amo { at, size, value } => {
                let at = addr(at);
                let want = self.resolve(at, size, AccessKind::Store);
                self.tbs.heard.clear();
                let got = self.mmu.amo(&mut self.tbs, idx, va(at), size, AmoOp::Add, value);
                if at % size.bytes() != 0 {
                    let cause = FaultCause::Misaligned;
                    assert_eq!(got, Err(MemFault { kind: AccessKind::Store, cause, addr: va(at) }));
                    return;
                }
                match (got, want) {
                    (Ok((old, effect)), Ok(bytes)) => {
                        assert_eq!(old, self.value(&bytes));
                        self.check_store(&bytes, old.wrapping_add(value), effect);
                    }
                    // An aligned cell may still lie in two regions: nothing is atomic there.
                    (Err(_), Ok(bytes)) => assert!(!self.is_one_place(&bytes), "{at:#x} {size:?} {bytes:?}"),
                    (got, Err(_)) => assert!(got.is_err()),
                }
            }
            Op::LrSc { at, size, value } => {
                let at = addr(at) & !(size.bytes() - 1);
                let want = self.resolve(at, size, AccessKind::Load);
                self.tbs.heard.clear();
                let Ok(old) = self.mmu.lr(&mut self.tbs, idx, va(at), size) else {
                    let device = |b: &Byte| matches!(b, Byte::Device { .. });
                    assert!(want.is_err() || want.is_ok_and(|b| b.iter().any(device) || !self.is_one_place(&b)));
                    return;
                };
                let bytes = want.unwrap();
                assert_eq!(old, self.value(&bytes));
                let (wrote, effect) = self.mmu.sc(&mut self.tbs, idx, va(at), size, value).unwrap();
                assert!(wrote);
                self.check_store(&bytes, value, effect);
            }
            Op::Translate { off, len } => {
                let at = self.block.offset().get() + off;
                if !self.model_tbs.contains(&(at, len)) {
                    self.tbs.translate(&mut self.mmu, at, len);
                    self.model_tbs.push((at, len));
                }
            }
            Op::Track { page, client } => {
                let page = PageIndex::new(self.block.offset().page().get() + page);
                self.ram.dirty().test_and_clear(page, client, &pin());
                common::post_all(&self.space, Request::Rearm(PageRange::of_page(page)));
                if !self.tracked.contains(&(page, client)) {
                    self.tracked.push((page, client));
                }
                self.serve();
            }
            Op::HostWrite { at, len, value } => {
                // The host sees the newest map; so must the model's vCPU, for its kills.
                self.serve();
                let at = addr(at);
                let whole = at.checked_add(len).is_some();
                let bytes: Vec<_> = (0..len).map(|n| byte_at(&self.seen, at.wrapping_add(n), 0)).collect();
                let ok = (whole || len == 0) && !bytes.contains(&Byte::Nothing);
                assert_eq!(self.space.write(pa(at), &vec![value; len as usize]).is_ok(), ok, "{at:#x}+{len:#x}");
                if ok {
                    // The host writes ROM too.
                    let writable = |b: &Byte| match *b {
                        Byte::Ram { off, .. } => Byte::Ram { off, readonly: false },
                        other => other,
                    };
                    let bytes: Vec<_> = bytes.iter().map(writable).collect();
                    for chunk in bytes.chunks(8) {
                        self.model_store(chunk, u64::from_le_bytes([value; 8]));
                    }
                    self.serve();
                }
            }
            Op::Touch => {
                for window in 0..WINDOWS.len() {
                    for page in 0..BLOCK / PAGE_SIZE {
                        self.step(Op::Load { at: (window, page * PAGE_SIZE), size: MemSize::B8 });
                    }
                }
            }
            Op::FlatAddend { window } => {
                self.mmu.set_flat_addend((self.block.host() as u64).wrapping_sub(WINDOWS[window]));
            }
        }
    }

    /// Do these bytes follow each other in one RAM block or device?
    fn is_one_place(&self, bytes: &[Byte]) -> bool {
        bytes.windows(2).all(|pair| match (pair[0], pair[1]) {
            (Byte::Ram { off: a, readonly: x }, Byte::Ram { off: b, readonly: y }) => a + 1 == b && x == y,
            (Byte::Device { off: a }, Byte::Device { off: b }) => a + 1 == b,
            _ => false,
        })
    }

    /// What must hold between any two operations.
    fn check(&self) {
        let start = self.block.offset().page().get();
        let guard = pin();
        for n in 0..BLOCK / PAGE_SIZE {
            let page = PageIndex::new(start + n);
            let lines = self.model_lines(page);
            let mask = self.space.code().page(page).map_or(0, |p| p.mask.load(std::sync::atomic::Ordering::SeqCst));
            assert_eq!(mask, lines, "line mask of page {n}");
            assert_eq!(self.ram.dirty().test(page, notdirty_core::raw::CODE, &guard), lines == 0, "CODE of page {n}");
            for client in [DirtyClient::VGA, DirtyClient::MIGRATION] {
                let tracked = self.tracked.contains(&(page, client));
                assert_eq!(self.ram.dirty().test(page, client, &guard), !tracked, "{client:?} of page {n}");
            }
        }
        // What emitted code would do without asking anybody.
        for window in WINDOWS {
            for n in 0..BLOCK / PAGE_SIZE {
                let at = window.wrapping_add(n * PAGE_SIZE);
                for (comparator, stores) in [(READ, false), (WRITE, true)] {
                    let flat = emitted_probe_hits(&self.mmu, at, MemSize::B8, comparator);
                    let passes = flat || stores && self.mmu.is_store_fast(va(at));
                    if !passes {
                        continue;
                    }
                    let first = byte_at(&self.seen, at, 0);
                    let Byte::Ram { off, readonly } = first else { panic!("hit at {at:#x}: {first:?}") };
                    let end = byte_at(&self.seen, at + (PAGE_SIZE - 1), 0);
                    assert_eq!(end, Byte::Ram { off: off + PAGE_SIZE - 1, readonly });
                    let page = PageIndex::new(start + off / PAGE_SIZE);
                    if stores {
                        assert!(!readonly);
                        assert_eq!(self.model_lines(page), 0, "a fast store would not be heard by the translator");
                        assert!(self.tracked.iter().all(|(p, _)| *p != page), "a fast store would not be marked");
                    }
                    if flat {
                        let host = at.wrapping_add(self.mmu.flat_addend());
                        assert_eq!(host, self.block.host() as u64 + off, "OTHER is missing");
                    }
                }
            }
        }
        let mut bytes = vec![0; BLOCK as usize];
        self.block.read_bytes(0, &mut bytes).unwrap();
        assert!(bytes == self.ram_bytes, "RAM differs");
        assert!(*self.dev.0.lock().unwrap() == self.dev_bytes, "device differs");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2 * ProptestConfig::default().cases, max_shrink_iters: 20_000, ..ProptestConfig::default() })]
    #[test]
    fn any_history_of_maps_accesses_and_translations_agrees_with_the_model(ops in prop::collection::vec(op(), 1..80)) {
        let mut world = World::new();
        // Something to begin with.
        world.step(Op::MapRam { window: 0, page: 0, cut: 0, off: 0, len: 8, readonly: false, priority: 0 });
        world.serve();
        for op in ops {
            world.step(op);
            world.check();
        }
    }
}
