//! Pages that are read straight to where they belong.
//!
//! ```text
//!   known places (multifd)     │ page │ page │ … │ next header          one vectored read, to RAM and, at its end, to the buffer
//!   guessed ones (the stream)  │ page n │ head? │ page n+1? │ head? …    the same: behind page n comes n+1, mostly
//!                                          ▲ another head: what lies behind it was none of those pages. It goes back to the buffer,
//!                                            and they are zero again, as they were
//! ```
//!
//! A page is guessed only if it has not come before: so a wrong guess costs a copy and no byte that counts. Nothing runs on a target's
//! RAM meanwhile.

use super::channel::{Fill, VECTORS, advance};
use super::wire::{Fault, In, Result, flag};
use super::{Received, StreamError};
use crate::addr::{PAGE_BITS, PAGE_SIZE};
use crate::ram::{RamBlock, RamSlice};
use core::ops::Range;
use std::io;

/// Bytes of the head of a page of the block before.
const HEAD: usize = 8;
/// Pages that are guessed at once, at most: they fit the buffer.
const MOST: u64 = 60;
/// Bytes behind them that are read in the same call. Of what is a page's a copy is made then.
const AHEAD: usize = 4096;

/// How many pages may follow the next one. It grows while the guess is right.
#[derive(Debug)]
pub(super) struct Guess(u64);

impl Default for Guess {
    fn default() -> Self {
        Self(8)
    }
}

impl<R: Fill> In<R> {
    /// Bytes that were read ahead.
    pub(super) fn buffered(&self) -> usize {
        self.end - self.start
    }

    /// Reads to these vectors, or some of them, and returns how many bytes.
    ///
    /// # Safety
    /// As [`Fill::read_vectors`].
    unsafe fn vectors(&mut self, vectors: &[libc::iovec]) -> Result<usize> {
        loop {
            // SAFETY: by the caller.
            match unsafe { self.from.read_vectors(vectors) } {
                Ok(0) => return Err(self.error(Fault::Ended)),
                Ok(count) => {
                    self.read += count as u64;
                    return Ok(count);
                }
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                Err(why) if why.kind() == io::ErrorKind::UnexpectedEof => return Err(self.error(Fault::Ended)),
                Err(why) => return Err(self.error(why)),
            }
        }
    }

    /// Moves what was read ahead to the start of a slice, if it fits; how much that is.
    fn put_buffered(&mut self, slice: &RamSlice<'_>) -> usize {
        let count = self.buffered().min(slice.len() as usize);
        slice.put(0, &self.buffer[self.start..self.start + count]);
        self.start += count;
        count
    }

    /// Fills all of these slices. Of what comes behind them up to `ahead` bytes are read too, if they are there at once.
    pub(super) fn slices(&mut self, slices: &[RamSlice<'_>], ahead: usize) -> Result<()> {
        let mut vectors = Vec::with_capacity(slices.len() + 1);
        for slice in slices {
            let done = self.put_buffered(slice);
            let vector = slice.iovec();
            if done < vector.iov_len {
                let iov_base = vector.iov_base.wrapping_byte_add(done);
                vectors.push(libc::iovec { iov_base, iov_len: vector.iov_len - done });
            }
        }
        if vectors.is_empty() {
            return Ok(());
        }
        // All that was read ahead is used up.
        (self.start, self.end) = (0, 0);
        let want: usize = vectors.iter().map(|vector| vector.iov_len).sum();
        let iov_len = ahead.min(self.buffer.len());
        vectors.push(libc::iovec { iov_base: self.buffer.as_mut_ptr().cast(), iov_len });
        let (mut left, mut done) = (&mut vectors[..], 0);
        while done < want {
            // SAFETY: the slices are of blocks that they borrow, and reached by raw pointer alone; the last vector is the buffer.
            let count = unsafe { self.vectors(left)? };
            done += count;
            left = advance(left, count);
        }
        self.end = done - want;
        Ok(())
    }

    /// Reads `page`, whose head was read, and pages behind it that follow at once; which ones came. Less than a page was read ahead.
    pub(super) fn pages(
        &mut self,
        block: &RamBlock,
        page: u64,
        came: &Received,
        guess: &mut Guess,
    ) -> Result<Range<u64>> {
        let refused =
            |from: &Self, why: crate::ram::RamError| -> StreamError { from.error(Fault::Order(why.to_string())) };
        let all = block.used_length() >> PAGE_BITS;
        let end = (page + 1..all.min(page + 1 + guess.0)).find(|page| came.test(*page));
        let end = end.unwrap_or(all.min(page + 1 + guess.0)).max(page + 1);
        let mut slices = Vec::with_capacity((end - page) as usize);
        for page in page..end {
            slices.push(block.slice(page << PAGE_BITS, PAGE_SIZE).map_err(|why| refused(self, why))?);
        }
        let mut heads = vec![[0u8; HEAD]; slices.len()];
        let first = self.put_buffered(&slices[0]);
        (self.start, self.end) = (0, 0);
        let mut vectors = Vec::with_capacity(slices.len() * 2);
        for (n, (slice, head)) in slices.iter().zip(&mut heads).enumerate() {
            if n > 0 {
                vectors.push(libc::iovec { iov_base: head.as_mut_ptr().cast(), iov_len: HEAD });
            }
            vectors.push(slice.iovec());
        }
        vectors.push(libc::iovec { iov_base: self.buffer.as_mut_ptr().cast(), iov_len: AHEAD });
        debug_assert!(vectors.len() <= VECTORS);
        let step = HEAD + PAGE_SIZE as usize;
        let whole = slices.len() * step - HEAD;
        let mut done = first;
        let mut left = advance(&mut vectors, first);
        // Bytes behind page k are those of head k + 1.
        let right = loop {
            // SAFETY: as in `slices`; the heads are our own, and looked at when the call is over.
            let count = unsafe { self.vectors(left)? };
            done += count;
            left = advance(left, count);
            let heads = heads.iter().enumerate().skip(1).take_while(|(n, _)| n * step <= done);
            let wrong = heads.map(|(n, head)| (n, *head)).find(|(n, head)| {
                let place = (page + *n as u64) << PAGE_BITS | flag::PAGE | flag::CONTINUE;
                *head != place.to_be_bytes()
            });
            if let Some((n, _)) = wrong {
                guess.0 = (n as u64).max(1);
                break n;
            }
            // All of it; or as much as is there, up to a page's end or into a head.
            if done >= whole {
                guess.0 = (guess.0 * 2).min(MOST);
                break slices.len();
            }
            if (done + HEAD) % step < HEAD {
                break (done + HEAD) / step;
            }
        };
        let behind = done.saturating_sub(whole);
        self.give_back(&slices[right..], &heads[right..], done - behind - (right * step - HEAD), behind);
        Ok(page..page + right as u64)
    }

    /// `count` bytes from the first of these heads on are none of these pages; `behind` more are at the buffer's start. All of them are
    /// in the buffer then.
    fn give_back(&mut self, slices: &[RamSlice<'_>], heads: &[[u8; HEAD]], count: usize, behind: usize) {
        self.buffer.copy_within(..behind, count);
        self.end = count + behind;
        let mut to = &mut self.buffer[..count];
        for (slice, head) in slices.iter().zip(heads) {
            let (these, rest) = to.split_at_mut(HEAD.min(to.len()));
            these.copy_from_slice(&head[..these.len()]);
            let (these, rest) = rest.split_at_mut((slice.len() as usize).min(rest.len()));
            slice.take(these);
            slice.clear(these.len());
            to = rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::multifd::{self, Meeting, header};
    use super::super::precopy::{Carrier, Progress, Run};
    use super::super::{Event, Incoming, StreamCarrier, StreamReader, StreamWriter, read_list};
    use super::*;
    use crate::ram::{RamBlockSpec, RamList};
    use proptest::prelude::*;
    use std::sync::Arc;
    use std::time::Duration;

    const PAGES: u64 = 200;

    /// Bytes that come in pieces of these sizes, again and again.
    struct Pieces<'b>(&'b [u8], &'b [usize], usize);

    impl Pieces<'_> {
        fn next(&mut self) -> usize {
            self.2 += 1;
            self.1[self.2 % self.1.len()].min(self.0.len())
        }
    }

    impl io::Read for Pieces<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let count = self.next().min(into.len());
            let mut these = &self.0[..count];
            self.0 = &self.0[count..];
            these.read(into)
        }
    }

    impl Fill for Pieces<'_> {
        unsafe fn read_vectors(&mut self, vectors: &[libc::iovec]) -> io::Result<usize> {
            let count = self.next();
            // SAFETY: by the caller.
            let count = unsafe { (&self.0[..count]).read_vectors(vectors)? };
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    fn block() -> Arc<RamBlock> {
        RamList::new().add(RamBlockSpec::new("ram", PAGES * PAGE_SIZE)).unwrap()
    }

    fn bytes_of(block: &RamBlock) -> Vec<u8> {
        let mut bytes = vec![0; (PAGES * PAGE_SIZE) as usize];
        block.read_bytes(0, &mut bytes).unwrap();
        bytes
    }

    /// Each page whole: what is in a wrong place, or too much of it, shows.
    fn write(block: &RamBlock, page: u64, seed: u64) {
        let word = |n: u64| (seed << 32 | page << 10 | n).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        let bytes: Vec<u8> = (0..512).flat_map(word).collect();
        block.write_raw(page << PAGE_BITS, &bytes).unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 150, ..ProptestConfig::default() })]

        /// Runs, single pages, zeros and repeats, over a channel that cuts where it likes.
        #[test]
        fn pages_come_where_they_belong_however_the_channel_cuts_them(
            runs in prop::collection::vec((0..PAGES, 1..90u64, 0..4u8), 1..12),
            sizes in prop::collection::vec(prop_oneof![1..20usize, 4090..4120usize, 1..300_000usize], 1..6),
        ) {
            let source = block();
            let mut writer = StreamWriter::new(Vec::new(), "test", &[]).unwrap();
            let mut carrier = StreamCarrier::begin_ram(&mut writer, std::slice::from_ref(&source)).unwrap();
            for (n, (start, len, kind)) in runs.iter().enumerate() {
                let pages = *start..(start + len).min(PAGES);
                for page in pages.clone() {
                    match kind {
                        0 if page % 7 == 0 => source.fill_raw(page << PAGE_BITS, PAGE_SIZE, 0).unwrap(),
                        _ => write(&source, page, n as u64),
                    }
                }
                // Every page, or with gaps.
                let step = if *kind == 1 { 3 } else { PAGES };
                let runs: Vec<_> = pages.clone().step_by(step as usize).map(|from| {
                    let pages = from..(from + step - u64::from(*kind == 1)).min(pages.end);
                    Run { index: 0, block: &source, pages }
                }).collect();
                carrier.begin().unwrap();
                carrier.send(&runs, &mut Progress::default()).unwrap();
                carrier.end(true).unwrap();
                // What was not sent is as if it had never been written.
                let sent: Vec<_> = runs.iter().flat_map(|run| run.pages.clone()).collect();
                for page in pages.filter(|page| !sent.contains(page)) {
                    write(&source, page, n as u64);
                    carrier.begin().unwrap();
                    let runs = [Run { index: 0, block: &source, pages: page..page + 1 }];
                    carrier.send(&runs, &mut Progress::default()).unwrap();
                    carrier.end(true).unwrap();
                }
            }
            carrier.end_ram().unwrap();
            writer.finish().unwrap();
            let bytes = writer.into_inner().unwrap();

            let target = block();
            let mut reader = StreamReader::new(Pieces(&bytes, &sizes, 0)).unwrap();
            reader.configuration().unwrap();
            let mut incoming = None;
            loop {
                match reader.event().unwrap() {
                    Event::RamStart => {
                        let listed = read_list(&mut reader).unwrap();
                        let new = Incoming::new(listed, vec![target.clone()]).unwrap();
                        incoming.insert(new).piece(&mut reader).unwrap();
                    }
                    Event::RamPiece(_) => incoming.as_mut().unwrap().piece(&mut reader).unwrap(),
                    Event::End => break,
                    _ => {}
                }
            }
            reader.description().unwrap();
            prop_assert!(bytes_of(&target) == bytes_of(&source));
        }

        /// The same of packets.
        #[test]
        fn pages_of_a_packet_come_where_they_belong(
            packets in prop::collection::vec((prop::collection::btree_set(0..PAGES, 1..128), 0..3u8), 1..5),
            sizes in prop::collection::vec(prop_oneof![1..2000usize, 1..300_000usize], 1..6),
        ) {
            let (source, target) = (block(), block());
            let mut bytes = Vec::new();
            for (n, (pages, kind)) in packets.iter().enumerate() {
                let (zero, full): (Vec<u64>, Vec<u64>) = pages.iter().partition(|page| *kind == 0 && *page % 5 == 0);
                zero.iter().for_each(|page| source.fill_raw(page << PAGE_BITS, PAGE_SIZE, 0).unwrap());
                full.iter().for_each(|page| write(&source, *page, n as u64));
                let places: Vec<_> = full.iter().chain(&zero).map(|page| page << PAGE_BITS).collect();
                bytes.extend(header(0, n as u64, "ram", &places, full.len()));
                let all = bytes_of(&source);
                full.iter().for_each(|page| bytes.extend(&all[(page << PAGE_BITS) as usize..][..PAGE_SIZE as usize]));
            }
            let meeting = Meeting::default();
            let blocks = [target.clone()];
            multifd::receive(Pieces(&bytes, &sizes, 0), &blocks, &meeting, Duration::ZERO).unwrap();
            prop_assert!(bytes_of(&target) == bytes_of(&source));
        }
    }
}
