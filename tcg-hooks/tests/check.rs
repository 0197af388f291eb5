//! Random self-modifying programs with all structures of the TB cache compared after each translation and each kill.
//!
//!   NOTDIRTY_CHECKED=N   how many programs a setup (150 unless said)
use notdirty_tcg::testkit::board::{Board, Make};
use notdirty_tcg::testkit::{Options, Program, Smc};
use notdirty_tcg::{EngineKind, ICache, JitFlags, VcpuExit};

const RAM: u64 = 0x8000_0000;
const LEN: u64 = 0x4_0000;

fn programs() -> u64 {
    std::env::var("NOTDIRTY_CHECKED").ok().and_then(|n| n.parse().ok()).unwrap_or(150)
}

/// Runs programs one after the other on one machine, each in the next of `slots` places. Returns the machine, which
/// was never out of order.
fn run(flags: JitFlags, icache: ICache, programs: u64, slots: u64, first: u64) -> Board {
    let make = Make { engine: EngineKind::Jit, flags, icache, cache: 1, ram: (RAM, slots * LEN) };
    let mut board = Board::new(make);
    board.vcpu.set_checking(true);
    let mut oracle = Board::new(Make { engine: EngineKind::Interp, ..make });
    for n in 0..programs {
        let mut options = Options { base: RAM + n % slots * LEN, ram_len: LEN, ..Options::default() };
        if icache == ICache::FenceI {
            // Without its fences a program has many outcomes.
            (options.smc, options.traps, options.wild) = (Smc::Fenced, false, false);
        }
        let program = Program::generate(first + n, &options);
        let [theirs, ours] = [&mut oracle, &mut board].map(|board| {
            board.load(&program, LEN);
            board.run(program.max_insns)
        });
        let found = board.vcpu.check_invariants();
        assert_eq!(found, Ok(()), "seed {}, {flags:?}", first + n);
        assert_eq!(ours, theirs, "seed {}, {flags:?}", first + n);
        if ours == VcpuExit::Stopped {
            assert_eq!(board.difference(&oracle), None, "seed {}, {flags:?}", first + n);
        }
    }
    board
}

#[test]
fn eagerly_translated_programs_keep_every_structure_in_order() {
    let board = run(JitFlags { tier0: false, ..JitFlags::default() }, ICache::Coherent, programs(), 1, 0);
    let stats = board.vcpu.stats();
    println!("{} checks, {:?}", board.vcpu.checks(), stats.tb);
    assert!(stats.tbs_invalidated > programs() && board.vcpu.checks() > stats.tbs_translated);
}

#[test]
fn tiered_programs_keep_every_structure_in_order() {
    let board = run(JitFlags::default(), ICache::Coherent, programs(), 1, 10_000);
    println!("{} checks, {:?}", board.vcpu.checks(), board.vcpu.stats().tb);
    assert!(board.vcpu.checks() > 0);
}

#[test]
fn kills_that_wait_for_a_fence_keep_every_structure_in_order() {
    for tier0 in [false, true] {
        let flags = JitFlags { tier0, ..JitFlags::default() };
        let board = run(flags, ICache::FenceI, programs(), 1, 40_000);
        assert!(tier0 || board.vcpu.stats().tbs_invalidated > programs());
    }
}

#[test]
fn basic_blocks_without_any_cache_keep_every_structure_in_order() {
    let mut flags = JitFlags { tier0: false, ..JitFlags::default() };
    for name in ["regions", "jump_cache", "pinned"] {
        assert!(flags.set(name, false));
    }
    let board = run(flags, ICache::Coherent, programs(), 1, 20_000);
    assert!(board.vcpu.stats().tb.linked > 0);
}

#[test]
fn a_crowded_code_cache_keeps_every_structure_in_order() {
    // Programs in places of their own let each other live, until the cache is full and comes round again.
    let flags = JitFlags { tier0: false, regions: false, optimise: false, ..JitFlags::default() };
    let n = 3 * programs();
    let board = run(flags, ICache::Coherent, n, n.clamp(2, 1000), 30_000);
    let stats = board.vcpu.stats();
    println!("{} checks, {:?}", board.vcpu.checks(), stats.tb);
    assert!(programs() < 150 || stats.tbs_evicted > 0, "no pressure: {:?}", stats.tb);
}
