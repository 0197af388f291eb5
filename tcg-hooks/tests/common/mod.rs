//! A vCPU, RAM, and a device that ends the run: enough to run handwritten code in emitted code only.
//!
//! An exact instruction limit would leave the last few hundred instructions to the oracle; a store to [`STOP`] does
//! not.
#![allow(dead_code, missing_docs)]

use notdirty_core::{PageIndex, RamBlock, RamBlockSpec, RamList, pin};
use notdirty_softmmu::{AddressSpace, GuestPhys, MemSize, MmioDevice, VcpuPort};
use notdirty_tcg::clock::Clock;
use notdirty_tcg::riscv::Op;
use notdirty_tcg::testkit::encode;
use notdirty_tcg::{EngineKind, ICache, JitFlags, RunLimits, Vcpu, VcpuConfig, VcpuExit};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

pub const RAM: u64 = 0x8000_0000;
pub const STOP: u64 = 0x10_0000;
/// Host addresses from which the guest's RAM is a 32-bit displacement away.
pub const NEAR: std::ops::Range<u64> = 0x1000_0000..0xf000_0000;

pub const ZERO: u8 = 0;
pub const RA: u8 = 1;
pub const SP: u8 = 2;
pub const T0: u8 = 5;
pub const T1: u8 = 6;
pub const T2: u8 = 7;
pub const S0: u8 = 8;
pub const S1: u8 = 9;
pub const A0: u8 = 10;
pub const A1: u8 = 11;
pub const A2: u8 = 12;
pub const A3: u8 = 13;
pub const A4: u8 = 14;
pub const S2: u8 = 18;
pub const S3: u8 = 19;
pub const S4: u8 = 20;
pub const S5: u8 = 21;
pub const T3: u8 = 28;
pub const T4: u8 = 29;
pub const T5: u8 = 30;
pub const T6: u8 = 31;

/// Any store to it stops the vCPU.
#[derive(Default)]
pub struct Stop(Mutex<Weak<VcpuPort>>);

impl Stop {
    /// It stops this one.
    pub fn stops(&self, port: &Arc<VcpuPort>) {
        *self.0.lock().unwrap() = Arc::downgrade(port);
    }
}

impl MmioDevice for Stop {
    fn read(&self, _: u64, _: MemSize) -> u64 {
        0
    }
    fn write(&self, _: u64, _: MemSize, _: u64) {
        if let Some(port) = self.0.lock().unwrap().upgrade() {
            port.request_stop();
        }
    }
}

/// A machine for tests.
pub struct Vm {
    pub list: Arc<RamList>,
    pub block: Arc<RamBlock>,
    pub space: Arc<AddressSpace>,
    pub vcpu: Vcpu,
}

pub struct Setup {
    pub engine: EngineKind,
    pub flags: JitFlags,
    pub cache: usize,
    pub ram: u64,
    pub icache: ICache,
}

impl Default for Setup {
    fn default() -> Self {
        Setup { engine: EngineKind::Jit, flags: eager(), cache: 0, ram: 0x10_0000, icache: ICache::Coherent }
    }
}

/// Everything on, but translated at first sight: what is to die must live.
pub fn eager() -> JitFlags {
    JitFlags { tier0: false, ..JitFlags::default() }
}

pub fn vcpu_on(space: &Arc<AddressSpace>, setup: &Setup, clock: Arc<Clock>) -> Vcpu {
    Vcpu::new(
        space,
        VcpuConfig {
            engine: setup.engine,
            hart_id: 0,
            entry: RAM,
            clock,
            icache: setup.icache,
            jit_flags: setup.flags,
            tb_cache_bytes: setup.cache,
            trace: None,
        },
    )
    .expect("a vCPU")
}

impl Vm {
    pub fn new() -> Vm {
        Vm::with(&Setup::default())
    }

    pub fn with(setup: &Setup) -> Vm {
        let list = Arc::new(RamList::new());
        let block = list.add(RamBlockSpec::new("ram", setup.ram).near(NEAR)).expect("RAM");
        let space = AddressSpace::new(list.clone());
        space.map_ram(GuestPhys::new(RAM), &block, 0, setup.ram, 0).expect("a map");
        let stop = Arc::new(Stop::default());
        space.map_mmio(GuestPhys::new(STOP), 0x1000, stop.clone(), 0).expect("a device");
        let vcpu = vcpu_on(&space, setup, Arc::new(Clock::insns()));
        stop.stops(vcpu.port());
        Vm { list, block, space, vcpu }
    }

    /// Writes code, as a host does.
    pub fn put(&self, at: u64, code: &[u32]) {
        self.space.write(GuestPhys::new(at), &bytes(code)).expect("RAM is there");
    }

    /// Runs from `pc` until a store to [`STOP`].
    pub fn run(&mut self, pc: u64) {
        self.vcpu.cpu_mut().pc = pc;
        let limits = RunLimits { max_insns: None, deadline: Some(Instant::now() + Duration::from_secs(60)) };
        assert_eq!(self.vcpu.run(&limits), VcpuExit::Stopped, "at pc {:#x}", self.vcpu.cpu().pc);
    }

    pub fn x(&self, register: u8) -> u64 {
        self.vcpu.cpu().x[usize::from(register)]
    }

    pub fn page(&self, at: u64) -> PageIndex {
        PageIndex::new(self.block.offset().page().get() + (at - RAM) / 4096)
    }

    /// The lines of this page that are protected.
    pub fn lines(&self, at: u64) -> u64 {
        let page = self.space.code().page(self.page(at));
        page.map_or(0, |p| p.mask.load(std::sync::atomic::Ordering::SeqCst))
    }

    /// Is the page's CODE bit set: no code here?
    pub fn no_code(&self, at: u64) -> bool {
        self.space.ram().dirty().test(self.page(at), notdirty_core::raw::CODE, &pin())
    }

    pub fn translated(&self) -> u64 {
        self.vcpu.stats().tbs_translated
    }

    pub fn invalidated(&self) -> u64 {
        self.vcpu.stats().tbs_invalidated
    }
}

pub fn bytes(code: &[u32]) -> Vec<u8> {
    code.iter().flat_map(|word| word.to_le_bytes()).collect()
}

pub fn addi(rd: u8, rs1: u8, imm: i32) -> u32 {
    encode(Op::Addi, rd, rs1, 0, imm)
}
/// `rd = value`, for values of twelve bits.
pub fn li(rd: u8, value: i32) -> u32 {
    addi(rd, ZERO, value)
}
pub fn ret() -> u32 {
    encode(Op::Jalr, ZERO, RA, 0, 0)
}
pub fn jal(rd: u8, from: u64, to: u64) -> u32 {
    encode(Op::Jal, rd, 0, 0, to.wrapping_sub(from) as i32)
}
pub fn sw(rs2: u8, rs1: u8, imm: i32) -> u32 {
    encode(Op::Sw, 0, rs1, rs2, imm)
}
/// Stops, and spins should that fail. Uses t6.
pub fn stop() -> [u32; 3] {
    [encode(Op::Lui, T6, 0, 0, STOP as i32), sw(ZERO, T6, 0), encode(Op::Jal, ZERO, 0, 0, 0)]
}
/// `rd = value`, for any sign-extended 32 bits or RAM's addresses: two instructions.
pub fn la(rd: u8, at: u64, value: u64) -> [u32; 2] {
    let distance = value.wrapping_sub(at) as i32;
    let low = distance << 20 >> 20;
    [encode(Op::Auipc, rd, 0, 0, distance.wrapping_sub(low)), addi(rd, rd, low)]
}

/// Code that grows, knowing where it is.
pub struct Asm {
    pub base: u64,
    pub code: Vec<u32>,
}

impl Asm {
    pub fn at(base: u64) -> Asm {
        Asm { base, code: Vec::new() }
    }
    pub fn here(&self) -> u64 {
        self.base + 4 * self.code.len() as u64
    }
    pub fn i(&mut self, word: u32) -> &mut Self {
        self.code.push(word);
        self
    }
    pub fn op(&mut self, op: Op, rd: u8, rs1: u8, rs2: u8, imm: i32) -> &mut Self {
        self.i(encode(op, rd, rs1, rs2, imm))
    }
    pub fn la(&mut self, rd: u8, value: u64) -> &mut Self {
        let words = la(rd, self.here(), value);
        self.code.extend(words);
        self
    }
    /// Any 32-bit word, zero-extended where it matters not.
    pub fn word(&mut self, rd: u8, value: u32) -> &mut Self {
        let low = (value as i32) << 20 >> 20;
        self.op(Op::Lui, rd, 0, 0, (value as i32).wrapping_sub(low));
        self.op(Op::Addiw, rd, rd, 0, low)
    }
    pub fn call(&mut self, to: u64) -> &mut Self {
        let word = jal(RA, self.here(), to);
        self.i(word)
    }
    pub fn jump(&mut self, to: u64) -> &mut Self {
        let word = jal(ZERO, self.here(), to);
        self.i(word)
    }
    pub fn stop(&mut self) -> &mut Self {
        self.code.extend(stop());
        self
    }
    pub fn put(&self, vm: &Vm) {
        vm.put(self.base, &self.code);
    }
}
