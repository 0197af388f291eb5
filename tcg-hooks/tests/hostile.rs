//! A hostile guest: random code with registers full of wild pointers, and whatever the host has that it must not touch.
//!
//! ```text
//!   host    [canary][guard][ RAM .... | unmapped rest: canary ][guard][canary]   canaries over the low 4 GiB,
//!           ROM, alias, half a page, RAM at 0 and at the very end, a device      the heap, the stack
//!   guest   registers = edges of all that, host addresses, host addresses - (host - guest), TLB neighbours
//! ```
//!
//! It runs in a child process, so that a host fault is a failure with a seed and not the end of the tests. Where a
//! stray access would fall into nothing, the host faults; where it would fall into something, a canary dies.
//!
//!   NOTDIRTY_HOSTILE_INSNS=N   how many instructions (2,000,000 unless said)
//!   NOTDIRTY_HOSTILE_SEED=S    where to start

mod common;

use common::{Asm, NEAR, RAM, Setup, T5, T6, vcpu_on};
use notdirty_core::{RamBlock, RamBlockSpec, RamList};
use notdirty_softmmu::{AddressSpace, GuestPhys, MemSize, MmioDevice};
use notdirty_tcg::clock::Clock;
use notdirty_tcg::riscv::csr::{self, mstatus, num};
use notdirty_tcg::riscv::{Op, Privilege};
use notdirty_tcg::testkit::{Rng, encode};
use notdirty_tcg::{ICache, JitFlags, RunLimits, Vcpu, VcpuExit};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const INSNS: u64 = 2_000_000;
const CHILD: &str = "NOTDIRTY_HOSTILE_CHILD";
/// RAM that the guest has, and the rest of its block, which it has not.
const RAM_LEN: u64 = 0x3_f000;
const BLOCK_LEN: u64 = 0x4_0000;
const ROM: u64 = 0x9000_0000;
/// The handler of S-mode; that of M-mode is at the start.
const SUPERVISOR: u64 = ROM + 0x800;
const ALIAS: u64 = 0xa000_0000;
const HALF: u64 = 0xb000_0800;
const DEVICE: u64 = 0xc000_0000;
const TOP: u64 = 0u64.wrapping_sub(0x4000);
/// Instructions between two changes of everything.
const BURST: u64 = 1_500;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

#[test]
fn a_hostile_guest_touches_nothing_but_its_ram() {
    if let Some(seed) = number(CHILD) {
        return child(seed);
    }
    let seed = number("NOTDIRTY_HOSTILE_SEED")
        .unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |t| t.as_nanos() as u64));
    let this = std::env::current_exe().expect("a test knows itself");
    let output = Command::new(this)
        .args(["a_hostile_guest_touches_nothing_but_its_ram", "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, seed.to_string())
        .output()
        .expect("a child process");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{out}");
    let tail =
        |text: &str| text.lines().rev().take(25).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n");
    assert!(
        output.status.success(),
        "NOTDIRTY_HOSTILE_SEED={seed:#x}: the child ended with {}\n{}\n{}",
        output.status,
        tail(&out),
        tail(&err)
    );
}

/// Every switch alone off, all on, all off, no displacement from guest to host, a small code cache.
fn setups() -> Vec<(String, Setup, bool)> {
    let all = |name: &str, near| (name.to_owned(), Setup { flags: JitFlags::default(), ..Setup::default() }, near);
    let mut setups = vec![all("all", true), all("far RAM", false)];
    setups.push(("eager, far RAM".into(), Setup::default(), false));
    setups.push(("eager, small cache".into(), Setup { cache: 1, ..Setup::default() }, true));
    setups.push(("fence.i model".into(), Setup { icache: ICache::FenceI, ..Setup::default() }, true));
    let mut none = JitFlags::default();
    for name in JitFlags::NAMES {
        let mut flags = JitFlags::default();
        assert!(flags.set(name, false) && none.set(name, false));
        setups.push((format!("no {name}"), Setup { flags, ..Setup::default() }, true));
    }
    setups.push(("none".into(), Setup { flags: none, ..Setup::default() }, true));
    setups
}

fn child(seed: u64) {
    let total = number("NOTDIRTY_HOSTILE_INSNS").unwrap_or(INSNS);
    let setups = setups();
    // Several machines of each kind, so that the host's layout differs, too.
    let rounds = (total / 20_000_000).clamp(1, 8);
    let share = total / rounds / setups.len() as u64 + 1;
    let (start, mut retired, mut interpreted) = (Instant::now(), 0, 0);
    for round in 0..rounds {
        for (n, (name, setup, near)) in setups.iter().enumerate() {
            let seed = seed.wrapping_add(round << 8 | n as u64);
            let mut world = World::new(seed, setup, *near);
            world.run(share, name);
            let stats = world.vcpu.stats();
            retired += world.retired;
            interpreted += stats.interpreted;
            println!(
                "{name}: {} insns, {} TBs, {} died, {} evicted, {} traps, {} device calls, {:?}",
                world.retired,
                stats.tbs_translated,
                stats.tbs_invalidated,
                stats.tbs_evicted,
                stats.traps,
                world.device.0.load(Ordering::Relaxed),
                start.elapsed()
            );
        }
    }
    println!("{retired} instructions, {interpreted} of them by the oracle, {:?}, seed {seed:#x}", start.elapsed());
    assert!(interpreted < retired / 3, "it is the JIT that is on trial");
}

/// Host memory that no guest may touch, full of a pattern.
struct Canary {
    start: *mut u64,
    words: usize,
    /// From the heap, or mapped.
    _heap: Option<Box<[u64]>>,
}

impl Canary {
    /// At this very address, if nothing is there.
    fn at(address: u64, len: usize) -> Option<Canary> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: MAP_FIXED_NOREPLACE replaces no mapping. It stays mapped to the end of the process.
        let at = unsafe { libc::mmap(address as *mut _, len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if at == libc::MAP_FAILED || at as u64 != address {
            return None;
        }
        Some(Canary { start: at.cast(), words: len / 8, _heap: None }.filled())
    }

    fn heap(len: usize) -> Canary {
        let mut words = vec![0u64; len / 8].into_boxed_slice();
        let canary = Canary { start: words.as_mut_ptr(), words: words.len(), _heap: Some(words) };
        canary.filled()
    }

    fn pattern(n: usize) -> u64 {
        (n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    fn filled(self) -> Canary {
        for n in 0..self.words {
            // SAFETY: inside memory of this canary's own.
            unsafe { self.start.add(n).write_volatile(Canary::pattern(n)) };
        }
        self
    }

    fn check(&self) {
        for n in 0..self.words {
            // SAFETY: as in `filled`.
            let word = unsafe { self.start.add(n).read_volatile() };
            assert_eq!(word, Canary::pattern(n), "host memory at {:p} was written", self.start.wrapping_add(n));
        }
    }
}

/// Counts its calls, and answers with addresses.
struct Device(AtomicU64, Vec<u64>);

impl MmioDevice for Device {
    fn read(&self, offset: u64, _: MemSize) -> u64 {
        let n = self.0.fetch_add(1, Ordering::Relaxed);
        assert!(offset < 0x1800);
        self.1[n as usize % self.1.len()]
    }
    fn write(&self, offset: u64, _: MemSize, _: u64) {
        self.0.fetch_add(1, Ordering::Relaxed);
        assert!(offset < 0x1800);
    }
}

struct World {
    rng: Rng,
    vcpu: Vcpu,
    space: Arc<AddressSpace>,
    ram: Arc<RamBlock>,
    rom: Arc<RamBlock>,
    rom_bytes: Vec<u8>,
    device: Arc<Device>,
    canaries: Vec<Canary>,
    wild: Vec<u64>,
    retired: u64,
}

impl World {
    fn new(seed: u64, setup: &Setup, near: bool) -> World {
        let mut rng = Rng::new(seed);
        let list = Arc::new(RamList::new());
        let spec = RamBlockSpec::new("ram", BLOCK_LEN);
        let ram = list.add(if near { spec.near(NEAR) } else { spec }).expect("RAM");
        let rom = list.add(RamBlockSpec::new("rom", 0x4000).near(NEAR)).expect("ROM");
        let edge = list.add(RamBlockSpec::new("edges", 0x1_0000)).expect("RAM");
        // Guest-visible, then what only the host knows; the latter stays as it is.
        for (block, from) in [(&ram, RAM_LEN), (&edge, 0xc000)] {
            for at in (from..block.used_length()).step_by(8) {
                block.store_raw(at, 8, Canary::pattern(at as usize)).expect("inside");
            }
        }
        let space = AddressSpace::new(list);
        let map = |at: u64, block: &Arc<RamBlock>, off: u64, len: u64| {
            space.map_ram(GuestPhys::new(at), block, off, len, 0).expect("free");
        };
        map(RAM, &ram, 0, RAM_LEN);
        map(0, &edge, 0, 0x4000);
        map(TOP, &edge, 0x4000, 0x4000);
        map(HALF, &edge, 0x8800, 0x900);
        space.map_alias(GuestPhys::new(ALIAS), GuestPhys::new(RAM), 0x2_0000, 0).expect("free");
        space.map_rom(GuestPhys::new(ROM), &rom, 0, 0x4000, 0).expect("free");

        // The host's neighbours of each block, places in the low 4 GiB, and the heap.
        let mut canaries = vec![Canary::heap(0x4000), Canary::heap(0x10_0000)];
        for block in [&ram, &rom, &edge] {
            let (start, end) = (block.host() as u64, block.host() as u64 + block.max_length());
            canaries.extend(Canary::at(start - 0x1000 - 0x4000, 0x4000));
            canaries.extend(Canary::at(end + 0x1000, 0x4000));
        }
        for n in 1..16u64 {
            canaries.extend(Canary::at(n << 28, 0x4000));
            canaries.extend(Canary::at((n << 28) - 0x4000, 0x4000));
        }
        let wild = wild(&[(RAM, &ram), (0, &edge), (TOP, &edge), (ROM, &rom)], &canaries);
        let device = Arc::new(Device(AtomicU64::new(0), wild.clone()));
        space.map_mmio(GuestPhys::new(DEVICE), 0x1800, device.clone(), 0).expect("free");
        let vcpu = vcpu_on(&space, setup, Arc::new(Clock::insns()));
        let rom_bytes = vec![0; 0x4000];
        let mut world = World { rng, vcpu, space, ram, rom, rom_bytes, device, canaries, wild, retired: 0 };
        world.fill_rom();
        rng = Rng::new(seed ^ 0x5eed);
        world.rng = rng;
        world
    }

    /// The trap handlers, which no store can hurt: new wild pointers from a table, and on at some pc from another, in the mode
    /// that trapped.
    fn fill_rom(&mut self) {
        let csr = |n: u16| i32::from(n);
        for (at, scratch, epc, back) in
            [(ROM, num::MSCRATCH, num::MEPC, Op::Mret), (SUPERVISOR, num::SSCRATCH, num::SEPC, Op::Sret)]
        {
            let mut asm = Asm::at(at);
            asm.op(Op::Csrrs, T6, 0, 0, csr(scratch)).op(Op::Addi, T6, T6, 0, 24).op(Op::Csrrw, 0, T6, 0, csr(scratch));
            asm.op(Op::Andi, T6, T6, 0, 0x7f8).la(T5, ROM + 0x1000).op(Op::Add, T5, T5, T6, 0);
            asm.op(Op::Ld, T6, T5, 0, 0).op(Op::Csrrw, 0, T6, 0, csr(epc)).op(Op::Lui, T6, 0, 0, 0x1000);
            asm.op(Op::Add, T5, T5, T6, 0);
            for (n, x) in [5u8, 8, 10, 11, 13, 15, 18, 22].into_iter().enumerate() {
                asm.op(Op::Ld, x, T5, 0, 8 * n as i32 * 7);
            }
            asm.op(back, 0, 0, 0, 0);
            let (at, code) = ((at - ROM) as usize, common::bytes(&asm.code));
            self.rom_bytes[at..at + code.len()].copy_from_slice(&code);
        }
        for at in (0x1000..0x4000).step_by(8) {
            let value = if at < 0x1800 { self.pc() } else { self.pointer() };
            self.rom_bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        self.space.write(GuestPhys::new(ROM), &self.rom_bytes).expect("ROM is there");
    }

    fn pc(&mut self) -> u64 {
        let at = RAM + 2 * self.rng.below(RAM_LEN / 2);
        let edge = [RAM + RAM_LEN - 2, 0, TOP + 0x3ffe, TOP, ALIAS + 0xffe, HALF, ROM, 0xffe, self.pointer() & !1];
        if self.rng.chance(85) { at } else { self.rng.pick(&edge) }
    }

    fn pointer(&mut self) -> u64 {
        let near = self.rng.within(-24, 24) as u64;
        match self.rng.below(10) {
            0 => self.rng.bits(),
            // Somewhere in RAM, so that something happens.
            1 | 2 => RAM + self.rng.below(RAM_LEN),
            9 => self.rng.pick(&[DEVICE, ALIAS, HALF, TOP]).wrapping_add(self.rng.below(0x1900)),
            // The same slot of the TLB, another page; and equal in the low 32 bits.
            3 => (RAM + self.rng.below(RAM_LEN)).wrapping_add(self.rng.bits() << 26),
            4 => RAM.wrapping_add(self.rng.bits() << 32) + self.rng.below(RAM_LEN),
            5 => {
                self.rng.pick(&[RAM + RAM_LEN, RAM, ROM + 0x4000, ALIAS + 0x2_0000, 0x4000, TOP, 0]).wrapping_add(near)
            }
            _ => self.rng.pick(&self.wild).wrapping_add(near),
        }
    }

    fn instruction(&mut self) -> u32 {
        use Op::*;
        let x = |rng: &mut Rng| rng.below(32) as u8;
        let (rd, rs1, rs2) = (x(&mut self.rng), x(&mut self.rng), x(&mut self.rng));
        // Small ones keep to the edge that a pointer is at.
        let reach = self.rng.pick(&[8, 8, 2047]);
        let imm = self.rng.within(-reach, reach) as i32;
        match self.rng.below(100) {
            0..=24 => encode(self.rng.pick(&[Lb, Lbu, Lh, Lhu, Lw, Lwu, Ld]), rd, rs1, 0, imm),
            25..=49 => encode(self.rng.pick(&[Sb, Sh, Sw, Sd]), 0, rs1, rs2, imm),
            50..=57 => {
                let op = self.rng.pick(&[
                    AmoswapW, AmoaddD, AmoxorW, AmoandD, AmoorW, AmominD, AmomaxW, AmominuD, AmomaxuW, LrW, LrD, ScW,
                    ScD, AmoswapD,
                ]);
                encode(op, rd, rs1, rs2, imm & 3)
            }
            58..=69 => encode(self.rng.pick(&[Add, Sub, Xor, Or, And, Sll, Srl, Sra, Mul, Div, Rem]), rd, rs1, rs2, 0),
            70..=79 => encode(self.rng.pick(&[Addi, Xori, Ori, Andi, Addiw]), rd, rs1, 0, imm),
            80..=87 => {
                let op = self.rng.pick(&[Beq, Bne, Blt, Bge, Bltu, Bgeu]);
                encode(op, 0, rs1, rs2, self.rng.within(-40, 400) as i32 & !1)
            }
            88..=89 => encode(Jal, rd & 1, 0, 0, self.rng.within(-1000, 9000) as i32 & !1),
            90 => encode(Jalr, rd & 5, rs1, 0, imm),
            91 => encode(self.rng.pick(&[Csrrw, Csrrs, Csrrc]), rd, rs1, 0, self.rng.bits() as i32 & 0xfff),
            92 => {
                let op = self.rng.pick(&[FenceI, Ecall, Ebreak, Lui, Auipc, Mret, Sret, SfenceVma, SinvalVma, CboZero]);
                encode(op, rd, rs1, rs2, imm << 12)
            }
            _ => self.rng.bits() as u32,
        }
    }

    /// New code, new registers.
    fn shuffle(&mut self) {
        let mut code = Vec::with_capacity(RAM_LEN as usize);
        let whole = self.rng.chance(20);
        let (from, len) = if whole { (0, RAM_LEN) } else { (self.rng.below(RAM_LEN - 0x2000), 0x2000) };
        while code.len() < len as usize {
            let word = self.instruction();
            if self.rng.chance(12) {
                code.extend((self.rng.bits() as u16).to_le_bytes());
            } else {
                code.extend(word.to_le_bytes());
            }
        }
        code.truncate(len as usize);
        self.space.write(GuestPhys::new(RAM + (from & !1)), &code).expect("RAM is there");
        self.space.write(GuestPhys::new(TOP), &code[..0x4000.min(code.len())]).expect("RAM is there");
        self.space.write(GuestPhys::new(0), &code[0x100..0x1100]).expect("RAM is there");
        let entry = self.pc();
        self.vcpu.reset(entry);
        for x in 1..32 {
            let value = self.pointer();
            self.vcpu.cpu_mut().x[x] = value;
        }
        // Any mode, and most traps and interrupts go on in a handler that there is.
        let mode = self.rng.pick(&Privilege::ALL);
        let pc = self.pc();
        let handlers = [SUPERVISOR, SUPERVISOR, SUPERVISOR, SUPERVISOR | 1, ROM, pc];
        let stvec = self.rng.pick(&handlers);
        let mut word = || self.rng.pick(&[0, !0, self.rng.clone().bits()]);
        let cpu = self.vcpu.cpu_mut();
        (cpu.privilege, cpu.csr.mtvec, cpu.csr.stvec) = (mode, ROM, stvec);
        for csr in [num::MEDELEG, num::MIDELEG, num::MCOUNTEREN, num::SCOUNTEREN, num::MENVCFG, num::SENVCFG] {
            let _ = csr::csr_write(cpu, csr, word());
        }
        // Interrupts that do not go away leave the guest in its handler.
        let _ = csr::csr_write(cpu, num::MIP, word() & word() & word());
        let _ = csr::csr_write(cpu, num::STIMECMP, word() & 31);
        let _ = csr::csr_write(cpu, num::MSTATUS, word() & !mstatus::MIE);
        let _ = csr::csr_write(cpu, num::MIE, word());
    }

    fn run(&mut self, insns: u64, name: &str) {
        let mut bursts = 0u64;
        while self.retired < insns {
            self.shuffle();
            let deadline = Instant::now() + Duration::from_secs(30);
            let exit = self.vcpu.run(&RunLimits { max_insns: Some(BURST), deadline: Some(deadline) });
            assert_ne!(exit, VcpuExit::Deadline, "{name}: {BURST} instructions took half a minute");
            self.retired += self.vcpu.cpu().retired;
            assert_eq!(self.vcpu.cpu().x[0], 0, "{name}");
            bursts += 1;
            if bursts.is_multiple_of(16) {
                self.check();
            }
        }
        self.check();
    }

    fn check(&self) {
        self.canaries.iter().for_each(Canary::check);
        // What the host wrote since the last run is not served yet.
        let served = self.vcpu.port().kicked() || self.vcpu.check_invariants().is_ok();
        assert!(served, "{:?}", self.vcpu.check_invariants());
        let mut rom = vec![0; self.rom_bytes.len()];
        self.rom.read_bytes(0, &mut rom).expect("its own length");
        assert!(rom == self.rom_bytes, "ROM was written");
        for at in (RAM_LEN..BLOCK_LEN).step_by(8) {
            let word = self.ram.load(at, 8).expect("inside");
            assert_eq!(word, Canary::pattern(at as usize), "the block was written at {at:#x}, where it is not mapped");
        }
    }
}

/// Addresses worth trying.
fn wild(blocks: &[(u64, &Arc<RamBlock>)], canaries: &[Canary]) -> Vec<u64> {
    let mut wild = Vec::new();
    let guest =
        [(RAM, RAM_LEN), (ROM, 0x4000), (ALIAS, 0x2_0000), (HALF, 0x900), (DEVICE, 0x1800), (0, 0x4000), (TOP, 0x4000)];
    for (start, len) in guest {
        let end = start.wrapping_add(len);
        wild.extend([start, end, end.wrapping_sub(8), start + 0x1000, end.wrapping_sub(0x1000), start | 1 << 63]);
        // The bias: a page before and behind, and with the sign's bits.
        wild.extend([start.wrapping_sub(0x1000), end.wrapping_add(0x1000), start | 0xffff_ffff_0000_0000]);
    }
    wild.extend([0, 1, u64::MAX, u64::MAX - 0xfff, 0x7fff_ffff, 0xffff_ffff, 1 << 32, 1 << 47, 1 << 63, !0 << 47]);
    // What the host has, as it is, and as a guest address that the displacement would lead there.
    let local = 0u64;
    let mut host = vec![&raw const local as u64, wild.as_ptr() as u64, wild.len() as u64];
    host.extend(canaries.iter().flat_map(|c| [c.start as u64, c.start as u64 + 8 * c.words as u64 - 8]));
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for line in maps.lines() {
        let range = line.split(' ').next().and_then(|r| r.split_once('-'));
        if let Some((from, to)) = range {
            host.extend([from, to].iter().filter_map(|h| u64::from_str_radix(h, 16).ok()));
        }
    }
    for h in host {
        wild.push(h);
        wild.extend(blocks.iter().map(|(base, block)| h.wrapping_sub((block.host() as u64).wrapping_sub(*base))));
    }
    wild
}
