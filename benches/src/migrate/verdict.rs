//! Whether a figure is what it has to be.

use std::fmt;

/// A figure and its bar.
#[derive(Debug)]
pub(super) struct Verdict {
    what: String,
    figure: f64,
    bar: String,
    /// It is as it has to be.
    pub holds: bool,
}

impl Verdict {
    /// There is no figure where there has to be one.
    pub fn none(what: &str) -> Verdict {
        Verdict { what: what.to_owned(), figure: f64::NAN, bar: "it does not".into(), holds: false }
    }
}

/// It must not be more than that.
pub(super) fn at_most(what: &str, figure: f64, bar: f64) -> Verdict {
    Verdict { what: what.to_owned(), figure, bar: format!("at most {bar}"), holds: figure <= bar }
}

/// It must not be less than that.
pub(super) fn at_least(what: &str, figure: f64, bar: f64) -> Verdict {
    Verdict { what: what.to_owned(), figure, bar: format!("at least {bar}"), holds: figure >= bar }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.holds { "ok" } else { "MISSED" };
        write!(f, "{word:<6} {}: {:.3}, {}", self.what, self.figure, self.bar)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_at_its_bar_holds_and_none_at_all_does_not() {
        assert!(at_most("a", 1.0, 1.0).holds && at_least("a", 2.0, 2.0).holds);
        assert!(!at_most("a", 1.01, 1.0).holds && !at_least("a", 1.99, 2.0).holds);
        assert!(!at_most("a", f64::NAN, 1.0).holds && !at_least("a", f64::NAN, 1.0).holds);
        assert!(!Verdict::none("a").holds && at_most("a", 2.0, 1.0).to_string().starts_with("MISSED"));
    }
}
