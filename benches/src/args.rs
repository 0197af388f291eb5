//! The command line that the tables share: `[ROW=name|group|prefix]... [RUNS=n]`, and switches of a table's own.

/// A table's rows, and how they are named.
pub struct Rows<R> {
    /// Those that are measured if none are asked for.
    pub all: Vec<R>,
    /// Every name there is.
    pub names: Vec<&'static str>,
    /// The rows that a word names.
    pub pick: fn(&str) -> Vec<R>,
    /// Does the word name rows of another table, which gets the same words?
    pub elsewhere: fn(&str) -> bool,
}

/// What was asked for.
#[derive(Debug)]
pub struct Args<R> {
    /// What to measure; nothing, if all that was named is elsewhere.
    pub rows: Vec<R>,
    /// How often.
    pub rounds: usize,
    switches: Vec<&'static str>,
}

impl<R> Args<R> {
    /// Reads the words after the command's name.
    pub fn parse(
        args: impl Iterator<Item = String>,
        rows: Rows<R>,
        rounds: usize,
        switches: &[&'static str],
    ) -> Result<Self, String> {
        let mut parsed = Args { rows: Vec::new(), rounds, switches: Vec::new() };
        let mut asked = false;
        for arg in args {
            match arg.split_once('=') {
                Some(("ROW", words)) => {
                    asked = true;
                    for word in words.split(',') {
                        let picked = (rows.pick)(word);
                        if picked.is_empty() && !(rows.elsewhere)(word) {
                            return Err(format!("no row {word}; there are {}", rows.names.join(", ")));
                        }
                        parsed.rows.extend(picked);
                    }
                }
                Some(("RUNS", count)) => {
                    parsed.rounds =
                        count.parse().ok().filter(|&n| n > 0).ok_or(format!("RUNS={count}: not a count"))?;
                }
                _ => match switches.iter().find(|switch| **switch == arg) {
                    Some(switch) => parsed.switches.push(switch),
                    None => {
                        let own: String = switches.iter().map(|switch| format!(" {switch}")).collect();
                        return Err(format!("{arg}: not an option (ROW=name RUNS=n{own})"));
                    }
                },
            }
        }
        if !asked {
            parsed.rows = rows.all;
        }
        Ok(parsed)
    }

    /// Was this switch given?
    pub fn has(&self, switch: &str) -> bool {
        self.switches.contains(&switch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Args<u32>, String> {
        let pick =
            |word: &str| ["one", "two"].iter().zip(1..).filter(|(name, _)| **name == word).map(|(_, n)| n).collect();
        let rows = Rows { all: vec![1, 2], names: vec!["one", "two"], pick, elsewhere: |word| word == "three" };
        Args::parse(words.iter().map(|word| word.to_string()), rows, 7, &["--json"])
    }

    #[test]
    fn rows_runs_and_switches_are_read_and_nothing_else() {
        let all = parse(&[]).unwrap();
        assert_eq!((&all.rows[..], all.rounds, all.has("--json")), (&[1, 2][..], 7, false));
        let some = parse(&["RUNS=3", "ROW=two,three", "--json", "ROW=one"]).unwrap();
        assert_eq!((&some.rows[..], some.rounds, some.has("--json")), (&[2, 1][..], 3, true));
        assert!(parse(&["ROW=three"]).unwrap().rows.is_empty(), "it is the other table's");
        for (word, why) in [
            ("ROW=four", "no row four; there are one, two"),
            ("RUNS=0", "RUNS=0: not a count"),
            ("RUNS=x", "RUNS=x: not a count"),
            ("--quick", "--quick: not an option (ROW=name RUNS=n --json)"),
        ] {
            assert_eq!(parse(&[word]).unwrap_err(), why);
        }
    }
}
