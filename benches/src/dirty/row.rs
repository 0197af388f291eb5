//! What a row is: contenders that do the same work, ours first, and the bar each reference sets.

/// What a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// To ask for a bit, as each TLB fill and each slow store does.
    Read,
    /// To set bits.
    Set,
    /// To take the bits of all RAM.
    Take,
    /// To take them into a migration's bitmap.
    Sync,
    /// The dirty ring.
    Ring,
    /// To add RAM to a running machine.
    Plug,
    /// Bytes of the host for a GiB of the guest.
    Memory,
    /// What logging costs a guest that stores.
    Logging,
}

impl Group {
    /// The group's name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Group::Read => "read",
            Group::Set => "set",
            Group::Take => "take",
            Group::Sync => "sync",
            Group::Ring => "ring",
            Group::Plug => "plug",
            Group::Memory => "host-memory",
            Group::Logging => "logging",
        }
    }
}

/// A row before its turn.
#[derive(Clone, Copy)]
pub struct Entry {
    /// Its name.
    pub name: &'static str,
    /// What it is about.
    pub group: Group,
    /// Builds it. An error is a sentence for the table: why it cannot be measured here.
    pub build: fn() -> Result<Row, String>,
}

/// What one run of a contender gave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Nanoseconds, or bytes, of the whole run.
    pub total: f64,
    /// How many units that was.
    pub units: f64,
    /// A word about the result, the same for all contenders that worked on the same input.
    pub check: u64,
}

impl Sample {
    /// Nanoseconds or bytes of one unit.
    pub fn value(&self) -> f64 {
        self.total / self.units
    }
}

/// What the figures of a row count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Time.
    Nanoseconds,
    /// Memory.
    Bytes,
}

/// What has to hold. Stands at the contender whose figure the sentence begins with, or at the reference that ours,
/// the first contender, is held against.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bar {
    /// Nothing: it is there to be looked at.
    None,
    /// This figure is at most that.
    AtMost(f64),
    /// Ours is at most this figure and that much more.
    OursPlus(f64),
    /// Ours is at most that many times this figure.
    OursWithin(f64),
    /// This figure is at least that many times ours.
    TimesOurs(f64),
    /// This figure is at most that many times ours: another mode of ours, held against the first.
    WithinOurs(f64),
}

/// Runs a contender once.
pub type Run = Box<dyn FnMut() -> Result<Sample, String>>;

/// A contender: what does the row's work.
pub struct Contender {
    /// Its name in the table.
    pub name: &'static str,
    /// The bar, see there.
    pub bar: Bar,
    /// One run; what it has to prepare it does not count.
    pub run: Result<Run, String>,
}

impl Contender {
    /// A contender without a bar.
    pub fn new(name: &'static str, run: impl FnMut() -> Sample + 'static) -> Contender {
        let mut run = run;
        Contender { name, bar: Bar::None, run: Ok(Box::new(move || Ok(run()))) }
    }

    /// One whose runs can fail.
    pub fn fallible(name: &'static str, run: impl FnMut() -> Result<Sample, String> + 'static) -> Contender {
        Contender { name, bar: Bar::None, run: Ok(Box::new(run)) }
    }

    /// One that is not here; the table says why.
    pub fn absent(name: &'static str, why: String) -> Contender {
        Contender { name, bar: Bar::None, run: Err(why) }
    }

    /// With a bar.
    pub fn bar(self, bar: Bar) -> Contender {
        Contender { bar, ..self }
    }
}

/// A row that is ready to be measured.
pub struct Row {
    /// One unit of work, as a word.
    pub unit: &'static str,
    /// What is counted.
    pub measure: Measure,
    /// Ours first.
    pub contenders: Vec<Contender>,
    /// At most so many rounds, for rows whose runs are long.
    pub rounds: usize,
    /// A sentence on how to read the figures, if they need one.
    pub note: Option<String>,
}

impl Row {
    /// A row of times.
    pub fn times(unit: &'static str, contenders: Vec<Contender>) -> Row {
        Row { unit, measure: Measure::Nanoseconds, contenders, rounds: usize::MAX, note: None }
    }

    /// With a remark.
    pub fn note(self, note: impl Into<String>) -> Row {
        Row { note: Some(note.into()), ..self }
    }

    /// With fewer rounds.
    pub fn rounds(self, rounds: usize) -> Row {
        Row { rounds, ..self }
    }
}
