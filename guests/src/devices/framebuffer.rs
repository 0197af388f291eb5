//! A framebuffer: RAM that a viewer looks at, and a page of registers that tells of it.
//!
//! ```text
//!   0x4fff_f000  registers    0x00 width   0x04 height   0x08 stride in bytes   0x0c frames: any store counts one
//!   0x5000_0000  pixels       0x00RRGGBB, little-endian, line after line: one block of RAM, nothing special about it
//!
//!   guest store ─▶ VGA bit ─▶ redraw(): DirtyLog::sync ─▶ the lines of these pages, converted ─▶ Harvest::commit
//! ```
//!
//! The VGA client logs this block only. So the first store to a page of it after a redraw is heard, the next ones are
//! as fast as any, and no store elsewhere knows of it. A redraw costs what was drawn: a page that is dirty makes the
//! lines it touches be converted, others keep what the image has. If a vCPU does not answer in time, or the redraw is
//! interrupted, its pages are dirty for the next one.
//!
//! The registers are an object of their own: the log holds the address space, which holds what is mapped in it.

use std::io::{self, Write};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use notdirty_core::{DirtyClient, DirtyLog, LogError, PAGE_SIZE, RamBlock, RamBlockSpec, RamError};
use notdirty_softmmu::{
    AddressSpace, DeviceState, GuestPhys, MapError, MemSize, MmioDevice, RegionId, SizeMask, Stateful,
};

/// Where the registers are.
pub const REGISTERS: u64 = PIXELS - PAGE_SIZE;
/// Where the pixels are.
pub const PIXELS: u64 = 0x5000_0000;
/// Lines and columns there may be at most: 256 MiB of pixels.
pub const MAX_SIDE: u32 = 8192;
const BYTES: u64 = 4;

/// Why there is no framebuffer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FramebufferError {
    /// Nothing to see, or too much.
    #[error("a framebuffer of {width}x{height} pixels: from 1x1 to {MAX_SIDE}x{MAX_SIDE}")]
    Size {
        /// Columns.
        width: u32,
        /// Lines.
        height: u32,
    },
    /// The host gives no RAM.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// Something is in its place on the bus.
    #[error(transparent)]
    Map(#[from] MapError),
    /// Somebody logs as VGA, or a vCPU does not answer.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// What one redraw did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Redraw {
    /// Pages that were dirty.
    pub pages: u64,
    /// Lines that were converted.
    pub lines: u32,
}

/// The device, seen from the host. Redrawing works while the guest runs, from any thread that runs no vCPU.
pub struct Framebuffer {
    width: u32,
    height: u32,
    block: Arc<RamBlock>,
    frames: Arc<AtomicU32>,
    log: DirtyLog,
    /// Held from the sync to the last line: what one redraw took, the next finds drawn. Only redraws take it.
    redraws: Mutex<()>,
    /// Never held while waiting for vCPUs, as a device on one of them may want to look.
    screen: Mutex<Screen>,
}

/// The image of the last redraw.
struct Screen {
    /// Three bytes a pixel: red, green, blue.
    rgb: Vec<u8>,
    /// How often each line was converted.
    converted: Vec<u64>,
}

impl Framebuffer {
    /// Puts a framebuffer of that size, all black, on the bus.
    ///
    /// # Errors
    /// [`FramebufferError`]: a side of 0 pixels or too many, no RAM for them, their place on the bus is taken, or another log is VGA's.
    pub fn attach(space: &Arc<AddressSpace>, width: u32, height: u32) -> Result<Arc<Framebuffer>, FramebufferError> {
        let side = 1..=MAX_SIDE;
        if !side.contains(&width) || !side.contains(&height) {
            return Err(FramebufferError::Size { width, height });
        }
        let len = (u64::from(width) * u64::from(height) * BYTES).next_multiple_of(PAGE_SIZE);
        let block = space.ram().add(RamBlockSpec::new("framebuffer", len))?;
        let attached = Attached { space, block: &block, regions: Vec::new() };
        // Before the guest can reach it: RAM and image are both black, and each store from here on is heard.
        let log = space.ram().log(DirtyClient::VGA).blocks([&block]).start()?;
        let frames = Arc::new(AtomicU32::new(0));
        let registers = Arc::new(Registers { width, height, frames: frames.clone() });
        attached
            .map(|| space.map_ram(GuestPhys::new(PIXELS), &block, 0, len, 0))?
            .map(|| space.map_mmio(GuestPhys::new(REGISTERS), PAGE_SIZE, registers, 0))?
            .done();
        let pixels = width as usize * height as usize;
        let screen = Mutex::new(Screen { rgb: vec![0; 3 * pixels], converted: vec![0; height as usize] });
        Ok(Arc::new(Framebuffer { width, height, block, frames, log, redraws: Mutex::new(()), screen }))
    }

    /// Columns and lines.
    pub fn size(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    /// How many frames the guest has said to be complete.
    pub fn frames(&self) -> u32 {
        self.frames.load(Ordering::Acquire)
    }

    /// Brings the image up to date: lines that were drawn since the last time are converted. Not on a vCPU's own thread
    /// while it runs, hence in no device's callback: it would wait for itself. To look at the image is fine there.
    ///
    /// # Errors
    /// [`LogError`]: a vCPU did not answer in time, or runs on this thread. What was drawn comes with the next redraw.
    pub fn redraw(&self, timeout: Option<Duration>) -> Result<Redraw, LogError> {
        let _alone = self.redraws.lock().unwrap_or_else(PoisonError::into_inner);
        let harvest = self.log.sync(timeout)?;
        let mut screen = self.screen();
        let (start, stride) = (self.block.offset().get(), self.stride());
        let mut done = Redraw { pages: harvest.count(), lines: 0 };
        let mut next = 0;
        for range in harvest.ranges() {
            let bytes = range.start.base().get() - start..range.end.base().get() - start;
            // The line before may have been converted for the range before.
            let first = u32::try_from(bytes.start / stride).unwrap_or(self.height).max(next);
            let end = u32::try_from(bytes.end.div_ceil(stride)).unwrap_or(self.height).min(self.height);
            for line in first..end {
                let at = screen.span(self.width, line);
                self.convert(line, &mut screen.rgb[at]);
                screen.converted[line as usize] += 1;
                done.lines += 1;
            }
            next = next.max(end);
        }
        harvest.commit();
        Ok(done)
    }

    /// The image of the last redraw, three bytes a pixel.
    pub fn image(&self) -> Vec<u8> {
        self.screen().rgb.clone()
    }

    /// All lines as they are now, whatever is dirty; changes nothing.
    pub fn full(&self) -> Vec<u8> {
        let mut rgb = vec![0; self.screen().rgb.len()];
        let lines = rgb.chunks_exact_mut(3 * self.width as usize);
        (0..self.height).zip(lines).for_each(|(line, rgb)| self.convert(line, rgb));
        rgb
    }

    /// How often each line was converted.
    pub fn conversions(&self) -> Vec<u64> {
        self.screen().converted.clone()
    }

    /// Writes the image of the last redraw as a binary PPM.
    ///
    /// # Errors
    /// What `to` says.
    pub fn write_ppm(&self, to: &mut impl Write) -> io::Result<()> {
        write!(to, "P6\n{} {}\n255\n", self.width, self.height)?;
        to.write_all(&self.image())
    }

    fn screen(&self) -> MutexGuard<'_, Screen> {
        // An image that a panic left is what a redraw left: some lines old, some new, and the pages dirty again.
        self.screen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stride(&self) -> u64 {
        u64::from(self.width) * BYTES
    }

    fn convert(&self, line: u32, rgb: &mut [u8]) {
        let mut pixels = vec![0; self.stride() as usize];
        if self.block.read_bytes(u64::from(line) * self.stride(), &mut pixels).is_err() {
            return; // The block has the size that the lines were computed from.
        }
        for (to, from) in rgb.chunks_exact_mut(3).zip(pixels.chunks_exact(BYTES as usize)) {
            to.copy_from_slice(&[from[2], from[1], from[0]]);
        }
    }
}

impl Screen {
    fn span(&self, width: u32, line: u32) -> Range<usize> {
        let bytes = 3 * width as usize;
        line as usize * bytes..(line as usize + 1) * bytes
    }
}

/// What is on the bus and in the list so far; taken back if the rest fails.
struct Attached<'a> {
    space: &'a Arc<AddressSpace>,
    block: &'a Arc<RamBlock>,
    regions: Vec<RegionId>,
}

impl Attached<'_> {
    fn map(mut self, region: impl FnOnce() -> Result<RegionId, MapError>) -> Result<Self, MapError> {
        self.regions.push(region()?);
        Ok(self)
    }

    fn done(self) {
        core::mem::forget(self);
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        // Both were added by us, and no other code knows of them.
        self.regions.iter().for_each(|region| drop(self.space.unmap(*region)));
        drop(self.space.ram().remove(self.block));
    }
}

/// What the guest reads to know what it draws on.
struct Registers {
    width: u32,
    height: u32,
    frames: Arc<AtomicU32>,
}

notdirty_softmmu::fields! {
    /// How many frames were drawn. The pixels are RAM.
    pub struct FramebufferState: "framebuffer", version 1 {
        frames: u32,
    }
}

impl Stateful for Registers {
    type State = FramebufferState;

    fn save(&self) -> FramebufferState {
        FramebufferState { frames: self.frames.load(Ordering::Relaxed) }
    }

    fn restore(&self, state: &FramebufferState) {
        self.frames.store(state.frames, Ordering::Release);
    }
}

impl MmioDevice for Registers {
    fn state(&self) -> DeviceState<'_> {
        DeviceState::Kept(self)
    }

    fn changes_alone(&self) -> bool {
        false
    }

    fn name(&self) -> &str {
        "framebuffer"
    }

    fn read(&self, offset: u64, _size: MemSize) -> u64 {
        u64::from(match offset {
            0x00 => self.width,
            0x04 => self.height,
            0x08 => self.width * BYTES as u32,
            0x0c => self.frames.load(Ordering::Relaxed),
            _ => 0,
        })
    }

    fn write(&self, offset: u64, _size: MemSize, _value: u64) {
        if offset == 0x0c {
            // Release: a reader that sees the count finds the pixels drawn before it, once their pages are re-armed.
            self.frames.fetch_add(1, Ordering::Release);
        }
    }

    fn sizes(&self) -> SizeMask {
        SizeMask::of(&[MemSize::B4])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use notdirty_core::RamList;
    use notdirty_softmmu::{GuestVirt, MmuIdx, NoHooks, Running, SoftMmu, VcpuPort};

    fn space() -> Arc<AddressSpace> {
        AddressSpace::new(Arc::new(RamList::new()))
    }

    #[test]
    fn a_framebuffer_of_no_size_or_too_much_is_refused_and_a_second_one_leaves_nothing_behind() {
        let space = space();
        for (width, height) in [(0, 1), (1, 0), (MAX_SIDE + 1, 1), (1, u32::MAX)] {
            assert!(matches!(Framebuffer::attach(&space, width, height), Err(FramebufferError::Size { .. })));
        }
        let _first = Framebuffer::attach(&space, 3, 5).unwrap();
        let blocks = space.ram().blocks(&notdirty_core::pin()).count();
        Framebuffer::attach(&space, 3, 5).err().expect("its name and place are taken");
        assert_eq!(space.ram().blocks(&notdirty_core::pin()).count(), blocks);
    }

    #[test]
    fn host_writes_are_redrawn_too_and_only_their_lines() {
        let space = space();
        let screen = Framebuffer::attach(&space, 1024, 8).unwrap();
        assert_eq!(screen.redraw(None).unwrap(), Redraw::default());
        space.write(GuestPhys::new(PIXELS + 3 * 4096 + 8), &[1, 2, 3, 0]).unwrap();
        assert_eq!(screen.redraw(None).unwrap(), Redraw { pages: 1, lines: 1 });
        assert_eq!(screen.conversions(), [0, 0, 0, 1, 0, 0, 0, 0]);
        let image = screen.image();
        assert_eq!(image[3 * (3 * 1024 + 2)..][..3], [3, 2, 1]);
        assert_eq!(image, screen.full());
        let mut ppm = Vec::new();
        screen.write_ppm(&mut ppm).unwrap();
        assert!(ppm.starts_with(b"P6\n1024 8\n255\n") && ppm.len() == 14 + image.len());
    }

    #[test]
    fn lines_that_share_a_page_are_converted_once_a_redraw() {
        let space = space();
        // 400 bytes a line: a page touches eleven of them, and shares the last one with the next page.
        let screen = Framebuffer::attach(&space, 100, 40).unwrap();
        space.write(GuestPhys::new(PIXELS + 4090), &[7; 12]).unwrap();
        space.write(GuestPhys::new(PIXELS + 3 * 4096), &[7; 1]).unwrap();
        assert_eq!(screen.redraw(None).unwrap(), Redraw { pages: 3, lines: 31 });
        let lines: Vec<_> = (0..40).filter(|n| screen.conversions()[*n] == 1).collect();
        assert_eq!(lines, (0..21).chain(30..40).collect::<Vec<_>>());
        assert_eq!(screen.image(), screen.full());
    }

    /// A pixel is drawn by a vCPU that runs: this thread.
    fn drawn(vcpu: &mut SoftMmu) -> Running<'_> {
        let mut vcpu = vcpu.run(&mut NoHooks);
        let _ = vcpu.store(&mut NoHooks, MmuIdx::M, GuestVirt::new(PIXELS), MemSize::B4, 0x00ff_ffff).unwrap();
        vcpu
    }

    fn until_asked(port: &VcpuPort) {
        while !port.kicked() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_device_may_look_at_the_image_while_a_redraw_waits_for_its_vcpu() {
        let space = space();
        let screen = Framebuffer::attach(&space, 4, 4).unwrap();
        let mut vcpu = SoftMmu::new(&space, 0).unwrap();
        let port = vcpu.port().clone();
        let mut vcpu = drawn(&mut vcpu);
        std::thread::scope(|scope| {
            let redraw = scope.spawn(|| screen.redraw(Some(Duration::from_secs(5))));
            until_asked(&port);
            // In a device's callback, say: the vCPU answers when it is over.
            assert_eq!(screen.image()[..3], [0; 3]);
            assert_eq!(screen.conversions(), [0; 4]);
            let _ = vcpu.serve(&mut NoHooks);
            assert_eq!(redraw.join().unwrap(), Ok(Redraw { pages: 1, lines: 4 }));
        });
        assert_eq!(screen.image()[..3], [0xff; 3]);
    }

    #[test]
    fn a_redraw_has_drawn_what_another_one_took() {
        let space = space();
        let screen = Framebuffer::attach(&space, 4, 4).unwrap();
        let mut vcpu = SoftMmu::new(&space, 0).unwrap();
        let port = vcpu.port().clone();
        let mut vcpu = drawn(&mut vcpu);
        std::thread::scope(|scope| {
            let first = scope.spawn(|| screen.redraw(Some(Duration::from_secs(20))).unwrap());
            until_asked(&port);
            // The bits are the first one's: the second finds none, but what they stand for is in no image yet.
            let second = scope.spawn(|| {
                screen.redraw(Some(Duration::from_secs(20))).unwrap();
                assert_eq!(screen.image()[..3], [0xff; 3]);
            });
            std::thread::sleep(Duration::from_millis(20));
            let _ = vcpu.serve(&mut NoHooks);
            assert_eq!(first.join().unwrap(), Redraw { pages: 1, lines: 4 });
            second.join().unwrap();
        });
    }
}
