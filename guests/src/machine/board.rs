//! The wiring: what is where on the bus. The same places as on the `virt` board that most programs know.
//!
//! ```text
//!   0x0010_0000  test finisher          0x1000_0000  UART
//!   0x0200_0000  CLINT                  0x8000_0000  RAM, -m bytes of it
//!   0x5000_0000  framebuffer, if asked for; its registers in the page before
//!   tohost, fromhost                    two words over RAM, where the loaded file's symbols say
//! ```

use std::sync::Arc;

use notdirty_core::{RamBlock, RamBlockSpec, RamList};
use notdirty_softmmu::{AddressSpace, GuestPhys, MapError, MmioDevice, RegionId, VcpuPort};
use notdirty_tcg::clock::Clock;

use super::{BuildError, Memory};
use crate::devices::{Aclint, Console, ExitLatch, Finisher, Framebuffer, Htif, Uart};
use crate::load::SymbolTable;

/// Where RAM starts.
pub const RAM_BASE: u64 = 0x8000_0000;
const FINISHER: u64 = 0x10_0000;
const CLINT: u64 = 0x200_0000;
const UART: u64 = 0x1000_0000;

/// Host addresses from which RAM at [`RAM_BASE`] is reached by a signed 32-bit displacement.
const NEAR: std::ops::Range<u64> = 0x1000_0000..0xf000_0000;

/// Priorities: words over RAM win over RAM.
const PLAIN: i32 = 0;
pub(super) const OVERLAY: i32 = 10;

/// Everything on the bus but the harts.
pub(super) struct Board {
    pub space: Arc<AddressSpace>,
    pub ram: Arc<RamBlock>,
    pub memory: Memory,
    pub latch: Arc<ExitLatch>,
    pub console: Arc<Console>,
    uart: Arc<Uart>,
    aclint: Option<Arc<Aclint>>,
    pub framebuffer: Option<Arc<Framebuffer>>,
    pub htif: Vec<RegionId>,
    /// Where `tohost` is, and `fromhost`.
    pub htif_at: Option<(u64, Option<u64>)>,
    pub htif_device: Option<Arc<Htif>>,
}

impl Board {
    /// RAM, UART and finisher. The CLINT comes with the harts, HTIF with a program that has it.
    pub fn new(ram_size: u64, ram_page: Option<u64>, max_ram: u64, console: Arc<Console>) -> Result<Board, BuildError> {
        let list = Arc::new(RamList::new());
        let ram = list
            .add(ram_page.into_iter().fold(RamBlockSpec::new("ram", ram_size).near(NEAR), RamBlockSpec::page_size))?;
        let space = AddressSpace::new(list);
        let latch = Arc::new(ExitLatch::default());
        let uart = Arc::new(Uart::new(console.clone()));
        space.map_ram(GuestPhys::new(RAM_BASE), &ram, 0, ram_size, PLAIN)?;
        space.map_mmio(GuestPhys::new(FINISHER), Finisher::LEN, Arc::new(Finisher::new(latch.clone())), PLAIN)?;
        space.map_mmio(GuestPhys::new(UART), Uart::LEN, uart.clone(), PLAIN)?;
        let memory = Memory::new(space.clone(), ram.clone(), max_ram);
        Ok(Board {
            space,
            ram,
            memory,
            latch,
            console,
            uart,
            aclint: None,
            framebuffer: None,
            htif: Vec::new(),
            htif_at: None,
            htif_device: None,
        })
    }

    /// Connects the harts, hart 0 first: their interrupts, and that the guest's end stops them.
    pub fn attach<'a>(
        &mut self,
        ports: impl Iterator<Item = &'a Arc<VcpuPort>> + Clone,
        clock: &Arc<Clock>,
    ) -> Result<(), MapError> {
        let aclint = Arc::new(Aclint::new(clock.clone(), ports.clone().cloned()));
        for (offset, len, device) in aclint.windows() {
            self.space.map_mmio(GuestPhys::new(CLINT + offset), len, device, PLAIN)?;
        }
        self.aclint = Some(aclint);
        ports.for_each(|port| self.latch.attach(port));
        Ok(())
    }

    /// Takes the HTIF words away, so that a program can be loaded where they were.
    pub fn remove_htif(&mut self) -> Result<(), MapError> {
        (self.htif_device, self.htif_at) = (None, None);
        self.htif.drain(..).try_for_each(|id| self.space.unmap(id))
    }

    /// Puts HTIF where the program's symbols say, if they do and RAM is there.
    pub fn place_htif(&mut self, symbols: &SymbolTable) -> Result<(), MapError> {
        let ram = self.ram_range();
        let inside = |addr: &u64| *addr >= ram.start && addr.saturating_add(Htif::WORD) <= ram.end;
        let Some(tohost) = symbols.address("tohost").filter(inside) else { return Ok(()) };
        self.place_htif_at(tohost, symbols.address("fromhost").filter(inside))
    }

    /// Puts HTIF there.
    pub fn place_htif_at(&mut self, tohost: u64, fromhost: Option<u64>) -> Result<(), MapError> {
        self.htif_at = Some((tohost, fromhost));
        let htif = Htif::new(&self.space, self.latch.clone(), self.console.clone());
        self.htif_device = Some(htif.clone());
        let mut place = |addr: u64, word: Arc<dyn MmioDevice>| {
            self.space.map_mmio(GuestPhys::new(addr), Htif::WORD, word, OVERLAY).map(|id| self.htif.push(id))
        };
        place(tohost, htif.tohost())?;
        match fromhost {
            Some(fromhost) => place(fromhost, htif.fromhost()),
            None => Ok(()),
        }
    }

    /// Devices as after power-on.
    pub fn reset(&self) {
        self.latch.clear();
        self.uart.reset();
        if let Some(aclint) = &self.aclint {
            aclint.reset();
        }
        if let Some(htif) = &self.htif_device {
            htif.reset();
        }
    }

    /// Where RAM is.
    pub fn ram_range(&self) -> std::ops::Range<u64> {
        RAM_BASE..RAM_BASE + self.ram.used_length()
    }
}
