//! Two of our processes, as a user starts them.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{Moved, Row, Way};

/// A process that ends with this.
struct Process(Child);

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

/// One migration.
pub(super) fn run(row: &Row, elf: &Path, dir: &Path, target: &Path, warm: Duration) -> Result<Moved, String> {
    let binary = target.join("notdirty");
    let uri = match row.way {
        Way::Mapped => format!("file:{}", dir.join("our-file").display()),
        _ => format!("unix:{}", dir.join("our-sock").display()),
    };
    let other = match row.way {
        Way::Mapped => None,
        _ => {
            let mut command = Command::new(&binary);
            command.args(["run", "--incoming", &uri]);
            let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
            Some(Process(child.map_err(|why| format!("notdirty: {why}"))?))
        }
    };
    let mut command = Command::new(&binary);
    command.arg("run").arg(elf).args(["-m", &format!("{}M", row.memory_mib()), "--json", "--timeout", "90"]);
    command.args(["--migrate", &format!("{uri}@{}ms", warm.as_millis())]);
    match row.way {
        Way::Stream => {}
        Way::Multifd(channels) => drop(command.args(["--multifd", &channels.to_string()])),
        Way::Mapped => drop(command.arg("--mapped-ram")),
    }
    let output = command.stdin(Stdio::null()).stderr(Stdio::piped()).output();
    let output = output.map_err(|why| format!("notdirty: {why}"))?;
    drop(other);
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        return Err(format!("notdirty: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(Moved {
        total: number(&text, "total_ms")?,
        downtime: number(&text, "downtime_ms")?,
        megabytes: number(&text, "bytes")? / 1e6,
    })
}
