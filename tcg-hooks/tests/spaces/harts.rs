//! Two harts in the same address spaces, which take turns by a seed: what one of them maps anew it fences, and has the other fence,
//! by an interrupt, as kernels do.
//!
//! ```text
//!   hart 0  lock ─ request, IPI ─ waits for the answer ─ page table, sfence.vma ─ request over ─ waits ─ unlock
//!   hart 1                └▶ handler in M-mode: answers, waits ─────────────────────┴▶ sfence.vma, answer over
//! ```
//!
//! Between the two nothing is used that changes, so it is the same however long either keeps a translation. Stores of both to the
//! same data meet in the order of the turns, which are of so many instructions on every engine.

use super::*;
use notdirty_softmmu::{MemSize, MmioDevice, VcpuPort};
use notdirty_tcg::clock::Clock;
use notdirty_tcg::riscv::csr::irq;
use notdirty_tcg::{ICache, RunLimits, Turns, Vcpu, VcpuConfig, VcpuExit};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

/// A word for each hart raises its software interrupt, or takes it back.
#[derive(Default)]
struct Ipi(Mutex<Vec<Weak<VcpuPort>>>);

impl MmioDevice for Ipi {
    fn read(&self, _: u64, _: MemSize) -> u64 {
        0
    }
    fn write(&self, at: u64, _: MemSize, value: u64) {
        let ports = self.0.lock().unwrap();
        let Some(port) = ports.get(at as usize / 4).and_then(Weak::upgrade) else { return };
        if value & 1 != 0 {
            port.irq.fetch_or(irq::MSI, Ordering::AcqRel);
            port.kick();
        } else {
            port.irq.fetch_and(!irq::MSI, Ordering::AcqRel);
        }
    }
}

struct Pair {
    vm: Vm,
    harts: Vec<Vcpu>,
}

fn pair(setup: &Setup, plan: &Plan) -> Pair {
    let vm = Vm::with(setup);
    put(&vm, plan);
    let ipi = Arc::new(Ipi::default());
    vm.space.map_mmio(GuestPhys::new(memory::IPI), 0x1000, ipi.clone(), 0).unwrap();
    let stop = Arc::new(Stop::default());
    vm.space.map_mmio(GuestPhys::new(STOP), 0x1000, stop.clone(), 1).unwrap();
    let clock = Arc::new(Clock::insns());
    let harts: Vec<Vcpu> = (0..2)
        .map(|hart| {
            let config = VcpuConfig {
                engine: setup.engine,
                hart_id: hart,
                clock: clock.clone(),
                icache: ICache::Coherent,
                jit_flags: setup.flags,
                tb_cache_bytes: setup.cache,
                ..VcpuConfig::new(RAM)
            };
            let mut vcpu = Vcpu::new(&vm.space, config).unwrap();
            begin(&mut vcpu, plan, hart);
            vcpu
        })
        .collect();
    *ipi.0.lock().unwrap() = harts.iter().map(|vcpu| Arc::downgrade(vcpu.port())).collect();
    stop.stops(harts[0].port());
    Pair { vm, harts }
}

/// Registers of both, and RAM, when hart 0 has stopped.
fn run(setup: &Setup, plan: &Plan, seed: u64) -> ([[u64; 32]; 2], [u64; 2], Vec<u8>) {
    let mut pair = pair(setup, plan);
    let limits = RunLimits { max_insns: None, deadline: Some(Instant::now() + Duration::from_secs(120)) };
    let exit = Turns::new(seed).run(&mut pair.harts, &limits, None);
    assert_eq!(exit, VcpuExit::Stopped, "at {:#x?}", [0, 1].map(|n| pair.harts[n].cpu().pc));
    let mut bytes = vec![0; pair.vm.block.used_length() as usize];
    pair.vm.block.read_bytes(0, &mut bytes).unwrap();
    ([0, 1].map(|n| pair.harts[n].cpu().x), [0, 1].map(|n| pair.harts[n].cpu().retired), bytes)
}

#[test]
fn two_harts_that_tell_each_other_what_they_map_do_the_same_whatever_is_kept() {
    for seed in seeds(1) {
        let mut rng = Rng::new(seed ^ 0x2000_0000);
        let plan = plan(&mut rng, 120, 2);
        let wanted = run(&oracle(), &plan, seed);
        for (name, setup) in engines(&mut rng) {
            let found = run(&setup, &plan, seed);
            let what = format!("seed {seed}, {name}, {:?}", if name == "random" { Some(setup.flags) } else { None });
            assert_eq!((found.0, found.1), (wanted.0, wanted.1), "{what}");
            assert!(found.2 == wanted.2, "{what}: RAM");
        }
    }
}
