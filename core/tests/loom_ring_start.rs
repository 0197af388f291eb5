//! RING-1 at the start of a log: a take that skips words that look clean, on pages that were clean before, as after another
//! log of the client. In loom_ring.rs bits are cleared by a RMW in any case.
#![cfg(loom)]

use loom::model::Builder;
use loom::thread;
use notdirty_core::raw::{RawDirty, RawRings};
use notdirty_core::sync::{AtomicU64, Ordering};
use notdirty_core::{ClientMask, DirtyClient, PageIndex, PageRange, PageSet, RamList, pin};
use std::sync::Arc;

struct Ram {
    list: RamList,
    byte: AtomicU64,
}

const PAGES: PageRange = PageRange { start: PageIndex::new(0), end: PageIndex::new(64) };

fn start_of_a_log(clean_before: bool) {
    let mut builder = Builder::new();
    builder.preemption_bound.get_or_insert(3);
    builder.check(move || {
        let ram = Arc::new(Ram { list: RamList::new(), byte: AtomicU64::new(0) });
        ram.list.dirty().grow(64).unwrap();
        let take = |ram: &Ram| {
            let mut pages = PageSet::new();
            ram.list.dirty().take(PAGES, DirtyClient::MIGRATION, &pin(), &mut pages);
        };
        if clean_before {
            take(&ram);
        }
        let writer = thread::spawn({
            let ram = ram.clone();
            move || {
                for value in [1, 2] {
                    ram.byte.store(value, Ordering::Relaxed);
                    let page = PageRange::of_page(PageIndex::new(3));
                    ram.list.dirty().set(page, ClientMask::MIGRATION, &pin());
                }
            }
        });
        let log = ram.list.dirty().start_rings(DirtyClient::MIGRATION, 2).unwrap();
        take(&ram);
        let mut seen = ram.byte.load(Ordering::Relaxed);
        writer.join().unwrap();
        if !log.take(&ram.list, None, &pin()).is_empty() {
            seen = ram.byte.load(Ordering::Relaxed);
        }
        assert_eq!(seen, 2, "a store is neither read nor reported");
    });
}

#[test]
fn a_log_that_starts_on_dirty_pages_reads_or_reports_each_store() {
    start_of_a_log(false);
}

#[test]
fn a_log_that_starts_on_clean_pages_reads_or_reports_each_store() {
    start_of_a_log(true);
}
