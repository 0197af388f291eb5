//! Pages of a packet in fewer bytes: what a channel of several ([`multifd`](super::multifd)) may have.
//!
//! ```text
//!   packet   … flags: the method, in bits 1 to 5 │ length of what follows │ … │ places │ packed pages
//!              one stream a channel, so a packet builds on those before it; each ends where its pages do
//! ```
//!
//! Core packs nothing itself: an embedder brings a [`Pack`] and an [`Unpack`] for each channel (guests `zstd.rs`). Pages are copied before they are
//! packed, as the guest may store to them meanwhile, and their checksums are of that copy.

use super::channel::Fill;
use super::checksums::{Checksums, of_page};
use super::precopy::Run;
use super::wire::{Fault, In, Result};
use crate::addr::{PAGE_BITS, PAGE_SIZE};
use crate::ram::RamBlock;
use std::fmt;
use std::io;
use std::sync::Arc;

/// The bits of a packet's flags that name a method.
pub(super) const METHODS: u32 = 0x3e;
/// Zstandard's.
pub(super) const ZSTD: u32 = 2 << 1;

/// Makes fewer bytes of pages.
pub trait Pack: Send + fmt::Debug {
    /// Appends what these pages are packed as; all of it, so that they can be had before the next ones come.
    ///
    /// # Errors
    /// Its own.
    fn pack(&mut self, pages: &[u8], to: &mut Vec<u8>) -> io::Result<()>;
}

/// Makes pages of those bytes again.
pub trait Unpack: fmt::Debug {
    /// These bytes are as many pages, neither more nor less.
    ///
    /// # Errors
    /// They are not.
    fn unpack(&mut self, packed: &[u8], pages: &mut [u8]) -> io::Result<()>;
}

/// What makes an [`Unpack`] for a channel, when its first packed packet comes.
pub type Unpackers<'u> = &'u dyn Fn() -> Option<Box<dyn Unpack>>;

/// A channel's sending side: its method, and what it keeps from packet to packet.
#[derive(Debug)]
pub(super) struct Packing {
    pack: Box<dyn Pack>,
    pages: Vec<u8>,
    packed: Vec<u8>,
}

impl Packing {
    pub fn new(pack: Box<dyn Pack>) -> Packing {
        Packing { pack, pages: Vec::new(), packed: Vec::new() }
    }

    /// These pages of a run as they are now, packed; their checksums are noted.
    pub fn pages(&mut self, run: &Run<'_>, sums: &Checksums, pages: &[u64]) -> io::Result<&[u8]> {
        self.pages.clear();
        self.packed.clear();
        for (n, page) in pages.iter().enumerate() {
            let copied = run.block.with_page(*page, pages.get(n + 1).copied(), |bytes| {
                self.pages.extend_from_slice(bytes);
                of_page(bytes)
            });
            sums.note([(*page, copied.map_err(io::Error::other)?)]);
        }
        if !pages.is_empty() {
            self.pack.pack(&self.pages, &mut self.packed)?;
        }
        Ok(&self.packed)
    }
}

/// A channel's receiving side.
#[derive(Debug, Default)]
pub(super) struct Unpacking {
    unpack: Option<Box<dyn Unpack>>,
    pages: Vec<u8>,
}

impl Unpacking {
    /// The pages at these places, which follow as `size` bytes; places and block were looked at, their checksums are noted.
    pub fn pages<R: Fill>(
        &mut self,
        from: &mut In<R>,
        size: u32,
        block: &Arc<RamBlock>,
        sums: &Checksums,
        places: &[u64],
        unpackers: Unpackers<'_>,
    ) -> Result<()> {
        let refuse = |why: String| Fault::Block { idstr: block.idstr().to_owned(), why };
        if self.unpack.is_none() {
            self.unpack = unpackers();
        }
        let Some(unpack) = &mut self.unpack else {
            return Err(from.error(Fault::Order("packed pages, and nothing here to unpack them".into())));
        };
        // At most twice the pages, as the length was looked at; memory is taken as they come.
        let packed = from.bytes(size.into())?;
        self.pages.resize(places.len() * PAGE_SIZE as usize, 0);
        let done = unpack.unpack(&packed, &mut self.pages);
        done.map_err(|why| from.error(refuse(format!("packed pages: {why}"))))?;
        for (place, bytes) in places.iter().zip(self.pages.chunks_exact(PAGE_SIZE as usize)) {
            block.write_raw(*place, bytes).map_err(|why| from.error(refuse(why.to_string())))?;
            sums.note([(place >> PAGE_BITS, of_page(bytes))]);
        }
        Ok(())
    }
}

#[cfg(all(test, not(loom), not(miri)))]
mod tests {
    use super::super::channel::{Cancel, Channel};
    use super::super::multifd::{self, Meeting, Multifd, packed_header};
    use super::super::precopy::{Carrier, Progress};
    use super::super::{StreamCarrier, StreamWriter};
    use super::*;
    use crate::ram::{RamBlockSpec, RamList};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    const PAGES: u64 = 300;

    /// A byte and how often it comes, 1 to 255; and a count of packets, without which the next is not understood.
    #[derive(Debug, Default)]
    struct Runs(u8);

    impl Pack for Runs {
        fn pack(&mut self, pages: &[u8], to: &mut Vec<u8>) -> io::Result<()> {
            to.push(self.0);
            self.0 += 1;
            pages.chunk_by(|a, b| a == b).flat_map(|run| run.chunks(255)).for_each(|run| {
                to.extend([run[0], run.len() as u8]);
            });
            Ok(())
        }
    }

    impl Unpack for Runs {
        fn unpack(&mut self, packed: &[u8], pages: &mut [u8]) -> io::Result<()> {
            let bytes: Vec<u8> =
                packed[1..].chunks_exact(2).flat_map(|run| std::iter::repeat_n(run[0], run[1].into())).collect();
            if packed[0] != self.0 || bytes.len() != pages.len() {
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.0 += 1;
            pages.copy_from_slice(&bytes);
            Ok(())
        }
    }

    fn block() -> Arc<RamBlock> {
        RamList::new().add(RamBlockSpec::new("ram", PAGES * PAGE_SIZE)).unwrap()
    }

    fn receive(bytes: &[u8], target: &Arc<RamBlock>, unpackers: Unpackers<'_>) -> Result<(u64, u64)> {
        multifd::receive_packed(bytes, std::slice::from_ref(target), &Meeting::default(), Duration::ZERO, unpackers)
    }

    fn unpackers() -> Option<Box<dyn Unpack>> {
        Some(Box::new(Runs::default()))
    }

    #[test]
    fn pages_that_go_packed_are_the_same_and_each_channel_has_its_own_state() {
        let (source, target) = (block(), block());
        for page in (0..PAGES).filter(|page| page % 7 != 0) {
            source.fill_raw(page << PAGE_BITS, PAGE_SIZE / 2, page as u8 | 1).unwrap();
        }
        let pairs: Vec<_> = (0..2).map(|_| UnixStream::pair().unwrap()).collect();
        let (ours, theirs): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        let channel = |to: UnixStream| Channel::new(to.into(), Duration::from_secs(10), Cancel::default()).unwrap();
        let mut writer = StreamWriter::new(Vec::new(), "test", &[]).unwrap();
        let main = StreamCarrier::begin_ram(&mut writer, std::slice::from_ref(&source)).unwrap();
        let in_turn = |count: usize, run: &(dyn Fn(usize) + Sync)| (0..count).for_each(run);
        let mut carrier = Multifd::new(main, ours.into_iter().map(channel).collect(), &in_turn)
            .packed((0..2).map(|_| Box::new(Runs::default()) as Box<dyn Pack>));
        let mut progress = Progress::default();
        carrier.begin().unwrap();
        for pages in [0..1, 1..PAGES, 5..9] {
            carrier.send(&[Run { index: 0, block: &source, pages }], &mut progress).unwrap();
        }
        let bytes = carrier.bytes();
        carrier.end_ram().unwrap();
        assert!(bytes < PAGES * PAGE_SIZE / 8, "{bytes}");
        let came = theirs.into_iter().map(|mut from| {
            let mut bytes = Vec::new();
            io::Read::read_to_end(&mut from, &mut bytes).unwrap();
            receive(&bytes, &target, &unpackers).unwrap()
        });
        let came = came.fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
        assert_eq!(came, (progress.pages, progress.zero_pages));
        let all = |block: &RamBlock| {
            let mut bytes = vec![0; (PAGES * PAGE_SIZE) as usize];
            block.read_bytes(0, &mut bytes).unwrap();
            bytes
        };
        assert!(all(&source) == all(&target));
    }

    #[test]
    fn what_is_wrong_with_packed_pages_is_refused() {
        let target = block();
        let mut page = Vec::new();
        Runs::default().pack(&[7; PAGE_SIZE as usize], &mut page).unwrap();
        let packet = |flags, size: u32| [packed_header(flags, 0, "ram", &[0], 1, size), page.clone()].concat();
        let len = page.len() as u32;
        assert_eq!(receive(&packet(ZSTD, len), &target, &unpackers).unwrap(), (1, 0));
        let refused =
            |bytes: &[u8], unpackers: Unpackers<'_>| receive(bytes, &target, unpackers).unwrap_err().to_string();
        let why = refused(&packet(ZSTD, len), &|| None);
        assert!(why.contains("nothing here to unpack them"), "{why}");
        let why = refused(&packet(ZSTD, len - 2), &unpackers);
        assert!(why.contains("packed pages"), "{why}");
        // More than any page can need, before a byte of it is read.
        let why = refused(&packet(ZSTD, 2 * PAGE_SIZE as u32 + 1), &unpackers);
        assert!(why.contains("the length of a packet"), "{why}");
        // Other methods, and bits that are none.
        for flags in [1 << 1, 4 << 1, 3 << 1, 1 << 6] {
            let why = refused(&packet(flags, len), &unpackers);
            assert!(why.contains("the flags of a packet"), "{why}");
        }
        let short = packet(ZSTD, len);
        let why = refused(&short[..short.len() - 1], &unpackers);
        assert!(!why.is_empty());
    }
}
