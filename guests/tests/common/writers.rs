//! A guest that writes in every way, and a device that writes for it.

use dynasmrt::riscv::RiscvRelocation;
use dynasmrt::{DynasmLabelApi, VecAssembler};
use notdirty::Machine;
use notdirty_softmmu::{AddressSpace, DeviceState, GuestPhys, MemSize, MmioDevice};
use std::sync::{Arc, Weak};

pub const RAM: u64 = 0x8000_0000;
pub const SIZE: u64 = 1 << 20;
pub const DATA: u64 = RAM + 0x2_0000;
/// Sixteen pages.
pub const MASK: u64 = 0xffff;
pub const DMA: u64 = 0x4000_0000;

/// Stores for ever to random places of the same pages as all others, in every width, by AMO, LR and SC; and over its own code. Now and
/// then it asks the device for DMA, if there is one: s7 is not zero.
pub fn program() -> Vec<u8> {
    let mut ops = VecAssembler::<RiscvRelocation>::new(0);
    dynasmrt::dynasm!(ops ; .arch riscv64 ; .feature imaczicsr_zifencei
        ; again:
        ; slli t0, s0, 13 ; xor s0, s0, t0 ; srli t0, s0, 7 ; xor s0, s0, t0 ; slli t0, s0, 17 ; xor s0, s0, t0
        ; srli t1, s0, 20 ; and t1, t1, s2 ; add t1, t1, s1 ; andi t2, t1, -8
        ; sb s0, [t1]
        ; srli t3, s0, 33 ; and t3, t3, s2 ; add t3, t3, s1 ; sd s0, [t3]
        ; amoadd.d t4, s0, [t2] ; amoor.w t4, s0, [t2]
        ; lr.d t4, [t2] ; sc.d t5, s0, [t2]
        ; andi t4, s0, 63 ; bnez t4, >patched
        ; xor s4, s4, s6 ; la t5, >patched ; sw s4, [t5] ; fence.i
        ; beqz s7, >patched
        ; sd t1, [s7]
        ; patched:
        ; addi s3, s3, 1
        ; j <again
    );
    ops.finalize().unwrap()
}

pub fn start(machine: &mut Machine, seed: u64) {
    let code = program();
    for hart in 0..machine.harts() {
        let base = RAM + 0x1000 * hart as u64;
        machine.write(base, &code).unwrap();
    }
    machine.start_at(RAM).unwrap();
    for hart in 0..machine.harts() {
        let cpu = machine.vcpu_mut(hart).unwrap().cpu_mut();
        cpu.pc = RAM + 0x1000 * hart as u64;
        (cpu.x[8], cpu.x[9], cpu.x[18]) = (seed * 2 + 1 + 1000 * hart as u64, DATA, MASK);
        (cpu.x[20], cpu.x[22]) = (0x0019_8993, 0x0030_0000);
    }
}

/// Writes some bytes where it is told to.
pub struct Dma(Weak<AddressSpace>);

impl MmioDevice for Dma {
    fn read(&self, _: u64, _: MemSize) -> u64 {
        0
    }
    fn write(&self, _: u64, _: MemSize, value: u64) {
        let bytes: Vec<u8> = (0..1 + value % 3000).map(|n| (n ^ value) as u8).collect();
        self.0.upgrade().unwrap().write(GuestPhys::new(value), &bytes).unwrap();
    }
    fn state(&self) -> DeviceState<'_> {
        DeviceState::Stateless
    }
}

/// Puts the device there, and tells each hart.
pub fn with_dma(machine: &mut Machine) {
    let space = machine.space().clone();
    space.map_mmio(GuestPhys::new(DMA), 0x1000, Arc::new(Dma(Arc::downgrade(&space))), 0).unwrap();
    for hart in 0..machine.harts() {
        machine.vcpu_mut(hart).unwrap().cpu_mut().x[23] = DMA;
    }
}
