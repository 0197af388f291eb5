//! `snapshot` and `info`: a machine in a file.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use notdirty_core::migration::FieldValue;

use super::args::Args;
use super::plug::After;
use super::{Code, complain, print, refuse_migration, say};
use crate::machine::{Machine, MachineExit, SnapshotInfo, snapshot_info};

/// Did the run end because it is time for the snapshot, and not by a limit of the user's?
pub(super) fn is_time(args: &Args, machine: &Machine, exit: MachineExit, start: Instant) -> bool {
    match (args.at, exit) {
        (Some(After::Insns(count)), MachineExit::InsnLimit) => {
            (0..machine.harts()).any(|hart| machine.vcpu(hart).is_some_and(|vcpu| vcpu.cpu().retired >= count))
        }
        (Some(After::Time(time)), MachineExit::Deadline) => start.elapsed() >= time,
        // It sleeps, and is as it will be then.
        (Some(_), MachineExit::Hung) => true,
        _ => false,
    }
}

/// Writes it.
pub(super) fn write(machine: &mut Machine, name: &str, file: &Path, json: bool) -> ExitCode {
    let done = match machine.snapshot(file) {
        Ok(done) => done,
        Err(why) => return refuse_migration(name, &why),
    };
    let retired = machine.stats().retired;
    let ms = done.time.as_secs_f64() * 1e3;
    if json {
        let (pages, zero, length) = (done.pages, done.zero_pages, done.length);
        return print(&format!(
            "{{\"pages\":{pages},\"zero_pages\":{zero},\"length\":{length},\"retired\":{retired},\"ms\":{ms:.1}}}\n"
        ));
    }
    say(&format!(
        "{}: after {retired} instructions, {} pages and {} of zeros, in {ms:.1} ms",
        file.display(),
        done.pages,
        done.zero_pages,
    ));
    Code::Success.into()
}

/// Tells what is in a file.
pub(super) fn info(file: &Path, json: bool) -> ExitCode {
    match snapshot_info(file) {
        Ok(info) if json => print(&info.to_json()),
        Ok(info) => print(&info.to_text()),
        Err(why) if json => complain(Code::Input, &format!("{}: {why}", file.display())),
        Err(why) => refuse_migration(&file.display().to_string(), &why),
    }
}

fn text_of(value: &FieldValue) -> String {
    match value {
        FieldValue::Bool(value) => value.to_string(),
        FieldValue::U8(value) => value.to_string(),
        FieldValue::U32(value) => value.to_string(),
        FieldValue::U64(value) => format!("{value:#x}"),
        FieldValue::Bytes(bytes) => String::from_utf8_lossy(bytes).escape_debug().to_string(),
        FieldValue::U64s(numbers) => numbers.iter().map(|number| format!("{number:#x}")).collect::<Vec<_>>().join(" "),
    }
}

fn json_of(value: &FieldValue) -> String {
    match value {
        FieldValue::Bool(value) => value.to_string(),
        FieldValue::U8(value) => value.to_string(),
        FieldValue::U32(value) => value.to_string(),
        FieldValue::U64(value) => value.to_string(),
        FieldValue::Bytes(bytes) => format!("{bytes:?}"),
        FieldValue::U64s(numbers) => format!("{numbers:?}"),
    }
}

/// A text of JSON. Names in a stream are text, of whatever kind.
fn quoted(text: &str) -> String {
    let mut json = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => json.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(json, "\\u{:04x}", u32::from(c));
            }
            c => json.push(c),
        }
    }
    json + "\""
}

impl SnapshotInfo {
    fn to_text(&self) -> String {
        let layout = if self.mapped_ram { "mapped-ram" } else { "stream" };
        let mut text = format!("machine {}, {layout}\n", self.machine);
        for (block, pages) in &self.blocks {
            let all = block.used_length >> 12;
            let _ = writeln!(
                text,
                "RAM block {}: {} KiB, {pages} pages of {all} are not zero",
                block.idstr,
                block.used_length >> 10
            );
        }
        for section in &self.sections {
            let _ = writeln!(text, "{} {}, version {}", section.name, section.instance, section.version);
            for field in &section.fields {
                let _ = writeln!(text, "  {:<22} {}", field.name, text_of(&field.value));
            }
        }
        text
    }

    fn to_json(&self) -> String {
        let blocks: Vec<_> = self
            .blocks
            .iter()
            .map(|(block, pages)| {
                format!("{{\"idstr\":{},\"length\":{},\"pages\":{pages}}}", quoted(&block.idstr), block.used_length)
            })
            .collect();
        let sections: Vec<_> = self
            .sections
            .iter()
            .map(|section| {
                let fields: Vec<_> = section
                    .fields
                    .iter()
                    .map(|field| format!("{}:{}", quoted(&field.name), json_of(&field.value)))
                    .collect();
                format!(
                    "{{\"name\":{},\"instance\":{},\"version\":{},\"fields\":{{{}}}}}",
                    quoted(&section.name),
                    section.instance,
                    section.version,
                    fields.join(",")
                )
            })
            .collect();
        format!(
            "{{\"machine\":{},\"mapped_ram\":{},\"blocks\":[{}],\"sections\":[{}]}}\n",
            quoted(&self.machine),
            self.mapped_ram,
            blocks.join(","),
            sections.join(",")
        )
    }
}
