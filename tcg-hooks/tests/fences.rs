//! What `sfence.vma` says of code: a jump that was made before leads to what its address is mapped with behind the fence. Each program
//! is one fence in M-mode, and some code in S-mode, alone in its regime.

mod common;

use common::*;
use notdirty_softmmu::GuestPhys;
use notdirty_tcg::riscv::csr::mstatus;
use notdirty_tcg::riscv::{Op, Privilege};
use notdirty_tcg::testkit::encode;
use notdirty_tcg::{EngineKind, ICache, JitFlags};

const MIB: u64 = 1 << 20;
const HANDLER: u64 = RAM + 0x800;
const FENCE: u64 = RAM + 0x1000;
const TABLES: u64 = RAM + 0x4_0000;
/// Of 4 KiB pages 0 to 511, and of 2 MiB ones.
const LEAVES: u64 = TABLES + 0x2000;
const MIDDLE: u64 = TABLES + 0x1000;
const FRAMES: u64 = RAM + 0x6_0000;
/// Valid, to be read and fetched from, with its mark.
const RX: u64 = 0x4b;

fn engines() -> [(&'static str, Setup); 4] {
    let with = |setup| Setup { ram: 8 * MIB, ..setup };
    [
        ("oracle", with(Setup { engine: EngineKind::Interp, ..Setup::default() })),
        ("tiers", with(Setup { flags: JitFlags::default(), ..Setup::default() })),
        ("translated", with(Setup::default())),
        ("translated, fences", with(Setup { icache: ICache::FenceI, ..Setup::default() })),
    ]
}

fn satp(mode: u64, asid: u64, root: u64) -> u64 {
    mode << 60 | asid << 44 | root >> 12
}

/// A hart whose S-mode sees the tables.
fn machine(setup: &Setup) -> Vm {
    let mut vm = Vm::with(setup);
    vm.put(HANDLER, &stop());
    set(&vm, TABLES, MIDDLE >> 2 | 1);
    set(&vm, MIDDLE, LEAVES >> 2 | 1);
    let cpu = vm.vcpu.cpu_mut();
    cpu.csr.allow_all_memory();
    (cpu.csr.mtvec, cpu.csr.satp) = (HANDLER, satp(8, 5, TABLES));
    vm
}

fn set(vm: &Vm, at: u64, value: u64) {
    vm.space.write(GuestPhys::new(at), &value.to_le_bytes()).unwrap();
}

/// Maps the page of 4 KiB.
fn map(vm: &Vm, page: u64, to: u64) {
    set(vm, LEAVES + 8 * page, to >> 2 | RX);
}

/// What the code at `pc` leaves in a0, behind a fence of an address, an address space, both or neither.
fn call(vm: &mut Vm, fence: (Option<u64>, Option<u64>), pc: u64) -> u64 {
    let register = |operand: Option<u64>, n: u8| if operand.is_some() { n } else { 0 };
    let insn = encode(Op::SfenceVma, 0, register(fence.0, T0), register(fence.1, T1), 0);
    vm.put(FENCE, &[insn, encode(Op::Mret, 0, 0, 0, 0)]);
    go(vm, fence, FENCE, pc)
}

fn go(vm: &mut Vm, operands: (Option<u64>, Option<u64>), from: u64, pc: u64) -> u64 {
    let cpu = vm.vcpu.cpu_mut();
    (cpu.x[usize::from(T0)], cpu.x[usize::from(T1)]) = (operands.0.unwrap_or(0), operands.1.unwrap_or(0));
    (cpu.csr.mepc, cpu.privilege) = (pc, Privilege::M);
    cpu.csr.mstatus = cpu.csr.mstatus & !mstatus::MPP | 1 << 11;
    vm.run(from);
    assert_eq!(vm.vcpu.cpu().csr.mcause, 9, "at {:#x}", vm.vcpu.cpu().csr.mepc);
    vm.x(A0)
}

/// The forms of a fence that are about this address in this address space.
fn forms(va: u64) -> [(Option<u64>, Option<u64>); 4] {
    [(None, None), (Some(va), None), (None, Some(5)), (Some(va), Some(5))]
}

fn ecall() -> u32 {
    encode(Op::Ecall, 0, 0, 0, 0)
}

#[test]
fn code_that_is_mapped_anew_again_and_again_is_the_new_one_behind_each_form_of_the_fence() {
    for (name, setup) in engines() {
        for form in forms(0x5010) {
            let mut vm = machine(&setup);
            for n in 0..6 {
                vm.put(FRAMES + n * 0x1000, &[li(A0, n as i32 + 1), ecall()]);
            }
            for n in [0, 1, 2, 3, 4, 5, 0, 3] {
                map(&vm, 5, FRAMES + n * 0x1000);
                assert_eq!(call(&mut vm, form, 0x5000), n + 1, "{name}, {form:x?}");
                // Twice, so that the way there is known.
                assert_eq!(go(&mut vm, (None, None), FENCE + 4, 0x5000), n + 1, "{name}, {form:x?}");
            }
        }
    }
}

#[test]
fn code_over_two_pages_is_the_new_one_behind_a_fence_of_the_second() {
    for (name, setup) in engines() {
        for form in forms(0x6000) {
            let mut vm = machine(&setup);
            vm.put(FRAMES + 0xffc, &[li(A0, 100)]);
            for n in 1..4 {
                vm.put(FRAMES + n * 0x1000, &[addi(A0, A0, n as i32), ecall()]);
            }
            map(&vm, 5, FRAMES);
            for n in [1, 2, 3, 1] {
                map(&vm, 6, FRAMES + n * 0x1000);
                assert_eq!(call(&mut vm, form, 0x5ffc), 100 + n, "{name}, {form:x?}");
                assert_eq!(go(&mut vm, (None, None), FENCE + 4, 0x5ffc), 100 + n, "{name}, {form:x?}");
            }
        }
    }
}

#[test]
fn code_on_a_superpage_is_the_new_one_behind_a_fence_of_any_address_of_it_and_small_pages_beside_it_do_not_hide_it() {
    let big = |n: u64| RAM + (2 + 2 * n) * MIB;
    for (name, setup) in engines() {
        // Far from the code, on the same superpage.
        for form in forms(2 * MIB + 0x12_3456) {
            let mut vm = machine(&setup);
            vm.put(FRAMES, &[li(A0, 9), ecall()]);
            map(&vm, 5, FRAMES);
            for n in 0..3 {
                vm.put(big(n) + 0x3000, &[li(A0, n as i32 + 1), ecall()]);
            }
            for n in [0, 1, 2, 1] {
                set(&vm, MIDDLE + 8, big(n) >> 2 | RX);
                assert_eq!(call(&mut vm, form, 2 * MIB + 0x3000), n + 1, "{name}, {form:x?}");
                assert_eq!(go(&mut vm, (None, None), FENCE + 4, 0x5000), 9, "{name}, {form:x?}");
                assert_eq!(go(&mut vm, (None, None), FENCE + 4, 2 * MIB + 0x3000), n + 1, "{name}, {form:x?}");
            }
        }
    }
}

#[test]
fn one_asid_under_two_modes_is_two_address_spaces_for_loads_and_for_code() {
    // Both roots have the ASID 5. Nothing is fenced: a mode with tables of its own is nothing that was seen before.
    let (root, upper, middle, leaves) = (TABLES + 0x8000, TABLES + 0x9000, TABLES + 0xa000, TABLES + 0xb000);
    for (name, setup) in engines() {
        let mut vm = machine(&setup);
        for (at, to) in [(root, upper), (upper, middle), (middle, leaves)] {
            set(&vm, at, to >> 2 | 1);
        }
        for n in 0..2u64 {
            // What it loads, ten times what it is.
            let code = [encode(Op::Ld, A0, T0, 0, 0), addi(A0, A0, 10 * (n as i32 + 1)), ecall()];
            vm.put(FRAMES + n * 0x1000, &code);
            set(&vm, FRAMES + (2 + n) * 0x1000, n + 1);
            let table = if n == 0 { LEAVES } else { leaves };
            set(&vm, table + 8 * 5, (FRAMES + n * 0x1000) >> 2 | RX);
            set(&vm, table + 8 * 6, (FRAMES + (2 + n) * 0x1000) >> 2 | RX);
        }
        vm.put(FENCE, &[encode(Op::Csrrw, 0, T1, 0, 0x180), encode(Op::Mret, 0, 0, 0, 0)]);
        for turn in 0..20 {
            let (satp, wanted) = if turn % 2 == 0 { (satp(8, 5, TABLES), 11) } else { (satp(9, 5, root), 22) };
            assert_eq!(go(&mut vm, (Some(0x6000), Some(satp)), FENCE, 0x5000), wanted, "{name}, turn {turn}");
        }
    }
}

#[test]
fn more_address_spaces_than_are_remembered_and_none_each_run_their_own_code_at_one_address() {
    // One address, which is physical in the first and something else in each of the others; nothing is fenced.
    const SPACES: u64 = 20;
    let (pc, tables, frames) = (RAM + 0x9000, RAM + MIB, RAM + 2 * MIB);
    for (name, setup) in engines() {
        let mut vm = machine(&setup);
        vm.put(pc, &[li(A0, 0), ecall()]);
        for n in 1..=SPACES {
            let root = tables + n * 0x4000;
            set(&vm, root + 8 * 2, (root + 0x1000) >> 2 | 1);
            set(&vm, root + 0x1000, (root + 0x2000) >> 2 | 1);
            set(&vm, root + 0x2000 + 8 * 9, (frames + n * 0x1000) >> 2 | RX);
            vm.put(frames + n * 0x1000, &[li(A0, n as i32), ecall()]);
        }
        vm.put(FENCE, &[encode(Op::Csrrw, 0, T1, 0, 0x180), encode(Op::Mret, 0, 0, 0, 0)]);
        for _ in 0..4 {
            for n in 0..=SPACES {
                let satp = if n == 0 { 0 } else { satp(8, n, tables + n * 0x4000) };
                for _ in 0..2 {
                    assert_eq!(go(&mut vm, (None, Some(satp)), FENCE, pc), n, "{name}");
                }
            }
        }
    }
}
