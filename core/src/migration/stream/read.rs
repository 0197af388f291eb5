//! The side of a stream that reads: sections, their ends, and the text behind them; a hostile one costs no more than it is long.
use super::super::checksums::{self, Checksums, Tally};
use super::super::records::ListedBlock;
use super::super::section::Section;
use super::super::wire::{FILE_VERSION, Fault, In, MAGIC, Result, kind};
use super::{
    CAPABILITIES, CHECKSUM, COMPLETE, CONFIGURATION, MAPPED_RAM, MOST_PACKAGED, PACKAGED, command_label, list_bytes,
    too_long,
};
use std::io::{Read, Seek};
use std::sync::Arc;

/// The longest VM description that is read.
const MAX_DESCRIPTION: u32 = 64 << 20;

/// What comes next in a stream.
#[derive(Debug, PartialEq)]
pub enum Event {
    /// All of a part.
    Section(Section),
    /// The first piece of the RAM section follows.
    RamStart,
    /// A further piece of it follows, and whether it is the last.
    RamPiece(bool),
    /// The other end says something.
    Command(u16, Vec<u8>),
    /// There are no more sections.
    End,
}

/// Reads a stream.
#[derive(Debug)]
pub struct StreamReader<R> {
    from: In<R>,
    machine: String,
    capabilities: Vec<String>,
    /// The number of the RAM section, once it has begun, and whether it has ended.
    ram: Option<(u32, bool)>,
    /// The byte that the next section begins with.
    peeked: Option<u8>,
    tally: Tally,
    /// What was sent, by its checksums.
    integrity: Option<Section>,
    /// As the writer has it.
    loose: bool,
    /// It is a message of a stream.
    inner: bool,
}

impl<R: Read> StreamReader<R> {
    /// Reads up to the first section.
    ///
    /// # Errors
    /// It is no such stream, of another version, or ends.
    pub fn new(from: R) -> Result<Self> {
        let mut from = In::new(from);
        let magic = from.u32()?;
        if magic != MAGIC {
            return Err(from.error(Fault::value("the magic number", magic, format_args!("{MAGIC:#x}"))));
        }
        let version = from.u32()?;
        if version != FILE_VERSION {
            return Err(from.error(Fault::value("the version of the file", version, FILE_VERSION)));
        }
        from.enter("configuration");
        let byte = from.u8()?;
        if byte != kind::CONFIGURATION {
            return Err(from.error(Fault::value("the first section", byte, "a configuration, 0x7")));
        }
        let len = from.u32()?;
        if len > 255 {
            return Err(from.error(Fault::value("the length of the machine's name", len, "at most 255")));
        }
        let machine = from.text("the machine", len.into())?;
        Ok(Self {
            from,
            machine,
            capabilities: Vec::new(),
            ram: None,
            peeked: None,
            tally: Tally::default(),
            integrity: None,
            loose: false,
            inner: false,
        })
    }

    /// The type of the machine.
    pub fn machine(&self) -> &str {
        &self.machine
    }

    /// Reads the rest of the configuration. Once, before the first event.
    ///
    /// # Errors
    /// It asks for what nothing here knows.
    pub fn configuration(&mut self) -> Result<()> {
        let byte = self.from.u8()?;
        if byte == kind::SUBSECTION {
            self.capabilities = capabilities(&mut self.from)?;
        } else {
            self.peeked = Some(byte);
        }
        let names: Vec<_> = [&self.machine].into_iter().chain(&self.capabilities).map(String::as_str).collect();
        self.tally.part(CONFIGURATION.into(), names.join("\n").as_bytes());
        Ok(())
    }

    /// What both ends must do alike.
    pub fn capabilities(&self) -> &[String] {
        &self.capabilities
    }

    /// Whether pages have fixed places in the file.
    pub fn is_mapped(&self) -> bool {
        self.capabilities.iter().any(|name| name == MAPPED_RAM)
    }

    /// What takes the bytes.
    pub fn source(&mut self) -> &mut In<R> {
        &mut self.from
    }

    /// The next event. After a piece of RAM its [`footer`](Self::footer) is to be read.
    ///
    /// # Errors
    /// [`StreamError`](super::StreamError).
    pub fn event(&mut self) -> Result<Event> {
        loop {
            match self.next()? {
                Event::Section(section) if section.name == checksums::NAME => {
                    // All sections came before it. RAM is compared when it is known.
                    self.tally.check(&section).map_err(|fault| self.from.error(fault))?;
                    self.integrity = Some(section);
                    // Of a message they count what comes before them.
                    self.loose |= self.inner;
                }
                Event::Section(section) => {
                    self.tally.part(section.label(), &section.to_bytes()?);
                    return Ok(Event::Section(section));
                }
                Event::Command(command, data) => {
                    // What it has counts, and is behind it.
                    if !self.loose && command != PACKAGED {
                        self.tally.part(command_label(command), &data);
                    }
                    return Ok(Event::Command(command, data));
                }
                Event::End => {
                    if let Some(integrity) = &self.integrity {
                        // Nothing may have come since.
                        self.from.enter(checksums::NAME);
                        self.tally.check(integrity).map_err(|fault| self.from.error(fault))?;
                    }
                    return Ok(Event::End);
                }
                event => return Ok(event),
            }
        }
    }

    /// What a message of so many bytes has ([`StreamWriter::package`]), which follow; its checksums fit. From here on commands have no part in
    /// them.
    ///
    /// # Errors
    /// [`StreamError`](super::StreamError).
    pub fn package(&mut self, len: u32) -> Result<Vec<Event>> {
        self.from.enter("the packaged message");
        if len > MOST_PACKAGED {
            return Err(self.from.error(too_long(len.into())));
        }
        let bytes = self.from.bytes(len.into())?;
        let start = self.from.offset() - bytes.len() as u64;
        let mut inner = StreamReader {
            // The guest stands still for it: no memory that it does not need.
            from: In::with_buffer(&bytes[..], bytes.len()),
            machine: String::new(),
            capabilities: Vec::new(),
            // RAM goes on outside of it.
            ram: Some((0, true)),
            peeked: None,
            tally: core::mem::take(&mut self.tally),
            integrity: None,
            loose: false,
            inner: true,
        };
        let mut events = Vec::new();
        let done = loop {
            match inner.from.more() {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(why) => break Err(why),
            }
            match inner.event() {
                Ok(Event::End) => break Err(inner.from.error(Fault::Order("an end inside of a message".into()))),
                Ok(event) => events.push(event),
                Err(why) => break Err(why),
            }
        };
        let unsealed = inner.integrity.is_none();
        self.tally = core::mem::take(&mut inner.tally);
        self.loose = true;
        done.map_err(|why| super::super::StreamError { offset: start + why.offset, ..why })?;
        if unsealed {
            return Err(self.from.error(Fault::Order("a message without its checksums".into())));
        }
        Ok(events)
    }

    /// The stream goes on by this channel, between two sections; the one before failed. An end of RAM that came by that comes again.
    pub fn replace(&mut self, from: R) {
        self.from.replace(from);
        self.ram = self.ram.map(|(id, _)| (id, false));
        (self.integrity, self.tally.ram) = (None, None);
    }

    /// RAM begins with this list.
    pub(in super::super) fn listed(&mut self, blocks: &[ListedBlock]) {
        self.tally.part("the list of RAM".into(), &list_bytes(blocks));
    }

    /// All of RAM has come: these blocks.
    pub(in super::super) fn came(&mut self, blocks: impl Iterator<Item = (String, Arc<Checksums>)>) {
        self.tally.ram = Some(blocks.map(|(idstr, sums)| (idstr, sums.sum())).collect());
    }

    fn next(&mut self) -> Result<Event> {
        let from = &mut self.from;
        from.enter("between sections");
        let byte = match self.peeked.take() {
            Some(byte) => byte,
            None => from.u8()?,
        };
        match byte {
            kind::EOF => Ok(Event::End),
            kind::COMMAND => {
                from.enter("command");
                let (command, len) = (from.u16()?, from.u16()?);
                Ok(Event::Command(command, from.bytes(len.into())?))
            }
            kind @ (kind::START | kind::FULL) => {
                let (id, name) = (from.u32()?, from.name("a section")?);
                let (instance, version) = (from.u32()?, from.u32()?);
                from.enter(if kind == kind::START { name.clone() } else { format!("{name} {instance}") });
                if kind == kind::FULL {
                    let section = Section::read_from(name, instance, version, from)?;
                    footer(from, id)?;
                    return Ok(Event::Section(section));
                }
                if name != super::super::wire::RAM || instance != 0 {
                    return Err(from.error(Fault::Unknown { name, instance }));
                }
                if version != super::super::wire::RAM_VERSION {
                    let known = super::super::wire::RAM_VERSION;
                    return Err(from.error(Fault::value("the version of the section", version, known)));
                }
                if self.ram.is_some() {
                    return Err(from.error(Fault::Order("it begins a second time".into())));
                }
                self.ram = Some((id, false));
                Ok(Event::RamStart)
            }
            kind @ (kind::PART | kind::END) => {
                let id = from.u32()?;
                if self.ram != Some((id, false)) {
                    return Err(from.error(Fault::value("the number of a section", id, "that of one that goes on")));
                }
                from.enter(super::super::wire::RAM);
                self.ram = Some((id, kind == kind::END));
                Ok(Event::RamPiece(kind == kind::END))
            }
            byte => Err(from.error(Fault::value("the kind of a section", byte, "0 to 4 or 8"))),
        }
    }

    /// The end of a piece of RAM.
    ///
    /// # Errors
    /// [`StreamError`](super::StreamError).
    pub fn footer(&mut self) -> Result<()> {
        let (id, _) = self.ram.unwrap_or_default();
        footer(&mut self.from, id)
    }

    /// Whether all of RAM has come.
    pub fn ram_ended(&self) -> bool {
        matches!(self.ram, Some((_, true)))
    }

    /// The description behind the end, if its writer says that it had come to its end.
    ///
    /// # Errors
    /// There is none, it is too long, or no text, or has no such mark.
    pub fn description(&mut self) -> Result<String> {
        let from = &mut self.from;
        from.enter("VM description");
        let byte = from.u8()?;
        if byte != kind::DESCRIPTION {
            return Err(from.error(Fault::value("what follows the end", byte, "a VM description, 0x6")));
        }
        let len = from.u32()?;
        if len > MAX_DESCRIPTION {
            return Err(from.error(Fault::value("its length", len, format_args!("at most {MAX_DESCRIPTION:#x}"))));
        }
        let text = from.text("the VM description", len.into())?;
        let whole = text.trim_end_matches(' ');
        let Some((before, end)) = whole.rsplit_once(CHECKSUM) else {
            if !whole.ends_with(&format!("{COMPLETE}}}}}")) || self.integrity.is_some() {
                return Err(from.error(Fault::Order("it has no mark that the file is complete".into())));
            }
            return Ok(text);
        };
        let sent = end.strip_suffix("\"}}").and_then(|hex| u32::from_str_radix(hex, 16).ok());
        match sent {
            Some(sent) => {
                checksums::compare("the VM description", crc32fast::hash(before.as_bytes()).into(), sent.into())
            }
            None => Err(Fault::Order("its checksum is no number".into())),
        }
        .map_err(|fault| from.error(fault))?;
        if !before.ends_with(COMPLETE) || self.integrity.is_none() {
            return Err(from.error(Fault::Order("it has no mark that the file is complete".into())));
        }
        Ok(text)
    }
}

impl<R: Read + Seek> StreamReader<R> {
    /// What comes next is at this offset.
    pub(in super::super) fn seek(&mut self, offset: u64) -> Result<()> {
        self.from.seek(offset)
    }
}

fn footer<R: Read>(from: &mut In<R>, id: u32) -> Result<()> {
    let byte = from.u8()?;
    if byte != kind::FOOTER {
        return Err(from.error(Fault::value("the end of the section", byte, "a footer, 0x7e")));
    }
    match from.u32()? {
        found if found == id => Ok(()),
        found => Err(from.error(Fault::value("the footer's section", found, format_args!("{id:#x}")))),
    }
}

/// The subsection that lists them.
fn capabilities<R: Read>(from: &mut In<R>) -> Result<Vec<String>> {
    let name = from.name("a subsection")?;
    if name != CAPABILITIES {
        return Err(from.error(Fault::Unknown { name, instance: 0 }));
    }
    let version = from.u32()?;
    if version != 1 {
        return Err(from.error(Fault::value("the version of the capabilities", version, 1)));
    }
    let count = from.u32()?;
    if count == 0 || count > 64 {
        return Err(from.error(Fault::value("the number of capabilities", count, "1 to 64")));
    }
    let mut names = Vec::new();
    for _ in 0..count {
        let name = from.name("a capability")?;
        if name != MAPPED_RAM {
            return Err(from.error(Fault::Unknown { name, instance: 0 }));
        }
        names.push(name);
    }
    Ok(names)
}
