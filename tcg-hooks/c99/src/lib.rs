//! The four integers of C's `stdint.h` that `softfloat-sys` names. The published crate of this name compiles a C program
//! with CMake to find their widths; here they are what each C library says they are, so tests need a C compiler only.
#![allow(non_camel_case_types, reason = "C's names")]
#![no_std]

/// One byte everywhere.
pub type uint_fast8_t = u8;
/// A register in glibc, 32 bits elsewhere.
#[cfg(all(target_env = "gnu", target_pointer_width = "64"))]
pub type int_fast32_t = i64;
/// A register in glibc, 32 bits elsewhere.
#[cfg(all(target_env = "gnu", target_pointer_width = "64"))]
pub type uint_fast32_t = u64;
/// A register in glibc, 32 bits elsewhere.
#[cfg(not(all(target_env = "gnu", target_pointer_width = "64")))]
pub type int_fast32_t = i32;
/// A register in glibc, 32 bits elsewhere.
#[cfg(not(all(target_env = "gnu", target_pointer_width = "64")))]
pub type uint_fast32_t = u32;
/// Eight bytes everywhere.
pub type int_fast64_t = i64;
/// Eight bytes everywhere.
pub type uint_fast64_t = u64;
