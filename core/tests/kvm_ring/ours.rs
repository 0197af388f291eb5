//! The same with our ring: a "vCPU" that marks, pushes and heeds the soft limit as softmmu's slow store does.

use super::{Left, PAGES, Vcpu};
use notdirty_core::raw::RawDirty;
use notdirty_core::{
    ClientMask, DirtyClient, DirtyGfn, DirtyRing, PAGE_SIZE, PageIndex, PageRange, Pushed, RamBlock, RamBlockSpec,
    RamList, RingConsumer, RingProducer, pin,
};
use std::collections::VecDeque;
use std::sync::Arc;

const CLIENT: DirtyClient = DirtyClient::MIGRATION;

pub struct Ours {
    list: RamList,
    block: Arc<RamBlock>,
    producer: RingProducer,
    consumer: RingConsumer,
    left: VecDeque<u64>,
}

impl Ours {
    pub fn new(entries: u32, reserved: u32) -> Self {
        let list = RamList::new();
        // A block before it, so that offsets in the block and in all RAM differ.
        list.add(RamBlockSpec::new("first", PAGE_SIZE)).unwrap();
        let block = list.add(RamBlockSpec::new("ram", PAGES * PAGE_SIZE)).unwrap();
        list.dirty().test_and_clear_range(block.pages(), CLIENT, &pin(), |_, _| ());
        // The indices wrap after four rounds.
        let (producer, consumer) = DirtyRing::starting_at(entries, reserved, 0u32.wrapping_sub(4 * entries)).unwrap();
        Self { list, block, producer, consumer, left: VecDeque::new() }
    }

    /// Is there no ring of this size, with the kernel's reserve?
    pub fn refuses(entries: u32) -> bool {
        DirtyRing::new(entries, 64).is_err()
    }

    fn page(&self, page: u64) -> PageIndex {
        PageIndex::new(self.block.offset().page().get() + page)
    }
}

impl Vcpu for Ours {
    fn size(&self) -> u32 {
        self.producer.ring().size()
    }

    fn store(&mut self, pages: &[u64]) -> Left {
        self.left = pages.iter().copied().collect();
        self.resume()
    }

    fn resume(&mut self) -> Left {
        let guard = pin();
        while let Some(page) = self.left.front() {
            if self.producer.is_soft_full() {
                return Left::RingFull;
            }
            self.block.store_raw(page * PAGE_SIZE, 4, 1).unwrap();
            let range = PageRange::of_page(self.page(*page));
            let base = self.block.offset().page().get();
            let (slot, producer) = (self.block.slot(), &mut self.producer);
            self.list.dirty().set_new(range, ClientMask::of(CLIENT), &guard, |_, first, bits| {
                let offset = first.get() + u64::from(bits.trailing_zeros()) - base;
                assert_ne!(producer.push(slot, offset), Pushed::Full);
            });
            self.left.pop_front();
        }
        // The kernel looks once more before the guest can say that it is done.
        if self.producer.is_soft_full() { Left::RingFull } else { Left::Done }
    }

    fn left(&self) -> u64 {
        self.left.len() as u64
    }

    fn harvest(&mut self, max: u32) -> Vec<u64> {
        let mut pages = Vec::new();
        self.consumer.harvest_up_to(max, |slot, offset| {
            assert_eq!(slot, self.block.slot());
            pages.push(offset);
        });
        pages
    }

    fn reset(&mut self) -> u32 {
        let guard = pin();
        let (list, base) = (&self.list, self.block.offset().page().get());
        self.consumer.reset(|_, first, mask| {
            for n in (0..64).filter(|n| mask >> n & 1 != 0) {
                assert!(list.dirty().test_and_clear(PageIndex::new(base + first + n), CLIENT, &guard));
            }
        })
    }

    fn peek(&self, index: u32) -> DirtyGfn {
        self.producer.ring().peek(index)
    }
}
