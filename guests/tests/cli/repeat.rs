//! `--checkpoint-at`, `--repeat`, `--turns`, `replay`.

use super::*;
use notdirty::programs::targets::{INPUT, Target, called, race};

fn elf(target: Target, function: &'static str, input: &[u8]) -> Temp {
    let mut elf = Elf::new(target.image.load_addr, target.image.bytes);
    elf.symbols.push((function, target.ready, 4));
    let input = [&(input.len() as u64).to_le_bytes()[..], input].concat();
    let len = input.len() as u64;
    elf.segments.push((INPUT, INPUT, input, len));
    Temp::new(&elf.bytes())
}

#[test]
fn an_input_is_replayed_to_where_the_function_returns_or_crashes() {
    let file = elf(called(), "parse", b"");
    for engine in ENGINES {
        let replay = |input: &[u8]| {
            let input = Temp::new(input);
            notdirty(&["replay", file.name(), input.name(), "--checkpoint-at", "parse", "--engine", engine])
        };
        for (input, sum) in [(&b""[..], "a0 = 0x0"), (b"ab", "a0 = 0xc3"), (&[1; 256], "a0 = 0x100")] {
            let output = replay(input);
            assert_eq!(code(&output), 0, "{}", stderr(&output));
            assert!(stderr(&output).contains(sum), "{input:x?}: {}", stderr(&output));
        }
        let output = replay(b"\x80 and more");
        assert_eq!(code(&output), 3, "{}", stderr(&output));
        assert!(stderr(&output).contains("store"), "{}", stderr(&output));
        let output = replay(&[1; 257]);
        assert_eq!(code(&output), 2, "{}", stderr(&output));
        assert!(
            stderr(&output).contains("257 bytes") && stderr(&output).contains("room for 256"),
            "{}",
            stderr(&output)
        );
    }
}

#[test]
fn a_run_from_a_checkpoint_is_repeated_until_a_seed_makes_it_fail_and_that_seed_makes_it_fail_at_once() {
    let file = elf(race(), "begin", &[100]);
    let run = |seed: &str, repeat: &str| {
        let common = ["run", file.name(), "--smp", "2", "--clock", "insns", "--checkpoint-at", "begin"];
        // One hart that crashed may be waited for by the other for ever.
        notdirty(&[&common[..], &["--turns", seed, "--repeat", repeat, "--max-insns", "1000000"]].concat())
    };
    let output = run("1", "2000");
    let text = stderr(&output);
    assert!(matches!(code(&output), 3 | 125), "{text}");
    assert!(text.contains("access fault"), "{text}");
    let (_, seed) = text.split_once("--turns ").expect("it says the seed");
    let seed = seed.split(|c: char| !c.is_ascii_digit()).next().unwrap();
    assert_ne!(seed, "1", "{text}");
    assert_eq!(code(&run("1", "3")), 0);
    let again = run(seed, "1");
    assert_eq!(code(&again), code(&output), "{}", stderr(&again));
    println!("lost by seed {seed}");
}

#[test]
fn what_cannot_be_repeated_is_said() {
    let file = elf(called(), "parse", b"");
    refused(&["run", file.name(), "--checkpoint-at", "nowhere"], &["--checkpoint-at nowhere", "no such symbol"]);
    let input = "/nonexistent/input";
    let output = notdirty(&["replay", file.name(), input, "--checkpoint-at", "parse"]);
    assert_eq!((code(&output), stderr(&output).contains(input)), (2, true), "{}", stderr(&output));
}
