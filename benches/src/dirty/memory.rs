//! Memory of the host for a GiB of the guest's: what is allocated, not what is touched.

use std::hint::black_box;
use std::sync::Arc;

use notdirty_core::dirty::{Backend, DirtyLog, LogRegion, LogScope};
use notdirty_core::{DirtyClient, NoVcpus, RamBlockSpec, RamList, RingSource, barrier};
use vm_memory::bitmap::AtomicBitmap;

use super::flat::Flat;
use super::heap;
use super::row::{Contender, Measure, Row, Sample};

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
        let (scope, backend) = match how {
            Use::Nowhere => return Ok((list, None)),
            Use::SomeMebibytes => {
                (LogScope::Regions(vec![LogRegion::bytes(&block, 1 << 30, 16 << 20)]), Backend::Bitmap)
            }
            Use::Everywhere => (LogScope::All, Backend::Bitmap),
            Use::WithRings => {
                (LogScope::All, Backend::Source(RingSource::new(&list, 1 << 16).map_err(|e| e.to_string())?))
            }
        };
        let log = DirtyLog::start(&list, DirtyClient::MIGRATION, scope, backend, Arc::new(NoVcpus), None);
        Ok((list, Some(log.map_err(|e| e.to_string())?)))
    })
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
