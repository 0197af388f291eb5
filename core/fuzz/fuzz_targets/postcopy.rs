//! Any bytes: see `migration::fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    notdirty_core::migration::fuzz::answers(bytes);
    notdirty_core::migration::fuzz::commands(bytes);
});
