//! Frames on their way to the guest, and what a frame of the guest says.
//!
//! The guest and its gateway share memory and no wire, so that checksums are
//! left to the driver where it can do them: it gets the sum of the pseudo header
//! and where the rest belongs (virtio 1.2, 5.1.6.4), which stays right if the
//! guest passes the packet on.

use smoltcp::phy::{self, Checksum, DeviceCapabilities, Medium};
use smoltcp::time::Instant;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    EthernetRepr, IpProtocol, Ipv4Packet, Ipv4Repr, TcpPacket, UdpPacket, checksum,
};
use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4};

/// `struct virtio_net_hdr_v1`, and the Ethernet header.
const VIRTIO: usize = 12;
const ETHERNET: usize = 14;
const IPV4: usize = 20;
const UDP: usize = 8;
/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
const NEEDS_CSUM: u8 = 1;

/// The largest IP packet.
pub const MAX_PACKET: usize = 65535;
/// What the link carries at once: as much as a TCP segment with its headers can
/// be, rounded down to words (RFC 879 has it of the options).
pub const MTU: u16 = 65520;
/// Bytes that wait for the guest's buffers; at most one packet more.
pub const MAX_QUEUED: usize = 512 << 10;
const MAX_FRAMES: usize = 1024;
/// Empty buffers that are kept.
const SPARE: usize = 16;

/// The gateway's own address; locally administered.
pub const GATEWAY_MAC: EthernetAddress = EthernetAddress([0x52, 0x55, 10, 0, 2, 2]);

/// Frames for the guest.
pub struct Outbox {
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
    spare: Vec<Vec<u8>>,
    /// Where frames go to: the last address that the guest sent from.
    pub guest: EthernetAddress,
    /// The driver completes checksums (`VIRTIO_NET_F_GUEST_CSUM`).
    pub guest_sums: bool,
}

impl Outbox {
    pub fn new(guest: EthernetAddress) -> Self {
        Self { frames: VecDeque::new(), bytes: 0, spare: Vec::new(), guest, guest_sums: false }
    }

    /// Whether what sends at its own pace should wait.
    pub fn is_full(&self) -> bool {
        self.bytes >= MAX_QUEUED || self.frames.len() >= MAX_FRAMES / 2
    }

    /// Bytes that wait.
    #[cfg(any(test, feature = "testing"))]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// The next frame, with its virtio header.
    pub fn pop(&mut self) -> Option<Vec<u8>> {
        let frame = self.frames.pop_front()?;
        self.bytes = self.bytes.saturating_sub(frame.len());
        Some(frame)
    }

    /// Takes a buffer back.
    pub fn recycle(&mut self, frame: Vec<u8>) {
        if self.spare.len() < SPARE {
            self.spare.push(frame);
        }
    }

    pub fn clear(&mut self) {
        self.frames.clear();
        self.bytes = 0;
    }

    /// Whether even an answer is lost, as on a crowded network.
    fn overflows(&self) -> bool {
        self.bytes >= MAX_QUEUED + MAX_PACKET || self.frames.len() >= MAX_FRAMES
    }

    /// A frame of `len` bytes behind its Ethernet header.
    fn put<R>(
        &mut self,
        protocol: EthernetProtocol,
        len: usize,
        write: impl FnOnce(&mut [u8]) -> R,
    ) -> R {
        let mut frame = self.spare.pop().unwrap_or_default();
        frame.clear();
        frame.resize(VIRTIO + ETHERNET + len, 0);
        let (header, rest) = frame.split_at_mut(VIRTIO);
        let (ethernet, packet) = rest.split_at_mut(ETHERNET);
        let repr =
            EthernetRepr { src_addr: GATEWAY_MAC, dst_addr: self.guest, ethertype: protocol };
        repr.emit(&mut EthernetFrame::new_unchecked(ethernet));
        let result = write(packet);
        if protocol == EthernetProtocol::Ipv4 {
            complete(header, packet, self.guest_sums);
        }
        self.bytes += frame.len();
        self.frames.push_back(frame);
        result
    }

    /// A packet of `protocol` with what `write` puts behind its header.
    pub fn packet(
        &mut self,
        (from, to): (Ipv4Addr, Ipv4Addr),
        protocol: IpProtocol,
        len: usize,
        write: impl FnOnce(&mut [u8]),
    ) {
        let repr = Ipv4Repr {
            src_addr: from,
            dst_addr: to,
            next_header: protocol,
            payload_len: len,
            hop_limit: 64,
        };
        if len + IPV4 > MAX_PACKET || self.overflows() {
            return;
        }
        self.put(EthernetProtocol::Ipv4, IPV4 + len, |packet| {
            let (header, payload) = packet.split_at_mut(IPV4);
            write(payload);
            repr.emit(&mut Ipv4Packet::new_unchecked(header), &sums());
        });
    }

    /// A datagram.
    pub fn datagram(&mut self, from: SocketAddrV4, to: SocketAddrV4, data: &[u8]) {
        let len = UDP + data.len();
        self.packet((*from.ip(), *to.ip()), IpProtocol::Udp, len, |udp| {
            let mut udp = UdpPacket::new_unchecked(udp);
            udp.set_src_port(from.port());
            udp.set_dst_port(to.port());
            udp.set_len(len as u16);
            udp.payload_mut().copy_from_slice(data);
        });
    }

    /// Answers a question for the address of one of `hosts`.
    pub fn answer_arp(&mut self, packet: &[u8], hosts: &[Ipv4Addr]) {
        let Ok(packet) = ArpPacket::new_checked(packet) else { return };
        let Ok(ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr,
            source_protocol_addr,
            target_protocol_addr,
            ..
        }) = ArpRepr::parse(&packet)
        else {
            return;
        };
        if !hosts.contains(&target_protocol_addr) || self.overflows() {
            return;
        }
        let reply = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Reply,
            source_hardware_addr: GATEWAY_MAC,
            source_protocol_addr: target_protocol_addr,
            target_hardware_addr: source_hardware_addr,
            target_protocol_addr: source_protocol_addr,
        };
        self.put(EthernetProtocol::Arp, reply.buffer_len(), |packet| {
            reply.emit(&mut ArpPacket::new_unchecked(packet));
        });
    }
}

/// Completes the checksum of TCP or UDP, or leaves the rest of it to the driver.
fn complete(header: &mut [u8], packet: &mut [u8], guest_sums: bool) {
    let ip = Ipv4Packet::new_unchecked(&*packet);
    let (from, to, protocol) = (ip.src_addr(), ip.dst_addr(), ip.next_header());
    let at = match protocol {
        IpProtocol::Tcp => 16,
        IpProtocol::Udp => 6,
        _ => return,
    };
    let payload = packet.get_mut(IPV4..).unwrap_or_default();
    if payload.len() < at + 2 {
        return;
    }
    if guest_sums {
        let len = payload.len() as u32;
        let sum = checksum::pseudo_header(&from.into(), &to.into(), protocol, len);
        payload[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        header[0] = NEEDS_CSUM;
        header[6..8].copy_from_slice(&((ETHERNET + IPV4) as u16).to_le_bytes());
        header[8..10].copy_from_slice(&(at as u16).to_le_bytes());
        return;
    }
    match protocol {
        IpProtocol::Tcp => {
            TcpPacket::new_unchecked(payload).fill_checksum(&from.into(), &to.into());
        }
        _ => UdpPacket::new_unchecked(payload).fill_checksum(&from.into(), &to.into()),
    }
}

/// What this side does of checksums: those of IP itself. Those of what is in a
/// packet are [`complete`]d above and checked in [`Frame::parse`].
pub fn sums() -> phy::ChecksumCapabilities {
    let mut sums = phy::ChecksumCapabilities::ignored();
    sums.ipv4 = Checksum::Both;
    sums
}

/// A frame of the guest.
pub struct Frame<'a> {
    pub from: EthernetAddress,
    pub content: Content<'a>,
}

/// What is in it.
pub enum Content<'a> {
    Arp(&'a [u8]),
    /// A whole packet whose checksums are right, and what is behind its header.
    Ipv4 {
        from: Ipv4Addr,
        to: Ipv4Addr,
        protocol: IpProtocol,
        packet: &'a [u8],
        payload: &'a [u8],
    },
}

impl<'a> Frame<'a> {
    /// Reads a frame with its virtio header; `None`: it is malformed, or says
    /// nothing to anyone here.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (header, frame) = bytes.split_at_checked(VIRTIO)?;
        let summed = header[0] & NEEDS_CSUM == 0;
        let frame = EthernetFrame::new_checked(frame).ok()?;
        let (from, to) = (frame.src_addr(), frame.dst_addr());
        if !from.is_unicast() || (to != GATEWAY_MAC && to.is_unicast()) {
            return None;
        }
        let ethertype = frame.ethertype();
        let packet = frame.into_inner().get(ETHERNET..)?;
        let content = match ethertype {
            EthernetProtocol::Arp => Content::Arp(packet),
            EthernetProtocol::Ipv4 => Self::ipv4(packet, summed)?,
            _ => return None,
        };
        Some(Self { from, content })
    }

    fn ipv4(packet: &'a [u8], summed: bool) -> Option<Content<'a>> {
        let ip = Ipv4Packet::new_checked(packet).ok()?;
        // Fragments there are none of: the link carries the largest packet.
        if ip.version() != 4 || ip.more_frags() || ip.frag_offset() != 0 || !ip.verify_checksum() {
            return None;
        }
        let (from, to, protocol) = (ip.src_addr(), ip.dst_addr(), ip.next_header());
        let (start, end) = (usize::from(ip.header_len()), usize::from(ip.total_len()));
        let packet = packet.get(..end)?;
        let payload = packet.get(start..)?;
        let right = match protocol {
            IpProtocol::Tcp => {
                let tcp = TcpPacket::new_checked(payload).ok()?;
                !summed || tcp.verify_checksum(&from.into(), &to.into())
            }
            IpProtocol::Udp => {
                let udp = UdpPacket::new_checked(payload).ok()?;
                !summed || udp.verify_checksum(&from.into(), &to.into())
            }
            _ => true,
        };
        right.then_some(Content::Ipv4 { from, to, protocol, packet, payload })
    }
}

/// The link as smoltcp sees it: one packet comes in, many can go out.
pub struct Wire<'a> {
    pub incoming: Option<&'a [u8]>,
    pub outbox: &'a mut Outbox,
}

/// A packet from the guest.
pub struct Incoming<'a>(&'a [u8]);

/// Room for one to the guest.
pub struct Outgoing<'a>(&'a mut Outbox);

impl phy::Device for Wire<'_> {
    type RxToken<'b>
        = Incoming<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Outgoing<'b>
    where
        Self: 'b;

    fn receive(&mut self, _now: Instant) -> Option<(Incoming<'_>, Outgoing<'_>)> {
        Some((Incoming(self.incoming.take()?), Outgoing(self.outbox)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Outgoing<'_>> {
        (!self.outbox.is_full()).then_some(Outgoing(self.outbox))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU.into();
        capabilities.checksum = sums();
        capabilities
    }
}

impl phy::RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl phy::TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        match self.0.overflows() {
            true => f(&mut vec![0; len]),
            false => self.0.put(EthernetProtocol::Ipv4, len, f),
        }
    }
}
