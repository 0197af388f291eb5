//! The command moves guests between processes: programs that check themselves come to the same end, and a process that is killed
//! takes nothing along.

use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use notdirty::smc_test;

const NOTDIRTY: &str = env!("CARGO_BIN_EXE_notdirty");

/// A directory that goes with the test.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Dir {
        let dir = std::env::temp_dir().join(format!("notdirty-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Dir(dir)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn start(args: &[&str]) -> Child {
    let mut command = Command::new(NOTDIRTY);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn incoming(uri: &str, socket: &Path) -> Child {
    let child = start(&["run", "--incoming", uri, "--timeout", "60"]);
    let until = Instant::now() + Duration::from_secs(20);
    while !socket.exists() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(2));
    }
    child
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Whether the source says that the machine is elsewhere, and not that it could not go.
fn has_moved(source: &Output) -> bool {
    text(source).contains(": moved to")
}

/// Our kernel with its page tables, if it was built: it prints what it prints, some here and some there.
#[test]
fn a_kernel_prints_the_same_in_two_processes_as_in_one() {
    let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/build/quick");
    for (name, harts) in [("kernel.elf", "1"), ("kernel-2h.elf", "2")] {
        let elf = build.join(name);
        if !elf.is_file() {
            println!("SKIPPED: no {} (make guests)", elf.display());
            return;
        }
        let elf = elf.display().to_string();
        let alone = start(&["run", &elf, "--smp", harts, "-m", "32M"]).wait_with_output().unwrap();
        let dir = Dir::new(name);
        {
            let after = "20ms";
            let socket = dir.0.join(after);
            let uri = format!("unix:{}", socket.display());
            let target = incoming(&uri, &socket);
            let go = format!("{uri}@{after}");
            let source =
                start(&["run", &elf, "--smp", harts, "-m", "32M", "--migrate", &go]).wait_with_output().unwrap();
            if !has_moved(&source) {
                // It was done before: then nothing came there.
                assert_eq!(source.stdout, alone.stdout);
                let mut target = target;
                let _ = target.kill();
                let _ = target.wait();
                continue;
            }
            let target = target.wait_with_output().unwrap();
            assert_eq!(target.status.code(), alone.status.code(), "{}", text(&target));
            let printed = [source.stdout, target.stdout].concat();
            assert_eq!(String::from_utf8_lossy(&printed), String::from_utf8_lossy(&alone.stdout), "{name} {after}");
        }
    }
}

/// The target's last answer is lost: nothing says whether it runs, so the machine does not run here, and is kept for the user.
#[test]
fn a_machine_of_which_nothing_says_whether_it_runs_there_is_kept_in_a_file() {
    let dir = Dir::new("kept");
    let [elf, front, behind, kept] = ["timer.elf", "front", "behind", "kept"].map(|name| dir.0.join(name));
    std::fs::write(&elf, smc_test::elf(&notdirty::programs::timer::timer_irq(2000, 3000))).unwrap();
    let (elf, kept) = (elf.display().to_string(), kept.display().to_string());
    let listener = UnixListener::bind(&front).unwrap();
    let target = incoming(&format!("unix:{}", behind.display()), &behind);
    let between = std::thread::spawn(move || {
        let (mut ours, theirs) = (listener.accept().unwrap().0, UnixStream::connect(behind).unwrap());
        let (mut from, mut to) = (ours.try_clone().unwrap(), theirs.try_clone().unwrap());
        let there = std::thread::spawn(move || std::io::copy(&mut from, &mut to));
        let mut answer = [0; 8];
        // PONG 1, SHUT 0, and not the PONG that says that it runs.
        for _ in 0..2 {
            (&theirs).read_exact(&mut answer).unwrap();
            ours.write_all(&answer).unwrap();
        }
        (&theirs).read_exact(&mut answer).unwrap();
        ours.shutdown(std::net::Shutdown::Both).unwrap();
        let _ = there.join();
        answer
    });
    let go = format!("unix:{}@1ms", front.display());
    let source = start(&["run", &elf, "-m", "16M", "--migrate", &go, "--take-back", &kept]).wait_with_output().unwrap();
    let mut target = target;
    if !text(&source).contains("may run") {
        // On a host that was busy its program may have ended before.
        assert!(source.status.success(), "{}", text(&source));
        let _ = (target.kill(), target.wait());
        return;
    }
    assert_eq!(between.join().unwrap(), [0, 2, 0, 4, 0, 0, 0, 0]);
    let target = target.wait_with_output().unwrap();
    assert_eq!(source.status.code(), Some(126), "{}", text(&source));
    assert!(text(&source).contains(&format!("notdirty restore {kept}")), "{}", text(&source));
    let again = start(&["restore", &kept, "--symbols", &elf]).wait_with_output().unwrap();
    assert_eq!((again.status.code(), text(&again)), (target.status.code(), text(&target)));
}

/// A new terminal: what writes to it, and what is on it.
fn terminal() -> (OwnedFd, OwnedFd) {
    let (mut ours, mut theirs) = (0, 0);
    let none = std::ptr::null_mut();
    // SAFETY: two numbers are written; no name, settings or size are given.
    let done = unsafe { libc::openpty(&raw mut ours, &raw mut theirs, none, none.cast(), none.cast()) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: both were opened just now.
    unsafe { (OwnedFd::from_raw_fd(theirs), OwnedFd::from_raw_fd(ours)) }
}

#[test]
fn a_terminal_has_a_bar_and_a_pipe_has_lines() {
    let dir = Dir::new("bar");
    let elf = dir.0.join("spin.elf");
    std::fs::write(&elf, smc_test::elf(&notdirty::programs::basic::spin())).unwrap();
    let to = format!("file:{}@100ms", dir.0.join("to").display());
    let mut command = Command::new(NOTDIRTY);
    command.arg("run").arg(&elf).args(["--migrate", &to, "-m", "16M", "--bandwidth", "8K", "--downtime", "1ms"]);
    command.args(["--timeout", "60"]).stdin(Stdio::null()).stdout(Stdio::null());
    let (theirs, ours) = terminal();
    let mut child = command.stderr(theirs).spawn().unwrap();
    // What holds the terminal's other end as well.
    command.stderr(Stdio::null());
    let mut seen = Vec::new();
    // It ends by EIO when no process has it any more.
    let _ = std::fs::File::from(ours).read_to_end(&mut seen);
    assert!(child.wait().unwrap().success());
    let seen = String::from_utf8_lossy(&seen).into_owned();
    assert!(seen.contains("notdirty: round 1 [") && seen.contains(" KiB of ") && seen.contains("\x1b["), "{seen:?}");
    assert!(seen.contains("moved to"), "{seen:?}");
    let piped = command.stderr(Stdio::piped()).output().unwrap();
    let seen = text(&piped);
    assert!(seen.contains("notdirty: round 1: 0 MiB sent, ") && !seen.contains('\x1b'), "{seen:?}");
}

/// Bytes between two sockets; the first channel ends after so many of them, and that is noted.
fn between(front: std::os::unix::net::UnixListener, behind: PathBuf, first: u64, cut: &Arc<AtomicBool>) {
    for n in 0.. {
        let Ok((from, _)) = front.accept() else { return };
        let Ok(to) = std::os::unix::net::UnixStream::connect(&behind) else { return };
        let cut = cut.clone();
        // Beside each other: a source has several at once.
        std::thread::spawn(move || {
            let (answers, back) = (to.try_clone().unwrap(), from.try_clone().unwrap());
            let copied = std::thread::spawn(move || drop(std::io::copy(&mut &answers, &mut &back)));
            let most = if n == 0 { first } else { u64::MAX };
            if std::io::copy(&mut std::io::Read::take(&from, most), &mut &to).is_ok_and(|bytes| bytes == most) {
                cut.store(true, Ordering::Release);
            }
            let _ = (from.shutdown(std::net::Shutdown::Both), to.shutdown(std::net::Shutdown::Both));
            let _ = copied.join();
        });
    }
}

/// The same kernel runs there before its pages are there, and the channel breaks in the middle: both processes go on by themselves. With a round
/// by a multifd before, and where the host notices missing pages, too.
#[test]
fn a_kernel_prints_the_same_where_it_ran_before_its_pages_were_there() {
    let elf = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/build/quick/kernel-2h.elf");
    if !elf.is_file() {
        println!("SKIPPED: no {} (make guests)", elf.display());
        return;
    }
    let elf = elf.display().to_string();
    let alone = start(&["run", &elf, "--smp", "2", "-m", "32M"]).wait_with_output().unwrap();
    let multifd = ["--postcopy=1", "--multifd", "2", "--postcopy-bandwidth", "200K"];
    let plain = ["--postcopy", "--postcopy-bandwidth", "200K"];
    let uffd = if notdirty_core::UserFaults::open().is_ok() { "userfaultfd" } else { "software" };
    for (n, (how, faults)) in [(&plain[..], "software"), (&multifd, "software"), (&plain, uffd)].into_iter().enumerate()
    {
        let dir = Dir::new(&format!("postcopy-{n}"));
        let (socket, front) = (dir.0.join("behind"), dir.0.join("front"));
        let uri = format!("unix:{}", socket.display());
        let mut target = start(&["run", "--incoming", &uri, "--timeout", "60", "--json", "--postcopy-faults", faults]);
        let until = Instant::now() + Duration::from_secs(20);
        while !socket.exists() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
        let listener = std::os::unix::net::UnixListener::bind(&front).unwrap();
        let (behind, cut) = (socket.clone(), Arc::new(AtomicBool::new(false)));
        let own = cut.clone();
        // Behind the round only what was stored to meanwhile goes by it, which may be less than that.
        std::thread::spawn(move || between(listener, behind, [60_000, 40_000, 60_000][n], &own));
        let go = format!("unix:{}@15ms", front.display());
        let args = [&["run", &elf, "--smp", "2", "-m", "32M", "--migrate", &go][..], how].concat();
        let source = start(&args).wait_with_output().unwrap();
        if !has_moved(&source) {
            // It was done before: then nothing came there.
            assert_eq!(source.stdout, alone.stdout, "{}", text(&source));
            let _ = target.kill();
            let _ = target.wait();
            println!("{how:?}: not moved");
            continue;
        }
        let target = target.wait_with_output().unwrap();
        assert_eq!(target.status.code(), alone.status.code(), "{}", text(&target));
        assert!(!socket.exists(), "its socket is left behind");
        let printed = String::from_utf8([source.stdout.clone(), target.stdout.clone()].concat()).unwrap();
        let (guest, told) = printed.split_once("{\"arrival_ms\"").unwrap();
        assert_eq!(guest, String::from_utf8_lossy(&alone.stdout));
        let cut = cut.load(Ordering::Acquire);
        assert!(cut || n == 1, "{told}");
        assert!(told.contains(&format!("\"faults_by\":\"{faults}\"")), "{told}");
        assert_eq!(text(&source).contains("paused, and looks for"), cut, "{}", text(&source));
        assert!(told.contains("\"left\":0,") && (n == 1 || !told.contains("\"faults\":0,")), "{told}");
    }
}

#[test]
fn a_process_that_is_killed_leaves_the_other_with_the_machine_or_with_nothing_half_done() {
    let dir = Dir::new("killed");
    let elf = dir.0.join("spin.elf");
    std::fs::write(&elf, smc_test::elf(&notdirty::programs::basic::spin())).unwrap();
    let elf = elf.display().to_string();
    // Slow enough to be in the middle of it.
    let slow = ["--bandwidth", "64K", "--downtime", "1ms", "-m", "64M"];
    for (n, kill_target) in [true, false].into_iter().enumerate() {
        let socket = dir.0.join(n.to_string());
        let uri = format!("unix:{}", socket.display());
        let mut target = incoming(&uri, &socket);
        let go = format!("{uri}@{}ms", 1 + 40 * n);
        let mut source = start(&[&["run", &elf, "--migrate", &go, "--timeout", "2"][..], &slow].concat());
        std::thread::sleep(Duration::from_millis(60 + 40 * n as u64));
        if kill_target {
            target.kill().unwrap();
            target.wait().unwrap();
            let source = source.wait_with_output().unwrap();
            // It ran on to its own end, unless it had gone before.
            let gone = has_moved(&source) || text(&source).contains("may run");
            assert!(source.status.code() == Some(124) || gone, "{:?}: {}", source.status, text(&source));
        } else {
            source.kill().unwrap();
            source.wait().unwrap();
            let until = Instant::now() + Duration::from_secs(30);
            let ended = loop {
                match target.try_wait().unwrap() {
                    Some(status) => break Some(status),
                    None if Instant::now() > until => break None,
                    None => std::thread::sleep(Duration::from_millis(10)),
                }
            };
            // Refused, or it has all of it and runs on by itself.
            match ended {
                Some(status) => assert_eq!(status.code(), Some(2), "{status:?}"),
                None => drop(target.kill()),
            }
            let _ = target.wait();
        }
    }
}
