//! Every operation of the dirty memory against something too simple to be wrong.
//!
//! The model is a vector of cells. A cell is one page, or one of the long stretches between the windows that the
//! operations begin and end in: such a stretch is always set or cleared as a whole, so one bool tells of it, too.
//!
//! ```text
//!   page 0        2 Mi − 700 … 2 Mi + 700            10 Mi − 700 … 10 Mi + 700        18 Mi ± 700
//!        └─ cell ─┘└───── cells of a page ──────┘└──────── one cell ───────┘ …          = 72 GiB of RAM, nine blocks
//! ```
#![cfg(not(loom))]

use notdirty_core::raw::RawDirty;
use notdirty_core::{ClientMask, DirtyClient, DirtyMemory, OwnedClient, PageIndex, PageRange, PageSet, pin};
use proptest::prelude::*;
use std::sync::Arc;

/// Pages of one dirty block.
const BLOCK: u64 = 256 * 1024 * 8;
/// A window has a border of two blocks in its middle.
const HALF: u64 = 700;
const BORDERS: [u64; 3] = [1, 5, 9];
/// Pages in the windows, by which operations name theirs.
const NAMED: u64 = BORDERS.len() as u64 * 2 * HALF;
const CLIENTS: usize = 8;

fn real(named: u64) -> u64 {
    let window = (named / (2 * HALF)).min(BORDERS.len() as u64 - 1);
    BORDERS[window as usize] * BLOCK - HALF + (named - window * 2 * HALF)
}

/// One operation; pages are named ones, clients are numbers of columns or of owned clients.
#[derive(Clone, Debug)]
enum Op {
    Set(u64, u64, u8),
    SetNew(u64, u64, u8),
    TakeRange(u64, u64, usize),
    Take(u64, u64, usize),
    TakePage(u64, usize),
    Snapshot(u64, u64, usize),
    Test(u64, usize),
    Next(u64, u64, usize),
    Listening(u64),
    Grow(u64),
    Add,
    Drop(usize),
}

/// A page, often one at an edge of a word, a summary line or a block.
fn a_page() -> impl Strategy<Value = u64> {
    let near = |step: u64| {
        (0..BORDERS.len() as u64, 0..2 * HALF / step + 1, 0..3u64).prop_map(move |(window, n, d)| {
            let start = BORDERS[window as usize] * BLOCK - HALF;
            let at = (start.next_multiple_of(step) + n * step + d - 1 - start).min(2 * HALF - 1);
            window * 2 * HALF + at
        })
    };
    prop_oneof![0..NAMED, near(64), near(512), near(BLOCK)]
}

/// Two pages: any, or near each other; or one page, which takes ways of its own.
fn a_range() -> impl Strategy<Value = (u64, u64)> {
    let end = prop_oneof![a_page().prop_map(Some), Just(Some(NAMED)), Just(None), Just(None)];
    (a_page(), end, prop_oneof![2 => 0..1100u64, 1 => Just(1)]).prop_map(|(a, b, near)| {
        let b = if near == 1 { None } else { b };
        let b = b.unwrap_or((a + near).min(NAMED));
        (a.min(b), a.max(b))
    })
}

fn an_op() -> impl Strategy<Value = Op> {
    let client = || 0..CLIENTS;
    prop_oneof![
        3 => (a_range(), any::<u8>()).prop_map(|((a, b), m)| Op::Set(a, b, m)),
        2 => (a_range(), any::<u8>()).prop_map(|((a, b), m)| Op::SetNew(a, b, m)),
        2 => (a_range(), client()).prop_map(|((a, b), c)| Op::TakeRange(a, b, c)),
        3 => (a_range(), client()).prop_map(|((a, b), c)| Op::Take(a, b, c)),
        2 => (a_page(), client()).prop_map(|(p, c)| Op::TakePage(p, c)),
        2 => (a_range(), client()).prop_map(|((a, b), c)| Op::Snapshot(a, b, c)),
        1 => (a_page(), client()).prop_map(|(p, c)| Op::Test(p, c)),
        2 => (a_range(), client()).prop_map(|((a, b), c)| Op::Next(a, b, c)),
        1 => a_page().prop_map(Op::Listening),
        1 => (0..12 * BLOCK).prop_map(Op::Grow),
        2 => Just(Op::Add),
        1 => client().prop_map(Op::Drop),
    ]
}

fn pages(a: u64, b: u64) -> PageRange {
    let end = if b == 0 { 0 } else { real(b - 1) + 1 };
    PageRange { start: PageIndex::new(if a < NAMED { real(a) } else { end }), end: PageIndex::new(end) }
}

/// The model.
struct World {
    dirty: Arc<DirtyMemory>,
    /// The first page of each cell; it ends where the next one starts.
    starts: Vec<u64>,
    bits: Vec<[bool; CLIENTS]>,
    /// Run-time clients by column, and the numbers of some that are gone.
    owned: [Option<OwnedClient>; CLIENTS],
    gone: Vec<DirtyClient>,
}

impl World {
    fn new() -> Self {
        let dirty = Arc::new(DirtyMemory::new());
        let mut starts = vec![0];
        for border in BORDERS {
            starts.extend(border * BLOCK - HALF..=border * BLOCK + HALF);
        }
        dirty.grow(*starts.last().unwrap()).unwrap();
        let bits = vec![[true; CLIENTS]; starts.len() - 1];
        Self { dirty, starts, bits, owned: Default::default(), gone: Vec::new() }
    }

    /// A client that is there: a fixed one, or the owned one of this column, or the first.
    fn client(&self, n: usize) -> DirtyClient {
        match &self.owned[n] {
            Some(owned) => owned.client(),
            None => [DirtyClient::VGA, notdirty_core::raw::CODE, DirtyClient::MIGRATION][n % 3],
        }
    }

    fn cells(&self, range: PageRange) -> std::ops::Range<usize> {
        let at = |page: u64| self.starts.binary_search(&page).unwrap();
        if range.is_empty() { 0..0 } else { at(range.start.get())..at(range.end.get()) }
    }

    /// The pages of `range` that are set in the model, and then cleared there.
    fn model_take(&mut self, range: PageRange, client: DirtyClient) -> PageSet {
        let mut taken = PageSet::new();
        for cell in self.cells(range) {
            if std::mem::replace(&mut self.bits[cell][client.column()], false) {
                taken.insert(self.cell(cell));
            }
        }
        taken
    }

    fn model_set(&mut self, range: PageRange, client: usize) -> PageSet {
        let mut new = PageSet::new();
        for cell in self.cells(range) {
            if !std::mem::replace(&mut self.bits[cell][client], true) {
                new.insert(self.cell(cell));
            }
        }
        new
    }

    fn cell(&self, n: usize) -> PageRange {
        PageRange { start: PageIndex::new(self.starts[n]), end: PageIndex::new(self.starts[n + 1]) }
    }

    fn run(&mut self, op: Op) -> Result<(), TestCaseError> {
        let dirty = self.dirty.clone();
        match op {
            Op::Set(a, b, mask) => {
                dirty.set(pages(a, b), self.mask(mask), &pin());
                for column in self.columns(mask) {
                    self.model_set(pages(a, b), column);
                }
            }
            Op::SetNew(a, b, mask) => {
                let mut new: [PageSet; CLIENTS] = Default::default();
                dirty.set_new(pages(a, b), self.mask(mask), &pin(), |client, first, bits| {
                    new[client.column()].push(first, bits);
                });
                for column in self.columns(mask) {
                    prop_assert_eq!(&self.model_set(pages(a, b), column), &new[column]);
                    new[column] = PageSet::new();
                }
                prop_assert!(new.iter().all(PageSet::is_empty), "told of who was not asked for");
            }
            Op::TakeRange(a, b, c) => {
                let (client, mut taken) = (self.client(c), PageSet::new());
                let count = dirty.test_and_clear_range(pages(a, b), client, &pin(), |first, bits| {
                    assert!(bits != 0 && first.get() % 64 == 0);
                    taken.push(first, bits);
                });
                prop_assert_eq!(count, taken.count());
                prop_assert_eq!(taken, self.model_take(pages(a, b), client));
            }
            Op::Take(a, b, c) => {
                let (client, mut taken) = (self.client(c), PageSet::new());
                dirty.take(pages(a, b), client, &pin(), &mut taken);
                prop_assert_eq!(taken, self.model_take(pages(a, b), client));
            }
            Op::TakePage(p, c) => {
                let client = self.client(c);
                let was = dirty.test_and_clear(PageIndex::new(real(p)), client, &pin());
                prop_assert_eq!(was, !self.model_take(pages(p, p + 1), client).is_empty());
            }
            Op::Snapshot(a, b, c) => {
                let client = self.client(c);
                let snapshot = dirty.snapshot_and_clear(pages(a, b), client, &pin());
                let expected = self.model_take(pages(a, b), client);
                // It outlives the clear, and a mark does not change it.
                self.run(Op::Set(a, (a + 3).min(b), !0))?;
                prop_assert_eq!(snapshot.pages(), &expected);
                for p in [a, (a + b) / 2, b.saturating_sub(1)].into_iter().filter(|p| *p < NAMED) {
                    let page = PageIndex::new(real(p));
                    prop_assert_eq!(snapshot.test(page), expected.contains(page));
                    prop_assert_eq!(snapshot.any(PageRange::of_page(page)), expected.contains(page));
                }
                prop_assert_eq!(snapshot.any(pages(0, NAMED)), !expected.is_empty());
            }
            Op::Test(p, c) => {
                let client = self.client(c);
                let cell = self.cells(pages(p, p + 1)).start;
                prop_assert_eq!(dirty.test(PageIndex::new(real(p)), client, &pin()), self.bits[cell][client.column()]);
            }
            Op::Next(a, b, c) => {
                let client = self.client(c);
                let next = self.cells(pages(a, b)).find(|cell| self.bits[*cell][client.column()]);
                let next = next.map(|cell| PageIndex::new(self.starts[cell]));
                prop_assert_eq!(dirty.next_set(pages(a, b), client, &pin()), next);
                prop_assert_eq!(dirty.any_set(pages(a, b), client, &pin()), next.is_some());
            }
            Op::Listening(p) => {
                let who = dirty.listening(PageIndex::new(real(p)), &pin());
                let bits = self.bits[self.cells(pages(p, p + 1)).start];
                let (mut clients, code) = (ClientMask::NONE, !bits[notdirty_core::raw::CODE.column()]);
                for n in 0..CLIENTS {
                    let client = self.client(n);
                    prop_assert_eq!(who.contains(client), !bits[client.column()]);
                    if client != notdirty_core::raw::CODE && !bits[client.column()] {
                        clients |= ClientMask::of(client);
                    }
                }
                prop_assert_eq!((who.clients(), who.code()), (clients, code));
                prop_assert_eq!(who.only_code(), code && clients.is_empty());
                prop_assert_eq!(who.is_empty(), !code && clients.is_empty());
            }
            Op::Grow(pages) => dirty.grow(pages).unwrap(),
            Op::Add => match DirtyMemory::add_client(&self.dirty, "somebody") {
                Ok(client) => {
                    let column = client.client().column();
                    prop_assert!(self.owned[column].is_none() && column >= 3);
                    prop_assert!(self.bits.iter().all(|bits| bits[column]), "a new client listens to nothing");
                    self.owned[column] = Some(client);
                }
                Err(_) => prop_assert!(self.owned[3..].iter().all(Option::is_some)),
            },
            Op::Drop(n) => {
                if let Some(owned) = self.owned[n].take() {
                    self.gone.push(owned.client());
                    self.bits.iter_mut().for_each(|bits| bits[n] = true);
                }
            }
        }
        // Who has gone takes nothing, whoever has the column now.
        for gone in &self.gone {
            let page = PageIndex::new(real(0));
            prop_assert!(dirty.test(page, *gone, &pin()) && dirty.test_and_clear(page, *gone, &pin()));
            prop_assert_eq!(dirty.test_and_clear_range(pages(0, 100), *gone, &pin(), |_, _| {}), 0);
        }
        Ok(())
    }

    fn mask(&self, bits: u8) -> ClientMask {
        self.columns(bits).map(|c| ClientMask::of(self.client(c))).fold(ClientMask::NONE, |a, b| a | b)
    }

    /// The columns of `bits` that are somebody's.
    fn columns(&self, bits: u8) -> impl Iterator<Item = usize> + use<> {
        let there: Vec<_> = (0..CLIENTS).filter(|c| *c < 3 || self.owned[*c].is_some()).collect();
        // The translator's is no client that can be marked.
        there.into_iter().filter(move |c| bits >> c & 1 != 0 && *c != notdirty_core::raw::CODE.column())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn dirty_memory_does_what_a_vector_of_bools_does(ops in prop::collection::vec(an_op(), 1..50)) {
        let mut world = World::new();
        for op in ops {
            world.run(op)?;
        }
        // Whatever happened, the summary leads to every bit that is left (SUM-1), and to nothing else.
        for c in 0..CLIENTS {
            world.run(Op::Take(0, NAMED, c))?;
            world.run(Op::Take(0, NAMED, c))?;
        }
    }
}

proptest! {
    #[test]
    fn a_page_set_does_what_a_set_of_pages_does(
        steps in prop::collection::vec((0..7u8, 0..40u64, 0..200u64, any::<u64>(), 0..4u64), 0..25),
        cuts in prop::collection::vec((0..2000u64, 1..200u64, 0..300u64), 0..6),
    ) {
        let (mut set, mut model) = (PageSet::new(), std::collections::BTreeSet::new());
        for (what, word, len, bits, words) in steps {
            let bits = match what { 0 => !0, 1 => bits & bits.rotate_left(9) & bits.rotate_left(23), _ => bits };
            let mut with = |first: u64, bits: u64| model.extend((0..64).filter(|n| bits >> n & 1 != 0).map(|n| first + n));
            match what {
                0 | 1 => {
                    set.push_words(PageIndex::new(word * 64), words, bits);
                    (0..words).for_each(|n| with((word + n) * 64, bits));
                }
                5 => {
                    let line = [bits, 0, !bits, 1, bits & 1, len, len, words];
                    set.push_line(PageIndex::new(word * 64 + 3), &line[..4 + words as usize]);
                    (0..4 + words).for_each(|n| with((word + n) * 64, line[n as usize]));
                }
                6 => set.push_line(PageIndex::new(word * 64), &[0; 8][..words as usize]),
                2 => {
                    set.push(PageIndex::new(word * 64 + 5), bits);
                    with(word * 64, bits);
                }
                3 => {
                    let start = word * 61;
                    set.insert(PageRange { start: PageIndex::new(start), end: PageIndex::new(start + len) });
                    model.extend(start..start + len);
                }
                _ => {
                    set.merge(&PageSet::from_words(vec![(PageIndex::new(word * 64 + 640), bits), (PageIndex::new(word * 64), !bits)]));
                    with(word * 64 + 640, bits);
                    with(word * 64, !bits);
                }
            }
        }
        prop_assert_eq!(set.count(), model.len() as u64);
        prop_assert_eq!(set.is_empty(), model.is_empty());
        prop_assert!((0..3000).all(|p| set.contains(PageIndex::new(p)) == model.contains(&p)));
        prop_assert!(set.ranges().flat_map(|r| r.iter()).map(|p| p.get()).eq(model.iter().copied()));
        prop_assert!(set.ranges().zip(set.ranges().skip(1)).all(|(a, b)| a.end < b.start), "as few as it takes");
        prop_assert_eq!(&PageSet::from_words(set.words().collect()), &set);
        let words = set.runs().flat_map(|(first, words, bits)| (0..words).map(move |n| (first.get() + n * 64, bits)));
        prop_assert!(words.eq(set.words().map(|(first, bits)| (first.get(), bits))), "a run is its words");
        for most in [0, 1, 3, 1000, usize::MAX] {
            let cover = set.cover(most);
            prop_assert!(cover.len() <= most.max(1));
            prop_assert!(model.iter().all(|p| cover.iter().any(|r| r.contains(PageIndex::new(*p)))));
            prop_assert!(cover.windows(2).all(|two| two[0].end <= two[1].start));
            if most >= set.ranges().count() {
                prop_assert!(cover.into_iter().eq(set.ranges()));
            }
        }
        let mut at = 0;
        let cuts: Vec<_> = cuts.into_iter().map(|(gap, len, _)| {
            let start = at + gap % 300;
            at = start + len;
            PageRange { start: PageIndex::new(start), end: PageIndex::new(at) }
        }).collect();
        let within = set.within(&cuts);
        let expected = |p: u64| model.contains(&p) && cuts.iter().any(|r| r.contains(PageIndex::new(p)));
        prop_assert!((0..3000).all(|p| within.contains(PageIndex::new(p)) == expected(p)));
    }
}

#[test]
fn a_page_at_the_end_of_all_numbers_is_a_page() {
    let last = PageIndex::new(u64::MAX - 1);
    let mut set = PageSet::new();
    set.insert(PageRange::of_page(last));
    assert!(set.contains(last) && set.count() == 1);
    assert_eq!(set.ranges().collect::<Vec<_>>(), [PageRange::of_page(last)]);
    assert_eq!(set.cover(1).len(), 1);
    assert_eq!(set.within(&[PageRange { start: PageIndex::new(0), end: last }]).count(), 0);
    set.push_words(PageIndex::new(u64::MAX), u64::MAX, !0);
    assert_eq!(set.count(), 64);
    let mut line = PageSet::new();
    line.push_line(PageIndex::new(u64::MAX), &[6; 8]);
    assert_eq!(line.words().collect::<Vec<_>>(), [(PageIndex::new(u64::MAX - 63), 6)], "words past the last are none");
}

#[test]
fn a_mark_for_no_client_or_for_one_that_does_not_track_leaves_the_only_one_that_does_listening() {
    let (dirty, guard) = (DirtyMemory::new(), pin());
    dirty.grow(BLOCK).unwrap();
    let range = |len: u64| PageRange { start: PageIndex::new(5), end: PageIndex::new(5 + len) };
    dirty.take(range(100), DirtyClient::VGA, &guard, &mut PageSet::new());
    for clients in [ClientMask::NONE, ClientMask::MIGRATION] {
        for len in [1, 100] {
            dirty.set(range(len), clients, &guard);
            dirty.set_new(range(len), clients, &guard, |client, _, _| panic!("{client:?} is told"));
            assert!(!dirty.any_set(range(100), DirtyClient::VGA, &guard), "{clients:?}, {len} pages");
        }
    }
}

/// A re-arm of a page asks vCPUs to look at its entries: of a wide gap that is a cost for each of its pages.
#[test]
fn a_cover_of_many_lone_pages_leaves_out_the_wide_gaps_between_them() {
    const APART: u64 = 1 << 20;
    for each in [8, 100, 1000] {
        let lone = |from: u64| (0..each).map(move |n| (PageIndex::new(from + n * 192), 1));
        let set = PageSet::from_words([0, APART, 8 * APART].into_iter().flat_map(lone).collect());
        for most in [3, 4, 16] {
            let cover = set.cover(most);
            assert!(set.ranges().all(|page| cover.iter().any(|range| range.contains(page.start))));
            let pages: u64 = cover.iter().map(PageRange::len).sum();
            assert!(pages <= 3 * each * 192, "{pages} pages in {most} ranges for three times {each}");
        }
    }
    // Gaps so long that they are closed last: those of one length at once, and not the one that is longer by far.
    let at = [0, 1, 14, 15, 16].map(|n| (PageIndex::new(n << 16), 1));
    let cover = PageSet::from_words(at.to_vec()).cover(2);
    let ranges: Vec<_> = cover.iter().map(|range| (range.start.get() >> 16, range.len() >> 16)).collect();
    assert_eq!(ranges, [(0, 1), (14, 2)]);
}

#[test]
fn a_set_as_wide_as_the_space_is_covered_by_as_many_ranges_as_one_likes() {
    let pages = [0, 1 << 30, u64::MAX - 1].map(PageIndex::new);
    let set = PageSet::from_words(pages.map(|page| (page, 1 << (page.get() % 64))).to_vec());
    for most in [0, 1, 2, 3, 1024, usize::MAX] {
        let cover = set.cover(most);
        assert!(pages.iter().all(|page| cover.iter().any(|range| range.contains(*page))), "{most}: {cover:?}");
        assert!(cover.len() <= most.max(1));
    }
}

#[test]
fn a_lone_page_is_taken_from_among_clean_ones_wherever_it_is() {
    // A word of the summary is 64 lines of 512 pages; a take looks at 8 such words at once, from whole ones on.
    const WORD: u64 = 64 * 512;
    let range = |start, end| PageRange { start: PageIndex::new(start), end: PageIndex::new(end) };
    let dirty = DirtyMemory::new();
    dirty.grow(2 * BLOCK).unwrap();
    dirty.take(range(0, 2 * BLOCK), DirtyClient::VGA, &pin(), &mut PageSet::new());
    for (start, end) in [(0, 2 * BLOCK), (3 * WORD + 5, BLOCK + 11 * WORD + 77), (7 * WORD, BLOCK - 1)] {
        for page in (0..2 * BLOCK).step_by(WORD as usize).flat_map(|word| [word, word + 9_999, word + WORD - 1]) {
            dirty.set(PageRange::of_page(PageIndex::new(page)), ClientMask::VGA, &pin());
            let mut taken = PageSet::new();
            dirty.take(range(start, end), DirtyClient::VGA, &pin(), &mut taken);
            assert_eq!(taken.contains(PageIndex::new(page)), (start..end).contains(&page), "{page} of {start}..{end}");
            let left = dirty.test_and_clear(PageIndex::new(page), DirtyClient::VGA, &pin());
            assert_eq!(left, taken.is_empty());
        }
    }
}

#[test]
fn a_sink_that_panics_loses_only_what_it_was_given() {
    let range = PageRange { start: PageIndex::new(40), end: PageIndex::new(BLOCK + 100) };
    let marks: Vec<_> = (0..200).map(|n| 45 + n * 10_007).collect();
    for patience in [0, 1, 7, 30, 63, 150] {
        let dirty = DirtyMemory::new();
        dirty.grow(2 * BLOCK).unwrap();
        dirty.take(range, DirtyClient::VGA, &pin(), &mut PageSet::new());
        let set = |page| dirty.set(PageRange::of_page(PageIndex::new(page)), ClientMask::VGA, &pin());
        marks.iter().for_each(|page| set(*page));
        let mut got = Vec::new();
        let take = std::panic::AssertUnwindSafe(|| {
            dirty.test_and_clear_range(range, DirtyClient::VGA, &pin(), |first, bits| {
                got.push(first.get() + u64::from(bits.trailing_zeros()));
                assert!(got.len() <= patience, "no more");
            });
        });
        std::panic::catch_unwind(take).unwrap_err();
        assert_eq!(got.len(), patience + 1);
        let mut rest = PageSet::new();
        dirty.take(range, DirtyClient::VGA, &pin(), &mut rest);
        got.extend(rest.ranges().flat_map(|range| range.iter()).map(PageIndex::get));
        got.sort_unstable();
        assert_eq!(got, marks);
    }
}

/// Setters run across the life of several clients of one column; each client reads a page and hears of later stores.
#[test]
fn clients_come_and_go_while_others_store_and_miss_no_store() {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    const PAGES: u64 = 256;
    let dirty = Arc::new(DirtyMemory::new());
    dirty.grow(PAGES).unwrap();
    let all = PageRange { start: PageIndex::new(0), end: PageIndex::new(PAGES) };
    let bytes: Vec<_> = (0..PAGES).map(|_| AtomicU64::new(0)).collect();
    for round in 0..150u64 {
        let (last, read) = std::thread::scope(|s| {
            for setter in 0..2 {
                let (dirty, bytes) = (&dirty, &bytes);
                s.spawn(move || {
                    for n in 0..2000 {
                        let page = (n * 37 + setter * 91 + round) % PAGES;
                        bytes[page as usize].fetch_add(1, Relaxed);
                        notdirty_core::fence_after_store();
                        let guard = pin();
                        let who = dirty.listening(PageIndex::new(page), &guard);
                        dirty.set(PageRange::of_page(PageIndex::new(page)), who.clients(), &guard);
                    }
                });
            }
            let mut client = DirtyMemory::add_client(&dirty, "one of many").unwrap();
            let mut read = Vec::new();
            for _ in 0..20 {
                drop(client);
                client = DirtyMemory::add_client(&dirty, "the next").unwrap();
                assert_eq!(client.client().column(), 3, "the same column each time");
                dirty.take(all, client.client(), &pin(), &mut PageSet::new());
                read = bytes.iter().map(|byte| byte.load(Relaxed)).collect();
            }
            (client, read)
        });
        let mut heard = PageSet::new();
        dirty.take(all, last.client(), &pin(), &mut heard);
        for (page, (byte, read)) in bytes.iter().zip(read).enumerate() {
            let known = byte.load(Relaxed) == read || heard.contains(PageIndex::new(page as u64));
            assert!(known, "round {round}: a store to page {page} is neither read nor marked");
        }
    }
}

#[test]
fn the_bits_of_a_client_that_dropped_are_given_back() {
    const ROUNDS: u64 = 2000; // of 256 KiB each
    let resident = || {
        let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
        statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("a number of pages") * 4096
    };
    let dirty = Arc::new(DirtyMemory::new());
    dirty.grow(BLOCK).unwrap();
    let before = resident();
    for _ in 0..ROUNDS {
        let client = DirtyMemory::add_client(&dirty, "short").unwrap();
        dirty.test_and_clear(PageIndex::new(1), client.client(), &pin());
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < ROUNDS * (256 << 10) / 2, "{} MiB are left of {ROUNDS} clients", grown >> 20);
}

/// Between two marks lie words, lines and words of the summary that are clean, in any number.
#[test]
fn the_next_page_that_is_set_is_found_from_anywhere_before_it() {
    let dirty = DirtyMemory::new();
    dirty.grow(2 * BLOCK).unwrap();
    let all = PageRange { start: PageIndex::new(0), end: PageIndex::new(2 * BLOCK) };
    let client = DirtyClient::MIGRATION;
    dirty.test_and_clear_range(all, client, &pin(), |_, _| ());
    let at =
        [3, 64, 511, 512, 513, 5000, 32_767, 32_768, 33_300, 70_000, 70_600, 500_000, BLOCK - 1, BLOCK, BLOCK + 40_000];
    for page in at {
        dirty.set(PageRange::of_page(PageIndex::new(page)), ClientMask::MIGRATION, &pin());
    }
    let near = |page: &u64| [page.saturating_sub(1), *page, page + 1, page + 64, page + 512, page + 32_768];
    for from in at.iter().flat_map(near).chain((0..2 * BLOCK).step_by(9_973)) {
        let naive = at.into_iter().find(|page| *page >= from).map(PageIndex::new);
        let range = PageRange { start: PageIndex::new(from), end: all.end };
        assert_eq!(dirty.next_set(range, client, &pin()), naive, "from {from} on");
    }
}
