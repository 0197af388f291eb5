//! How a run ends that does not end by itself, and what is told then.

use super::*;

#[test]
fn a_timeout_ends_the_run_whatever_is_not_read() {
    let spam = Temp::elf(basic::spam());
    for engine in ENGINES {
        // Neither what the guest prints nor a trace is read: both pipes are full after a moment.
        for trace in [&[][..], &["-d", "exec"]] {
            let start = Instant::now();
            let mut child = Command::new(env!("CARGO_BIN_EXE_notdirty"))
                .args(["run", spam.name(), "--timeout", "0.5", "--engine", engine])
                .args(trace)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("the command starts");
            let status = child.wait().expect("it ends");
            assert_eq!(status.code(), Some(124), "{engine} {trace:?}");
            let most = if trace.is_empty() { 4 } else { 12 };
            assert!(start.elapsed() < Duration::from_secs(most), "{engine} {trace:?}: {:?}", start.elapsed());
        }
    }
}

#[test]
fn a_closed_pipe_ends_the_run() {
    let spam = Temp::elf(basic::spam());
    for engine in ENGINES {
        let mut child = Command::new(env!("CARGO_BIN_EXE_notdirty"))
            .args(["run", spam.name(), "--engine", engine, "--timeout", "100"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command starts");
        let mut first = [0; 20];
        child.stdout.take().expect("a pipe").read_exact(&mut first).expect("the guest prints");
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(code(&output), 126, "{}", stderr(&output));
        assert_eq!(stderr(&output).lines().count(), 1, "{}", stderr(&output));
        assert!(stderr(&output).contains("standard output"), "{}", stderr(&output));
    }
}

#[test]
fn a_jitdump_is_not_written_through_what_lies_there() {
    // A link by the name that the dump will have, which another user could guess.
    let dir = Temp(Temp::path());
    std::fs::create_dir(&dir.0).expect("a directory");
    let victim = Temp::new(b"precious");
    let script = "ln -s \"$2\" \"$1/jit-$$.dump\" && exec \"$0\" run \"$3\" --jitdump \"$1\"";
    let guest = Temp::elf(basic::hello());
    let output = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_notdirty"), dir.name(), victim.name(), guest.name()])
        .stdin(Stdio::null())
        .output()
        .expect("a shell");
    let _ = std::fs::remove_dir_all(&dir.0);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(std::fs::read(&victim.0).expect("a file"), b"precious");
}

#[test]
fn a_crash_is_told_on_standard_error_by_its_first_trap() {
    use notdirty::programs::crash::{Crash, crash};
    let (image, symbols) = crash(Crash::Load, 0, true);
    let mut elf = Elf::new(image.load_addr, image.bytes);
    elf.symbols = symbols;
    let guest = Temp::new(&elf.bytes());
    for engine in ENGINES {
        for harts in ["1", "2"] {
            let output = notdirty(&["run", guest.name(), "--engine", engine, "--smp", harts, "--log", "error"]);
            assert_eq!((code(&output), stdout(&output).as_str()), (3, ""));
            let text = stderr(&output);
            let first = format!("notdirty: {}: unhandled trap on hart 0: load access fault (mcause 5)", guest.name());
            assert!(text.starts_with(&first), "{text}");
            for part in
                ["mtval 0x14", "<inner+0x14>", "a1 0000000000001234", "frame pointers", "<main+0x", "hart 0: pc 0x0"]
            {
                assert!(text.contains(part), "no {part:?} in {text}");
            }
        }
    }
}

#[test]
fn ctrl_c_ends_the_run_and_tells_where_each_hart_is() {
    let spin = Temp::elf(basic::spin());
    for engine in ENGINES {
        let child = Command::new(env!("CARGO_BIN_EXE_notdirty"))
            .args(["run", spin.name(), "--engine", engine, "--smp", "2", "--timeout", "100"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command starts");
        std::thread::sleep(Duration::from_millis(500));
        let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
        assert!(kill.success());
        let output = child.wait_with_output().expect("it ends");
        let text = stderr(&output);
        assert_eq!(code(&output), 130, "{text}");
        for part in ["stopped by Ctrl-C", "hart 0: pc 0x8000", "hart 1: pc 0x8000"] {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
    }
}

#[test]
fn a_loop_that_nothing_ends_is_told_in_the_summary() {
    let guest = Temp::new(&0x0000_006fu32.to_le_bytes());
    for engine in ENGINES {
        let run = ["run", guest.name(), "--load-addr", "0x80000000", "--engine", engine, "--timeout", "0.1", "--stats"];
        let text = stderr(&notdirty(&run));
        assert!(text.contains("hart 0 jumps to itself with interrupts off, pc 0x80000000"), "{text}");
    }
}

#[test]
fn warnings_are_seen_unless_they_are_turned_off_and_more_is_there_for_who_asks() {
    let mut elf = Elf::new(RAM_BASE, basic::hello().bytes);
    elf.arch = Some("rv64imac_v1p0");
    let guest = Temp::new(&elf.bytes());
    let run = |log: &[&str], environment: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_notdirty"));
        command.args(["run", guest.name()]).args(log).stdin(Stdio::null());
        match environment {
            "" => command.env_remove("RUST_LOG"),
            level => command.env("RUST_LOG", level),
        };
        let output = command.output().expect("the command starts");
        assert_eq!((code(&output), stdout(&output).as_str()), (0, "Hello from RV64IMAC.\n"));
        stderr(&output)
    };
    let warned = run(&[], "");
    assert_eq!(warned.lines().count(), 1, "{warned}");
    assert!(warned.starts_with("notdirty: warning: ") && warned.contains("asks for V, "), "{warned}");
    assert_eq!(run(&["--log", "error"], ""), "");
    assert_eq!(run(&[], "off"), "");
    let debug = run(&["--log", "debug", "--plug", "2M@0x100000000:insns:2"], "");
    assert!(debug.contains("notdirty: debug: ") && debug.contains("plugged at 0x100000000"), "{debug}");
    assert!(debug.contains("the memory map changes at 0x100000000"), "{debug}");
    assert!(run(&["--log", "warn"], "off").contains("asks for V"), "the flag is nearer than the environment");
}

#[test]
fn what_finds_no_room_on_the_disk_is_told_and_leaves_the_guest_alone() {
    let guest = Temp::elf(basic::hello());
    for traced in
        [&["-d", "in_asm,tb", "-D", "/dev/full"][..], &["-d", "exec", "-D", "/dev/full", "--max-insns", "5000"]]
    {
        let output = notdirty(&[&["run", guest.name()], traced].concat());
        assert_eq!((code(&output), stdout(&output).as_str()), (126, "Hello from RV64IMAC.\n"), "{traced:?}");
        assert!(stderr(&output).contains("-D /dev/full"), "{traced:?}: {}", stderr(&output));
    }
    for args in [&["--help"][..], &["-d", "help"], &["disas", guest.name(), "0x80000000"], &["smc-test", "--list"]] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("a device");
        let mut command = Command::new(env!("CARGO_BIN_EXE_notdirty"));
        let output = command.args(args).stdin(Stdio::null()).stdout(full).output().expect("the command starts");
        assert_eq!(code(&output), 126, "{args:?}");
        assert!(stderr(&output).starts_with("notdirty: standard output: "), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn the_dirty_rate_is_told_while_the_guest_runs_by_whatever_finds_it() {
    // One stores to each page of a MiB, over and over; one to none.
    let stores = Temp::elf(notdirty::programs::sums::sums(1, 20, 0));
    let spins = Temp::elf(basic::spin());
    for by in ["bits", "rings", "samples:16384"] {
        for (file, least, most) in [(&stores, 256, 258), (&spins, 0, 2)] {
            let rate = format!("insns:1000,for=300ms,by={by}");
            let output = notdirty(&["run", file.name(), "--dirty-rate", &rate, "--timeout", "2"]);
            let text = stderr(&output);
            let told = text.split(": ").find(|part| part.contains(" pages in "));
            let pages = told.and_then(|told| told.split(' ').next()).and_then(|pages| pages.parse::<u64>().ok());
            assert!(pages.is_some_and(|pages| (least..=most).contains(&pages)), "by {by}: {text}");
            assert_eq!(code(&output), 124, "{text}");
        }
    }
}
