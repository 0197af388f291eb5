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
    /// One channel, those of a multifd, and the one for urgent pages of a [postcopy](super::Postcopy): [`beside`](Road::beside) makes these.
    Channels(Channel, MultifdChannels, Option<UrgentChannel>),
    /// One channel, with something to do at its end before the machine is elsewhere: a command's exit, a file's name.
    Ending(Channel, End),
    /// A file with a home for each page; `true`: the machine stays, and the file is a snapshot of the moment at which it stood still.
    File(PathBuf, bool),
}

/// Channels of a multifd, which have said their hello ([`multifd`]) for this migration; or none.
#[derive(Default)]
pub struct MultifdChannels {
    pub(super) channels: Vec<Channel>,
    pub(super) uuid: multifd::Uuid,
}

/// The channel by which pages go that are waited for, which has said its hello by a name of its own: taken for one of a multifd, or the other way
/// about, it is refused.
pub struct UrgentChannel(pub(super) Channel, pub(super) multifd::Uuid);

impl UrgentChannel {
    /// The channel, to break it.
    pub fn channel(&self) -> &Channel {
        &self.0
    }
}

/// Which channels there are beside the main one. So many of a multifd, by [`From`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Beside {
    /// Channels of a multifd.
    pub multifd: usize,
    /// One for urgent pages of a [postcopy](super::Postcopy).
    pub urgent: bool,
}

impl From<usize> for Beside {
    fn from(multifd: usize) -> Beside {
        Beside { multifd, urgent: false }
    }
}

impl Beside {
    /// One for urgent pages alone, or none.
    pub fn urgent(urgent: bool) -> Beside {
        Beside { multifd: 0, urgent }
    }
}

/// Names a migration, as far as two on one host have to differ.
fn uuid() -> multifd::Uuid {
    let random = || RandomState::new().build_hasher().finish().to_ne_bytes();
    let mut uuid: multifd::Uuid = [0; 16];
    uuid[..8].copy_from_slice(&random());
    uuid[8..].copy_from_slice(&random());
    uuid
}

impl Road {
    /// To there, by these channels beside the main one. Each wait has this patience.
    ///
    /// # Errors
    /// The place cannot be reached, or is none for several channels.
    pub fn connect(
        uri: &Uri,
        beside: impl Into<Beside>,
        patience: Duration,
        cancel: &Cancel,
    ) -> Result<Road, UriError> {
        Road::connect_by(uri, beside, patience, cancel, None)
    }

    /// The same by TLS: the target has shown its certificate, and has found this side's good, when this returns. For sockets.
    ///
    /// # Errors
    /// As above, or one side is refused.
    pub fn connect_by(
        uri: &Uri,
        beside: impl Into<Beside>,
        patience: Duration,
        cancel: &Cancel,
        tls: Option<&Tls>,
    ) -> Result<Road, UriError> {
        let beside = beside.into();
        let host = |source| UriError::Host { uri: uri.to_string(), source };
        if tls.is_some() && !matches!(uri, Uri::Tcp(..) | Uri::Unix(_)) {
            return Err(host(io::Error::new(io::ErrorKind::Unsupported, "TLS is for tcp: and unix:")));
        }
        let name = if let Uri::Tcp(host, _) = uri { host.as_str() } else { "localhost" };
        let secure = |channel| match tls {
            Some(tls) => tls.connect(channel, name).map_err(|why| host(io::Error::other(why))),
            None => Ok(channel),
        };
        if beside != Beside::default() && !matches!(uri, Uri::Tcp(..) | Uri::Unix(_)) {
            return Err(host(io::Error::new(io::ErrorKind::Unsupported, "it is one channel")));
        }
        let (main, end) = uri.connect(patience, cancel)?;
        let main = secure(main)?;
        main.settle().map_err(host)?;
        if !end.is_nothing() {
            return Ok(Road::Ending(main, end));
        }
        let another = || secure(uri.connect(patience, cancel)?.0);
        let multifd = (0..beside.multifd.min(MAX_CHANNELS)).map(|_| another()).collect::<Result<_, _>>()?;
        // The target takes them in this order.
        let urgent = beside.urgent.then(another).transpose()?;
        Road::beside(main, multifd, urgent).map_err(host)
    }

    /// By this channel, and others beside it, which say their hello: those of a multifd, and the one for urgent pages of a
    /// [postcopy](super::Postcopy).
    ///
    /// # Errors
    /// The channels'.
    pub fn beside(main: Channel, mut channels: Vec<Channel>, urgent: Option<Channel>) -> io::Result<Road> {
        let name = uuid();
        for (id, channel) in channels.iter_mut().enumerate() {
            channel.write_all(&multifd::hello(&name, id as u8))?;
        }
        let urgent = urgent.map(|mut channel| {
            let name = uuid();
            channel.write_all(&multifd::hello(&name, 0)).map(|()| UrgentChannel(channel, name))
        });
        Ok(Road::Channels(main, MultifdChannels { channels, uuid: name }, urgent.transpose()?))
    }
}

impl From<Channel> for Road {
    fn from(channel: Channel) -> Road {
        Road::Channels(channel, MultifdChannels::default(), None)
    }
}
