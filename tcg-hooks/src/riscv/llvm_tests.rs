//! Our decoder and our disassembler against LLVM's assembler, where it is installed; elsewhere these tests say so
//! and pass.
use super::compressed::expand;
use super::decode::{Insn, decode};
use super::disasm;
use super::opcodes::{Op, PATTERNS};
use std::collections::HashMap;
use std::io::Write;
use std::process::{Command, Stdio};

/// What LLVM is told of our extensions, without and with the short forms.
const LONG: &str = "-mattr=+m,+a,+f,+d,+zba,+zbb,+zbc,+zbs,+zicbom,+zicbop,+zicboz,+experimental-zicond,+svinval";
const SHORT: &str = "-mattr=+m,+a,+f,+d,+c";

/// Runs `llvm-mc` over `input`; pairs of (encoding, text) come back. `None` if there is no such tool.
fn llvm_mc(args: &[&str], input: String) -> Option<Vec<(u32, String)>> {
    let child = Command::new("llvm-mc")
        .args(["-triple=riscv64", "--show-encoding"])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        eprintln!("skipped: llvm-mc is not installed");
        return None;
    };
    let mut stdin = child.stdin.take()?;
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().ok()?;
    let _ = writer.join();
    if String::from_utf8_lossy(&output.stderr).contains("unable to get target") {
        eprintln!("skipped: this llvm-mc knows no riscv64");
        return None;
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Some(text.lines().filter_map(parse).collect())
}

/// `\taddi a0, a0, 1   # encoding: [0x13,0x05,0x15,0x00]`
fn parse(line: &str) -> Option<(u32, String)> {
    let (text, comment) = line.split_once('#')?;
    let bytes = comment.split_once('[')?.1.split_once(']')?.0;
    let mut bits = 0;
    for (i, byte) in bytes.split(',').enumerate() {
        bits |= u32::from_str_radix(byte.trim().strip_prefix("0x")?, 16).ok()? << (8 * i);
    }
    Some((bits, text.trim().to_string()))
}

#[test]
fn every_compressed_form_means_what_llvm_says() {
    let halves = || (0..=0xffffu32).filter(|h| h & 3 != 3);
    let input = halves().map(|h| format!("[{:#04x} {:#04x}]\n", h & 0xff, h >> 8)).collect();
    let Some(known) = llvm_mc(&[SHORT, "--disassemble"], input) else { return };
    let known: HashMap<u32, String> = known.into_iter().collect();
    // LLVM's text of a short form is that of the long one, which assembles without C; only a HINT keeps its `c.`.
    let (hints, plain): (Vec<_>, Vec<_>) = known.iter().partition(|(_, text)| text.starts_with("c."));
    let source = plain.iter().map(|(_, text)| format!("{text}\n")).collect();
    let Some(long) = llvm_mc(&[LONG], source) else { return };
    assert_eq!(long.len(), plain.len(), "each text assembles");
    let meaning: HashMap<u32, u32> = plain.iter().map(|(h, _)| **h).zip(long.iter().map(|(bits, _)| *bits)).collect();
    let hints: HashMap<u32, &String> = hints.into_iter().map(|(h, text)| (*h, text)).collect();

    let mut wrong = Vec::new();
    for h in halves() {
        let ours = expand(h as u16);
        // The manual reserves c.lui with an immediate of 0, which LLVM prints; and it names 0000 on purpose.
        let reserved = h & 0xf07f == 0x6001 && h != 0x6101 || h == 0;
        let same = match (meaning.get(&h), hints.get(&h)) {
            _ if reserved => ours.op == Op::Illegal,
            (Some(&bits), _) => normal(ours) == normal(decode(bits)),
            (None, Some(_)) => changes_nothing(&ours),
            (None, None) => ours.op == Op::Illegal,
        };
        if !same {
            wrong.push(format!("{h:#06x} {:<24} {ours:?}", known.get(&h).map_or("-", |t| t)));
        }
    }
    assert!(wrong.is_empty(), "{} forms differ:\n{}", wrong.len(), wrong[..wrong.len().min(60)].join("\n"));
}

fn changes_nothing(insn: &Insn) -> bool {
    let to_zero = insn.op.writes_rd() && insn.rd == 0 && !insn.op.is_memory() && !insn.op.is_jump();
    let no_shift = matches!(insn.op, Op::Slli | Op::Srli | Op::Srai) && insn.rd == insn.rs1 && insn.imm == 0;
    to_zero || no_shift
}

/// Two spellings of a move are one; so is the length.
fn normal(mut insn: Insn) -> Insn {
    insn.len = 4;
    if insn.op == Op::Add && insn.rs1 == 0 {
        (insn.op, insn.rs1, insn.rs2) = (Op::Addi, insn.rs2, 0);
    }
    insn
}

#[test]
fn llvm_assembles_our_text_to_the_same_bits() {
    let mut s = 0x1234_5678_9abc_def1u64;
    let mut words = Vec::new();
    // An older one lacks these.
    let probes = [
        ("cbo.", "zero (a0)\n"),
        ("prefetch.", "r 0(a0)\n"),
        ("czero.", "eqz a0,a0,a0\n"),
        ("sinval.", "vma a0,a0\n"),
        ("sfence.w.", "inval\n"),
        ("sfence.inval.", "ir\n"),
    ];
    let lacks = |name: &str, rest: &str| llvm_mc(&[LONG], format!("{name}{rest}")).is_some_and(|out| out.is_empty());
    let absent: Vec<&str> = probes.iter().filter(|(name, rest)| lacks(name, rest)).map(|probe| probe.0).collect();
    for p in PATTERNS {
        // Reserved fields that we ignore cannot be written down.
        if matches!(p.op, Op::Fence | Op::FenceI) {
            continue;
        }
        for _ in 0..150 {
            s ^= s << 13;
            s ^= s >> 7;
            s ^= s << 17;
            let bits = p.value | (s >> 20) as u32 & !p.mask;
            let exact = matches!(p.op, Op::FcvtDS | Op::FcvtDW | Op::FcvtDWu);
            // A mode that is reserved, or one that makes no difference, which an older one cannot write down.
            if p.format.has_rounding() && (matches!(bits >> 12 & 7, 5 | 6) || exact && bits >> 12 & 7 != 0) {
                continue;
            }
            if absent.iter().any(|name| disasm::text(&decode(bits), 0).starts_with(name)) {
                continue;
            }
            // A target is an address; a negative offset from 0 is none.
            if decode(bits).imm >= 0 || !(p.op.is_branch() || p.op == Op::Jal) {
                words.push(bits);
            }
        }
    }
    words.extend([0x0ff0_000f, 0x0330_000f, 0x8330_000f, 0x0000_100f, 0x0120_000f]);
    let source = words.iter().map(|&bits| {
        let insn = decode(bits);
        let text = disasm::text(&insn, 0);
        // The assembler wants numbers with their base.
        let text = if insn.op.is_branch() || insn.op == Op::Jal {
            let at = text.rfind([',', '\t']).map_or(0, |i| i + 1);
            format!("{}0x{}", &text[..at], &text[at..])
        } else {
            text
        };
        format!("{text}\n")
    });
    let lines: Vec<String> = source.collect();
    let Some(assembled) = llvm_mc(&[LONG], lines.concat()) else { return };
    let by_line: Vec<u32> = assembled.into_iter().map(|(bits, _)| bits).collect();
    if by_line.len() != lines.len() {
        for (line, &bits) in lines.iter().zip(&words) {
            if llvm_mc(&[LONG], line.clone()).is_some_and(|out| out.is_empty()) {
                panic!("does not assemble: {line:?} ({bits:#010x})");
            }
        }
    }
    for ((line, &bits), back) in lines.iter().zip(&words).zip(by_line) {
        assert_eq!(back, bits, "{line:?}: {back:#010x} for {bits:#010x}");
    }
}
