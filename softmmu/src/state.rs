//! What a part of a machine remembers, as plain values with names: what a checkpoint keeps, and a stream writes and reads.
//!
//! ```text
//!   part ── save ─▶ its own struct of plain values (Fields: name, version, each field by its name)
//!        ◀─ restore ─┘      nothing is serialised on this way; a stream walks the fields instead
//!
//!   MmioDevice::state ─▶ Stateless │ Kept(the part) │ Unknown: a machine with it is not saved, and the error names it
//! ```

use std::any::Any;
use std::fmt;

/// One field, to be looked at or replaced.
#[derive(Debug)]
#[non_exhaustive]
pub enum Value<'a> {
    /// A truth.
    Bool(&'a mut bool),
    /// A byte.
    U8(&'a mut u8),
    /// A number.
    U32(&'a mut u32),
    /// A number.
    U64(&'a mut u64),
    /// Some bytes.
    Bytes(&'a mut Vec<u8>),
    /// Some numbers.
    U64s(&'a mut Vec<u64>),
}

/// What can be a field.
pub trait AsValue {
    /// As a value.
    fn as_value(&mut self) -> Value<'_>;
}

macro_rules! as_value {
    ($($kind:ident: $ty:ty),*) => {$(
        impl AsValue for $ty {
            fn as_value(&mut self) -> Value<'_> {
                Value::$kind(self)
            }
        }
    )*};
}
as_value!(Bool: bool, U8: u8, U32: u32, U64: u64, Bytes: Vec<u8>, U64s: Vec<u64>);

/// Plain values with names. [`fields!`](crate::fields) makes a struct into it.
pub trait Fields: Clone + PartialEq + fmt::Debug + Send + Sync + 'static {
    /// What kind of part it is of. It never changes.
    const NAME: &'static str;
    /// Goes up when a field comes, goes, or means something else.
    const VERSION: u32;
    /// Each field with its name, always in the same order.
    fn each(&mut self, visit: &mut dyn FnMut(&'static str, Value<'_>));
}

/// Makes a struct of plain values into [`Fields`].
///
/// ```
/// notdirty_softmmu::fields! {
///     /// A timer.
///     pub struct TimerState: "timer", version 1 {
///         pub count: u64,
///         pub armed: bool,
///     }
/// }
/// # use notdirty_softmmu::Fields;
/// let mut names = Vec::new();
/// TimerState { count: 3, armed: true }.each(&mut |name, value| names.push(format!("{name}: {value:?}")));
/// assert_eq!(names, ["count: U64(3)", "armed: Bool(true)"]);
/// ```
#[macro_export]
macro_rules! fields {
    ($(#[$meta:meta])* $vis:vis struct $name:ident: $text:literal, version $version:literal {
        $($(#[$doc:meta])* $field_vis:vis $field:ident: $ty:ty),* $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Clone, PartialEq, Debug, Default)]
        $vis struct $name { $($(#[$doc])* $field_vis $field: $ty),* }

        impl $crate::Fields for $name {
            const NAME: &'static str = $text;
            const VERSION: u32 = $version;
            fn each(&mut self, visit: &mut dyn FnMut(&'static str, $crate::Value<'_>)) {
                let _ = &visit;
                $(visit(stringify!($field), $crate::AsValue::as_value(&mut self.$field));)*
            }
        }
    };
}

/// A part of a machine that remembers something.
pub trait Stateful: Send + Sync {
    /// What it remembers.
    type State: Fields;
    /// As it is now.
    fn save(&self) -> Self::State;
    /// As it was. Called while no vCPU runs.
    fn restore(&self, state: &Self::State);
}

/// A [`Stateful`] part of whatever kind. Every one is.
pub trait Part: Send + Sync {
    /// What kind of part it is.
    fn kind(&self) -> &'static str;
    /// As it is now.
    fn save_any(&self) -> Saved;
    /// As it was; `false` if that was saved by a part of another kind, and nothing happened.
    fn restore_any(&self, saved: &Saved) -> bool;
}

impl<T: Stateful> Part for T {
    fn kind(&self) -> &'static str {
        T::State::NAME
    }

    fn save_any(&self) -> Saved {
        Saved(Box::new(self.save()))
    }

    fn restore_any(&self, saved: &Saved) -> bool {
        let state = saved.0.as_any().downcast_ref::<T::State>();
        state.inspect(|state| self.restore(state)).is_some()
    }
}

/// What a part remembered.
pub struct Saved(Box<dyn AnyFields>);

impl Saved {
    /// What has these fields.
    pub fn new<T: Fields>(state: T) -> Saved {
        Saved(Box::new(state))
    }

    /// It, if it is of this type.
    pub fn get<T: Fields>(&self) -> Option<&T> {
        self.0.as_any().downcast_ref()
    }

    /// What kind of part it is of, in which version, and its fields.
    pub fn fields(&mut self, visit: &mut dyn FnMut(&'static str, Value<'_>)) -> (&'static str, u32) {
        self.0.each_field(visit)
    }
}

impl Clone for Saved {
    fn clone(&self) -> Self {
        Saved(self.0.copy())
    }
}

impl PartialEq for Saved {
    fn eq(&self, other: &Self) -> bool {
        self.0.is(&*other.0)
    }
}

impl fmt::Debug for Saved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

trait AnyFields: fmt::Debug + Send + Sync {
    fn as_any(&self) -> &dyn Any;
    fn copy(&self) -> Box<dyn AnyFields>;
    fn is(&self, other: &dyn AnyFields) -> bool;
    fn each_field(&mut self, visit: &mut dyn FnMut(&'static str, Value<'_>)) -> (&'static str, u32);
}

impl<T: Fields> AnyFields for T {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn copy(&self) -> Box<dyn AnyFields> {
        Box::new(self.clone())
    }

    fn is(&self, other: &dyn AnyFields) -> bool {
        other.as_any().downcast_ref::<T>() == Some(self)
    }

    fn each_field(&mut self, visit: &mut dyn FnMut(&'static str, Value<'_>)) -> (&'static str, u32) {
        self.each(visit);
        (T::NAME, T::VERSION)
    }
}

/// What a device says of its state.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub enum DeviceState<'a> {
    /// It remembers nothing from one access to the next.
    Stateless,
    /// This part has it. Several devices may name one.
    Kept(&'a dyn Part),
    /// It does not say, so a machine that has it cannot be saved.
    Unknown,
}
