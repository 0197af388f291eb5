//! What others write over code with the bytes that are there: a reset that puts everything back, a debugger that takes a
//! breakpoint out.

mod common;

use common::*;
use notdirty_softmmu::GuestPhys;
use notdirty_tcg::riscv::Op;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

const F: u64 = RAM + 0x2000;

/// Calls `f` some times; its last answer is in a0.
fn calls(f: u64, rounds: i32) -> Vm {
    let vm = Vm::new();
    let mut main = Asm::at(RAM);
    main.i(li(T2, rounds));
    let start = main.here();
    main.call(f).i(addi(T2, T2, -1));
    let back = start.wrapping_sub(main.here()) as i32;
    main.op(Op::Bne, 0, T2, ZERO, back).stop();
    main.put(&vm);
    vm
}

#[test]
fn a_host_write_of_equal_bytes_kills_no_tb_and_any_other_does() {
    let mut vm = calls(F, 1);
    let (one, two) = ([li(A0, 1), ret()], [li(A0, 2), ret()]);
    vm.put(F, &one);
    vm.run(RAM);
    let translated = vm.translated();
    for n in 1..=20 {
        vm.put(F, &one);
        assert_eq!((vm.vcpu.serve(), vm.vcpu.stats().tb.unchanged), (0, n));
    }
    // The whole page, as a reset puts it back.
    let mut page = vec![0; 0x1000];
    vm.space.read(GuestPhys::new(F), &mut page).unwrap();
    vm.space.write(GuestPhys::new(F), &page).unwrap();
    vm.run(RAM);
    assert_eq!((vm.x(A0), vm.translated(), vm.invalidated()), (1, translated, 0));
    // It is still found by a write that differs, by the last byte of it, and by one that was put back before it ran.
    vm.put(F, &two);
    assert_eq!(vm.vcpu.serve(), 1);
    vm.run(RAM);
    assert_eq!((vm.x(A0), vm.invalidated()), (2, 1));
    vm.put(F + 4, &[addi(ZERO, ZERO, 0)]);
    vm.put(F + 4, &[ret()]);
    assert_eq!(vm.vcpu.serve(), 0);
    vm.run(RAM);
    assert_eq!((vm.x(A0), vm.invalidated()), (2, 1));
    vm.space.write(GuestPhys::new(F + 3), &[li(A0, 5).to_le_bytes()[3] ^ 0x10]).unwrap();
    assert_eq!(vm.vcpu.serve(), 1);
}

#[test]
fn of_a_tb_over_two_pages_both_parts_are_compared() {
    let f = F + 0x1000 - 6;
    let mut vm = calls(f, 1);
    let code = [li(A0, 1), addi(A0, A0, 10), ret()];
    vm.put(f, &code);
    vm.run(RAM);
    assert_eq!(vm.x(A0), 11);
    vm.put(f, &code);
    vm.put(f + 8, &code[2..]);
    assert_eq!(vm.vcpu.serve(), 0);
    for (at, word, want) in [(f + 4, addi(A0, A0, 20), 21), (f, li(A0, 2), 22), (f + 4, addi(A0, A0, 30), 32)] {
        vm.put(at, &[word]);
        assert_eq!(vm.vcpu.serve(), 1);
        vm.run(RAM);
        assert_eq!(vm.x(A0), want);
    }
}

#[test]
fn whoever_writes_last_is_seen_whatever_was_put_back_meanwhile() {
    let mut vm = calls(F, 300);
    let versions = [li(A0, 1), li(A0, 2)];
    vm.put(F, &[versions[0], ret()]);
    let seen = std::cell::Cell::new(0);
    // On a machine that is busy the writers may take long to meet.
    for round in (0..4000u64).take_while(|round| *round < 400 || seen.get() == 0) {
        let (space, done) = (vm.space.clone(), AtomicBool::new(false));
        thread::scope(|scope| {
            for writer in 0..2u64 {
                let (space, done) = (&space, &done);
                scope.spawn(move || {
                    let mut n = round + writer;
                    while !done.load(Relaxed) {
                        n += 1;
                        let word = versions[(n / 2 % 2) as usize].to_le_bytes();
                        space.write(GuestPhys::new(F), &word).expect("RAM is there");
                        (0..n * 37 % 200).for_each(|_| std::hint::spin_loop());
                    }
                });
            }
            vm.run(RAM);
            done.store(true, Relaxed);
        });
        let mut last = [0; 4];
        vm.space.read(GuestPhys::new(F), &mut last).unwrap();
        vm.run(RAM);
        let want = 1 + u64::from(u32::from_le_bytes(last) == versions[1]);
        assert_eq!(vm.x(A0), want, "round {round}");
        seen.set(vm.vcpu.stats().tb.unchanged);
    }
    assert!(seen.get() > 0, "no write was ever of equal bytes");
}
