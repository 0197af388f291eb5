//! Machines that begin at a checkpoint of another, and share with it and with each other what they have not written.
//!
//! ```text
//!   machine.share(&checkpoint) ─▶ Baseline { recipe, sections, RAM in files }      core ram/image/baseline.rs
//!        │ its image lies there, too                │ MachineBuilder::build_on, on any thread, as often as one likes
//!        ▼                                          ▼
//!   restore(&checkpoint)                      a machine at that checkpoint, which it takes for the root of its own tree
//! ```
//!
//! What the machine is like and what its devices remember goes the way of a stream (`state.rs`), so what cannot be saved there cannot be
//! shared; RAM does not. A machine knows the one checkpoint that it began at, and its own: it refuses all others of the first machine.

use std::sync::{Arc, PoisonError, Weak};

use notdirty_core::migration::Section;
use notdirty_core::{Image, ImageError};
use notdirty_tcg::VcpuState;

use super::checkpoint::Node;
use super::{Checkpoint, CheckpointError, Machine, MachineBuilder, MigrationError};
use crate::load::{FrameTables, SymbolTable};

/// No machine to share, or to begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BaselineError {
    /// The checkpoint cannot be restored.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The machine has something that cannot be saved, or the new one is not like it.
    #[error(transparent)]
    Machine(#[from] MigrationError),
    /// The host has no memory.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// A checkpoint for other machines to begin at; cheap to clone, for any thread. It outlives its machine.
#[derive(Clone)]
pub struct Baseline(Arc<Shared>);

struct Shared {
    before: Vec<Section>,
    after: Vec<Section>,
    /// For what streams leave out.
    harts: Vec<VcpuState>,
    ram: notdirty_core::Baseline,
    /// Compared, and nothing else: it would keep the RAM of its machine.
    node: Weak<Node>,
    symbols: SymbolTable,
    frames: FrameTables,
}

impl Baseline {
    /// Bytes of RAM that the host keeps once, in two copies, for all machines on it.
    pub fn bytes(&self) -> u64 {
        self.0.ram.bytes()
    }
}

impl std::fmt::Debug for Baseline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Baseline").field("ram", &self.0.ram).finish_non_exhaustive()
    }
}

impl Machine {
    /// Restores the checkpoint, and makes it one for other machines to begin at. This machine's own copy of its RAM is shared from now on.
    ///
    /// ```
    /// use notdirty::programs::sieve::sieve;
    /// use notdirty::{Machine, MachineExit, Program, RunLimits};
    ///
    /// let mut first = Machine::builder().ram_size(2 << 20).program(Program::Image(sieve(100, 25))).build()?;
    /// first.run(&RunLimits { max_insns: Some(500), deadline: None });
    /// let checkpoint = first.checkpoint()?;
    /// let baseline = first.share(&checkpoint)?;
    /// let mut others = Vec::new();
    /// for _ in 0..10 {
    ///     others.push(Machine::builder().build_on(&baseline)?);
    /// }
    /// for machine in &mut others {
    ///     assert!(matches!(machine.run_to_end(), MachineExit::Guest(_)));
    ///     machine.restore(&checkpoint)?;
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`BaselineError`]. After [`BaselineError::Machine`] the checkpoint was restored, and no more.
    pub fn share(&mut self, checkpoint: &Checkpoint) -> Result<Baseline, BaselineError> {
        self.restore(checkpoint)?;
        let (before, _) = self.sections_before_ram()?;
        let after = self.sections_after_ram()?;
        let Some(at) = &mut self.checkpoints else { return Err(CheckpointError::OtherMachine.into()) };
        let ram = at.image.share()?;
        let symbols = self.symbols.read().unwrap_or_else(PoisonError::into_inner).clone();
        let (node, frames) = (Arc::downgrade(&checkpoint.node), self.frames.clone());
        let harts = checkpoint.node.state.harts.clone();
        Ok(Baseline(Arc::new(Shared { before, after, harts, ram, node, symbols, frames })))
    }
}

impl MachineBuilder {
    /// A machine at the checkpoint that was shared: its RAM, harts, devices and clock are what they were there, whatever the builder says of
    /// them; engine, console and trace are the builder's. What it does not write it shares with all others that began there.
    /// [`Machine::restore`] goes back to that checkpoint, and to those that this machine takes.
    ///
    /// # Errors
    /// [`BaselineError::Machine`]: the first machine had devices of its embedder; see [`build_on_with`](Self::build_on_with).
    pub fn build_on(self, baseline: &Baseline) -> Result<Machine, BaselineError> {
        self.build_on_with(baseline, |_| {})
    }

    /// As [`build_on`](Self::build_on), for a machine with devices of its embedder: `add` maps them, in the order of the first machine.
    ///
    /// # Errors
    /// [`BaselineError`]: what was saved, and what there is, do not match; or the host has no memory.
    pub fn build_on_with(self, baseline: &Baseline, add: impl FnOnce(&mut Machine)) -> Result<Machine, BaselineError> {
        let shared = &*baseline.0;
        let (recipe, dimms) = shared.before.split_first().ok_or_else(|| MigrationError::Order("no machine".into()))?;
        let mut machine = self.build_from(recipe)?;
        for dimm in dimms {
            machine.plug_from(dimm)?;
        }
        add(&mut machine);
        machine.serve();
        *machine.symbols.write().unwrap_or_else(PoisonError::into_inner) = shared.symbols.clone();
        machine.frames = shared.frames.clone();
        let image = Image::take_on(machine.board.space.ram(), &shared.ram)?;
        machine.serve();
        let matched = machine.match_sections(&shared.after)?;
        machine.put_sections(matched)?;
        for (vcpu, of) in machine.vcpus.iter_mut().zip(&shared.harts) {
            vcpu.take_marks(of);
        }
        machine.begin_at(image, shared.node.clone())?;
        Ok(machine)
    }
}
