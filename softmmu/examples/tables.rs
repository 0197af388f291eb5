//! Page tables of one's own: [`Hooks::translate`] walks them and sets their marks; two address spaces, rights, a flush.
//!
//! `cargo run -p notdirty-softmmu --example tables`

use notdirty_core::{DirtyClient, RamAddr, RamBlockSpec, RamList};
use notdirty_softmmu::{
    Access, AccessKind, AddressSpace, Asid, CodeInvalidator, FaultCause, GuestPhys, GuestVirt, Hooks, LiveMmu,
    MemFault, MemSize, MmuIdx, Physical, Rights, SoftMmu, Translation,
};
use std::error::Error;
use std::sync::Arc;

const SIZE: u64 = 1 << 20;
/// An entry of a table: the page, and these bits.
const VALID: u64 = 1;
const WRITABLE: u64 = 2;
const ACCESSED: u64 = 4;
const DIRTY: u64 = 8;
/// A table is a page of 512 entries: of the first 2 MiB.
const ENTRIES: u64 = 512;

/// What this machine's architecture says of addresses.
struct Tables {
    /// The table of the address space in use.
    root: GuestPhys,
    /// How often it was asked.
    walks: u32,
}

impl CodeInvalidator for Tables {
    fn code_written(&mut self, _: RamAddr, _: u64) -> usize {
        0 // nothing is translated
    }
}

impl Hooks for Tables {
    fn translate(&mut self, memory: &mut Physical<'_>, access: Access) -> Result<Translation, FaultCause> {
        if access.idx == MmuIdx::M {
            return Ok(Translation::identity(access.va));
        }
        self.walks += 1;
        let number = access.va.get() >> 12;
        if number >= ENTRIES {
            return Err(FaultCause::Page);
        }
        let at = self.root.wrapping_add(8 * number);
        let stores = access.kind == AccessKind::Store;
        loop {
            let entry = memory.read(at).ok_or(FaultCause::Access)?; // the table is not in RAM
            if entry & VALID == 0 || stores && entry & WRITABLE == 0 {
                return Err(FaultCause::Page);
            }
            let marked = entry | ACCESSED | if stores { DIRTY } else { 0 };
            // Another vCPU may have changed the entry since: then the walk starts again.
            if marked != entry && !memory.replace(self, at, entry, marked).ok_or(FaultCause::Access)? {
                continue;
            }
            // Without DIRTY no right to store: the first store asks again, and marks it.
            let store = marked & (WRITABLE | DIRTY) == WRITABLE | DIRTY;
            let rights = Rights { load: true, store, fetch: true };
            let page = GuestPhys::new(entry & !0xfff);
            return Ok(Translation { page, size_log2: 12, rights, global: false, lasting: true, everywhere: false });
        }
    }
}

/// Another table for the vCPU; what was translated for it before is still there.
fn switch(vcpu: &mut LiveMmu, hooks: &mut Tables, asid: u32) {
    hooks.root = GuestPhys::new(0x1000 * u64::from(asid));
    vcpu.set_asid(Asid(asid));
}

/// Adds one to eight bytes, as U-mode.
fn bump(vcpu: &mut LiveMmu, hooks: &mut Tables, at: u64) -> Result<u64, MemFault> {
    let value = vcpu.load(hooks, MmuIdx::U, GuestVirt::new(at), MemSize::B8)? + 1;
    let _ = vcpu.store(hooks, MmuIdx::U, GuestVirt::new(at), MemSize::B8, value)?;
    Ok(value)
}

/// All of it.
pub fn main() -> Result<(), Box<dyn Error>> {
    let list = Arc::new(RamList::new());
    let ram = list.add(RamBlockSpec::new("ram", SIZE))?;
    let space = AddressSpace::new(list.clone());
    space.map_ram(GuestPhys::new(0), &ram, 0, SIZE, 0)?;
    // Address space 1 has its table at 0x1000, 2 at 0x2000. Page 5 of each is a page of its own, page 6 shows the same for loads.
    let set =
        |asid: u64, page: u64, entry: u64| space.write(GuestPhys::new(0x1000 * asid + 8 * page), &entry.to_le_bytes());
    for asid in [1, 2] {
        set(asid, 5, (0x1_0000 * asid) | WRITABLE | VALID)?;
        set(asid, 6, (0x1_0000 * asid) | VALID)?;
    }
    let log = list.log(DirtyClient::MIGRATION).start()?;

    let mut hooks = Tables { root: GuestPhys::new(0), walks: 0 };
    let mut mmu = SoftMmu::new(&space, 0)?;
    let mut vcpu = mmu.run(&mut hooks);
    for (asid, value, walks) in [(1, 1, 2), (2, 1, 2), (1, 2, 0), (2, 2, 0)] {
        let before = hooks.walks;
        switch(&mut vcpu, &mut hooks, asid);
        assert_eq!(bump(&mut vcpu, &mut hooks, 0x5008)?, value);
        assert_eq!(hooks.walks - before, walks, "a load, and the store that marks; then neither asks");
    }
    // Page 6 refuses stores, and shows what page 5 stored.
    let fault = bump(&mut vcpu, &mut hooks, 0x6008).expect_err("it is for loads");
    assert_eq!((fault.kind, fault.cause, fault.addr.get()), (AccessKind::Store, FaultCause::Page, 0x6008));
    assert_eq!(vcpu.load(&mut hooks, MmuIdx::U, GuestVirt::new(0x6008), MemSize::B8)?, 2);
    // An access over two pages asks for each: the second is not there.
    let fault = vcpu.load(&mut hooks, MmuIdx::U, GuestVirt::new(0x6ffd), MemSize::B8).expect_err("over the end");
    assert_eq!(fault.addr.get(), 0x7000);

    // A table that changes is a table that is flushed: until then the old translation may serve.
    set(2, 5, 0)?;
    vcpu.flush_translations(Some(GuestVirt::new(0x5000)), Some(Asid(2)));
    println!("address space 2: {}", bump(&mut vcpu, &mut hooks, 0x5008).expect_err("page 5 is gone"));
    switch(&mut vcpu, &mut hooks, 1);
    assert_eq!(bump(&mut vcpu, &mut hooks, 0x5008)?, 3, "the other one is as it was");
    drop(vcpu);

    // Two pages of data, and both tables: their marks are stores.
    assert_eq!(log.sync(None)?.commit().count(), 4);
    println!("{} walks, {} accesses", hooks.walks, mmu.stats().accesses);
    Ok(())
}
