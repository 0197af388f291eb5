//! Two QEMUs, by the machine protocol on their sockets.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::bare::Socket;
use super::kept::Kept;
use super::rows::{Move, Way};
use super::{EARLY, Moved, WARM, free_port};

/// A process that ends with this.
struct Qemu {
    child: Child,
    talk: BufReader<UnixStream>,
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Qemu {
    fn start(dir: &Path, name: &str, elf: &Path, memory: &str, more: &[&str]) -> Result<Qemu, String> {
        let socket = dir.join(name);
        let mut command = Command::new("qemu-system-riscv64");
        command.args(["-M", "virt", "-bios", "none", "-display", "none", "-serial", "null", "-m", memory, "-kernel"]);
        command.arg(elf).args(["-qmp", &format!("unix:{},server=on,wait=off", socket.display())]).args(more);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut child = child.map_err(|why| format!("QEMU: {why}"))?;
        let until = Instant::now() + Duration::from_secs(10);
        let talk = loop {
            match UnixStream::connect(&socket) {
                Ok(talk) => break talk,
                Err(why) if Instant::now() > until => {
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(format!("QEMU's socket: {why}"));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        let _ = talk.set_read_timeout(Some(Duration::from_secs(20)));
        let mut qemu = Qemu { child, talk: BufReader::new(talk) };
        qemu.line()?;
        qemu.call(r#"{"execute":"qmp_capabilities"}"#)?;
        Ok(qemu)
    }

    fn line(&mut self) -> Result<String, String> {
        let mut line = String::new();
        self.talk.read_line(&mut line).map_err(|why| format!("QEMU: {why}"))?;
        if line.is_empty() { Err("QEMU ended".into()) } else { Ok(line) }
    }

    /// The line with the answer.
    fn call(&mut self, what: &str) -> Result<String, String> {
        let sent = self.talk.get_mut().write_all(format!("{what}\n").as_bytes());
        sent.map_err(|why| format!("QEMU: {why}"))?;
        loop {
            let line = self.line()?;
            if line.contains("\"error\"") {
                return Err(format!("QEMU: {}", line.trim()));
            }
            if line.contains("\"return\"") {
                return Ok(line);
            }
        }
    }

    fn set(&mut self, parameter: &str) -> Result<(), String> {
        let call = format!(r#"{{"execute":"migrate-set-parameters","arguments":{{{parameter}}}}}"#);
        self.call(&call).map(drop)
    }

    fn capability(&mut self, name: &str) -> Result<(), String> {
        let set = format!(r#"{{"capability":"{name}","state":true}}"#);
        let call = format!(r#"{{"execute":"migrate-set-capabilities","arguments":{{"capabilities":[{set}]}}}}"#);
        self.call(&call).map(drop)
    }
}

/// The number behind a name, in an answer.
fn number(text: &str, name: &str) -> Option<f64> {
    let (_, rest) = text.split_once(&format!("\"{name}\": "))?;
    rest.split([',', '}']).next()?.trim().parse().ok()
}

/// One migration. The memory of both sides is given free just before they take it.
pub(super) fn run(
    what: &Move,
    way: Way,
    elf: &Path,
    dir: &Path,
    source_memory: Kept,
    target_memory: Kept,
) -> Result<Moved, String> {
    let memory = format!("{}M", what.memory_mib());
    let uri = match way {
        Way::Mapped(_) => format!("file:{}", dir.join("qemu-file").display()),
        Way::Stream(Socket::Tcp) | Way::Postcopy(Socket::Tcp) => format!("tcp:127.0.0.1:{}", free_port()?),
        _ => format!("unix:{}", dir.join("qemu-sock").display()),
    };
    let mut target = match way {
        Way::Mapped(_) => None,
        _ => Some(Qemu::start(dir, "qemu-dst", elf, &memory, &["-incoming", "defer"])?),
    };
    drop(source_memory);
    let mut source = Qemu::start(dir, "qemu-src", elf, &memory, &[])?;
    std::thread::sleep(WARM - EARLY);
    // No limit, in a number that it takes.
    source.set(r#""max-bandwidth":2305843009213693951"#)?;
    if what.converge {
        source.capability("auto-converge")?;
    }
    for qemu in [Some(&mut source), target.as_mut()].into_iter().flatten() {
        let channels = match way {
            Way::Multifd(channels) | Way::Mapped(channels) => channels,
            Way::Stream(_) | Way::Postcopy(_) => 0,
        };
        if let Way::Postcopy(_) = way {
            qemu.capability("postcopy-ram")?;
        }
        if let Way::Mapped(_) = way {
            qemu.capability("mapped-ram")?;
        }
        if channels != 0 {
            qemu.capability("multifd")?;
            qemu.set(&format!(r#""multifd-channels":{channels}"#))?;
        }
    }
    if let Some(target) = &mut target {
        target.call(&format!(r#"{{"execute":"migrate-incoming","arguments":{{"uri":"{uri}"}}}}"#))?;
    }
    drop(target_memory);
    std::thread::sleep(EARLY);
    let start = Instant::now();
    source.call(&format!(r#"{{"execute":"migrate","arguments":{{"uri":"{uri}"}}}}"#))?;
    if let Way::Postcopy(_) = way {
        // It is refused until the stream has begun.
        while source.call(r#"{"execute":"migrate-start-postcopy"}"#).is_err() {
            if start.elapsed() > Duration::from_secs(10) {
                return Err("QEMU: postcopy does not begin".into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    loop {
        let answer = source.call(r#"{"execute":"query-migrate"}"#)?;
        if answer.contains("\"status\": \"completed\"") {
            let field = |name| number(&answer, name).ok_or_else(|| format!("QEMU says no {name}"));
            return Ok(Moved {
                total: field("total-time")?,
                downtime: field("downtime")?,
                megabytes: field("transferred")? / 1e6,
                late: None,
            });
        }
        if answer.contains("\"status\": \"failed\"") {
            return Err(format!("QEMU: {}", answer.trim()));
        }
        if start.elapsed() > Duration::from_secs(60) {
            return Err("QEMU: it did not end in 60 s".into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
