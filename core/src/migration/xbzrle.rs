//! What differs from the version of a page that was sent before: runs of zeros and of bytes, of the one XOR the other.
//!
//! ```text
//!   delta   (zeros: uleb128) (bytes: uleb128, the bytes of the new page) …      what follows the last bytes is as it was
//! ```
//!
//! The cache is direct-mapped by the page's number. A page that was sent a moment ago keeps its place, so that two hot pages of one place do not
//! push each other out.

use crate::addr::PAGE_SIZE;

const PAGE: usize = PAGE_SIZE as usize;
/// Syncs that a page in the cache is young for.
const YOUNG: u64 = 2;

/// Pages as the other end has them.
pub(super) struct Cache {
    /// By the low bits of the page's number: which page, of which sync, and where its bytes are.
    slots: Vec<Slot>,
    bytes: Vec<u8>,
}

#[derive(Clone, Copy)]
struct Slot {
    page: u64,
    age: u64,
}

impl Cache {
    /// So many bytes of pages, at least one.
    pub(super) fn new(bytes: u64) -> Self {
        let pages = (bytes / PAGE_SIZE).max(1).next_power_of_two() as usize;
        Self { slots: vec![Slot { page: u64::MAX, age: 0 }; pages], bytes: vec![0; pages * PAGE] }
    }

    fn slot(&self, page: u64) -> usize {
        page as usize & (self.slots.len() - 1)
    }

    /// What the other end has, if that is known.
    pub(super) fn get(&mut self, page: u64) -> Option<&mut [u8]> {
        let slot = self.slot(page);
        (self.slots[slot].page == page).then(|| &mut self.bytes[slot * PAGE..][..PAGE])
    }

    /// Where the page's bytes are kept from now on, if there is room for it in this sync.
    pub(super) fn put(&mut self, page: u64, sync: u64) -> Option<&mut [u8]> {
        let slot = self.slot(page);
        let now = &mut self.slots[slot];
        if now.page != page && now.page != u64::MAX && now.age + YOUNG > sync {
            return None;
        }
        *now = Slot { page, age: sync };
        Some(&mut self.bytes[slot * PAGE..][..PAGE])
    }
}

fn put_length(to: &mut Vec<u8>, mut length: usize) {
    while length >= 0x80 {
        to.push(length as u8 | 0x80);
        length >>= 7;
    }
    to.push(length as u8);
}

/// From `old` to `new`, if that is shorter than a page.
pub(super) fn encode(old: &[u8], new: &[u8]) -> Option<Vec<u8>> {
    let (mut delta, mut at) = (Vec::new(), 0);
    while at < PAGE {
        let same = old[at..].iter().zip(&new[at..]).take_while(|(a, b)| a == b).count();
        if at + same == PAGE {
            break;
        }
        let start = at + same;
        // A few bytes that are alike in between cost less than another run.
        let mut end = start;
        while end < PAGE && (old[end] != new[end] || old[end..].iter().zip(&new[end..]).take(3).any(|(a, b)| a != b)) {
            end += 1;
        }
        put_length(&mut delta, same);
        put_length(&mut delta, end - start);
        delta.extend_from_slice(&new[start..end]);
        if delta.len() >= PAGE {
            return None;
        }
        at = end;
    }
    Some(delta)
}

/// A number of at most two bytes.
fn length(delta: &mut &[u8]) -> Option<usize> {
    let (first, rest) = delta.split_first()?;
    if first & 0x80 == 0 {
        *delta = rest;
        return Some((*first).into());
    }
    let (second, rest) = rest.split_first()?;
    *delta = rest;
    (second & 0x80 == 0).then(|| usize::from(first & 0x7f) | usize::from(*second) << 7)
}

/// Makes the old page the new one; `false` if the delta is none, and the page is anything.
pub(super) fn decode(page: &mut [u8], mut delta: &[u8]) -> bool {
    let mut at = 0;
    while !delta.is_empty() {
        let Some((same, new)) = length(&mut delta).and_then(|same| Some((same, length(&mut delta)?))) else {
            return false;
        };
        at += same;
        if new == 0 || new > delta.len() || at + new > page.len() {
            return false;
        }
        let (bytes, rest) = delta.split_at(new);
        page[at..at + new].copy_from_slice(bytes);
        (at, delta) = (at + new, rest);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_delta_leads_from_the_old_page_to_the_new_one(
            changes in prop::collection::vec((0..PAGE, 1..300usize, any::<u8>()), 0..20),
            old in any::<u8>(),
        ) {
            let old = vec![old; PAGE];
            let mut new = old.clone();
            for (at, len, byte) in changes {
                new[at..(at + len).min(PAGE)].fill(byte);
            }
            let mut page = old.clone();
            if let Some(delta) = encode(&old, &new) {
                prop_assert!(delta.len() < PAGE);
                prop_assert!(decode(&mut page, &delta));
                prop_assert!(page == new);
            }
        }

        #[test]
        fn any_bytes_are_a_delta_or_none(delta in prop::collection::vec(any::<u8>(), 0..200)) {
            decode(&mut vec![0; PAGE], &delta);
        }
    }

    #[test]
    fn one_changed_byte_is_a_few_bytes_and_a_hot_page_keeps_its_place() {
        let (old, mut new) = (vec![7; PAGE], vec![7; PAGE]);
        new[4095] = 8;
        assert_eq!(encode(&old, &new).unwrap(), [0xff, 0x1f, 1, 8]);
        assert_eq!(encode(&old, &old).unwrap(), []);
        let mut cache = Cache::new(4 * PAGE_SIZE);
        cache.put(1, 1).unwrap().fill(1);
        assert!(cache.put(5, 2).is_none(), "page 1 is young");
        assert!(cache.get(1).is_some() && cache.get(5).is_none());
        assert!(cache.put(5, 3).is_some() && cache.get(1).is_none());
    }
}
