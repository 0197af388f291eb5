//! A machine as sections of a stream, and a machine made of them.
//!
//! ```text
//!   before RAM   machine: what it is made like          ram-block n: each that was plugged, and where
//!   after it     cpu n │ clock │ console │ each device on the bus, by its kind and number
//! ```
//!
//! All sections are matched and read before the first is restored. What is on the bus and does not say what it remembers, or maps RAM
//! where the board does not, makes a machine that is not saved; the error says where.

use std::sync::Arc;

use notdirty_core::migration::{ListedBlock, Section};
use notdirty_core::{RamBlock, RamFlags, pin};
use notdirty_softmmu::{Fields, MmioDevice, Resolved, Saved, SectionError, Stateful, fields, section_of, take_section};
use notdirty_tcg::ICache;
use notdirty_tcg::Turns;
use notdirty_tcg::clock::ClockState;
use notdirty_tcg::riscv::Isa;

use super::migrate::MigrationError;
use super::{ClockKind, LrSc, Machine, MachineBuilder, PlugSpec};
use crate::devices::console::ConsoleState;
use crate::devices::framebuffer::PIXELS;

/// The type of the machine, in the stream's configuration.
pub(super) const TYPE: &str = "notdirty";

fields! {
    /// What a machine is made like, of what a guest can tell.
    pub(super) struct Recipe: "machine", version 1 {
        pub ram_size: u64,
        pub max_ram: u64,
        pub harts: u32,
        pub insns_clock: bool,
        pub fence_i: bool,
        pub strict: bool,
        pub isa: u32,
        pub semihosting: bool,
        pub framebuffer: Vec<u64>,
        /// Where `tohost` is, and `fromhost`.
        pub htif: Vec<u64>,
        /// Harts take turns.
        pub turns: bool,
    }
}

fields! {
    /// Where a run is. Each an `Option`, of as many numbers.
    pub(super) struct RunState: "run", version 1 {
        half_end: Vec<u64>,
        turns: Vec<u64>,
    }
}

fields! {
    /// RAM that was plugged.
    struct Dimm: "ram-block", version 1 {
        idstr: Vec<u8>,
        base: u64,
        size: u64,
        max_size: u64,
        shared: bool,
    }
}

impl Recipe {
    pub(super) fn lrsc(&self) -> LrSc {
        if self.strict { LrSc::Strict } else { LrSc::Cas }
    }

    fn icache(&self) -> ICache {
        if self.fence_i { ICache::FenceI } else { ICache::Coherent }
    }
}

impl MachineBuilder {
    /// What the builder was told, for [`Recipe`].
    pub(super) fn recipe(&self) -> Recipe {
        Recipe {
            ram_size: self.ram_size,
            max_ram: self.max_ram,
            harts: self.harts as u32,
            insns_clock: self.clock == ClockKind::Insns,
            fence_i: self.icache == ICache::FenceI,
            strict: self.lrsc == LrSc::Strict,
            isa: self.isa.bits(),
            semihosting: self.semihosting,
            framebuffer: self.framebuffer.map_or(Vec::new(), |(w, h)| vec![w.into(), h.into()]),
            htif: Vec::new(),
            turns: self.turns.is_some(),
        }
    }

    /// A machine as the stream says, with what the builder says of the host.
    pub(super) fn build_from(self, section: &Section) -> Result<Machine, MigrationError> {
        let mut recipe = Recipe::default();
        take_section(&mut recipe, section)?;
        let mut builder = self
            .ram_size(recipe.ram_size)
            .max_ram(recipe.max_ram)
            .harts(recipe.harts as usize)
            .clock(if recipe.insns_clock { ClockKind::Insns } else { ClockKind::Host })
            .icache(recipe.icache())
            .lrsc(recipe.lrsc())
            .isa(Isa::from_bits(recipe.isa))
            .semihosting(recipe.semihosting);
        builder.turns = recipe.turns.then(|| Turns::new(0));
        builder.program = None;
        builder.entry = None;
        builder.framebuffer = None;
        if let [width, height] = recipe.framebuffer[..] {
            let side = |side| u32::try_from(side).unwrap_or(u32::MAX);
            builder = builder.framebuffer(side(width), side(height));
        }
        let mut machine = builder.build()?;
        if let Some(tohost) = recipe.htif.first() {
            machine.board.place_htif_at(*tohost, recipe.htif.get(1).copied())?;
        }
        // Whatever was there and is not used would be lost: it is compared with what the machine says of itself now.
        let mut now = machine.recipe();
        take_section(&mut now, section)?;
        let (mut ours, mut theirs) = (section_of(&mut machine.recipe(), 0), section_of(&mut now, 0));
        if let Some((ours, _)) = ours.fields.iter_mut().zip(&mut theirs.fields).find(|(ours, theirs)| ours != theirs) {
            let value = format!("{:?}", section.get(&ours.name));
            let why = notdirty_softmmu::Misfit::Value { field: ours.name.clone(), value };
            return Err(SectionError { section: section.label(), why }.into());
        }
        Ok(machine)
    }
}

/// A part of the machine, its section before it is restored.
pub(super) enum Matched {
    Hart(usize, Box<notdirty_tcg::VcpuState>),
    Clock(ClockState),
    Console(ConsoleState),
    Run(RunState),
    Device(Arc<dyn MmioDevice>, Saved),
}

impl Machine {
    fn recipe(&self) -> Recipe {
        let htif = self.board.htif_at.map_or(Vec::new(), |(to, from)| [to].into_iter().chain(from).collect());
        Recipe { ram_size: self.board.ram.used_length(), htif, ..self.recipe.clone() }
    }

    fn run_state(&self) -> RunState {
        let half_end = self.half_end.map_or(Vec::new(), |(hart, end)| vec![hart as u64, end]);
        RunState { half_end, turns: self.turns.as_ref().map_or(Vec::new(), |turns| turns.words().to_vec()) }
    }

    /// Not if there is no such hart, or no such turn.
    fn put_run_state(&mut self, state: &RunState) {
        let harts = self.vcpus.len();
        self.half_end = match state.half_end[..] {
            [hart, end] if hart < harts as u64 => Some((hart as usize, end)),
            _ => None,
        };
        self.turns = <[u64; 4]>::try_from(&state.turns[..]).ok().and_then(|words| Turns::from_words(words, harts));
    }

    /// The sections that come before RAM, and the blocks of RAM.
    pub(super) fn sections_before_ram(&self) -> Result<(Vec<Section>, Vec<Arc<RamBlock>>), MigrationError> {
        let mut sections = vec![section_of(&mut self.recipe(), 0)];
        let guard = pin();
        let list = self.board.space.ram();
        let blocks: Vec<_> =
            list.blocks(&guard).filter(|block| block.flags().contains(RamFlags::MIGRATABLE)).cloned().collect();
        drop(guard);
        let dimms = self.board.memory.blocks();
        for (n, dimm) in dimms.iter().skip(1).enumerate() {
            let block = blocks.iter().find(|block| block.idstr() == dimm.name);
            let mut section = Dimm {
                idstr: dimm.name.clone().into_bytes(),
                base: dimm.base.get(),
                size: dimm.size,
                max_size: dimm.max_size,
                shared: block.is_some_and(|block| block.flags().contains(RamFlags::SHARED)),
            };
            sections.push(section_of(&mut section, n as u32));
        }
        for (start, _, what) in self.board.space.snapshot().ranges() {
            let Resolved::Ram { block, off, .. } = what else { continue };
            let base = match block.idstr() {
                "framebuffer" => PIXELS,
                name => dimms.iter().find(|dimm| dimm.name == name).map_or(0, |dimm| dimm.base.get()),
            };
            if start.get() != base + off {
                return Err(MigrationError::Mapped { at: start.get(), idstr: block.idstr().to_owned() });
            }
        }
        Ok((sections, blocks))
    }

    /// The sections that come after RAM. The harts stand still.
    pub(super) fn sections_after_ram(&mut self) -> Result<Vec<Section>, MigrationError> {
        let devices = self.stateful_devices()?;
        self.serve();
        let mut sections = Vec::new();
        for (n, vcpu) in self.vcpus.iter_mut().enumerate() {
            sections.push(section_of(&mut vcpu.save(), n as u32));
        }
        sections.push(section_of(&mut self.clock.save(), 0));
        sections.push(section_of(&mut self.board.console.save(), 0));
        sections.push(section_of(&mut self.run_state(), 0));
        let mut counts = Counts::default();
        for mut saved in devices.into_iter().filter_map(|device| super::checkpoint::saved(device).map(|saved| saved.1))
        {
            let mut section = saved.section(0);
            section.instance = counts.next(&section.name);
            sections.push(section);
        }
        Ok(sections)
    }

    /// Plugs RAM as the stream says.
    pub(super) fn plug_from(&self, section: &Section) -> Result<(), MigrationError> {
        let mut dimm = Dimm::default();
        take_section(&mut dimm, section)?;
        let spec = PlugSpec::default().shared(dimm.shared);
        let spec = if dimm.max_size == dimm.size { spec } else { spec.max_size(dimm.max_size) };
        let name = String::from_utf8_lossy(&dimm.idstr);
        self.board.memory.plug(&name, dimm.base, dimm.size, spec)?;
        Ok(())
    }

    /// The blocks that a stream lists, in its order: all that there are, and each as long as there.
    pub(super) fn blocks_of(&self, listed: &[ListedBlock]) -> Result<Vec<Arc<RamBlock>>, MigrationError> {
        let (_, blocks) = self.sections_before_ram()?;
        let refuse = |idstr: &str, why: String| MigrationError::Block { idstr: idstr.to_owned(), why };
        let found: Result<Vec<_>, _> = listed
            .iter()
            .map(|listed| {
                let block = blocks.iter().find(|block| block.idstr() == listed.idstr);
                let block = block.ok_or_else(|| refuse(&listed.idstr, "it is in the stream, and not here".into()))?;
                match block.used_length() {
                    length if length == listed.used_length => Ok(block.clone()),
                    length => {
                        let why = format!("{:#x} bytes in the stream, {length:#x} here", listed.used_length);
                        Err(refuse(&listed.idstr, why))
                    }
                }
            })
            .collect();
        let found = found?;
        match blocks.iter().find(|block| !found.iter().any(|found| Arc::ptr_eq(found, block))) {
            Some(block) => Err(refuse(block.idstr(), "it is here, and not in the stream".into())),
            None => Ok(found),
        }
    }

    /// Each part with its section; none is restored yet.
    pub(super) fn match_sections(&mut self, sections: &[Section]) -> Result<Vec<Matched>, MigrationError> {
        let mut used = vec![false; sections.len()];
        let mut find = |name: &str, instance: u32| {
            let at = sections.iter().position(|section| section.name == name && section.instance == instance);
            let missing = || MigrationError::Missing { name: name.to_owned(), instance };
            let at = at.ok_or_else(missing)?;
            used[at] = true;
            Ok::<_, MigrationError>(&sections[at])
        };
        let mut matched = Vec::new();
        for (n, vcpu) in self.vcpus.iter_mut().enumerate() {
            let mut state = vcpu.save().without_reservation();
            take_section(&mut state, find(notdirty_tcg::VcpuState::NAME, n as u32)?)?;
            matched.push(Matched::Hart(n, Box::new(state)));
        }
        let mut clock = self.clock.save();
        take_section(&mut clock, find(ClockState::NAME, 0)?)?;
        let mut console = self.board.console.save();
        take_section(&mut console, find(ConsoleState::NAME, 0)?)?;
        let mut run = self.run_state();
        take_section(&mut run, find(RunState::NAME, 0)?)?;
        matched.extend([Matched::Clock(clock), Matched::Console(console), Matched::Run(run)]);
        let mut counts = Counts::default();
        for (device, mut saved) in self.stateful_devices()?.into_iter().filter_map(super::checkpoint::saved) {
            let name = saved.fields(&mut |_, _| {}).0;
            saved.take_section(find(name, counts.next(name))?)?;
            matched.push(Matched::Device(device, saved));
        }
        match used.iter().position(|used| !used) {
            Some(at) => {
                Err(MigrationError::Unknown { name: sections[at].name.clone(), instance: sections[at].instance })
            }
            None => Ok(matched),
        }
    }

    /// Makes the machine what the sections say.
    pub(super) fn put_sections(&mut self, matched: Vec<Matched>) -> Result<(), MigrationError> {
        for part in matched {
            match part {
                Matched::Hart(n, state) => self.vcpus[n].restore(&state, true),
                Matched::Clock(state) => {
                    self.clock.restore(&state);
                    // The host's goes on from here, not from the first look: that may come late.
                    self.clock.mtime();
                }
                Matched::Console(state) => self.board.console.restore(&state),
                Matched::Run(state) => {
                    self.put_run_state(&state);
                    differs(Saved::new(self.run_state()), Saved::new(state))?;
                }
                Matched::Device(device, saved) => {
                    let notdirty_softmmu::DeviceState::Kept(part) = device.state() else { continue };
                    part.restore_any(&saved);
                    differs(part.save_any(), saved)?;
                }
            }
        }
        self.settled_calls = None;
        Ok(())
    }

    /// All of RAM came from a stream: whoever keeps something of it is told.
    pub(super) fn all_ram_was_written(&mut self, blocks: &[Arc<RamBlock>]) {
        for block in blocks {
            self.board.space.ram().after(block.offset(), block.used_length());
        }
        self.serve();
    }
}

/// Refuses what a part does not hold.
fn differs(mut now: Saved, mut saved: Saved) -> Result<(), MigrationError> {
    let (ours, theirs) = (now.section(0), saved.section(0));
    match ours.fields.iter().zip(&theirs.fields).find(|(ours, theirs)| ours != theirs) {
        None => Ok(()),
        Some((_, theirs_field)) => {
            let (field, value) = (theirs_field.name.clone(), format!("{:?}", theirs_field.value));
            Err(SectionError { section: theirs.label(), why: notdirty_softmmu::Misfit::Value { field, value } }.into())
        }
    }
}

/// Numbers of parts of one kind.
#[derive(Default)]
struct Counts(Vec<(String, u32)>);

impl Counts {
    fn next(&mut self, name: &str) -> u32 {
        match self.0.iter_mut().find(|(other, _)| other == name) {
            Some((_, count)) => {
                *count += 1;
                *count
            }
            None => {
                self.0.push((name.to_owned(), 0));
                0
            }
        }
    }
}
