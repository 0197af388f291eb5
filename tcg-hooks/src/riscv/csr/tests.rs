use super::*;
use crate::riscv::{Isa, decode};

/// What `mstatus` always reads.
const FIXED: u64 = mstatus::UXL | mstatus::SXL;

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
    // fcsr while FS is off, pmpcfg1, pmpaddr16, mstateen0, sstateen0, hstatus, tcontrol, 0xb01.
    for csr in [0x003, 0x3a1, 0x3c0, 0x30c, 0x10c, 0x600, 0x7a5, 0xb01] {
        assert_eq!(h.read(csr), Err(Illegal), "{csr:#x}");
        assert_eq!(h.write(csr, 0), Err(Illegal), "{csr:#x}");
    }
}

#[test]
fn the_floating_point_registers_are_parts_of_one_and_make_it_dirty() {
    let mut h = Hart::new();
    assert!(h.write(num::MSTATUS, mstatus::FS_INITIAL).is_ok());
    assert_eq!(h.read(num::FCSR), Ok(0));
    assert_eq!(h.read(num::MSTATUS), Ok(FIXED | mstatus::FS_INITIAL), "reading leaves it as it is");
    assert!(h.write(num::FCSR, 0xffff_ff7d).is_ok());
    assert_eq!(h.read(num::MSTATUS), Ok(FIXED | mstatus::FS | mstatus::SD));
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
        (num::MSTATUS, 0x8000_000a_007e_79aa, FIXED),
        (num::SSTATUS, 0x8000_0002_000c_6122, mstatus::UXL),
        (num::MEDELEG, 0xb3ff, 0),
        (num::MIDELEG, irq::SUPERVISOR, 0),
        (num::MCOUNTEREN, 0xffff_ffff, 0),
        (num::SCOUNTEREN, 0xffff_ffff, 0),
        (num::MENVCFG, 0xe000_0000_0000_00f1, 0),
        (num::SENVCFG, 0xf1, 0),
        (num::STVEC, !2, 0),
        (num::SEPC, !1, 0),
        (num::STIMECMP, !0, 0),
        (num::SATP, 0, 0),
        (num::MIE, irq::ALL, 0),
        (num::MTVEC, !2, 0),
        (num::MCOUNTINHIBIT, 5, 0),
        (num::MSCRATCH, !0, 0),
        (num::MEPC, !1, 0),
        (num::MCAUSE, !0, 0),
        (num::MTVAL, !0, 0),
        (num::MIP, irq::SUPERVISOR, 0),
        (num::MISA, Isa::ALL.misa(), Isa::ALL.misa()),
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
    // Reserved values of MPP and CBIE, and an address space without translation.
    assert!(h.write(num::MSTATUS, 2 << 11).is_ok() && h.write(num::MENVCFG, 2 << 4).is_ok());
    assert_eq!((h.read(num::MSTATUS), h.read(num::MENVCFG)), (Ok(FIXED), Ok(0)));
    assert!(h.write(num::SATP, 0x1234_5678).is_ok());
    assert_eq!(h.read(num::SATP), Ok(0x1234_5678));
    assert!(h.write(num::SATP, 15 << 60 | 1).is_ok());
    assert_eq!(h.read(num::SATP), Ok(0x1234_5678), "a mode that there is not");
}

#[test]
fn a_locked_entry_of_pmp_stands_and_so_does_where_its_range_begins() {
    let mut h = Hart::new();
    assert!(h.write(num::PMPADDR0 + 1, 0x10).is_ok() && h.write(num::PMPADDR0 + 2, 0x20).is_ok());
    // Entry 2 is a range from entry 1's address; entry 9 is locked, and no range.
    assert!(h.write(num::PMPCFG0, 0x0089_0000).is_ok() && h.write(num::PMPCFG2, 0x9b00).is_ok());
    for n in 0..12 {
        assert!(h.write(num::PMPADDR0 + n, 0x77).is_ok());
    }
    let stands = |n: u16| h.read(num::PMPADDR0 + n) != Ok(0x77);
    assert_eq!(Vec::from_iter((0..12).filter(|&n| stands(n))), [1, 2, 9]);
    assert!(h.write(num::PMPCFG0, 0x0707_0707).is_ok() && h.write(num::PMPCFG2, 0).is_ok());
    assert_eq!((h.read(num::PMPCFG0), h.read(num::PMPCFG2)), (Ok(0x0789_0707), Ok(0x9b00)));
    assert_eq!([1, 2, 9, 16].map(|n| h.cpu.csr.pmpcfg(n)), [7, 0x89, 0x9b, 0]);
    assert_eq!([1, 2, 0, 16].map(|n| h.cpu.csr.pmpaddr(n)), [0x10, 0x20, 0x77, 0]);
}

#[test]
fn parts_of_registers_show_and_change_their_bits_only() {
    let mut h = Hart::new();
    assert!(h.write(num::MSTATUS, mstatus::MIE | mstatus::MPP | mstatus::TVM | mstatus::FS).is_ok());
    let before = h.cpu.csr.mstatus;
    assert_eq!(h.read(num::SSTATUS), Ok(mstatus::FS | mstatus::SD | mstatus::UXL));
    assert!(h.write(num::SSTATUS, mstatus::SIE | mstatus::SPP | mstatus::MPIE).is_ok());
    assert_eq!(h.cpu.csr.mstatus, before & !(mstatus::FS | mstatus::SD) | mstatus::SIE | mstatus::SPP);
    assert!(h.write(num::MIE, irq::ALL).is_ok());
    assert_eq!(h.read(num::SIE), Ok(0), "nothing is delegated");
    assert!(h.write(num::MIDELEG, irq::SSI | irq::SEI).is_ok());
    assert_eq!(h.read(num::SIE), Ok(irq::SSI | irq::SEI));
    assert!(h.write(num::SIE, irq::SEI | irq::STI).is_ok());
    assert_eq!(h.read(num::MIE), Ok(irq::ALL & !irq::SSI));
    // Software makes its own pending; a device's line is shown, and not kept.
    assert!(h.write(num::MIP, irq::STI).is_ok());
    assert!(h.write(num::SIP, irq::SSI | irq::SEI).is_ok());
    assert_eq!(h.read(num::MIP), Ok(irq::SSI | irq::STI));
    h.mip = irq::SEI;
    assert_eq!(h.run(Op::Csrrsi, num::MIP, 0x10), Ok(irq::SUPERVISOR));
    assert_eq!(h.read(num::SIP), Ok(irq::SSI | irq::SEI));
    h.mip = 0;
    assert_eq!(h.read(num::MIP), Ok(irq::SSI | irq::STI));
    h.cpu.x[11] = irq::SEI;
    assert_eq!(h.run(Op::Csrrs, num::MIP, 11), Ok(irq::SSI | irq::STI));
    assert_eq!(h.read(num::MIP), Ok(irq::SUPERVISOR), "software's own stays");
    // A timer takes STIP over.
    assert!(h.write(num::MENVCFG, envcfg::STCE).is_ok() && h.write(num::MIP, irq::STI).is_ok());
    assert_eq!(h.read(num::MIP), Ok(0));
    h.mip = irq::STI;
    assert_eq!(h.read(num::MIP), Ok(irq::STI));
}

#[test]
fn what_is_not_enabled_for_a_mode_is_illegal_there() {
    let mut h = Hart::new();
    let counters = [num::CYCLE, num::TIME, num::INSTRET, num::HPMCOUNTER31];
    let seen = |h: &Hart| counters.map(|csr| h.read(csr).is_ok());
    for (mode, m, s, there) in [
        (Privilege::M, 0, 0, [true; 4]),
        (Privilege::S, 0, 0xffff_ffff, [false; 4]),
        (Privilege::S, 5, 0, [true, false, true, false]),
        (Privilege::U, 0xffff_ffff, 0, [false; 4]),
        (Privilege::U, 0x8000_0003, 0x8000_0006, [false, true, false, true]),
    ] {
        (h.cpu.privilege, h.cpu.csr.mcounteren, h.cpu.csr.scounteren) = (mode, m, s);
        assert_eq!(seen(&h), there, "{mode} {m:#x} {s:#x}");
    }
    h.cpu.privilege = Privilege::S;
    for (counteren, envcfg, status, timer, satp) in [
        (0, 0, 0, false, true),
        (2, 0, mstatus::TVM, false, false),
        (0, envcfg::STCE, 0, false, true),
        (2, envcfg::STCE, 0, true, true),
    ] {
        (h.cpu.csr.mcounteren, h.cpu.csr.menvcfg, h.cpu.csr.mstatus) = (counteren, envcfg, status);
        assert_eq!((h.read(num::STIMECMP).is_ok(), h.read(num::SATP).is_ok()), (timer, satp));
    }
    assert_eq!(h.write(num::STIMECMP, 7), Ok(CsrEffect::Deadline));
    assert_eq!(h.cpu.csr.supervisor_deadline(), 7);
    h.cpu.csr.menvcfg = 0;
    assert_eq!(h.cpu.csr.supervisor_deadline(), u64::MAX);
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
    for (mode, m, s) in [(Privilege::U, false, false), (Privilege::S, false, true), (Privilege::M, true, true)] {
        h.cpu.privilege = mode;
        assert_eq!((h.read(num::MSCRATCH).is_ok(), h.write(num::MSCRATCH, 0).is_ok()), (m, m), "{mode}");
        assert_eq!((h.read(num::SSCRATCH).is_ok(), h.write(num::SSCRATCH, 0).is_ok()), (s, s), "{mode}");
    }
}

#[test]
fn no_number_panics() {
    let mut h = Hart::new();
    for csr in 0..=0xffff {
        assert!(h.read(csr).is_ok() || h.write(csr, !0).is_err(), "{csr:#x}");
    }
}

#[test]
fn out_of_reset_interrupts_are_off_and_the_mode_before_is_u_as_in_qemu_and_spike() {
    let mut h = Hart::new();
    assert_eq!(h.read(num::MSTATUS), Ok(mstatus::UXL | mstatus::SXL));
    // Upstream's tests of marks set S-mode there without clearing what was.
    assert_eq!(h.write(num::MSTATUS, mstatus::MPRV | 1 << mstatus::MPP_SHIFT), Ok(CsrEffect::Interrupts));
    assert_eq!(h.read(num::MSTATUS), Ok(mstatus::UXL | mstatus::SXL | mstatus::MPRV | 1 << mstatus::MPP_SHIFT));
}

#[test]
fn supervisor_mode_raises_and_clears_what_is_delegated_to_it_and_nothing_else() {
    let mut h = Hart::new();
    for (delegated, raised) in [(0, 0), (irq::STI | irq::SEI, 0), (irq::SSI, irq::SSI)] {
        (h.cpu.csr.mip, h.cpu.csr.mideleg, h.cpu.privilege) = (0, delegated, Privilege::S);
        assert_eq!(h.write(num::SIP, irq::ALL), Ok(CsrEffect::Interrupts));
        assert_eq!((h.read(num::SIP), h.cpu.csr.mip), (Ok(raised), raised), "{delegated:#x}");
        // What M-mode raised, it clears as far as it might have raised it.
        h.cpu.csr.mip = irq::SUPERVISOR;
        assert_eq!(h.write(num::SIP, 0), Ok(CsrEffect::Interrupts));
        assert_eq!(h.cpu.csr.mip, irq::SUPERVISOR & !raised, "{delegated:#x}");
    }
}
