//! Programs of others, as `make -C guests/programs beside` builds them: CoreMark, Embench, interpreters. None of their
//! sources is part of the project; a row whose program is absent is skipped.

use super::{Group, Row, pick_from, row};

const fn program(name: &'static str) -> Row {
    row(name, Group::Programs, "run", 1.0)
}

/// Time goes to indirect jumps, which a translator can lose to.
const fn interpreter(name: &'static str) -> Row {
    row(name, Group::Programs, "run", 4.0)
}

macro_rules! rows {
    (interpreters: $($interpreter:literal),*; embench: $($embench:literal),*) => {
        /// The rows.
        const ROWS: &[Row] = &[
            $(interpreter($interpreter),)*
            program("coremark"),
            $(program(concat!("embench-", $embench)),)*
        ];
    };
}

rows!(
    interpreters: "lua", "micropython";
    embench: "aha-mont64", "crc32", "depthconv", "edn", "huffbench", "matmult-int", "md5sum", "nettle-aes",
        "nettle-sha256", "nsichneu", "picojpeg", "qrduino", "sglib-combined", "slre", "statemate", "tarfind", "ud",
        "wikisort", "xgboost"
);

/// Every row, in the order of the table.
pub fn all() -> Vec<Row> {
    ROWS.to_vec()
}

/// The rows a word on the command line picks, as in the first table.
pub fn pick(word: &str) -> Vec<Row> {
    pick_from(all(), word)
}
