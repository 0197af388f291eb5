//! Semihosting calls: the guest asks whoever runs it. What is one is the guest's to say (`riscv/semihost.rs`).

/// Answers the calls of a machine's harts.
pub trait Semihosting: Send + Sync {
    /// A call of this hart. It is called on the hart's thread with no lock held, and may read and write guest memory by
    /// the address space.
    fn call(&self, hart: u64, operation: u64, argument: u64) -> SemihostAnswer;
}

/// What became of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SemihostAnswer {
    /// The answer.
    Done(u64),
    /// Not yet: the hart looks at what else there is, and calls again.
    Again,
}
