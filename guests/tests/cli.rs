//! The command from outside: every way out has its exit code, every bad input its one line.

mod common;

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use common::{Elf, put};
use notdirty::RAM_BASE;
use notdirty::programs::{GuestImage, basic, sieve, timer};

fn notdirty(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_notdirty"));
    command.args(args).stdin(Stdio::null()).output().expect("the command starts")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("never ended by a signal")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A file that is gone when the test ends.
struct Temp(PathBuf);

impl Temp {
    fn path() -> PathBuf {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("notdirty-cli-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        std::env::temp_dir().join(name)
    }

    fn new(bytes: &[u8]) -> Temp {
        let temp = Temp(Temp::path());
        std::fs::write(&temp.0, bytes).expect("a file");
        temp
    }

    fn elf(image: GuestImage) -> Temp {
        Temp::new(&Elf::new(image.load_addr, image.bytes).bytes())
    }

    fn name(&self) -> &str {
        self.0.to_str().expect("a plain name")
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

const ENGINES: [&str; 2] = ["jit", "interp"];

#[test]
fn the_demo_prints_patches_itself_and_is_summed_up() {
    let output = notdirty(&[]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let text = stdout(&output);
    for part in [
        "patches",
        "148933 primes",
        "guest instructions",
        "MIPS",
        "TBs translated",
        "TBs invalidated",
        "TLB slow paths",
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}

#[test]
fn the_guests_code_is_the_exit_code() {
    for engine in ENGINES {
        for want in [0u16, 1, 42, 255] {
            // Code 0 through `fail` is a failure without a number.
            let image = if want == 0 { basic::hello() } else { basic::exit_with(want) };
            let output = notdirty(&["run", Temp::elf(image).name(), "--engine", engine]);
            assert_eq!(code(&output), i32::from(want), "{}", stderr(&output));
        }
        let output = notdirty(&["run", Temp::elf(basic::exit_with(300)).name(), "--engine", engine]);
        assert_eq!(code(&output), 255);
        assert!(stderr(&output).contains("300"));
    }
}

#[test]
fn a_reset_request_ends_the_run_and_says_so() {
    let output = notdirty(&["run", Temp::elf(basic::reset()).name()]);
    assert_eq!(code(&output), 0);
    assert!(stderr(&output).contains("reset"));
}

#[test]
fn the_signature_is_written_as_words_between_its_symbols_whatever_the_exit_code() {
    let signature = Temp(Temp::path());
    for engine in ENGINES {
        for (len, granularity, expected) in [
            (8, &["--signature-granularity", "4"][..], "44332211\n88776655\n"),
            (6, &["--signature-granularity=4"], "44332211\n00006655\n"),
            (3, &["--signature-granularity=1"], "11\n22\n33\n"),
            (8, &[], "00000000000000008877665544332211\n"),
            (0, &[], ""),
        ] {
            let image = basic::exit_with(7);
            let data = RAM_BASE + 0x4000;
            let mut elf = Elf::new(image.load_addr, image.bytes);
            elf.segments.push((data, data, vec![0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88], 8));
            elf.symbols = vec![("begin_signature", data, 0), ("end_signature", data + len, 0)];
            let guest = Temp::new(&elf.bytes());
            let to = ["run", guest.name(), "--engine", engine, "--signature", signature.name()];
            let output = notdirty(&[&to, granularity].concat());
            assert_eq!(code(&output), 7, "{}", stderr(&output));
            assert_eq!(std::fs::read_to_string(&signature.0).unwrap(), expected, "{len} bytes by {granularity:?}");
        }
    }
}

#[test]
fn a_signature_that_cannot_be_taken_is_told_before_the_run_and_one_that_cannot_be_written_behind_it() {
    let signature = Temp(Temp::path());
    let data = RAM_BASE + 0x4000;
    for (symbols, named) in [
        (vec![], "no symbol begin_signature"),
        (vec![("begin_signature", data, 0)], "no symbol end_signature"),
        (vec![("begin_signature", data, 0), ("end_signature", data - 1, 0)], "is below begin_signature"),
        (vec![("begin_signature", 0x1000, 0), ("end_signature", 0x1004, 0)], "0x1000"),
        (vec![("begin_signature", data, 0), ("end_signature", u64::MAX, 0)], "0xffff"),
    ] {
        let image = basic::hello();
        let mut elf = Elf::new(image.load_addr, image.bytes);
        elf.symbols = symbols;
        let guest = Temp::new(&elf.bytes());
        let output = notdirty(&["run", guest.name(), "--signature", signature.name()]);
        assert_eq!((code(&output), stdout(&output).as_str()), (2, ""), "{named}");
        let said = stderr(&output);
        assert!(said.contains(guest.name()) && said.contains("--signature") && said.contains(named), "{said}");
        assert!(!signature.0.exists());
    }
    let image = basic::hello();
    let mut elf = Elf::new(image.load_addr, image.bytes);
    elf.symbols = vec![("begin_signature", data, 0), ("end_signature", data + 4, 0)];
    let output = notdirty(&["run", Temp::new(&elf.bytes()).name(), "--signature", "/nowhere/s"]);
    assert_eq!((code(&output), stdout(&output).as_str()), (126, "Hello from RV64IMAC.\n"));
    assert!(stderr(&output).contains("/nowhere/s"));
}

#[test]
fn the_guest_talks_on_standard_output_and_nothing_else_does() {
    for engine in ENGINES {
        let output = notdirty(&["run", Temp::elf(basic::hello()).name(), "--engine", engine, "--stats"]);
        assert_eq!((code(&output), stdout(&output).as_str()), (0, "Hello from RV64IMAC.\n"));
        assert!(stderr(&output).contains("guest instructions"));
    }
}

#[test]
fn one_hart_alone_needs_no_locked_instructions_and_one_of_several_writers_does() {
    let guest = Temp::elf(basic::hello());
    let run = |more: &[&str]| {
        let output = notdirty(&[&["run", guest.name(), "--stats", "--jit-off", "tier0"], more].concat());
        assert_eq!(code(&output), 0);
        stderr(&output).contains("while one thread stored")
    };
    assert!(run(&[]));
    assert!(!run(&["--jit-off", "one_writer"]));
    assert!(!run(&["--smp", "2"]));
    assert!(!run(&["--plug", "64K@0xa0000000:insns:10"]));
}

#[test]
fn the_guest_reads_standard_input() {
    let guest = Temp::elf(basic::echo());
    for engine in ENGINES {
        let mut child = Command::new(env!("CARGO_BIN_EXE_notdirty"))
            .args(["run", guest.name(), "--engine", engine, "--timeout", "60"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the command starts");
        let mut input = child.stdin.take().expect("a pipe");
        let mut output = child.stdout.take().expect("a pipe");
        // An unfinished line comes back while the guest still runs.
        input.write_all(b"ping").expect("the guest reads");
        let mut echoed = [0; 4];
        output.read_exact(&mut echoed).expect("the guest answers");
        assert_eq!(&echoed, b"ping");
        input.write_all(b"\xff\x00\n.").expect("the guest reads");
        let mut rest = Vec::new();
        output.read_to_end(&mut rest).expect("the guest answers");
        assert_eq!(rest, b"\xff\x00\n");
        assert_eq!(child.wait().expect("it ends").code(), Some(0));
    }
}

#[test]
fn the_end_of_standard_input_is_silent() {
    let output = notdirty(&["run", Temp::elf(basic::echo()).name(), "--timeout", "0.2"]);
    assert_eq!(code(&output), 124);
}

#[test]
fn limits_and_hangs_have_codes_of_their_own() {
    let spin = Temp::elf(basic::spin());
    let hang = Temp::elf(basic::hang());
    let crash = Temp::new(&[0; 64]);
    for engine in ENGINES {
        let start = Instant::now();
        let output = notdirty(&["run", spin.name(), "--timeout", "0.3", "--engine", engine]);
        assert_eq!(code(&output), 124, "{}", stderr(&output));
        assert!(stderr(&output).contains("--timeout") && stderr(&output).contains("pc 0x800000"));
        assert!((Duration::from_millis(300)..Duration::from_secs(20)).contains(&start.elapsed()));

        let output = notdirty(&["run", spin.name(), "--max-insns", "1000003", "--engine", engine, "--stats"]);
        assert_eq!(code(&output), 125, "{}", stderr(&output));
        assert!(stderr(&output).contains("1,000,003"), "exactly so many: {}", stderr(&output));

        let output = notdirty(&["run", hang.name(), "--engine", engine]);
        assert_eq!(code(&output), 3, "{}", stderr(&output));
        assert!(stderr(&output).contains("wfi"));

        // No handler, and an instruction that is none: a trap for every trap.
        let output = notdirty(&["run", crash.name(), "--load-addr", "0x80000000", "--engine", engine]);
        assert_eq!(code(&output), 3, "{}", stderr(&output));
        assert!(stderr(&output).contains("unhandled trap on hart 0: illegal instruction"), "{}", stderr(&output));
        assert!(stderr(&output).contains("trap handler at 0x0"), "{}", stderr(&output));
    }
}

#[test]
fn raw_images_run_where_they_are_put() {
    let image = Temp::new(&basic::exit_with(9).bytes);
    assert_eq!(code(&notdirty(&["run", image.name(), "--load-addr", "0x80000000"])), 9);
    assert_eq!(code(&notdirty(&["run", image.name(), "--load-addr=0x80200000", "-m", "4M"])), 9);
    // The prologue may be skipped: an entry of one's own.
    let mut bytes = vec![0; 64];
    bytes.extend(basic::exit_with(8).bytes);
    let image = Temp::new(&bytes);
    assert_eq!(code(&notdirty(&["run", image.name(), "--load-addr", "0x80000000", "--entry", "0x80000040"])), 8);
}

#[test]
fn an_extension_that_isa_leaves_out_traps() {
    // lui t0, 6; csrs mstatus, t0; fmv.d.x fa0, zero; lui t1, 5; addi t1, t1, 0x555; lui t0, 0x100; sw t1, 0(t0)
    let words = [0x0000_62b7_u32, 0x3002_a073, 0xf200_0553, 0x0000_5337, 0x5553_0313, 0x0010_02b7, 0x0062_a023];
    let image = Temp::new(&words.map(u32::to_le_bytes).concat());
    for engine in ENGINES {
        let run = |isa| notdirty(&["run", image.name(), "--load-addr", "0x80000000", "--engine", engine, "--isa", isa]);
        assert_eq!(code(&run("rv64gc")), 0);
        let output = run("rv64imac");
        assert_eq!(code(&output), 3);
        let told = "illegal instruction (mcause 2), mtval 0xf2000553, at pc 0x80000008";
        assert!(stderr(&output).contains(told), "{}", stderr(&output));
    }
}

#[test]
fn the_exit_code_is_right_although_nothing_reads_standard_error() {
    let image = Temp::new(&[0; 4]);
    for (args, expected) in [
        (&["run", "/nonexistent"][..], 2),
        (&["run", image.name(), "--load-addr", "0x80000000"], 3),
        (&["run", image.name(), "--load-addr", "0x80000000", "--max-insns", "1", "--stats"], 3),
    ] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_notdirty"));
        let status = command.args(args).stdin(Stdio::null()).stderr(writer).status().expect("the command starts");
        assert_eq!(status.code(), Some(expected), "{args:?}");
    }
}

#[test]
fn a_run_by_instructions_repeats_exactly() {
    let guest = Temp::elf(timer::timer_irq(20, 1_000));
    let row = |text: String| text.lines().find(|l| l.contains("guest instructions")).map(str::to_owned);
    let rows: Vec<_> = (0..4)
        .map(|n| {
            let output = notdirty(&["run", guest.name(), "--clock", "insns", "--stats", "--engine", ENGINES[n % 2]]);
            assert_eq!(code(&output), 0, "{}", stderr(&output));
            row(stderr(&output)).expect("a summary")
        })
        .collect();
    assert!(rows.iter().all(|r| *r == rows[0]), "{rows:?}");
}

#[test]
fn ram_is_plugged_while_the_guest_looks_for_it() {
    use notdirty::programs::hotplug::finder;
    let patient = Temp::elf(finder(0x1_0000_0000, i32::MAX));
    for engine in ENGINES {
        for after in ["20ms", "insns:100000"] {
            let plug = format!("2M@0x100000000:{after}");
            let output = notdirty(&["run", patient.name(), "--engine", engine, "--stats", "--plug", &plug]);
            assert_eq!(code(&output), 0, "{engine} {after}: {}", stderr(&output));
            assert!(stderr(&output).contains("RAM plugged          2048 KiB at 0x100000000"), "{}", stderr(&output));
        }
    }
    let late = Temp::elf(finder(0x1_0000_0000, 1000));
    assert_eq!(code(&notdirty(&["run", late.name(), "--plug", "2M@0x100000000:100s"])), 3, "it gave up");
    refused(&["run", late.name(), "--maxmem", "64M"], &["0x4000000", "0x8000000"]);
}

#[test]
fn traces_go_to_standard_error_or_to_a_file() {
    let guest = Temp::elf(sieve::sieve(100, 25));
    let log = Temp(Temp::path());
    let items = "in_asm,ir,out_asm,exec,int,mmu,tb,notdirty";
    let output = notdirty(&["run", guest.name(), "-d", items, "-D", log.name()]);
    assert_eq!((code(&output), stderr(&output).as_str()), (0, ""));
    let traced = std::fs::read_to_string(&log.0).expect("a log");
    assert!(traced.contains("0x80000000") || traced.contains("80000000"), "{}", &traced[..traced.len().min(500)]);
    let output = notdirty(&["run", guest.name(), "-d", "exec", "--engine", "interp"]);
    assert_eq!(code(&output), 0);
    assert!(stderr(&output).lines().count() > 100);
    let help = notdirty(&["-d", "help"]);
    assert_eq!(code(&help), 0);
    assert!(items.split(',').all(|item| stdout(&help).contains(item)));
}

#[test]
fn help_and_version_are_printed() {
    for flag in ["--help", "-h", "help"] {
        let output = notdirty(&[flag]);
        assert_eq!(code(&output), 0);
        assert!(stdout(&output).contains("usage: notdirty") && stdout(&output).contains("124 timeout"));
    }
    assert!(stdout(&notdirty(&["--version"])).starts_with("notdirty "));
}

/// Runs the command, which has to refuse with one line that has all of `parts`.
fn refused(args: &[&str], parts: &[&str]) {
    let output = notdirty(args);
    let text = stderr(&output);
    assert_eq!(code(&output), 2, "{args:?}: {text}");
    assert_eq!(text.lines().count(), 1, "{args:?}: {text}");
    assert!(text.starts_with("notdirty: "), "{text}");
    for part in parts {
        assert!(text.contains(part), "{args:?}: no {part:?} in {text}");
    }
    assert_eq!(stdout(&output), "");
}

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
