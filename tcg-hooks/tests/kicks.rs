//! How late is a kick noticed? Counted in slices and translations, and in CPU time where memory is what is slow.

mod common;

use common::*;
use notdirty_softmmu::VcpuPort;
use notdirty_tcg::clock::Clock;
use notdirty_tcg::riscv::Op;
use notdirty_tcg::trace::{TraceMask, TraceSink};
use notdirty_tcg::{EngineKind, ICache, JitFlags, RunLimits, Vcpu, VcpuConfig, VcpuExit};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

/// CPU time of this thread.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is ours.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) }, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn until(vm: &mut Vm, insns: u64) {
    let max = vm.vcpu.cpu().retired + insns;
    let deadline = Some(Instant::now() + Duration::from_secs(60));
    assert_eq!(vm.vcpu.run(&RunLimits { max_insns: Some(max), deadline }), VcpuExit::InsnLimit);
}

/// Slices that a loop of `insns` instructions takes once it is warm: it is chained, so each slice is an entry.
fn slices(vm: &mut Vm, insns: u64) -> (u64, Duration) {
    until(vm, 1_000_000);
    let (entries, start) = (vm.vcpu.stats().entries, cpu_time());
    until(vm, insns);
    (vm.vcpu.stats().entries - entries, cpu_time() - start)
}

#[test]
fn a_guest_whose_loads_are_slow_is_looked_at_as_often_as_one_whose_are_not() {
    const NODES: u64 = 1 << 20;
    const NODE: u64 = 64;
    let mut vm = Vm::with(&Setup { ram: (NODES + 64) * NODE, ..Setup::default() });
    // One ring through 64 MiB in which neighbours are far apart: a full period, as the multiplier is 1 mod 4.
    let first = 64 * NODE;
    let place = |n: u64| first + n * NODE;
    let mut at = 0;
    for _ in 0..NODES {
        let next = (at * 0x9_c2a5 + 0x5_1f35) % NODES;
        vm.block.store_raw(place(at), 8, RAM + place(next)).unwrap();
        at = next;
    }
    assert_eq!(at, 0, "every node was met");
    let mut asm = Asm::at(RAM);
    asm.la(T0, RAM + first);
    let top = asm.here();
    for _ in 0..100 {
        asm.op(Op::Ld, T0, T0, 0, 0);
    }
    asm.jump(top);
    asm.put(&vm);
    let (entries, took) = slices(&mut vm, 3_000_000);
    let (each, loads) = (took / entries as u32, 3_000_000 / entries);
    println!("{entries} slices of {loads} loads, {each:?} of CPU time each");
    // Some 4 to 8 ms with 65,536 of them to a slice. On the slowest host they are as few as may be.
    assert!(each < Duration::from_micros(500) || loads < 6_000, "{entries} slices, {each:?} each");
}

#[test]
fn a_fast_loop_has_long_slices() {
    let mut vm = Vm::new();
    let mut asm = Asm::at(RAM);
    for _ in 0..100 {
        asm.i(addi(A0, A0, 1));
    }
    asm.jump(RAM);
    asm.put(&vm);
    let (entries, took) = slices(&mut vm, 200 << 16);
    println!("{entries} slices, {:?} of CPU time each", took / entries as u32);
    // Twice as many as there need be; a host that is busy elsewhere makes some of them short.
    assert!(entries < 400, "{entries} slices for 200 of the longest");
}

/// Kicks the vCPU whenever it has translated, and counts the kicks that were still there at the next translation.
struct Kicker {
    port: Arc<Mutex<Weak<VcpuPort>>>,
    translated: Arc<AtomicU64>,
    ignored: Arc<AtomicU64>,
}

impl TraceSink for Kicker {
    fn mask(&self) -> TraceMask {
        TraceMask::TB
    }
    fn line(&mut self, _: TraceMask, text: &str) {
        let Some(port) = self.port.lock().unwrap().upgrade() else { return };
        if text.contains("blocks") {
            self.translated.fetch_add(1, Ordering::Relaxed);
            self.ignored.fetch_add(port.kicked().into(), Ordering::Relaxed);
            port.kick();
        }
    }
}

#[test]
fn a_kick_is_looked_at_before_each_translation() {
    const BLOCKS: u64 = 300;
    for flags in [eager(), JitFlags { chaining: false, ..eager() }, JitFlags::default()] {
        let vm = Vm::new();
        let sink = Kicker { port: Default::default(), translated: Default::default(), ignored: Default::default() };
        let (port, translated, ignored) = (sink.port.clone(), sink.translated.clone(), sink.ignored.clone());
        let config = VcpuConfig {
            engine: EngineKind::Jit,
            hart_id: 0,
            entry: RAM,
            clock: Arc::new(Clock::insns()),
            icache: ICache::Coherent,
            jit_flags: flags,
            tb_cache_bytes: 0,
            trace: Some(Box::new(sink)),
        };
        let mut vcpu = Vcpu::new(&vm.space, config).unwrap();
        *port.lock().unwrap() = Arc::downgrade(vcpu.port());
        // Blocks that are each a TB of their own, found by direct jumps and by indirect ones in turns.
        for n in 0..BLOCKS {
            let at = |n: u64| RAM + 0x4000 + n * 0x44;
            let mut asm = Asm::at(at(n));
            let next = if n + 1 == BLOCKS { at(0) } else { at(n + 1) };
            asm.i(addi(A0, A0, 1));
            match n % 2 {
                0 => asm.la(T0, next).op(Op::Jalr, ZERO, T0, 0, 0),
                _ => asm.call(next),
            };
            asm.put(&vm);
        }
        vcpu.cpu_mut().pc = RAM + 0x4000;
        let deadline = Some(Instant::now() + Duration::from_secs(60));
        assert_eq!(vcpu.run(&RunLimits { max_insns: Some(50_000), deadline }), VcpuExit::InsnLimit);
        assert_eq!(vcpu.cpu().retired, 50_000);
        let (translated, ignored) = (translated.load(Ordering::Relaxed), ignored.load(Ordering::Relaxed));
        assert!(translated >= BLOCKS / 2, "{translated}: the program is not what the test thinks");
        assert_eq!(ignored, 0, "of {translated} kicks");
    }
}

#[test]
fn where_slices_end_nothing_grows_warm() {
    // Sixteen instructions a turn, so that the borders of slices fall on the same one again and again. Were it
    // translated for that, the stores beside it would be slow ones.
    let mut vm = Vm::with(&Setup { flags: JitFlags::default(), ..Setup::default() });
    let f = RAM + 0x100;
    let mut asm = Asm::at(f);
    for _ in 0..9 {
        asm.i(addi(A0, A0, 1));
    }
    asm.i(ret()).put(&vm);
    let mut main = Asm::at(RAM);
    main.la(T0, f).op(Op::Lw, T1, T0, 0, 0).op(Op::Lui, T2, 0, 0, 1 << 20);
    let top = main.here();
    main.op(Op::Xor, T1, T1, T2, 0).i(sw(T1, T0, 0)).op(Op::FenceI, 0, 0, 0, 0).i(addi(A1, A1, 1)).call(f);
    main.jump(top);
    main.put(&vm);
    until(&mut vm, 3_000_000);
    let stats = vm.vcpu.stats();
    let slow = stats.tlb.code_hit;
    assert!(slow < 1_000, "{slow} of {} stores were slow ones: {stats:#?}", 3_000_000 / 16);
}

#[test]
fn the_hot_loop_of_runs_that_are_shorter_than_a_slice_is_made_by_tier_2() {
    let mut vm = Vm::new();
    let mut asm = Asm::at(RAM);
    let top = asm.here();
    asm.i(addi(A0, A0, 1)).i(addi(S5, S5, -1));
    let back = top.wrapping_sub(asm.here()) as i32;
    asm.op(Op::Bne, 0, S5, ZERO, back).stop();
    asm.put(&vm);
    let mut runs = 0;
    while vm.vcpu.stats().tb.tier2 == 0 {
        runs += 1;
        assert!(runs < 2_000, "{:?}", vm.vcpu.stats());
        vm.vcpu.cpu_mut().x[usize::from(S5)] = 300;
        vm.run(RAM);
    }
    println!("after {runs} runs of 900 instructions");
    assert!(vm.x(A0) == 300 * runs, "each run is whole");
}
