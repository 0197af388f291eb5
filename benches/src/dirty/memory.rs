//! Memory of the host for a GiB of the guest's: what is allocated, not what is touched.

use std::hint::black_box;
use std::sync::Arc;

use notdirty_core::{DirtyClient, LogRegion, LogScope, RamBlockSpec, RamList, barrier};
use vm_memory::bitmap::AtomicBitmap;

use super::flat::Flat;
use super::heap;
use super::row::{Bar, Contender, Measure, Row, Sample};

/// GiB of RAM.
const GIB: u64 = 64;

/// Where a client listens.
#[derive(Clone, Copy)]
enum Use {
    Nowhere,
    SomeMebibytes,
    Everywhere,
    WithRings,
}

fn count<T>(name: &'static str, make: impl Fn() -> Result<T, String> + 'static) -> Contender {
    Contender::fallible(name, move || {
        // What earlier runs gave up is freed after grace, and not on this one's account.
        barrier().map_err(|e| e.to_string())?;
        let (bytes, made) = heap::grown_by(|| black_box(make()));
        made?;
        Ok(Sample { total: bytes as f64, units: GIB as f64, check: 0 })
    })
}

fn ours(name: &'static str, how: Use) -> Contender {
    count(name, move || {
        let list = Arc::new(RamList::new());
        let block = list.add(RamBlockSpec::new("ram", GIB << 30)).map_err(|e| e.to_string())?;
        let log = list.log(DirtyClient::MIGRATION);
        let log = match how {
            Use::Nowhere => return Ok((list, None)),
            Use::SomeMebibytes => log.scope(LogScope::Regions(vec![LogRegion::bytes(&block, 1 << 30, 16 << 20)])),
            Use::Everywhere => log,
            Use::WithRings => log.rings(1 << 16),
        };
        Ok((list, Some(log.start().map_err(|e| e.to_string())?)))
    })
}

/// Plugs and unplugs 1 GiB in a loop, with memory of the host under a part of it: how much more the process has than before,
/// at most. Nothing else happens meanwhile.
pub fn unplugged() -> Result<Row, String> {
    const ROUNDS: u64 = 200;
    const TOUCHED: u64 = 64 << 20;
    let ours = Contender::fallible("notdirty, the most of 200 rounds", || {
        let list = RamList::new();
        let round = || -> Result<(), String> {
            let block = list.add(RamBlockSpec::new("dimm", 1 << 30)).map_err(|e| e.to_string())?;
            block.fill_raw(0, TOUCHED, 1).map_err(|e| e.to_string())?;
            list.remove(&block).map_err(|e| e.to_string())
        };
        round()?;
        barrier().map_err(|e| e.to_string())?;
        let before = resident()?;
        let mut most = 0u64;
        for _ in 0..ROUNDS {
            round()?;
            most = most.max(resident()?.saturating_sub(before));
        }
        Ok(Sample { total: most as f64, units: 1.0, check: 0 })
    });
    // Four of two hundred: those whose turn it is not yet.
    let ours = ours.bar(Bar::AtMost((4 * TOUCHED) as f64));
    let row =
        Row::times("loop", vec![ours]).rounds(3).note("1 GiB, of which 64 MiB are stored to; 12.5 GiB if all stayed");
    Ok(Row { measure: Measure::Bytes, ..row })
}

/// Bytes of memory that the process has.
fn resident() -> Result<u64, String> {
    let text = std::fs::read_to_string("/proc/self/statm").map_err(|e| format!("/proc/self/statm: {e}"))?;
    let pages: Option<u64> = text.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    pages.map(|pages| pages * 4096).ok_or_else(|| format!("/proc/self/statm: {text}"))
}

/// Bytes for each GiB.
pub fn per_gib() -> Result<Row, String> {
    if !heap::counts() {
        return Err("this binary does not count what it allocates".into());
    }
    let page = std::num::NonZeroUsize::new(4096).ok_or("a page of nothing")?;
    let contenders = vec![
        ours("notdirty, one client on all of it", Use::Everywhere),
        ours("notdirty, nobody listens", Use::Nowhere),
        ours("notdirty, one client on 16 MiB", Use::SomeMebibytes),
        ours("notdirty, one client with rings", Use::WithRings),
        count("vm-memory AtomicBitmap", move || Ok(AtomicBitmap::new((GIB << 30) as usize, page))),
        count("plain words", || Ok(Flat::new(GIB << 18))),
    ];
    let note =
        format!("of {GIB} GiB; clean and dirty pages take the same; a vCPU's ring of 64 Ki entries is 1 MiB on top");
    let row = Row::times("GiB", contenders).rounds(1).note(note);
    Ok(Row { measure: Measure::Bytes, ..row })
}
