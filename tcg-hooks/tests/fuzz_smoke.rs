//! The bodies of the fuzz targets (see `fuzz/`) over a corpus that is the same every time.
//!
//!   NOTDIRTY_FUZZ_INPUTS=N   how many inputs of the costly kind (300 unless said)
use notdirty_tcg::testkit::fuzz;

fn inputs() -> u64 {
    std::env::var("NOTDIRTY_FUZZ_INPUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(300)
}

#[test]
fn engines_agree_on_self_modifying_programs_that_bytes_decide() {
    fuzz::smc(&[]);
    (0..inputs()).for_each(|n| fuzz::smc(&fuzz::sample(n)));
}

#[test]
fn any_bytes_decode_to_something() {
    fuzz::decode(&[]);
    (0..10 * inputs()).for_each(|n| fuzz::decode(&fuzz::sample(n)));
}
