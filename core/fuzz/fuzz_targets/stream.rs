//! Any bytes: see `migration::fuzz`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    notdirty_core::migration::fuzz::stream(data);
});
