//! One vCPU runs; other threads write its code, change its map, raise its interrupts and stop it.

mod common;

use common::*;
use notdirty_core::RamBlockSpec;
use notdirty_softmmu::GuestPhys;
use notdirty_softmmu::raw::{self, Request};
use notdirty_tcg::clock::Clock;
use notdirty_tcg::riscv::Op;
use notdirty_tcg::{RunLimits, Vcpu, VcpuExit};
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
