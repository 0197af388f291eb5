//! What the rows of paging (`programs/bench/vm.c`) ask of the page tables: counts, which `--stats` prints, and no times.

use std::path::Path;

use notdirty::{
    Captured, ClockKind, Console, EngineKind, ExitBy, GuestExit, JitFlags, Machine, MachineExit, Program, RunLimits,
};

/// Instructions between two looks at what was printed.
const SLICE: u64 = 500;

/// What a row added to the counters.
#[derive(Debug)]
struct Counts {
    events: u64,
    load_misses: u64,
    fetch_misses: u64,
    dropped: u64,
}

/// The counts of each row, in its turn, as far as the names go.
fn rows<const N: usize>(program: &Path, engine: EngineKind, flags: JitFlags, names: [&str; N]) -> [Counts; N] {
    let output = Captured::default();
    let mut machine = Machine::builder()
        .ram_size(128 << 20)
        .clock(ClockKind::Insns)
        .engine(engine)
        .jit_flags(flags)
        .console(Console::new(Box::new(output.clone())))
        .program(Program::Elf(program.into()))
        .build()
        .expect("the machine is built");
    let mut before = machine.stats().tlb;
    names.map(|name| {
        let line = loop {
            let text = output.text();
            let whole = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
            if let Some(line) = whole.into_iter().find(|line| line.starts_with(&format!("{name} ticks="))) {
                break line.to_owned();
            }
            let limits = RunLimits { max_insns: Some(machine.cpu().retired + SLICE), deadline: None };
            match machine.run(&limits) {
                MachineExit::InsnLimit => {}
                MachineExit::Guest(GuestExit { code: 0, by: ExitBy::Finisher }) => {}
                exit => panic!("{name}: {exit:?}\n{}", output.text()),
            }
        };
        let events = line.rsplit_once("n=").and_then(|(_, n)| n.trim().parse().ok()).expect("n=");
        let now = machine.stats().tlb;
        let counts = Counts {
            events,
            load_misses: now.load_miss - before.load_miss,
            fetch_misses: now.fetch_miss - before.fetch_miss,
            dropped: now.dropped - before.dropped,
        };
        before = now;
        counts
    })
}

#[test]
fn a_fence_of_one_address_costs_one_refill_and_a_switch_to_a_live_address_space_none() {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/build/quick/vm.elf");
    if !program.is_file() {
        println!("SKIPPED the rows of paging: no {} (make guests needs a cross compiler)", program.display());
        return;
    }
    let names = ["sfence-page", "satp", "sfence-page-1000", "satp-1000", "walk"];
    for (engine, flags) in [
        (EngineKind::Jit, JitFlags::default()),
        (EngineKind::Jit, JitFlags { tier0: false, ..JitFlags::default() }),
        (EngineKind::Interp, JitFlags::default()),
    ] {
        let [page, switch, page_1000, switch_1000, walk] = rows(&program, engine, flags, names);
        let what = format!("{engine:?}, tier 0 {}", flags.tier0);
        // Beside the row: its first touch of each page, and what its line and the look at it take.
        let beside = 64;
        let about = |count: u64, wanted: u64| (wanted..=wanted + beside).contains(&count);
        assert!(page.events >= 10_000 && page_1000.events >= 40 && walk.events >= 40_000, "{page:?} {walk:?}");

        // A fence of one address drops one entry, which the load behind it fills again, and nothing else.
        assert!(about(page.load_misses, page.events), "{what}: {page:?}");
        // The same with 1,000 pages in use, which all stay; half of them are filled for the first time.
        assert!(about(page_1000.load_misses, page_1000.events + 1000 - 512), "{what}: {page_1000:?}");
        assert!(about(page_1000.dropped, page_1000.events), "{what}: {page_1000:?}");
        // A switch fills what its address space did not have yet, in all its rounds. A page of the window and that of the roots'
        // addresses, which each switch loads, take each other's place once a round.
        let (rounds, rounds_1000) = (switch.events / 512, switch_1000.events);
        let first = |count: u64, wanted: u64, rounds: u64| (wanted..=wanted + beside + 2 * rounds).contains(&count);
        assert!(first(switch.load_misses, 512 / 2, rounds), "{what}: {switch:?}");
        assert!(first(switch_1000.load_misses, 1000 - 512 / 2, rounds_1000), "{what}: {switch_1000:?}");
        for row in [&switch, &switch_1000] {
            assert_eq!(row.dropped, 0, "{what}: {row:?}");
        }
        // A fence of everything drops what the round before it filled.
        assert!(about(walk.load_misses, walk.events), "{what}: {walk:?}");
        // Code is no data: none of these rows has its fetches walked anew, but that of the fences of everything.
        for row in [&page, &switch, &page_1000, &switch_1000] {
            assert!(row.fetch_misses <= beside, "{what}: {row:?}");
        }
    }
}
