//! The RAM section: the list of blocks, then pages.
//!
//! ```text
//!   setup    be64 total│MEM_SIZE   each block: byte len, idstr, be64 used length [mapped-ram header]            be64 EOS
//!   piece    be64 place│flags [idstr, unless CONTINUE] data …                                                   be64 EOS
//!              ZERO: a byte 0      PAGE: the page      XBZRLE: byte 1, be16 length, delta
//! ```

use super::stream::{StreamReader, StreamWriter};
use super::wire::{Fault, Out, RAM, RAM_VERSION, Result, XBZRLE_ENCODING, flag};
use crate::addr::{PAGE_BITS, PAGE_SIZE};
use std::io::{Read, Write};

/// A block in the list that RAM begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedBlock {
    /// Its name.
    pub idstr: String,
    /// Its bytes.
    pub used_length: u64,
}

/// A record that is no page's bytes yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Record {
    /// This page of this block is zero.
    Zero { block: usize, page: u64 },
    /// Its bytes follow.
    Page { block: usize, page: u64 },
    /// What differs from the page that came before follows: so many bytes.
    Delta { block: usize, page: u64, len: u16 },
    /// Other channels are to be waited for.
    Flush,
    /// The piece ends.
    End,
}

/// Begins the RAM section: the total, then `each` block by the caller, then the end of the piece.
pub(super) fn write_setup<W: Write>(
    writer: &mut StreamWriter<W>,
    blocks: &[ListedBlock],
    mut each: impl FnMut(&mut Out<W>, usize) -> Result<()>,
) -> Result<u32> {
    let id = writer.start(RAM, RAM_VERSION)?;
    writer.listed(blocks);
    let total = blocks.iter().map(|block| block.used_length).sum::<u64>();
    let out = writer.out();
    out.u64(total | flag::MEM_SIZE)?;
    for (n, block) in blocks.iter().enumerate() {
        out.name(&block.idstr)?;
        out.u64(block.used_length)?;
        each(out, n)?;
    }
    out.u64(flag::EOS)?;
    writer.footer(id)?;
    Ok(id)
}

/// A piece without a page.
pub(super) fn write_empty_piece<W: Write>(writer: &mut StreamWriter<W>, id: u32, last: bool) -> Result<()> {
    writer.out().enter(RAM);
    writer.piece(id, last)?;
    writer.out().u64(flag::EOS)?;
    writer.footer(id)
}

/// Reads the total and the list; `each` block's further part by the caller. The end of the piece follows.
pub(super) fn read_setup<R: Read>(
    reader: &mut StreamReader<R>,
    mut each: impl FnMut(&mut StreamReader<R>, &ListedBlock, usize) -> Result<()>,
) -> Result<Vec<ListedBlock>> {
    let from = reader.source();
    let first = from.u64()?;
    if first & flag::ALL != flag::MEM_SIZE {
        return Err(from.error(Fault::value("the first record", first & flag::ALL, "a list of blocks, 0x4")));
    }
    let mut left = first & !flag::ALL;
    let mut blocks: Vec<ListedBlock> = Vec::new();
    while left != 0 {
        let from = reader.source();
        let idstr = from.name("a RAM block")?;
        let used_length = from.u64()?;
        let why = if blocks.iter().any(|block| block.idstr == idstr) {
            Some("it is listed twice".to_owned())
        } else if used_length == 0 || !used_length.is_multiple_of(PAGE_SIZE) {
            Some(format!("its length {used_length:#x} is not a positive number of pages"))
        } else if used_length > left {
            Some(format!("its length {used_length:#x} is more than the {left:#x} bytes that the total leaves"))
        } else {
            None
        };
        if let Some(why) = why {
            return Err(from.error(Fault::Block { idstr, why }));
        }
        left -= used_length;
        let block = ListedBlock { idstr, used_length };
        each(reader, &block, blocks.len())?;
        blocks.push(block);
    }
    reader.listed(&blocks);
    Ok(blocks)
}

/// Reads records, and remembers of which block the last one was.
#[derive(Debug, Default)]
pub(super) struct Records {
    last: Option<usize>,
}

impl Records {
    /// The next record; a page that it names lies in its block.
    #[inline]
    pub(super) fn next<R: Read>(&mut self, reader: &mut StreamReader<R>, blocks: &[ListedBlock]) -> Result<Record> {
        let from = reader.source();
        let word = from.u64()?;
        let (place, flags) = (word & !flag::ALL, word & flag::ALL);
        match flags {
            flag::EOS if place == 0 => return Ok(Record::End),
            flag::MULTIFD_FLUSH if place == 0 => return Ok(Record::Flush),
            _ => {}
        }
        if flags & flag::CONTINUE == 0 {
            let idstr = from.name("a RAM block")?;
            let known = blocks.iter().position(|block| block.idstr == idstr);
            let why = "it is not in the list that RAM began with".to_owned();
            self.last = Some(known.ok_or_else(|| from.error(Fault::Block { idstr, why }))?);
        }
        let Some(block) = self.last else {
            return Err(from.error(Fault::Order("a page of the block before, and there is none before".into())));
        };
        if place >= blocks[block].used_length {
            let (idstr, length) = (blocks[block].idstr.clone(), blocks[block].used_length);
            let why = format!("a page at {place:#x} of its {length:#x} bytes");
            return Err(from.error(Fault::Block { idstr, why }));
        }
        let page = place >> PAGE_BITS;
        match flags & !flag::CONTINUE {
            flag::ZERO => match from.u8()? {
                0 => Ok(Record::Zero { block, page }),
                byte => Err(from.error(Fault::value("the byte that fills a page", byte, 0))),
            },
            flag::PAGE => Ok(Record::Page { block, page }),
            flag::XBZRLE => {
                let encoding = from.u8()?;
                if encoding != XBZRLE_ENCODING {
                    return Err(from.error(Fault::value("the encoding of a delta", encoding, XBZRLE_ENCODING)));
                }
                let len = from.u16()?;
                if u64::from(len) > PAGE_SIZE {
                    return Err(from.error(Fault::value("the length of a delta", len, "at most a page")));
                }
                Ok(Record::Delta { block, page, len })
            }
            flags => {
                Err(from.error(Fault::value("the flags of a page", flags, "0x2, 0x8 or 0x40, with 0x20 or without")))
            }
        }
    }
}
