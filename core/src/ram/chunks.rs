//! A sorted map that is copied in small pieces, for publication under RCU.
//!
//! ```text
//!   top   [ 0 │ 40 │ 90 ]          first key of each chunk: one binary search here …
//!           │    │    └▶ [90 95]
//!           │    └▶ [40 41 60 77]  … and one in the chunk
//!           └▶ [0 7 12]
//! ```
//!
//! A new version shares every chunk but one: with 10,000 blocks an insertion copies at most 128 pointers and a top
//! of some 160, not 10,000.

use std::sync::Arc;

/// A chunk that gets longer is split in two halves. Small in this crate's own tests, so that they split often.
const CHUNK: usize = if cfg!(test) { 6 } else { 128 };

/// Keys with values, sorted by key; a clone shares the chunks.
pub(super) struct Chunks<V> {
    /// Never empty ones; sorted, and every key of a chunk is below every key of the next.
    top: Vec<(u64, Chunk<V>)>,
}

type Chunk<V> = Arc<[(u64, V)]>;

impl<V> Default for Chunks<V> {
    fn default() -> Self {
        Self { top: Vec::new() }
    }
}

impl<V> Clone for Chunks<V> {
    fn clone(&self) -> Self {
        Self { top: self.top.clone() }
    }
}

impl<V: Clone> Chunks<V> {
    /// The value with the greatest key that is not above `key`.
    pub(super) fn at_or_below(&self, key: u64) -> Option<&V> {
        let (_, chunk) = &self.top[..self.top.partition_point(|(first, _)| *first <= key)].last()?;
        let (_, value) = chunk[..chunk.partition_point(|(k, _)| *k <= key)].last()?;
        Some(value)
    }

    /// All values by rising key.
    pub(super) fn iter(&self) -> impl Iterator<Item = &V> {
        self.top.iter().flat_map(|(_, chunk)| chunk.iter().map(|(_, value)| value))
    }

    /// This map with `key`, which it does not have yet.
    pub(super) fn with(&self, key: u64, value: V) -> Self {
        let mut top = self.top.clone();
        // The chunk that begins at or below the key, or the first one.
        let n = top.partition_point(|(first, _)| *first <= key).saturating_sub(1);
        let old: &[(u64, V)] = top.get(n).map_or(&[], |(_, chunk)| chunk);
        let at = old.partition_point(|(k, _)| *k < key);
        let mut new = Vec::with_capacity(old.len() + 1);
        new.extend_from_slice(&old[..at]);
        new.push((key, value));
        new.extend_from_slice(&old[at..]);
        let second = if new.len() > CHUNK { new.split_off(new.len() / 2) } else { Vec::new() };
        let replaced = n..(n + 1).min(top.len());
        top.splice(replaced, [new, second].into_iter().filter(|c| !c.is_empty()).map(chunk_of));
        Self { top }
    }

    /// This map without `key`.
    pub(super) fn without(&self, key: u64) -> Self {
        let mut top = self.top.clone();
        let Some(n) = top.partition_point(|(first, _)| *first <= key).checked_sub(1) else {
            return Self { top };
        };
        let left: Vec<_> = top[n].1.iter().filter(|(k, _)| *k != key).cloned().collect();
        if left.is_empty() {
            top.remove(n);
        } else {
            top[n] = chunk_of(left);
        }
        Self { top }
    }
}

/// A chunk, which is not empty, with its first key.
fn chunk_of<V>(entries: Vec<(u64, V)>) -> (u64, Chunk<V>) {
    (entries[0].0, entries.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn each_version_is_a_map_and_stays_what_it_was(
            steps in prop::collection::vec((any::<bool>(), 0..300u64), 1..200),
        ) {
            let mut versions = vec![(Chunks::default(), BTreeMap::new())];
            for (add, key) in steps {
                let (map, model) = versions.last().unwrap();
                let mut model = model.clone();
                let map = match model.contains_key(&key) {
                    false if add => map.with(key, key + 1),
                    true if add => continue,
                    _ => map.without(key),
                };
                if add { model.insert(key, key + 1) } else { model.remove(&key) };
                versions.push((map, model));
            }
            for (map, model) in &versions {
                prop_assert!(map.iter().eq(model.values()));
                prop_assert!(map.top.iter().all(|(first, c)| c[0].0 == *first && c.len() <= CHUNK));
                for key in 0..302 {
                    prop_assert_eq!(map.at_or_below(key), model.range(..=key).next_back().map(|(_, v)| v));
                }
            }
        }
    }

    #[test]
    fn an_insertion_shares_every_chunk_but_one() {
        let old = (0..100).fold(Chunks::default(), |map, key| map.with(key * 2, ()));
        let new = old.with(101, ());
        let shared = new.top.iter().filter(|(_, n)| old.top.iter().any(|(_, o)| Arc::ptr_eq(n, o))).count();
        assert_eq!(shared, old.top.len() - 1);
    }
}
