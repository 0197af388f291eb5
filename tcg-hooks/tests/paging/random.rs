//! Random programs of M-mode that load and store by MPRV, run code in S-mode and U-mode, write page tables, `satp` and PMP, with fences
//! and without. What TLBs keep is in no register, but each engine keeps the same, so the oracle says what is right. Emitted code may
//! know more: what was mapped between pages in use (`Hooks::look`); the few pages here are seldom in such a row.

use super::*;
use notdirty_tcg::testkit::rng::Rng;

/// A virtual address that some scheme leads somewhere: few numbers at each level.
fn virt(rng: &mut Rng) -> u32 {
    let page = rng.below(2) << 30 | rng.below(3) << 21 | rng.below(3) << 12;
    let off = rng.pick(&[rng.clone().below(64) * 64, rng.clone().below(4096), 0xffa + rng.clone().below(6), 0]);
    (page | off) as u32
}

/// A page-table entry: a table, a leaf of some kind, seldom anything.
fn entry(rng: &mut Rng, fenced: bool) -> u32 {
    let ppn = |at: u64| (at >> 12 << 10) as u32;
    let data = DATA + rng.below(4) * 0x1000;
    match rng.below(16) {
        0..5 => ppn(TABLES + rng.below(4) * 0x1000) | 1,
        5..11 => ppn(data) | 0xcf | (rng.below(4) as u32) << 4,
        11..14 => ppn(data) | rng.below(256) as u32 | 1,
        // A superpage: all of RAM, with the program, which stores.
        14 if !fenced => ppn(RAM) | 0xcf | (rng.below(4) as u32) << 4,
        _ if fenced => 0,
        _ => rng.bits() as u32,
    }
}

/// What code and data are made of: short, and back by a call. It stores nothing, if what it wrote is to be fenced before it runs.
fn word(rng: &mut Rng, fenced: bool) -> u32 {
    let imm = rng.within(-40, 40) as i32;
    match rng.below(8) {
        4 if fenced => encode(Op::Lw, S5, T0, 0, imm & !3),
        0..3 => encode(Op::Ecall, 0, 0, 0, 0),
        3 => encode(Op::Ld, S5, T0, 0, imm & !7),
        4 => encode(Op::Sd, 0, T0, S1, imm & !7),
        5 => encode(Op::Sret, 0, 0, 0, 0),
        _ => addi(S1, S1, imm),
    }
}

/// `fenced`: no code runs that was written since the last `fence.i`.
fn program(rng: &mut Rng, fenced: bool) -> Asm {
    let mut asm = Asm::at(CODE);
    for _ in 0..120 {
        let at = virt(rng);
        match rng.below(22) {
            0..5 => {
                let op = rng.pick(&[Op::Lb, Op::Lhu, Op::Lw, Op::Ld, Op::LrW]);
                asm.word(T0, at).op(op, T1, T0, 0, 0).op(Op::Add, S1, S1, T1, 0);
            }
            5..9 => {
                let op = rng.pick(&[Op::Sb, Op::Sh, Op::Sw, Op::Sd, Op::Sw]);
                let value = word(rng, fenced);
                asm.word(T1, value).word(T0, at).op(op, 0, T0, T1, 0);
            }
            9 => {
                let op = rng.pick(&[Op::AmoaddW, Op::AmoorD, Op::ScW, Op::AmoswapD]);
                asm.word(T0, at & !7).op(op, T1, T0, S1, 0).op(Op::Add, S1, S1, T1, 0);
            }
            10..12 => {
                let bits = mstatus::MPRV | mstatus::SUM | mstatus::MXR | mstatus::MPP;
                asm.word(T0, (rng.bits() & bits | mstatus::MPRV) as u32).op(
                    Op::Csrrw,
                    ZERO,
                    T0,
                    0,
                    num::MSTATUS.into(),
                );
            }
            12 => {
                let mode = rng.pick(&[8u32, 8, 8, 9, 10, 0]);
                let root = (TABLES >> 12) as u32 + rng.below(2) as u32;
                asm.word(T0, mode << 16 | rng.below(3) as u32).op(Op::Slli, T0, T0, 0, 44).word(T1, root);
                asm.op(Op::Add, T0, T0, T1, 0).op(Op::Csrrw, ZERO, T0, 0, num::SATP.into());
            }
            13..15 => {
                let (a, b) = (rng.pick(&[ZERO, T0]), rng.pick(&[ZERO, T1]));
                let op = rng.pick(&[Op::SfenceVma, Op::SfenceVma, Op::SinvalVma]);
                asm.word(T0, at).word(T1, rng.below(3) as u32).op(op, 0, a, b, 0);
            }
            15..17 => {
                // By its physical address.
                let place = TABLES + rng.below(4) * 0x1000 + rng.below(3) * 8;
                asm.word(T2, mstatus::MPRV as u32).op(Op::Csrrc, ZERO, T2, 0, num::MSTATUS.into());
                asm.word(T1, entry(rng, fenced)).la(T0, place).op(Op::Sd, 0, T0, T1, 0);
            }
            17 if rng.chance(30) => {
                let n = rng.below(3) as u16;
                let value = ((RAM + rng.below(0x4_8000)) >> 2) | ((1 << rng.below(12)) - 1);
                asm.word(T0, value as u32).op(Op::Csrrw, ZERO, T0, 0, i32::from(num::PMPADDR0 + n));
                // Behind them is one that allows everything, mostly.
                // No locks, which would bind what runs here.
                let config = rng.bits() as u32 & 0x1f_1f1f;
                let last = if rng.chance(90) { 0x1f << 24 } else { 0 };
                let config = if rng.chance(40) { 0 } else { config };
                asm.word(T0, config | last).op(Op::Csrrw, ZERO, T0, 0, num::PMPCFG0.into());
            }
            18 => {
                // The marks that walks leave, where they may, are stores behind the fence.
                let bits = if fenced { 2 } else { 3 };
                asm.word(T0, rng.below(4) as u32 & bits).op(Op::Slli, T0, T0, 0, 61);
                asm.op(Op::Csrrw, ZERO, T0, 0, num::MENVCFG.into());
            }
            19 => {
                asm.op(Op::FenceI, 0, 0, 0, 0);
            }
            _ => {
                if fenced {
                    asm.op(Op::FenceI, 0, 0, 0, 0);
                }
                // Goes on behind, after whatever trap.
                let behind = asm.here() + 4 * 12;
                let mode = rng.pick(&[0, 1 << mstatus::MPP_SHIFT]);
                asm.la(S11, behind).word(T0, at & !3).op(Op::Csrrw, ZERO, T0, 0, num::MEPC.into());
                asm.word(T2, mstatus::MPP as u32).op(Op::Csrrc, ZERO, T2, 0, num::MSTATUS.into());
                asm.word(T1, mode).op(Op::Csrrs, ZERO, T1, 0, num::MSTATUS.into());
                asm.op(Op::Mret, 0, 0, 0, 0);
                assert_eq!(asm.here(), behind);
            }
        }
    }
    asm.word(T2, mstatus::MPRV as u32).op(Op::Csrrc, ZERO, T2, 0, num::MSTATUS.into()).stop();
    asm
}

/// Every other program fences what it wrote before it runs, so that it is the same whenever its instruction stream sees it.
fn is_fenced(seed: u64) -> bool {
    seed % 2 == 1
}

fn machine(setup: &Setup, seed: u64) -> Vm {
    let mut rng = Rng::new(seed);
    let mut vm = Vm::with(setup);
    handler().put(&vm);
    let fenced = is_fenced(seed);
    program(&mut rng, fenced).put(&vm);
    for table in 0..4 {
        for n in 0..3 {
            let bytes = u64::from(entry(&mut rng, fenced)).to_le_bytes();
            vm.space.write(GuestPhys::new(TABLES + table * 0x1000 + n * 8), &bytes).unwrap();
        }
    }
    vm.put(DATA, &Vec::from_iter((0..0x1000).map(|_| word(&mut rng, fenced))));
    let cpu = vm.vcpu.cpu_mut();
    (cpu.csr.mtvec, cpu.pc) = (HANDLER, CODE);
    // Where S-mode's returns go, should one be executed.
    (cpu.csr.sepc, cpu.csr.satp) = (0, 8 << 60 | TABLES >> 12);
    cpu.csr.allow_all_memory();
    vm
}

fn ram(vm: &Vm) -> Vec<u8> {
    let mut bytes = vec![0; vm.block.used_length() as usize];
    vm.block.read_bytes(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn programs_that_change_page_tables_and_protection_do_the_same_on_every_engine() {
    let count = std::env::var("NOTDIRTY_PAGED").ok().and_then(|n| n.parse().ok()).unwrap_or(300u64);
    let (mut traps, mut walks) = (0, 0);
    for seed in 0..count {
        let limits = RunLimits { max_insns: Some(20_000), deadline: Some(Instant::now() + Duration::from_secs(60)) };
        let [(_, oracle), others @ ..] = engines();
        let mut wanted = machine(&oracle, seed);
        let exit = wanted.vcpu.run(&limits);
        traps += wanted.vcpu.stats().traps;
        walks += wanted.vcpu.stats().tlb.load_miss;
        let bytes = ram(&wanted);
        let late = |setup: &Setup| setup.icache == ICache::FenceI;
        for (name, setup) in others.into_iter().filter(|(_, setup)| is_fenced(seed) || !late(setup)) {
            let mut vm = machine(&setup, seed);
            let found = vm.vcpu.run(&limits);
            let (ours, theirs) = (vm.vcpu.cpu(), wanted.vcpu.cpu());
            let what = format!("seed {seed}, {name}");
            assert_eq!(found, exit, "{what}");
            assert_eq!(
                (ours.pc, ours.retired, ours.privilege),
                (theirs.pc, theirs.retired, theirs.privilege),
                "{what}"
            );
            assert_eq!(ours.x, theirs.x, "{what}");
            assert_eq!(csr::difference(&ours.csr, &theirs.csr), None, "{what}");
            assert!(ram(&vm) == bytes, "{what}: RAM");
        }
    }
    assert!(traps > 10 * count && walks > 2 * count, "{traps} traps and {walks} misses in {count} programs");
}
