//! Self-modifying programs that bytes decide, on every engine: see `testkit::fuzz`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| notdirty_tcg::testkit::fuzz::smc(data));
