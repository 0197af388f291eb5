//! IR to host code, and the memory it runs from.
pub mod code_cache;
pub mod x86_64;
