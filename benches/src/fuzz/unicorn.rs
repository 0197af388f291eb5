//! The best loop known on Unicorn: `notdirty-unicorn-fuzz` of the package `notdirty-unicorn`; GPL-2.0-only, so a process.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::Row;
use super::guest::{self, Guest};

/// The program and its target's file, which goes with this.
#[derive(Debug)]
pub struct Unicorn {
    binary: PathBuf,
    file: PathBuf,
    place: [String; 2],
}

impl Unicorn {
    /// If `make unicorn` built it.
    pub fn find(target: &Path, guest: &Guest) -> Result<Option<Unicorn>, String> {
        let binary = target.join("notdirty-unicorn-fuzz");
        if !binary.is_file() {
            return Ok(None);
        }
        let file = std::env::temp_dir().join(format!("notdirty-bench-{}-fuzz", std::process::id()));
        std::fs::write(&file, &guest.bytes).map_err(|e| format!("{}: {e}", file.display()))?;
        let place = [guest.entry, guest.done].map(|addr| format!("{:#x}", addr - guest::BASE));
        Ok(Some(Unicorn { binary, file, place }))
    }

    /// Nanoseconds of a run; the guest alone, or with what puts memory and registers back.
    pub fn run(&self, row: &Row, alone: bool, time: Duration) -> Result<f64, String> {
        let mode = if alone { "alone" } else { "reset" };
        let numbers = [row.pages, row.rounds(), time.as_millis() as u64].map(|n| n.to_string());
        let output = Command::new(&self.binary)
            .arg(mode)
            .arg(&self.file)
            .args(&self.place)
            .args(numbers)
            .output()
            .map_err(|e| format!("{}: {e}", self.binary.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let wanted = format!("t2={:#x} word={} ", guest::expected(row.rounds()), row.pages);
        let ns = text.strip_prefix(&wanted).and_then(|text| text.trim().strip_prefix("ns=")?.parse().ok());
        ns.filter(|_| output.status.success()).ok_or_else(|| {
            format!("{}: Unicorn says {} {}", row.name, text.trim(), String::from_utf8_lossy(&output.stderr).trim())
        })
    }
}

impl Drop for Unicorn {
    fn drop(&mut self) {
        std::fs::remove_file(&self.file).ok();
    }
}
