//! What the crates say through `log`: on standard error, warnings and worse unless `--log` or `RUST_LOG` asks for more.
//!
//! In the library it is left to the embedder, which installs a logger or does not.

use std::io::Write;

use log::LevelFilter;

/// Levels, for messages.
pub(super) const LEVELS: &str = "off, error, warn, info, debug or trace";

/// Is it `LEVEL`, or a list of these and of `MODULE=LEVEL`?
pub(super) fn is_filter(text: &str) -> bool {
    text.split(',').all(|item| {
        let level = item.rsplit_once('=').map_or(item, |(_, level)| level);
        level.parse::<LevelFilter>().is_ok()
    })
}

/// From now on records go to standard error: those that `filter` lets through, or else the environment.
pub(super) fn start(filter: Option<&str>) {
    let mut builder = env_logger::Builder::new();
    match (filter, std::env::var("RUST_LOG")) {
        (Some(filter), _) => builder.parse_filters(filter),
        (None, Ok(filter)) => builder.parse_filters(&filter),
        (None, Err(_)) => builder.filter_level(LevelFilter::Warn),
    };
    builder.format(|out, record| {
        let level = record.level().as_str().to_ascii_lowercase();
        let level = if level == "warn" { "warning" } else { &level };
        writeln!(out, "notdirty: {level}: {}", record.args())
    });
    // Whoever called this has a logger already, if this fails.
    let _ = builder.try_init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_levels_and_levels_of_modules() {
        for good in ["debug", "warn,notdirty=trace", "off", "notdirty_tcg::tb=info"] {
            assert!(is_filter(good), "{good}");
        }
        for bad in ["", "loud", "notdirty=loud", "warn,,info"] {
            assert!(!is_filter(bad), "{bad}");
        }
    }
}
