//! The target's end of the preempt channel: what waits for a page writes the request, and reads the page itself.
//!
//! ```text
//!   waiter ── ask ──▶ REQ_PAGES ─────▶ source            asked += 1
//!     └─ help: does none read? ─▶ reads, places whatever comes, until its own page is here      answered += 1 for each
//!                 │                            └─ leaves with asked > answered ─▶ helper thread reads the rest
//!                 └─ one does: it places this page, too, and wakes its waiter
//! ```
//!
//! So a page takes two system calls here and two there, and no thread hands over to another. A waiter that is interrupted leaves; what
//! it asked for is read by the next one, or by the helper. `Turn` is one lock: a waiter that finds another reading has counted its request
//! before that one leaves, so a request never stays without a reader. One that asks for many, before it reads, has the helper read; and one
//! that must not sleep looks for a moment (`hand_over`).

use super::super::channel::Channel;
use super::super::wire::{Fault, flag};
use super::answers::Answer;
use super::place::{Coming, Places};
use crate::addr::{PAGE_BITS, PAGE_SIZE};
use crate::missing::MissingPages;
use crate::ram::RamBlock;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// How long a reader sleeps at once: so late does it see that it is interrupted.
const STEP: Duration = Duration::from_millis(4);

/// How long it looks for an answer before it sleeps: a sleep costs more than the page takes, and the thread has nothing else to do.
const LOOK: Duration = Duration::from_micros(10);

/// A page whose record's head is short lies at a multiple of a cache line: so it is copied by lines.
const START: usize = 64 - 8;

/// So many pages may be asked for without a reader: they fit into what any host keeps of a socket.
const MANY: u64 = 16;

/// The longest record: the name of a block has a byte of length.
const RECORD: usize = 8 + 256 + PAGE_SIZE as usize;

#[derive(Default)]
struct Turn {
    asked: u64,
    answered: u64,
    /// One reads.
    reading: bool,
    /// Why nothing comes any more.
    broken: Option<String>,
}

struct Writer {
    channel: Channel,
    last: Option<Arc<RamBlock>>,
}

struct Reader {
    channel: Channel,
    buffer: Box<Buffer>,
    at: usize,
    end: usize,
    last: Option<usize>,
    coming: Coming,
}

/// What a step of reading was.
enum Next {
    /// A page was placed.
    Placed,
    /// Bytes came.
    Read,
    /// None did.
    Nothing,
}

#[repr(align(64))]
struct Buffer([u8; START + 8 * RECORD]);

/// Pages that were asked for by a channel of their own.
pub struct AskedPages {
    places: Places,
    pages: Weak<MissingPages>,
    writer: Mutex<Writer>,
    reader: Mutex<Reader>,
    turn: Mutex<Turn>,
    changed: Condvar,
    /// Ends it from any thread.
    channel: Channel,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl AskedPages {
    /// How long either end of the channel looks for what comes before it sleeps.
    pub const LOOK: Duration = LOOK;

    /// By this channel, of the pages of that stream.
    ///
    /// # Errors
    /// The host's: it is no socket, or there are no descriptors left.
    pub fn new(
        mut channel: Channel,
        incoming: &super::super::Incoming,
        pages: &Arc<MissingPages>,
    ) -> std::io::Result<AskedPages> {
        channel.set_blocking(STEP, LOOK)?;
        let buffer = Box::new(Buffer([0; START + 8 * RECORD]));
        Ok(AskedPages {
            places: incoming.places(),
            pages: Arc::downgrade(pages),
            writer: Mutex::new(Writer { channel: channel.try_clone()?, last: None }),
            reader: Mutex::new(Reader {
                channel: channel.try_clone()?,
                buffer,
                at: START,
                end: START,
                last: None,
                coming: Coming::default(),
            }),
            turn: Mutex::default(),
            changed: Condvar::new(),
            channel,
        })
    }

    /// Asks for a page. `false`: the channel is broken.
    pub fn ask(&self, block: &Arc<RamBlock>, off: u64, len: u32) -> bool {
        let mut writer = lock(&self.writer);
        {
            let mut turn = lock(&self.turn);
            if turn.broken.is_some() {
                return false;
            }
            turn.asked += u64::from(len).div_ceil(PAGE_SIZE);
            if !turn.reading && turn.asked - turn.answered > MANY {
                // Each end would wait for the other to read.
                self.changed.notify_all();
            }
        }
        let same = writer.last.as_ref().is_some_and(|last| Arc::ptr_eq(last, block));
        let idstr = (!same).then(|| block.idstr().to_owned());
        let request = Answer::Request { idstr, start: off, len }.to_bytes();
        if let Err(why) = writer.channel.write_all(&request) {
            drop(writer);
            self.fail(&why.to_string());
            return false;
        }
        if !same {
            writer.last = Some(block.clone());
        }
        drop(writer);
        block.expect_raw(off);
        true
    }

    /// Reads pages until `over`, unless another does, or nothing is to come. Whether it read.
    pub fn help(&self, over: &mut dyn FnMut() -> bool) -> bool {
        let mine = self.take_turn();
        if mine {
            self.read(over, true);
        }
        mine
    }

    /// Something was asked for by a thread that must not sleep: it looks for what comes, for a moment, until `over`. The helper reads the
    /// rest, unless another thread does.
    pub fn hand_over(&self, over: &mut dyn FnMut() -> bool) {
        if self.take_turn() {
            self.read(over, false);
        }
    }

    fn take_turn(&self) -> bool {
        let mut turn = lock(&self.turn);
        let free = !turn.reading && turn.asked != turn.answered && turn.broken.is_none();
        turn.reading |= free;
        free
    }

    /// The turn is taken: reads, and gives it back. It sleeps for what is to come, or goes.
    fn read(&self, over: &mut dyn FnMut() -> bool, sleeps: bool) {
        let mut reader = lock(&self.reader);
        let failed = loop {
            if over() {
                break None;
            }
            match self.next(&mut reader, sleeps) {
                Ok(Next::Placed) => {
                    let mut turn = lock(&self.turn);
                    turn.answered = turn.asked.min(turn.answered + 1);
                }
                Ok(Next::Nothing) if !sleeps => break None,
                Ok(_) => {}
                Err(fault) => break Some(fault.to_string()),
            }
        };
        drop(reader);
        let mut turn = lock(&self.turn);
        turn.reading = false;
        let more = turn.asked != turn.answered;
        drop(turn);
        if let Some(why) = failed {
            self.fail(&why);
        } else if more {
            self.changed.notify_all();
        }
    }

    /// What was asked for and nothing reads is read: on a thread of its own, until the channel breaks. Why it did.
    pub fn serve(&self) -> String {
        let mut turn = lock(&self.turn);
        loop {
            if let Some(why) = turn.broken.clone() {
                return why;
            }
            if turn.reading || turn.asked == turn.answered {
                turn = self.changed.wait(turn).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            turn.reading = true;
            drop(turn);
            self.read(&mut || self.is_answered(), true);
            turn = lock(&self.turn);
        }
    }

    fn next(&self, reader: &mut Reader, sleeps: bool) -> Result<Next, Fault> {
        let Reader { channel, buffer, at, end, last, coming } = reader;
        let have = &buffer.0[*at..*end];
        if let Some((word, rest)) = have.split_first_chunk::<8>() {
            let word = u64::from_be_bytes(*word);
            let (place, flags) = (word & !flag::ALL, word & flag::ALL);
            let named = flags & flag::CONTINUE == 0;
            let idstr = if named { rest.split_first().and_then(|(len, rest)| rest.get(..(*len).into())) } else { None };
            let head = 8 + if named { 1 + usize::from(rest.first().copied().unwrap_or(0)) } else { 0 };
            let len = match flags & !flag::CONTINUE {
                flag::PAGE => PAGE_SIZE as usize,
                flag::ZERO => 0,
                _ => return Err(Fault::value("the flags of an urgent page", flags, "a page or zero")),
            };
            if have.len() >= head + len && (!named || idstr.is_some()) {
                if let Some(idstr) = idstr {
                    let known = self.places.blocks.iter().position(|block| block.idstr().as_bytes() == idstr);
                    let unknown = || Fault::Name { what: "a RAM block", bytes: idstr.to_vec() };
                    *last = Some(known.ok_or_else(unknown)?);
                }
                let index =
                    last.ok_or_else(|| Fault::Order("an urgent page of the block before, and there is none".into()))?;
                let bytes = (len != 0).then(|| &have[head..head + len]);
                let pages = self.pages.upgrade().ok_or_else(|| Fault::Order("nothing is missing".into()))?;
                self.places.place(&pages, coming, index, place >> PAGE_BITS, bytes)?;
                *at += head + len;
                if at == end {
                    (*at, *end) = (START, START);
                }
                return Ok(Next::Placed);
            }
        }
        if *at > START {
            buffer.0.copy_within(*at..*end, START);
            (*at, *end) = (START, START + *end - *at);
        }
        let into = &mut buffer.0[*end..];
        match if sleeps { channel.read_once(into) } else { channel.look_once(into) } {
            Ok(None) => Ok(Next::Nothing),
            Ok(Some(0)) => Err(Fault::Ended),
            Ok(Some(count)) => {
                *end += count;
                Ok(Next::Read)
            }
            Err(why) => Err(Fault::Io(why)),
        }
    }

    fn fail(&self, why: &str) {
        let mut turn = lock(&self.turn);
        turn.broken.get_or_insert_with(|| why.to_owned());
        drop(turn);
        self.channel.shut();
        self.changed.notify_all();
    }

    /// Whether all that was asked for came.
    pub fn is_answered(&self) -> bool {
        let turn = lock(&self.turn);
        turn.asked == turn.answered
    }

    /// Whether nothing comes any more.
    pub fn is_broken(&self) -> bool {
        lock(&self.turn).broken.is_some()
    }

    /// All has come: what was placed is noted when this returns.
    pub fn rest(&self) {
        drop(lock(&self.reader));
    }

    /// Nothing is placed by it any more when this returns.
    pub fn close(&self) {
        self.fail("it was closed");
        drop(lock(&self.reader));
    }
}
