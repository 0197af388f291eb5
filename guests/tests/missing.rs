//! Guests whose RAM is yet to come: they run on pages that a thread brings as they need them, and end as if they had been there.

#[path = "common/missing.rs"]
mod away;

use away::take_all;
use dynasmrt::riscv::RiscvRelocation;
use dynasmrt::{DynasmApi, DynasmLabelApi, VecAssembler};
use notdirty::programs::smc::{self, CacheModel, Form, Mode, SmcCase};
use notdirty::programs::{GuestImage, basic, sieve, smp, sums, timer};
use notdirty::{
    ClockKind, EngineKind, ExitBy, GuestExit, JitFlags, Machine, MachineExit, Program, RAM_BASE, RunLimits,
};
use notdirty_core::{DirtyClient, RamBlock};
use notdirty_softmmu::MemSize;
use notdirty_tcg::hooks::{HookSpec, Kinds};
use notdirty_tcg::testkit::{self, Options};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const RAM: u64 = 4 << 20;
const PASS: MachineExit = MachineExit::Guest(GuestExit { code: 0, by: ExitBy::Finisher });
const LIMIT: RunLimits = RunLimits { max_insns: Some(50_000_000), deadline: None };

fn soon() -> RunLimits {
    RunLimits { max_insns: None, deadline: Some(Instant::now() + Duration::from_secs(120)) }
}

/// Translates at first sight.
fn eager() -> JitFlags {
    JitFlags { tier0: false, ..JitFlags::default() }
}

/// The oracle, tier 0 and the JIT, and the JIT alone.
fn ways() -> [(EngineKind, JitFlags); 3] {
    [(EngineKind::Interp, eager()), (EngineKind::Jit, JitFlags::default()), (EngineKind::Jit, eager())]
}

fn machine(image: GuestImage, harts: usize, (engine, flags): (EngineKind, JitFlags)) -> Machine {
    let clock = if harts == 1 { ClockKind::Insns } else { ClockKind::Host };
    let builder = Machine::builder().ram_size(RAM).harts(harts).engine(engine).jit_flags(flags).clock(clock);
    builder.program(Program::Image(image)).build().expect("the machine is built")
}

fn ram(machine: &Machine, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    machine.read(RAM_BASE, &mut bytes).expect("RAM is there");
    bytes
}

fn assert_same_end(name: &str, ours: &Machine, theirs: &Machine, len: u64) {
    let (a, b) = (ours.cpu(), theirs.cpu());
    assert_eq!((a.x, a.pc, a.retired), (b.x, b.pc, b.retired), "{name}");
    assert_eq!(a.csr, b.csr, "{name}");
    assert!(ram(ours, len) == ram(theirs, len), "{name}: RAM differs");
}

/// A guest of one hart ends as it does on RAM that is there.
fn ends_the_same(name: &str, make: impl Fn((EngineKind, JitFlags)) -> Machine) {
    let mut whole = make(ways()[0]);
    let exit = whole.run(&LIMIT);
    for way in ways() {
        for sweep in [false, true] {
            let name = format!("{name}, {way:?}, sweep {sweep}");
            let mut machine = make(way);
            let away = take_all(&machine);
            let all = away.pages.left();
            assert_eq!(away.run(&mut machine, &LIMIT, sweep), exit, "{name}");
            assert_same_end(&name, &machine, &whole, RAM);
            let (requests, times) = (away.pages.requests(), away.pages.blocktime());
            assert!(requests > 0 && requests < all, "{name}: {requests} requests");
            assert!(times.waits - times.host_waits >= requests.min(1) && times.vcpus[0].ns > 0, "{name}: {times:?}");
            assert_eq!(times.overlapped_ns, times.vcpus[0].ns, "{name}: one hart");
        }
    }
}

#[test]
fn guests_of_one_hart_run_on_pages_that_come_as_they_need_them() {
    ends_the_same("sieve", |way| machine(sieve::sieve(20_000, 2262), 1, way));
    ends_the_same("timer", |way| machine(timer::timer_irq(20, 200), 1, way));
    ends_the_same("sums", |way| {
        let (engine, flags) = way;
        let builder = Machine::builder().ram_size(32 << 20).engine(engine).jit_flags(flags).clock(ClockKind::Insns);
        builder.program(Program::Image(sums::sums(1, 18, 20_000))).build().unwrap()
    });
}

fn built(case: &SmcCase, form: Form, way: (EngineKind, JitFlags)) -> Machine {
    let mut machine = machine((case.build)(form), case.harts, way);
    if let Some(alias) = case.alias.filter(|_| form.mode == Mode::Machine) {
        machine.map_alias(alias.base, alias.target, alias.len).expect("the alias is mapped");
    }
    machine
}

#[test]
fn code_that_patches_itself_is_right_on_pages_that_are_yet_to_come() {
    for case in smc::CASES {
        for mode in [Mode::Machine, Mode::Supervisor].into_iter().filter(|mode| case.has(*mode)) {
            let form = Form { cache: CacheModel::Coherent, mode };
            let name = format!("{}, {mode:?}", case.name);
            let mut whole = built(case, form, ways()[0]);
            let exit = if case.harts == 1 { whole.run(&LIMIT) } else { PASS };
            for way in ways() {
                let name = format!("{name}, {way:?}");
                let mut machine = built(case, form, way);
                let away = take_all(&machine);
                let limit = if case.harts == 1 { LIMIT } else { soon() };
                assert_eq!(away.run(&mut machine, &limit, case.name.len() % 2 == 0), exit, "{name}");
                if case.harts == 1 {
                    assert_same_end(&name, &machine, &whole, RAM);
                }
            }
        }
    }
}

#[test]
fn harts_that_share_ram_lose_no_store_on_pages_that_are_yet_to_come() {
    for way in ways() {
        for sweep in [false, true] {
            let image = || [smp::counters(2, 5_000), smp::lock(2, 2_000)];
            for image in image() {
                let mut machine = machine(image, 2, way);
                let away = take_all(&machine);
                assert_eq!(away.run(&mut machine, &soon(), sweep), PASS, "{way:?}");
                assert_eq!(away.pages.blocktime().vcpus.len(), 2);
            }
            let (engine, flags) = way;
            let builder = Machine::builder().ram_size(32 << 20).harts(2).engine(engine).jit_flags(flags);
            let mut machine = builder.program(Program::Image(sums::sums(2, 18, 20_000))).build().unwrap();
            let away = take_all(&machine);
            assert_eq!(away.run(&mut machine, &soon(), sweep), PASS, "sums, {way:?}");
            if !sweep {
                assert!(away.pages.requests() > 128, "{} requests", away.pages.requests());
            }
        }
    }
}

#[test]
fn harts_that_take_turns_take_the_same_ones_whatever_pages_they_wait_for() {
    for way in ways() {
        let make = || {
            let (engine, flags) = way;
            let builder = Machine::builder().ram_size(RAM).harts(2).turns(7).clock(ClockKind::Insns).engine(engine);
            builder.jit_flags(flags).program(Program::Image(smp::counters(2, 2_000))).build().unwrap()
        };
        let (mut whole, mut machine) = (make(), make());
        assert_eq!(whole.run(&LIMIT), PASS);
        let away = take_all(&machine);
        assert_eq!(away.run(&mut machine, &LIMIT, false), PASS, "{way:?}");
        assert_same_end(&format!("{way:?}"), &machine, &whole, RAM);
        let retired = |machine: &Machine| [0, 1].map(|hart| machine.vcpu(hart).unwrap().cpu().retired);
        assert_eq!(retired(&machine), retired(&whole), "{way:?}");
    }
}

#[test]
fn random_programs_end_the_same_on_a_machine_that_loses_its_ram_before_each() {
    const LEN: u64 = 0x4_0000;
    let make = |(engine, flags): (EngineKind, JitFlags)| {
        let builder = Machine::builder().ram_size(LEN).clock(ClockKind::Insns).engine(engine).jit_flags(flags);
        builder.build().unwrap()
    };
    let load = |machine: &mut Machine, program: &testkit::Program| {
        let mut bytes = program.bytes.clone();
        bytes.resize(LEN as usize, 0);
        machine.write(RAM_BASE, &bytes).unwrap();
        machine.start_at(program.entry).unwrap();
    };
    let mut oracle = make(ways()[0]);
    // Used again: of what they have of the last program's pages nothing is left.
    let mut all = ways().map(make);
    let mut requests = 0;
    for seed in 0..120 {
        let program = testkit::Program::generate(seed, &Options { base: RAM_BASE, ram_len: LEN, ..Options::default() });
        load(&mut oracle, &program);
        let limit = RunLimits { max_insns: Some(program.max_insns), deadline: None };
        let exit = oracle.run(&limit);
        let machine = &mut all[seed as usize % 3];
        load(machine, &program);
        let away = take_all(machine);
        assert_eq!(away.run(machine, &limit, seed % 2 == 0), exit, "seed {seed}");
        assert_same_end(&format!("seed {seed}"), machine, &oracle, LEN);
        requests += away.pages.requests();
    }
    assert!(requests > 500, "{requests}");
}

#[test]
fn a_hart_that_waits_lets_the_other_run_and_can_be_stopped_and_syncs_do_not_wait_for_it() {
    for way in ways() {
        // Each hart stores to its own region; nothing ends before it is told.
        let (engine, flags) = way;
        let builder = Machine::builder().ram_size(32 << 20).harts(2).engine(engine).jit_flags(flags);
        let mut machine = builder.program(Program::Image(sums::sums(2, 18, 0))).build().unwrap();
        let (stop, list) = (machine.stop_handle(), machine.space().ram().clone());
        let region = |off: u64| off / (1 << 18);
        let away = take_all(&machine);
        std::thread::scope(|scope| {
            let bring = scope.spawn(|| {
                // All but hart 1's region, which lies behind hart 0's.
                let mut held = None;
                let first = (sums::REGIONS - RAM_BASE) >> 18;
                let mut seen = 0;
                let until = Instant::now() + Duration::from_secs(60);
                while Instant::now() < until {
                    match away.next(Duration::from_millis(200)) {
                        Some((block, off)) if block.used_length() > 1 << 20 && region(off) == first + 1 => {
                            held = Some((block, off));
                        }
                        Some((block, off)) => {
                            seen += u64::from(region(off) == first);
                            away.bring(&block, off);
                        }
                        // Hart 0 has all that it uses, hart 1 waits.
                        None if held.is_some() && seen == 64 => break,
                        None => {}
                    }
                }
                // A log starts, which waits for each hart that runs, and finds what hart 0 stores.
                let log = list.log(DirtyClient::MIGRATION).start().unwrap();
                std::thread::sleep(Duration::from_millis(5));
                let dirty = log.sync(Some(Duration::from_secs(20))).unwrap().commit();
                assert!(dirty.count() > 0, "hart 0 runs on");
                drop(log);
                stop.stop();
                held
            });
            assert_eq!(machine.run(&soon()), MachineExit::Stopped, "{way:?}");
            let held = bring.join().unwrap().expect("hart 1 waits for its region");
            assert!(away.bring(&held.0, held.1) && !away.bring(&held.0, held.1), "placed once");
        });
        assert!(machine.vcpu(0).unwrap().cpu().retired > machine.vcpu(1).unwrap().cpu().retired);
        // It goes on from there.
        away.bring_all();
        machine.write(sums::STOP, &1u64.to_le_bytes()).unwrap();
        assert_eq!(machine.run(&soon()), PASS, "{way:?}");
        let times = away.pages.blocktime();
        assert!(times.vcpus[1].ns > times.vcpus[0].ns, "{times:?}");
        assert!(times.overlapped_ns <= times.vcpus[0].ns);
    }
}

#[test]
fn a_page_that_never_comes_ends_the_run_and_a_limit_ends_the_wait() {
    for way in ways() {
        let mut machine = machine(basic::hello(), 1, way);
        let away = take_all(&machine);
        let limits = RunLimits { max_insns: None, deadline: Some(Instant::now() + Duration::from_millis(20)) };
        assert_eq!(machine.run(&limits), MachineExit::Deadline, "{way:?}");
        assert_eq!(machine.cpu().retired, 0);
        let refused = machine.checkpoint().unwrap_err().to_string();
        assert!(refused.contains("yet to come"), "{refused}");
        away.pages.end("the other side is gone");
        assert_eq!(machine.run(&soon()), MachineExit::MissingPage, "{way:?}");
        assert!(machine.read(RAM_BASE, &mut [0; 8]).is_err() && machine.write(RAM_BASE, &[0]).is_err());
    }
}

/// A timer ticks while a load waits: code, and the pages of its ticks and of the load.
fn ticking() -> (Vec<u8>, u64, u64) {
    let mut ops = VecAssembler::<RiscvRelocation>::new(0);
    dynasmrt::dynasm!(ops ; .arch riscv64 ; .feature imaczicsr_zifencei
        ; la t0, ->handler
        ; csrw mtvec, t0
        ; lui s2, 0x200_4000       // mtimecmp
        ; lui s3, 0x200_c000       // mtime is 8 bytes below
        ; li.32 s4, 2000
        ; auipc s5, 0x3000
        ; auipc s1, 0x4000
        ; andi s5, s5, -8
        ; andi s1, s1, -8
        ; ld t0, [s3, -8]
        ; add t0, t0, s4
        ; sd t0, [s2]
        ; li.32 t0, 0x80           // MTIE
        ; csrw mie, t0
        ; csrsi mstatus, 8
        ; ld a0, [s1]
        ; csrci mstatus, 8
        ; lui t1, 0x10_0000
        ; li.32 t2, 0x5555
        ; sw t2, [t1]
        ; stay:
        ; j <stay
        ; .align 4
        ; ->handler:
        ; ld t3, [s5]
        ; addi t3, t3, 1
        ; sd t3, [s5]
        ; ld t3, [s2]
        ; add t3, t3, s4
        ; sd t3, [s2]
        ; .u32 0x3020_0073         // mret
    );
    (ops.finalize().unwrap(), 0x3000, 0x4000)
}

#[test]
fn interrupts_are_taken_while_a_hart_waits_for_a_page() {
    let (code, ticks, late) = ticking();
    for (engine, flags) in ways() {
        let builder = Machine::builder().ram_size(RAM).engine(engine).jit_flags(flags).clock(ClockKind::Host);
        let mut machine = builder.build().unwrap();
        machine.write(RAM_BASE, &code).unwrap();
        machine.write(RAM_BASE + late, &[7; 4096]).unwrap();
        machine.start_at(RAM_BASE).unwrap();
        let away = take_all(&machine);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut held = None;
                let until = Instant::now() + Duration::from_secs(60);
                while Instant::now() < until {
                    match away.next(Duration::from_millis(1)) {
                        Some((block, off)) if off == late => held = Some(block),
                        Some((block, off)) => drop(away.bring(&block, off)),
                        None => {}
                    }
                    let seen = |block: &Arc<RamBlock>| {
                        (ticks..ticks + 0x100).step_by(8).map(|at| block.load(at, 8).unwrap()).sum()
                    };
                    if let Some(block) = held.take_if(|block| {
                        let all: u64 = seen(block);
                        // On a busy host several may come while one is handled.
                        all >= 3 && away.pages.blocktime().waits > 3
                    }) {
                        away.bring(&block, late);
                        break;
                    }
                }
                away.bring_all();
            });
            assert_eq!(machine.run(&soon()), PASS, "{engine:?}");
        });
        assert_eq!(machine.cpu().x[10], 0x0707_0707_0707_0707);
        // Each interrupt ended a wait, and the load was made once.
        assert!(away.pages.blocktime().waits > 3, "{:?}", away.pages.blocktime());
        assert!(away.pages.requests() < 8);
    }
}

#[test]
fn hooks_are_called_once_for_an_instruction_that_waits_and_see_pages_that_are_yet_to_come() {
    for way in ways() {
        let make = || {
            let mut machine = machine(sieve::sieve(2_000, 303), 1, way);
            let counts = Arc::new([AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0)]);
            let [insns, told, sum] = [0, 1, 2].map(|n| {
                let counts = counts.clone();
                move |by: u64| counts[n].fetch_add(by, Ordering::Relaxed)
            });
            let hook = HookSpec::insn_with(.., move |view| {
                insns(1);
                // A page of its own, which the guest does not use.
                if view.cpu().retired % 1000 == 0 {
                    sum(view.load(RAM_BASE + 0x20_0000 + view.cpu().retired, MemSize::B1).unwrap() + 1);
                }
            });
            machine.add_hook(0, hook).unwrap();
            machine
                .add_hook(
                    0,
                    HookSpec::memory(0..u64::MAX, Kinds::All, move |_| {
                        let _ = told(1);
                    }),
                )
                .unwrap();
            (machine, counts)
        };
        let (mut whole, theirs) = make();
        assert_eq!(whole.run(&LIMIT), PASS);
        let (mut machine, ours) = make();
        let away = take_all(&machine);
        assert_eq!(away.run(&mut machine, &LIMIT, false), PASS);
        for (ours, theirs) in ours.iter().zip(&*theirs) {
            assert_eq!(ours.load(Ordering::Relaxed), theirs.load(Ordering::Relaxed), "{way:?}");
        }
    }
}
