//! Clients that track writes: one of eight columns, and sets of them.
//!
//! ```text
//!   column     0     1     2          3 … 7
//!             VGA  CODE  MIGRATION    clients of run time
//!   mask      bit 0      bit 2        bits 3 … 7
//! ```
//!
//! A number outlives what it names: a client that was dropped may leave its number with a caller, and its column may
//! be another's by then. So a client carries an id that no other client of the process has, and a call that takes bits with an
//! id that is not the column's takes nothing. A [`ClientMask`] has no ids: it is what setters and listeners pass
//! around, and the worst that an old bit in it does is a mark too many.

use super::DirtyMemory;
use crate::ram::RamList;
use core::fmt;
use core::ops::{BitAnd, BitOr, BitOrAssign};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Columns of a row of the table: one cache line of pointers.
pub(super) const CLIENTS: usize = 8;

/// A client: it tracks which pages were written.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct DirtyClient {
    pub(super) column: u8,
    pub(super) id: u64,
}

impl DirtyClient {
    /// The display: which lines to draw again.
    pub const VGA: Self = Self { column: 0, id: 0 };
    /// The translator. Inverted: 1 means that no translated code is on the page. Named by no caller: its bits follow
    /// from the line masks (`code.rs`), and a take or a mark from elsewhere leaves stores to code unheard.
    pub(crate) const CODE: Self = Self { column: 1, id: 0 };
    /// Migration, snapshots: what copies RAM while it is written.
    pub const MIGRATION: Self = Self { column: 2, id: 0 };
    /// The clients that are always there, in the order of their columns.
    pub(super) const FIXED: [Self; 3] = [Self::VGA, Self::CODE, Self::MIGRATION];

    /// The client's column in a row of the table, and its bit in a [`ClientMask`].
    pub const fn column(self) -> usize {
        self.column as usize
    }
}

impl fmt::Debug for DirtyClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::VGA => f.write_str("VGA"),
            Self::CODE => f.write_str("CODE"),
            Self::MIGRATION => f.write_str("MIGRATION"),
            Self { column, .. } => write!(f, "client {column}"),
        }
    }
}

/// A client of run time: a debugger, a checkpoint, a second display. Its column is free again when this drops.
pub struct OwnedClient {
    memory: Arc<dyn AsRef<DirtyMemory> + Send + Sync>,
    client: DirtyClient,
    name: Box<str>,
}

impl OwnedClient {
    pub(super) fn new(memory: Arc<dyn AsRef<DirtyMemory> + Send + Sync>, name: &str) -> Result<Self, NoRoom> {
        /// The fixed clients have id 0. Nothing is ordered by it, so it is std's in a model, too.
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let Some(client) = (*memory).as_ref().blocks.give_column(id) else {
            return Err(NoRoom { name: name.into() });
        };
        Ok(Self { memory, client, name: name.into() })
    }

    /// Its number, for the calls that take one.
    pub fn client(&self) -> DirtyClient {
        self.client
    }

    /// What it was called when it was added.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn memory(&self) -> &DirtyMemory {
        (*self.memory).as_ref()
    }
}

impl Drop for OwnedClient {
    fn drop(&mut self) {
        self.memory().rings().forget(self.client);
        self.memory().blocks.take_column_back(self.client);
    }
}

impl fmt::Debug for OwnedClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?})", self.name, self.client)
    }
}

/// All columns are taken.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no room for dirty client `{name}`: at most {} at run time, drop one first", CLIENTS - DirtyClient::FIXED.len())]
pub struct NoRoom {
    /// The client that was to be added.
    pub name: Box<str>,
}

impl AsRef<DirtyMemory> for DirtyMemory {
    fn as_ref(&self) -> &DirtyMemory {
        self
    }
}

impl AsRef<DirtyMemory> for RamList {
    fn as_ref(&self) -> &DirtyMemory {
        self.dirty()
    }
}

impl RamList {
    /// Adds a client to the list's dirty memory, see [`DirtyMemory::add_client`].
    ///
    /// # Errors
    /// [`NoRoom`] if all numbers are given out: drop an [`OwnedClient`] first.
    pub fn add_client(self: &Arc<Self>, name: &str) -> Result<OwnedClient, NoRoom> {
        DirtyMemory::add_client(self, name)
    }
}

/// A set of clients.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ClientMask(pub(super) u8);

impl ClientMask {
    /// No client.
    pub const NONE: Self = Self(0);
    /// The display alone.
    pub const VGA: Self = Self::of(DirtyClient::VGA);
    /// The translator alone, see [`DirtyClient`]: in no mask that a caller gets or makes.
    pub(crate) const CODE: Self = Self::of(DirtyClient::CODE);
    /// Migration alone.
    pub const MIGRATION: Self = Self::of(DirtyClient::MIGRATION);
    /// The fixed clients.
    pub(super) const FIXED: Self = Self(Self::VGA.0 | Self::CODE.0 | Self::MIGRATION.0);
    /// Every client. The translator is none.
    pub const ALL: Self = Self(!Self::CODE.0);

    /// Every client, and the translator.
    pub(crate) const EVERYTHING: Self = Self(0xff);

    /// The set of `client` alone.
    pub const fn of(client: DirtyClient) -> Self {
        Self(1 << client.column)
    }

    /// Whether no client is in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether all of `other` (a client or a set) are in it.
    pub fn contains(self, other: impl Into<Self>) -> bool {
        let other = other.into();
        self.0 & other.0 == other.0
    }

    /// This set without those in `other` (a client or a set).
    pub fn without(self, other: impl Into<Self>) -> Self {
        Self(self.0 & !other.into().0)
    }

    /// The column in it, if it is the only one.
    #[inline]
    pub(super) fn only(self) -> Option<usize> {
        self.0.is_power_of_two().then_some(self.0.trailing_zeros() as usize)
    }

    /// The columns in it, by rising number.
    #[inline]
    pub(super) fn columns(self) -> impl Iterator<Item = usize> + use<> {
        let mut left = self.0;
        core::iter::from_fn(move || {
            let column = left.trailing_zeros() as usize;
            left &= left.wrapping_sub(1);
            (column < CLIENTS).then_some(column)
        })
    }
}

/// What listens to stores to a page: clients, and perhaps the translator.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Listening(pub(super) ClientMask);

impl Listening {
    /// Nothing: a TLB entry for the page may be fast.
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// The translator: some of the page's lines hold code.
    #[inline]
    pub const fn code(self) -> bool {
        self.0.0 & ClientMask::CODE.0 != 0
    }

    /// The translator, and no client.
    #[inline]
    pub const fn only_code(self) -> bool {
        self.0.0 == ClientMask::CODE.0
    }

    /// The clients.
    #[inline]
    pub const fn clients(self) -> ClientMask {
        ClientMask(self.0.0 & ClientMask::ALL.0)
    }

    /// Whether the client is among them.
    pub fn contains(self, client: DirtyClient) -> bool {
        self.0.contains(client)
    }
}

impl fmt::Debug for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<DirtyClient> for ClientMask {
    fn from(client: DirtyClient) -> Self {
        Self::of(client)
    }
}

impl BitOr for ClientMask {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for ClientMask {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl BitAnd for ClientMask {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl fmt::Debug for ClientMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.columns().map(|column| DirtyClient { column: column as u8, id: 0 })).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_of_clients_are_sets_of_columns() {
        let of = |mask: ClientMask| -> Vec<usize> { mask.columns().collect() };
        let columns =
            |has: &dyn Fn(u8) -> bool| -> Vec<usize> { (0..8u8).filter(|n| has(*n)).map(usize::from).collect() };
        for (a, b) in (0..=255u8).flat_map(|a| (0..=255u8).map(move |b| (a, b))) {
            let (x, y) = (ClientMask(a), ClientMask(b));
            let (in_a, in_b) = (|n: u8| a >> n & 1 != 0, |n: u8| b >> n & 1 != 0);
            let mut both = x;
            both |= y;
            assert_eq!((of(x | y), of(both)), (columns(&|n| in_a(n) || in_b(n)), columns(&|n| in_a(n) || in_b(n))));
            assert_eq!(of(x & y), columns(&|n| in_a(n) && in_b(n)));
            assert_eq!(of(x.without(y)), columns(&|n| in_a(n) && !in_b(n)));
            assert_eq!(x.contains(y), (0..8).all(|n| in_a(n) || !in_b(n)));
            let all = of(x);
            assert_eq!((x.is_empty(), x.only()), (all.is_empty(), all.first().copied().filter(|_| all.len() == 1)));
        }
    }
}
