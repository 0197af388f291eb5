//! Why userfaultfd is not to be had.

use core::fmt;
use std::io;

/// What is lacking.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum UserfaultLack {
    /// Neither the device nor the system call is allowed.
    Permission,
    /// The kernel was built without, or is too old.
    Kernel,
    /// The kernel does not agree on what is needed of it.
    Feature,
    /// Descriptors, memory.
    Host,
}

/// There is no userfaultfd.
#[derive(Debug, thiserror::Error)]
#[error("no userfaultfd: {lack}: {source}")]
pub struct NoUserfault {
    /// What is lacking.
    pub lack: UserfaultLack,
    /// What the host said.
    pub source: io::Error,
}

impl fmt::Display for UserfaultLack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            UserfaultLack::Permission => {
                "permission (of /dev/userfaultfd, or CAP_SYS_PTRACE, or the sysctl vm.unprivileged_userfaultfd)"
            }
            UserfaultLack::Kernel => "the kernel was built without it",
            UserfaultLack::Feature => "a feature that the kernel does not have",
            UserfaultLack::Host => "the host",
        })
    }
}

impl NoUserfault {
    pub(super) fn open(source: io::Error) -> NoUserfault {
        let lack = match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => UserfaultLack::Permission,
            Some(libc::ENOSYS) => UserfaultLack::Kernel,
            _ => UserfaultLack::Host,
        };
        NoUserfault { lack, source }
    }

    pub(super) fn agree(source: io::Error) -> NoUserfault {
        NoUserfault { lack: UserfaultLack::Feature, source }
    }
}
