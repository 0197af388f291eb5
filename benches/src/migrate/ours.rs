//! Two of our processes, as a user starts them.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::bare::Socket;
use super::kept::Kept;
use super::rows::{Move, Way};
use super::{EARLY, Moved, WARM, free_port};

/// How long a guest that came by postcopy runs at its target, at most: its pages are there long before.
const LATE: &str = "8";

/// A process that ends with this.
struct Process(Child);

impl Process {
    /// What it has said, at its end.
    fn end(mut self) -> Result<String, String> {
        let mut text = String::new();
        let mut told = self.0.stdout.take().ok_or("no standard output")?;
        told.read_to_string(&mut text).map_err(|why| format!("the target: {why}"))?;
        Ok(text)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The number behind a name.
fn number(text: &str, name: &str) -> Result<f64, String> {
    let found = text.split_once(&format!("\"{name}\":")).and_then(|(_, rest)| rest.split([',', '}']).next());
    found.and_then(|number| number.parse().ok()).ok_or_else(|| format!("no {name} in {text}"))
}

/// One migration. The memory of both sides is given free just before they take it.
pub(super) fn run(
    what: &Move,
    way: Way,
    elf: &Path,
    dir: &Path,
    target: &Path,
    source_memory: Kept,
    target_memory: Kept,
) -> Result<Moved, String> {
    let binary = target.join("notdirty");
    let uri = match way {
        Way::Mapped(_) => format!("file:{}", dir.join("our-file").display()),
        Way::Stream(Socket::Tcp) | Way::Postcopy(Socket::Tcp) => format!("tcp:127.0.0.1:{}", free_port()?),
        _ => format!("unix:{}", dir.join("our-sock").display()),
    };
    let late = matches!(way, Way::Postcopy(_));
    let other = match way {
        Way::Mapped(_) => None,
        _ => {
            let mut command = Command::new(&binary);
            command.args(["run", "--incoming", &uri]);
            if late {
                command.args(["--json", "--timeout", LATE]);
            }
            let told = if late { Stdio::piped() } else { Stdio::null() };
            let child = command.stdin(Stdio::null()).stdout(told).stderr(Stdio::null()).spawn();
            Some(Process(child.map_err(|why| format!("notdirty: {why}"))?))
        }
    };
    let mut command = Command::new(&binary);
    command.arg("run").arg(elf).args(["-m", &format!("{}M", what.memory_mib()), "--json", "--timeout", "60"]);
    command.args(["--migrate", &format!("{uri}@{}ms", WARM.as_millis())]);
    match way {
        Way::Stream(_) => {}
        Way::Multifd(channels) => drop(command.args(["--multifd", &channels.to_string()])),
        Way::Mapped(_) => drop(command.arg("--mapped-ram")),
        Way::Postcopy(_) => drop(command.arg("--postcopy")),
    }
    if what.converge {
        command.arg("--auto-converge");
    }
    drop(source_memory);
    let source = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let source = source.map_err(|why| format!("notdirty: {why}"))?;
    std::thread::sleep(WARM - EARLY);
    drop(target_memory);
    let output = source.wait_with_output().map_err(|why| format!("notdirty: {why}"))?;
    // It says how its pages came once its guest has ended.
    let there = other.filter(|_| late).map(Process::end).transpose()?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        return Err(format!("notdirty: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(Moved {
        total: number(&text, "total_ms")?,
        downtime: number(&text, "downtime_ms")?,
        megabytes: number(&text, "bytes")? / 1e6,
        late: there.map(|text| Ok::<_, String>((number(&text, "missing")?, number(&text, "faults")?))).transpose()?,
    })
}
