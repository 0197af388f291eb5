//! What the figures were taken on: facts for the header.

use std::fs;
use std::process::{Command, Stdio};

/// Facts about this host, as far as it tells them.
#[derive(Clone, Debug)]
pub struct Host {
    /// The processor's name.
    pub cpu: String,
    /// How many run at once.
    pub cores: usize,
    /// The kernel's release.
    pub kernel: String,
    /// The commit that is measured, with a mark if the tree differs from it.
    pub commit: String,
    /// Load average of the last minute: how quiet it was not.
    pub load: String,
}

impl Host {
    /// Asks the host.
    pub fn look() -> Host {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name.to_owned()))
            .unwrap_or_else(|| "unknown".into());
        let commit = first_line("git", &["describe", "--always", "--dirty"]).unwrap_or_else(|| "unknown".into());
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Host {
            cpu,
            cores: std::thread::available_parallelism().map_or(1, |n| n.get()),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            commit,
            load: load.split(' ').next().unwrap_or_default().to_owned(),
        }
    }
}

/// The first line a command prints, if it runs and succeeds.
pub fn first_line(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    output.status.success().then(|| text.lines().next().map(str::to_owned)).flatten()
}

/// Whether `perf stat` can count instructions here; many virtual machines have no counters.
pub fn perf_counts_instructions() -> bool {
    let output = Command::new("perf").args(["stat", "-x,", "-e", "instructions:u", "true"]).output();
    output.is_ok_and(|output| perf_instructions(&String::from_utf8_lossy(&output.stderr)).is_some())
}

/// The count in what `perf stat -x,` wrote.
pub fn perf_instructions(text: &str) -> Option<u64> {
    text.lines().find(|line| line.contains("instructions"))?.split(',').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_that_is_not_there_is_no_count() {
        assert_eq!(perf_instructions("<not supported>,,instructions:u,0,100.00,,\n"), None);
        assert_eq!(perf_instructions("123456,,instructions:u,1000,100.00,,\n"), Some(123456));
    }
}
