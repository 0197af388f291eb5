//! Loops with their checks in front of them: random ones over every kind of memory are what the oracle says, wherever they are
//! stopped.

mod common;
mod loops;

use common::*;
use loops::*;
use notdirty_core::{DirtyClient, DirtyLog, RamBlockSpec, RamList};
use notdirty_softmmu::{AddressSpace, GuestPhys};
use notdirty_tcg::riscv::{Op, Privilege};
use notdirty_tcg::testkit::Rng;
use notdirty_tcg::{EngineKind, JitFlags, RunLimits, Vcpu, VcpuConfig, VcpuExit, VcpuStats};

/// A trap goes on behind its instruction, and is counted in s11.
const HANDLER: u64 = RAM + 0x100;
const TRAPS: u8 = 27;
/// What it saw.
const SEEN: u8 = 26;
const PAGE: u64 = 0x1000;
/// Bytes of page tables, behind all else.
const TABLES: u64 = 3 * PAGE;

struct Machine {
    vm: Vm,
    log: Option<DirtyLog>,
}

fn machine(engine: EngineKind, flags: JitFlags, asm: &Asm, seed: u64) -> Machine {
    let vm = Vm::with(&Setup { engine, flags, ram: SIZE + TABLES, ..Setup::default() });
    let mut rng = Rng::new(seed);
    let data: Vec<u8> = (0..SIZE).map(|_| rng.bits() as u8).collect();
    vm.space.write(GuestPhys::new(RAM), &data).unwrap();
    vm.space.map_mmio(GuestPhys::new(HOLE), 0x1000, std::sync::Arc::new(Stop::default()), 1).unwrap();
    let mut handler = Asm::at(HANDLER);
    // Where it stops a fault is skipped; one of the code, which stores may have ruined, ends it all. What a trap can see counts.
    handler.i(addi(TRAPS, TRAPS, 1));
    for n in MORE.into_iter().chain([P, Q]) {
        handler.op(Op::Slli, 30, SEEN, 0, 3).op(Op::Add, SEEN, SEEN, 30, 0).op(Op::Xor, SEEN, SEEN, n, 0);
    }
    handler.op(Op::Csrrs, 30, 0, 0, 0x341).i(addi(30, 30, 4)).op(Op::Csrrw, 0, 30, 0, 0x341).op(Op::Mret, 0, 0, 0, 0);
    handler.put(&vm);
    asm.put(&vm);
    let log = seed.is_multiple_of(2).then(|| vm.list.log(DirtyClient::MIGRATION).start().unwrap());
    let mut machine = Machine { vm, log };
    let cpu = machine.vm.vcpu.cpu_mut();
    cpu.pc = CODE;
    cpu.csr.mtvec = HANDLER;
    cpu.csr.mstatus |= 0x6000;
    for n in MORE {
        cpu.x[usize::from(n)] = rng.value();
    }
    machine
}

/// S-mode, and pages of data that are shown in any order: some twice, some not at all or not to be written.
fn shuffle(vm: &mut Vm, seed: u64) {
    let rng = &mut Rng::new(!seed);
    let table = RAM + SIZE;
    let put = |at: u64, entry: u64| vm.space.write(GuestPhys::new(at), &entry.to_le_bytes()).unwrap();
    put(table + (RAM >> 30) * 8, (table + PAGE) >> 2 | 1);
    put(table + PAGE + (RAM >> 21 & 511) * 8, (table + 2 * PAGE) >> 2 | 1);
    let stays = |page: u64| {
        page == 0 || (CODE - RAM..CODE - RAM + 4 * PAGE).contains(&(page * PAGE)) || page == (HOLE - RAM) / PAGE
    };
    let mut frames: Vec<u64> = (0..SIZE / PAGE).filter(|&page| !stays(page)).collect();
    let pages = frames.clone();
    for n in (1..frames.len()).rev() {
        frames.swap(n, rng.below(n as u64 + 1) as usize);
    }
    let mut map: Vec<(u64, u64)> = pages.into_iter().zip(frames).collect();
    if rng.chance(50) {
        map[0].1 = map[1].1;
    }
    map.extend((0..SIZE / PAGE).filter(|&page| stays(page)).map(|page| (page, page)));
    for (page, frame) in map {
        let rights = if stays(page) || !rng.chance(5) { 0xcf } else { rng.pick(&[0xcb, 0xc0]) };
        put(table + 2 * PAGE + (RAM >> 12 & 511) * 8 + page * 8, (RAM + frame * PAGE) >> 2 | rights);
    }
    let cpu = vm.vcpu.cpu_mut();
    cpu.csr.allow_all_memory();
    (cpu.csr.satp, cpu.privilege) = (8 << 60 | table >> 12, Privilege::S);
}

impl Machine {
    fn run_to(&mut self, insns: u64) {
        let limits = RunLimits { max_insns: Some(insns), ..RunLimits::default() };
        // A store to the device stops it; what is for ever the same ends it.
        while self.vm.vcpu.run(&limits) == VcpuExit::Stopped {}
    }

    fn memory(&self) -> Vec<u8> {
        let mut memory = vec![0; SIZE as usize];
        self.vm.block.read_bytes(0, &mut memory).unwrap();
        memory
    }

    /// The pages that were written since the last look.
    fn dirty(&self) -> Vec<(u64, u64)> {
        let Some(log) = &self.log else { return Vec::new() };
        let set = log.sync(None).unwrap().commit();
        set.words().map(|(first, bits)| (first.get(), bits)).collect()
    }
}

fn stats_of(rng: &mut Rng, seed: u64) -> VcpuStats {
    let asm = match rng.below(100) {
        0..15 => crowd(rng),
        15..35 => globals::globals(rng),
        _ => program(rng),
    };
    let mut flags = JitFlags { samples: false, ..eager() };
    if rng.chance(30) {
        let name = rng.pick(&[
            "optimise",
            "elide",
            "big_tlb",
            "plain_index",
            "bmi2",
            "aligned",
            "beside",
            "turns",
            "sink",
            "apart",
            "share",
            "budget_register",
        ]);
        assert!(flags.set(name, false));
    }
    let mut ours = machine(EngineKind::Jit, flags, &asm, seed);
    let mut oracle = machine(EngineKind::Interp, flags, &asm, seed);
    if seed % 3 == 1 {
        for machine in [&mut ours, &mut oracle] {
            shuffle(&mut machine.vm, seed);
        }
    }
    let mut at = 0;
    for stop in 0..6 {
        at += rng.within(1, 4000) as u64;
        ours.run_to(at);
        oracle.run_to(at);
        let (a, b) = (ours.vm.vcpu.cpu(), oracle.vm.vcpu.cpu());
        assert_eq!((a.pc, a.x, a.retired), (b.pc, b.x, b.retired), "seed {seed}, stop {stop} at {at}, {flags:?}");
        assert_eq!((a.f, a.csr.fflags), (b.f, b.csr.fflags), "seed {seed}, stop {stop} at {at}, {flags:?}");
        assert!(ours.memory() == oracle.memory(), "seed {seed}, stop {stop}: memory");
        assert_eq!(ours.dirty(), oracle.dirty(), "seed {seed}, stop {stop}: dirty pages");
    }
    ours.vm.vcpu.stats()
}

/// The address is made by three instructions, its register is written again, and nothing keeps what is loaded.
#[test]
fn a_look_up_into_x0_leaves_x0_zero() {
    for rd in [ZERO, V[0]] {
        let run = |engine, flags| {
            let mut asm = Asm::at(CODE);
            asm.la(T, RAM + 0x4000).word(COUNT, 500).i(addi(V[1], ZERO, 0));
            let again = asm.here();
            asm.op(Op::Andi, V[2], COUNT, 0, 0xff).op(Op::Slli, V[2], V[2], 0, 3).op(Op::Add, V[2], V[2], T, 0);
            asm.op(Op::Ld, rd, V[2], 0, 0).i(addi(V[2], ZERO, 1)).op(Op::Add, V[1], V[1], ZERO, 0);
            asm.i(addi(COUNT, COUNT, -1));
            asm.op(Op::Bne, 0, COUNT, 0, (again as i64 - asm.here() as i64) as i32).op(Op::Add, V[3], ZERO, ZERO, 0);
            asm.stop();
            let mut machine = machine(engine, flags, &asm, 1);
            machine.vm.run(CODE);
            (machine.vm.vcpu.cpu().x, machine.vm.vcpu.stats().tb.tier2)
        };
        let flags = JitFlags { samples: false, ..eager() };
        let (ours, oracle) = (run(EngineKind::Jit, flags), run(EngineKind::Interp, flags));
        assert_eq!(ours.0, oracle.0);
        assert_eq!((ours.0[0], ours.0[usize::from(V[3])]), (0, 0));
        assert!(ours.1 > 0);
    }
}

#[test]
fn random_loops_over_every_kind_of_memory_are_what_the_oracle_says() {
    let programs = std::env::var("NOTDIRTY_LOOPS").ok().map_or(500, |n| n.parse().expect("a number"));
    let first = std::env::var("NOTDIRTY_SEED").ok().map_or(0, |n| n.parse().expect("a number"));
    let (mut made, mut elsewhere) = (0, 0);
    for seed in first..first + programs {
        let tb = stats_of(&mut Rng::new(seed), seed).tb;
        (made, elsewhere) = (made + tb.tier2, elsewhere + tb.elsewhere);
    }
    assert!(made > programs / 2, "{made} TBs by tier 2");
    assert!(elsewhere > programs / 20, "{elsewhere} sites took their entries' own addends");
}

/// The table lies 80 KiB behind what its address is made from, and the host's RAM as far from the guest's as 32 bits reach.
#[test]
fn a_table_far_behind_its_base_is_found_however_far_the_hosts_ram_is() {
    const DISTANCE: u64 = 0x7fff_0000 - 0x1000;
    let list = std::sync::Arc::new(RamList::new());
    let spec = RamBlockSpec::new("ram", SIZE).near(DISTANCE + 0x1000_0000..DISTANCE + 0x4000_0000);
    let block = list.add(spec).unwrap();
    let ram = (block.host() as u64).wrapping_sub(DISTANCE);
    assert!(i32::try_from(ram).is_ok_and(|at| at > 0), "the host gives no RAM where it is wanted: {ram:#x}");
    let run = |engine| {
        let space = AddressSpace::new(list.clone());
        space.map_ram(GuestPhys::new(ram), &block, 0, SIZE, 0).unwrap();
        let table = ram + 0x4000;
        let mut asm = Asm::at(ram);
        // The base of the table, without what each address adds to it.
        asm.la(T, table - 5 * 2047 * 8).word(COUNT, 500).i(addi(V[1], ZERO, 0));
        let again = asm.here();
        asm.op(Op::Andi, V[2], COUNT, 0, 0xff);
        for _ in 0..5 {
            asm.i(addi(V[2], V[2], 2047));
        }
        asm.op(Op::Slli, V[2], V[2], 0, 3).op(Op::Add, V[2], V[2], T, 0).op(Op::Ld, V[2], V[2], 0, 0);
        asm.op(Op::Add, V[1], V[1], V[2], 0).i(addi(COUNT, COUNT, -1));
        asm.op(Op::Bne, 0, COUNT, 0, (again as i64 - asm.here() as i64) as i32);
        let end = asm.here();
        asm.i(jal(ZERO, end, end));
        space.write(GuestPhys::new(ram), &bytes(&asm.code)).unwrap();
        for n in 0..256u64 {
            space.write(GuestPhys::new(table + 8 * n), &(n * n).to_le_bytes()).unwrap();
        }
        let jit_flags = JitFlags { samples: false, ..eager() };
        let mut vcpu = Vcpu::new(&space, VcpuConfig { engine, jit_flags, ..VcpuConfig::new(ram) }).unwrap();
        vcpu.cpu_mut().pc = ram;
        _ = vcpu.run(&RunLimits { max_insns: Some(20_000), ..RunLimits::default() });
        assert_eq!(vcpu.cpu().pc, end);
        (vcpu.cpu().x[usize::from(V[1])], vcpu.stats().tb.tier2)
    };
    let (ours, oracle) = (run(EngineKind::Jit), run(EngineKind::Interp));
    assert_eq!(ours.0, oracle.0);
    assert!(ours.1 > 0);
}

/// Up to the end of RAM, and down to a device, by each step: the last turn that stays on the page, and the first that does not.
#[test]
fn a_base_that_moves_is_checked_anew_where_its_page_ends_by_whatever_step() {
    let flags = JitFlags { samples: false, ..eager() };
    let (mut rng, mut made) = (Rng::new(3), 0);
    for step in
        [1, 2, 3, 4, 5, 7, 8, 12, 24, 40, 96, 100, 500, 511, 1000, 1024].into_iter().flat_map(|step| [step, -step])
    {
        for load in [Op::Lbu, Op::Ld, Op::Fld, Op::Sb, Op::Sd, Op::Fsd] {
            let imm = rng.within(-9, 9) as i32;
            let run = |engine, at: u64| {
                let mut asm = Asm::at(CODE);
                asm.la(P, at).word(COUNT, 44).i(addi(V[1], ZERO, 0));
                let again = asm.here();
                match load {
                    Op::Sb | Op::Sd => asm.op(load, 0, P, COUNT, imm),
                    Op::Fsd => asm.op(load, 0, P, 1, imm),
                    _ => asm.op(load, V[0], P, 0, imm).op(Op::Add, V[1], V[1], V[0], 0),
                };
                asm.i(addi(P, P, step)).i(addi(COUNT, COUNT, -1));
                asm.op(Op::Bne, 0, COUNT, 0, (again as i64 - asm.here() as i64) as i32).stop();
                let mut machine = machine(engine, flags, &asm, 1);
                machine.run_to(4000);
                let made = machine.vm.vcpu.stats().tb.tier2;
                (machine.vm.vcpu.cpu().x, machine.memory(), made)
            };
            let turns = rng.within(1, 40);
            // The first byte that is no RAM is met after so many turns, or one more or less.
            let to_end = -i64::from(step) * turns + rng.within(-8, 8);
            let at = if step > 0 { RAM + SIZE } else { HOLE + 0x1000 }.wrapping_add_signed(to_end);
            let (ours, oracle) = (run(EngineKind::Jit, at), run(EngineKind::Interp, at));
            assert_eq!(ours.0, oracle.0, "{load:?}, {step} from {at:#x}");
            assert!(ours.1 == oracle.1, "{load:?}, {step} from {at:#x}");
            made += ours.2;
        }
    }
    assert!(made > 100, "{made} TBs by tier 2");
}

/// Near every wrap, and where RAM ends: the last turns that may be counted, and the first that may not.
#[test]
fn an_index_is_checked_anew_where_its_page_ends_and_where_it_is_none_of_32_bits() {
    let flags = JitFlags { samples: false, ..eager() };
    let (mut rng, mut made) = (Rng::new(5), 0);
    let edges = [0, 8, 1 << 30, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff_8000_0000, 0xffff_ffff, 1 << 32, u64::MAX];
    for n in 0..400 {
        let index: u64 = rng.pick(&edges).wrapping_add_signed(rng.within(-60, 3));
        let (shift, step) = (rng.within(0, 3) as i32, rng.pick(&[1, 1, 2, 4, 16, -1]));
        let (added, early) = (rng.pick(&[None, Some(0), Some(1), Some(3), Some(-1)]), rng.chance(30));
        // Or between the two shifts of a conversion.
        let between = !early && rng.chance(30);
        // What is compared moves on both sides: the turns cannot be counted, and the index is the clock.
        let counted = rng.chance(60);
        let step_op = rng.pick(&[Op::Addiw, Op::Addi]);
        let (word, form) = (rng.pick(&[Op::Addiw, Op::Addi]), rng.below(3));
        let access = rng.pick(&[Op::Lbu, Op::Lw, Op::Ld, Op::Sb, Op::Sd]);
        // What the first access is to; the step says how far it is from there to what is no RAM.
        let turns = rng.within(1, 40);
        let to_end = -(i64::from(step) << shift) * turns + rng.within(-8, 8);
        let at = if step > 0 { rng.pick(&[HOLE, RAM + SIZE]) } else { HOLE + 0x1000 }.wrapping_add_signed(to_end);
        let scaled = index.wrapping_add_signed(i64::from(added.unwrap_or(0)));
        let scaled = if form == 0 { u64::from(scaled as u32) } else { scaled } << shift;
        let run = |engine| {
            let mut asm = Asm::at(CODE);
            constant(&mut asm, ARRAY, at.wrapping_sub(scaled));
            constant(&mut asm, INDEX, index);
            asm.word(COUNT, 60).i(addi(V[1], ZERO, 0));
            let again = asm.here();
            if early {
                asm.op(step_op, INDEX, INDEX, 0, step);
            }
            let from = if added.is_some() { V[0] } else { INDEX };
            if let Some(added) = added {
                asm.op(word, V[0], INDEX, 0, added);
            }
            match (form, shift) {
                (2, 1..) => asm.op([Op::Sh1add, Op::Sh2add, Op::Sh3add][shift as usize - 1], V[0], from, ARRAY, 0),
                (0, _) => {
                    asm.op(Op::Slli, V[2], from, 0, 32);
                    if between {
                        asm.op(step_op, INDEX, INDEX, 0, step);
                    }
                    asm.op(Op::Srli, V[0], V[2], 0, 32 - shift);
                    asm.op(Op::Add, V[0], V[0], ARRAY, 0)
                }
                _ => asm.op(Op::Slli, V[0], from, 0, shift).op(Op::Add, V[0], V[0], ARRAY, 0),
            };
            match access {
                Op::Sb | Op::Sd => asm.op(access, 0, V[0], COUNT, 0),
                _ => asm.op(access, V[0], V[0], 0, 0).op(Op::Add, V[1], V[1], V[0], 0),
            };
            if !(early || between && form == 0) {
                asm.op(step_op, INDEX, INDEX, 0, step);
            }
            asm.i(addi(COUNT, COUNT, -1));
            if !counted {
                asm.op(Op::Andi, V[3], COUNT, 0, 0);
            }
            let bound = if counted { ZERO } else { V[3] };
            asm.op(Op::Bne, 0, COUNT, bound, (again as i64 - asm.here() as i64) as i32).stop();
            let mut machine = machine(engine, flags, &asm, 1);
            machine.run_to(4000);
            let made = machine.vm.vcpu.stats().tb.tier2;
            (machine.vm.vcpu.cpu().x, machine.memory(), made)
        };
        let (ours, oracle) = (run(EngineKind::Jit), run(EngineKind::Interp));
        let told = || {
            format!(
                "{n}: {access:?} of {index:#x} {added:?} by {word:?}, {step_op:?} {step}, shift {shift}, {form}, {early}, from {at:#x}"
            )
        };
        assert_eq!(ours.0, oracle.0, "{}", told());
        assert!(ours.1 == oracle.1, "{}: memory", told());
        made += ours.2;
    }
    assert!(made > 200, "{made} TBs by tier 2");
}

/// The address is made in another register than the index, which is moved before the load.
#[test]
fn a_look_up_whose_index_was_moved_since_is_where_it_was_made() {
    for form in 0..4 {
        let run = |engine| {
            let mut asm = Asm::at(CODE);
            asm.la(T, RAM + 0x4000).word(COUNT, 500).i(addi(V[1], ZERO, 0));
            let again = asm.here();
            asm.op(Op::Andi, V[2], COUNT, 0, 0xff);
            match form {
                // Of two ops or of one, the constant before or behind.
                0 => asm.op(Op::Slli, V[3], V[2], 0, 3).op(Op::Add, V[3], V[3], T, 0).i(addi(V[2], V[2], 1)),
                1 => asm.op(Op::Slli, V[3], V[2], 0, 3).i(addi(V[2], V[2], 1)).op(Op::Add, V[3], V[3], T, 0),
                2 => asm.op(Op::Sh3add, V[3], V[2], T, 0).i(addi(V[2], V[2], 1)),
                _ => asm.i(addi(V[3], V[2], 5)).i(addi(V[2], V[2], 1)).op(Op::Sh3add, V[3], V[3], T, 0),
            };
            asm.op(Op::Ld, V[3], V[3], 0, 0).op(Op::Add, V[1], V[1], V[3], 0).op(Op::Add, V[1], V[1], V[2], 0);
            asm.i(addi(COUNT, COUNT, -1));
            asm.op(Op::Bne, 0, COUNT, 0, (again as i64 - asm.here() as i64) as i32).stop();
            let flags = JitFlags { samples: false, ..eager() };
            let mut machine = machine(engine, flags, &asm, 1);
            machine.vm.run(CODE);
            (machine.vm.vcpu.cpu().x, machine.vm.vcpu.stats().tb.tier2)
        };
        let (ours, oracle) = (run(EngineKind::Jit), run(EngineKind::Interp));
        assert_eq!(ours.0, oracle.0, "{form}");
        assert!(ours.1 > 0);
    }
}
