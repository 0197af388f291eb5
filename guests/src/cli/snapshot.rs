//! `snapshot`, `squash` and `info`: a machine in files.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use notdirty_core::migration::FieldValue;

use super::args::Args;
use super::{Code, print, refuse_migration, say};
use notdirty_tcg::RunLimits;

use crate::machine::{
    Machine, MachineExit, Snapshot, SnapshotChain, SnapshotInfo, SnapshotOptions, snapshot_info, squash_by,
};

/// The files of one run: SNAPSHOT, and for each further `--at` SNAPSHOT.1, SNAPSHOT.2, … with what changed since.
pub(super) struct Files<'a> {
    args: &'a Args,
    name: &'a str,
    start: Instant,
    done: usize,
    chain: Option<SnapshotChain>,
}

impl<'a> Files<'a> {
    pub(super) fn new(args: &'a Args, name: &'a str, start: Instant) -> Self {
        Files { args, name, start, done: 0, chain: None }
    }

    /// The limits up to the next of them.
    pub(super) fn limits(&self, own: RunLimits) -> RunLimits {
        self.args.at.get(self.done).map_or(own, |at| at.within(self.start, &own))
    }

    /// Did the run end because it is time for the next one, and not by a limit of the user's?
    pub(super) fn is_time(&self, machine: &Machine, exit: MachineExit) -> bool {
        self.args.at.get(self.done).is_some_and(|at| at.has_come(machine, exit, self.start))
    }

    /// Writes it. The exit code, if there is no more to do.
    pub(super) fn write(&mut self, machine: &mut Machine) -> Option<ExitCode> {
        let file = self.file()?;
        let done = match &mut self.chain {
            Some(chain) => machine.snapshot_next(chain, &file),
            None if self.args.at.len() > 1 => machine.snapshot_chain(&file).map(|(chain, done)| {
                self.chain = Some(chain);
                done
            }),
            None => machine.snapshot(&file),
        };
        let told = match done {
            Ok(done) => tell(&done, &file, Some(machine.stats().retired), self.args.json),
            Err(why) => return Some(refuse_migration(self.name, &why)),
        };
        self.done += 1;
        (self.done == self.args.at.len()).then_some(told)
    }

    fn file(&self) -> Option<PathBuf> {
        let mut file = self.args.output.clone()?.into_os_string();
        if self.done > 0 {
            file.push(format!(".{}", self.done));
        }
        Some(file.into())
    }
}

/// Says what was written.
fn tell(done: &Snapshot, file: &Path, retired: Option<u64>, json: bool) -> ExitCode {
    let Snapshot { pages, zero_pages, whole, length, time, .. } = *done;
    let ms = time.as_secs_f64() * 1e3;
    if json {
        let retired = retired.map(|retired| format!("\"retired\":{retired},")).unwrap_or_default();
        let file = quoted(&file.display().to_string());
        return print(&format!(
            "{{\"file\":{file},\"pages\":{pages},\"zero_pages\":{zero_pages},\"whole\":{whole},\"length\":{length},{retired}\"ms\":{ms:.1}}}\n"
        ));
    }
    let after = retired.map(|retired| format!("after {retired} instructions, ")).unwrap_or_default();
    let since = if whole { "" } else { " written since the last file" };
    say(&format!("{}: {after}{pages} pages and {zero_pages} of zeros{since}, in {ms:.1} ms", file.display()));
    Code::Success.into()
}

/// A chain of files becomes one.
pub(super) fn squash_to(last: &Path, to: &Path, options: SnapshotOptions, json: bool) -> ExitCode {
    match squash_by(last, to, options) {
        Ok(done) => tell(&done, to, None, json),
        Err(why) => refuse_migration(&last.display().to_string(), &why),
    }
}

/// Tells what is in a file.
pub(super) fn info(file: &Path, json: bool) -> ExitCode {
    match snapshot_info(file) {
        Ok(info) if json => print(&info.to_json()),
        Ok(info) => print(&info.to_text()),
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
pub(super) fn quoted(text: &str) -> String {
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
