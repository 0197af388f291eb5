//! QEMU's framing: what stands around the sections of a stream.
//!
//! ```text
//!   QEVM 3 │ configuration: machine, capabilities │ section … footer │ section … footer │ … │ EOF │ VM description (JSON)
//!   section   START id name instance version …    then PART id …, END id …        in several pieces: RAM
//!             FULL  id name instance version …                                    at once: devices
//! ```

mod read;

pub use read::{Event, StreamReader};

use super::checksums::{Checksums, Tally};
use super::records::ListedBlock;
use super::section::{Section, escaped};
use super::wire::{FILE_VERSION, Fault, MAGIC, Out, Result, kind};
use crate::addr::PAGE_SIZE;
use std::io::Write;
use std::sync::Arc;

/// Configuration: a subsection that lists what both ends must do alike.
const CAPABILITIES: &str = "configuration/capabilities";
/// The command that a message of commands and sections follows.
pub(super) const PACKAGED: u16 = 7;
/// It, for its checksum.
const CONFIGURATION: &str = "the configuration";
/// The capability that says that pages have fixed places in the file.
pub const MAPPED_RAM: &str = "mapped-ram";
/// The description's member that is written last: the file is whole.
const COMPLETE: &str = r#""complete":true"#;
/// The one behind it: the checksum of the text before. A file of an older build has none.
const CHECKSUM: &str = r#","crc32":""#;
/// Bytes of the message that a machine begins with, at most: its discards are a bit for each page that the guest wrote, of 8 TiB all.
const MOST_PACKAGED: u32 = 256 << 20;

/// Writes a stream.
#[derive(Debug)]
pub struct StreamWriter<W> {
    out: Out<W>,
    next: u32,
    configuration: String,
    devices: Vec<String>,
    tally: Tally,
    /// Commands count no more: what a broken channel has lost is said again on the next.
    loose: bool,
}

impl StreamWriter<Vec<u8>> {
    /// The checksums so far.
    fn seal(&mut self) -> Result<()> {
        let section = self.tally.section();
        let id = self.begin(kind::FULL, &section.name, section.instance, section.version)?;
        self.out.enter(section.label());
        section.write_to(&mut self.out)?;
        self.footer(id)
    }
}

impl<W: Write> StreamWriter<W> {
    /// Begins a stream of a machine of this type.
    ///
    /// # Errors
    /// The channel's.
    pub fn new(to: W, machine: &str, capabilities: &[&str]) -> Result<Self> {
        let mut out = Out::new(to);
        out.u32(MAGIC)?;
        out.u32(FILE_VERSION)?;
        out.enter("configuration");
        out.u8(kind::CONFIGURATION)?;
        out.u32(machine.len() as u32)?;
        out.bytes(machine.as_bytes())?;
        let mut subsections = String::new();
        if !capabilities.is_empty() {
            out.u8(kind::SUBSECTION)?;
            out.name(CAPABILITIES)?;
            out.u32(1)?;
            out.u32(capabilities.len() as u32)?;
            capabilities.iter().try_for_each(|name| out.name(name))?;
            let count = r#"{"name":"caps_count","type":"uint32","size":4}"#;
            let each = format!(
                r#"{{"name":"capabilities","array_len":{},"type":"capability","size":{}}}"#,
                capabilities.len(),
                capabilities[0].len()
            );
            subsections =
                format!(r#","subsections":[{{"vmsd_name":"{CAPABILITIES}","version":1,"fields":[{count},{each}]}}]"#);
        }
        let configuration = format!(
            r#"{{"vmsd_name":"configuration","version":1,"fields":[{{"name":"len","type":"uint32","size":4}},{{"name":"name","type":"buffer","size":{}}}]{subsections}}}"#,
            machine.len()
        );
        let mut tally = Tally::default();
        tally.part(CONFIGURATION.into(), [&[machine], capabilities].concat().join("\n").as_bytes());
        Ok(Self { out, next: 0, configuration, devices: Vec::new(), tally, loose: false })
    }

    /// What puts the bytes.
    pub fn out(&mut self) -> &mut Out<W> {
        &mut self.out
    }

    /// Bytes so far.
    pub fn offset(&self) -> u64 {
        self.out.offset()
    }

    /// An error here.
    pub(super) fn error(&self, fault: impl Into<Fault>) -> super::StreamError {
        self.out.error(fault)
    }

    /// A section of a part that is all there is of it.
    ///
    /// # Errors
    /// The channel's, or a name is too long.
    pub fn full(&mut self, section: &Section) -> Result<()> {
        self.tally.part(section.label(), &section.to_bytes()?);
        self.put(section)
    }

    fn put(&mut self, section: &Section) -> Result<()> {
        let id = self.begin(kind::FULL, &section.name, section.instance, section.version)?;
        self.out.enter(section.label());
        section.write_to(&mut self.out)?;
        self.devices.push(section.describe());
        self.footer(id)
    }

    /// Begins a part that comes in pieces; returns its number. Its first piece follows, then its footer.
    ///
    /// # Errors
    /// The channel's.
    pub(super) fn start(&mut self, name: &str, version: u32) -> Result<u32> {
        self.begin(kind::START, name, 0, version)
    }

    fn begin(&mut self, kind: u8, name: &str, instance: u32, version: u32) -> Result<u32> {
        let id = self.next;
        self.next += 1;
        self.out.enter(name);
        self.out.u8(kind)?;
        self.out.u32(id)?;
        self.out.name(name)?;
        self.out.u32(instance)?;
        self.out.u32(version)?;
        Ok(id)
    }

    /// A further piece, or the last one.
    pub(super) fn piece(&mut self, id: u32, last: bool) -> Result<()> {
        self.out.u8(if last { kind::END } else { kind::PART })?;
        self.out.u32(id)
    }

    pub(super) fn footer(&mut self, id: u32) -> Result<()> {
        self.out.u8(kind::FOOTER)?;
        self.out.u32(id)
    }

    /// Sections and commands as one message, which is to be read whole before any of it is used: `first`, then the checksums of all so far,
    /// then `last`. From here on commands have no part in the checksums. Nothing of it is written yet.
    ///
    /// # Errors
    /// A name is too long, or all of it is.
    pub fn package(
        &mut self,
        first: impl FnOnce(&mut StreamWriter<Vec<u8>>) -> Result<()>,
        last: impl FnOnce(&mut StreamWriter<Vec<u8>>) -> Result<()>,
    ) -> Result<Vec<u8>> {
        let (tally, devices) = (core::mem::take(&mut self.tally), core::mem::take(&mut self.devices));
        let out = Out::new(Vec::new());
        let mut inner =
            StreamWriter { out, next: self.next, configuration: String::new(), devices, tally, loose: false };
        let done = first(&mut inner).and_then(|()| inner.seal()).and_then(|()| {
            // The checksums count what comes before them.
            inner.loose = true;
            last(&mut inner)
        });
        (self.next, self.loose) = (inner.next, true);
        (self.tally, self.devices) = (core::mem::take(&mut inner.tally), core::mem::take(&mut inner.devices));
        let message = done.and_then(|()| inner.into_inner())?;
        match u32::try_from(message.len()) {
            Ok(..=MOST_PACKAGED) => Ok(message),
            _ => Err(self.out.error(too_long(message.len() as u64))),
        }
    }

    /// The stream goes on by this channel; the one before failed.
    pub fn replace(&mut self, to: W) {
        self.out.replace(to);
    }

    /// Tells the other end something between sections.
    ///
    /// # Errors
    /// The channel's.
    pub fn command(&mut self, command: u16, data: &[u8]) -> Result<()> {
        if !self.loose {
            self.tally.part(command_label(command), data);
        }
        self.out.enter("command");
        self.out.u8(kind::COMMAND)?;
        self.out.u16(command)?;
        self.out.u16(data.len() as u16)?;
        self.out.bytes(data)
    }

    /// RAM begins with this list.
    pub(super) fn listed(&mut self, blocks: &[ListedBlock]) {
        self.tally.part("the list of RAM".into(), &list_bytes(blocks));
    }

    /// All of RAM has been sent: these blocks.
    pub(super) fn sent(&mut self, blocks: impl Iterator<Item = (String, Arc<Checksums>)>) {
        self.tally.ram = Some(blocks.map(|(idstr, sums)| (idstr, sums.sum())).collect());
    }

    /// Ends the sections by their checksums, and describes them. All that was put is with the channel.
    ///
    /// # Errors
    /// The channel's.
    pub fn finish(&mut self) -> Result<()> {
        self.put(&self.tally.section())?;
        self.out.enter("VM description");
        self.out.u8(kind::EOF)?;
        let mut json = format!(
            r#"{{"configuration":{},"page_size":{PAGE_SIZE},"devices":[{}],"notdirty":{{"version":{},{COMPLETE}"#,
            self.configuration,
            self.devices.join(","),
            escaped(env!("CARGO_PKG_VERSION")),
        );
        json = format!("{json}{CHECKSUM}{:08x}\"}}}}", crc32fast::hash(json.as_bytes()));
        // QEMU's tool looks for the first brace behind the last zero byte: none may be in the length.
        while (json.len() as u32).to_be_bytes().contains(&b'{') {
            json.push(' ');
        }
        self.out.u8(kind::DESCRIPTION)?;
        self.out.u32(json.len() as u32)?;
        self.out.bytes(json.as_bytes())?;
        self.out.flush()
    }

    /// The channel.
    ///
    /// # Errors
    /// The channel's.
    pub fn into_inner(self) -> Result<W> {
        self.out.into_inner()
    }
}

fn too_long(len: u64) -> Fault {
    Fault::value(
        "the length of the message that the machine begins with",
        len,
        format_args!("at most {MOST_PACKAGED:#x}"),
    )
}

fn command_label(command: u16) -> String {
    format!("the command {command:#x}")
}

/// The list of RAM, for its checksum.
fn list_bytes(blocks: &[ListedBlock]) -> Vec<u8> {
    blocks.iter().flat_map(|block| [block.idstr.as_bytes(), &block.used_length.to_be_bytes()].concat()).collect()
}
