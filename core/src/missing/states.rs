//! What is known of each page that is yet to come, and what waits for it: the protocol, without the memory.
//!
//! ```text
//!            claimed   received              requested
//!   missing     0         0       ── a waiter is the first ──▶ 1, and it asks the source
//!   placing     1         0       one placer has won, and writes the bytes
//!   here        1         1       Release, under the shard's lock; then its waiters are woken
//!
//!   wait    shard locked: received? ─ yes ▶ done        ended? ─ yes ▶ error
//!                           └─ no ▶ listed, time begins ─▶ unlocked ─▶ asks if first ─▶ sleeps
//!   place   claimed ← 1, was it 0? ─▶ bytes ─▶ shard locked: received ← 1, waiters taken, time ends ─▶ unlocked ─▶ woken
//! ```
//!
//! Keeps PLACE-1. A waiter looks at `received` under the lock that a placer sets it under, so neither a wake-up nor the end of a
//! wait's time is lost. Whatever reads the page without a lock loads `received` (Acquire) first, and so finds the bytes.
//!
//! Pages are numbered from 0 over all blocks; a block begins at a multiple of 64. Checked by tests/loom_missing.rs.

use super::blocktime::{Times, Waiter};
use crate::sync::{AtomicU64, Condvar, MODEL, Mutex, MutexGuard, Ordering, lock};
use core::ops::Range;
use core::task::Waker;
use std::sync::{Arc, PoisonError};
use std::task::Wake;
use std::time::Instant;

/// Locks of waiters: pages are spread over them.
const SHARDS: usize = if MODEL { 1 } else { 64 };

/// A bit for each page.
pub(super) struct Bits(Box<[AtomicU64]>);

impl Bits {
    pub(super) fn new(pages: u64) -> Self {
        Self((0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    fn word(&self, page: u64) -> (&AtomicU64, u64) {
        (&self.0[(page / 64) as usize], 1 << (page % 64))
    }

    /// Sets it; was it set?
    fn set(&self, page: u64, order: Ordering) -> bool {
        let (word, bit) = self.word(page);
        word.fetch_or(bit, order) & bit != 0
    }

    fn clear(&self, page: u64, order: Ordering) -> bool {
        let (word, bit) = self.word(page);
        word.fetch_and(!bit, order) & bit != 0
    }

    pub(super) fn or_word(&self, word: u64, bits: u64) {
        self.0[word as usize].fetch_or(bits, Ordering::AcqRel);
    }

    pub(super) fn has(&self, page: u64) -> bool {
        let (word, bit) = self.word(page);
        word.load(Ordering::Acquire) & bit != 0
    }

    /// The words of a range, with the bits of each that are inside.
    fn words(&self, pages: Range<u64>) -> impl Iterator<Item = (u64, &AtomicU64, u64)> {
        let words = if pages.is_empty() { 0..0 } else { pages.start / 64..pages.end.div_ceil(64) };
        words.map(move |word| {
            let (from, to) = (pages.start.max(word * 64) % 64, pages.end - word * 64);
            let mask = u64::MAX << from & if to >= 64 { u64::MAX } else { (1 << to) - 1 };
            (word * 64, &self.0[word as usize], mask)
        })
    }
}

#[derive(Default)]
struct Shard {
    waiters: Vec<Listed>,
    /// No page comes any more.
    ended: bool,
}

struct Listed {
    page: u64,
    id: u64,
    waker: Waker,
    who: Waiter,
    since: Instant,
}

/// The pages will not come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ended;

/// The states of pages, and what waits for them. For the models, and [`MissingPages`](super::MissingPages).
pub struct PageStates {
    claimed: Bits,
    received: Bits,
    requested: Bits,
    shards: Box<[Mutex<Shard>]>,
    next: AtomicU64,
    times: Mutex<Times>,
}

impl PageStates {
    /// So many pages, none of them here.
    pub fn new(pages: u64) -> Self {
        Self {
            claimed: Bits::new(pages),
            received: Bits::new(pages),
            requested: Bits::new(pages),
            shards: (0..SHARDS).map(|_| Mutex::new(Shard::default())).collect(),
            next: AtomicU64::new(0),
            times: Mutex::new(Times::default()),
        }
    }

    /// How many, to the next multiple of 64.
    pub(super) fn pages(&self) -> u64 {
        self.received.0.len() as u64 * 64
    }

    fn shard(&self, page: u64) -> MutexGuard<'_, Shard> {
        // Pages that are asked for at one time are often neighbours.
        lock(&self.shards[page as usize % SHARDS])
    }

    pub(super) fn times(&self) -> MutexGuard<'_, Times> {
        lock(&self.times)
    }

    /// Is it here? Its bytes are visible then.
    #[inline]
    pub fn is_received(&self, page: u64) -> bool {
        self.received.has(page)
    }

    /// Waits for a page: `waker` is called when it is here, or when none comes any more. `None`: it is here.
    ///
    /// # Errors
    /// [`Ended`].
    pub fn begin_wait(&self, page: u64, waker: Waker, who: Waiter) -> Result<Option<Waiting<'_>>, Ended> {
        let mut shard = self.shard(page);
        if self.received.has(page) {
            return Ok(None);
        }
        if shard.ended {
            return Err(Ended);
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let since = Instant::now();
        self.times().begin(who, since);
        shard.waiters.push(Listed { page, id, waker, who, since });
        drop(shard);
        Ok(Some(Waiting { states: self, page, id }))
    }

    /// Is this the first that asks for the page? Then it tells the source.
    pub fn first_request(&self, page: u64) -> bool {
        !self.requested.set(page, Ordering::AcqRel)
    }

    /// Takes the right to place a page; `None` if it was taken before, whether it is here or under way.
    pub fn claim(&self, page: u64) -> Option<Claim<'_>> {
        let taken = self.claimed.set(page, Ordering::AcqRel);
        (!taken).then(|| Claim { states: self, page, done: false })
    }

    /// No page comes any more: each wait that is under way ends, and each later one at once.
    pub fn end(&self) {
        for shard in &self.shards {
            let mut shard = lock(shard);
            shard.ended = true;
            let woken = core::mem::take(&mut shard.waiters);
            self.end_times(&woken);
            drop(shard);
            woken.into_iter().for_each(|waiter| waiter.waker.wake());
        }
    }

    fn end_times(&self, woken: &[Listed]) {
        if !woken.is_empty() {
            let now = Instant::now();
            let mut times = self.times();
            woken.iter().for_each(|waiter| times.end(waiter.who, waiter.since, now));
        }
    }

    /// These pages are here, as nothing waits for any yet. How many are new.
    pub(super) fn receive(&self, pages: Range<u64>, of: impl Fn(u64) -> u64) -> u64 {
        let mut new = 0;
        for (first, word, mask) in self.claimed.words(pages.clone()) {
            word.fetch_or(mask & of(first), Ordering::AcqRel);
        }
        for (first, word, mask) in self.received.words(pages) {
            let bits = mask & of(first);
            new += u64::from((bits & !word.fetch_or(bits, Ordering::AcqRel)).count_ones());
        }
        new
    }

    /// These pages are not here any more, as nothing reaches any yet. How many were.
    pub(super) fn forget(&self, pages: Range<u64>) -> u64 {
        let mut gone = 0;
        for (bits, counts) in [(&self.received, true), (&self.requested, false), (&self.claimed, false)] {
            for (_, word, mask) in bits.words(pages.clone()) {
                let was = word.fetch_and(!mask, Ordering::AcqRel);
                gone += if counts { u64::from((was & mask).count_ones()) } else { 0 };
            }
        }
        gone
    }

    /// The same of the pages of word `word` that have a bit. How many were.
    pub(super) fn forget_word(&self, word: u64, pages: u64) -> u64 {
        let clear = |bits: &Bits| bits.0[word as usize].fetch_and(!pages, Ordering::AcqRel) & pages;
        let gone = clear(&self.received);
        clear(&self.requested);
        clear(&self.claimed);
        u64::from(gone.count_ones())
    }

    /// The words of a range that say which of its pages are here.
    pub(super) fn received(&self, pages: Range<u64>) -> impl Iterator<Item = u64> {
        self.received.words(pages).map(|(_, word, mask)| word.load(Ordering::Acquire) & mask)
    }

    /// Pages of a range that were asked for, and are not here. A request that is not among them
    /// goes by a channel that was open before this call.
    pub fn requested(&self, pages: Range<u64>) -> Vec<u64> {
        let mut all = Vec::new();
        for (first, word, mask) in self.requested.words(pages) {
            let (received, _) = self.received.word(first);
            let mut left = word.load(Ordering::Acquire) & mask & !received.load(Ordering::Acquire);
            while left != 0 {
                all.push(first + u64::from(left.trailing_zeros()));
                left &= left - 1;
            }
        }
        all
    }

    /// The first page of a range that is not here and that nothing is placing.
    pub(super) fn next_missing(&self, pages: Range<u64>) -> Option<u64> {
        let left = |(first, word, mask): (u64, &AtomicU64, u64)| Some((first, !word.load(Ordering::Acquire) & mask));
        let mut words = self.claimed.words(pages).filter_map(left);
        words.find(|(_, left)| *left != 0).map(|(first, left)| first + u64::from(left.trailing_zeros()))
    }
}

/// A page is being placed; dropped before [`receive`](Self::receive), another may place it.
#[must_use = "the page is placed when this receives it"]
pub struct Claim<'s> {
    states: &'s PageStates,
    page: u64,
    done: bool,
}

impl Claim<'_> {
    /// The bytes are written: the page is here, and whatever waits for it is told.
    pub fn receive(mut self) {
        self.done = true;
        let mut shard = self.states.shard(self.page);
        // Release: partners `is_received`, whose reader then finds the bytes.
        self.states.received.set(self.page, Ordering::AcqRel);
        if shard.waiters.is_empty() {
            return;
        }
        let woken: Vec<_> = shard.waiters.extract_if(.., |waiter| waiter.page == self.page).collect();
        self.states.end_times(&woken);
        drop(shard);
        woken.into_iter().for_each(|waiter| waiter.waker.wake());
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.states.claimed.clear(self.page, Ordering::AcqRel);
        }
    }
}

/// Something waits for a page, until this drops.
#[must_use = "dropped, nothing waits"]
pub struct Waiting<'s> {
    states: &'s PageStates,
    page: u64,
    id: u64,
}

impl Waiting<'_> {
    /// It is waited for until it is placed, or none comes any more.
    pub(super) fn until_placed(self) {
        core::mem::forget(self);
    }

    /// Is the page here?
    pub fn is_over(&self) -> bool {
        self.states.received.has(self.page)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut shard = self.states.shard(self.page);
        let left: Vec<_> = shard.waiters.extract_if(.., |waiter| waiter.id == self.id).collect();
        // Interrupted: from here on it is not the page that it is held up by.
        self.states.end_times(&left);
        drop(shard);
    }
}

/// Lets another thread interrupt a wait: made once, used for any number of waits of one thread.
///
/// ```
/// # use notdirty_core::WaitToken;
/// let token = WaitToken::default();
/// let other = token.clone();
/// other.interrupt(); // from any thread: the wait that is under way, or the next one, ends with an error
/// # assert!(token.is_interrupted());
/// ```
#[derive(Clone, Default)]
pub struct WaitToken(Arc<Token>);

#[derive(Default)]
struct Token {
    state: Mutex<TokenState>,
    changed: Condvar,
}

#[derive(Default)]
struct TokenState {
    woken: bool,
    interrupted: bool,
    /// To wake it is a system call, also if it does not sleep.
    asleep: u32,
}

/// Why a sleep ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Woken {
    /// Something was placed, or no page comes any more.
    Look,
    /// By [`WaitToken::interrupt`].
    Interrupted,
    /// Time ran out.
    Late,
}

impl WaitToken {
    /// The wait of this token ends; if there is none, its next one does.
    pub fn interrupt(&self) {
        lock(&self.0.state).interrupted = true;
        self.0.changed.notify_all();
    }

    /// Is its next wait interrupted?
    pub fn is_interrupted(&self) -> bool {
        lock(&self.0.state).interrupted
    }

    /// What a placement calls.
    pub fn waker(&self) -> Waker {
        self.0.clone().into()
    }

    /// Sleeps until the waker was called since the last sleep, or until then.
    pub fn sleep(&self, until: Option<Instant>) -> Woken {
        let mut state = lock(&self.0.state);
        loop {
            if core::mem::take(&mut state.interrupted) {
                return Woken::Interrupted;
            }
            if core::mem::take(&mut state.woken) {
                return Woken::Look;
            }
            state.asleep += 1;
            let Some(until) = until else {
                state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.asleep -= 1;
                continue;
            };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.asleep -= 1;
                return Woken::Late;
            }
            state = self.0.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            state.asleep -= 1;
        }
    }
}

impl core::fmt::Debug for WaitToken {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("WaitToken").field(&self.is_interrupted()).finish()
    }
}

impl Wake for Token {
    fn wake(self: Arc<Self>) {
        let mut state = lock(&self.state);
        state.woken = true;
        if state.asleep != 0 {
            self.changed.notify_all();
        }
    }
}
