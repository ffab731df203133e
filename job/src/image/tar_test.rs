//! What programs write, and what nobody should.

use super::tar::{EntryKind, Reader};
use super::testing::Archive;
use proptest::prelude::*;
use std::io::Read;

fn first(archive: Archive) -> std::io::Result<Option<super::tar::Entry>> {
    Reader::new(&archive.finish()[..]).next_entry()
}

fn said(archive: Archive) -> String {
    let bytes = archive.finish();
    let mut reader = Reader::new(&bytes[..]);
    loop {
        match reader.next_entry() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it was read"),
            Err(error) => return error.to_string(),
        }
    }
}

#[test]
fn entries_and_their_data_are_read_in_order() {
    let bytes = Archive::default()
        .directory("d/")
        .file("d/f", b"some data")
        .file("skipped", &[1; 2000])
        .symlink("l", "d/f")
        .finish();
    let mut reader = Reader::new(&bytes[..]);
    let entry = reader.next_entry().unwrap().unwrap();
    assert_eq!((entry.kind, &entry.path[..]), (EntryKind::Directory, &b"d/"[..]));
    let entry = reader.next_entry().unwrap().unwrap();
    assert_eq!((entry.mode, entry.uid, entry.gid, entry.mtime), (0o640, 1, 2, (3, 0)));
    assert_eq!(entry.size, 9);
    let mut data = String::new();
    reader.read_to_string(&mut data).unwrap();
    assert_eq!(data, "some data");
    assert_eq!(reader.next_entry().unwrap().unwrap().size, 2000);
    let entry = reader.next_entry().unwrap().unwrap();
    assert_eq!((entry.kind, &entry.link[..]), (EntryKind::Symlink, &b"d/f"[..]));
    assert_eq!(reader.next_entry().unwrap(), None);
    assert_eq!(reader.next_entry().unwrap(), None, "an end stays one");
}

#[test]
fn extended_headers_say_what_a_header_can_not() {
    let long = "x/".repeat(200) + "name";
    let archive = Archive::default()
        .records(&[
            ("path", long.as_bytes()),
            ("uid", b"4294967294"),
            ("mtime", b"-1.25"),
            ("comment", b"nobody reads this"),
            ("SCHILY.xattr.user.a", b"v"),
        ])
        .file("short", b"");
    let entry = first(archive).unwrap().unwrap();
    assert_eq!(entry.path, long.as_bytes());
    assert_eq!((entry.uid, entry.gid), (4_294_967_294, 2));
    assert_eq!(entry.mtime, (-2, 750_000_000));
    assert_eq!(entry.xattrs, [(b"user.a".to_vec(), b"v".to_vec())]);
    // GNU's way.
    let archive = Archive::default()
        .entry(b'L', b"././@LongLink", b"", &[long.as_bytes(), b"\0"].concat())
        .entry(b'K', b"././@LongLink", b"", b"target\0")
        .symlink("short", "cut");
    let entry = first(archive).unwrap().unwrap();
    assert_eq!((&entry.path[..], &entry.link[..]), (long.as_bytes(), &b"target"[..]));
}

#[test]
fn old_and_large_fields_are_read() {
    let mut header = [0; 512];
    header[..4].copy_from_slice(b"dir/");
    header[100..108].copy_from_slice(b"   755 \0");
    // GNU's binary numbers.
    header[108..116].copy_from_slice(&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xf0]);
    header[116..124].copy_from_slice(b"0000000\0");
    header[124..136].copy_from_slice(b"00000000000\0");
    header[136..148].copy_from_slice(&[0xff; 12]);
    let mut archive = Archive::default();
    archive.raw(header, b"");
    let entry = first(archive).unwrap().unwrap();
    assert_eq!((entry.kind, entry.mode, entry.uid), (EntryKind::Directory, 0o755, 0xffff_fff0));
    assert_eq!(entry.mtime, (0, 0));
    let mut long = [0; 512];
    long[..100].fill(b'n');
    long[257..263].copy_from_slice(b"ustar\0");
    long[345..351].copy_from_slice(b"prefix");
    let mut archive = Archive::default();
    archive.raw(long, b"");
    let entry = first(archive).unwrap().unwrap();
    assert!(entry.path.starts_with(b"prefix/nnn") && entry.path.len() == 107);
}

#[test]
fn archives_that_nobody_should_write_are_refused() {
    let negative = |at: usize| {
        let mut header = [0; 512];
        header[0] = b'f';
        header[at..at + 8].fill(0xff);
        let mut archive = Archive::default();
        archive.raw(header, b"");
        archive
    };
    let damaged = {
        let mut archive = Archive::default().file("f", b"");
        archive.0[0] = b'g';
        archive
    };
    let zeros = {
        let mut archive = Archive::default().file("f", b"");
        archive.0.extend([0; 512]);
        archive.file("g", b"")
    };
    for (archive, part) in [
        (negative(124), "a size is no number"),
        (negative(108), "owner"),
        (damaged, "checksum"),
        (zeros, "zeros between"),
        (Archive::default().entry(b'S', b"f", b"", b""), "sparse"),
        (Archive::default().entry(b'M', b"f", b"", b""), "not POSIX's"),
        (Archive::default().records(&[("GNU.sparse.major", b"1")]).file("f", b""), "sparse"),
        (Archive::default().records(&[("size", b"-1")]).file("f", b""), "damaged"),
        (
            Archive::default().records(&[("size", b"99999999999999999999")]).file("f", b""),
            "damaged",
        ),
        (Archive::default().records(&[("size", b"2199023255552")]).file("f", b""), "1 TiB"),
        (Archive::default().records(&[("size", b"4096")]).file("f", b""), "within a file"),
        (Archive::default().entry(b'x', b"p", b"", b"99 path=a\n"), "damaged"),
        (Archive::default().entry(b'x', b"p", b"", b"0 path=a\n"), "damaged"),
        (Archive::default().entry(b'x', b"p", b"", b"path"), "damaged"),
        (Archive::default().entry(b'x', b"p", b"", &vec![b'1'; (1 << 20) + 1]), "1 MiB"),
        (Archive::default().entry(b'L', b"p", b"", &vec![b'1'; (1 << 20) + 1]), "1 MiB"),
    ] {
        let text = said(archive);
        assert!(text.contains(part), "{part}: {text}");
    }
    let mut cut = Archive::default().file("f", &[1; 600]).0;
    cut.truncate(1000);
    let mut reader = Reader::new(&cut[..]);
    reader.next_entry().unwrap();
    assert!(reader.next_entry().unwrap_err().to_string().contains("within a file"));
}

proptest! {
    #[test]
    fn any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        let mut reader = Reader::new(&bytes[..]);
        while let Ok(Some(_)) = reader.next_entry() {}
    }
}
