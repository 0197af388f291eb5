//! How a migration begins, from any thread.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use notdirty_core::migration::Cancel;
use notdirty_softmmu::AddressSpace;

use super::{Ends, LeaveOptions, Migration, MigrationDoor, Road, lock};
use crate::machine::migrate::MigrationError;
use crate::machine::{Compression, WeakStop};

/// Starts migrations of a machine from any thread, while it runs or before.
#[derive(Clone)]
pub struct Migrator {
    pub(super) door: Arc<MigrationDoor>,
    pub(super) stop: WeakStop,
    pub(super) space: Arc<AddressSpace>,
}

impl Migrator {
    /// The machine begins to leave by this channel; it goes on running, and its run ends with
    /// [`MachineExit::Migrated`](crate::MachineExit::Migrated) when it is elsewhere. A machine that is not being run answers in its next
    /// run. `cancel` is the channel's.
    ///
    /// # Errors
    /// [`MigrationError::UnderWay`], [`MigrationError::Options`], or the host gives no thread.
    pub fn start(
        &self,
        road: impl Into<Road>,
        cancel: Cancel,
        options: LeaveOptions,
    ) -> Result<Migration, MigrationError> {
        let road = road.into();
        if options.auto_converge && options.dirty_limit.is_some() {
            return Err(MigrationError::Options("auto-converge and a dirty limit exclude each other"));
        }
        if options.postcopy.is_some() && !matches!(&road, Road::Channels(main, ..) if main.is_duplex()) {
            return Err(MigrationError::Options("postcopy needs a channel that answers, tcp: or unix:"));
        }
        if options.postcopy.is_none() && matches!(road, Road::Channels(_, _, Some(_))) {
            return Err(MigrationError::Options("a channel for urgent pages is a postcopy's"));
        }
        if !options.compression.is_built() {
            return Err(MigrationError::Options("this build packs no pages: it lacks the feature zstd"));
        }
        if options.compression != Compression::None
            && !matches!(&road, Road::Channels(_, multifd, _) if !multifd.channels.is_empty())
        {
            return Err(MigrationError::Options("pages are packed by several channels, before a machine leaves"));
        }
        let stop = self.stop.upgrade().ok_or(MigrationError::Gone)?;
        let mut current = lock(&self.door.current);
        if self.door.gone.load(Ordering::Acquire) {
            return Err(MigrationError::Gone);
        }
        if current.as_ref().is_some_and(|migration| lock(&migration.0.talk).ended.is_none()) {
            return Err(MigrationError::UnderWay);
        }
        let migration = Migration::new(cancel, Some(stop), matches!(road, Road::File(_, true)));
        self.door.may_stop.store(true, Ordering::Release);
        // Before the thread stops a run, which is stopped once for what it asks.
        self.door.any.store(true, Ordering::Release);
        // Without its thread, or when that panics, it has failed: no run waits for it.
        let (own, space) = (Ends(migration.clone()), self.space.clone());
        if options.auto_converge {
            let own = migration.clone();
            let thread = std::thread::Builder::new().name("throttle".into());
            thread.spawn(move || own.throttle()).map_err(MigrationError::Host)?;
        }
        let thread = std::thread::Builder::new().name("migration".into());
        let thread = thread.spawn(move || {
            let Ends(own) = &own;
            own.leave(road, &options, &space);
        });
        thread.map_err(MigrationError::Host)?;
        *current = Some(migration.clone());
        Ok(migration)
    }
}
