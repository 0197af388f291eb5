//! Dirty rings: what it costs to push a page, and to get the pages out and armed again.
//!
//! The same number of pages everywhere, one in each of as many equal parts of what is logged, in rising order. The
//! kernel's pages are pushed by its guest's stores, so its first figure has a fault in it, as ours in a machine has a
//! slow store.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use notdirty_core::{
    ClientMask, DirtyClient, DirtyLog, DirtyRing, PageIndex, PageRange, RamBlockSpec, RamList, VcpuRings, pin,
};

use super::clock::timed;
use super::kvm;
use super::patterns::Random;
use super::row::{Bar, Contender, Row, Sample};

/// Pages of a run; they fit a ring of the kernel's together with what it reserves.
pub const PAGES: u64 = 2048;
/// Entries of a ring.
pub const ENTRIES: u32 = 4096;
/// Pages of 1 GiB.
const GIB: u64 = 1 << 18;
const TIB: u64 = 1 << 28;

/// One page in each of `PAGES` parts of `space` pages.
pub fn striped(space: u64) -> Vec<u64> {
    let (part, mut random) = (space / PAGES, Random::new(0x5eed));
    (0..PAGES).map(|n| n * part + random.below(part)).collect()
}

/// RAM that is logged, and a vCPU without a guest.
struct Logged {
    list: Arc<RamList>,
    log: DirtyLog,
    rings: VcpuRings,
    pages: Vec<PageIndex>,
}

impl Logged {
    /// `ram` pages of it, of which `pages` are dirtied.
    fn new(ram: u64, pages: Vec<u64>, ring: bool) -> Result<Logged, String> {
        let list = Arc::new(RamList::new());
        let block = list.add(RamBlockSpec::new("ram", ram << 12)).map_err(|e| e.to_string())?;
        let log = list.log(DirtyClient::MIGRATION);
        let log = if ring { log.rings(ENTRIES) } else { log }.start().map_err(|e| e.to_string())?;
        let first = block.pages().start.get();
        let pages = pages.into_iter().map(|page| PageIndex::new(first + page)).collect();
        Ok(Logged { list, log, rings: VcpuRings::new(), pages })
    }

    fn dirty(&mut self) {
        let Logged { list, rings, pages, .. } = self;
        // A vCPU holds a guard.
        let guard = pin();
        for page in pages.iter() {
            list.dirty().set_new(PageRange::of_page(*page), ClientMask::ALL, &guard, |client, first, bits| {
                rings.push(list, client, first, bits, &guard);
            });
        }
    }

    fn sync(&self) -> Result<u64, String> {
        Ok(self.log.sync(None).map_err(|e| e.to_string())?.commit().count())
    }

    fn time_dirtying(&mut self) -> Result<Sample, String> {
        let sample = timed(PAGES as f64, || {
            self.dirty();
            0
        });
        Ok(Sample { check: self.sync()?, ..sample })
    }

    fn time_sync(&mut self) -> Result<Sample, String> {
        self.dirty();
        let mut count = Ok(0);
        let sample = timed(PAGES as f64, || {
            count = self.sync();
            0
        });
        Ok(Sample { check: count?, ..sample })
    }
}

type Work = fn(&mut Logged) -> Result<Sample, String>;

fn ours(name: &'static str, ram: u64, over: u64, ring: bool, work: Work) -> Result<Contender, String> {
    let mut logged = Logged::new(ram, striped(over), ring)?;
    Ok(Contender::fallible(name, move || work(&mut logged)))
}

fn kernel(name: &'static str, run: fn(&mut kvm::Kernel) -> Result<Sample, String>) -> Contender {
    match kvm::Kernel::new(ENTRIES) {
        Ok(kernel) => {
            let kernel = Rc::new(RefCell::new(kernel));
            Contender::fallible(name, move || run(&mut kernel.borrow_mut()))
        }
        Err(why) => Contender::absent(name, why),
    }
}

/// A page that was clean: its bit, and then the ring.
pub fn push() -> Result<Row, String> {
    let (mut producer, mut consumer) = DirtyRing::new(ENTRIES, 64).map_err(|e| e.to_string())?;
    let bare = Contender::new("notdirty, the ring alone", move || {
        let sample = timed(PAGES as f64, || {
            (0..PAGES).filter(|page| producer.push(0, page * 3) != notdirty_core::Pushed::Ok).count() as u64
        });
        let check = consumer.harvest(|_, _| ()).into();
        consumer.reset(|_, _, _| ());
        Sample { check, ..sample }
    });
    let contenders = vec![
        ours("notdirty, bit and ring", GIB, GIB, true, Logged::time_dirtying)?,
        ours("notdirty, bit without a ring", GIB, GIB, false, Logged::time_dirtying)?,
        bare,
        kernel("KVM, its guest's store", kvm::Kernel::time_stores),
    ];
    Ok(Row::times("page", contenders))
}

/// From dirty pages to pages that may be read: harvest, bits cleared, entries free. No vCPU is asked to re-arm by
/// ours, see the rows `rearm`; the kernel protects the pages again.
pub fn harvest() -> Result<Row, String> {
    let contenders = vec![
        ours("notdirty, ring, 1 GiB", GIB, GIB, true, Logged::time_sync)?,
        ours("ring, 1 TiB, the same pages", TIB, GIB, true, Logged::time_sync)?.bar(Bar::WithinOurs(1.25)),
        ours("ring, 1 TiB, pages all over it", TIB, TIB, true, Logged::time_sync)?,
        ours("bitmap, 1 GiB", GIB, GIB, false, Logged::time_sync)?,
        ours("bitmap, 1 TiB, pages all over it", TIB, TIB, false, Logged::time_sync)?,
        kernel("KVM, ring, 16 MiB", kvm::Kernel::time_harvest),
    ];
    Ok(Row::times("page", contenders).note(format!("{PAGES} pages dirty, one in each of as many parts")))
}
