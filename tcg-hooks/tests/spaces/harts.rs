//! Two harts in the same address spaces, which take turns by a seed: what one of them maps anew it fences, and has the other fence,
//! by an interrupt, as kernels do.
//!
//! ```text
//!   hart 0  lock ─ request, IPI ─ waits for the answer ─ page table, sfence.vma ─ request over ─ waits ─ unlock
//!   hart 1                └▶ handler in M-mode: answers, waits ─────────────────────┴▶ sfence.vma, answer over
//! ```
//!
//! Between the two nothing is used that changes, so it is the same however long either keeps a translation. Stores of both to the
//! same data meet in the order of the turns, which are of so many instructions on every engine. On threads of their own one maps, and the
//! other checks what it finds.

use super::*;
use notdirty_softmmu::{MemSize, MmioDevice, VcpuPort};
use notdirty_tcg::clock::Clock;
use notdirty_tcg::riscv::csr::irq;
use notdirty_tcg::testkit::encode;
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

const ROUNDS: u64 = 100;
/// What is mapped now, by number: odd ones mapped code, even ones data.
const NOW: i32 = 64;

/// Maps code and data elsewhere in turns, with the four kinds of fences in turns.
fn maps(plan: &Plan) -> Asm {
    let mut asm = Asm::at(plan.mains[0].base);
    let back = |asm: &Asm, to: u64| (to as i64 - asm.here() as i64) as i32;
    asm.i(li(S0, 1)).word(S1, ROUNDS as u32);
    let round = asm.here();
    asm.la(T0, memory::SHARED).op(Op::Andi, T1, S0, 0, 3).op(Op::Sd, 0, T0, T1, 24).i(li(T1, 1)).op(
        Op::Sd,
        0,
        T0,
        T1,
        40,
    );
    // A frame of data has its number before it is mapped.
    asm.op(Op::Srli, T3, S0, 0, 1).op(Op::Andi, T4, T3, 0, 3).op(Op::Slli, T4, T4, 0, 12).la(A3, DATA_FRAMES);
    asm.op(Op::Add, A3, A3, T4, 0).op(Op::Sd, 0, A3, T3, 0).op(Op::Srli, A3, A3, 0, 2).op(
        Op::Ori,
        A3,
        A3,
        0,
        RW as i32,
    );
    asm.la(A1, DATA).la(A2, leaf(DATA)).op(Op::Andi, T2, S0, 0, 1).i(encode(Op::Beq, 0, T2, ZERO, 4 + 8 * 4 + 8 * 4));
    let code = asm.here();
    asm.i(addi(T2, S0, 1)).op(Op::Srli, T2, T2, 0, 1).op(Op::Andi, T2, T2, 0, 1).op(Op::Slli, T2, T2, 0, 15);
    asm.la(A1, CODE).la(A2, leaf(CODE)).la(A3, CODE).op(Op::Add, A3, A3, T2, 0);
    asm.op(Op::Srli, A3, A3, 0, 2).op(Op::Ori, A3, A3, 0, memory::RWX as i32);
    while asm.here() < code + 16 * 4 {
        asm.i(addi(ZERO, ZERO, 0));
    }
    asm.op(Op::Sd, 0, T0, A1, 32).i(li(T1, 1)).op(Op::Fence, 0, 0, 0, 0xff).op(Op::Sd, 0, T0, T1, 8);
    asm.op(Op::Fence, 0, 0, 0, 0xff).word(T2, memory::IPI as u32).op(Op::Sw, 0, T2, T1, 4);
    let wait = asm.here();
    asm.op(Op::Ld, T1, T0, 0, 16);
    let to = back(&asm, wait);
    asm.op(Op::Beq, 0, T1, ZERO, to).op(Op::Sd, 0, A2, A3, 0).op(Op::SfenceVma, 0, ZERO, ZERO, 0).op(
        Op::Sd,
        0,
        T0,
        S0,
        NOW,
    );
    asm.op(Op::Fence, 0, 0, 0, 0xff).op(Op::Sd, 0, T0, ZERO, 8);
    let wait = asm.here();
    asm.op(Op::Ld, T1, T0, 0, 16);
    let to = back(&asm, wait);
    asm.op(Op::Bne, 0, T1, ZERO, to).i(li(T1, 2000));
    // The other hart gets on meanwhile.
    asm.i(addi(T1, T1, -1)).i(encode(Op::Bne, 0, T1, ZERO, -4)).i(addi(S0, S0, 1));
    let to = back(&asm, round);
    asm.op(Op::Bge, 0, S1, S0, to).word(T0, STOP as u32).op(Op::Sw, 0, T0, ZERO, 0).i(jal(ZERO, 0, 0));
    asm
}

/// Calls the code and loads the data. If nothing was mapped meanwhile, each is that of the number: s3 counts them, s4 the others.
fn uses(plan: &Plan) -> Asm {
    let mut asm = Asm::at(plan.mains[1].base);
    let round = asm.here();
    asm.la(T0, memory::SHARED).op(Op::Ld, S0, T0, 0, NOW);
    let to = jal(RA, asm.here(), CODE);
    asm.i(to).la(A2, DATA).op(Op::Ld, A2, A2, 0, 0).la(T0, memory::SHARED).op(Op::Ld, S1, T0, 0, NOW);
    let again = (round as i64 - asm.here() as i64) as i32;
    asm.op(Op::Bne, 0, S0, S1, again).i(addi(T1, S0, 1)).op(Op::Srli, T1, T1, 0, 1).op(Op::Andi, T1, T1, 0, 1);
    asm.i(encode(Op::Bne, 0, A1, T1, 20))
        .op(Op::Srli, T1, S0, 0, 1)
        .i(encode(Op::Bne, 0, A2, T1, 12))
        .i(addi(S3, S3, 1));
    let to = jal(ZERO, asm.here(), round);
    asm.i(to).i(addi(S4, S4, 1));
    let to = jal(ZERO, asm.here(), round);
    asm.i(to);
    asm
}

const DATA_FRAMES: u64 = DATA + 0x2_0000;

/// The leaf of a page in the first space.
fn leaf(va: u64) -> u64 {
    memory::table(0, 2) + (va - RAM) / 512
}

#[test]
fn a_hart_that_was_told_of_another_mapping_uses_no_other_on_threads_of_their_own() {
    let setups = [
        oracle(),
        Setup { flags: JitFlags::default(), ram: SIZE, ..Setup::default() },
        Setup { ram: SIZE, ..Setup::default() },
    ];
    for (n, setup) in setups.into_iter().enumerate() {
        let mut plan = plan(&mut Rng::new(3), 1, 2);
        plan.spaces.truncate(1);
        plan.spaces[0].asid = 1;
        plan.spaces[0].code[0] = CODE >> 2 | memory::RWX;
        plan.spaces[0].data[0] = DATA_FRAMES >> 2 | RW;
        plan.mains = vec![maps(&plan), uses(&plan)];
        let mut pair = pair(&setup, &plan);
        for variant in 0..2 {
            let to = jal(ZERO, CODE + 4, CODE + 0x1000);
            pair.vm.put(CODE + variant * 0x8000, &[li(A1, variant as i32), to]);
        }
        pair.vm.put(leaf(CODE + 0x1000), &[(((CODE + 0x1000) >> 2) | memory::RWX) as u32, 0]);
        pair.vm.put(CODE + 0x1000, &[ret()]);
        pair.vm.put(DATA_FRAMES, &[0, 0]);
        let limits = RunLimits { max_insns: None, deadline: Some(Instant::now() + Duration::from_secs(60)) };
        let port = pair.harts[1].port().clone();
        let [first, second] = &mut pair.harts[..] else { unreachable!() };
        let exits = std::thread::scope(|scope| {
            let other = scope.spawn(|| second.run(&limits));
            let exit = first.run(&limits);
            port.request_stop();
            [exit, other.join().unwrap()]
        });
        assert_eq!(
            exits,
            [VcpuExit::Stopped; 2],
            "{n}: {:x?}",
            pair.harts.iter().map(|hart| hart.cpu().pc).collect::<Vec<_>>()
        );
        let x = pair.harts[1].cpu().x;
        assert_eq!(pair.harts[0].cpu().x[usize::from(S0)], ROUNDS + 1, "{n}");
        assert!(
            x[usize::from(S3)] > 0 && x[usize::from(S4)] == 0,
            "{n}: {} right, {} wrong",
            x[usize::from(S3)],
            x[usize::from(S4)]
        );
    }
}
