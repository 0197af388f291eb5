//! RAM, an address space, a device and vCPUs without a translator; logs by bits and rings; RAM that comes and goes meanwhile.
//!
//! `cargo run -p notdirty-softmmu --example alone`

use notdirty_core::{
    BeforeWrite, CanWait, DirtyClient, DirtyLog, LogError, PageRange, RamAddr, RamBlock, RamBlockSpec, RamList,
};
use notdirty_softmmu::{
    AddressSpace, GuestPhys, GuestVirt, LiveMmu, MemFault, MemSize, MmioDevice, MmuIdx, NoHooks, RegionId, SoftMmu,
};
use std::error::Error;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

const SIZE: u64 = 1 << 20;
const RAM: u64 = 0x8000_0000;
const DMA: u64 = 0x1000_0000;
const PLUGGED: u64 = 0x9000_0000;
/// Long for a vCPU that serves between instructions, also on a host that is busy.
const LIMIT: Option<Duration> = Some(Duration::from_secs(20));

/// A device: a store of an address has it write 64 bytes there. The address space owns its devices, so this one has a `Weak`.
struct Dma {
    space: Weak<AddressSpace>,
    done: AtomicU64,
}

impl MmioDevice for Dma {
    fn read(&self, _offset: u64, _size: MemSize) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    fn write(&self, _offset: u64, _size: MemSize, value: u64) {
        let Some(space) = self.space.upgrade() else { return };
        if space.write(GuestPhys::new(value), &[0xda; 64]).is_ok() {
            self.done.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Keeps the bytes that writes replace.
struct Undo {
    ram: Arc<RamBlock>,
    old: Mutex<Vec<(u64, Vec<u8>)>>,
}

impl BeforeWrite for Undo {
    fn before(&self, ram: RamAddr, len: u64, _: &CanWait) {
        let (off, mut bytes) = (ram.get().wrapping_sub(self.ram.offset().get()), vec![0; len as usize]);
        if self.ram.read_bytes(off, &mut bytes).is_ok() {
            self.old.lock().unwrap().push((off, bytes)); // an error: of another block
        }
    }
}

/// Stores eight bytes; says whether a dirty ring asks the vCPU to leave its loop.
fn store(vcpu: &mut LiveMmu, at: u64, value: u64) -> Result<bool, MemFault> {
    Ok(vcpu.store(&mut NoHooks, MmuIdx::M, GuestVirt::new(at), MemSize::B8, value)?.ring_full)
}

/// A vCPU that stores all over a MiB at `base`, and has the device work now and then.
fn run(mmu: &mut SoftMmu, base: u64, stop: &AtomicBool) -> Result<(), MemFault> {
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        if mmu.ring_is_full() {
            mmu.wait(Some(Duration::from_millis(1))); // parked: a sync need not wait for it
            continue;
        }
        let mut vcpu = mmu.run(&mut NoHooks);
        let mut full = base == RAM && store(&mut vcpu, DMA, RAM + 0x4000)?;
        for _ in 0..4096 {
            if full {
                break;
            }
            n += 1;
            full = store(&mut vcpu, base + n * 0x1008 % SIZE, n)?;
            if n % 16 == 0 {
                let _ = vcpu.serve(&mut NoHooks); // between instructions; other threads wait for it
            }
        }
    }
    Ok(())
}

/// Pages that were written since the last look.
fn pages(log: &DirtyLog) -> Result<u64, LogError> {
    let harvest = log.sync(LIMIT)?;
    // Here a migration reads them. A harvest that drops without `commit`, on an error, comes again.
    Ok(harvest.commit().count())
}

/// What another thread does while two vCPUs run.
fn watch(
    list: &Arc<RamList>,
    space: &AddressSpace,
    ram: &Arc<RamBlock>,
    ram_at: RegionId,
) -> Result<(), Box<dyn Error>> {
    // All RAM, by bits: one line. Each user hears of all vCPUs, devices and host writes.
    let log = list.log(DirtyClient::MIGRATION).start()?;
    list.write(ram, 0, b"host")?;
    assert!(pages(&log)? > 0);
    // By rings, one for each vCPU, for a client of one's own; with a limit for the answers of the vCPUs.
    let rings = list.log(list.add_client("debugger")?).blocks([ram]).rings(128).timeout(LIMIT).start()?;
    list.write(ram, 0, b"host")?;
    assert!(pages(&rings)? > 0);
    // Of some pages only; the others come later.
    let first = PageRange::of_bytes(ram.offset(), 0x4000);
    assert!(log.sync_within(&[first], LIMIT)?.commit().count() <= 4);

    // The old bytes: subscribe first, start the log second. Of a vCPU's stores those come that the log hears.
    let undo = Arc::new(Undo { ram: ram.clone(), old: Mutex::default() });
    let subscribed = list.before_writes(None, undo.clone());
    let screen = list.log(DirtyClient::VGA).start()?;
    space.write(GuestPhys::new(RAM), b"a debugger's")?;
    drop((subscribed, screen));
    assert!(undo.old.lock().unwrap().iter().any(|(off, old)| *off == 0 && old.len() == 12));

    // Plug, and unplug: out of the address space, wait, out of the list.
    let dimm = list.add(RamBlockSpec::new("dimm0", SIZE))?;
    let dimm_at = space.map_ram(GuestPhys::new(PLUGGED), &dimm, 0, dimm.used_length(), 0)?;
    assert!(list.remove(&dimm).is_err(), "it is mapped");
    assert!(space.unmap_and_wait(dimm_at, LIMIT)?);
    list.remove(&dimm)?;

    // Grow: the block, then its mapping. Shrink: the mapping, wait, the block.
    list.resize(ram, 2 * SIZE)?;
    let _ = space.resize_mapping(ram_at, 2 * SIZE)?;
    assert!(space.resize_mapping(ram_at, SIZE)?.wait(LIMIT));
    list.resize(ram, SIZE)?;
    list.release_tail(ram)?;
    Ok(())
}

/// All of it.
pub fn main() -> Result<(), Box<dyn Error>> {
    let list = Arc::new(RamList::new());
    let ram = list.add(RamBlockSpec::new("ram", SIZE).max_length(2 * SIZE).resizable(true))?;
    let space = AddressSpace::new(list.clone());
    let ram_at = space.map_ram(GuestPhys::new(RAM), &ram, 0, SIZE, 0)?;
    let dma = Arc::new(Dma { space: Arc::downgrade(&space), done: AtomicU64::new(0) });
    space.map_mmio(GuestPhys::new(DMA), 0x1000, dma.clone(), 0)?;
    // A second bus that shows the same RAM at 0: its vCPUs and the first one's share bits and logs.
    let other = AddressSpace::new(list.clone());
    other.map_ram(GuestPhys::new(0), &ram, 0, SIZE, 0)?;

    let stop = AtomicBool::new(false);
    let (mut here, mut there) = (SoftMmu::new(&space, 0)?, SoftMmu::new(&other, 0)?);
    std::thread::scope(|scope| {
        let vcpus = [scope.spawn(|| run(&mut here, RAM, &stop)), scope.spawn(|| run(&mut there, 0, &stop))];
        while dma.done.load(Ordering::Relaxed) == 0 && !vcpus[0].is_finished() {
            std::thread::yield_now();
        }
        let watched = watch(&list, &space, &ram, ram_at);
        stop.store(true, Ordering::Relaxed);
        for vcpu in vcpus {
            vcpu.join().expect("no panic")?;
        }
        watched
    })?;
    println!("the device wrote {} times", dma.done.load(Ordering::Relaxed));
    Ok(())
}
