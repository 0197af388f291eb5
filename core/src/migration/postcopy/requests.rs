//! Pages that the target waits for, in the order in which it asked.
//!
//! ```text
//!   return path ──push──▶ │ (block, pages) … │ ──pop──▶ page: taken from bmap? send it, and the sweep goes on behind it
//!                 closed ─▶ (wakes the sender)           no longer there: it was sent, or is on its way
//! ```
//!
//! A request is advice about order, and bmap alone says what is to be sent: so a request that comes twice, or beside the sweep, is one
//! page, and one that finds the queue full costs time and no page.

use core::ops::Range;
use std::collections::{HashSet, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Requests that wait at once, at most. A target has as many as it has threads that wait for a page.
const MOST: usize = 1 << 16;

/// The queue.
#[derive(Debug, Default)]
pub struct Requests {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<(usize, Range<u64>)>,
    /// What waits, for a request that comes twice.
    known: HashSet<(usize, Range<u64>)>,
    asked: u64,
}

impl Requests {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Each change is whole.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These pages of this block are waited for.
    pub fn push(&self, block: usize, pages: Range<u64>) {
        let mut queue = self.queue();
        queue.asked += 1;
        if pages.is_empty() || queue.waiting.len() >= MOST || !queue.known.insert((block, pages.clone())) {
            return;
        }
        queue.waiting.push_back((block, pages));
        drop(queue);
        self.changed.notify_one();
    }

    /// The first page that is waited for.
    pub fn pop(&self) -> Option<(usize, u64)> {
        let queue = &mut *self.queue();
        let (block, pages) = queue.waiting.front_mut()?;
        let (block, page) = (*block, pages.start);
        if pages.end - page > 1 {
            // The rest of it is another one from here on.
            queue.known.remove(&(block, pages.clone()));
            pages.start += 1;
            queue.known.insert((block, pages.clone()));
        } else if let Some(gone) = queue.waiting.pop_front() {
            queue.known.remove(&gone);
        }
        Some((block, page))
    }

    /// Waits until something is asked for, or so long.
    pub fn wait(&self, timeout: Duration) {
        let queue = self.queue();
        drop(self.changed.wait_timeout_while(queue, timeout, |queue| queue.waiting.is_empty()));
    }

    /// Forgets all of them: the target says again what it waits for.
    pub fn clear(&self) {
        let mut queue = self.queue();
        queue.waiting.clear();
        queue.known.clear();
    }

    /// How many came so far, those that came twice among them.
    pub fn asked(&self) -> u64 {
        self.queue().asked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_come_in_the_order_of_the_requests_and_one_that_waits_is_not_asked_for_twice() {
        let requests = Requests::default();
        requests.push(1, 7..8);
        requests.push(0, 3..6);
        requests.push(1, 7..8);
        requests.push(0, 9..9);
        assert_eq!(requests.pop(), Some((1, 7)));
        // It does not wait any more.
        requests.push(1, 7..8);
        assert_eq!(requests.pop(), Some((0, 3)));
        requests.push(0, 4..6);
        let rest: Vec<_> = std::iter::from_fn(|| requests.pop()).collect();
        assert_eq!(rest, [(0, 4), (0, 5), (1, 7)]);
        assert_eq!(requests.asked(), 6);
        requests.push(2, 0..1 << 40);
        requests.clear();
        requests.push(2, 1..2);
        assert_eq!(requests.pop(), Some((2, 1)));
    }

    #[test]
    fn a_target_that_asks_without_end_takes_no_memory_without_end() {
        let requests = Requests::default();
        for page in 0..2 * MOST as u64 {
            requests.push(0, page..page + 1);
        }
        assert_eq!(std::iter::from_fn(|| requests.pop()).count(), MOST);
    }
}
