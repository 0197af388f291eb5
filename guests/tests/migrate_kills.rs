//! The command moves a guest that checks its own RAM, and one of the two processes is killed in each phase: the guest comes to its end
//! once, or was in the process that was killed. And what the command says when a guest cannot go, or never ends.
//!
//! `NOTDIRTY_FAULTS=all` kills in each phase; without it in some.

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "common/wire.rs"]
mod wire;

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use notdirty::programs::{GuestImage, basic, sums};
use notdirty::smc_test;
use wire::{Between, Phase, end};

const NOTDIRTY: &str = env!("CARGO_BIN_EXE_notdirty");
const RIGHT: &str = "the sums are right";
const LIMIT: Duration = Duration::from_secs(90);

/// A directory that goes with the test.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Dir {
        let dir = std::env::temp_dir().join(format!("notdirty-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Dir(dir)
    }

    fn elf(&self, program: &GuestImage) -> String {
        let path = self.0.join(format!("{}.elf", program.name));
        std::fs::write(&path, smc_test::elf(program)).unwrap();
        path.display().to_string()
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

/// Its output; it is to end in time.
fn ended(mut child: Child, what: &str) -> Output {
    let until = Instant::now() + LIMIT;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > until {
            let _ = child.kill();
            panic!("{what}: it does not end: {:?}", child.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn wait_for(path: &Path) {
    let until = Instant::now() + Duration::from_secs(20);
    while !path.exists() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Victim {
    Source,
    Target,
}

/// Moves a guest from process to process, and kills one of them before what is of this phase passes.
fn killed(dir: &Dir, elf: &str, phase: Phase, victim: Victim) {
    let what = format!("{victim:?} killed at {phase:?}");
    let (front, behind) = (dir.0.join("front"), dir.0.join("behind"));
    let _ = (std::fs::remove_file(&front), std::fs::remove_file(&behind));
    let listener = UnixListener::bind(&front).unwrap();
    let target = start(&["run", "--incoming", &format!("unix:{}", behind.display()), "--timeout", "60"]);
    wait_for(&behind);
    let go = format!("unix:{}@10ms", front.display());
    let source = start(&["run", elf, "-m", "32M", "--migrate", &go, "--bandwidth", "40M", "--downtime", "3s"]);
    let pid = match victim {
        Victim::Source => source.id(),
        Victim::Target => target.id(),
    };
    let passed = Arc::new(Mutex::new(Vec::new()));
    let done = {
        let passed = passed.clone();
        move |now: Phase| {
            let first = !passed.lock().unwrap().contains(&phase);
            passed.lock().unwrap().push(now);
            if now == phase && first {
                // SAFETY: a plain system call; the child has not been waited for.
                unsafe { libc::kill(pid as i32, libc::SIGKILL) };
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    };
    let between = Between { tell: Some(Box::new(done)), ..Between::default() };
    let (source, target) = std::thread::scope(|scope| {
        let between = &between;
        let source = scope.spawn(|| ended(source, "the source"));
        let target = scope.spawn(|| ended(target, "the target"));
        let (theirs, ours) = (end(listener.accept().unwrap().0), end(UnixStream::connect(&behind).unwrap()));
        let (theirs2, ours2) = (theirs.try_clone().unwrap(), ours.try_clone().unwrap());
        scope.spawn(move || between.back(ours2, theirs2));
        between.there(0, theirs, ours);
        (source.join().unwrap(), target.join().unwrap())
    });
    let passed = passed.lock().unwrap().clone();
    assert!(passed.contains(&phase), "{what}: it is not met: {}{}", text(&source), text(&target));
    let (ours, theirs) = (text(&source), text(&target));
    let all = format!("{what}\n{ours}\n{theirs}");
    let rights = ours.matches(RIGHT).count() + theirs.matches(RIGHT).count();
    match (victim, phase) {
        // The machine was there already, and it went with the process.
        (Victim::Target, Phase::Pong) => assert_eq!((rights, source.status.code()), (0, Some(0)), "{all}"),
        // It may be there, so it does not go on here; and that is said.
        (Victim::Target, Phase::Run | Phase::Shut) => {
            assert!(rights == 0 && source.status.code() == Some(126), "{all}");
            assert!(ours.contains("it may run, so this side does not"), "{all}");
        }
        (Victim::Target, _) => {
            assert!(rights == 1 && ours.contains(RIGHT), "{all}");
            assert!(ours.contains("not moved to"), "{all}");
            failed_to_move(&source);
        }
        // It has been told.
        (Victim::Source, Phase::Run | Phase::Pong) => {
            assert!(rights == 1 && theirs.contains(RIGHT) && target.status.code() == Some(0), "{all}");
        }
        (Victim::Source, _) => {
            assert!(rights == 0 && target.status.code() == Some(2), "{all}");
            assert!(!theirs.is_empty(), "{all}");
        }
    }
}

#[test]
fn a_process_that_is_killed_in_whatever_phase_takes_at_most_its_own_machine_along() {
    let dir = Dir::new("kills");
    let elf = dir.elf(&sums::sums(1, 20, 60_000_000));
    let device = |n| Phase::Device(n);
    let phases = [
        Phase::Header,
        Phase::Setup,
        Phase::List,
        Phase::Piece(1),
        Phase::RamEnd,
        device(0),
        device(3),
        Phase::Integrity,
        Phase::End,
        Phase::Shut,
        Phase::Run,
        Phase::Pong,
    ];
    let all = std::env::var("NOTDIRTY_FAULTS").is_ok();
    for (n, phase) in phases.into_iter().enumerate() {
        for (m, victim) in [Victim::Source, Victim::Target].into_iter().enumerate() {
            if all || (n + m) % 4 == 3 || phase == Phase::Run {
                killed(&dir, &elf, phase, victim);
            }
        }
    }
}

/// Its guest ended well, and the command did not; unless the guest was faster.
fn failed_to_move(output: &Output) {
    let code = if text(output).contains("the run ended before") { 0 } else { 126 };
    assert_eq!(output.status.code(), Some(code), "{}", text(output));
}

#[test]
fn a_guest_that_cannot_go_ends_as_it_would_have_and_the_command_fails_and_says_why() {
    let dir = Dir::new("cannot");
    let nowhere = format!("unix:{}@20ms", dir.0.join("no").display());
    let hang = dir.elf(&basic::hang());
    let output = ended(start(&["run", &hang, "--migrate", &nowhere]), "a guest that sleeps for ever");
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(text(&output).contains("not moved to") && text(&output).contains("hung"), "{}", text(&output));
    let elf = dir.elf(&sums::sums(2, 18, 30_000_000));
    let output = ended(start(&["run", &elf, "--smp", "2", "-m", "32M", "--migrate", &nowhere, "--json"]), "nowhere");
    failed_to_move(&output);
    assert!(text(&output).contains("No such file or directory") && text(&output).contains(RIGHT), "{}", text(&output));
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(told.contains("{\"moved\":false,\"state\":\"Setup\",\"why\":\"unix:"), "{told}");
    // A target that ends at once.
    let front = dir.0.join("front");
    let listener = UnixListener::bind(&front).unwrap();
    let go = format!("unix:{}@20ms", front.display());
    let source = start(&["run", &elf, "--smp", "2", "-m", "32M", "--migrate", &go]);
    drop(listener.accept().unwrap());
    let output = ended(source, "an end at once");
    failed_to_move(&output);
    assert!(text(&output).contains("not moved to") && text(&output).contains(RIGHT), "{}", text(&output));
}

#[test]
fn a_file_that_may_not_grow_leaves_the_guest_here_and_the_old_file_there() {
    let dir = Dir::new("full");
    let elf = dir.elf(&sums::sums(1, 20, 80_000_000));
    let file = dir.0.join("old");
    let limited = |args: &str| {
        let line = format!("ulimit -f 100; exec {NOTDIRTY} {args}");
        Command::new("/bin/sh").args(["-c", &line]).stdin(Stdio::null()).output().unwrap()
    };
    for layout in ["", "--mapped-ram"] {
        std::fs::write(&file, b"what was there").unwrap();
        let output = limited(&format!("run {elf} -m 32M --migrate file:{}@20ms {layout}", file.display()));
        failed_to_move(&output);
        assert!(text(&output).contains("File too large") && text(&output).contains(RIGHT), "{}", text(&output));
        assert_eq!(std::fs::read(&file).unwrap(), b"what was there");
    }
    let output = limited(&format!("snapshot {elf} -m 32M --at 20ms -o {}", file.display()));
    assert_eq!(output.status.code(), Some(126), "{}", text(&output));
    assert!(text(&output).contains("File too large"), "{}", text(&output));
    assert_eq!(std::fs::read(&file).unwrap(), b"what was there");
    assert_eq!(std::fs::read_dir(&dir.0).unwrap().count(), 2, "no part of a file is left");
}

#[test]
fn a_migration_that_comes_no_nearer_to_its_end_says_so() {
    let dir = Dir::new("stuck");
    let elf = dir.elf(&sums::sums(1, 22, 0));
    // By then it has stored to all of its pages.
    let (front, go) = (dir.0.join("front"), format!("unix:{}@insns:20000000", dir.0.join("front").display()));
    let target = start(&["run", "--incoming", &format!("unix:{}", front.display()), "--timeout", "60"]);
    wait_for(&front);
    let slow = ["--bandwidth", "64M", "--downtime", "1ms", "-m", "32M", "--timeout", "3"];
    let output = ended(start(&[&["run", &elf, "--migrate", &go][..], &slow].concat()), "stuck");
    let said = text(&output);
    assert_eq!(output.status.code(), Some(124), "{said}");
    assert!(said.matches("it may never end; --auto-converge").count() == 1, "{said}");
    assert!(said.contains("not moved to") && said.contains("the run ended before"), "{said}");
    assert_eq!(ended(target, "its target").status.code(), Some(2));
}

/// Killed at whatever moment, it leaves the old file or a whole one; what it left beside is refused.
#[test]
fn a_process_that_is_killed_while_it_writes_a_file_leaves_the_old_one_or_a_whole_one() {
    let dir = Dir::new("halves");
    let elf = dir.elf(&sums::sums(1, 23, 0));
    let file = dir.0.join("file");
    let restore = |path: &Path| {
        let restored = start(&["restore", &path.display().to_string(), "--max-insns", "1"]);
        ended(restored, "restored")
    };
    let (mut kept, mut whole, mut beside) = (0, 0, 0);
    let times = if std::env::var("NOTDIRTY_FAULTS").is_ok() { 40 } else { 6 };
    for n in 0..times {
        std::fs::write(&file, b"what was there").unwrap();
        let go = format!("file:{}@5ms", file.display());
        let mut source = start(&["run", &elf, "-m", "48M", "--mapped-ram", "--migrate", &go, "--timeout", "60"]);
        let parts = || {
            let entries = std::fs::read_dir(&dir.0).unwrap().map(|entry| entry.unwrap().path());
            entries.filter(|path| path.extension().is_some_and(|end| end == "part")).collect::<Vec<_>>()
        };
        let until = Instant::now() + LIMIT;
        while parts().is_empty() && source.try_wait().unwrap().is_none() && Instant::now() < until {
            std::thread::sleep(Duration::from_micros(200));
        }
        std::thread::sleep(Duration::from_millis(n * n % 23));
        let _ = source.kill();
        source.wait().unwrap();
        if std::fs::read(&file).unwrap() == b"what was there" {
            kept += 1;
        } else {
            let output = restore(&file);
            assert_eq!(output.status.code(), Some(125), "{}", text(&output));
            whole += 1;
        }
        for part in parts() {
            let output = restore(&part);
            // All of it was written, and only its name was not given yet.
            let code = output.status.code();
            assert!(code == Some(2) || code == Some(125), "{}", text(&output));
            beside += usize::from(code == Some(2));
            std::fs::remove_file(part).unwrap();
        }
    }
    println!("{kept} times the old file, {whole} times a whole one; {beside} parts beside were refused");
    assert_eq!(kept + whole, times);
    assert!(kept > 0, "one was killed in time");
}
