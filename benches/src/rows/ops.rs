//! Instructions that a translator easily leaves to a slow path, each alone: on one hart; on two, with their data in one
//! cache line and in pages of their own.

use super::{Group, Row, row};

const fn op(name: &'static str) -> Row {
    Row { program: "ops", ..row(name, Group::Ops, "op", 1.0) }
}

const fn op_2h(name: &'static str) -> Row {
    Row { program: "ops-2h", harts: 2, ..op(name) }
}

macro_rules! rows {
    (data: $($data:literal),*; no_data: $($plain:literal),*) => {
        /// The rows.
        pub const ROWS: &[Row] = &[
            $(op($data),)*
            $(op($plain),)*
            $(op_2h(concat!($data, "-shared")), op_2h(concat!($data, "-apart")),)*
            $(op_2h(concat!($plain, "-2")),)*
        ];
    };
}

rows!(
    data: "amoadd.w", "amoadd.d", "amoswap.w", "amoswap.d", "amoor.w", "amoor.d", "lrsc.w", "lrsc.d", "ld-odd",
        "ld-line", "sd-odd", "sd-line";
    no_data: "mhartid", "time", "minstret", "fence", "fence-r-rw", "fence-rw-w", "fence.i"
);
