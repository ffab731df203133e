//! The file system device against drivers of all kinds. What a good one sees is
//! tested in Linux guests (`tests/linux/share.rs`).

use super::*;
use crate::backend::share::{ROOT, Share};
use crate::virtio::testing::{Bench, hostile, pci::PciBench};
use proptest::prelude::*;
use rustix::fs::OFlags;
use std::fs;
use std::os::unix::fs::symlink;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn no_guest_breaks_a_share(program in prop::collection::vec(any::<u8>(), 0..400)) {
        let outside = tempfile::tempdir().unwrap();
        let inside = outside.path().join("inside");
        fs::create_dir(&inside).unwrap();
        fs::write(outside.path().join("secret"), "s").unwrap();
        fs::write(inside.join("a"), "text").unwrap();
        symlink("../secret", inside.join("link")).unwrap();
        hostile::fs::<Bench>(&program, &inside);
        hostile::fs::<PciBench>(&program, &inside);
        prop_assert_eq!(fs::read(outside.path().join("secret")).unwrap(), b"s");
        prop_assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 2);
    }
}

#[test]
fn names_are_the_directorys_own() {
    let dir = tempfile::tempdir().unwrap();
    symlink("/etc/passwd", dir.path().join("link")).unwrap();
    symlink("/proc/self/root", dir.path().join("magic")).unwrap();
    let mut share = Share::open("t", dir.path(), false).unwrap();
    for name in ["link", "magic"] {
        let (node, stat) = share.lookup(ROOT, name.as_bytes()).unwrap();
        assert_eq!(stat.st_mode & libc::S_IFMT, libc::S_IFLNK, "the link, not what it names");
        assert!(share.reopen(node, OFlags::RDONLY).is_err(), "and it can't be opened");
        assert!(share.lookup(node, b"etc").is_err(), "nor gone through");
    }
    // Even a name that the parser would never let through.
    let (top, _) = share.lookup(ROOT, b"..").map_or((ROOT, ()), |(node, _)| (node, ()));
    let found = share.lookup(top, b"link").map(|(_, stat)| stat.st_mode & libc::S_IFMT);
    assert_eq!(found.ok(), Some(libc::S_IFLNK), "the top is its own parent");
}

#[test]
fn a_pipe_or_a_device_is_never_opened() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    let name = std::ffi::CString::new(pipe.to_str().unwrap()).unwrap();
    // SAFETY: a plain system call on a string that ends in zero.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    let mut share = Share::open("t", dir.path(), false).unwrap();
    let (node, _) = share.lookup(ROOT, b"pipe").unwrap();
    assert!(share.reopen(node, OFlags::WRONLY).is_err());
}

#[test]
fn nodes_live_as_long_as_they_are_held() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a"), "x").unwrap();
    fs::hard_link(dir.path().join("a"), dir.path().join("b")).unwrap();
    let mut share = Share::open("t", dir.path(), false).unwrap();
    let (a, _) = share.lookup(ROOT, b"a").unwrap();
    let (b, _) = share.lookup(ROOT, b"b").unwrap();
    assert_eq!(a, b, "one file is one node");
    share.forget(a, 1);
    assert!(share.node(a).is_ok());
    share.forget(a, u64::MAX);
    assert!(share.node(a).is_err());
    assert!(share.is_idle());
    share.forget(ROOT, 5);
    assert!(share.node(ROOT).is_ok(), "the top is always there");
}

#[test]
fn a_mounted_share_is_not_saved() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a"), "x").unwrap();
    let share = || Share::open("t", dir.path(), false).unwrap();
    let saved = Fs::new("t", share()).save().unwrap();
    Fs::new("t", share()).restore(&saved).unwrap();
    assert!(Fs::new("other", share()).restore(&saved).is_err());
    let mut mounted = Fs::new("t", share());
    mounted.share.lookup(ROOT, b"a").unwrap();
    let said = mounted.save().unwrap_err().to_string();
    assert!(said.contains("unmount"), "{said}");
}
