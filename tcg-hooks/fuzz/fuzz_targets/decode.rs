//! Any bytes, decoded and disassembled: see `testkit::fuzz`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| notdirty_tcg::testkit::fuzz::decode(data));
