//! Whether pages go in fewer bytes by several channels, and by what.

use notdirty_core::migration::{Pack, Unpack};

/// What pages are packed by; of several channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Compression {
    /// They go as they are.
    #[default]
    None,
    /// Zstandard, in QEMU's packets. A build without the feature `zstd` refuses it.
    Zstd,
}

impl Compression {
    /// Whether this build can do it.
    pub fn is_built(self) -> bool {
        self == Compression::None || cfg!(feature = "zstd")
    }
}

#[cfg(feature = "zstd")]
pub(super) fn packer() -> std::io::Result<Box<dyn Pack>> {
    Ok(Box::new(super::zstd::Packer::new()?))
}

#[cfg(not(feature = "zstd"))]
pub(super) fn packer() -> std::io::Result<Box<dyn Pack>> {
    Err(std::io::ErrorKind::Unsupported.into())
}

/// What a target unpacks by, if anything.
#[cfg(feature = "zstd")]
pub(super) fn unpacker() -> Option<Box<dyn Unpack>> {
    Some(Box::new(super::zstd::Unpacker::new().ok()?))
}

#[cfg(not(feature = "zstd"))]
pub(super) fn unpacker() -> Option<Box<dyn Unpack>> {
    None
}
