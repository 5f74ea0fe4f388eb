//! The service manager's notification protocol (sd_notify(3)): one datagram
//! to the socket in `NOTIFY_SOCKET`.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Tells the service manager that the mount is usable. Nothing without one.
pub fn ready() {
    tell("READY=1\nSTATUS=mounted");
}

/// Tells the service manager that metrics are served.
pub fn serving() {
    tell("READY=1\nSTATUS=serving metrics");
}

/// Tells the service manager's watchdog that this process is well.
pub fn alive() {
    tell("WATCHDOG=1");
}

/// Tells the service manager that unmounting has begun.
pub fn stopping() {
    tell("STOPPING=1\nSTATUS=unmounting");
}

fn tell(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
        return;
    };
    if let Err(why) = send(&socket, state) {
        tracing::warn!(%why, "cannot notify the service manager");
    }
}

fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        path => SocketAddr::from_pathname(OsStr::from_bytes(path))?,
    };
    let datagram = UnixDatagram::unbound()?;
    datagram.set_nonblocking(true)?;
    datagram.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_datagram_arrives_by_path_and_by_abstract_name() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("notify");
        let name = format!("efs-fuse-test-{}", std::process::id());
        let by_path = UnixDatagram::bind(&path)?;
        let by_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
        send(path.as_os_str(), "READY=1")?;
        send(OsStr::new(&format!("@{name}")), "READY=1")?;
        for socket in [by_path, by_name] {
            let mut buffer = [0; 64];
            let length = socket.recv(&mut buffer)?;
            assert_eq!(&buffer[..length], b"READY=1");
        }
        Ok(())
    }

    #[test]
    fn a_manager_that_is_gone_is_an_error_and_no_hang() {
        assert!(send(OsStr::new("/nonexistent/notify"), "READY=1").is_err());
    }
}
