//! What a part remembers, as a section of a stream, and back.
//!
//! ```text
//!   Saved ── section ─▶ named values ── stream ─▶ named values ── take ─▶ Saved of the part that is there ─▶ restore
//! ```
//!
//! Each field is found by its name. One that is missing, not known here, of another kind, or of a value that the part does not hold is
//! refused by name, and then nothing was changed. A section of a newer version is refused, one of an older version is taken if it has
//! the fields.

use crate::state::{Fields, Saved, Value};
use notdirty_core::migration::{Field, FieldValue, Section};

/// A section that does not fit the part.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{section}: {why}")]
pub struct SectionError {
    /// Its name and number.
    pub section: String,
    /// What does not fit.
    #[source]
    pub why: Misfit,
}

/// What does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Misfit {
    /// It was written by a newer build.
    #[error("its version is {theirs}, known here is up to {ours}")]
    Newer {
        /// The stream's.
        theirs: u32,
        /// The part's.
        ours: u32,
    },
    /// The stream lacks a field.
    #[error("the field {field} is missing")]
    Missing {
        /// Which.
        field: String,
    },
    /// The part lacks a field.
    #[error("the field {field} is not known here")]
    Unknown {
        /// Which.
        field: String,
    },
    /// It came twice.
    #[error("the field {field} is there twice")]
    Twice {
        /// Which.
        field: String,
    },
    /// It is another kind of value.
    #[error("the field {field} is {theirs} in the stream, {ours} here")]
    Kind {
        /// Which.
        field: String,
        /// The stream's.
        theirs: &'static str,
        /// The part's.
        ours: &'static str,
    },
    /// The part cannot hold its value.
    #[error("the field {field} cannot be {value}")]
    Value {
        /// Which.
        field: String,
        /// What the stream says.
        value: String,
    },
}

fn value_of(value: &Value<'_>) -> FieldValue {
    match value {
        Value::Bool(value) => FieldValue::Bool(**value),
        Value::U8(value) => FieldValue::U8(**value),
        Value::U32(value) => FieldValue::U32(**value),
        Value::U64(value) => FieldValue::U64(**value),
        Value::Bytes(value) => FieldValue::Bytes((*value).clone()),
        Value::U64s(value) => FieldValue::U64s((*value).clone()),
    }
}

/// Puts a value of the stream; not if it is of another kind.
fn put(value: Value<'_>, from: &FieldValue) -> bool {
    match (value, from) {
        (Value::Bool(to), FieldValue::Bool(from)) => *to = *from,
        (Value::U8(to), FieldValue::U8(from)) => *to = *from,
        (Value::U32(to), FieldValue::U32(from)) => *to = *from,
        (Value::U64(to), FieldValue::U64(from)) => *to = *from,
        (Value::Bytes(to), FieldValue::Bytes(from)) => to.clone_from(from),
        (Value::U64s(to), FieldValue::U64s(from)) => to.clone_from(from),
        _ => return false,
    }
    true
}

/// Fields as a section.
pub fn section_of<T: Fields>(state: &mut T, instance: u32) -> Section {
    let mut fields = Vec::new();
    state.each(&mut |name, value| fields.push(Field { name: name.to_owned(), value: value_of(&value) }));
    Section { name: T::NAME.to_owned(), instance, version: T::VERSION, fields }
}

/// Fields from a section: those of `into`, which has its own values for what is compared.
///
/// # Errors
/// [`SectionError`]; then `into` holds anything.
pub fn take_section<T: Fields>(into: &mut T, section: &Section) -> Result<(), SectionError> {
    take(T::VERSION, section, |visit| into.each(visit))
}

/// The same of whatever has fields: `each` visits them.
fn take(
    version: u32,
    section: &Section,
    mut each: impl FnMut(&mut dyn FnMut(&'static str, Value<'_>)),
) -> Result<(), SectionError> {
    let refuse = |why| SectionError { section: section.label(), why };
    if section.version > version {
        return Err(refuse(Misfit::Newer { theirs: section.version, ours: version }));
    }
    let (mut wrong, mut known) = (None, Vec::new());
    each(&mut |name, value| {
        known.push(name);
        let field = name.to_owned();
        let misfit = match section.get(name) {
            None => Some(Misfit::Missing { field }),
            Some(from) => {
                let (ours, theirs) = (value_of(&value).kind(), from.kind());
                (!put(value, from)).then_some(Misfit::Kind { field, theirs, ours })
            }
        };
        wrong = wrong.take().or(misfit);
    });
    for (n, field) in section.fields.iter().enumerate() {
        let twice = section.fields[..n].iter().any(|other| other.name == field.name);
        let name = || field.name.clone();
        let misfit = match known.contains(&field.name.as_str()) {
            true => twice.then(|| Misfit::Twice { field: name() }),
            false => Some(Misfit::Unknown { field: name() }),
        };
        wrong = wrong.or(misfit);
    }
    // What it holds now, where a field stands for something with fewer values.
    each(&mut |name, value| {
        let held = value_of(&value);
        if let Some(from) = section.get(name).filter(|from| **from != held) {
            let misfit = Misfit::Value { field: name.to_owned(), value: format!("{from:?}") };
            wrong = wrong.take().or(Some(misfit));
        }
    });
    wrong.map_or(Ok(()), |why| Err(refuse(why)))
}

impl Saved {
    /// As a section of a stream.
    pub fn section(&mut self, instance: u32) -> Section {
        let mut fields = Vec::new();
        let (name, version) =
            self.fields(&mut |name, value| fields.push(Field { name: name.to_owned(), value: value_of(&value) }));
        Section { name: name.to_owned(), instance, version, fields }
    }

    /// What a section says, over what a part of that kind remembers now.
    ///
    /// # Errors
    /// [`SectionError`]; then this holds anything.
    pub fn take_section(&mut self, section: &Section) -> Result<(), SectionError> {
        let (_, version) = self.fields(&mut |_, _| {});
        take(version, section, |visit| {
            self.fields(visit);
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::fields! {
        struct Timer: "timer", version 2 { count: u64, armed: bool, queue: Vec<u8> }
    }

    fn timer() -> Timer {
        Timer { count: 3, armed: true, queue: b"ab".to_vec() }
    }

    #[test]
    fn fields_come_back_by_their_names_in_whatever_order() {
        let mut section = section_of(&mut timer(), 1);
        section.fields.reverse();
        let mut back = Timer::default();
        take_section(&mut back, &section).unwrap();
        assert_eq!(back, timer());
        section.version = 1;
        take_section(&mut back, &section).expect("an older one that has the fields");
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let refused = |change: &dyn Fn(&mut Section)| {
            let mut section = section_of(&mut timer(), 1);
            change(&mut section);
            take_section(&mut Timer::default(), &section).unwrap_err().to_string()
        };
        let field = |name: &str, value| Field { name: name.into(), value };
        assert_eq!(refused(&|s| s.version = 3), "timer 1: its version is 3, known here is up to 2");
        assert_eq!(refused(&|s| drop(s.fields.remove(1))), "timer 1: the field armed is missing");
        assert_eq!(
            refused(&|s| s.fields.push(field("speed", FieldValue::U8(1)))),
            "timer 1: the field speed is not known here"
        );
        assert_eq!(
            refused(&|s| s.fields.push(field("armed", FieldValue::Bool(true)))),
            "timer 1: the field armed is there twice"
        );
        assert_eq!(
            refused(&|s| s.fields[0].value = FieldValue::U32(1)),
            "timer 1: the field count is a 32-bit number in the stream, a 64-bit number here"
        );
    }
}
