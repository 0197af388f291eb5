//! The contenders: each turns an ELF file into one run of a process and the guest's own line about it.

pub mod native;
pub mod ours;
pub mod qemu;
pub mod unicorn;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::host;
use crate::line::GuestLine;
use crate::rows::Row;

/// No bench guest takes that long anywhere; a run beyond it hangs.
const LIMIT: Duration = Duration::from_secs(120);

/// One contender, ready to run.
#[derive(Clone, Debug)]
pub struct Rival {
    /// Its name in the table.
    pub name: &'static str,
    /// The version it says it is.
    pub version: String,
    /// Program and arguments; the ELF file comes last.
    pub command: Vec<String>,
    /// Why its figures do not count, if they do not.
    pub does_not_count: Option<String>,
    /// Whether it takes traps: Unicorn does not.
    pub takes_traps: bool,
    /// The option for a count of harts; without one there is one hart.
    pub harts_option: Option<&'static str>,
}

/// One run of one kernel.
#[derive(Clone, Debug)]
pub struct Run {
    /// The guest's word.
    pub line: GuestLine,
    /// Host instructions of the whole process, where the host counts them and the program has one kernel.
    pub instructions: Option<u64>,
}

impl Rival {
    /// The same, which is ours, without an optimisation of the JIT.
    pub fn without(&self, switch: &str) -> Rival {
        let mut rival = self.clone();
        rival.command.extend(["--jit-off".into(), switch.into()]);
        rival
    }

    /// Why it cannot run a row, if so.
    pub fn cannot(&self, row: &Row) -> Option<&'static str> {
        if row.traps && !self.takes_traps {
            return Some("n/a: takes no traps");
        }
        (row.harts > 1 && self.harts_option.is_none()).then_some("n/a: has one hart")
    }

    /// Runs `elf` once, and has a run for each line it prints. An error is a sentence for the table's footnotes.
    pub fn run(&self, elf: &Path, harts: usize, perf: bool) -> Result<Vec<Run>, String> {
        let scratch = |what: &str| -> PathBuf {
            std::env::temp_dir().join(format!("notdirty-bench-{}-{what}", std::process::id()))
        };
        let (console, counts) = (scratch("console"), scratch("perf"));
        let mut words: Vec<String> = Vec::new();
        if perf {
            words.extend(["perf", "stat", "-x,", "-e", "instructions:u", "-o"].map(String::from));
            words.extend([counts.display().to_string(), "--".into()]);
        }
        // The file's name follows what comes last.
        let (last, rest) = self.command.split_last().ok_or_else(|| format!("{}: no command", self.name))?;
        words.extend(rest.iter().cloned());
        if let (2.., Some(option)) = (harts, self.harts_option) {
            words.extend([option.to_owned(), harts.to_string()]);
        }
        words.push(last.clone());
        let output = fs::File::create(&console).map_err(|e| format!("{}: {e}", console.display()))?;
        let mut child = Command::new(&words[0])
            .args(&words[1..])
            .arg(elf)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| format!("{}: {e}", words[0]))?;
        let started = Instant::now();
        let status = loop {
            match child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if started.elapsed() < LIMIT => std::thread::sleep(Duration::from_millis(5)),
                Ok(None) => {
                    child.kill().ok();
                    child.wait().ok();
                    return Err(format!("{}: {} did not end in {LIMIT:?}", self.name, elf.display()));
                }
                Err(e) => return Err(format!("{}: {e}", self.name)),
            }
        };
        let text = fs::read(&console).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        let instructions = fs::read_to_string(&counts).ok().and_then(|text| host::perf_instructions(&text));
        fs::remove_file(console).ok();
        fs::remove_file(counts).ok();
        if !status.success() {
            return Err(format!("{}: {} ended with {status}: {}", self.name, elf.display(), text.trim()));
        }
        let lines = GuestLine::find(&text);
        let instructions = instructions.filter(|_| lines.len() == 1);
        Ok(lines.into_iter().map(|line| Run { line, instructions }).collect())
    }
}
