//! A guest in QEMU: its board `virt` without firmware, one process for each.

use std::fs::OpenOptions;
use std::hash::{BuildHasher, RandomState};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{Outcome, PATIENCE, elf, ticks};
use crate::programs::GuestImage;

const QEMU: &str = "qemu-system-riscv64";

/// Why there is no QEMU, if there is none.
pub(super) fn missing() -> Option<String> {
    let status = Command::new(QEMU).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    match status {
        Ok(status) if status.success() => None,
        Ok(status) => Some(format!("{QEMU} --version ends with {status}")),
        Err(e) => Some(format!("{QEMU} cannot be started: {e}")),
    }
}

/// A file that is gone when the run is over.
struct Temp(PathBuf);

impl Temp {
    fn new(image: &GuestImage) -> std::io::Result<Temp> {
        // An unpredictable name, and a file that was not there: others may write to the directory.
        let random = RandomState::new().hash_one(std::process::id());
        let path = std::env::temp_dir().join(format!("notdirty-smc-{random:016x}.elf"));
        let mut file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        let temp = Temp(path);
        file.write_all(&elf(image))?;
        Ok(temp)
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Runs a guest; the time is what the guest prints.
pub(super) fn run(image: &GuestImage, harts: usize) -> (Outcome, Option<Duration>) {
    let result = Temp::new(image).and_then(|file| {
        let mut command = Command::new(QEMU);
        command.args(["-M", "virt", "-m", "128M", "-bios", "none", "-nographic", "-monitor", "none"]);
        command
            .args(["-smp", &harts.to_string(), "-kernel"])
            .arg(&file.0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn()?;
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match child.try_wait()? {
                Some(status) => break Some(status),
                None if Instant::now() > deadline => {
                    child.kill()?;
                    child.wait()?;
                    break None;
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        // A line, which any pipe holds until now.
        let mut printed = Vec::new();
        if let Some(mut out) = child.stdout.take() {
            out.read_to_end(&mut printed)?;
        }
        Ok((status, String::from_utf8_lossy(&printed).into_owned()))
    });
    match result {
        Err(e) => (Outcome::Crash(e.to_string()), None),
        Ok((None, _)) => (Outcome::Timeout, None),
        Ok((Some(status), printed)) => match status.code() {
            Some(0) => (Outcome::Pass, time(&printed)),
            Some(code) => (Outcome::by_code(code as u64), None),
            None => (Outcome::Crash(status.to_string()), None),
        },
    }
}

/// From `smc NAME pass 00000000 ticks 00001234`.
fn time(printed: &str) -> Option<Duration> {
    let (_, digits) = printed.rsplit_once(" ticks ")?;
    u64::from_str_radix(digits.trim(), 16).ok().map(ticks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_read_from_what_the_guest_prints() {
        assert_eq!(time("smc toggling pass 00000000 ticks 0000000a\n"), Some(Duration::from_micros(1)));
        assert_eq!(time(""), None);
        assert_eq!(time("smc toggling pass 00000000 ticks \n"), None);
    }
}
