//! By what a machine leaves: channels, or a file.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use notdirty_core::migration::multifd;
use notdirty_core::migration::{Cancel, Channel};

use crate::machine::Tls;
use crate::machine::migrate::MAX_CHANNELS;
use crate::machine::uri::{End, Uri, UriError};

/// By what it leaves.
pub enum Road {
    /// One channel, and those beside it that have said their hello ([`multifd`]) for this migration.
    Channels(Channel, Vec<Channel>, multifd::Uuid),
    /// One channel, with something to do at its end before the machine is elsewhere: a command's exit, a file's name.
    Ending(Channel, End),
    /// A file with a home for each page; `true`: the machine stays, and the file is a snapshot of the moment at which it stood still.
    File(PathBuf, bool),
}

impl Road {
    /// To there, by so many channels beside the main one (0: none). Each wait has this patience.
    ///
    /// # Errors
    /// The place cannot be reached, or is none for several channels.
    pub fn connect(uri: &Uri, beside: usize, patience: Duration, cancel: &Cancel) -> Result<Road, UriError> {
        Road::connect_by(uri, beside, patience, cancel, None)
    }

    /// The same by TLS: the target has shown its certificate, and has found this side's good, when this returns. For sockets.
    ///
    /// # Errors
    /// As above, or one side is refused.
    pub fn connect_by(
        uri: &Uri,
        beside: usize,
        patience: Duration,
        cancel: &Cancel,
        tls: Option<&Tls>,
    ) -> Result<Road, UriError> {
        let host = |source| UriError::Host { uri: uri.to_string(), source };
        if tls.is_some() && !matches!(uri, Uri::Tcp(..) | Uri::Unix(_)) {
            return Err(host(io::Error::new(io::ErrorKind::Unsupported, "TLS is for tcp: and unix:")));
        }
        let name = if let Uri::Tcp(host, _) = uri { host.as_str() } else { "localhost" };
        let secure = |channel| match tls {
            Some(tls) => tls.connect(channel, name).map_err(|why| host(io::Error::other(why))),
            None => Ok(channel),
        };
        if beside != 0 && !matches!(uri, Uri::Tcp(..) | Uri::Unix(_)) {
            return Err(host(io::Error::new(io::ErrorKind::Unsupported, "it is one channel")));
        }
        let (main, end) = uri.connect(patience, cancel)?;
        let main = secure(main)?;
        main.settle().map_err(host)?;
        if !end.is_nothing() {
            return Ok(Road::Ending(main, end));
        }
        let channels = (0..beside.min(MAX_CHANNELS)).map(|_| secure(uri.connect(patience, cancel)?.0));
        Road::beside(main, channels.collect::<Result<_, _>>()?).map_err(host)
    }

    /// By this channel, and others beside it, which say their hello: several of a multifd, or the one for urgent pages of a
    /// [postcopy](super::Postcopy).
    ///
    /// # Errors
    /// The channels'.
    pub fn beside(main: Channel, mut others: Vec<Channel>) -> io::Result<Road> {
        // Names this migration, as far as two on one host have to differ.
        let random = || RandomState::new().build_hasher().finish().to_ne_bytes();
        let mut uuid: multifd::Uuid = [0; 16];
        uuid[..8].copy_from_slice(&random());
        uuid[8..].copy_from_slice(&random());
        for (id, channel) in others.iter_mut().enumerate() {
            channel.write_all(&multifd::hello(&uuid, id as u8))?;
        }
        Ok(Road::Channels(main, others, uuid))
    }
}

impl From<Channel> for Road {
    fn from(channel: Channel) -> Road {
        Road::Channels(channel, Vec::new(), [0; 16])
    }
}
