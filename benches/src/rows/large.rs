//! Megabytes of code, many blocks, many callers, and two hot functions at every power-of-two distance.

use super::{Group, Row, row};

const BAR: f64 = 1.5;

const fn large(name: &'static str, unit: &'static str) -> Row {
    row(name, Group::Large, unit, BAR)
}

const fn call(program: &'static str, name: &'static str) -> Row {
    Row { program, ..large(name, "call") }
}

macro_rules! distances {
    ($($distance:literal),*) => {
        /// The rows.
        pub const ROWS: &[Row] = &[
            large("code-1M", "insn"),
            large("code-8M", "insn"),
            large("blocks-100k", "block"),
            large("callers-128k", "call"),
            $(call("apart", concat!("apart-", $distance)),)*
            $(call("jump", concat!("jump-", $distance)),)*
        ];
    };
}

distances!(
    "32", "64", "128", "256", "512", "1K", "2K", "4K", "8K", "16K", "32K", "64K", "128K", "256K", "512K", "1M", "2M",
    "4M", "8M", "16M", "32M", "64M"
);
