//! Listings and profiles from outside: `disas`, `-d`, `--perf-map`, `--jitdump`.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use common::Elf;
use notdirty::RAM_BASE;
use notdirty::programs::sieve;

/// A directory that is gone when the test ends, with a guest in it.
struct Place(PathBuf);

impl Place {
    fn new() -> Place {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("notdirty-disas-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let place = Place(std::env::temp_dir().join(name));
        std::fs::create_dir(&place.0).expect("a directory");
        let image = sieve::sieve(1000, 168);
        let mut elf = Elf::new(image.load_addr, image.bytes);
        elf.symbols = vec![("start", RAM_BASE, 0)];
        std::fs::write(place.guest(), elf.bytes()).expect("a file");
        place
    }

    fn guest(&self) -> String {
        self.file("guest.elf")
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("a plain name").to_owned()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs the command; its process id and what came of it.
fn notdirty(args: &[&str]) -> (u32, Output) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_notdirty"));
    let child = command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.expect("the command starts");
    (child.id(), child.wait_with_output().expect("the command ends"))
}

fn listing(args: &[&str]) -> String {
    let (_, output) = notdirty(args);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn a_symbol_is_listed_as_guest_ir_and_host_code() {
    let place = Place::new();
    let text = listing(&["disas", &place.guest(), "start"]);
    for part in ["region 80000000 <start>", "b0 80000000 <start>", "guest\n", "csrw        mtvec,t0", "ir\n", "host\n"]
    {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    assert!(text.contains("call   site"), "{text}");
    assert!(text.contains("slow paths and exits"), "{text}");
    // The same code by its address, and by a symbol and an offset.
    assert_eq!(text, listing(&["disas", &place.guest(), "0x80000000"]));
    assert_eq!(text, listing(&["disas", &place.guest(), "start+0"]));
}

#[test]
fn a_listing_names_registers_the_tlb_and_ram() {
    let place = Place::new();
    // The loop of the sieve, wherever the assembler put it: the first place with a byte store.
    let pages = (0..64).map(|n| listing(&["disas", &place.guest(), &format!("start+{}", 4 * n)]));
    let text = pages.into_iter().find(|text| text.contains("store.8")).expect("the sieve stores bytes");
    for part in ["[rbp+rcx+tlb.write]", "ram", "[rbp+t0]", "; poll at ", "r15=budget"] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    assert!(text.contains("b1"), "a region has blocks:\n{text}");
}

#[test]
fn switches_of_the_jit_show_in_the_listing() {
    let place = Place::new();
    let text = listing(&["disas", &place.guest(), "start", "--jit-off", "pinned"]);
    assert!(text.contains("[rbp+sp]") && !text.contains("rbx=sp"), "{text}");
}

#[test]
fn what_cannot_be_listed_gets_one_line_and_code_2() {
    let place = Place::new();
    for (what, said) in [("nowhere", "no symbol nowhere"), ("0x10", "0x10"), ("0x80000001", "0x80000001")] {
        let (_, output) = notdirty(&["disas", &place.guest(), what]);
        let said_so = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said_so}");
        assert!(said_so.contains(said) && said_so.contains("guest.elf"), "{said_so}");
        assert_eq!(said_so.lines().count(), 1, "{said_so}");
    }
}

#[test]
fn traces_of_new_tbs_are_listings() {
    let place = Place::new();
    let log = place.file("log");
    let (_, output) = notdirty(&["run", &place.guest(), "-d", "in_asm,ir,out_asm", "-D", &log]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(&log).expect("the log");
    for part in [
        "guest code of 8",
        "region 0x8",
        "host code of 8",
        "  b0 8",
        "sub    r15,",
        "<start+0x",
        "sb          zero,0(t0)",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
}

#[test]
fn a_perf_map_names_every_tb_by_its_guest_symbol() {
    let place = Place::new();
    let (pid, output) = notdirty(&["run", &place.guest(), "--perf-map"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    // Where `perf report` looks for it.
    let path = format!("/tmp/perf-{pid}.map");
    let text = std::fs::read_to_string(&path).expect("the map");
    let _ = std::fs::remove_file(&path);
    let mut last = 0;
    for line in text.lines() {
        let mut words = line.split(' ');
        let mut number = || u64::from_str_radix(words.next().expect("a number"), 16).expect("hexadecimal");
        let (start, len) = (number(), number());
        assert!(start >= last, "code does not overlap: {line}");
        last = start + len;
        let name = words.next().expect("a name");
        assert!(name.starts_with("tb:start") || name.starts_with("notdirty:"), "{line}");
    }
    assert!(text.contains("tb:start+0x"), "{text}");
}

#[test]
fn a_jitdump_holds_a_record_for_every_tb() {
    let place = Place::new();
    let dir = place.0.to_str().expect("a plain name");
    let (pid, output) = notdirty(&["run", &place.guest(), "--jitdump", dir]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let bytes = std::fs::read(Path::new(dir).join(format!("jit-{pid}.dump"))).expect("the dump");
    let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    assert_eq!([word(0), word(4), word(20)], [0x4a69_5444, 1, pid]);
    let (mut at, mut names) = (word(8) as usize, Vec::new());
    while at < bytes.len() {
        assert_eq!(word(at), 0, "code load at {at:#x}");
        let end = at + word(at + 4) as usize;
        let name = bytes[at + 56..end].split(|&b| b == 0).next().expect("a name");
        names.push(String::from_utf8_lossy(name).into_owned());
        at = end;
    }
    assert_eq!(at, bytes.len());
    assert!(names.iter().any(|name| name.starts_with("tb:start+0x")), "{names:?}");
}

#[test]
fn a_profile_that_cannot_be_written_gets_one_line_and_code_2() {
    let place = Place::new();
    let (_, output) = notdirty(&["run", &place.guest(), "--jitdump", &place.file("no/such")]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), said.lines().count()), (Some(2), 1), "{said}");
    assert!(said.contains("--jitdump") && said.contains("no/such"), "{said}");
}
