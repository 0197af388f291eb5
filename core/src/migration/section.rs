//! A device section: named values, which say themselves how they are laid out.
//!
//! ```text
//!   payload   layout: be16 fields, each: byte len, name │ byte kind │ be32 count        then the values, in that order
//! ```
//!
//! QEMU's payloads have no lengths, so a reader must know each of them byte by byte, and an older file cannot say what it lacks. Here
//! the first field of each payload is its layout, to QEMU's tools a field of bytes like any other. So each field is found by its name,
//! a section that nothing knows can be shown, and an error names the field.

use super::wire::{Fault, In, Out, Result};
use std::io::{Read, Write};

/// A value of a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FieldValue {
    /// A truth.
    Bool(bool),
    /// A byte.
    U8(u8),
    /// A number.
    U32(u32),
    /// A number.
    U64(u64),
    /// Some bytes.
    Bytes(Vec<u8>),
    /// Some numbers.
    U64s(Vec<u64>),
}

impl FieldValue {
    /// What kind of value it is.
    pub fn kind(&self) -> &'static str {
        KINDS[usize::from(self.tag())].0
    }

    fn tag(&self) -> u8 {
        match self {
            FieldValue::Bool(_) => 0,
            FieldValue::U8(_) => 1,
            FieldValue::U32(_) => 2,
            FieldValue::U64(_) => 3,
            FieldValue::Bytes(_) => 4,
            FieldValue::U64s(_) => 5,
        }
    }

    fn count(&self) -> u32 {
        match self {
            FieldValue::Bytes(bytes) => bytes.len() as u32,
            FieldValue::U64s(numbers) => numbers.len() as u32,
            _ => 1,
        }
    }
}

/// By tag: what it is called, and in QEMU's description; bytes of one.
const KINDS: [(&str, &str, u32); 6] = [
    ("a truth", "bool", 1),
    ("a byte", "uint8", 1),
    ("a 32-bit number", "uint32", 4),
    ("a 64-bit number", "uint64", 8),
    ("bytes", "buffer", 1),
    ("64-bit numbers", "uint64", 8),
];

/// A field with its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Its name, of 1 to 255 bytes.
    pub name: String,
    /// What it is.
    pub value: FieldValue,
}

/// What one part of a machine remembers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// What kind of part.
    pub name: String,
    /// Which of that kind.
    pub instance: u32,
    /// Of what it remembers.
    pub version: u32,
    /// In the order of the stream.
    pub fields: Vec<Field>,
}

impl Section {
    /// `cpu 1`, as errors name it.
    pub fn label(&self) -> String {
        format!("{} {}", self.name, self.instance)
    }

    /// The value of a field, if there is one of this name.
    pub fn get(&self, name: &str) -> Option<&FieldValue> {
        self.fields.iter().find(|field| field.name == name).map(|field| &field.value)
    }

    /// All that it says, as bytes.
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut out = Out::new(Vec::new());
        out.name(&self.name)?;
        out.u32(self.instance)?;
        out.u32(self.version)?;
        self.write_to(&mut out)?;
        out.into_inner()
    }

    fn layout(&self) -> Vec<u8> {
        let mut layout = (self.fields.len() as u16).to_be_bytes().to_vec();
        for field in &self.fields {
            layout.push(field.name.len() as u8);
            layout.extend_from_slice(field.name.as_bytes());
            layout.push(field.value.tag());
            layout.extend_from_slice(&field.value.count().to_be_bytes());
        }
        layout
    }

    pub(super) fn write_to<W: Write>(&self, out: &mut Out<W>) -> Result<()> {
        out.bytes(&self.layout())?;
        self.fields.iter().try_for_each(|field| match &field.value {
            FieldValue::Bool(value) => out.u8(u8::from(*value)),
            FieldValue::U8(value) => out.u8(*value),
            FieldValue::U32(value) => out.u32(*value),
            FieldValue::U64(value) => out.u64(*value),
            FieldValue::Bytes(bytes) => out.bytes(bytes),
            FieldValue::U64s(numbers) => numbers.iter().try_for_each(|number| out.u64(*number)),
        })
    }

    /// The fields of a payload, name and version as they were read before.
    pub(super) fn read_from<R: Read>(name: String, instance: u32, version: u32, from: &mut In<R>) -> Result<Section> {
        let mut section = Section { name, instance, version, fields: Vec::new() };
        let mut kinds: Vec<(String, u8, u32)> = Vec::new();
        for _ in 0..from.u16()? {
            let name = from.name("a field")?;
            let tag = from.u8()?;
            if usize::from(tag) >= KINDS.len() {
                return Err(from.error(Fault::value("the kind of a field", tag, "at most 5")));
            }
            let count = from.u32()?;
            if tag < 4 && count != 1 {
                return Err(from.error(Fault::value("the count of a single field", count, "1")));
            }
            kinds.push((name, tag, count));
        }
        for (name, tag, count) in kinds {
            let value = match tag {
                0 => match from.u8()? {
                    value @ (0 | 1) => FieldValue::Bool(value == 1),
                    value => return Err(from.error(Fault::value("a truth", value, "0 or 1"))),
                },
                1 => FieldValue::U8(from.u8()?),
                2 => FieldValue::U32(from.u32()?),
                3 => FieldValue::U64(from.u64()?),
                4 => FieldValue::Bytes(from.bytes(count.into())?),
                _ => {
                    // As they come: a count alone takes no memory.
                    let mut numbers = Vec::new();
                    for _ in 0..count {
                        numbers.push(from.u64()?);
                    }
                    FieldValue::U64s(numbers)
                }
            };
            section.fields.push(Field { name, value });
        }
        Ok(section)
    }

    /// As QEMU's tools want it described.
    pub(super) fn describe(&self) -> String {
        let mut fields = vec![format!(r#"{{"name":"layout","type":"buffer","size":{}}}"#, self.layout().len())];
        fields.extend(self.fields.iter().map(|field| {
            let (_, kind, size) = KINDS[usize::from(field.value.tag())];
            let name = escaped(&field.name);
            match &field.value {
                // An array of none reads one to those tools.
                FieldValue::U64s(numbers) if !numbers.is_empty() => {
                    format!(r#"{{"name":{name},"array_len":{},"type":"{kind}","size":{size}}}"#, numbers.len())
                }
                FieldValue::Bytes(bytes) => format!(r#"{{"name":{name},"type":"{kind}","size":{}}}"#, bytes.len()),
                FieldValue::U64s(_) => format!(r#"{{"name":{name},"type":"buffer","size":0}}"#),
                _ => format!(r#"{{"name":{name},"type":"{kind}","size":{size}}}"#),
            }
        }));
        let (name, fields) = (escaped(&self.name), fields.join(","));
        format!(
            r#"{{"name":{name},"instance_id":{},"vmsd_name":{name},"version":{},"fields":[{fields}]}}"#,
            self.instance, self.version
        )
    }
}

/// A text of JSON.
pub(super) fn escaped(text: &str) -> String {
    let mut json = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => json.extend(['\\', c]),
            c if u32::from(c) < 0x20 => json.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => json.push(c),
        }
    }
    json.push('"');
    json
}
