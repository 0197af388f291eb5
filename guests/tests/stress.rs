//! Everything at once: RAM comes and goes while two harts store to it and patch code in it, a vCPU of a second address space
//! stores to it, a thread writes as DMA does, another resizes a block and writes it, and two harvesters, one by the bits and
//! one by rings, of two clients, each keep a copy. No store may be missing from a copy.
//!
//! ```text
//!   harts ─ store, patch, call ─┐
//!   a second address space ─────┤
//!   DMA ─ Memory::write ────────┼─▶ RAM blocks ◀─ plug, unplug ─ this thread
//!   RamList::{resize, write} ───┤
//!   harvesters ◀─ DirtyLog::sync ┘      a copy is a hash of each page, read after it was taken
//! ```
//!
//! What must hold of a page whenever no thread is in the middle of a change: its bit is set, so it is yet to be reported, or
//! the copy is what memory holds. It is asked of each block that was unplugged with the harvesters standing still, and of
//! everything at the end.
//!
//! 10,000 blocks, or as many as fit into NOTDIRTY_STRESS_SECONDS if that is set, but never fewer than NOTDIRTY_STRESS_BLOCKS.
//! NOTDIRTY_STRESS_ENGINE=interp runs it without emitted code, as valgrind wants it.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use notdirty::programs::stress::{BOARD, BOOT, BOOT_LEN, Count, SLOTS, stress};
use notdirty::{EngineKind, ExitBy, GuestExit, Machine, MachineExit, Memory, PlugSpec, Plugged, Program};
use notdirty_core::{DirtyClient, DirtyLog, DirtyMemory, LogBuilder, PageIndex, RamBlock, RamBlockSpec, RamList, pin};
use notdirty_softmmu::{AddressSpace, GuestPhys, GuestVirt, MemSize, MmuIdx, NoHooks, SoftMmu};
use notdirty_tcg::testkit::Rng;

/// Beyond any honest wait here.
const PATIENCE: Option<Duration> = Some(Duration::from_secs(120));
const PASS: MachineExit = MachineExit::Guest(GuestExit { code: 0, by: ExitBy::Finisher });

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")))
}

/// One user of a log, and its copy of RAM: the hash of each page, by its block's slot and its number in the block.
struct Harvester {
    name: &'static str,
    log: DirtyLog,
    list: Arc<RamList>,
    copy: Mutex<HashMap<(u32, u64), Option<u64>>>,
    pages: AtomicU64,
}

impl Harvester {
    fn new(name: &'static str, list: &Arc<RamList>, log: DirtyLog) -> Harvester {
        let (copy, pages) = (Mutex::default(), AtomicU64::new(0));
        let this = Harvester { name, log, list: list.clone(), copy, pages };
        // What was there before the log is its user's business.
        let mut copy = this.stand_still();
        for block in list.blocks(&pin()) {
            for page in block.pages().iter() {
                copy.insert(name_of(block, page), hash(block, page));
            }
        }
        drop(copy);
        this
    }

    /// Nobody syncs as long as this is held.
    fn stand_still(&self) -> MutexGuard<'_, HashMap<(u32, u64), Option<u64>>> {
        self.copy.lock().expect("no thread panics with the copy")
    }

    fn sync(&self) {
        let mut copy = self.stand_still();
        let harvest = self.log.sync(PATIENCE).expect("vCPUs answer");
        for page in harvest.ranges().flat_map(|range| range.iter()) {
            let block = self.list.find(page.base(), &pin()).cloned();
            // It may have left the list since.
            // Or been cut off: then it is not reported any more.
            if let Some((block, hash)) = block.and_then(|block| hash(&block, page).map(|hash| (block, hash))) {
                copy.insert(name_of(&block, page), Some(hash));
            }
        }
        self.pages.fetch_add(harvest.commit().count(), Ordering::Relaxed);
    }

    /// Each page of the block is yet to be reported, or the copy has it.
    fn check(
        &self,
        copy: &HashMap<(u32, u64), Option<u64>>,
        block: &RamBlock,
        dirty: &DirtyMemory,
        may_be_dirty: bool,
    ) {
        for page in block.pages().iter() {
            if may_be_dirty && dirty.test(page, self.log.client(), &pin()) {
                continue;
            }
            let (copy, now) = (copy.get(&name_of(block, page)), hash(block, page));
            assert_eq!(copy, Some(&now), "{}: {page:?} of {block:?} changed and was not reported", self.name);
        }
    }
}

/// `None` if the block does not have the page any more.
fn hash(block: &RamBlock, page: PageIndex) -> Option<u64> {
    let mut bytes = [0; 4096];
    block.read_bytes(page.base().get() - block.offset().get(), &mut bytes).ok()?;
    let words = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")));
    Some(words.fold(0, |sum, word| (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)))
}

fn name_of(block: &RamBlock, page: PageIndex) -> (u32, u64) {
    (block.slot(), page.get() - block.offset().page().get())
}

/// RAM that is plugged, and the slot where the guest finds it.
struct Dimm {
    slot: u64,
    base: u64,
    size: u64,
    plugged: Plugged,
    block: Arc<RamBlock>,
}

fn word(memory: &Memory, addr: u64) -> u64 {
    let mut bytes = [0; 8];
    memory.read(addr, &mut bytes).expect("boot RAM");
    u64::from_le_bytes(bytes)
}

fn send(memory: &Memory, addr: u64, value: u64) {
    memory.write(addr, &value.to_le_bytes()).expect("boot RAM");
}

/// Says that something is over, also if its thread panics.
struct Over<'a>(&'a AtomicBool);
impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// The guest is told to end also if a thread panics, or the run would not end.
struct Stop<'a>(&'a Memory, &'a AtomicBool);
impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.1.store(true, Ordering::Release);
        send(self.0, Count::Stop.address(0), 1);
    }
}

/// A vCPU of a second address space over the same RAM stores where DMA writes, as fast as its entries let it.
fn elsewhere(list: &Arc<RamList>, rng: &mut Rng, stopped: &AtomicBool) {
    let block = list.blocks(&pin()).find(|block| block.used_length() >= 48 << 20).expect("boot RAM").clone();
    let space = AddressSpace::new(list.clone());
    // Where the guest has its own, so that the same pages have the same addresses.
    space.map_ram(GuestPhys::new(notdirty::RAM_BASE), &block, 0, block.used_length(), 0).expect("it is in the list");
    let mut mmu = SoftMmu::new(&space, 0).expect("the host has room for a TLB");
    while !stopped.load(Ordering::Acquire) {
        let mut vcpu = mmu.run(&mut NoHooks);
        for _ in 0..1 + rng.below(200) {
            // Until its harvester has come by; it waits for this vCPU's answers.
            if vcpu.ring_is_full() {
                std::thread::yield_now();
            } else {
                let at = BOOT + rng.below(BOOT_LEN / 4096) * 4096 + 0x400 + rng.below(0xc00 / 8) * 8;
                let _ = vcpu.store(&mut NoHooks, MmuIdx::M, GuestVirt::new(at), MemSize::B8, rng.bits()).expect("RAM");
            }
            let _ = vcpu.serve(&mut NoHooks);
        }
        // Parked, so that the harts get on.
        drop(vcpu);
        std::thread::sleep(Duration::from_micros(rng.below(500)));
    }
}

/// A block that no guest sees is resized and written.
fn elastic(list: &RamList, rng: &mut Rng, stopped: &AtomicBool) {
    const PAGES: u64 = 64;
    let spec = RamBlockSpec::new("elastic", 4096).max_length(PAGES * 4096).resizable(true);
    let block = list.add(spec).expect("a name that is free");
    while !stopped.load(Ordering::Acquire) {
        let pages = 1 + rng.below(PAGES);
        list.resize(&block, pages * 4096).expect("within its maximum");
        if rng.below(4) == 0 {
            list.release_tail(&block).expect("no guest reaches it");
        }
        for _ in 0..rng.below(8) {
            list.store(&block, rng.below(pages * 512) * 8, 8, rng.bits()).expect("within its length");
        }
        std::thread::sleep(Duration::from_micros(rng.below(1000)));
    }
}

#[test]
fn no_store_is_lost_while_ram_comes_and_goes_and_code_is_patched() {
    let seed = from_env("NOTDIRTY_SEED").unwrap_or_else(|| RandomState::new().hash_one(0) >> 8);
    let seconds = from_env("NOTDIRTY_STRESS_SECONDS").map(Duration::from_secs);
    let blocks = from_env("NOTDIRTY_STRESS_BLOCKS").unwrap_or(10_000);
    println!("NOTDIRTY_SEED={seed}");
    let engine = match std::env::var("NOTDIRTY_STRESS_ENGINE").as_deref() {
        Ok("interp") => EngineKind::Interp,
        _ => EngineKind::Jit,
    };
    let mut machine = Machine::builder()
        .ram_size(48 << 20)
        .harts(2)
        .engine(engine)
        .program(Program::Image(stress()))
        .build()
        .expect("it is built");
    let (memory, list) = (machine.memory(), machine.space().ram().clone());
    let own = list.add_client("stress").expect("a column is free");
    let start = |log: LogBuilder| log.timeout(PATIENCE).start().expect("nothing runs");
    let harvesters = [
        Harvester::new("bitmap", &list, start(list.log(DirtyClient::MIGRATION))),
        Harvester::new("rings", &list, start(list.log(own).rings(1024))),
    ];
    let (stopped, ended, dma) = (AtomicBool::new(false), AtomicBool::new(false), Mutex::new(Vec::<(u64, u64)>::new()));
    let (memory, harvesters, stopped, ended, dma, list) = (&memory, &harvesters, &stopped, &ended, &dma, &list);
    let (mut total, mut highest, mut traps) = (0, 0, 0);
    std::thread::scope(|scope| {
        let runner = scope.spawn(|| {
            let _over = Over(ended);
            loop {
                match machine.run_to_end() {
                    // Until its harvester has come by.
                    MachineExit::RingFull if !ended.load(Ordering::Acquire) => std::thread::yield_now(),
                    exit => break exit,
                }
            }
        });
        let stop = Stop(memory, stopped);
        for (n, harvester) in harvesters.iter().enumerate() {
            scope.spawn(move || {
                let _both = (Stop(memory, stopped), Over(ended));
                let mut rng = Rng::new(seed + 1 + n as u64);
                // As long as a hart runs: one whose ring is full does not come to see that it shall stop.
                while !ended.load(Ordering::Acquire) {
                    harvester.sync();
                    std::thread::sleep(Duration::from_micros(rng.below(4000)));
                }
            });
        }
        scope.spawn(move || {
            let _stop = Stop(memory, stopped);
            let mut rng = Rng::new(seed + 9);
            while !stopped.load(Ordering::Acquire) {
                let places = dma.lock().expect("no thread panics with it");
                let (base, len) = match rng.below(places.len() as u64 + 1) as usize {
                    0 => (BOOT, BOOT_LEN),
                    n => places[n - 1],
                };
                // Data, up to the next page's code.
                let at = base + rng.below(len / 4096) * 4096 + 0x400;
                let bytes = vec![rng.below(256) as u8; 1 + rng.below(0xc00) as usize];
                // Not under RAM that leaves at this moment: that may be refused.
                let _ = memory.write(at, &bytes);
                drop(places);
                if rng.below(8) == 0 {
                    std::thread::sleep(Duration::from_micros(rng.below(500)));
                }
            }
        });

        scope.spawn(move || {
            let _stop = Stop(memory, stopped);
            elsewhere(list, &mut Rng::new(seed + 10), stopped);
        });
        scope.spawn(move || {
            let _stop = Stop(memory, stopped);
            elastic(list, &mut Rng::new(seed + 11), stopped);
        });

        let mut rng = Rng::new(seed);
        let mut dimms: Vec<Dimm> = Vec::new();
        let begun = Instant::now();
        let mut said = begun;
        while !runner.is_finished()
            && (total < blocks || !dimms.is_empty() || seconds.is_some_and(|most| begun.elapsed() < most))
        {
            let more = total < blocks || seconds.is_some_and(|most| begun.elapsed() < most);
            let live = dimms.len() as u64;
            if more && live < SLOTS - 1 && (live < 8 || rng.below(2) == 0) {
                let slot = (0..SLOTS).find(|slot| dimms.iter().all(|d| d.slot != *slot)).expect("fewer than slots");
                let pages = rng.below(9);
                // Sparse, and often where others were.
                let base = (1 << 32) + rng.below(256) * (1 << 24);
                if dimms.iter().any(|dimm| dimm.base == base) {
                    continue;
                }
                let size = 4096 << pages;
                let max = if rng.below(4) == 0 { 8 << 30 } else { size };
                let spec = PlugSpec::default().max_size(max);
                let plugged = memory.plug(&format!("dimm{total}"), base, size, spec).expect("nothing is there");
                let info = memory.blocks().into_iter().find(|info| info.base.get() == base).expect("it is plugged");
                let block = list.find(info.offset, &pin()).expect("it is in the list").clone();
                highest = highest.max(info.offset.get());
                send(memory, BOARD + slot * 8, base | pages);
                dma.lock().expect("no thread panics with it").push((base, size));
                dimms.push(Dimm { slot, base, size, plugged, block });
                total += 1;
            } else if live != 0 {
                let dimm = dimms.swap_remove(rng.below(live) as usize);
                // Half of them go while the harvesters are at work, the others are asked what became of their stores.
                let ask = rng.below(2) == 0;
                let copies = ask.then(|| harvesters.each_ref().map(|harvester| harvester.stand_still()));
                memory.unplug(&dimm.plugged, Duration::from_secs(120)).expect("the harts let go");
                let mut places = dma.lock().expect("no thread panics with it");
                places.retain(|place| *place != (dimm.base, dimm.size));
                for (harvester, copy) in harvesters.iter().zip(copies.iter().flatten()) {
                    harvester.check(copy, &dimm.block, list.dirty(), true);
                }
                drop((places, copies));
                for harvester in harvesters {
                    harvester.stand_still().retain(|(slot, _), _| *slot != dimm.block.slot());
                }
                send(memory, BOARD + dimm.slot * 8, 0);
            }
            if said.elapsed() > Duration::from_secs(20) {
                println!("{total} blocks after {:.0} s", begun.elapsed().as_secs_f64());
                said = Instant::now();
            }
        }
        drop(stop);
        for hart in 0..2 {
            let count = |what: Count| word(memory, what.address(hart));
            println!(
                "hart {hart}: {} rounds, {} functions written and called, {} traps for want of RAM",
                count(Count::Rounds),
                count(Count::Calls),
                count(Count::Traps)
            );
            assert!(count(Count::Calls) > 0 || blocks < 1000, "hart {hart} did nothing");
            traps += count(Count::Traps);
        }
        assert_eq!(runner.join().expect("it does not panic"), PASS);
    });
    for harvester in harvesters {
        harvester.sync();
        let copy = harvester.stand_still();
        for block in list.blocks(&pin()) {
            harvester.check(&copy, block, list.dirty(), false);
        }
        println!("{}: {} pages", harvester.name, harvester.pages.load(Ordering::Relaxed));
    }
    println!("{total} blocks, the highest at {:.1} GiB of ram_addr space", highest as f64 / f64::from(1 << 30));
    assert!(total >= blocks, "the guest ended early");
    assert!(highest > 64 << 30 || blocks < 1000, "no block beyond 64 GiB");
    assert!(traps > 0 || blocks < 1000, "no hart ever met RAM that was gone");
}
