//! Setting bits: what each slow store and each DMA pays, for pages that are dirty already and for pages that were clean.
//!
//! Ours starts with the fence that MARK-1 asks for; the others are given none, so a caller that needs one has to add it.

use std::num::NonZeroUsize;
use std::rc::Rc;

use notdirty_core::raw::RawDirty;
use notdirty_core::{ClientMask, DirtyClient, DirtyMemory, Guard, PageIndex, PageRange, pin};
use vm_memory::bitmap::AtomicBitmap;

use super::clock::{timed, timed_by_two};
use super::flat::{Flat, Tree};
use super::row::{Bar, Contender, Row, Sample};

/// One row of the table, which a thread walks through page by page.
const PAGES: u64 = 1 << 19;

/// One of the designs.
trait Marks: Sync {
    /// Marks one page. Who marks holds a guard already, as a vCPU does.
    fn set(&self, page: u64, guard: &Guard);
    /// Marks pages.
    fn set_range(&self, first: u64, count: u64);
    /// All clean.
    fn clear(&self);
}

struct Ours(DirtyMemory);

impl Marks for Ours {
    fn set(&self, page: u64, guard: &Guard) {
        self.0.set(PageRange::of_page(PageIndex::new(page)), ClientMask::ALL, guard);
    }
    fn set_range(&self, first: u64, count: u64) {
        let range = PageRange { start: PageIndex::new(first), end: PageIndex::new(first + count) };
        self.0.set(range, ClientMask::ALL, &pin());
    }
    fn clear(&self) {
        let all = PageRange { start: PageIndex::new(0), end: PageIndex::new(PAGES) };
        self.0.test_and_clear_range(all, DirtyClient::MIGRATION, &pin(), |_, _| {});
    }
}

impl Marks for AtomicBitmap {
    fn set(&self, page: u64, _: &Guard) {
        self.set_bit(page as usize);
    }
    fn set_range(&self, first: u64, count: u64) {
        self.set_addr_range(first as usize * 4096, count as usize * 4096);
    }
    fn clear(&self) {
        self.reset();
    }
}

impl Marks for Flat {
    fn set(&self, page: u64, _: &Guard) {
        Flat::set(self, page);
    }
    fn set_range(&self, first: u64, count: u64) {
        Flat::set_range(self, first..first + count);
    }
    fn clear(&self) {
        self.take_exchanging(|_, _| {});
    }
}

impl Marks for Tree {
    fn set(&self, page: u64, _: &Guard) {
        Tree::set(self, page);
    }
    fn set_range(&self, first: u64, count: u64) {
        (first..first + count).for_each(|page| Tree::set(self, page));
    }
    fn clear(&self) {
        Tree::clear(self);
    }
}

/// What is done with each design.
#[derive(Clone, Copy)]
struct Work {
    /// Every page is set before the clock starts.
    again: bool,
    /// Two threads, each every other page: they share each word.
    two: bool,
    /// In 2 MiB.
    huge: bool,
}

impl Work {
    fn run<M: Marks>(self, marks: &M) -> Sample {
        marks.clear();
        if self.again {
            let guard = pin();
            (0..PAGES).for_each(|page| marks.set(page, &guard));
        }
        let one = |thread: u64| {
            let guard = pin();
            let step = if self.two { 2 } else { 1 };
            (thread..PAGES).step_by(step).for_each(|page| marks.set(page, &guard));
            0
        };
        if self.huge {
            timed((PAGES / 512) as f64, || {
                let _guard = pin();
                (0..PAGES).step_by(512).for_each(|first| marks.set_range(first, 512));
                0
            })
        } else if self.two {
            timed_by_two((PAGES / 2) as f64, |thread| one(thread as u64))
        } else {
            timed(PAGES as f64, || one(0))
        }
    }

    fn contender<M: Marks + 'static>(self, name: &'static str, marks: M) -> Contender {
        let marks = Rc::new(marks);
        Contender::new(name, move || self.run(&*marks))
    }

    fn row(self) -> Result<Row, String> {
        let dirty = DirtyMemory::new();
        dirty.grow(PAGES).map_err(|e| e.to_string())?;
        let page = NonZeroUsize::new(4096).ok_or("a page of nothing")?;
        let contenders = vec![
            self.contender("notdirty", Ours(dirty)),
            self.contender("vm-memory AtomicBitmap", AtomicBitmap::new(PAGES as usize * 4096, page))
                .bar(if self.huge || self.two { Bar::None } else { Bar::OursWithin(2.0) }),
            self.contender("plain fetch_or", Flat::new(PAGES)),
            self.contender("Mutex<BTreeSet>", Tree::default()),
        ];
        Ok(Row::times(if self.huge { "2 MiB" } else { "page" }, contenders))
    }
}

const ONE: Work = Work { again: false, two: false, huge: false };

/// Pages that are dirty already.
pub fn again() -> Result<Row, String> {
    Work { again: true, ..ONE }.row()
}

/// The same by two threads in the same words.
pub fn again_two_threads() -> Result<Row, String> {
    Work { again: true, two: true, ..ONE }.row()
}

/// Pages that are clean.
pub fn new() -> Result<Row, String> {
    ONE.row()
}

/// The same by two threads in the same words.
pub fn new_two_threads() -> Result<Row, String> {
    Work { two: true, ..ONE }.row()
}

/// Clean pages, 512 at a time.
pub fn huge() -> Result<Row, String> {
    Work { huge: true, ..ONE }.row()
}
