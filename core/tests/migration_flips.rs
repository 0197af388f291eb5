//! Each bit of a stream counts: whichever is flipped, a reader refuses the stream.
#![cfg(not(any(loom, miri)))]

use notdirty_core::migration::fuzz::{a_mapped_file, a_stream, mapped, stream};

/// The bytes at which a flipped bit is not noticed; one bit of each is tried, or all.
fn unnoticed(whole: &[u8], read: fn(&[u8]) -> bool) -> Vec<usize> {
    assert!(read(whole));
    let all = std::env::var("NOTDIRTY_STREAMS").is_ok();
    let mut bytes = whole.to_vec();
    let mut found = Vec::new();
    // Of a page's bytes, some.
    let same = |at: usize| whole[at.saturating_sub(40)..].iter().take(80).all(|byte| *byte == whole[at]);
    for at in (0..whole.len()).filter(|at| all || at % 37 == 0 || !same(*at)) {
        for bit in (0..8).filter(|bit| all || at % 8 == *bit) {
            bytes[at] ^= 1 << bit;
            if read(&bytes) && found.last() != Some(&at) {
                found.push(at);
            }
            bytes[at] = whole[at];
        }
    }
    found
}

#[test]
fn no_bit_of_a_stream_can_be_flipped_unnoticed() {
    let whole = a_stream().unwrap();
    // The record of a page of zeros may name another page that is zero there.
    let zero = |at: usize| whole[at..at + 8].iter().any(|byte| matches!(byte, 0x02 | 0x22));
    let found = unnoticed(&whole, stream);
    assert!(found.iter().all(|at| zero(*at)) && found.len() < 8, "{found:x?}");
}

/// But for what no reader reads: what lies between a bitmap and the pages, and pages that the file has not.
#[test]
fn no_bit_of_a_mapped_ram_file_can_be_flipped_unnoticed() {
    const PAGES: usize = 1 << 20;
    let whole = a_mapped_file().unwrap();
    // Long runs of zeros: in no other part are there so many.
    let hole = |at: usize| (at.saturating_sub(63)..=at).any(|at| whole[at..].iter().take(64).all(|byte| *byte == 0));
    // The parts with bytes, each for itself: a bitmap and more after the first block's pages.
    let parts = [0..0x1000, PAGES..PAGES + 0x1000, 2 * PAGES..2 * PAGES + 0x100, whole.len() - 0x800..whole.len()];
    let mut bytes = whole.clone();
    for at in parts.into_iter().flatten().filter(|at| *at < whole.len() && (!hole(*at) || at % 97 == 0)) {
        bytes[at] ^= 1 << (at % 8);
        if mapped(&bytes) {
            assert!(hole(at), "{at:#x} of {:#x}", whole.len());
        }
        bytes[at] = whole[at];
    }
}
