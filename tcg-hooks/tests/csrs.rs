//! Every one of the 4,096 numbers, in every form of Zicsr, is what the table of registers says, on every engine.
//!
//! For each number a program does each form with `rd` and `rs1` zero and not, in each mode, and writes down what it read,
//! what it reads afterwards, and what trapped. The table's claims are worked out here a second time.

mod common;

use common::*;
use notdirty_softmmu::GuestPhys;
use notdirty_tcg::riscv::csr::{self, CsrEffect, Gate, Rule, TABLE, Value, envcfg, irq, mstatus, num};
use notdirty_tcg::riscv::{Isa, Op, Privilege};
use notdirty_tcg::testkit::encode;
use notdirty_tcg::{EngineKind, JitFlags};

const HANDLER: u64 = RAM + 0x800;
const CODE: u64 = RAM + 0x1000;
const OPERANDS: u64 = RAM + 0x8000;
const LOG: u64 = RAM + 0x9000;

/// What `rd` holds before.
const BEFORE: i32 = 77;

/// How the hart is when a number's program begins.
#[derive(Debug, Clone, Copy)]
struct Way {
    mode: Privilege,
    /// Have the modes above enabled all that can be, and delegated?
    enabled: bool,
    fs: u64,
    isa: Isa,
}

impl Way {
    /// Does this mode reach the register?
    fn reaches(&self, csr: u16, row: &csr::Row) -> bool {
        let open = match row.gate {
            Gate::None => true,
            Gate::Float => self.fs != 0,
            Gate::Counter | Gate::Timer | Gate::Translation => self.enabled || self.mode == Privilege::M,
        };
        // 0 is U, 1 is S, 3 is M.
        row.present() && open && u64::from(csr >> 8 & 3) <= self.mode.bits()
    }
}

/// One instruction of a number's program.
#[derive(Debug, Clone, Copy)]
struct Case {
    op: Op,
    rd: u8,
    rs1: u8,
    operand: u64,
}

impl Case {
    fn bits(&self, csr: u16) -> u32 {
        encode(self.op, self.rd, self.rs1, 0, csr.into())
    }

    /// What it writes where there was `old`, if it writes.
    fn writes(&self, old: u64) -> Option<u64> {
        let operand = match self.op {
            Op::Csrrwi | Op::Csrrsi | Op::Csrrci => self.rs1.into(),
            _ if self.rs1 == ZERO => 0,
            _ => self.operand,
        };
        match self.op {
            Op::Csrrw | Op::Csrrwi => Some(operand),
            _ if self.rs1 == 0 => None,
            Op::Csrrs | Op::Csrrsi => Some(old | operand),
            _ => Some(old & !operand),
        }
    }
}

fn cases(csr: u16) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut noise = u64::from(csr).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for op in [Op::Csrrw, Op::Csrrs, Op::Csrrc, Op::Csrrwi, Op::Csrrsi, Op::Csrrci] {
        for rd in [A0, ZERO] {
            // As an immediate, a1 is 11.
            noise = noise.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            let all = [(A1, noise.rotate_left(32)), (ZERO, !0), (A1, !0), (A1, 0)];
            let there = csr::find(csr).is_some_and(csr::Row::present);
            for (rs1, operand) in all.into_iter().take(if there { 4 } else { 2 }) {
                cases.push(Case { op, rd, rs1, operand });
            }
        }
    }
    cases
}

/// What a case wrote down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    /// a0 behind it.
    rd: u64,
    /// What the register read then; zero if that trapped.
    after: u64,
    /// Traps of the case and of the reading.
    traps: u64,
    /// Of all of them, the causes and values added up.
    told: u64,
}

fn program(csr: u16, cases: &[Case], mode: Privilege) -> Asm {
    let mut asm = Asm::at(CODE);
    let csrrw = |rs1: u8, csr: u16| encode(Op::Csrrw, ZERO, rs1, 0, csr.into());
    asm.la(S0, OPERANDS).la(S1, LOG).la(S2, HANDLER);
    for (n, case) in cases.iter().enumerate() {
        asm.op(Op::Ld, A1, S0, 0, 8 * n as i32).i(li(A0, BEFORE)).i(li(A2, 0)).i(li(T3, 0)).i(li(T4, 0));
        asm.i(case.bits(csr));
        asm.op(Op::Csrrs, A2, ZERO, 0, csr.into());
        // The handler's own may have been written.
        if mode == Privilege::M {
            asm.i(csrrw(S2, num::MTVEC));
        }
        for (at, register) in [A0, A2, T4, T3].into_iter().enumerate() {
            asm.op(Op::Sd, 0, S1, register, 8 * at as i32);
        }
        asm.i(addi(S1, S1, 32));
    }
    asm.stop();
    asm
}

/// A machine whose handler counts a trap in t4, adds its cause and value to t3, and skips the instruction.
fn machine(engine: EngineKind, flags: JitFlags) -> Vm {
    let vm = Vm::with(&Setup { engine, flags, ..Setup::default() });
    let mut asm = Asm::at(HANDLER);
    asm.i(addi(T4, T4, 1));
    for csr in [num::MCAUSE, num::MTVAL] {
        asm.op(Op::Csrrs, T5, ZERO, 0, csr.into()).op(Op::Add, T3, T3, T5, 0);
    }
    asm.op(Op::Csrrs, T5, ZERO, 0, num::MEPC.into()).i(addi(T5, T5, 4));
    asm.op(Op::Csrrw, ZERO, T5, 0, num::MEPC.into()).op(Op::Mret, 0, 0, 0, 0);
    asm.put(&vm);
    vm
}

fn run(vm: &mut Vm, csr: u16, cases: &[Case], way: Way) -> Vec<Seen> {
    let operands: Vec<u8> = cases.iter().flat_map(|case| case.operand.to_le_bytes()).collect();
    vm.space.write(GuestPhys::new(OPERANDS), &operands).unwrap();
    vm.space.write(GuestPhys::new(LOG), &vec![0xee; 32 * cases.len()]).unwrap();
    program(csr, cases, way.mode).put(vm);
    let cpu = vm.vcpu.cpu_mut();
    (cpu.csr, cpu.isa, cpu.privilege) = (Default::default(), way.isa, way.mode);
    cpu.csr.mtvec = HANDLER;
    if way.mode != Privilege::M {
        cpu.csr.allow_all_memory();
    }
    cpu.csr.mstatus |= way.fs;
    if way.enabled {
        (cpu.csr.mcounteren, cpu.csr.scounteren, cpu.csr.menvcfg) = (0xffff_ffff, 0xffff_ffff, envcfg::STCE);
        cpu.csr.mideleg = irq::SUPERVISOR;
    } else {
        cpu.csr.mstatus |= mstatus::TVM;
    }
    vm.run(CODE);
    let mut log = vec![0; 32 * cases.len()];
    vm.space.read(GuestPhys::new(LOG), &mut log).unwrap();
    let words: Vec<u64> = log.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
    words.chunks_exact(4).map(|w| Seen { rd: w[0], after: w[1], traps: w[2], told: w[3] }).collect()
}

/// What a register reads once `new` was written to it where there was `old`, by its row; `None` where that is not the row's
/// to say.
fn legal(row: &csr::Row, new: u64, old: u64, way: Way) -> Option<u64> {
    let plain = new & row.mask | row.ones;
    let delegated = if way.enabled { irq::SUPERVISOR } else { 0 };
    Some(match (row.value, row.rule) {
        (Value::Time | Value::Isa | Value::HartId | Value::Absent(_), _) => return None,
        // With a timer STIP is not software's.
        (Value::Pending(_), _) => plain & if way.enabled { !irq::STI } else { !0 },
        (Value::Delegated | Value::DelegatedPending, _) => plain & delegated,
        (_, Rule::Status) => {
            let fs = if way.isa.misa() >> 5 & 1 != 0 { plain & mstatus::FS } else { 0 };
            let sd = if fs == mstatus::FS { mstatus::SD } else { 0 };
            // Of modes before, 2 is reserved.
            let reserved = if plain >> 11 & 3 == 2 { 2 << 11 } else { 0 };
            let fixed = if matches!(row.value, Value::Part(..)) { mstatus::UXL } else { 0 };
            plain & !(mstatus::FS | mstatus::SD | reserved) | fs | sd | fixed
        }
        (_, Rule::Pmp) => {
            // What is locked stands; W needs R.
            let entry = |n: usize| match (plain.to_le_bytes()[n], old.to_le_bytes()[n]) {
                (_, old) if old & 0x80 != 0 => old,
                (byte, _) if byte & 3 == 2 => byte & !2,
                (byte, _) => byte,
            };
            u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(entry))
        }
        (_, Rule::Satp) if !matches!(new >> 60, 0 | 8 | 9 | 10) => old,
        (_, Rule::Envcfg) if plain >> 4 & 3 == 2 => plain & !(3 << 4),
        (_, _) => plain,
    })
}

/// Compares what one number's cases saw with what the table claims.
fn check(csr: u16, cases: &[Case], seen: &[Seen], way: Way) {
    let there = csr::find(csr).filter(|row| way.reaches(csr, row));
    let read = encode(Op::Csrrs, A2, ZERO, 0, csr.into());
    let mut before: Option<u64> = None;
    for (case, seen) in cases.iter().zip(seen) {
        // The program puts the handler's own back.
        let last = if csr == num::MTVEC { Some(HANDLER) } else { before };
        let what = format!("{} ({csr:#x}), {:?} rd x{} rs1 {}, {way:?}", csr::Name(csr), case.op, case.rd, case.rs1);
        let illegal = |words: &[u32]| {
            let told = words.iter().fold(0, |sum: u64, &bits| sum + 2 + u64::from(bits));
            (words.len() as u64, told)
        };
        let Some(row) = there else {
            let (traps, told) = illegal(&[case.bits(csr), read]);
            assert_eq!(*seen, Seen { rd: BEFORE as u64, after: 0, traps, told }, "{what}: it is not there");
            continue;
        };
        let traps = case.writes(0).is_some() && csr::read_only(csr);
        let (count, told) = if traps { illegal(&[case.bits(csr)]) } else { (0, 0) };
        assert_eq!((seen.traps, seen.told), (count, told), "{what}");
        if traps || case.rd == ZERO {
            assert_eq!(seen.rd, BEFORE as u64, "{what}: a0");
        }
        let counts = matches!(row.value, Value::Counter(..));
        // Counters go on, traps write some, and the clock is in no row.
        let steady = !counts && csr != num::TIME && !(traps && matches!(csr, num::MEPC | num::MCAUSE | num::MTVAL));
        let old = last.filter(|_| steady);
        if let Some(old) = old.filter(|_| case.rd != ZERO && !traps) {
            assert_eq!(seen.rd, old, "{what}: what it read");
        }
        let new = match (case.writes(0), old) {
            (None, _) => None,
            (Some(_), Some(old)) => case.writes(old),
            (Some(new), None) if matches!(case.op, Op::Csrrw | Op::Csrrwi) => Some(new),
            _ => None,
        };
        if let Some(expected) = new.filter(|_| !traps).and_then(|new| legal(row, new, old.unwrap_or(0), way)) {
            assert_eq!(seen.after, expected, "{what}: what a read after it is");
        } else if let Some(old) = old.filter(|_| traps || case.writes(0).is_none()) {
            assert_eq!(seen.after, old, "{what}: it is no write");
        }
        before = Some(seen.after);
    }
}

#[test]
fn every_number_in_every_form_is_what_the_table_says_on_every_engine() {
    let mut oracle = machine(EngineKind::Interp, JitFlags::default());
    let mut others =
        [("translated", machine(EngineKind::Jit, eager())), ("tier 0", machine(EngineKind::Jit, JitFlags::default()))];
    let no_float = Isa::parse("rv64imac").unwrap();
    for csr in 0..0x1000u16 {
        let cases = cases(csr);
        let plain = Way { mode: Privilege::M, enabled: true, fs: mstatus::FS_INITIAL, isa: Isa::ALL };
        let mut ways = vec![plain];
        // A hart of another mode is only asked about registers that there are.
        if csr::find(csr).is_some_and(csr::Row::present) {
            ways.push(Way { enabled: false, ..plain });
            for mode in [Privilege::S, Privilege::U] {
                ways.extend([Way { mode, ..plain }, Way { mode, enabled: false, ..plain }]);
            }
        }
        if csr < 4 || matches!(csr, num::MSTATUS | num::SSTATUS) {
            let mode = if csr < 4 { Privilege::U } else { plain.mode };
            ways.extend([Way { fs: 0, ..plain }, Way { fs: 0, isa: no_float, ..plain }, Way { fs: 0, mode, ..plain }]);
        }
        if csr == num::SATP {
            // Behind a write that S-mode makes there is no code.
            ways.retain(|way| way.mode != Privilege::S || !way.enabled);
        }
        for way in ways {
            let seen = run(&mut oracle, csr, &cases, way);
            check(csr, &cases, &seen, way);
            for (name, vm) in &mut others {
                let mut ours = run(vm, csr, &cases, way);
                if csr == num::TIME {
                    // What the instruction clock says depends on where slices end.
                    ours.iter_mut().zip(&seen).for_each(|(ours, seen)| (ours.rd, ours.after) = (seen.rd, seen.after));
                }
                for ((case, ours), seen) in cases.iter().zip(&ours).zip(&seen) {
                    assert_eq!(ours, seen, "{} ({csr:#x}), {case:?}, {way:?}, {name}", csr::Name(csr));
                }
                let (ours, theirs) = (vm.vcpu.cpu(), oracle.vcpu.cpu());
                assert_eq!(csr::difference(&ours.csr, &theirs.csr), None, "{} {way:?} {name}", csr::Name(csr));
                assert_eq!(ours.privilege, theirs.privilege, "{}", csr::Name(csr));
            }
        }
    }
    assert!(others[0].1.translated() > 0x1000);
}

#[test]
fn the_rows_are_in_order_and_claim_nothing_that_their_numbers_forbid() {
    let mut last = None;
    for row in TABLE {
        assert!(last < Some(row.first) && row.first <= row.last, "{}", csr::Name(row.first));
        last = Some(row.last);
        // The manual's halves of a number: a row does not reach over a border.
        assert_eq!(row.first >> 8, row.last >> 8, "{}", csr::Name(row.first));
        let writes = row.mask != 0 || row.rule != Rule::Plain || row.effect != CsrEffect::None;
        assert!(!writes || row.present() && !csr::read_only(row.first), "{}", csr::Name(row.first));
        assert_eq!(row.mask & row.ones, 0, "{}", csr::Name(row.first));
        // A hypervisor's.
        assert!(row.first >> 8 & 3 != 2 || !row.present(), "{}", csr::Name(row.first));
    }
    for name in ["vstart", "seed", "pmpcfg4", "pmpaddr16", "mseccfg", "dcsr"] {
        let csr = (0..0x1000).find(|&csr| csr::Name(csr).to_string() == name).unwrap();
        assert!(matches!(csr::find(csr).unwrap().value, Value::Absent(_)), "{name}");
    }
    assert_eq!(
        [0x3c0, 0x3bf, 0xb1f, 0x7c0].map(|csr| csr::Name(csr).to_string()),
        ["pmpaddr16", "pmpaddr15", "mhpmcounter31", "0x7c0"]
    );
}
