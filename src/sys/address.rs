//! Addresses of Unix sockets, and the calls that take one.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use super::{file, new_descriptor, retry};

/// A Unix socket address, unix(7): a path or, behind a leading `@`, an abstract name.
pub(crate) struct Address {
    raw: libc::sockaddr_un,
    len: libc::socklen_t,
}

/// Why a path cannot be a socket's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AddressError {
    Empty,
    TooLong,
    HasNul,
}

impl Address {
    /// The most bytes of a path, or of an abstract name with its `@`: 107. Such a name has no NUL
    /// at its end but one at its front, so both kinds lose a byte.
    pub(crate) const MAX_PATH: usize =
        mem::size_of::<libc::sockaddr_un>() - mem::offset_of!(libc::sockaddr_un, sun_path) - 1;

    pub(crate) fn new(path: &Path) -> Result<Address, AddressError> {
        let bytes = path.as_os_str().as_bytes();
        // SAFETY: sockaddr_un is integers and an array of integers; all zero is a value of it.
        let mut raw: libc::sockaddr_un = unsafe { mem::zeroed() };
        raw.sun_family = libc::AF_UNIX as libc::sa_family_t;
        if bytes.contains(&0) {
            return Err(AddressError::HasNul);
        }
        if bytes.len() > Address::MAX_PATH {
            return Err(AddressError::TooLong);
        }
        for (to, from) in raw.sun_path.iter_mut().zip(bytes) {
            *to = *from as libc::c_char;
        }
        let used = match bytes {
            [] | [b'@'] => return Err(AddressError::Empty),
            [b'@', ..] => {
                raw.sun_path[0] = 0;
                bytes.len()
            }
            _ => bytes.len() + 1,
        };
        let len = (mem::offset_of!(libc::sockaddr_un, sun_path) + used) as libc::socklen_t;
        Ok(Address { raw, len })
    }

    pub(crate) fn is_abstract(&self) -> bool {
        self.raw.sun_path[0] == 0
    }

    fn as_ptr(&self) -> *const libc::sockaddr {
        ptr::from_ref(&self.raw).cast()
    }
}

pub(crate) fn connect(socket: &OwnedFd, address: &Address) -> io::Result<()> {
    // SAFETY: `address` holds a sockaddr_un of which `len` bytes are initialised.
    retry(|| unsafe { libc::connect(socket.as_raw_fd(), address.as_ptr(), address.len) as isize })?;
    Ok(())
}

/// Whether a socket is bound to the file at a path, connected or not, listening or not. If none is,
/// none ever will be: bind(2) makes a new file. Whoever listens there does not notice.
pub(crate) fn is_bound(address: &Address) -> io::Result<bool> {
    // The kernel looks for the socket, then at its type, then whether a datagram socket is connected to
    // another one, which is EPERM (unix_find_bsd, unix_may_send in net/unix/af_unix.c): then a socket of
    // another type tells. EPERM may also be a filter's.
    match is_bound_by(libc::SOCK_DGRAM, address) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            is_bound_by(libc::SOCK_STREAM, address)
        }
        result => result,
    }
}

fn is_bound_by(kind: libc::c_int, address: &Address) -> io::Result<bool> {
    let flags = kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket(2) takes no pointers, and makes a new descriptor.
    let socket = unsafe { new_descriptor(|| libc::socket(libc::AF_UNIX, flags, 0)) }?;
    match connect(&socket, address) {
        Ok(()) => Ok(true),
        Err(error) => match error.raw_os_error() {
            Some(libc::EPROTOTYPE) => Ok(true),
            Some(libc::ECONNREFUSED) => Ok(false),
            _ => Err(error),
        },
    }
}

pub(crate) fn bind(socket: &OwnedFd, address: &Address) -> io::Result<()> {
    // SAFETY: `address` holds a sockaddr_un of which `len` bytes are initialised.
    retry(|| unsafe { libc::bind(socket.as_raw_fd(), address.as_ptr(), address.len) as isize })?;
    Ok(())
}

/// The owner of the file at a path; none for an abstract name.
pub(crate) fn owner(address: &Address) -> Option<u32> {
    if address.is_abstract() {
        return None;
    }
    // SAFETY: the path ends in NUL, because it is shorter than its array, which was zeroed;
    // `status` is where a stat goes.
    let status =
        file::status(|status| unsafe { libc::stat64(address.raw.sun_path.as_ptr(), status) });
    Some(status.ok()?.owner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_refuses_what_the_kernel_could_not_tell_apart() {
        let long = "x".repeat(Address::MAX_PATH + 1);
        assert_eq!(Address::new(Path::new("")).err(), Some(AddressError::Empty));
        assert_eq!(Address::new(Path::new("@")).err(), Some(AddressError::Empty));
        assert_eq!(Address::new(Path::new(&long)).err(), Some(AddressError::TooLong));
        assert_eq!(Address::new(Path::new("a\0b")).err(), Some(AddressError::HasNul));
        assert!(Address::new(Path::new(&long[..Address::MAX_PATH])).is_ok());
    }
}
