//! The image of all RAM, where RAM comes and changes its length behind it.
#![cfg(not(miri))]

use notdirty_core::{Delta, Image, PutBack, RamBlockSpec, RamList, pin};
use std::sync::Arc;

const PAGE: u64 = 4096;

#[test]
fn bytes_that_a_longer_block_had_from_before_belong_to_the_moment_and_not_to_the_one_before() {
    let list = Arc::new(RamList::new());
    let block = list.add(RamBlockSpec::new("ram", 4 * PAGE).max_length(4 * PAGE).resizable(true)).unwrap();
    list.write(&block, 3 * PAGE, b"old").unwrap();
    list.resize(&block, PAGE).unwrap();
    let mut image = Image::take(&list).unwrap();
    // Nothing wrote it since: it is what it was before it was cut off, as the host never had it back.
    list.resize(&block, 4 * PAGE).unwrap();
    let blocks: Vec<_> = list.blocks(&pin()).map(|block| (block.clone(), block.used_length())).collect();
    image.cover(&blocks).unwrap();
    let mut delta = Delta::default();
    image.advance_rest(&mut delta, |_| {});
    assert_eq!((delta.lines(), image.difference()), (1, None));

    let bytes = || {
        let mut three = [0; 3];
        block.read_bytes(3 * PAGE, &mut three).unwrap();
        three
    };
    image.step(&delta, false, &mut PutBack::default());
    assert_eq!((bytes(), image.difference()), ([0; 3], None));
    image.step(&delta, true, &mut PutBack::default());
    assert_eq!((&bytes(), image.difference()), (b"old", None));
}

#[test]
fn a_block_that_left_comes_back_as_it_was_and_no_other_takes_its_place() {
    let list = Arc::new(RamList::new());
    let block = list.add(RamBlockSpec::new("ram", PAGE)).unwrap();
    list.write(&block, 8, b"text").unwrap();
    let (slot, offset) = (block.slot(), block.offset());
    list.remove(&block).unwrap();
    assert!(list.write(&block, 8, b"lost").is_err() && block.mapping(0, PAGE).is_err());
    let other = list.add(RamBlockSpec::new("ram", PAGE)).unwrap();
    assert_ne!(other.offset(), offset);
    assert!(list.put_back(&block).is_err(), "another has its name");
    list.remove(&other).unwrap();
    list.put_back(&block).unwrap();
    list.put_back(&block).unwrap();
    assert!(Arc::ptr_eq(list.find(offset, &pin()).unwrap(), &block));
    assert_eq!((block.slot(), list.blocks(&pin()).count()), (slot, 1));
    let mut text = [0; 4];
    block.read_bytes(8, &mut text).unwrap();
    assert_eq!(&text, b"text");
    drop(block.mapping(0, PAGE).unwrap());
    assert!(RamList::new().put_back(&block).is_err(), "of another list");
}
