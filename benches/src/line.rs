//! The lines a bench guest prints, one for each kernel in it: `NAME ticks=N check=HEX n=EVENTS`.

/// What a guest measured of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestLine {
    /// The program's own name for itself.
    pub name: String,
    /// CLINT mtime around the kernel: 100 ns each.
    pub ticks: u64,
    /// The kernel's result, as printed; the guest has compared it with the right one.
    pub check: String,
    /// How many events the kernel went through.
    pub events: u64,
}

impl GuestLine {
    /// Finds the lines among whatever else a console shows.
    pub fn find(console: &str) -> Vec<GuestLine> {
        console.lines().filter_map(GuestLine::parse).collect()
    }

    fn parse(line: &str) -> Option<GuestLine> {
        let mut words = line.split_whitespace();
        let name = words.next()?.to_owned();
        let (mut ticks, mut check, mut events) = (None, None, None);
        for word in words {
            match word.split_once('=')? {
                ("ticks", value) => ticks = Some(value.parse().ok()?),
                ("check", value) => check = Some(value.to_owned()),
                ("n", value) => events = Some(value.parse().ok()?),
                _ => {}
            }
        }
        Some(GuestLine { name, ticks: ticks?, check: check?, events: events? })
    }

    /// The time around the kernel.
    pub fn seconds(&self) -> f64 {
        self.ticks as f64 * 1e-7
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_found_among_other_output() {
        let console = "booting = yes\r\nfib ticks=123 check=00ff n=7\r\nbye\n";
        let [line] = &GuestLine::find(console)[..] else { panic!("one line") };
        assert_eq!((line.name.as_str(), line.ticks, line.check.as_str(), line.events), ("fib", 123, "00ff", 7));
    }

    #[test]
    fn a_guest_with_several_kernels_prints_several_lines() {
        let lines = GuestLine::find("one ticks=1 check=0 n=1\r\ntwo ticks=2 check=0 n=1\r\n");
        assert_eq!(lines.iter().map(|line| line.name.as_str()).collect::<Vec<_>>(), ["one", "two"]);
    }

    #[test]
    fn half_a_line_is_no_line() {
        assert_eq!(GuestLine::find("fib ticks=123 check=00ff"), []);
        assert_eq!(GuestLine::find("fib ticks=x check=00ff n=1"), []);
    }
}
