//! The kernel's data path between a driver in memory and a TAP in a network of
//! the test's own, where the host has both.

use super::*;
use crate::backend::tap::Tap;
use crate::backend::tap::tests::{ETHERTYPE, bring_up, frame, in_own_network, packet_socket, wait};
use crate::virtio::SharedVirtio;
use crate::virtio::testing::driver::{Carrier, Driver};
use crate::virtio::testing::pci::PciBench;
use crate::virtio::testing::{Bench, HOLE};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Mutex;
use vm_memory::{Bytes, GuestAddress};

const OUT: u64 = 0x4_0000;
const IN: u64 = 0x6_0000;
/// The card's sources.
const START: usize = 0;
const BROKEN: usize = 1;

/// A frame goes out and one comes in, with nobody but the kernel to move them.
fn frames_go_both_ways<C: Carrier>(driver: &mut Driver<C>, socket: &OwnedFd) {
    let sent = frame(1000);
    driver.mem.write_slice(&[0; 12], GuestAddress(OUT)).unwrap();
    driver.mem.write_slice(&sent, GuestAddress(OUT + 12)).unwrap();
    let head = driver.rings[1].chain(&driver.mem, &[(OUT, 1012)], &[]);
    driver.rings[1].offer(&driver.mem, head);
    driver.carrier.ring(1);
    let mut got = [0u8; 2000];
    let n = wait(|| {
        // SAFETY: `got` has that many bytes.
        let n = unsafe { libc::recv(socket.as_raw_fd(), got.as_mut_ptr().cast(), 2000, 0) };
        (n > 0).then_some(n as usize)
    });
    assert_eq!(got[..n], sent);
    assert_eq!(wait(|| driver.collect(1).pop()), (head.into(), 0));

    // SAFETY: `sent` has that many bytes.
    let n = unsafe { libc::send(socket.as_raw_fd(), sent.as_ptr().cast(), sent.len(), 0) };
    assert_eq!(n, 1000);
    let came = wait(|| {
        // Its own chatter (IPv6) takes buffers, too.
        let head = driver.rings[0].chain(&driver.mem, &[], &[(IN, 2000)]);
        driver.rings[0].offer(&driver.mem, head);
        driver.carrier.ring(0);
        let len = wait(|| driver.collect(0).pop()).1 as usize;
        driver.mem.read_slice(&mut got[..len], GuestAddress(IN)).unwrap();
        (got[24..26] == ETHERTYPE.to_be_bytes()).then_some(len)
    });
    assert_eq!(got[12..came], sent);
}

fn kernel<C: Carrier>(name: &'static str) {
    in_own_network(move || {
        let vhost = match VhostNet::open() {
            Ok(vhost) => vec![vhost],
            Err(e) => return println!("skipped: {}: {e}", crate::backend::vhost::VHOST_NET_DEVICE),
        };
        let tap = Tap::open(name).unwrap();
        bring_up(name);
        let socket = packet_socket(name, ETHERTYPE);
        let options = Options { vhost, ..Options::default() };
        let device: SharedVirtio =
            Arc::new(Mutex::new(Net::new(options, vec![Box::new(tap)]).unwrap()));
        let mut driver = Driver::<C>::new(device);
        driver.source(START);
        frames_go_both_ways(&mut driver, &socket);
        // What is saved is where the kernel is.
        driver.carrier.save_and_restore();
        driver.source(START);
        frames_go_both_ways(&mut driver, &socket);
        driver.start();
        driver.source(START);
        frames_go_both_ways(&mut driver, &socket);
        driver.send(1, &[(HOLE, 100)], &[]);
        wait(|| {
            driver.source(BROKEN);
            driver.broken().then_some(())
        });
        driver.start();
        driver.source(START);
        assert!(!driver.broken());
        frames_go_both_ways(&mut driver, &socket);
        driver.carrier.power_off();
    });
}

#[test]
fn the_kernel_moves_frames_for_a_driver_over_mmio() {
    kernel::<Bench>("mvkernel0");
}

#[test]
fn the_kernel_moves_frames_for_a_driver_over_pci() {
    kernel::<PciBench>("mvkernel1");
}
