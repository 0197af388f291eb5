//! `smc-test DIR`: the guests that `notdirty smc-test --emit DIR` wrote, in Unicorn, each in a process of its own; and
//! the cases in which the host writes.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::host;

/// How long a guest may take before it counts as one that never ends.
const PATIENCE: Duration = Duration::from_secs(20);
/// The exit code of this program for a trap that Unicorn does not pass on to the guest.
pub const TRAP: u8 = 125;
/// The exit code of a guest that trapped and told so itself.
const GUEST_TRAP: i32 = 99;

/// Runs every `.elf` file in the directory and prints a table; true if all passed. An error is a sentence.
pub fn run(dir: &Path) -> Result<bool, String> {
    let unreadable = |error| format!("{}: {error}", dir.display());
    let entries = std::fs::read_dir(dir).map_err(unreadable)?;
    let mut files: Vec<PathBuf> =
        entries.map(|entry| Ok(entry?.path())).collect::<Result<_, _>>().map_err(unreadable)?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "elf"));
    files.sort();
    if files.is_empty() {
        return Err(format!("{}: no .elf files (notdirty smc-test --emit writes them)", dir.display()));
    }
    let mut failed = 0;
    for file in &files {
        let result = one(file).unwrap_or_else(|error| format!("CRASH: {error}"));
        failed += usize::from(!result.starts_with("pass"));
        println!("{:26}  {result}", file.file_stem().unwrap_or_default().display());
    }
    for (name, case) in host::CASES {
        let result = case();
        failed += usize::from(result.is_err());
        println!("{name:26}  {}", result.err().unwrap_or("pass".into()));
    }
    println!("{} passed, {failed} failed", files.len() + host::CASES.len() - failed);
    Ok(failed == 0)
}

/// One guest, in a process of its own: it may take Unicorn down with it.
fn one(file: &Path) -> std::io::Result<String> {
    let mut command = Command::new(std::env::current_exe()?);
    let mut child = command.arg(file).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return Ok("TIMEOUT".into());
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    // A line, which any pipe holds until now: `smc NAME pass 00000000 ticks 00001234`.
    let mut printed = String::new();
    if let Some(mut out) = child.stdout.take() {
        out.read_to_string(&mut printed)?;
    }
    let ticks = printed.rsplit_once(" ticks ").and_then(|(_, digits)| u64::from_str_radix(digits.trim(), 16).ok());
    let time = ticks.map_or_else(String::new, |ticks| format!("  {:.1} us", ticks as f64 / 10.0));
    Ok(match status.code() {
        Some(0) => format!("pass{time}"),
        Some(code) if code == i32::from(TRAP) => "FAIL: a trap, which Unicorn does not pass on".into(),
        Some(GUEST_TRAP) => "FAIL: a trap that nobody meant".into(),
        Some(code) => format!("WRONG VALUE, check {code}"),
        None => format!("CRASH: {status}"),
    })
}
