//! The command from outside: every way out has its exit code, every bad input its one line.

#[path = "../common/mod.rs"]
mod common;
mod ends;
mod refusals;
mod repeat;

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
fn a_signature_that_cannot_be_taken_is_told_before_the_run_and_a_full_disk_behind_it() {
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
    refused(&["run", Temp::new(&elf.bytes()).name(), "--signature", "/nowhere/s"], &["--signature", "/nowhere/s"]);
    let output = notdirty(&["run", Temp::new(&elf.bytes()).name(), "--signature", "/dev/full"]);
    assert_eq!((code(&output), stdout(&output).as_str()), (126, "Hello from RV64IMAC.\n"));
    assert!(stderr(&output).contains("--signature /dev/full"));
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
fn a_traced_trap_and_fault_are_named() {
    let image = Temp::new(&[0; 4]);
    for engine in ENGINES {
        let output = notdirty(&["run", image.name(), "--load-addr", "0x80000000", "--engine", engine, "-d", "int,mmu"]);
        assert_eq!(code(&output), 3);
        let said = stderr(&output);
        assert!(said.contains("trap: illegal instruction, cause 0x2 tval 0x0 at 0x80000000, to 0x0\n"), "{said}");
        assert!(said.contains("\ninstruction access fault at 0x0 by pc 0x0\n"), "{said}");
    }
}

#[test]
fn a_write_to_satp_that_is_ignored_for_its_mode_is_traced() {
    // li t0, 5; slli t0, t0, 60; csrw satp, t0; csrrs t0, satp, t0; csrr a0, satp; lui t1, 5; addi t1, t1, 0x555; lui t0, 0x100;
    // sw t1, 0(t0); j .
    let words = [
        0x0050_0293_u32,
        0x03c2_9293,
        0x1802_9073,
        0x1802_a2f3,
        0x1800_2573,
        0x0000_5337,
        0x5553_0313,
        0x0010_02b7,
        0x0062_a023,
        0x0000_006f,
    ];
    let image = Temp::new(&words.map(u32::to_le_bytes).concat());
    let at = ["run", image.name(), "--load-addr", "0x80000000"];
    for engine in [&["--engine", "jit"][..], &["--jit-off", "tier0"], &["--engine", "interp"]] {
        let output = notdirty(&[&at[..], engine, &["-d", "mmu"]].concat());
        let line = |pc| format!("satp stays 0x0: 0x5000000000000000 by pc {pc} has mode 5, which is reserved\n");
        assert_eq!((code(&output), stderr(&output)), (0, line("0x80000008") + &line("0x8000000c")), "{engine:?}");
        let quiet = notdirty(&[&at[..], engine, &["-d", "int"]].concat());
        assert_eq!((code(&quiet), stderr(&quiet)), (0, String::new()), "{engine:?}");
    }
}

#[test]
fn the_loop_behind_the_store_that_ends_the_run_is_not_said_to_hang() {
    // lui t1, 5; addi t1, t1, 0x555; lui t0, 0x100; sw t1, 0(t0); j .
    let words = [0x0000_5337_u32, 0x5553_0313, 0x0010_02b7, 0x0062_a023, 0x0000_006f];
    let image = Temp::new(&words.map(u32::to_le_bytes).concat());
    let run = |entry| {
        let args = ["--load-addr", "0x80000000", "--entry", entry, "--stats", "--timeout", "0.3"];
        notdirty(&[&["run", image.name()][..], &args].concat())
    };
    let ended = run("0x80000000");
    assert_eq!((code(&ended), stderr(&ended).contains("for ever")), (0, false), "{}", stderr(&ended));
    let hung = run("0x80000010");
    assert_eq!((code(&hung), stderr(&hung).contains("for ever")), (124, true), "{}", stderr(&hung));
}

#[test]
fn the_place_where_a_run_was_stopped_names_the_mode() {
    // PMP opened, mepc = the last word, mret to U-mode, j .
    let open = [0xfff0_0293_u32, 0x3b02_9073, 0x01f0_0293, 0x3a02_9073];
    let leave = [0x0000_0297_u32, 0x0102_8293, 0x3412_9073, 0x3020_0073, 0x0000_006f];
    let image = Temp::new(&[&open[..], &leave].concat().iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>());
    let output = notdirty(&["run", image.name(), "--load-addr", "0x80000000", "--max-insns", "1000"]);
    assert_eq!(code(&output), 125);
    assert!(stderr(&output).contains("pc 0x80000020 in U-mode"), "{}", stderr(&output));
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
