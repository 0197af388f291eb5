//! Runs of the command, as many at once as there are cores.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Beyond any honest run here, in seconds; the command's own limit comes first and says where the guest was.
pub const LIMIT: u64 = 120;

/// How a program is run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Its name in tables.
    pub name: &'static str,
    /// The options that say so.
    pub options: &'static [&'static str],
}

/// The two engines, as a user asks for them.
pub const ENGINES: [Config; 2] = [
    Config { name: "jit", options: &["--engine", "jit"] },
    Config { name: "interp", options: &["--engine", "interp"] },
];

/// The same, for programs that are written for two.
pub const ENGINES_WITH_TWO_HARTS: [Config; 2] = [
    Config { name: "jit", options: &["--engine", "jit", "--smp", "2"] },
    Config { name: "interp", options: &["--engine", "interp", "--smp", "2"] },
];

/// One run.
pub struct Job {
    pub program: PathBuf,
    pub config: Config,
    /// Bytes of a word of the signature, if that is wanted.
    pub signature: Option<u64>,
}

/// What came of it.
#[derive(Default)]
pub struct Run {
    /// `None` if it had to be killed, or was never started.
    pub status: Option<ExitStatus>,
    pub output: String,
    pub errors: String,
    pub signature: Option<String>,
}

impl Run {
    /// Why it is no success, with the last lines that were printed.
    pub fn failed(&self) -> Option<String> {
        if self.status.is_some_and(|status| status.success()) {
            return None;
        }
        let status = self.status.map_or("killed, it did not end".into(), |status| status.to_string());
        let said = format!("{}{}", self.output, self.errors);
        let mut tail: Vec<&str> = said.lines().rev().take(4).collect();
        tail.push(&status);
        tail.reverse();
        Some(tail.join("\n    "))
    }
}

/// Every ELF file in `dir`, by its magic, sorted; empty if there is no such directory.
pub fn elves(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| is_elf(path)).collect();
    found.sort();
    found
}

pub fn is_elf(path: &Path) -> bool {
    use std::io::Read;
    let mut magic = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *b"\x7fELF"
}

/// The last part of a path.
pub fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Does `what` for every number below `count`, on all cores; the results in order.
pub fn in_parallel<T: Send>(count: usize, what: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(count)));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, |n| n.get()) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= count {
                        return;
                    }
                    let result = what(at);
                    done.lock().unwrap().push((at, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap();
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

/// Runs all of them; `limit` is one run's, in seconds. The results in the order of the jobs.
pub fn run_all(jobs: &[Job], limit: u64) -> Vec<Run> {
    in_parallel(jobs.len(), |at| run(&jobs[at], limit))
}

fn run(job: &Job, limit: u64) -> Run {
    let signature = Scratch::new("signature");
    let mut command = Command::new(env!("CARGO_BIN_EXE_notdirty"));
    command.arg("run").args(job.config.options).args(["--timeout", &limit.to_string()]).arg(&job.program);
    if let Some(granularity) = job.signature {
        command.arg("--signature").arg(&signature.0).args(["--signature-granularity", &granularity.to_string()]);
    }
    let run = capture(command, Duration::from_secs(limit + 30));
    Run { signature: job.signature.and_then(|_| fs::read_to_string(&signature.0).ok()), ..run }
}

/// QEMU with a program of no firmware on its board, if it is installed; its serial line is standard input and output.
pub fn qemu(program: &Path) -> Option<Command> {
    const QEMU: &str = "qemu-system-riscv64";
    let there = Command::new(QEMU).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !there.is_ok_and(|status| status.success()) {
        println!("SKIPPED {} in QEMU: no {QEMU}", name(program));
        return None;
    }
    let mut qemu = Command::new(QEMU);
    qemu.args(["-M", "virt", "-m", "128M", "-bios", "none", "-nographic", "-monitor", "none", "-semihosting"]);
    qemu.args(["-serial", "stdio", "-kernel"]).arg(program);
    Some(qemu)
}

/// Runs a command without input, and kills it when it takes longer than `limit`.
pub fn capture(command: Command, limit: Duration) -> Run {
    capture_with(command, Stdio::null(), limit)
}

/// The same with input.
pub fn capture_with(mut command: Command, input: Stdio, limit: Duration) -> Run {
    // Files and not pipes: nothing here can block on the other.
    let (output, errors) = (Scratch::new("stdout"), Scratch::new("stderr"));
    let mut child = command
        .stdin(input)
        .stdout(File::create(&output.0).expect("temporary file"))
        .stderr(File::create(&errors.0).expect("temporary file"))
        .spawn()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let status = wait(&mut child, Instant::now() + limit);
    Run { status, output: output.text(), errors: errors.text(), signature: None }
}

fn wait(child: &mut Child, deadline: Instant) -> Option<ExitStatus> {
    loop {
        match child.try_wait().expect("the child is ours") {
            Some(status) => return Some(status),
            None if Instant::now() > deadline => {
                child.kill().expect("the child is ours");
                child.wait().expect("the child is ours");
                return None;
            }
            None => thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// A path in the temporary directory, of a file that is gone when this is dropped.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(what: &str) -> Scratch {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Scratch(std::env::temp_dir().join(format!("notdirty-{}-{number}.{what}", std::process::id())))
    }

    /// What the file holds; nothing if it is not there.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.0).unwrap_or_default()).into_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
