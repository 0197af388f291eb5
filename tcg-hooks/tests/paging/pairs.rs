//! Accesses off one base, which share a check, at every edge: of a page, of what is mapped, of RAM.
//!
//! ```text
//!   two or three accesses at s0, s0 + gap, …   first where all is well, then at each address near an edge
//!   page 4 code │ 5 RW │ 6 RW, elsewhere │ 7 none │ … │ 9 RW │ 10 RW, behind it │ 11 none
//! ```
use super::*;

/// What each engine leaves: the registers loaded, what the handler noted, and a sum of the data's bytes.
type Left = (Vec<u64>, u64);

/// Does the accesses at `good`, then at `at`.
fn run(vm: &mut Vm, code: (u64, u64), accesses: &[u32], good: u64, at: u64) -> Left {
    let mut asm = Asm::at(code.1);
    let again = asm.here();
    accesses.iter().for_each(|&word| {
        asm.i(word);
    });
    asm.i(addi(S0, S5, 0)).i(addi(A4, A4, -1));
    asm.op(Op::Bne, 0, A4, 0, (again as i64 - asm.here() as i64) as i32).op(Op::Jalr, 0, S11, 0, 0);
    vm.put(code.0, &asm.code);
    let cpu = vm.vcpu.cpu_mut();
    cpu.x = [0; 32];
    for (register, value) in [(S0, good), (S5, at), (A4, 3), (S11, CODE), (T0, 0x1111_2222_3333_4444), (T1, !5)] {
        cpu.x[usize::from(register)] = value;
    }
    vm.run(code.1);
    let mut bytes = vec![0; 0x5000];
    vm.space.read(GuestPhys::new(DATA), &mut bytes[..0x4000]).unwrap();
    let end = RAM + 0x10_0000 - 0x1000;
    vm.space.read(GuestPhys::new(end), &mut bytes[0x4000..]).unwrap();
    let sum = bytes.iter().fold(0u64, |sum, &byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    (vm.vcpu.cpu().x.to_vec(), sum)
}

fn groups() -> Vec<Vec<u32>> {
    let mut all = Vec::new();
    for gap in [8, 16, 24, 264, 2040] {
        let load = |rd, imm| encode(Op::Ld, rd, S0, 0, imm);
        let store = |rs, imm| encode(Op::Sd, 0, S0, rs, imm);
        all.push(vec![load(A1, 0), load(A2, gap)]);
        all.push(vec![load(A1, gap), encode(Op::Lbu, A2, S0, 0, -1), load(A3, 0)]);
        all.push(vec![store(T0, gap), store(T1, 0)]);
        all.push(vec![store(T0, -8), encode(Op::Sb, 0, S0, T1, gap), store(T1, 0)]);
        all.push(vec![load(A1, 0), store(T0, 0), load(A2, gap), store(T1, gap)]);
    }
    all.push(vec![encode(Op::Lw, A1, S0, 0, 0), encode(Op::Lw, A2, S0, 0, 4)]);
    all.push(vec![encode(Op::Sw, 0, S0, T0, 4), encode(Op::Sw, 0, S0, T1, 0)]);
    all
}

const NEAR_IT: [i64; 13] = [-2048, -264, -33, -24, -16, -9, -8, -7, -1, 0, 1, 8, 16];

#[test]
fn accesses_that_share_a_check_are_right_at_every_edge_of_what_is_mapped() {
    let code = DATA + 0x3000;
    let map = [(4, code, RX), (5, DATA, RW), (6, DATA + 0x2000, RW), (9, DATA + 0x1000, RW), (10, DATA + 0x2000, RW)];
    for accesses in groups() {
        let mut wanted = Vec::new();
        for (name, setup) in engines() {
            let mut cases = 0;
            for edge in [0x5000i64, 0x6000, 0x7000, 0x9000, 0xa000, 0xb000] {
                let mut vm = paged(&setup, &map);
                for near in NEAR_IT {
                    vm.vcpu.cpu_mut().privilege = Privilege::S;
                    let left = run(&mut vm, (code, 0x4000), &accesses, 0x9800, (edge + near) as u64);
                    if name == "oracle" {
                        wanted.push(left);
                    } else {
                        assert_eq!(left, wanted[cases], "{name}: {accesses:x?} at {edge:#x} {near:+}");
                    }
                    cases += 1;
                }
            }
        }
    }
}

#[test]
fn accesses_that_share_a_check_are_right_at_both_ends_of_ram() {
    for accesses in groups() {
        let mut wanted = Vec::new();
        for (name, setup) in engines() {
            let mut cases = 0;
            for edge in [RAM, RAM + 0x10_0000] {
                let mut vm = paged(&setup, &[]);
                vm.vcpu.cpu_mut().csr.satp = 0;
                for near in NEAR_IT {
                    vm.vcpu.cpu_mut().privilege = Privilege::M;
                    let at = edge.wrapping_add_signed(near);
                    let left = run(&mut vm, (RAM + 0x3000, RAM + 0x3000), &accesses, DATA, at);
                    if name == "oracle" {
                        wanted.push(left);
                    } else {
                        assert_eq!(left, wanted[cases], "{name}: {accesses:x?} at {edge:#x} {near:+}");
                    }
                    cases += 1;
                }
            }
        }
    }
}
