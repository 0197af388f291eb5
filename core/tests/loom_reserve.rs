//! Reservations under every interleaving, weak memory included: an SC writes only if no store came since its LR, whatever was
//! stored. `cargo loom`
//!
//! ```text
//!   real:   Stripe (look, hold, enter)
//!   here:   the cell; a count of stores, which only the model knows
//! ```
#![cfg(loom)]

use loom::model::Builder;
use loom::thread;
use notdirty_core::Stripe;
use notdirty_core::sync::{AtomicU64, Ordering};
use std::sync::Arc;

const RELAXED: Ordering = Ordering::Relaxed;

struct Set {
    stripe: Stripe,
    cell: AtomicU64,
    /// Stores that are done, counted with them.
    stores: AtomicU64,
}

/// What a store leaves out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Store {
    Right,
    /// It is counted when it is done, and waits for nothing.
    Behind,
}

impl Set {
    fn new() -> Arc<Set> {
        Arc::new(Set { stripe: Stripe::default(), cell: AtomicU64::new(0), stores: AtomicU64::new(0) })
    }

    fn store(&self, value: u64, how: Store) {
        let entered = (how == Store::Right).then(|| self.stripe.enter());
        self.cell.store(value, RELAXED);
        self.stores.fetch_add(1, RELAXED);
        if entered.is_none() {
            drop(self.stripe.enter());
        }
    }

    /// An LR, and an SC of it: whether it wrote. It compares no value.
    fn add(&self) -> bool {
        let Some(seen) = self.stripe.look() else { return false };
        let (value, stores) = (self.cell.load(RELAXED), self.stores.load(RELAXED));
        let Some(held) = self.stripe.hold(seen) else { return false };
        assert_eq!(self.stores.fetch_add(1, RELAXED), stores, "a store came between LR and SC");
        self.cell.store(value + 10, RELAXED);
        drop(held);
        true
    }
}

fn model(test: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound.get_or_insert(3);
    builder.check(test);
}

fn beside_stores(how: Store) {
    model(move || {
        let set = Set::new();
        let other = thread::spawn({
            let set = set.clone();
            move || [1, 0].map(|value| set.store(value, how))
        });
        let wrote = set.add();
        other.join().unwrap();
        let cell = set.cell.load(RELAXED);
        // Before both, between them, or behind both; and it is overwritten by what comes later.
        assert!(if wrote { cell == 0 || cell == 10 } else { cell == 0 }, "{wrote} {cell}");
    });
}

#[test]
fn an_sc_writes_only_if_no_store_came_since_its_lr_though_the_value_is_the_same() {
    beside_stores(Store::Right);
}

#[test]
#[should_panic(expected = "between LR and SC")]
fn a_store_that_is_counted_behind_it_only_comes_between() {
    beside_stores(Store::Behind);
}

#[test]
fn of_two_harts_in_a_loop_of_lr_and_sc_one_gets_on_and_no_addition_is_lost() {
    model(|| {
        let set = Set::new();
        let other = thread::spawn({
            let set = set.clone();
            move || set.add()
        });
        let added = [set.add(), other.join().unwrap()];
        assert!(added.contains(&true), "each failed for the other's sake");
        assert_eq!(set.cell.load(RELAXED), 10 * added.iter().filter(|added| **added).count() as u64);
    });
}
