use super::*;
use crate::riscv::{Isa, decode};

struct Hart {
    cpu: CpuState,
    clock: Clock,
    mip: u64,
}

impl Hart {
    fn new() -> Hart {
        Hart { cpu: CpuState::new(3, 0x8000_0000), clock: Clock::insns(), mip: 0 }
    }

    fn read(&self, csr: u16) -> Result<u64, Illegal> {
        csr_read(&self.cpu, csr, &CsrEnv { mip: self.mip, clock: &self.clock })
    }

    fn write(&mut self, csr: u16, value: u64) -> Result<CsrEffect, Illegal> {
        csr_write(&mut self.cpu, csr, value)
    }

    /// Runs `op a0, csr, a1` or, for the immediate forms, `op a0, csr, rs1`, and retires it.
    fn run(&mut self, op: Op, csr: u16, rs1: u8) -> Result<u64, Illegal> {
        let insn = decode::Insn { op, rd: 10, rs1, rs2: 0, len: 4, imm: i32::from(csr) };
        let effect = execute(&mut self.cpu, &insn, &CsrEnv { mip: self.mip, clock: &self.clock });
        self.cpu.retired += u64::from(effect.is_ok());
        effect.map(|_| self.cpu.x[10])
    }
}

#[test]
fn what_is_absent_is_illegal_to_read_and_to_write() {
    let mut h = Hart::new();
    // medeleg, mideleg, mcounteren, menvcfg, satp, fcsr while FS is off, sstatus, pmpcfg1, pmpaddr16, mstateen0, tcontrol, 0xb01.
    for csr in [0x302, 0x303, 0x306, 0x30a, 0x180, 0x003, 0x100, 0x3a1, 0x3c0, 0x30c, 0x7a5, 0xb01] {
        assert_eq!(h.read(csr), Err(Illegal), "{csr:#x}");
        assert_eq!(h.write(csr, 0), Err(Illegal), "{csr:#x}");
    }
}

#[test]
fn the_floating_point_registers_are_parts_of_one_and_make_it_dirty() {
    let mut h = Hart::new();
    assert!(h.write(num::MSTATUS, mstatus::FS_INITIAL).is_ok());
    assert_eq!(h.read(num::FCSR), Ok(0));
    assert_eq!(h.read(num::MSTATUS), Ok(mstatus::MPP | mstatus::FS_INITIAL), "reading leaves it as it is");
    assert!(h.write(num::FCSR, 0xffff_ff7d).is_ok());
    assert_eq!(h.read(num::MSTATUS), Ok(mstatus::MPP | mstatus::FS | mstatus::SD));
    assert_eq!([num::FCSR, num::FRM, num::FFLAGS].map(|csr| h.read(csr)), [Ok(0x7d), Ok(3), Ok(0x1d)]);
    assert!(h.write(num::FRM, 0xff).is_ok());
    assert!(h.write(num::FFLAGS, 0x22).is_ok());
    assert_eq!(h.read(num::FCSR), Ok(0xe2));
    h.cpu.isa = Isa::parse("rv64imac").unwrap();
    assert!(h.write(num::MSTATUS, !0).is_ok());
    assert_eq!(h.read(num::FCSR), Err(Illegal), "without F it cannot be switched on");
}

#[test]
fn read_only_registers_can_be_read_and_set_by_x0_only() {
    let mut h = Hart::new();
    for csr in [num::CYCLE, num::TIME, num::INSTRET, num::HPMCOUNTER31, num::MHARTID, num::MCONFIGPTR] {
        assert!(h.run(Op::Csrrs, csr, 0).is_ok(), "{csr:#x}");
        assert!(h.run(Op::Csrrci, csr, 0).is_ok(), "{csr:#x}");
        let before = h.cpu.x[10];
        assert_eq!(h.run(Op::Csrrw, csr, 0), Err(Illegal), "{csr:#x}");
        assert_eq!(h.run(Op::Csrrs, csr, 11), Err(Illegal), "{csr:#x}: a1 holds 0, but it is a write");
        assert_eq!(h.run(Op::Csrrwi, csr, 0), Err(Illegal), "{csr:#x}");
        assert_eq!(h.cpu.x[10], before, "rd changed");
    }
    assert_eq!(h.read(num::MHARTID), Ok(3));
}

#[test]
fn fields_hold_only_what_is_legal() {
    let mut h = Hart::new();
    let cases = [
        (num::MSTATUS, mstatus::MIE | mstatus::MPIE | mstatus::MPP | mstatus::FS | mstatus::SD, mstatus::MPP),
        (num::MIE, irq::ALL, 0),
        (num::MTVEC, !2, 0),
        (num::MCOUNTINHIBIT, 5, 0),
        (num::MSCRATCH, !0, 0),
        (num::MEPC, !1, 0),
        (num::MCAUSE, !0, 0),
        (num::MTVAL, !0, 0),
        (num::MIP, 0, 0),
        (num::MISA, Isa::ALL.misa(), Isa::ALL.misa()),
        (num::PMPCFG0, 0x1f1f_1f1f_1f1f_1f1f, 0),
        (num::PMPADDR15, (1 << 54) - 1, 0),
        (num::TSELECT, 0, 0),
        (num::MHPMEVENT3, 0, 0),
        (num::MHPMCOUNTER31, 0, 0),
    ];
    for (csr, ones, zeros) in cases {
        assert!(h.write(csr, !0).is_ok(), "{csr:#x}");
        assert_eq!(h.read(csr), Ok(ones), "{csr:#x}");
        assert!(h.write(csr, 0).is_ok(), "{csr:#x}");
        assert_eq!(h.read(csr), Ok(zeros), "{csr:#x}");
    }
    assert!(h.write(num::PMPCFG2, 0x0203_0206).is_ok());
    assert_eq!(h.read(num::PMPCFG2), Ok(0x0003_0004), "W needs R");
}

#[test]
fn the_six_forms_read_the_old_value_and_change_the_right_bits() {
    let mut h = Hart::new();
    h.cpu.x[11] = 0b1100;
    assert_eq!(h.run(Op::Csrrwi, num::MSCRATCH, 0b1010), Ok(0));
    assert_eq!(h.run(Op::Csrrs, num::MSCRATCH, 11), Ok(0b1010));
    assert_eq!(h.run(Op::Csrrci, num::MSCRATCH, 0b0010), Ok(0b1110));
    assert_eq!(h.run(Op::Csrrc, num::MSCRATCH, 11), Ok(0b1100));
    assert_eq!(h.run(Op::Csrrw, num::MSCRATCH, 11), Ok(0));
    assert_eq!(h.run(Op::Csrrsi, num::MSCRATCH, 1), Ok(0b1100));
    assert_eq!(h.read(num::MSCRATCH), Ok(0b1101));
    // rd and rs1 may be one register.
    h.cpu.x[10] = 77;
    assert_eq!(h.run(Op::Csrrw, num::MSCRATCH, 10), Ok(0b1101));
    assert_eq!(h.read(num::MSCRATCH), Ok(77));
}

#[test]
fn the_next_instruction_reads_what_was_written_to_a_counter() {
    let mut h = Hart::new();
    h.cpu.retired = 1000;
    assert_eq!(h.run(Op::Csrrs, num::MINSTRET, 0), Ok(1000));
    assert_eq!(h.run(Op::Csrrwi, num::MINSTRET, 0), Ok(1001));
    assert_eq!(h.run(Op::Csrrs, num::INSTRET, 0), Ok(0));
    assert_eq!(h.run(Op::Csrrs, num::MINSTRET, 0), Ok(1));
    assert_eq!(h.run(Op::Csrrs, num::MCYCLE, 0), Ok(1004), "the other counter went on");
    h.cpu.x[11] = u64::MAX;
    assert_eq!(h.run(Op::Csrrw, num::MCYCLE, 11), Ok(1005));
    assert_eq!(h.run(Op::Csrrs, num::CYCLE, 0), Ok(u64::MAX));
    assert_eq!(h.run(Op::Csrrs, num::CYCLE, 0), Ok(0), "it wraps");
}

#[test]
fn an_inhibited_counter_stands_still() {
    let mut h = Hart::new();
    h.cpu.retired = 50;
    assert_eq!(h.run(Op::Csrrsi, num::MCOUNTINHIBIT, 4), Ok(0));
    assert_eq!(h.run(Op::Csrrs, num::MINSTRET, 0), Ok(50));
    assert_eq!(h.run(Op::Csrrs, num::MINSTRET, 0), Ok(50));
    assert_eq!(h.run(Op::Csrrs, num::MCYCLE, 0), Ok(53), "only instret was stopped");
    assert_eq!(h.run(Op::Csrrwi, num::MINSTRET, 9), Ok(50));
    assert_eq!(h.run(Op::Csrrsi, num::MCOUNTINHIBIT, 4), Ok(4));
    assert_eq!(h.run(Op::Csrrci, num::MCOUNTINHIBIT, 4), Ok(4));
    assert_eq!(h.run(Op::Csrrs, num::MINSTRET, 0), Ok(9));
    assert_eq!(h.run(Op::Csrrs, num::MINSTRET, 0), Ok(10));
}

#[test]
fn devices_drive_mip_and_the_hart_cannot() {
    let mut h = Hart::new();
    h.mip = irq::MTI | 1 << 40;
    assert_eq!(h.read(num::MIP), Ok(irq::MTI));
    assert_eq!(h.write(num::MIP, 0), Ok(CsrEffect::Interrupts));
    assert_eq!(h.read(num::MIP), Ok(irq::MTI));
    assert_eq!(h.write(num::MSCRATCH, 0), Ok(CsrEffect::None));
    assert_eq!(h.write(num::MIE, irq::MTI), Ok(CsrEffect::Interrupts));
    assert_eq!(h.write(num::MSTATUS, mstatus::MIE), Ok(CsrEffect::Interrupts));
}

#[test]
fn lower_privileges_reach_less() {
    let mut h = Hart::new();
    h.cpu.privilege = 0;
    assert_eq!(h.read(num::MSCRATCH), Err(Illegal));
    assert_eq!(h.write(num::MSCRATCH, 0), Err(Illegal));
    assert!(h.read(num::CYCLE).is_ok());
}

#[test]
fn no_number_panics() {
    let mut h = Hart::new();
    for csr in 0..=0xffff {
        assert!(h.read(csr).is_ok() || h.write(csr, !0).is_err(), "{csr:#x}");
    }
}
