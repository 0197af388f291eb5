//! TLS for migrations: each side has a certificate, and shows it before a byte of the machine goes.
//!
//! ```text
//!   source                              target
//!     handshake: certificate  ◀──────▶  certificate        both of the authority that the other side trusts; the target's for its name
//!     waits                   ◀──────   READY              without it a source would send before it knows that it was refused
//!     stream                  ──────▶
//! ```
//!
//! A channel beside the stream (multifd) has its own. Its handshake is done once the target has been told of it (`Channel::settle`).
//! Without the feature `tls` there is no such value, and [`Tls::load`] says so.

use std::path::{Path, PathBuf};

use notdirty_core::migration::Channel;

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// It was left out.
    #[error("TLS is not part of this build (cargo feature `tls`)")]
    NotBuilt,
    /// A certificate, key or authority cannot be read.
    #[error("{}: {why}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// They do not go together.
    #[error("TLS: {0}")]
    Config(String),
}

/// This side's certificate, and whom it trusts.
#[derive(Debug, Clone)]
pub struct Tls(imp::Tls);

impl Tls {
    /// Files in PEM: this side's certificate, with those between it and its authority; its private key; the authority of the other side.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn load(cert: &Path, key: &Path, ca: &Path) -> Result<Tls, TlsError> {
        imp::Tls::load(cert, key, ca).map(Tls)
    }

    /// The target's certificate is to be of this name; without, of the host that is connected to.
    pub fn named(mut self, name: impl Into<String>) -> Tls {
        self.0.set_name(name.into());
        self
    }

    /// This channel, by TLS from now on; `host` is the target's. Agreed on when the channel [settles](Channel::settle).
    ///
    /// # Errors
    /// `host` can be no certificate's name.
    pub fn connect(&self, channel: Channel, host: &str) -> Result<Channel, TlsError> {
        self.0.connect(channel, host)
    }

    /// The same, of a target; it has been agreed on when this returns.
    ///
    /// # Errors
    /// The other side is refused, refuses this one, or does nothing.
    pub fn accept(&self, channel: Channel) -> std::io::Result<Channel> {
        self.0.accept(channel)
    }
}

#[cfg(feature = "tls")]
#[path = "tls/records.rs"]
mod imp;

#[cfg(not(feature = "tls"))]
mod imp {
    use super::{Channel, Path, TlsError};

    #[derive(Debug, Clone)]
    pub(super) enum Tls {}

    impl Tls {
        pub(super) fn load(_: &Path, _: &Path, _: &Path) -> Result<Tls, TlsError> {
            Err(TlsError::NotBuilt)
        }

        pub(super) fn set_name(&mut self, _: String) {
            match *self {}
        }

        pub(super) fn connect(&self, _: Channel, _: &str) -> Result<Channel, TlsError> {
            match *self {}
        }

        pub(super) fn accept(&self, _: Channel) -> std::io::Result<Channel> {
            match *self {}
        }
    }
}
