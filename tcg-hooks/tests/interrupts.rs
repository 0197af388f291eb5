//! Timer interrupts under the instruction clock: the JIT takes each at the very instruction at which the oracle does.
//!
//!   NOTDIRTY_INTERRUPTS=N   how many programs (300 unless said)
//!   NOTDIRTY_SEED=S         where to start

mod common;

use common::*;
use notdirty_core::{RamBlockSpec, RamList};
use notdirty_softmmu::{AddressSpace, GuestPhys, MemSize, MmioDevice, VcpuPort};
use notdirty_tcg::clock::Clock;
use notdirty_tcg::riscv::csr::{envcfg, irq};
use notdirty_tcg::riscv::{Op, Privilege};
use notdirty_tcg::testkit::Rng;
use notdirty_tcg::{EngineKind, JitFlags, RunLimits, Vcpu, VcpuExit};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// `mtimecmp` at 0, `mtime` at 8.
const TIMER: u64 = 0x200_0000;
const MTIP: u32 = 7;
const CSR_TIME: i32 = 0xc01;

/// The registers of the mode that takes the interrupts, and its bits in them.
#[derive(Clone, Copy)]
struct Names {
    tvec: i32,
    ie: i32,
    status: i32,
    ip: i32,
    epc: i32,
    timer: i32,
    enable: u8,
    back: Op,
    /// Its deadline is this register, and not the device's.
    timecmp: Option<i32>,
    /// The mode that is interrupted.
    mode: Privilege,
}

const MACHINE: Names = Names {
    tvec: 0x305,
    ie: 0x304,
    status: 0x300,
    ip: 0x344,
    epc: 0x341,
    timer: 0x80,
    enable: 8,
    back: Op::Mret,
    timecmp: None,
    mode: Privilege::M,
};

/// S-mode, by Sstc.
const SUPERVISOR: Names = Names {
    tvec: 0x105,
    ie: 0x104,
    status: 0x100,
    ip: 0x144,
    epc: 0x141,
    timer: 0x20,
    enable: 2,
    back: Op::Sret,
    timecmp: Some(0x14d),
    mode: Privilege::S,
};

impl Names {
    fn set_deadline(&self, asm: &mut Asm, register: u8) {
        match self.timecmp {
            Some(csr) => asm.op(Op::Csrrw, 0, register, 0, csr),
            None => asm.op(Op::Sd, 0, 21, register, 0),
        };
    }
}

struct Timer {
    clock: Arc<Clock>,
    port: Mutex<Weak<VcpuPort>>,
}

impl MmioDevice for Timer {
    fn read(&self, offset: u64, _: MemSize) -> u64 {
        if offset == 8 { self.clock.mtime() } else { 0 }
    }
    fn write(&self, offset: u64, _: MemSize, value: u64) {
        let Some(port) = self.port.lock().unwrap().upgrade() else { return };
        if offset == 0 {
            port.timer_deadline.store(value, Ordering::Release);
            port.set_irq(MTIP, self.clock.mtime() >= value);
            port.kick();
        }
    }
}

struct Machine {
    vcpu: Vcpu,
    space: Arc<AddressSpace>,
}

fn machine(engine: EngineKind, flags: JitFlags, code: &Asm, handler: &Asm, of: &Names) -> Machine {
    let list = Arc::new(RamList::new());
    let block = list.add(RamBlockSpec::new("ram", 0x1_0000).near(NEAR)).unwrap();
    let space = AddressSpace::new(list);
    space.map_ram(GuestPhys::new(RAM), &block, 0, 0x1_0000, 0).unwrap();
    let clock = Arc::new(Clock::insns());
    let timer = Arc::new(Timer { clock: clock.clone(), port: Mutex::default() });
    space.map_mmio(GuestPhys::new(TIMER), 0x1000, timer.clone(), 0).unwrap();
    for asm in [code, handler] {
        space.write(GuestPhys::new(asm.base), &bytes(&asm.code)).unwrap();
    }
    let mut vcpu = vcpu_on(&space, &Setup { engine, flags, ..Setup::default() }, clock);
    let cpu = vcpu.cpu_mut();
    cpu.privilege = of.mode;
    cpu.csr.allow_all_memory();
    if of.timecmp.is_some() {
        (cpu.csr.mideleg, cpu.csr.menvcfg, cpu.csr.mcounteren) = (irq::STI, envcfg::STCE, 2);
    }
    *timer.port.lock().unwrap() = Arc::downgrade(vcpu.port());
    Machine { vcpu, space }
}

/// The handler: notes where and when in a log, sets the next deadline some ticks ahead, returns.
/// x20 is the log's end, x21 the timer, x22 the period's mask.
fn handler(of: &Names) -> Asm {
    let mut asm = Asm::at(RAM + 0x8000);
    asm.op(Op::Csrrs, T5, 0, 0, of.epc).op(Op::Sd, 0, 20, T5, 0);
    asm.op(Op::Csrrs, T5, 0, 0, CSR_TIME).op(Op::Sd, 0, 20, T5, 8).op(Op::Addi, 20, 20, 0, 16);
    // t6 = how long: the log's address, stirred, is as random as need be.
    asm.op(Op::Slli, T6, 20, 0, 3).op(Op::Xor, T6, T6, 20, 0).op(Op::Srli, T6, T6, 0, 4).op(Op::And, T6, T6, 22, 0);
    asm.op(Op::Add, T5, T5, T6, 0).op(Op::Addi, T5, T5, 0, 1);
    of.set_deadline(&mut asm, T5);
    asm.op(of.back, 0, 0, 0, 0);
    asm
}

/// An endless loop of arithmetic, branches and calls, with interrupts switched off and on, `wfi`, and looks at `mip`
/// and `time`.
fn program(rng: &mut Rng, of: &Names) -> Asm {
    let mut asm = Asm::at(RAM);
    asm.la(T0, RAM + 0x8000).op(Op::Csrrw, 0, T0, 0, of.tvec);
    asm.la(20, RAM + 0x9000).op(Op::Lui, 21, 0, 0, TIMER as i32);
    let mask = rng.pick(&[1, 3, 15, 63, 255, 1023]);
    asm.i(li(22, mask)).i(li(T0, of.timer)).op(Op::Csrrw, 0, T0, 0, of.ie);
    asm.i(li(T0, rng.below(30) as i32));
    of.set_deadline(&mut asm, T0);
    if rng.chance(70) {
        asm.op(Op::Csrrsi, 0, of.enable, 0, of.status);
    }
    let top = asm.here();
    for _ in 0..rng.within(3, 25) {
        match rng.below(14) {
            0 => asm.op(Op::Csrrsi, 0, of.enable, 0, of.status),
            1 => asm.op(Op::Csrrci, 0, of.enable, 0, of.status),
            2 => asm.i(li(T0, of.timer)).op(Op::Csrrs, 0, T0, 0, of.ie),
            3 => asm.i(li(T0, of.timer)).op(Op::Csrrc, 0, T0, 0, of.ie),
            4 => asm.op(Op::Csrrs, T1, 0, 0, of.ip).op(Op::Add, A0, A0, T1, 0),
            5 => asm.op(Op::Csrrs, T1, 0, 0, CSR_TIME).op(Op::Add, A0, A0, T1, 0),
            6 => asm.op(Op::Ld, T1, 21, 0, 8).op(Op::Xor, A0, A0, T1, 0),
            7 if rng.chance(30) => {
                // Only with something to wake it.
                asm.i(li(T0, of.timer)).op(Op::Csrrs, 0, T0, 0, of.ie).op(Op::Wfi, 0, 0, 0, 0)
            }
            8 => {
                let n = rng.within(2, 400) as i32;
                asm.i(li(T1, n)).i(addi(A0, A0, 1)).i(addi(T1, T1, -1));
                asm.op(Op::Bne, 0, T1, 0, -8)
            }
            _ => {
                for _ in 0..rng.within(1, 60) {
                    asm.i(addi(A1, A1, 1));
                }
                &mut asm
            }
        };
    }
    asm.jump(top);
    asm
}

#[test]
fn both_engines_take_each_timer_interrupt_at_the_same_instruction() {
    taken_alike(&MACHINE);
}

#[test]
fn both_engines_take_each_interrupt_of_stimecmp_at_the_same_instruction() {
    taken_alike(&SUPERVISOR);
}

fn taken_alike(of: &Names) {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let first = number("NOTDIRTY_SEED")
        .unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |t| t.as_nanos() as u64 >> 8));
    let mut taken = 0;
    for seed in first..first + number("NOTDIRTY_INTERRUPTS").unwrap_or(300) {
        let mut rng = Rng::new(seed);
        let (code, handler) = (program(&mut rng, of), handler(of));
        let mut flags = JitFlags { tier0: rng.chance(50), ..JitFlags::default() };
        if rng.chance(50) {
            let name = rng.pick(&JitFlags::NAMES);
            flags.set(name, false);
        }
        let mut jit = machine(EngineKind::Jit, flags, &code, &handler, of);
        let mut oracle = machine(EngineKind::Interp, flags, &code, &handler, of);
        let mut end = 0;
        for _ in 0..4 {
            end += rng.below(90_000);
            for machine in [&mut jit, &mut oracle] {
                let deadline = Some(Instant::now() + Duration::from_secs(60));
                let exit = machine.vcpu.run(&RunLimits { max_insns: Some(end), deadline });
                assert!(matches!(exit, VcpuExit::InsnLimit | VcpuExit::Hung), "NOTDIRTY_SEED={seed}: {exit:?}");
                let retired = machine.vcpu.cpu().retired;
                assert!(exit == VcpuExit::Hung || retired == end, "NOTDIRTY_SEED={seed}: {retired} and not {end}");
            }
            let (a, b) = (jit.vcpu.cpu(), oracle.vcpu.cpu());
            let log = |m: &Machine| {
                let mut bytes = vec![0; 0x7000];
                m.space.read(GuestPhys::new(RAM + 0x9000), &mut bytes).unwrap();
                bytes
            };
            let (ours, theirs) = (log(&jit), log(&oracle));
            if let Some(at) = (0..ours.len() / 8).find(|&n| ours[8 * n..8 * n + 8] != theirs[8 * n..8 * n + 8]) {
                let word = |b: &[u8]| u64::from_le_bytes(b[8 * at..8 * at + 8].try_into().unwrap());
                panic!(
                    "NOTDIRTY_SEED={seed}: interrupt {} differs in its {}: JIT {:#x}, oracle {:#x} ({flags:?})",
                    at / 2,
                    if at % 2 == 0 { "pc" } else { "time" },
                    word(&ours),
                    word(&theirs)
                );
            }
            assert_eq!((a.pc, a.retired, a.x), (b.pc, b.retired, b.x), "NOTDIRTY_SEED={seed} {flags:?}");
            assert_eq!(jit.vcpu.stats().traps, oracle.vcpu.stats().traps, "NOTDIRTY_SEED={seed}");
        }
        taken += jit.vcpu.stats().traps;
    }
    assert!(taken > 1000, "{taken} interrupts in all");
}
