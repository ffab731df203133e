//! The network's DHCP server (RFC 2131): one address, for whoever asks.

use super::route::{GATEWAY, GUEST, NAMES};
use super::wire::MTU;
use smoltcp::wire::{DhcpMessageType, DhcpOpCode, DhcpOption, DhcpPacket, DhcpRepr};
use std::net::{Ipv4Addr, SocketAddrV4};

/// Where it listens, and where its clients do.
pub const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
const MASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);
/// Nobody else ever gets the address, and so a day is as good as any.
const LEASE: u32 = 24 * 60 * 60;
/// BOOTP's messages had this length (RFC 1542, 2.1), and some want it still.
const MIN_LEN: usize = 300;
/// "Interface MTU" (RFC 2132, 5.1).
const OPTION_MTU: u8 = 26;

/// The server's answer to a message, and where it goes.
pub struct Answer {
    pub to: SocketAddrV4,
    pub message: Vec<u8>,
}

/// Answers the message `data`. `mtu`: the guest's driver knows of the link's
/// MTU, and so a client may set it.
pub fn answer(data: &[u8], mtu: bool) -> Option<Answer> {
    let packet = DhcpPacket::new_checked(data).ok()?;
    let request = DhcpRepr::parse(&packet).ok()?;
    // A server's answer to that is no message for a client.
    if packet.opcode() != DhcpOpCode::Request {
        return None;
    }
    let kind = match request.message_type {
        DhcpMessageType::Discover => DhcpMessageType::Offer,
        DhcpMessageType::Request => reply_to_request(&request)?,
        DhcpMessageType::Inform => DhcpMessageType::Ack,
        _ => return None,
    };
    let refused = kind == DhcpMessageType::Nak;
    let informed = request.message_type == DhcpMessageType::Inform;
    let lease = (!refused && !informed).then_some(LEASE);
    let [high, low] = MTU.to_be_bytes();
    let options = [DhcpOption { kind: OPTION_MTU, data: &[high, low] }];
    let reply = DhcpRepr {
        message_type: kind,
        transaction_id: request.transaction_id,
        secs: 0,
        client_hardware_address: request.client_hardware_address,
        client_ip: Ipv4Addr::UNSPECIFIED,
        your_ip: if lease.is_some() { GUEST } else { Ipv4Addr::UNSPECIFIED },
        server_ip: if refused { Ipv4Addr::UNSPECIFIED } else { GATEWAY },
        router: (!refused).then_some(GATEWAY),
        subnet_mask: (!refused).then_some(MASK),
        relay_agent_ip: Ipv4Addr::UNSPECIFIED,
        broadcast: request.broadcast,
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(GATEWAY),
        parameter_request_list: None,
        dns_servers: (!refused).then(|| [NAMES].into_iter().collect()),
        max_size: None,
        lease_duration: lease,
        renew_duration: None,
        rebind_duration: None,
        additional_options: if mtu && !refused { &options } else { &[] },
    };
    let mut message = vec![0; reply.buffer_len()];
    reply.emit(&mut DhcpPacket::new_unchecked(message.as_mut_slice())).ok()?;
    message.resize(message.len().max(MIN_LEN), 0);
    // A client that has an address hears it there, and any other client as
    // everybody does: its address is not its own yet.
    let to = match request.client_ip {
        GUEST => GUEST,
        _ => Ipv4Addr::BROADCAST,
    };
    Some(Answer { to: SocketAddrV4::new(to, CLIENT_PORT), message })
}

/// Whether the client may have what it asks for; `None`: it asks another.
fn reply_to_request(request: &DhcpRepr<'_>) -> Option<DhcpMessageType> {
    if request.server_identifier.is_some_and(|server| server != GATEWAY) {
        return None;
    }
    let wanted = request.requested_ip.unwrap_or(request.client_ip);
    Some(if wanted == GUEST { DhcpMessageType::Ack } else { DhcpMessageType::Nak })
}
