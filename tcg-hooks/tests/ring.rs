//! Dirty rings under running code: a full ring is an exit exactly behind the instruction that filled it, for every engine,
//! and a harvest, at any time and from any thread, misses no store.

mod common;

use common::{A0, Asm, RAM, Setup, T0, T1, T2, T6, Vm, ZERO, eager};
use notdirty_core::{DirtyClient, DirtyLog, PAGE_SIZE, PageIndex, RamList};
use notdirty_softmmu::GuestPhys;
use notdirty_tcg::riscv::{Op, Privilege};
use notdirty_tcg::{EngineKind, JitFlags, RunLimits, VcpuExit};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const DATA: u64 = RAM + 4 * MIB;
const ENTRIES: u32 = 128;
/// Pages that fill such a ring to its soft limit.
const SOFT: u64 = 64;

const MINUTE: Option<Duration> = Some(Duration::from_secs(60));

fn log(list: &Arc<RamList>) -> DirtyLog {
    list.log(DirtyClient::MIGRATION).rings(ENTRIES).timeout(MINUTE).start().unwrap()
}

fn soon() -> RunLimits {
    RunLimits { max_insns: None, deadline: Some(Instant::now() + Duration::from_secs(60)) }
}

/// The oracle, the JIT alone, the JIT behind tier 0, and some of its switches.
fn engines() -> Vec<(&'static str, Setup)> {
    let jit = |flags| Setup { flags, ram: 64 * MIB, ..Setup::default() };
    vec![
        ("oracle", Setup { engine: EngineKind::Interp, ..jit(eager()) }),
        ("jit", jit(eager())),
        ("tier 0 and jit", jit(JitFlags::default())),
        ("jit, no flat addend", jit(JitFlags { flat_addend: false, ..eager() })),
        ("jit, small TLB", jit(JitFlags { big_tlb: false, ..eager() })),
        ("jit, basic blocks", jit(JitFlags { regions: false, chaining: false, ..eager() })),
    ]
}

/// Runs from `RAM`; the log is synced only at the exits. At the n-th one `at(n)` says the instructions retired, the pc and
/// the pages stored to so far, as numbers from `DATA` on.
fn exits_are_precise(asm: &Asm, pages: u64, at: impl Fn(u64) -> (u64, u64)) {
    for (name, setup) in engines() {
        let mut vm = Vm::with(&setup);
        asm.put(&vm);
        let log = log(&vm.list);
        vm.vcpu.cpu_mut().pc = RAM;
        let mut exits = 0;
        let mut found = Vec::new();
        loop {
            let exit = vm.vcpu.run(&soon());
            if exit == VcpuExit::RingFull {
                exits += 1;
                let now = (vm.vcpu.cpu().retired, vm.vcpu.cpu().pc);
                assert_eq!(now, at(exits), "{name}, exit {exits}");
                for _ in 0..2 {
                    assert_eq!(vm.vcpu.run(&soon()), VcpuExit::RingFull, "{name}: it ran on");
                    assert_eq!((vm.vcpu.cpu().retired, vm.vcpu.cpu().pc), now, "{name}");
                }
            }
            let harvest = log.sync(None).unwrap().commit();
            let new: Vec<_> = harvest.ranges().flat_map(|range| range.iter()).map(PageIndex::get).collect();
            found.extend(new.iter().map(|page| page - vm.page(DATA).get()));
            if exit != VcpuExit::RingFull {
                assert_eq!(exit, VcpuExit::Stopped, "{name}");
                break;
            }
            assert_eq!(found.len() as u64, exits * SOFT, "{name}, exit {exits}");
        }
        assert_eq!(exits, pages / SOFT, "{name}");
        assert!(found.iter().copied().eq(0..pages), "{name}: each page once, in order");
    }
}

/// Five instructions, then four for each page, the first of which is the store.
fn one_store_a_page(pages: u64) -> Asm {
    let mut asm = Asm::at(RAM);
    asm.la(T0, DATA).word(T1, pages as u32).op(Op::Lui, T2, 0, 0, PAGE_SIZE as i32);
    let again = asm.here();
    asm.op(Op::Sd, 0, T0, T1, 8).op(Op::Add, T0, T0, T2, 0).op(Op::Addi, T1, T1, 0, -1);
    let back = again.wrapping_sub(asm.here()) as i32;
    asm.op(Op::Bne, 0, T1, ZERO, back).stop();
    asm
}

#[test]
fn a_full_ring_is_an_exit_behind_the_store_that_filled_it() {
    let asm = one_store_a_page(10_000);
    exits_are_precise(&asm, 10_000, |n| (5 + 4 * (n * SOFT - 1) + 1, RAM + 4 * 5 + 4));
}

/// Code that runs once is tier 0's, where there is one.
#[test]
fn a_full_ring_is_an_exit_in_code_that_runs_once_too() {
    let mut asm = Asm::at(RAM);
    asm.la(T0, DATA).op(Op::Lui, T2, 0, 0, PAGE_SIZE as i32);
    for _ in 0..300 {
        asm.op(Op::Sw, 0, T0, T0, 0).op(Op::Add, T0, T0, T2, 0);
    }
    asm.stop();
    exits_are_precise(&asm, 300, |n| {
        let insns = 3 + 2 * (n * SOFT - 1) + 1;
        (insns, RAM + 4 * insns)
    });
}

#[test]
fn a_full_ring_is_an_exit_behind_a_store_over_two_pages_and_behind_an_atomic() {
    let mut asm = Asm::at(RAM);
    asm.la(A0, DATA + PAGE_SIZE - 3).word(T1, 500).op(Op::Lui, T2, 0, 0, 2 * PAGE_SIZE as i32);
    let again = asm.here();
    asm.op(Op::Sd, 0, A0, T1, 0).op(Op::Add, A0, A0, T2, 0).op(Op::Addi, T1, T1, 0, -1);
    let back = again.wrapping_sub(asm.here()) as i32;
    asm.op(Op::Bne, 0, T1, ZERO, back).stop();
    exits_are_precise(&asm, 1000, |n| (5 + 4 * (n * SOFT / 2 - 1) + 1, RAM + 4 * 5 + 4));

    let mut asm = Asm::at(RAM);
    asm.la(T0, DATA).word(T1, 1000).op(Op::Lui, T2, 0, 0, PAGE_SIZE as i32);
    let again = asm.here();
    asm.op(Op::AmoorD, T6, T0, T1, 0).op(Op::Add, T0, T0, T2, 0).op(Op::Addi, T1, T1, 0, -1);
    let back = again.wrapping_sub(asm.here()) as i32;
    asm.op(Op::Bne, 0, T1, ZERO, back).stop();
    exits_are_precise(&asm, 1000, |n| (5 + 4 * (n * SOFT - 1) + 1, RAM + 4 * 5 + 4));
}

/// In S-mode under Sv39, with A and D by the walk: each access is to a page whose entry lies in a page of its own.
#[test]
fn a_full_ring_is_an_exit_behind_the_access_whose_walk_filled_it() {
    const ACCESSES: u64 = 200;
    const TABLES: u64 = RAM + MIB;
    let leaves = TABLES + 2 * PAGE_SIZE;
    // What marks its entry, and what writes its page, too; from an empty ring, and from one with an odd number of entries.
    for (op, each) in [(Op::Ld, 1), (Op::Sd, 2), (Op::AmoaddD, 2)] {
        for before in [0, 1] {
            for (name, setup) in engines() {
                let mut vm = Vm::with(&setup);
                let write = |at: u64, entry: u64| vm.space.write(GuestPhys::new(at), &entry.to_le_bytes()).unwrap();
                write(TABLES, 0xcf);
                write(TABLES + 8, (TABLES + PAGE_SIZE) >> 2 | 1);
                write(TABLES + 16, RAM >> 2 | 0xcf);
                for n in 0..ACCESSES {
                    write(TABLES + PAGE_SIZE + 8 * n, (leaves + n * PAGE_SIZE) >> 2 | 1);
                    write(leaves + n * PAGE_SIZE, (DATA + n * PAGE_SIZE) >> 2 | 7);
                }
                let mut asm = Asm::at(RAM);
                asm.op(Op::Lui, T0, 0, 0, 1 << 30).op(Op::Lui, T2, 0, 0, 2 * MIB as i32).word(T1, ACCESSES as u32);
                asm.la(A0, DATA + 1000 * PAGE_SIZE);
                for _ in 0..before {
                    asm.op(Op::Sd, 0, A0, T1, 0);
                }
                let again = asm.here();
                asm.op(op, if op == Op::Sd { 0 } else { T6 }, T0, T1, 0).op(Op::Add, T0, T0, T2, 0);
                asm.op(Op::Addi, T1, T1, 0, -1);
                asm.op(Op::Bne, 0, T1, ZERO, again.wrapping_sub(asm.here()) as i32).stop();
                asm.put(&vm);
                let log = log(&vm.list);
                let cpu = vm.vcpu.cpu_mut();
                cpu.csr.allow_all_memory();
                (cpu.csr.satp, cpu.csr.menvcfg, cpu.privilege) = (8 << 60 | TABLES >> 12, 1 << 61, Privilege::S);
                cpu.pc = RAM;
                let mut wanted: Vec<u64> = (0..before).map(|_| DATA + 1000 * PAGE_SIZE).collect();
                for n in 0..ACCESSES {
                    wanted.push(leaves + n * PAGE_SIZE);
                    wanted.extend((each == 2).then_some(DATA + n * PAGE_SIZE));
                    let last = n == ACCESSES - 1;
                    if (wanted.len() as u64) < SOFT && !last {
                        continue;
                    }
                    let exit = vm.vcpu.run(&soon());
                    if wanted.len() as u64 >= SOFT {
                        assert_eq!(exit, VcpuExit::RingFull, "{name}, {op:?}, {n}");
                        let now = (again - RAM) / 4 + 4 * n + 1;
                        assert_eq!((vm.vcpu.cpu().retired, vm.vcpu.cpu().pc), (now, again + 4), "{name}, {op:?}, {n}");
                    } else {
                        assert_eq!(exit, VcpuExit::Stopped, "{name}, {op:?}");
                    }
                    let harvest = log.sync(None).unwrap().commit();
                    let found: Vec<_> = harvest.ranges().flat_map(|range| range.iter()).map(PageIndex::get).collect();
                    wanted.sort_unstable();
                    let pages: Vec<_> = wanted.drain(..).map(|at| vm.page(at).get()).collect();
                    assert_eq!(found, pages, "{name}, {op:?}, {n}");
                }
                log.stop();
                let marks = if each == 1 { 0x40 } else { 0xc0 };
                for n in 0..ACCESSES {
                    let mut entry = [0; 8];
                    vm.space.read(GuestPhys::new(leaves + n * PAGE_SIZE), &mut entry).unwrap();
                    assert_eq!(u64::from_le_bytes(entry) & 0xff, 7 | marks, "{name}, {op:?}: entry {n}");
                }
            }
        }
    }
}

/// A limit that is met by the very instruction is found behind the ring, not instead of it.
#[test]
fn a_limit_and_a_full_ring_do_not_hide_each_other() {
    for (name, setup) in engines() {
        let mut vm = Vm::with(&setup);
        one_store_a_page(1000).put(&vm);
        let log = log(&vm.list);
        vm.vcpu.cpu_mut().pc = RAM;
        let full = 5 + 4 * (SOFT - 1) + 1;
        let until = |n| RunLimits { max_insns: Some(n), ..soon() };
        assert_eq!(vm.vcpu.run(&until(full - 1)), VcpuExit::InsnLimit, "{name}");
        assert_eq!(vm.vcpu.run(&until(full)), VcpuExit::RingFull, "{name}");
        assert_eq!(vm.vcpu.cpu().retired, full, "{name}");
        assert_eq!(log.sync(None).unwrap().commit().count(), SOFT);
        assert_eq!(vm.vcpu.run(&until(full)), VcpuExit::InsnLimit, "{name}");
        assert_eq!(vm.vcpu.run(&until(full + 10)), VcpuExit::InsnLimit, "{name}");
        assert_eq!(vm.vcpu.cpu().retired, full + 10, "{name}");
        log.stop();
        assert_eq!(vm.vcpu.run(&soon()), VcpuExit::Stopped, "{name}: no log, no exit");
    }
}

/// A guest that stores to the same pages again and again, a device that writes beside it, and a harvester that keeps a
/// copy by what it is told: in the end the copy is right.
#[test]
fn a_harvester_on_another_thread_keeps_a_copy_of_what_is_written_meanwhile() {
    const PAGES: u64 = 700;
    const ROUNDS: u32 = 15;
    for (name, setup) in engines() {
        let mut vm = Vm::with(&Setup { ram: 8 * MIB, ..setup });
        let mut asm = Asm::at(RAM);
        asm.word(A0, ROUNDS).op(Op::Lui, T2, 0, 0, PAGE_SIZE as i32);
        let round = asm.here();
        asm.la(T0, DATA).word(T1, PAGES as u32);
        let again = asm.here();
        // Twice, so that the second one is fast; not the same value in any two rounds.
        asm.op(Op::Sd, 0, T0, A0, 8).op(Op::Sd, 0, T0, T1, 16).op(Op::Sd, 0, T0, A0, 24);
        asm.op(Op::Add, T0, T0, T2, 0).op(Op::Addi, T1, T1, 0, -1);
        let back = again.wrapping_sub(asm.here()) as i32;
        asm.op(Op::Bne, 0, T1, ZERO, back).op(Op::Addi, A0, A0, 0, -1);
        let back = round.wrapping_sub(asm.here()) as i32;
        asm.op(Op::Bne, 0, A0, ZERO, back).stop();
        asm.put(&vm);
        vm.vcpu.cpu_mut().pc = RAM;
        let (block, space) = (vm.block.clone(), vm.space.clone());
        log(&vm.list).stop(); // once started and stopped, it must leave nothing behind
        let [started, filled, ended] = [const { AtomicBool::new(false) }; 3];
        std::thread::scope(|s| {
            let (started, filled, vcpu) = (&started, &filled, &mut vm.vcpu);
            let ended = Ends(&ended);
            let over = ended.0;
            // Until the ring was full once: how quick the others are is chance, and a page that the device wrote is in no ring.
            let wait = move || {
                while !filled.load(Ordering::Acquire) && !over.load(Ordering::Acquire) {
                    std::thread::yield_now();
                }
            };
            let list = vm.list.clone();
            let harvester = s.spawn(move || {
                let log = log(&list);
                let mut copy = vec![0; 8 * MIB as usize];
                block.read_bytes(0, &mut copy).unwrap();
                started.store(true, Ordering::Release);
                wait();
                let (mut syncs, mut pages) = (0, 0);
                loop {
                    let last = over.load(Ordering::Acquire);
                    let harvest = log.sync(MINUTE).unwrap();
                    for page in harvest.ranges().flat_map(|range| range.iter()) {
                        let off = page.base().get() - block.offset().get();
                        let at = off as usize;
                        block.read_bytes(off, &mut copy[at..at + PAGE_SIZE as usize]).unwrap();
                        pages += 1;
                    }
                    drop(harvest.commit());
                    syncs += 1;
                    if last {
                        break;
                    }
                }
                log.stop();
                let mut now = vec![0; copy.len()];
                block.read_bytes(0, &mut now).unwrap();
                let wrong = copy.iter().zip(&now).position(|(a, b)| a != b);
                assert_eq!(wrong, None, "{name}: a store was neither reported nor read; {syncs} syncs, {pages} pages");
                assert!(pages >= PAGES, "{name}");
            });
            let device = s.spawn(move || {
                wait();
                for n in 0..2000u64 {
                    space.write(GuestPhys::new(DATA + n * 37 % PAGES * PAGE_SIZE + 2040), &n.to_le_bytes()).unwrap();
                }
            });
            while !started.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            let mut full = 0;
            loop {
                match vcpu.run(&soon()) {
                    VcpuExit::RingFull => {
                        assert!(!harvester.is_finished(), "{name}: the harvester gave up");
                        filled.store(true, Ordering::Release);
                        full += 1;
                    }
                    exit => {
                        assert_eq!(exit, VcpuExit::Stopped, "{name}");
                        break;
                    }
                }
                std::thread::yield_now();
            }
            assert!(full > 0, "{name}: its ring is smaller than what it dirties");
            device.join().unwrap();
            drop(ended);
            harvester.join().unwrap();
        });
    }
}

/// Tells the harvester that the program ended, or that its test fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}
