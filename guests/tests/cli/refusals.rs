//! What is refused, before the run or when it turns out, and how it is said.

use super::*;

#[test]
fn bad_files_are_refused_with_their_name_and_the_field() {
    let good = || Elf::new(RAM_BASE, basic::exit_with(7).bytes);
    let file = good().bytes();
    let spoilt = |at: usize, bytes: &[u8]| {
        let mut spoilt = file.clone();
        put(&mut spoilt, at, bytes);
        spoilt
    };
    let mut outside = good();
    outside.segments[0].1 = 0x1000;
    for (bytes, field) in [
        (b"#!/bin/sh\n".to_vec(), "not an ELF file"),
        (Vec::new(), "not an ELF file"),
        (spoilt(4, &[1]), "EI_CLASS"),
        (spoilt(5, &[2]), "EI_DATA"),
        (spoilt(0x12, &[62, 0]), "e_machine"),
        (spoilt(0x18, &0u64.to_le_bytes()), "e_entry"),
        (outside.bytes(), "p_paddr"),
        (file[..0x30].to_vec(), "truncated"),
    ] {
        let file = Temp::new(&bytes);
        refused(&["run", file.name()], &[file.name(), field]);
    }
    refused(&["run", "/nonexistent/file.elf"], &["/nonexistent/file.elf", "cannot be read"]);
    refused(&["run", "/"], &["cannot be read"]);
    for args in [&["restore"][..], &["info"], &["info", "--json"], &["squash", "-o", "/nonexistent/to"]] {
        for (file, why) in [("/nonexistent/file.snap", "No such file"), ("/", "directory")] {
            refused(&[args, &[file]].concat(), &[file, why]);
        }
    }
    let big = Temp::new(&basic::exit_with(7).bytes);
    refused(&["run", big.name(), "--load-addr", "0x1000"], &[big.name(), "load address"]);
    refused(&["run", big.name(), "--load-addr", "0x80000000", "--entry", "0x4"], &[big.name(), "entry 0x4"]);
    refused(&["run", big.name(), "--load-addr", "0x80000000", "--entry", "0x80000001"], &["entry 0x80000001"]);
}

#[test]
fn bad_flags_are_refused_with_their_name() {
    refused(&["run"], &["FILE"]);
    refused(&["dance"], &["dance"]);
    refused(&["run", "x", "--nonsense"], &["--nonsense"]);
    refused(&["run", "x", "-m", "much"], &["-m", "much"]);
    refused(&["run", "x", "--max-insns", "few"], &["--max-insns", "few"]);
    refused(&["run", "x", "--timeout", "soon"], &["--timeout", "soon"]);
    refused(&["run", "x", "--engine", "steam"], &["--engine", "steam"]);
    refused(&["run", "x", "-d", "all"], &["-d", "all"]);
    refused(&["-d", "exec", "-D", "/nonexistent/log"], &["-D", "/nonexistent/log"]);
    refused(&["-m", "5000B"], &["RAM size"]);
    refused(&["-m", "99999999999T"], &["-m"]);
}

#[test]
fn ram_that_the_host_does_not_have_is_the_hosts_failure() {
    let output = notdirty(&["-m", "60000T"]);
    assert_eq!(code(&output), 126, "{}", stderr(&output));
    assert_eq!(stderr(&output).lines().count(), 1);
}

#[test]
fn output_that_nobody_takes_is_the_hosts_failure_and_no_signal() {
    let guest = Temp::elf(basic::hello());
    let mut child = Command::new(env!("CARGO_BIN_EXE_notdirty"))
        .args(["run", guest.name()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the command starts");
    drop(child.stdout.take());
    let code = child.wait().expect("it ends").code();
    // The line may have gone out before the pipe was closed.
    assert!(matches!(code, Some(126 | 0)), "{code:?}");
}

#[test]
fn plugs_that_can_never_be_done_are_refused_before_the_run() {
    let guest = Temp::elf(basic::hello());
    let refused = |plugs: &[&str], part: &str| {
        let mut args = vec!["run", guest.name(), "--maxmem", "256M"];
        plugs.iter().for_each(|plug| args.extend(["--plug", plug]));
        refused(&args, &["--plug", part]);
    };
    refused(&["129M@0x100000000:1s"], "may have 0x10000000");
    refused(&["2M@0x100000800:1s"], "multiples");
    refused(&["2049B@0x100000000:1s"], "multiples");
    refused(&["2M@0x80000000:1s"], "something is at");
    refused(&["2M@0x2000000:insns:100"], "something is at");
    refused(&["2M@0xfffffffffffff000:1s"], "past the end");
    refused(&["2M@0x100000000000000:1s"], "past the end");
    refused(&["2M@0x100000000:1s", "2M@0x100100000:insns:5"], "overlaps --plug 2M@0x100000000:1s");
    refused(&["100M@0x100000000:1s", "100M@0x200000000:1s"], "may be 0x10000000");
}

#[test]
fn a_plug_that_fails_later_changes_the_exit_code() {
    // A host never has so much, and knows only when it is asked.
    let guest = Temp::elf(notdirty::programs::hotplug::finder(0x1_0000_0000, 1000));
    let output = notdirty(&["run", guest.name(), "--plug", "32768T@0x100000000:insns:100"]);
    assert_eq!(code(&output), 126, "{}", stderr(&output));
    assert!(stderr(&output).contains("--plug 32768T@0x100000000:insns:100"), "{}", stderr(&output));
}

#[test]
fn a_handler_in_ram_that_is_still_to_come_is_no_hang() {
    let guest = Temp::elf(notdirty::programs::hotplug::handler_to_come(0x1_0000_0000));
    for engine in ENGINES {
        let start = Instant::now();
        let run = ["run", guest.name(), "--engine", engine, "--plug", "2M@0x100000000:200ms"];
        // The RAM is zeroes, so the handler is illegal once it is there: another loop, and now the last word.
        let output = notdirty(&run);
        assert_eq!(code(&output), 3, "{}", stderr(&output));
        assert!(start.elapsed() >= Duration::from_millis(200), "it was waited for");
        assert!(stderr(&output).contains("mcause 2"), "{}", stderr(&output));
    }
}

#[test]
fn a_screenshot_that_cannot_be_written_is_refused_and_an_old_one_stays_until_the_end() {
    let guest = Temp::elf(basic::hello());
    let run = |path: &str| ["run", guest.name(), "--framebuffer", "8x8", "--screenshot", path].map(str::to_owned);
    for path in ["/nowhere/shot.ppm", "/"] {
        let args = run(path);
        refused(&args.iter().map(String::as_str).collect::<Vec<_>>(), &["--screenshot", path]);
    }
    let shot = Temp::new(&[b'x'; 10_000]);
    let args = run(shot.name());
    assert_eq!(code(&notdirty(&args.iter().map(String::as_str).collect::<Vec<_>>())), 0);
    let written = std::fs::read(&shot.0).expect("a screenshot");
    assert!(written.starts_with(b"P6") && written.len() < 1000, "{} bytes", written.len());
}
