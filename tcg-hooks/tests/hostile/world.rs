//! The machine that a hostile guest lives in.
use super::canary::{Canary, wild};
use super::common::{NEAR, RAM, Setup};
use notdirty_core::{RamBlock, RamBlockSpec, RamList};
use notdirty_softmmu::{AddressSpace, GuestPhys, MemSize, MmioDevice, MmuIdx};
use notdirty_tcg::clock::Clock;
use notdirty_tcg::cpu::CpuState;
use notdirty_tcg::testkit::Rng;
use notdirty_tcg::{EngineKind, Harts, RunLimits, Vcpu, VcpuConfig, VcpuExit, VcpuStats};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// RAM that the guest has, and the rest of its block, which it has not.
pub const RAM_LEN: u64 = 0x3_f000;
const BLOCK_LEN: u64 = 0x4_0000;
pub const ROM: u64 = 0x9000_0000;
pub const ROM_LEN: u64 = 0x8000;
/// The handler of S-mode; that of M-mode is at the start.
pub const SUPERVISOR: u64 = ROM + 0x800;
pub const ALIAS: u64 = 0xa000_0000;
pub const HALF: u64 = 0xb000_0800;
pub const DEVICE: u64 = 0xc000_0000;
/// The end of all addresses, and of those that are physical under page tables.
pub const TOP: u64 = 0u64.wrapping_sub(0x4000);
pub const TOP_56: u64 = (1 << 56) - 0x4000;

/// What a guest is made of, and made anew with each burst.
pub trait Guest {
    /// Instructions of a hart between two changes of everything.
    const BURST: u64;
    /// 1 if it is under page tables most of the time.
    const UNDER_TABLES: u64;
    /// The trap handlers, which no store can hurt, and their data.
    fn rom(world: &mut World) -> Vec<u8>;
    /// New memory, new registers.
    fn shuffle(world: &mut World);
}

/// Counts its calls, and answers with addresses.
pub struct Device(AtomicU64, Vec<u64>);

impl Device {
    pub fn calls(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl MmioDevice for Device {
    fn read(&self, offset: u64, _: MemSize) -> u64 {
        let n = self.0.fetch_add(1, Ordering::Relaxed);
        assert!(offset < 0x1800);
        self.1[n as usize % self.1.len()]
    }
    fn write(&self, offset: u64, _: MemSize, _: u64) {
        self.0.fetch_add(1, Ordering::Relaxed);
        assert!(offset < 0x1800);
    }
}

pub struct World {
    pub rng: Rng,
    pub harts: Vec<Vcpu>,
    together: Arc<Harts>,
    pub space: Arc<AddressSpace>,
    ram: Arc<RamBlock>,
    rom: Arc<RamBlock>,
    rom_bytes: Vec<u8>,
    pub device: Arc<Device>,
    canaries: Vec<Canary>,
    pub wild: Vec<u64>,
    pub retired: u64,
    /// Bursts that ended with a hart's addresses translated.
    pub ended_below: u64,
}

impl World {
    pub fn new(seed: u64, setup: &Setup, near: bool, harts: usize) -> World {
        let list = Arc::new(RamList::new());
        let spec = RamBlockSpec::new("ram", BLOCK_LEN);
        let ram = list.add(if near { spec.near(NEAR) } else { spec }).expect("RAM");
        let rom = list.add(RamBlockSpec::new("rom", ROM_LEN).near(NEAR)).expect("ROM");
        let edge = list.add(RamBlockSpec::new("edges", 0x1_0000)).expect("RAM");
        // Guest-visible, then what only the host knows; the latter stays as it is.
        for (block, from) in [(&ram, RAM_LEN), (&edge, 0xc000)] {
            for at in (from..block.used_length()).step_by(8) {
                block.store_raw(at, 8, Canary::pattern(at as usize)).expect("inside");
            }
        }
        let space = AddressSpace::new(list);
        let map = |at: u64, block: &Arc<RamBlock>, off: u64, len: u64| {
            space.map_ram(GuestPhys::new(at), block, off, len, 0).expect("free");
        };
        map(RAM, &ram, 0, RAM_LEN);
        map(0, &edge, 0, 0x4000);
        map(TOP, &edge, 0x4000, 0x4000);
        map(HALF, &edge, 0x8800, 0x900);
        space.map_alias(GuestPhys::new(ALIAS), GuestPhys::new(RAM), 0x2_0000, 0).expect("free");
        space.map_alias(GuestPhys::new(TOP_56), GuestPhys::new(TOP), 0x4000, 0).expect("free");
        space.map_rom(GuestPhys::new(ROM), &rom, 0, ROM_LEN, 0).expect("free");

        // The host's neighbours of each block, places in the low 4 GiB, and the heap.
        let mut canaries = vec![Canary::heap(0x4000), Canary::heap(0x10_0000)];
        for block in [&ram, &rom, &edge] {
            let (start, end) = (block.host() as u64, block.host() as u64 + block.max_length());
            canaries.extend(Canary::at(start - 0x1000 - 0x4000, 0x4000));
            canaries.extend(Canary::at(end + 0x1000, 0x4000));
        }
        for n in 1..16u64 {
            canaries.extend(Canary::at(n << 28, 0x4000));
            canaries.extend(Canary::at((n << 28) - 0x4000, 0x4000));
        }
        let wild = wild(&[(RAM, &ram), (0, &edge), (TOP, &edge), (ROM, &rom)], &canaries);
        let device = Arc::new(Device(AtomicU64::new(0), wild.clone()));
        space.map_mmio(GuestPhys::new(DEVICE), 0x1800, device.clone(), 0).expect("free");
        // Several harts share no count of instructions.
        let clock = Arc::new(if harts == 1 { Clock::insns() } else { Clock::host() });
        let together = Arc::new(Harts::default());
        let harts = (0..harts as u64).map(|hart_id| {
            let config = VcpuConfig {
                engine: EngineKind::Jit,
                hart_id,
                entry: RAM,
                clock: clock.clone(),
                icache: setup.icache,
                jit_flags: setup.flags,
                tb_cache_bytes: setup.cache,
                trace: None,
            };
            let mut vcpu = Vcpu::new(&space, config).expect("a vCPU");
            vcpu.join(&together);
            vcpu
        });
        let harts = harts.collect();
        let (rng, rom_bytes) = (Rng::new(seed), Vec::new());
        let (retired, ended_below) = (0, 0);
        World { rng, harts, together, space, ram, rom, rom_bytes, device, canaries, wild, retired, ended_below }
    }

    /// An address in, at the edge of, or near something.
    pub fn pointer(&mut self) -> u64 {
        let near = self.rng.within(-24, 24) as u64;
        match self.rng.below(10) {
            0 => self.rng.bits(),
            // Somewhere in RAM, so that something happens.
            1 | 2 => RAM + self.rng.below(RAM_LEN),
            9 => self.rng.pick(&[DEVICE, ALIAS, HALF, TOP]).wrapping_add(self.rng.below(0x1900)),
            // The same slot of the TLB, another page; and equal in the low 32 bits.
            3 => (RAM + self.rng.below(RAM_LEN)).wrapping_add(self.rng.bits() << 26),
            4 => RAM.wrapping_add(self.rng.bits() << 32) + self.rng.below(RAM_LEN),
            5 => {
                self.rng.pick(&[RAM + RAM_LEN, RAM, ROM + ROM_LEN, ALIAS + 0x2_0000, 0x4000, TOP, 0]).wrapping_add(near)
            }
            _ => self.rng.pick(&self.wild).wrapping_add(near),
        }
    }

    pub fn run<G: Guest>(&mut self, insns: u64, name: &str, bursts: &AtomicU64) {
        self.rom_bytes = G::rom(self);
        self.rom_bytes.resize(ROM_LEN as usize, 0);
        self.space.write(GuestPhys::new(ROM), &self.rom_bytes).expect("ROM is there");
        let mut count = 0u64;
        while self.retired < insns {
            G::shuffle(self);
            let exit = self.burst(G::BURST, Duration::from_millis(30));
            // All may wait for a device that never calls, which is no hang.
            let stuck = |vcpu: &Vcpu| vcpu.is_waiting() || vcpu.unhandled().is_some();
            if exit == VcpuExit::Deadline && !self.harts.iter().all(stuck) {
                let exit = self.burst(G::BURST, Duration::from_secs(30));
                let at = |vcpu: &Vcpu| {
                    let CpuState { pc, privilege, retired, csr, .. } = vcpu.cpu();
                    format!("{privilege} at {pc:#x} behind {retired} instructions, {csr:x?}")
                };
                let harts = || self.harts.iter().map(at).collect::<Vec<_>>().join("; ");
                let hangs = exit == VcpuExit::Deadline && !self.harts.iter().all(stuck);
                assert!(!hangs, "{name}: {} took half a minute: {}", G::BURST, harts());
            }
            let mut most = 0;
            for vcpu in &self.harts {
                let cpu = vcpu.cpu();
                assert_eq!(cpu.x[0], 0, "{name}");
                assert!(cpu.retired <= G::BURST, "{name}: {} instructions of {}", cpu.retired, G::BURST);
                most = most.max(cpu.retired);
                self.retired += cpu.retired;
            }
            assert!(exit != VcpuExit::InsnLimit || most == G::BURST, "{name}: ended after {most} instructions");
            let translated = |vcpu: &Vcpu| vcpu.cpu().fetch_idx() != MmuIdx::M || vcpu.cpu().data_idx() != MmuIdx::M;
            self.ended_below += u64::from(self.harts.iter().any(translated));
            bursts.fetch_add(1, Ordering::Relaxed);
            count += 1;
            if count.is_multiple_of(16) {
                self.check();
            }
        }
        self.check();
    }

    /// Until the first hart has retired so many instructions since it was reset.
    fn burst(&mut self, insns: u64, time: Duration) -> VcpuExit {
        let together = &self.together;
        together.start();
        let limits = RunLimits { max_insns: Some(insns), deadline: Some(Instant::now() + time) };
        thread::scope(|scope| {
            let mut harts = self.harts.iter_mut();
            let first = harts.next().expect("a hart");
            for vcpu in harts {
                scope.spawn(|| together.run(vcpu, &limits));
            }
            together.run(first, &limits);
        });
        together.first_exit()
    }

    /// Of all harts.
    pub fn stats(&self) -> VcpuStats {
        let mut sum = VcpuStats::default();
        self.harts.iter().for_each(|vcpu| sum += vcpu.stats());
        sum
    }

    fn check(&self) {
        self.canaries.iter().for_each(Canary::check);
        for vcpu in &self.harts {
            // What the host or another hart wrote since the last run is not served yet.
            let served = vcpu.port().kicked() || vcpu.check_invariants().is_ok();
            assert!(served, "{:?}", vcpu.check_invariants());
        }
        let mut rom = vec![0; self.rom_bytes.len()];
        self.rom.read_bytes(0, &mut rom).expect("its own length");
        assert!(rom == self.rom_bytes, "ROM was written");
        for at in (RAM_LEN..BLOCK_LEN).step_by(8) {
            let word = self.ram.load(at, 8).expect("inside");
            assert_eq!(word, Canary::pattern(at as usize), "the block was written at {at:#x}, where it is not mapped");
        }
    }
}
