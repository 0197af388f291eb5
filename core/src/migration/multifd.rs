//! Pages that go by several channels at once, in QEMU's packets.
//!
//! ```text
//!   each channel   hello: magic, version 1, uuid, number │ packet │ packet │ … │ SYNC │ packet …
//!   packet         magic, version, flags, sizes, number, zero pages, block (256 bytes), 128 places │ pages
//!   main stream    … FLUSH, at the end of each round: all channels come to their SYNC before any goes on
//! ```
//!
//! Two versions of one page may go by two channels, one a round; the sync keeps them in their order. A piece of the main stream holds no
//! pages then.

use super::BlockMigration;
use super::channel::{Channel, Fill, Gather, Sink};
use super::checksums::Checksums;
use super::pack::{METHODS, Pack, Packing, Unpackers, Unpacking, ZSTD};
use super::precopy::{Carrier, Progress, Run};
use super::sender::StreamCarrier;
use super::wire::{Fault, In, Result, StreamError};
use crate::addr::{PAGE_BITS, PAGE_SIZE};
use crate::ram::RamBlock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

const MAGIC: u32 = 0x1122_3344;
const VERSION: u32 = 1;
/// Pages of a packet, at most; as many places each has.
const PAGES: usize = 128;
const NAME: usize = 256;
/// Bytes of a packet before its pages.
const HEADER: usize = 64 + NAME + PAGES * 8;
/// All channels are in step behind this packet.
const SYNC: u32 = 1;
/// Pages of a packet of ours: so few that they are still in the cache when the checksum has read them, at both ends.
const PACKET: usize = 32;
/// Pages of a huge page of the host's.
const HUGE: u64 = 512;
/// Pages that are shared out among the channels at once.
const BATCH: u64 = 8192;

/// Names a migration to the other end of each of its channels.
pub type Uuid = [u8; 16];

/// The first bytes of channel number `id`.
pub fn hello(uuid: &Uuid, id: u8) -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[..4].copy_from_slice(&MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&VERSION.to_be_bytes());
    bytes[8..24].copy_from_slice(uuid);
    bytes[24] = id;
    bytes
}

/// A packet's bytes before its pages: places of pages with bytes, then of zero pages.
pub(super) fn header(flags: u32, number: u64, idstr: &str, places: &[u64], normal: usize) -> Vec<u8> {
    packed_header(flags, number, idstr, places, normal, (normal as u64 * PAGE_SIZE) as u32)
}

/// The same, if so many bytes follow.
pub(super) fn packed_header(flags: u32, number: u64, idstr: &str, places: &[u64], normal: usize, size: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER);
    for word in [MAGIC, VERSION, flags, PAGES as u32, normal as u32, size] {
        bytes.extend_from_slice(&word.to_be_bytes());
    }
    bytes.extend_from_slice(&number.to_be_bytes());
    bytes.extend_from_slice(&((places.len() - normal) as u32).to_be_bytes());
    bytes.resize(64, 0);
    bytes.extend_from_slice(idstr.as_bytes());
    bytes.resize(64 + NAME, 0);
    places.iter().for_each(|place| bytes.extend_from_slice(&place.to_be_bytes()));
    bytes.resize(HEADER, 0);
    bytes
}

/// Runs a closure on as many threads, each with its number, and waits for all.
pub type OnThreads<'t> = &'t (dyn Fn(usize, &(dyn Fn(usize) + Sync)) + Sync);

/// One of the channels, and what packs its pages.
struct One {
    channel: Channel,
    packing: Option<Packing>,
}

/// Several channels beside the main stream.
pub struct Multifd<'w, 't, W> {
    main: StreamCarrier<'w, W>,
    channels: Vec<Mutex<One>>,
    threads: OnThreads<'t>,
    bytes: u64,
    number: u64,
}

impl<'w, 't, W: Sink> Multifd<'w, 't, W> {
    /// Each channel has said its hello.
    pub fn new(main: StreamCarrier<'w, W>, channels: Vec<Channel>, threads: OnThreads<'t>) -> Self {
        let channels = channels.into_iter().map(|channel| Mutex::new(One { channel, packing: None })).collect();
        Self { main, channels, threads, bytes: 0, number: 0 }
    }

    /// Pages go packed, by Zstandard; each channel has one of these, as far as they go.
    pub fn packed(mut self, packers: impl IntoIterator<Item = Box<dyn Pack>>) -> Self {
        for (one, pack) in self.channels.iter_mut().zip(packers) {
            one.get_mut().unwrap_or_else(PoisonError::into_inner).packing = Some(Packing::new(pack));
        }
        self
    }

    /// No more pages come: the channels end, and then RAM does.
    ///
    /// # Errors
    /// The channel's.
    pub fn end_ram(self) -> Result<()> {
        self.end_channels();
        self.main.end_ram()
    }

    /// Pages go by the main stream from here on: the channels meet, so that none of theirs is behind one of its, and end.
    ///
    /// # Errors
    /// The channel's.
    pub fn into_main(mut self) -> Result<StreamCarrier<'w, W>> {
        self.begin()?;
        self.end(true)?;
        self.end_channels();
        self.main.went_beside(self.bytes);
        Ok(self.main)
    }

    fn end_channels(&self) {
        for channel in &self.channels {
            channel.lock().unwrap_or_else(PoisonError::into_inner).channel.shutdown_write();
        }
    }
}

/// What a channel takes at once: pages of one block.
struct Share<'r, 's> {
    run: &'r Run<'s>,
    pages: Vec<u64>,
}

/// Shares that end where a huge page does, unless they are few pages: two channels that write to one page of the host's for the first
/// time would both make it, and one of them for nothing.
fn shares<'r, 's>(runs: &'r [Run<'s>]) -> Vec<Share<'r, 's>> {
    let huge = |page: u64| page / HUGE;
    let mut shares: Vec<Share<'r, 's>> = Vec::new();
    for run in runs {
        let mut pages = run.pages.clone();
        while !pages.is_empty() {
            let end = pages.end.min((huge(pages.start) + 1) * HUGE);
            let goes_on = |share: &&mut Share<'_, '_>| {
                let same = share.pages.last().is_some_and(|last| huge(*last) == huge(pages.start));
                share.run.index == run.index && (same || share.pages.len() < PACKET)
            };
            match shares.last_mut().filter(goes_on) {
                Some(share) => share.pages.extend(pages.start..end),
                None => shares.push(Share { run, pages: (pages.start..end).collect() }),
            }
            pages.start = end;
        }
    }
    shares
}

fn send_packet(
    one: &mut One,
    run: &Run<'_>,
    sums: &Checksums,
    pages: &[u64],
    number: u64,
    sent: &mut (u64, u64, u64),
) -> std::io::Result<()> {
    let block = run.block;
    let pages = block.prefetched(pages.iter().copied());
    let (zero, full): (Vec<u64>, Vec<u64>) = pages.partition(|page| block.is_zero(*page));
    let places: Vec<_> = full.iter().chain(&zero).map(|page| page << PAGE_BITS).collect();
    let mut gather = Gather::default();
    if let Some(packing) = &mut one.packing {
        let packed = packing.pages(run, sums, &full)?;
        gather.head(&packed_header(ZSTD, number, block.idstr(), &places, full.len(), packed.len() as u32));
        gather.head(packed);
        sent.0 += gather.write_to(&mut one.channel)?;
    } else {
        gather.head(&header(0, number, block.idstr(), &places, full.len()));
        // Neighbours are one vector.
        for run in full.chunk_by(|a, b| a + 1 == *b) {
            let len = (run.len() as u64) << PAGE_BITS;
            gather.ram(block.slice(run[0] << PAGE_BITS, len).map_err(std::io::Error::other)?);
        }
        sent.0 += gather.write_to(&mut one.channel)?;
        // The kernel has just had them in the cache, and reads faster than a loop does.
        sums.note_ram(block, full.iter().copied());
    }
    sums.note_zero(zero.iter().copied());
    sent.1 += full.len() as u64;
    sent.2 += zero.len() as u64;
    Ok(())
}

impl<W: Sink> Carrier for Multifd<'_, '_, W> {
    fn batch(&self) -> u64 {
        BATCH
    }

    fn begin(&mut self) -> Result<()> {
        self.main.begin()
    }

    fn send(&mut self, runs: &[Run<'_>], progress: &mut Progress) -> Result<()> {
        self.number += 1;
        let shares = shares(runs);
        let (done, number, sums) = (Mutex::new(Ok((0, 0, 0))), self.number, self.main.checksums());
        // A channel takes the next one when it has sent the last: none waits for another that is slower.
        let next = AtomicUsize::new(0);
        (self.threads)(shares.len().min(self.channels.len()), &|n| {
            let mut one = self.channels[n].lock().unwrap_or_else(PoisonError::into_inner);
            // What is packed together is the smaller for it.
            let most = if one.packing.is_some() { PAGES } else { PACKET };
            let mut sent = (0, 0, 0);
            let mut all = std::iter::from_fn(|| shares.get(next.fetch_add(1, Ordering::Relaxed)));
            let well = all.try_for_each(|Share { run, pages }| {
                let mut packets = pages.chunks(most);
                packets.try_for_each(|pages| send_packet(&mut one, run, &sums[run.index].1, pages, number, &mut sent))
            });
            let sent = well.map(|()| sent);
            let mut all = done.lock().unwrap_or_else(PoisonError::into_inner);
            match (&mut *all, sent) {
                (Ok(sum), Ok(sent)) => *sum = (sum.0 + sent.0, sum.1 + sent.1, sum.2 + sent.2),
                (Ok(_), Err(why)) => *all = Err(why),
                (Err(_), _) => {}
            }
        });
        let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        let (bytes, pages, zero) = done.map_err(|why| self.error(why.into()))?;
        self.bytes += bytes;
        progress.pages += pages;
        progress.zero_pages += zero;
        Ok(())
    }

    fn end(&mut self, round: bool) -> Result<()> {
        if round {
            let packet = header(SYNC, self.number, "", &[], 0);
            for channel in &self.channels {
                let mut one = channel.lock().unwrap_or_else(PoisonError::into_inner);
                std::io::Write::write_all(&mut one.channel, &packet).map_err(|why| self.main.error(why.into()))?;
                self.bytes += packet.len() as u64;
            }
            self.main.flush_others()?;
        }
        self.main.end(round)
    }

    fn command(&mut self, command: u16, data: &[u8]) -> Result<()> {
        self.main.command(command, data)
    }

    fn bytes(&self) -> u64 {
        self.main.bytes() + self.bytes
    }

    fn error(&self, fault: Fault) -> StreamError {
        self.main.error(fault)
    }
}

/// Where channels and the main stream of a target meet.
#[derive(Debug, Default)]
pub struct Meeting {
    state: Mutex<Met>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Met {
    /// Channels that wait at their SYNC.
    waiting: usize,
    /// Channels that have ended.
    gone: usize,
    /// Meetings that were held.
    held: u64,
    /// One of them, or the main stream, will not come any more.
    failed: bool,
    /// What the first of them failed by.
    why: Option<String>,
}

impl Meeting {
    /// None is held any more: what waits does not go on.
    pub fn fail(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).failed = true;
        self.changed.notify_all();
    }

    /// The same, and the first of them says why.
    fn fail_by(&self, why: &StreamError) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).why.get_or_insert_with(|| why.to_string());
        self.fail();
    }

    /// A channel has ended: it comes to no sync any more.
    fn leave(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).gone += 1;
        self.changed.notify_all();
    }

    /// Why a channel failed, if one did.
    pub(super) fn why(&self) -> Option<String> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).why.clone()
    }

    /// A channel waits until the main stream has seen all of them; `false` if that will not be.
    fn arrive(&self, patience: Duration) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.waiting += 1;
        let meeting = state.held;
        self.changed.notify_all();
        let until = Instant::now() + patience;
        while state.held == meeting && !state.failed {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.failed = true;
                break;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.held != meeting
    }

    /// The main stream waits for so many channels, and lets them go on; `false` if they do not come.
    pub(super) fn hold(&self, channels: usize, patience: Duration) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let until = Instant::now() + patience;
        while state.waiting < channels {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || state.failed || state.gone != 0 {
                state.failed = true;
                self.changed.notify_all();
                return false;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.waiting = 0;
        state.held += 1;
        self.changed.notify_all();
        true
    }
}

/// Reads the first bytes of a channel: its number, below `count`.
///
/// # Errors
/// It is no channel of this migration.
pub fn read_hello(channel: &mut Channel, uuid: &Uuid, count: usize) -> Result<usize> {
    let mut from = In::new(std::io::Read::take(channel, 64));
    from.enter("a multifd channel's hello");
    let bytes = from.array::<64>()?;
    let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    if word(0) != MAGIC {
        return Err(from.error(Fault::value("the magic number", word(0), format_args!("{MAGIC:#x}"))));
    }
    if word(4) != VERSION {
        return Err(from.error(Fault::value("the version", word(4), VERSION)));
    }
    if bytes[8..24] != *uuid {
        return Err(from.error(Fault::Order("it is of another migration".into())));
    }
    match usize::from(bytes[24]) {
        id if id < count => Ok(id),
        id => Err(from.error(Fault::value("the number of the channel", id as u64, format_args!("below {count}")))),
    }
}

/// Receives all of a channel, into these blocks; pages that came, and those that are zero.
///
/// # Errors
/// What is wrong with it. Then the meeting has failed, too.
pub fn receive<R: Fill>(
    channel: R,
    blocks: &[Arc<RamBlock>],
    meeting: &Meeting,
    patience: Duration,
) -> Result<(u64, u64)> {
    receive_packed(channel, blocks, meeting, patience, &|| None)
}

/// The same, if its pages may come packed.
///
/// # Errors
/// As above.
pub fn receive_packed<R: Fill>(
    channel: R,
    blocks: &[Arc<RamBlock>],
    meeting: &Meeting,
    patience: Duration,
    unpackers: Unpackers<'_>,
) -> Result<(u64, u64)> {
    let done = receive_all(In::new(channel), blocks, meeting, patience, unpackers);
    match &done {
        Ok(_) => meeting.leave(),
        Err(why) => meeting.fail_by(why),
    }
    done
}

/// The pages of a packet: so many with bytes, which follow, and then those that are zero. `packed`: how many bytes follow, and by what they
/// are unpacked.
fn receive_pages<R: Fill>(
    from: &mut In<R>,
    block: &Arc<RamBlock>,
    places: &[u64],
    normal: usize,
    packed: Option<(u32, &mut Unpacking, Unpackers<'_>)>,
) -> Result<()> {
    let refuse = |why: String| Fault::Block { idstr: block.idstr().to_owned(), why };
    let length = block.used_length();
    if let Some(place) = places.iter().find(|place| !place.is_multiple_of(PAGE_SIZE) || **place >= length) {
        return Err(from.error(refuse(format!("a page at {place:#x} of its {length:#x} bytes"))));
    }
    let (sums, came) = (BlockMigration::need_checksums(block), BlockMigration::need_received(block));
    let (normal, zero) = places.split_at(normal);
    let page = |place: &u64| place >> PAGE_BITS;
    match packed {
        Some(_) if normal.is_empty() => {}
        Some((size, unpacking, unpackers)) => unpacking.pages(from, size, block, &sums, normal, unpackers)?,
        None => {
            let mut slices = Vec::with_capacity(normal.len());
            // Neighbours are one slice.
            for run in normal.chunk_by(|a, b| a + PAGE_SIZE == *b) {
                let slice = block.slice(run[0], run.len() as u64 * PAGE_SIZE);
                slices.push(slice.map_err(|why| from.error(refuse(why.to_string())))?);
            }
            from.slices(&slices, HEADER)?;
            sums.note_ram(block, normal.iter().map(page));
        }
    }
    normal.iter().map(page).for_each(|page| {
        came.set(page);
    });
    sums.note_zero(zero.iter().map(page));
    for place in zero.iter().filter(|place| came.test(page(place))) {
        block.fill_raw(*place, PAGE_SIZE, 0).map_err(|why| from.error(refuse(why.to_string())))?;
    }
    Ok(())
}

fn receive_all<R: Fill>(
    mut from: In<R>,
    blocks: &[Arc<RamBlock>],
    meeting: &Meeting,
    patience: Duration,
    unpackers: Unpackers<'_>,
) -> Result<(u64, u64)> {
    let (mut came, mut unpacking) = ((0, 0), Unpacking::default());
    // As long as pages come, and for all channels the same.
    let kept = |block: &Arc<RamBlock>| (BlockMigration::need_checksums(block), BlockMigration::need_received(block));
    let _kept: Vec<_> = blocks.iter().map(kept).collect();
    from.enter("a multifd channel");
    while from.more()? {
        let word = from.u32()?;
        if word != MAGIC {
            return Err(from.error(Fault::value("the magic number", word, format_args!("{MAGIC:#x}"))));
        }
        let word = from.u32()?;
        if word != VERSION {
            return Err(from.error(Fault::value("the version", word, VERSION)));
        }
        let (flags, room, normal, size) = (from.u32()?, from.u32()?, from.u32()?, from.u32()?);
        let method = flags & METHODS;
        if flags & !(SYNC | METHODS) != 0 || ![0, ZSTD].contains(&method) {
            return Err(from.error(Fault::value("the flags of a packet", flags, "0, 1, 4 or 5")));
        }
        let (_, zero, _) = (from.u64()?, from.u32()?, from.array::<28>()?);
        if room as usize != PAGES || normal as usize + zero as usize > PAGES {
            return Err(from.error(Fault::value("the pages of a packet", normal.max(room), "at most 128")));
        }
        let bytes = u64::from(normal) * PAGE_SIZE;
        if method == 0 && u64::from(size) != bytes || u64::from(size) > 2 * bytes {
            return Err(from.error(Fault::value("the length of a packet", size, u64::from(normal) * PAGE_SIZE)));
        }
        let name = from.array::<NAME>()?;
        let len = name.iter().position(|byte| *byte == 0).unwrap_or(NAME);
        let block = blocks.iter().find(|block| block.idstr().as_bytes() == &name[..len]);
        let places = from.array::<{ PAGES * 8 }>()?;
        let pages = normal as usize + zero as usize;
        if pages != 0 {
            let Some(block) = block else {
                return Err(from.error(Fault::Name { what: "a RAM block", bytes: name[..len.min(64)].to_vec() }));
            };
            let places = places.as_chunks::<8>().0[..pages].iter().map(|place| u64::from_be_bytes(*place));
            let places: Vec<u64> = places.collect();
            let packed = (method == ZSTD).then_some((size, &mut unpacking, unpackers));
            receive_pages(&mut from, block, &places, normal as usize, packed)?;
            came = (came.0 + u64::from(normal), came.1 + u64::from(zero));
        }
        if flags & SYNC != 0 && !meeting.arrive(patience) {
            return Err(from.error(Fault::Order("the other channels did not come to their sync".into())));
        }
    }
    Ok(came)
}
