//! What the source hears while it sends: a thread reads the return path, others wait for what they need.
//!
//! ```text
//!   channel ─▶ ReturnPath::listen ─┬─ REQ_PAGES ─▶ Requests
//!                                  ├─ PONG, SHUT, WHY, bitmaps, RESUME_ACK ─▶ Heard ─▶ wait(…)
//!                                  └─ broken, or ended ─▶ Heard::broken
//! ```
//!
//! One for each channel: what a broken one said counts no more.

use super::super::wire::Fault;
use super::answers::{Answer, Bitmap};
use super::requests::Requests;
use crate::addr::{PAGE_BITS, PAGE_SIZE};
use core::ops::Range;
use std::io::Read;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What was said so far.
#[derive(Debug, Default)]
pub struct Heard {
    /// The greatest number of a PONG.
    pub pong: u32,
    /// When it came.
    pub at: Option<Instant>,
    /// The number of the last PONG that says which pages are placed.
    pub placed: u32,
    /// It has all of it (0), or gives up.
    pub shut: Option<u32>,
    /// Why it gives up.
    pub why: String,
    /// What each block has, once it was said.
    pub bitmaps: Vec<Option<Bitmap>>,
    /// It goes on.
    pub resumed: bool,
    /// Nothing more will be said.
    pub broken: Option<String>,
}

/// Each block, and its pages.
#[derive(Debug)]
pub(super) struct Blocks(pub Vec<(String, u64)>);

impl Blocks {
    fn of(&self, idstr: &str) -> Result<usize, Fault> {
        let known = self.0.iter().position(|(other, _)| other == idstr);
        known.ok_or_else(|| Fault::Block { idstr: idstr.to_owned(), why: "it is asked for, and is not here".into() })
    }

    /// The pages of a request: `last` is the block of the one before.
    pub(super) fn asked(
        &self,
        idstr: Option<String>,
        start: u64,
        len: u32,
        last: &mut Option<usize>,
    ) -> Result<(usize, Range<u64>), Fault> {
        let block = match idstr {
            Some(idstr) => self.of(&idstr)?,
            None => last.ok_or_else(|| Fault::Order("a request of the block before, and there is none".into()))?,
        };
        *last = Some(block);
        let (idstr, pages) = &self.0[block];
        let len = u64::from(len);
        let whole = start.is_multiple_of(PAGE_SIZE) && len.is_multiple_of(PAGE_SIZE) && len != 0;
        if !whole || start.checked_add(len).is_none_or(|end| end > pages << PAGE_BITS) {
            let why = format!("a request of {len:#x} bytes at {start:#x}, of {pages:#x} pages");
            return Err(Fault::Block { idstr: idstr.clone(), why });
        }
        Ok((block, start >> PAGE_BITS..(start + len) >> PAGE_BITS))
    }
}

/// The return path of one channel.
#[derive(Debug)]
pub struct ReturnPath {
    blocks: Blocks,
    /// What is waited for there.
    pub requests: Requests,
    heard: Mutex<Heard>,
    changed: Condvar,
}

impl ReturnPath {
    /// Of blocks with so many pages.
    pub fn new(blocks: Vec<(String, u64)>) -> ReturnPath {
        let heard = Heard { bitmaps: vec![None; blocks.len()], ..Heard::default() };
        ReturnPath {
            blocks: Blocks(blocks),
            requests: Requests::default(),
            heard: Mutex::new(heard),
            changed: Condvar::new(),
        }
    }

    /// What was said so far.
    pub fn heard(&self) -> MutexGuard<'_, Heard> {
        // Each change is whole.
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until that was said, at most so long, or until nothing more will be; whether it was.
    pub fn wait(&self, timeout: Duration, mut said: impl FnMut(&Heard) -> bool) -> bool {
        let heard = self.heard();
        let until = |heard: &mut Heard| !said(heard) && heard.broken.is_none();
        let (heard, _) = self.changed.wait_timeout_while(heard, timeout, until).unwrap_or_else(PoisonError::into_inner);
        said(&heard)
    }

    /// Reads to the end of the channel, or to what is wrong with it.
    pub fn listen(&self, from: &mut impl Read) {
        let mut last = None;
        let broken = loop {
            if let Err(fault) = self.next(from, &mut last) {
                break fault;
            }
            self.changed.notify_all();
        };
        self.heard().broken = Some(broken.to_string());
        self.changed.notify_all();
    }

    fn next(&self, from: &mut impl Read, last: &mut Option<usize>) -> Result<(), Fault> {
        match Answer::read(from)? {
            Answer::Request { idstr, start, len } => {
                let (block, pages) = self.blocks.asked(idstr, start, len, last)?;
                self.requests.push(block, pages);
            }
            Answer::Bitmap(idstr) => {
                let block = self.blocks.of(&idstr)?;
                let bitmap = Bitmap::read(from, self.blocks.0[block].1)?;
                self.heard().bitmaps[block] = Some(bitmap);
            }
            Answer::Pong(number) if number >= super::release::FIRST => self.heard().placed = number,
            Answer::Pong(number) => {
                let mut heard = self.heard();
                (heard.pong, heard.at) = (heard.pong.max(number), Some(Instant::now()));
            }
            Answer::Shut(number) => self.heard().shut = Some(number),
            Answer::Why(why) => self.heard().why = why,
            Answer::ResumeAck(1) => self.heard().resumed = true,
            Answer::ResumeAck(number) => return Err(Fault::value("the answer to a resume", number, 1)),
            Answer::SwitchoverAck => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_outside_of_a_block_or_of_no_block_ends_the_channel() {
        let request = |idstr: Option<&str>, start, len| {
            Answer::Request { idstr: idstr.map(str::to_owned), start, len }.to_bytes()
        };
        let said = |answers: &[Vec<u8>]| {
            let path = ReturnPath::new(vec![("a".into(), 4), ("b".into(), 2)]);
            path.listen(&mut &answers.concat()[..]);
            let asked: Vec<_> = std::iter::from_fn(|| path.requests.pop()).collect();
            (asked, path.heard().broken.clone().unwrap())
        };
        let (asked, why) = said(&[
            request(Some("b"), 0x1000, 0x1000),
            request(None, 0, 0x1000),
            request(Some("a"), 0x2000, 0x2000),
            request(None, 0, 0x1000),
        ]);
        assert_eq!(asked, [(1, 1), (1, 0), (0, 2), (0, 3), (0, 0)]);
        assert!(why.contains("ends"), "{why}");
        for (wrong, text) in [
            (request(None, 0, 0x1000), "there is none"),
            (request(Some("c"), 0, 0x1000), "is not here"),
            (request(Some("b"), 0x2000, 0x1000), "RAM block b"),
            (request(Some("b"), !0xfff, 0x1000), "RAM block b"),
            (request(Some("b"), 0x800, 0x1000), "RAM block b"),
            (request(Some("b"), 0, 0), "RAM block b"),
            (Answer::ResumeAck(2).to_bytes(), "resume"),
        ] {
            let (asked, why) = said(&[wrong]);
            assert!(asked.is_empty() && why.contains(text), "{why}");
        }
    }
}
