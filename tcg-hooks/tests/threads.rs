//! One vCPU runs; other threads write its code, change its map, raise its interrupts and stop it.

mod common;

use common::*;
use notdirty_core::RamBlockSpec;
use notdirty_softmmu::GuestPhys;
use notdirty_softmmu::raw::{self, Request};
use notdirty_tcg::clock::Clock;
use notdirty_tcg::riscv::{Op, Privilege};
use notdirty_tcg::{EngineKind, JitFlags, RunLimits, Vcpu, VcpuExit};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

fn soon() -> RunLimits {
    RunLimits { max_insns: None, deadline: Some(Instant::now() + Duration::from_secs(60)) }
}

/// Raises a flag when dropped, so that the other thread ends when this one fails.
struct Raise<'a>(&'a AtomicBool);
impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[test]
fn code_that_another_thread_wrote_is_run_once_the_writer_is_done() {
    // CODE-1, TB-1, MARK-1. The guest kills and translates the function all the time, and the writer writes it at
    // any moment of that; when the writer stands still, what runs is what it wrote last.
    let mut vm = Vm::new();
    let f = RAM + 0x2000;
    vm.put(f, &[li(A0, 0), ret()]);
    let mut main = Asm::at(RAM);
    // Storing the second word again kills what was made of the first.
    main.la(T0, f).op(Op::Lw, T1, T0, 0, 4).i(sw(T1, T0, 4)).call(f).stop();
    main.put(&vm);
    let (wanted, written) = (AtomicU64::new(0), AtomicU64::new(0));
    let end = AtomicBool::new(false);
    let space = vm.space.clone();
    std::thread::scope(|scope| {
        let (wanted, written, end) = (&wanted, &written, &end);
        scope.spawn(move || {
            let mut n = 0u64;
            while !end.load(Ordering::Acquire) {
                if wanted.load(Ordering::Acquire) == n {
                    std::hint::spin_loop();
                    continue;
                }
                n += 1;
                for _ in 0..(n * 7919) % 900 {
                    std::hint::spin_loop();
                }
                space.write(GuestPhys::new(f), &li(A0, (n % 2000) as i32).to_le_bytes()).unwrap();
                written.store(n, Ordering::Release);
            }
        });
        let _end = Raise(end);
        for n in 1..4000 {
            wanted.store(n, Ordering::Release);
            let until = Instant::now() + Duration::from_secs(30);
            while written.load(Ordering::Acquire) < n {
                vm.run(RAM);
                assert!(Instant::now() < until, "the writer is stuck");
            }
            // Without the store of our own, which would hide a stale translation.
            vm.vcpu.cpu_mut().x[usize::from(T0)] = f;
            vm.run(RAM + 16);
            assert_eq!(vm.x(A0), n % 2000);
        }
    });
}

#[test]
fn code_that_another_thread_wrote_is_seen_after_fence_i() {
    // TB-1: the guest polls a flag in memory, which no safe point interrupts; fence.i drains what was posted.
    let mut vm = Vm::new();
    let (f, flag) = (RAM + 0x2000, RAM + 0x3000);
    vm.put(f, &[li(A0, 0), ret()]);
    let mut main = Asm::at(RAM);
    main.la(T0, flag).i(li(A0, -1));
    main.op(Op::Lw, T1, T0, 0, 0).op(Op::Bne, 0, T1, T2, -4).op(Op::FenceI, 0, 0, 0, 0);
    main.call(f).stop();
    main.put(&vm);
    let space = vm.space.clone();
    let (round, end) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (round, end) = (&round, &end);
        scope.spawn(move || {
            let mut n = 0;
            while !end.load(Ordering::Acquire) {
                if round.load(Ordering::Acquire) == n {
                    std::thread::yield_now();
                    continue;
                }
                n += 1;
                // Once the guest spins, most likely.
                let from = Instant::now();
                while from.elapsed() < Duration::from_micros(60) {
                    std::hint::spin_loop();
                }
                space.write(GuestPhys::new(f), &li(A0, (n % 2000) as i32).to_le_bytes()).unwrap();
                space.write(GuestPhys::new(flag), &(n as u32).to_le_bytes()).unwrap();
            }
        });
        let _end = Raise(end);
        for n in 1..2000u64 {
            vm.vcpu.cpu_mut().x[usize::from(T2)] = n;
            round.store(n, Ordering::Release);
            vm.run(RAM);
            assert_eq!(vm.x(A0), n % 2000);
        }
    });
}

#[test]
fn memory_is_mapped_and_unmapped_while_the_guest_uses_it() {
    // RAM-1: what the guest touches is the old block, the new one, or nothing; never freed memory.
    let mut vm = Vm::new();
    let window = 0x9000_0000;
    let mut main = Asm::at(RAM);
    // Loads, stores and calls into the window; traps go on behind it.
    main.op(Op::Lui, T0, 0, 0, window as u32 as i32).op(Op::Slli, T0, T0, 0, 32).op(Op::Srli, T0, T0, 0, 32);
    main.la(T2, RAM + 0x100).op(Op::Csrrw, 0, T2, 0, 0x305);
    let top = main.here();
    main.op(Op::Ld, T1, T0, 0, 8).op(Op::Sd, 0, T0, A0, 16).op(Op::Jalr, RA, T0, 0, 0).i(addi(A1, A1, 1)).jump(top);
    main.put(&vm);
    let mut handler = Asm::at(RAM + 0x100);
    // Back to the counting, whatever happened.
    handler.la(T2, top + 12).op(Op::Csrrw, 0, T2, 0, 0x341).op(Op::Mret, 0, 0, 0, 0);
    handler.put(&vm);
    let (space, list, port) = (vm.space.clone(), vm.list.clone(), vm.vcpu.port().clone());
    let vcpu = &mut vm.vcpu;
    vcpu.cpu_mut().pc = RAM;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for n in 0..1500 {
                let block = list.add(RamBlockSpec::new("window", 0x1000)).unwrap();
                let id = space.map_ram(GuestPhys::new(window), &block, 0, 0x1000, 0).unwrap();
                space.write(GuestPhys::new(window), &bytes(&[addi(A0, A0, 1), ret()])).unwrap();
                if n % 3 == 0 {
                    for port in space.vcpus().all() {
                        let ticket = raw::post(&port, Request::FlushAll);
                        raw::wait_served(&port, ticket, Some(Duration::from_secs(20)));
                    }
                }
                space.unmap(id).unwrap();
                list.remove(&block).unwrap();
            }
            port.request_stop();
        });
        assert_eq!(vcpu.run(&soon()), VcpuExit::Stopped);
    });
    assert!(vm.x(A1) > 1000, "{}", vm.x(A1));
}

#[test]
fn a_vcpu_moves_between_threads_and_outlives_what_made_it() {
    let vm = Vm::new();
    let mut main = Asm::at(RAM);
    main.i(li(T0, 1000)).i(addi(A0, A0, 1)).i(addi(T0, T0, -1)).op(Op::Bne, 0, T0, ZERO, -8).stop();
    main.put(&vm);
    let Vm { list, block, space, vcpu } = vm;
    drop((list, block, space));
    let mut vcpu: Vcpu = vcpu;
    for n in 1..20 {
        vcpu = std::thread::spawn(move || {
            vcpu.cpu_mut().pc = RAM;
            assert_eq!(vcpu.run(&soon()), VcpuExit::Stopped);
            vcpu
        })
        .join()
        .unwrap();
        assert_eq!(vcpu.cpu().x[usize::from(A0)], 1000 * n);
    }
}

#[test]
fn interrupts_and_posts_from_many_threads_lose_nothing() {
    let mut vm = Vm::new();
    let mut main = Asm::at(RAM);
    main.la(T0, RAM + 0x100).op(Op::Csrrw, 0, T0, 0, 0x305).i(li(T0, 8)).op(Op::Csrrs, 0, T0, 0, 0x304);
    main.op(Op::Csrrsi, 0, 8, 0, 0x300);
    let top = main.here();
    main.i(addi(A1, A1, 1)).op(Op::Wfi, 0, 0, 0, 0).jump(top);
    main.put(&vm);
    // The handler counts, waits until the line is low, and says so; then it may be raised again.
    let mut handler = Asm::at(RAM + 0x100);
    handler.i(addi(A0, A0, 1)).la(T1, RAM + 0x3000).op(Op::Sd, 0, T1, A0, 0);
    handler.op(Op::Csrrs, T2, 0, 0, 0x344).op(Op::Andi, T2, T2, 0, 8).op(Op::Bne, 0, T2, ZERO, -8);
    handler.op(Op::Sd, 0, T1, A0, 8).op(Op::Mret, 0, 0, 0, 0);
    handler.put(&vm);
    let (space, port) = (vm.space.clone(), vm.vcpu.port().clone());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop = &stop;
        let noise = space.clone();
        scope.spawn(move || {
            while !stop.load(Ordering::Acquire) {
                for port in noise.vcpus().all() {
                    raw::post(&port, Request::FlushAll);
                }
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        scope.spawn(move || {
            let _end = Raise(stop);
            let reaches = |cell: u64, n: u64| {
                let until = Instant::now() + Duration::from_secs(20);
                let mut bytes = [0; 8];
                while u64::from_le_bytes(bytes) < n && Instant::now() < until {
                    space.read(GuestPhys::new(cell), &mut bytes).unwrap();
                }
                u64::from_le_bytes(bytes) >= n
            };
            for n in 1..300 {
                port.set_irq(3, true);
                let taken = reaches(RAM + 0x3000, n);
                port.set_irq(3, false);
                if !taken || !reaches(RAM + 0x3008, n) {
                    break;
                }
            }
            port.request_stop();
        });
        vm.vcpu.cpu_mut().pc = RAM;
        assert_eq!(vm.vcpu.run(&soon()), VcpuExit::Stopped);
    });
    assert_eq!(vm.x(A0), 299, "interrupts");
}

#[test]
fn two_vcpus_on_one_space_share_data_and_each_has_its_own_code() {
    // One after the other, on one thread: each sees the other's stores, and a code write that was posted kills in both.
    // (At the same time: `harts.rs`, and `guests/tests/smp.rs`.)
    let mut vm = Vm::new();
    let mut second = vcpu_on(&vm.space, &Setup::default(), Arc::new(Clock::insns()));
    let (f, cell) = (RAM + 0x2000, RAM + 0x3000);
    vm.put(f, &[li(A0, 1), ret()]);
    let mut main = Asm::at(RAM);
    main.la(T0, cell).op(Op::AmoaddD, 0, T0, A2, 0).call(f).stop();
    main.put(&vm);
    let go = |vcpu: &mut Vcpu| {
        vcpu.cpu_mut().pc = RAM;
        vcpu.cpu_mut().x[usize::from(A2)] = 1;
        // The stop device knows the first one only: the other ends by its limit.
        let exit = vcpu.run(&RunLimits { max_insns: Some(vcpu.cpu().retired + 5000), deadline: None });
        assert!(matches!(exit, VcpuExit::Stopped | VcpuExit::InsnLimit));
        vcpu.cpu().x[usize::from(A0)]
    };
    for n in 1..50 {
        vm.put(f, &[li(A0, n)]);
        assert_eq!(go(&mut vm.vcpu), n as u64);
        assert_eq!(go(&mut second), n as u64);
        let _ = vm.vcpu.port().take_stop();
    }
    assert_eq!(vm.block.load(0x3000, 8).unwrap(), 98);
}

#[test]
fn page_tables_that_one_hart_stores_lead_another_to_either_page_and_marks_bring_no_old_entry_back() {
    // The first hart, in S-mode, forgets all translations each turn, loads by one entry and calls by another; the second stores both
    // entries, unmarked, and reads them again. A mark that were no compare-and-swap of what the walk read would put an old one back.
    const TABLES: u64 = RAM + 0x1_0000;
    let (leaves, data, code) = (TABLES + 0x2000, RAM + 0x2_0000, RAM + 0x2_2000);
    let (seen, called) = (S0, S1);
    for (name, setup, turns) in [
        ("translated", Setup::default(), 30_000),
        ("tiers", Setup { flags: JitFlags::default(), ..Setup::default() }, 30_000),
        ("oracle", Setup { engine: EngineKind::Interp, ..Setup::default() }, 10_000),
    ] {
        let mut vm = Vm::with(&setup);
        let write = |at: u64, value: u64| vm.space.write(GuestPhys::new(at), &value.to_le_bytes()).unwrap();
        // Devices and RAM as they are, and behind the first GiB the two pages.
        for (n, entry) in [0xcf, (TABLES + 0x1000) >> 2 | 1, RAM >> 2 | 0xcf].into_iter().enumerate() {
            write(TABLES + 8 * n as u64, entry);
        }
        write(TABLES + 0x1000, leaves >> 2 | 1);
        for n in 0..2 {
            write(data + n * 0x1000, 1 + n);
            vm.put(code + n * 0x1000, &[li(A0, 1 + n as i32), ret()]);
        }
        let entries = [data, data + 0x1000, code, code + 0x1000].map(|at| at >> 2 | if at < code { 7 } else { 0xb });
        let [a, b, c, d] = [20u8, 21, 22, 23];
        write(leaves, entries[0]);
        write(leaves + 8, entries[2]);

        // What it loads and what the call returns less one are 0 or 1, and both come.
        let mut reader = Asm::at(RAM);
        reader.word(T1, turns);
        let again = reader.here();
        reader.op(Op::SfenceVma, 0, 0, 0, 0).op(Op::Ld, A1, A2, 0, 0).op(Op::Sd, 0, A2, A1, 8);
        reader.op(Op::Addi, A1, A1, 0, -1).op(Op::Jalr, RA, A3, 0, 0).op(Op::Addi, A0, A0, 0, -1);
        reader.op(Op::Or, T3, T3, A0, 0).op(Op::Or, T3, T3, A1, 0);
        reader.op(Op::Add, seen, seen, A1, 0).op(Op::Add, called, called, A0, 0).op(Op::Addi, T1, T1, 0, -1);
        reader.op(Op::Bne, 0, T1, ZERO, again.wrapping_sub(reader.here()) as i32).stop();
        reader.put(&vm);
        let mut writer = Asm::at(RAM + 0x4000);
        let again = writer.here();
        for pair in [[a, c], [b, d]] {
            writer.op(Op::Sd, 0, A2, pair[0], 0).op(Op::Sd, 0, A2, pair[1], 8);
            // Not what this hart's own stores forward, and for long enough that a walk in the middle of it ends.
            writer.op(Op::Fence, 0, 0, 0, 0xff).op(Op::Addi, T1, ZERO, 0, 20);
            let look = writer.here();
            for (n, entry) in pair.into_iter().enumerate() {
                writer.op(Op::Ld, T0, A2, 0, 8 * n as i32).op(Op::Xor, T0, T0, entry, 0);
                // But for the marks it is what was stored.
                writer.op(Op::Srli, T0, T0, 0, 8).op(Op::Or, T3, T3, T0, 0);
            }
            writer.op(Op::Addi, T1, T1, 0, -1);
            let back = look.wrapping_sub(writer.here()) as i32;
            writer.op(Op::Bne, 0, T1, ZERO, back);
        }
        writer.op(Op::Addi, T2, T2, 0, 1);
        writer.op(Op::Jal, 0, 0, 0, again.wrapping_sub(writer.here()) as i32);
        writer.put(&vm);

        let mut second = vcpu_on(&vm.space, &setup, Arc::new(Clock::insns()));
        for vcpu in [&mut vm.vcpu, &mut second] {
            vcpu.cpu_mut().csr.allow_all_memory();
            vcpu.cpu_mut().x = [0; 32];
        }
        let cpu = second.cpu_mut();
        for (register, value) in [(a, entries[0]), (b, entries[1]), (c, entries[2]), (d, entries[3]), (A2, leaves)] {
            cpu.x[usize::from(register)] = value;
        }
        cpu.pc = RAM + 0x4000;
        let cpu = vm.vcpu.cpu_mut();
        (cpu.csr.satp, cpu.csr.menvcfg, cpu.privilege) = (8 << 60 | TABLES >> 12, 1 << 61, Privilege::S);
        (cpu.x[usize::from(A2)], cpu.x[usize::from(A3)]) = (1 << 30, (1 << 30) + 0x1000);
        let end = AtomicBool::new(false);
        let mut all = 0;
        let rounds = std::thread::scope(|scope| {
            let (end, second) = (&end, &mut second);
            let writer = scope.spawn(move || {
                while !end.load(Ordering::Acquire) {
                    let until = second.cpu().retired + 1000;
                    second.run(&RunLimits { max_insns: Some(until), deadline: None });
                }
                (second.cpu().x[usize::from(T3)], second.cpu().x[usize::from(T2)])
            });
            let raise = Raise(end);
            // Until it saw all four pages, if the host runs one thread at a time.
            let started = Instant::now();
            loop {
                vm.run(RAM);
                all += u64::from(turns);
                let both = [seen, called].map(|register| vm.x(register)).iter().all(|&ones| ones > 0 && ones < all);
                if both || started.elapsed() > Duration::from_secs(60) {
                    break;
                }
            }
            drop(raise);
            let (wrong, rounds) = writer.join().unwrap();
            assert_eq!(wrong, 0, "{name}: an entry was not what was stored, after {rounds} rounds");
            rounds
        });
        assert!(vm.x(T3) <= 1, "{name}: neither page, {:#x}", vm.x(T3));
        for (what, ones) in [("loads", vm.x(seen)), ("calls", vm.x(called))] {
            assert!(ones > 0 && ones < all, "{name}: {ones} {what} of {all} by one of the entries, {rounds} rounds");
        }
        // It stands still: what it stored last holds from the next fence on.
        let now = [0, 8].map(|at| vm.block.load(leaves - RAM + at, 8).unwrap() >> 10 << 12);
        let mut last = Asm::at(RAM + 0x8000);
        last.op(Op::SfenceVma, 0, 0, 0, 0).op(Op::Ld, A1, A2, 0, 0).op(Op::Jalr, RA, A3, 0, 0).stop();
        last.put(&vm);
        vm.run(RAM + 0x8000);
        assert_eq!(vm.x(A1), 1 + (now[0] - data) / 0x1000, "{name}");
        assert_eq!(vm.x(A0), 1 + (now[1] - code) / 0x1000, "{name}");
    }
}
