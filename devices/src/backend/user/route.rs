//! The addresses of the guest's network, and where on the host's each leads.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

/// The network is 10.0.2.0/24, as in QEMU's user-mode network and slirp4netns.
pub const NETWORK: [u8; 3] = [10, 0, 2];
/// The guest.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// Its gateway, which also stands for the host.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The name server, which stands for the host's own.
pub const NAMES: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// Who answers on the network beside the guest.
pub const HOSTS: [Ipv4Addr; 2] = [GATEWAY, NAMES];

/// The port of name servers.
const DOMAIN: u16 = 53;
/// Name servers that are asked: as many as the C library asks.
const MAX_RESOLVERS: usize = 3;

/// Where the guest's packets go.
#[derive(Debug, Clone, Default)]
pub struct Routes {
    /// The gateway stands for the host's loopback address.
    pub host_loopback: bool,
    /// The host's name servers.
    pub resolvers: Vec<SocketAddr>,
    /// Where everything goes, whatever a fuzzer makes up.
    #[cfg(any(test, feature = "testing"))]
    pub only: Option<SocketAddr>,
}

impl Routes {
    /// What the user allows, and the host's name servers.
    pub fn new(host_loopback: bool, resolvers: Vec<SocketAddr>) -> Self {
        Self {
            host_loopback,
            resolvers,
            #[cfg(any(test, feature = "testing"))]
            only: None,
        }
    }

    /// Where a packet to `to` goes on the host. `attempt` counts questions to
    /// the name server that had no answer. `None`: nowhere.
    pub fn host(&self, to: SocketAddrV4, attempt: usize) -> Option<SocketAddr> {
        let (ip, port) = (*to.ip(), to.port());
        if port == 0 {
            return None;
        }
        #[cfg(any(test, feature = "testing"))]
        if self.only.is_some() {
            return self.only;
        }
        match ip {
            NAMES if port == DOMAIN => {
                let at = attempt.checked_rem(self.resolvers.len())?;
                self.resolvers.get(at).copied()
            }
            GATEWAY if self.host_loopback => Some((Ipv4Addr::LOCALHOST, port).into()),
            _ if is_outside(ip) => Some(to.into()),
            _ => None,
        }
    }

    /// Where an echo to `to` goes; `None`: nowhere.
    pub fn echo(&self, to: Ipv4Addr) -> Option<Ipv4Addr> {
        #[cfg(any(test, feature = "testing"))]
        if self.only.is_some() {
            return Some(Ipv4Addr::LOCALHOST);
        }
        is_outside(to).then_some(to)
    }
}

/// Whether the host's own routes lead there, and not the guest's network or the
/// host itself by one of the names that every host has.
fn is_outside(ip: Ipv4Addr) -> bool {
    let local = ip.octets()[..3] == NETWORK;
    // 0.0.0.0/8 is this host too, and what is above 224.0.0.0 no single one.
    !local && !ip.is_loopback() && ip.octets()[0] != 0 && ip.octets()[0] < 224
}

/// Whether `ip` can be the guest's.
pub fn is_guest(ip: Ipv4Addr) -> bool {
    let last = ip.octets()[3];
    ip.octets()[..3] == NETWORK && last != 0 && last != 255 && !HOSTS.contains(&ip)
}

/// The host's name servers, of `/etc/resolv.conf`.
pub fn resolvers() -> Vec<SocketAddr> {
    match std::fs::read_to_string("/etc/resolv.conf") {
        Ok(text) => parse_resolvers(&text),
        // The C library asks this host where nothing is said.
        Err(e) if e.kind() == io::ErrorKind::NotFound => parse_resolvers(""),
        Err(e) => {
            log::warn!("net user: /etc/resolv.conf: {e}: the guest has no name server");
            Vec::new()
        }
    }
}

/// The name servers of a resolv.conf(5). Those with a zone are left out: it is
/// of no use without the name of an interface.
fn parse_resolvers(text: &str) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let server = words.next() == Some("nameserver");
        words.next().filter(|_| server)?.parse::<IpAddr>().ok()
    });
    let mut servers: Vec<_> =
        servers.take(MAX_RESOLVERS).map(|ip| SocketAddr::new(ip, DOMAIN)).collect();
    if servers.is_empty() {
        servers.push((Ipv4Addr::LOCALHOST, DOMAIN).into());
    }
    servers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read_from_resolv_conf() {
        let text = "# nameserver 9.9.9.9\nsearch example\nnameserver 10.1.1.1\n\
                    nameserver fe80::1%eth0\n nameserver 2001:db8::1\nnameserver\nnameserver 1 2\n";
        let shown: Vec<_> = parse_resolvers(text).iter().map(SocketAddr::to_string).collect();
        assert_eq!(shown, ["10.1.1.1:53", "[2001:db8::1]:53"]);
        assert_eq!(parse_resolvers(""), ["127.0.0.1:53".parse().unwrap()]);
        assert_eq!(parse_resolvers(&"nameserver 1.1.1.1\n".repeat(9)).len(), MAX_RESOLVERS);
    }

    #[test]
    fn the_host_itself_is_reached_only_where_that_was_asked_for() {
        let mut routes = Routes { resolvers: parse_resolvers(""), ..Default::default() };
        let to = |routes: &Routes, text: &str| routes.host(text.parse().unwrap(), 0);
        assert_eq!(to(&routes, "10.0.2.2:80"), None);
        for text in [
            "127.0.0.1:80",
            "127.1.2.3:80",
            "0.0.0.0:80",
            "0.1.2.3:80",
            "10.0.2.9:80",
            "10.0.2.3:80",
            "224.0.0.251:5353",
            "255.255.255.255:67",
            "192.0.2.1:0",
        ] {
            assert_eq!(to(&routes, text), None, "{text}");
        }
        assert_eq!(to(&routes, "10.0.2.3:53"), Some("127.0.0.1:53".parse().unwrap()));
        assert_eq!(to(&routes, "192.0.2.1:80"), Some("192.0.2.1:80".parse().unwrap()));
        routes.host_loopback = true;
        assert_eq!(to(&routes, "10.0.2.2:80"), Some("127.0.0.1:80".parse().unwrap()));
        routes.resolvers.clear();
        assert_eq!(to(&routes, "10.0.2.3:53"), None);
    }
}
