//! What waits for a page, and what was asked for.
//!
//! ```text
//!   wait, begin_wait ─▶ request, if it is the first for this page ─▶ PageSource::request
//!          └─ not here yet ─▶ help: the thread reads for the source, if that lets it ─▶ else it sleeps until it is woken
//! ```

use super::{Ended, MissingBlock, MissingError, MissingPages, MissingPhase, WaitToken, Waiter, Waiting, Woken};
use crate::addr::RamAddr;
use crate::ram::RamBlock;
use crate::rcu;
use crate::sync::Ordering;
use core::task::Waker;
use std::sync::Arc;
use std::time::Instant;

impl MissingPages {
    /// Waits for all pages that these bytes touch, and asks for those that nothing asked for. With no guard held (SAFE-1), and not on a
    /// thread that places pages.
    ///
    /// # Errors
    /// [`MissingError::Interrupted`] by the token, [`MissingError::Late`], [`MissingError::Ended`], [`MissingError::Pinned`].
    pub fn wait(&self, ram: RamAddr, len: u64, token: &WaitToken, until: Option<Instant>) -> Result<(), MissingError> {
        let last = ram.get().saturating_add(len.saturating_sub(1));
        let at = |n: u64| RamAddr::new((ram.get() & !(self.step - 1)) + n * self.step);
        let count = (last & !(self.step - 1)).saturating_sub(at(0).get()) / self.step + u64::from(len != 0);
        if !(0..count).any(|n| self.is_missing(at(n))) {
            return Ok(());
        }
        if rcu::is_pinned() {
            return Err(MissingError::Pinned);
        }
        let mut first = true;
        for n in 0..count {
            // Its time begins before it is asked for.
            let Some(waiting) = self.begin_wait(at(n), token.waker(), Waiter::Host)? else { continue };
            if core::mem::take(&mut first) {
                // All of them at once: their round trips overlap.
                (n + 1..count).for_each(|n| self.request(at(n)));
            }
            while !waiting.is_over() {
                let late = || until.is_some_and(|until| Instant::now() >= until);
                let done = || waiting.is_over() || token.is_interrupted() || self.phase() == MissingPhase::Ended;
                if self.help(&mut || done() || late()) && waiting.is_over() {
                    break;
                }
                match token.sleep(until) {
                    Woken::Look if self.phase() == MissingPhase::Ended => return Err(self.ended()),
                    Woken::Look => {}
                    Woken::Interrupted => return Err(MissingError::Interrupted),
                    Woken::Late => return Err(MissingError::Late),
                }
            }
        }
        Ok(())
    }

    /// As [`wait`](Self::wait), for one page and something that sleeps in its own way: `waker` is called when it is worth a look. `None`: the
    /// page is here. To leave is to drop the result.
    ///
    /// # Errors
    /// [`MissingError::Ended`].
    pub fn begin_wait(&self, ram: RamAddr, waker: Waker, who: Waiter) -> Result<Option<Waiting<'_>>, MissingError> {
        let Some((_, page)) = self.page_of(ram) else { return Ok(None) };
        let waiting = self.states.begin_wait(page, waker, who).map_err(|Ended| self.ended())?;
        if waiting.is_some() {
            self.request(ram);
        }
        Ok(waiting)
    }

    /// What waits lends its thread to the source: see [`PageSource::help`](super::PageSource::help).
    pub fn help(&self, over: &mut dyn FnMut() -> bool) -> bool {
        self.source.help(over)
    }

    /// A thread waits for this page in the host, until it is placed or none comes; added to `missing` if it is to be asked for. `false`: it is here.
    pub(super) fn begin_fault(&self, ram: RamAddr, missing: &mut Vec<RamAddr>) -> bool {
        let Some((_, page)) = self.page_of(ram) else { return false };
        match self.states.begin_wait(page, Waker::noop().clone(), Waiter::Host) {
            Ok(None) => return false,
            // The placement ends it.
            Ok(Some(waiting)) => waiting.until_placed(),
            // Unregistered, it goes on.
            Err(Ended) => return true,
        }
        if self.states.first_request(page) {
            missing.push(ram);
        }
        true
    }

    /// Asks for these pages, to which nothing did: neighbours as one.
    pub(super) fn request_all(&self, all: &mut [RamAddr]) {
        self.requests.fetch_add(all.len() as u64, Ordering::Relaxed);
        all.sort_unstable();
        let page_of = |ram: RamAddr| self.page_of(ram).map_or(self.step, |(found, _)| found.page);
        let next = |a: &RamAddr, b: &RamAddr| a.get() + page_of(*a) == b.get();
        for run in all.chunk_by(next) {
            // Blocks lie apart in RAM, or next to each other.
            let mut left = run;
            while let Some((found, page)) = left.first().and_then(|ram| self.page_of(*ram)) {
                let inside = left
                    .partition_point(|ram| self.page_of(*ram).is_some_and(|(other, _)| core::ptr::eq(other, found)));
                let off = found.off(page);
                let len = (inside as u64 * found.page).min(found.length() - off);
                self.source.request_run(&found.block, off, len);
                left = &left[inside..];
            }
        }
    }

    /// What was requested is looked for a moment, until these pages are here; another thread reads the rest.
    pub(super) fn hand_over(&self, all: &[RamAddr]) {
        self.source.hand_over(&mut || !all.iter().any(|ram| self.is_missing(*ram)));
    }

    /// There is another channel: all that is waited for is asked for again, by the thread of the source of faults, if it has one.
    pub fn resume(&self) {
        if !self.faults.resume() {
            self.request_again();
            self.hand_over(&[]);
        }
    }

    /// Asks the source for the page of an address, if it is missing and nothing did.
    fn request(&self, ram: RamAddr) {
        if let Some((found, page)) = self.page_of(ram)
            && !self.states.is_received(page)
            && self.states.first_request(page)
        {
            self.requests.fetch_add(1, Ordering::Relaxed);
            self.source.request(&found.block, found.off(page));
        }
    }

    /// The pages that were asked for and are not here, by block.
    pub fn requested(&self) -> Vec<(Arc<RamBlock>, u64)> {
        let of = |found: &MissingBlock| {
            let pages = self.states.requested(found.pages());
            let offset = |page: u64| (found.block.clone(), found.off(page));
            pages.into_iter().map(offset).collect::<Vec<_>>()
        };
        self.blocks.iter().flat_map(of).collect()
    }

    /// Asks the source once more for each page that is [`requested`](Self::requested): over a new channel. How many.
    pub fn request_again(&self) -> usize {
        let all = self.requested();
        all.iter().for_each(|(block, off)| self.source.request(block, *off));
        all.len()
    }
}
