//! Checkpoints: a moment of the machine, and the way back to it at the cost of what was written since.
//!
//! ```text
//!   root ── delta ─▶ node ── delta ─▶ node             a tree; a node holds the state of harts and devices, and which lines
//!     └──── delta ─▶ node                              of RAM differ from its parent's, with both bytes
//!
//!   Machine { image: RAM at the current node; current ─▶ node }
//!   restore(same node)      what was noted since ─▶ lines from the image                        core ram/image/
//!   restore(another node)   the same, then each delta on the path, up and down
//! ```
//!
//! RAM is put back by what writers noted (LINE-1); harts, clock and devices by their plain values. Translations whose bytes are the
//! same live on. Where the map, or the RAM there is, is another (`memory/saved.rs`), what came since goes and what left comes back,
//! around the bytes; nodes with the same map share what they keep of it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use notdirty_core::{Delta, Image, ImageError, PutBack, RamAddr};
use notdirty_softmmu::{DeviceState, MmioDevice, RegionId, Resolved, Saved, Stateful};
use notdirty_tcg::clock::ClockState;
use notdirty_tcg::{Turns, Vcpu, VcpuState};

use super::Machine;
use super::memory::{RemapError, SavedMemory};
use crate::devices::Htif;
use crate::devices::console::ConsoleState;

/// A checkpoint that cannot be taken, or not be restored. Nothing was changed, or it says so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A device remembers something and does not say what.
    #[error("the device {name} at {at:#x} cannot be saved: it says nothing of its state (MmioDevice::state)")]
    Device {
        /// What it is called.
        name: String,
        /// Where it is.
        at: u64,
    },
    /// The host has no memory, or another owner of this RAM list has checkpoints.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The checkpoint is of another machine.
    #[error("the checkpoint is of another machine")]
    OtherMachine,
    /// RAM was plugged, unplugged or resized, or the map changed, since the checkpoint, and that cannot be undone now: the error says
    /// whether anything was changed.
    #[error("RAM or its map has changed since the checkpoint: {0}")]
    Remap(#[from] RemapError),
}

/// A moment of one machine. It can be dropped at any time, in any order.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    pub(super) node: Arc<Node>,
}

impl Checkpoint {
    /// Lines of 64 bytes that differ from the checkpoint that was current when this one was taken.
    pub fn lines(&self) -> usize {
        self.node.delta.lines()
    }

    /// The registers of a hart at that moment.
    pub fn hart(&self, hart: usize) -> Option<&VcpuState> {
        self.node.state.harts.get(hart)
    }
}

#[derive(Debug)]
pub(super) struct Node {
    machine: u64,
    parent: Option<Arc<Node>>,
    depth: u64,
    delta: Delta,
    pub(super) state: MachineState,
}

impl Drop for Node {
    fn drop(&mut self) {
        // A long branch is not unwound on the stack.
        let mut next = self.parent.take();
        while let Some(parent) = next {
            next = Arc::into_inner(parent).and_then(|mut last| last.parent.take());
        }
    }
}

/// All but RAM.
pub(super) struct MachineState {
    pub(super) harts: Vec<VcpuState>,
    clock: ClockState,
    console: ConsoleState,
    devices: Vec<(Arc<dyn MmioDevice>, Saved)>,
    turns: Option<Turns>,
    half_end: Option<(usize, u64)>,
    map: Arc<MapState>,
}

/// Where RAM and devices are.
struct MapState {
    memory: SavedMemory,
    htif: Vec<RegionId>,
    htif_at: Option<(u64, Option<u64>)>,
    htif_device: Option<Arc<Htif>>,
}

impl std::fmt::Debug for MachineState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let devices: Vec<_> = self.devices.iter().map(|(_, saved)| saved).collect();
        f.debug_struct("MachineState").field("harts", &self.harts).field("devices", &devices).finish_non_exhaustive()
    }
}

/// What a machine with checkpoints has.
pub(super) struct Checkpoints {
    id: u64,
    pub(super) image: Image,
    current: Arc<Node>,
    /// The root of this tree, and the node of another machine that it is.
    origin: Option<(Arc<Node>, Weak<Node>)>,
    /// Of the RAM list and of the view, when they were those of `current`.
    versions: (u64, u64),
}

impl Checkpoints {
    /// Is the node one of this tree? If it is of another machine and this one began at it, with the root that it is here.
    #[inline]
    fn own(&self, node: &Arc<Node>) -> Option<Option<&Arc<Node>>> {
        if node.machine == self.id {
            return Some(None);
        }
        let (root, of) = self.origin.as_ref()?;
        std::ptr::eq(of.as_ptr(), Arc::as_ptr(node)).then_some(Some(root))
    }
}

/// Memory or state that is not what the checkpoint says; see [`Machine::verify`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Difference {
    /// A line of RAM.
    #[error("RAM differs at {:#x}", .at.get())]
    Ram {
        /// The line, in the space of all RAM.
        at: RamAddr,
    },
    /// A hart.
    #[error("the state of hart {hart} differs")]
    Hart {
        /// Which.
        hart: usize,
    },
    /// A device, the clock or the console.
    #[error("the state of {what} differs")]
    Device {
        /// Which.
        what: String,
    },
    /// Where RAM and devices are, or how much RAM there is.
    #[error("the memory map differs")]
    Map,
    /// The machine was not restored to this checkpoint last.
    #[error("the machine is not at this checkpoint")]
    NotThere,
}

impl Machine {
    /// The machine as it is, to come back to. The first one copies all RAM that is in use, and from then on stores note which lines they
    /// write, until the machine goes; further ones cost the lines that were written since the checkpoint that was taken or restored last.
    ///
    /// # Errors
    /// [`CheckpointError`]: a device does not say what its state is, the host has no memory, or pages of RAM are yet to come.
    pub fn checkpoint(&mut self) -> Result<Checkpoint, CheckpointError> {
        Image::check_whole(self.board.space.ram())?;
        let versions = self.versions();
        let state = self.save_state()?;
        let node = match &mut self.checkpoints {
            None => {
                let image = Image::take(self.board.space.ram())?;
                self.first(image, state, versions, None)
            }
            Some(at) => {
                if !Arc::ptr_eq(&state.map, &at.current.state.map) {
                    // Before anything is taken: a failure changes nothing that another call would miss.
                    at.image.cover(state.map.memory.blocks())?;
                }
                let (mut delta, mut arm) = (Delta::default(), Vec::new());
                for vcpu in &mut self.vcpus {
                    vcpu.take_noted(|page| arm.extend(at.image.advance(page, &mut delta).then(|| page.index())));
                }
                at.image.advance_rest(&mut delta, |page| arm.push(page));
                for page in arm {
                    self.vcpus.iter_mut().for_each(|vcpu| vcpu.arm_noted(page));
                }
                let (parent, depth) = (Some(at.current.clone()), at.current.depth + 1);
                let node = Arc::new(Node { machine: at.id, parent, depth, delta, state });
                at.current = node.clone();
                // Of before the map was looked at: what changed since is seen as a change.
                at.versions = versions;
                node
            }
        };
        self.settled();
        Ok(Checkpoint { node })
    }

    /// All but RAM, as it is now.
    fn save_state(&mut self) -> Result<MachineState, CheckpointError> {
        let devices = self.stateful_devices()?;
        self.serve();
        let harts = self.vcpus.iter_mut().map(|vcpu| vcpu.save()).collect();
        let known = self.checkpoints.as_ref().filter(|at| at.versions == self.versions());
        let map = known.map_or_else(|| Arc::new(self.save_map()), |at| at.current.state.map.clone());
        Ok(MachineState {
            harts,
            clock: self.clock.save(),
            console: self.board.console.save(),
            devices: devices.into_iter().filter_map(saved).collect(),
            turns: self.turns.clone(),
            half_end: self.half_end,
            map,
        })
    }

    /// The first node of a tree, at which RAM is as in the image.
    fn first(&mut self, image: Image, state: MachineState, versions: (u64, u64), of: Option<Weak<Node>>) -> Arc<Node> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        self.vcpus.iter_mut().for_each(|vcpu| vcpu.arm_all());
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let node = Arc::new(Node { machine: id, parent: None, depth: 0, delta: Delta::default(), state });
        let origin = of.map(|of| (node.clone(), of));
        self.checkpoints = Some(Box::new(Checkpoints { id, image, current: node.clone(), origin, versions }));
        node
    }

    fn settled(&mut self) {
        self.vcpus.iter_mut().for_each(|vcpu| vcpu.saved());
        self.settled_calls = Some(self.device_calls());
    }

    /// The machine, which was made as a checkpoint of another says, has it for the root of its own.
    pub(super) fn begin_at(&mut self, image: Image, of: Weak<Node>) -> Result<(), CheckpointError> {
        let versions = self.versions();
        let state = self.save_state()?;
        self.first(image, state, versions, Some(of));
        self.settled();
        Ok(())
    }

    /// The machine as it was: also where RAM was plugged, unplugged or resized since, or anything mapped, unmapped or mapped elsewhere.
    /// RAM that was unplugged is the [`Plugged`](super::Plugged) that it was.
    ///
    /// # Errors
    /// [`CheckpointError::OtherMachine`], [`CheckpointError::Remap`]; [`CheckpointError::Image`] while pages of RAM are yet to come.
    pub fn restore(&mut self, to: &Checkpoint) -> Result<PutBack, CheckpointError> {
        Image::check_whole(self.board.space.ram())?;
        let versions = self.versions();
        let Some(at) = &self.checkpoints else { return Err(CheckpointError::OtherMachine) };
        let root;
        let to = match at.own(&to.node) {
            None => return Err(CheckpointError::OtherMachine),
            Some(None) => &to.node,
            Some(Some(own)) => {
                root = own.clone();
                &root
            }
        };
        let map = &to.state.map;
        if at.versions == versions && Arc::ptr_eq(&at.current.state.map, map) {
            return Ok(self.put_back(to));
        }
        let memory = self.board.memory.clone();
        let opened = memory.open(&map.memory)?;
        // What left the map has no translation and no TLB entry from here on.
        self.serve();
        let done = self.put_back(to);
        opened.close(&map.memory)?;
        self.serve();
        (self.board.htif_at, self.board.htif_device) = (map.htif_at, map.htif_device.clone());
        self.board.htif.clone_from(&map.htif);
        let versions = self.versions();
        if let Some(at) = &mut self.checkpoints {
            at.versions = versions;
            at.image.drop_gone();
        }
        Ok(done)
    }

    /// RAM and state are those of a checkpoint of this machine.
    fn put_back(&mut self, to: &Arc<Node>) -> PutBack {
        let Some(at) = &mut self.checkpoints else { return PutBack::default() };
        let (image, mut done) = (&mut at.image, PutBack::default());
        for vcpu in &mut self.vcpus {
            vcpu.take_noted(|page| {
                if image.put_back(page, &mut done) {
                    self.to_arm.push(page.index());
                }
            });
        }
        image.put_back_rest(&mut done, |page| self.to_arm.push(page));
        let moved = (!Arc::ptr_eq(&at.current, to)).then(|| std::mem::replace(&mut at.current, to.clone()));
        if let Some(from) = &moved {
            go(image, from, to, &mut done);
        }
        for page in self.to_arm.drain(..) {
            self.vcpus.iter_mut().for_each(|vcpu| vcpu.arm_noted(page));
        }
        let state = &to.state;
        for (vcpu, saved) in self.vcpus.iter_mut().zip(&state.harts) {
            vcpu.restore(saved, done.tables);
        }
        self.asked.store(false, Ordering::Release);
        self.clock.restore(&state.clock);
        self.board.console.restore(&state.console);
        let calls = self.device_calls();
        let quiet = moved.is_none() && self.settled_calls == Some(calls);
        for (device, saved) in &state.devices {
            if quiet && !device.changes_alone() {
                continue;
            }
            if let DeviceState::Kept(part) = device.state() {
                part.restore_any(saved);
            }
        }
        self.settled_calls = Some(calls);
        self.turns.clone_from(&state.turns);
        self.half_end = state.half_end;
        done
    }

    /// Where RAM and devices are now.
    fn save_map(&self) -> MapState {
        let board = &self.board;
        let (htif, htif_at, htif_device) = (board.htif.clone(), board.htif_at, board.htif_device.clone());
        MapState { memory: board.memory.save(), htif, htif_at, htif_device }
    }

    /// Is the machine, which was just restored, what the checkpoint says? All RAM and state is compared: for tests, and for a fuzzer
    /// that checks itself every so many runs.
    ///
    /// # Errors
    /// The first [`Difference`].
    pub fn verify(&mut self, with: &Checkpoint) -> Result<(), Difference> {
        let at = self.checkpoints.as_ref().ok_or(Difference::NotThere)?;
        let node = at.own(&with.node).ok_or(Difference::NotThere)?.unwrap_or(&with.node).clone();
        if !Arc::ptr_eq(&at.current, &node) {
            return Err(Difference::NotThere);
        }
        if at.versions != self.versions() {
            return Err(Difference::Map);
        }
        if let Some(at) = at.image.difference() {
            return Err(Difference::Ram { at });
        }
        let state = &node.state;
        for (hart, (vcpu, saved)) in self.vcpus.iter_mut().zip(&state.harts).enumerate() {
            if vcpu.save() != *saved {
                return Err(Difference::Hart { hart });
            }
        }
        if self.board.console.save() != state.console {
            return Err(Difference::Device { what: "console".into() });
        }
        if self.clock.is_insns() && self.clock.save() != state.clock {
            return Err(Difference::Device { what: "clock".into() });
        }
        for (device, saved) in &state.devices {
            if let DeviceState::Kept(part) = device.state()
                && part.save_any() != *saved
            {
                return Err(Difference::Device { what: device.name().into() });
            }
        }
        Ok(())
    }

    /// How often vCPUs, the host and other devices have called devices.
    fn device_calls(&self) -> u64 {
        self.vcpus.iter().map(Vcpu::device_calls).sum::<u64>() + self.board.space.device_calls()
    }

    /// What is the same as long as RAM and the map are.
    fn versions(&self) -> (u64, u64) {
        let space = &self.board.space;
        (space.ram().version(), space.version())
    }

    /// The devices on the bus, each part once.
    pub(super) fn stateful_devices(&self) -> Result<Vec<Arc<dyn MmioDevice>>, CheckpointError> {
        let view = self.board.space.snapshot();
        let mut devices: Vec<Arc<dyn MmioDevice>> = Vec::new();
        let mut parts = Vec::new();
        for (start, _, what) in view.ranges() {
            let Resolved::Mmio { dev, .. } = what else { continue };
            match dev.state() {
                DeviceState::Kept(part) => {
                    let part = std::ptr::from_ref(part).cast::<()>();
                    if !parts.contains(&part) {
                        parts.push(part);
                        devices.push(dev.clone());
                    }
                }
                DeviceState::Stateless => {}
                _ => return Err(CheckpointError::Device { name: dev.name().to_owned(), at: start.get() }),
            }
        }
        Ok(devices)
    }
}

pub(super) fn saved(device: Arc<dyn MmioDevice>) -> Option<(Arc<dyn MmioDevice>, Saved)> {
    let saved = match device.state() {
        DeviceState::Kept(part) => part.save_any(),
        _ => return None,
    };
    Some((device, saved))
}

/// From one node, where RAM is, to another of the same tree.
fn go(image: &mut Image, from: &Arc<Node>, to: &Arc<Node>, done: &mut PutBack) {
    let (mut up, mut down) = (from, to);
    let mut path = Vec::new();
    while !Arc::ptr_eq(up, down) {
        // One tree has one root, so neither runs out of parents first.
        if up.depth >= down.depth {
            image.step(&up.delta, false, done);
            let Some(parent) = &up.parent else { break };
            up = parent;
        } else {
            path.push(down);
            let Some(parent) = &down.parent else { break };
            down = parent;
        }
    }
    for node in path.into_iter().rev() {
        image.step(&node.delta, true, done);
    }
}
