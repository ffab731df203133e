//! Who serves a user-mode network: passt, or the monitor.

use super::error::Error;
use crate::config::{Protocol, UserBackend, UserNet};
use devices::backend::passt::{self, Passt, PasstError};
use devices::backend::user;
use devices::virtio::net::NetBackend;
use std::net::SocketAddrV4;

/// Opens the network of the card with the address `mac`. Sets `internal` where
/// the event loop will make connections for it.
pub fn open(
    wanted: &UserNet,
    mac: [u8; 6],
    internal: &mut bool,
) -> Result<Box<dyn NetBackend>, Error> {
    let options = options(wanted);
    match wanted.backend {
        UserBackend::Passt => {
            let path = passt::find().ok_or(PasstError::Missing)?;
            return Ok(Box::new(Passt::start(&path, mac, &options)?));
        }
        UserBackend::Auto => match passt::find_sound() {
            None => {}
            Some(path) => match Passt::start(&path, mac, &options) {
                Ok(passt) => return Ok(Box::new(passt)),
                Err(error) => log::info!("{error}; microvm itself does it"),
            },
        },
        UserBackend::Internal => {}
    }
    *internal = true;
    Ok(Box::new(user::UserNet::new(mac, options)?))
}

fn options(wanted: &UserNet) -> user::Options {
    let forwards = wanted.hostfwd.iter().map(|forward| user::Forward {
        protocol: match forward.protocol {
            Protocol::Tcp => user::Protocol::Tcp,
            Protocol::Udp => user::Protocol::Udp,
        },
        host: SocketAddrV4::new(forward.address, forward.host),
        guest: forward.guest,
    });
    user::Options {
        host_loopback: wanted.host_loopback,
        resolvers: user::resolvers(),
        forwards: forwards.collect(),
    }
}
