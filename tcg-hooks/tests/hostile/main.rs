//! A hostile guest: random code with registers full of wild pointers, and whatever the host has that it must not touch.
//!
//! ```text
//!   host    [canary][guard][ RAM .... | unmapped rest: canary ][guard][canary]   canaries over the low 4 GiB,
//!           ROM, alias, half a page, RAM at 0 and at the very end, a device      the heap, the stack
//!   guest   physical.rs   registers = edges of all that, host addresses, host addresses - (host - guest), TLB neighbours
//!           paged.rs      the same in every mode under page tables, PMP and mstatus of random bits; one hart, or two
//! ```
//!
//! world.rs is the machine, canary.rs what it must not touch. It runs in a child process, so that a host fault is a failure with a
//! seed and not the end of the tests. Where a stray access would fall into nothing, the host faults; where it would fall into
//! something, a canary dies; a run that does not come back ends the child.
//!
//!   NOTDIRTY_HOSTILE_INSNS=N   how many instructions (2,000,000 unless said; of a guest under page tables five times as many)
//!   NOTDIRTY_HOSTILE_SEED=S    where to start

mod canary;
#[path = "../common/mod.rs"]
mod common;
mod paged;
mod physical;
mod world;

use common::Setup;
use notdirty_tcg::{ICache, JitFlags};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use world::{Guest, World};

const INSNS: u64 = 2_000_000;
const CHILD: &str = "NOTDIRTY_HOSTILE_CHILD";
/// Longer than any burst takes, in seconds.
const STUCK: u64 = 120;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

#[test]
fn a_hostile_guest_touches_nothing_but_its_ram() {
    in_child("a_hostile_guest_touches_nothing_but_its_ram", |seed| child::<physical::Physical>(seed, 1, INSNS));
}

#[test]
fn a_hostile_guest_with_page_tables_touches_nothing_but_its_ram() {
    let name = "a_hostile_guest_with_page_tables_touches_nothing_but_its_ram";
    in_child(name, |seed| child::<paged::Paged>(seed, 1, 5 * INSNS));
}

#[test]
fn two_hostile_harts_with_page_tables_touch_nothing_but_their_ram() {
    let name = "two_hostile_harts_with_page_tables_touch_nothing_but_their_ram";
    in_child(name, |seed| child::<paged::Paged>(seed, 2, 5 * INSNS));
}

/// Runs the test of this name in a child process, where it is `body`.
fn in_child(name: &str, body: impl Fn(u64)) {
    if let Some(seed) = number(CHILD) {
        return body(seed);
    }
    let seed = number("NOTDIRTY_HOSTILE_SEED")
        .unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |t| t.as_nanos() as u64));
    let this = std::env::current_exe().expect("a test knows itself");
    let output = Command::new(this)
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
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

/// Ends the process, with what it was at, when no burst has ended for too long.
fn watch(bursts: &'static AtomicU64) {
    thread::spawn(move || {
        let mut last = (bursts.load(Ordering::Relaxed), Instant::now());
        loop {
            thread::sleep(Duration::from_secs(1));
            let now = bursts.load(Ordering::Relaxed);
            if now != last.0 {
                last = (now, Instant::now());
            } else if last.1.elapsed() > Duration::from_secs(STUCK) {
                eprintln!("burst {now} did not end in {STUCK} s");
                std::process::abort();
            }
        }
    });
}

fn child<G: Guest>(seed: u64, harts: usize, insns: u64) {
    static BURSTS: AtomicU64 = AtomicU64::new(0);
    watch(&BURSTS);
    let total = number("NOTDIRTY_HOSTILE_INSNS").unwrap_or(insns);
    let setups = setups();
    // Several machines of each kind, so that the host's layout differs, too.
    let rounds = (total / 20_000_000).clamp(1, 8);
    let share = total / rounds / setups.len() as u64 + 1;
    let (start, mut retired, mut interpreted) = (Instant::now(), 0, 0);
    let mut below = 0;
    for round in 0..rounds {
        for (n, (name, setup, near)) in setups.iter().enumerate() {
            let seed = seed.wrapping_add(round << 8 | n as u64);
            let mut world = World::new(seed, setup, *near, harts);
            world.run::<G>(share, name, &BURSTS);
            let stats = world.stats();
            retired += world.retired;
            interpreted += stats.interpreted;
            below += world.ended_below;
            println!(
                "{name}: {} insns, {} TBs, {} died, {} evicted, {} traps, {} misses, {} faults, {} device calls, {:?}",
                world.retired,
                stats.tbs_translated,
                stats.tbs_invalidated,
                stats.tbs_evicted,
                stats.traps,
                stats.tlb.load_miss + stats.tlb.store_miss + stats.tlb.fetch_miss,
                stats.tlb.faults,
                world.device.calls(),
                start.elapsed()
            );
        }
    }
    println!("{retired} instructions, {interpreted} of them by the oracle, {:?}, seed {seed:#x}", start.elapsed());
    println!("{below} bursts ended under page tables or PMP");
    assert!(interpreted < retired / 3, "it is the JIT that is on trial");
    assert!(below * 4 > G::UNDER_TABLES * BURSTS.load(Ordering::Relaxed), "page tables are hardly in use");
}
