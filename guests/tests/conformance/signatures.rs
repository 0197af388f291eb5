//! What a test of riscv-arch-test has to leave: NAME.signature beside it, riscof's reference, or what Spike leaves.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::run::{LIMIT, Scratch, capture};
use crate::table::Verdict;

/// What Spike is asked to be: the hart that this is, misaligned accesses (Zicclsm) included.
const SPIKE_OPTIONS: &[&str] = &[
    concat!(
        "--isa=rv64imafdc_zicsr_zicntr_zihpm_zifencei_zicclsm_zba_zbb_zbc_zbs_zicond_zicbom_zicboz_sstc",
        "_svinval_svadu_svnapot_svpbmt"
    ),
    "--priv=msu",
];

/// What a test that leaves a signature has to leave.
pub struct Expected {
    /// `None`: what the oracle leaves.
    pub reference: Option<String>,
    /// Bytes of each of its words.
    pub granularity: u64,
}

impl Expected {
    pub fn of(program: &Path, spike: Option<&Path>) -> Expected {
        let beside = fs::read_to_string(program.with_extension("signature")).ok();
        let reference = beside.or_else(|| riscof_reference(program)).or_else(|| spike_signature(spike?, program));
        let reference = reference.filter(|text| !text.trim().is_empty());
        // Two digits a byte.
        let digits = reference.as_ref().and_then(|text| text.lines().next()).map_or(8, |line| line.trim().len());
        Expected { reference, granularity: digits.div_ceil(2).max(1) as u64 }
    }
}

/// riscof leaves `TEST.S/dut/my.elf` and `TEST.S/ref/*.signature`.
fn riscof_reference(program: &Path) -> Option<String> {
    let entries = fs::read_dir(program.parent()?.parent()?.join("ref")).ok()?;
    let mut files = entries.flatten().map(|entry| entry.path());
    let file = files.find(|path| path.extension().is_some_and(|extension| extension == "signature"))?;
    fs::read_to_string(file).ok()
}

/// Where Spike is, if it is built.
pub fn spike(corpora: &Path) -> Option<PathBuf> {
    let named = std::env::var_os("SPIKE").filter(|path| !path.is_empty()).map(PathBuf::from);
    let built = corpora.join("riscv-isa-sim/build/spike");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = std::env::split_paths(&path).map(|dir| dir.join("spike"));
    named.into_iter().chain([built]).chain(installed).find(|path| path.is_file())
}

fn spike_signature(spike: &Path, program: &Path) -> Option<String> {
    let signature = Scratch::new("spike");
    let mut command = Command::new(spike);
    command.args(SPIKE_OPTIONS).arg(format!("+signature={}", signature.0.display()));
    command.arg("+signature-granularity=4").arg(program);
    let run = capture(command, Duration::from_secs(LIMIT));
    run.status.is_some_and(|status| status.success()).then(|| signature.text())
}

/// Compares two signatures word by word.
pub fn same_words(left: &str, reference: &str) -> Verdict {
    let words = |text: &str| text.split_whitespace().map(str::to_ascii_lowercase).collect::<Vec<_>>();
    let (left, reference) = (words(left), words(reference));
    if left.len() != reference.len() {
        return Err(format!("{} words, the reference has {}", left.len(), reference.len()));
    }
    let differ: Vec<usize> = (0..left.len()).filter(|&at| left[at] != reference[at]).collect();
    match differ.first() {
        None => Ok(()),
        Some(&at) => {
            let count = differ.len();
            Err(format!("{count} of {} words differ, word {at} is {}, not {}", left.len(), left[at], reference[at]))
        }
    }
}

#[test]
fn a_signature_that_differs_is_told_by_its_first_word() {
    assert_eq!(same_words("00000001\nABCDEF00\n", "00000001\nabcdef00\n"), Ok(()));
    let differs = same_words("00000001\n00000002\n00000003", "00000001\n00000000\n00000000");
    assert_eq!(differs, Err("2 of 3 words differ, word 1 is 00000002, not 00000000".into()));
    assert_eq!(same_words("00000001", ""), Err("1 words, the reference has 0".into()));
}

#[test]
fn a_reference_lies_beside_its_test_or_in_the_tree_of_riscof_and_gives_the_length_of_a_word() {
    let dir = Scratch::new("tree");
    let (dut, reference) = (dir.0.join("add-01.S/dut"), dir.0.join("add-01.S/ref"));
    fs::create_dir_all(&dut).unwrap();
    fs::create_dir_all(&reference).unwrap();
    let program = dut.join("my.elf");
    let expected = || {
        let expected = Expected::of(&program, None);
        (expected.reference, expected.granularity)
    };
    assert_eq!(expected(), (None, 4));
    fs::write(reference.join("Reference-spike.signature"), "0000000000000001\n").unwrap();
    assert_eq!(expected(), (Some("0000000000000001\n".into()), 8));
    fs::write(program.with_extension("signature"), "00000002\n").unwrap();
    assert_eq!(expected(), (Some("00000002\n".into()), 4));
    fs::remove_dir_all(&dir.0).unwrap();
}
