//! What is written can be read again.

use super::read::{Image, Inode};
use super::write::{Output, write};
use crate::image::content::{Content, Contents};
use crate::image::progress::Unseen;
use crate::image::tree::{Child, Kind, Meta, Node, ROOT, Tree, directory};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A tree's image, and its bytes.
fn image(tree: &Tree, contents: &Contents) -> Vec<u8> {
    let file = tempfile::tempfile().unwrap();
    let output = Output { file: &file, path: Path::new("image"), uuid: [7; 16], latest: None };
    let written = write(tree, contents, &output, &mut Unseen).unwrap();
    let mut bytes = vec![0; written.size as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(file.metadata().unwrap().len(), written.size);
    bytes
}

/// Contents that come from one file of a pattern.
fn pattern(size: usize) -> (Contents, Vec<u8>) {
    let bytes: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
    let file: File = tempfile::tempfile().unwrap();
    file.write_all_at(&bytes, 0).unwrap();
    let mut contents = Contents::default();
    contents.add_file(Path::new("pattern"), file);
    (contents, bytes)
}

fn node(kind: Kind) -> Node {
    let meta = Meta { mode: 0o4751, uid: 70_000, gid: 100_001, mtime: (-5, 17), ..Meta::default() };
    Node { meta, kind }
}

fn file(offset: u64, size: u64) -> Kind {
    Kind::File(Content::Range { file: 0, offset, size })
}

#[test]
fn every_kind_of_inode_comes_back() {
    let (contents, bytes) = pattern(20_000);
    let mut tree = Tree::default();
    let xattrs = [("user.a", &b"1"[..]), ("security.capability", &[0; 20]), ("user.b", b"")];
    let mut with_xattrs = node(file(1, 9_000));
    for (name, value) in xattrs {
        with_xattrs.meta.xattrs.insert(name.as_bytes().into(), value.into());
    }
    tree.put(b"etc/file", with_xattrs, 0).unwrap();
    tree.put_link(b"-first", b"etc/file", 0).unwrap();
    tree.put(b"etc/empty", node(file(0, 0)), 0).unwrap();
    tree.put(b"etc/block", node(file(3, 8192)), 0).unwrap();
    tree.put(b"link", node(Kind::Symlink((*b"/etc/file").into())), 0).unwrap();
    tree.put(b"dev/char", node(Kind::Character(4095, 0xf_ffff)), 0).unwrap();
    tree.put(b"dev/block", node(Kind::Block(8, 1)), 0).unwrap();
    tree.put(b"dev/pipe", node(Kind::Fifo), 0).unwrap();
    tree.put(b"dev/socket", node(Kind::Socket), 0).unwrap();
    let files = {
        let image = image(&tree, &contents);
        Image(&image).files().unwrap()
    };
    let get = |path: &str| -> &Inode { &files[path.as_bytes()] };
    let file = get("/etc/file");
    assert_eq!(file.data, bytes[1..9001]);
    assert_eq!((file.mode, file.uid, file.gid), (0o104751, 70_000, 100_001));
    assert_eq!((file.mtime, file.names), ((-5, 17), 2));
    let wanted = xattrs.map(|(name, value)| (name.as_bytes().to_vec(), value.to_vec()));
    assert_eq!(file.xattrs, BTreeMap::from(wanted));
    assert_eq!(get("/-first").number, file.number);
    assert_eq!(get("/etc/empty").data, b"");
    assert_eq!(get("/etc/block").data, bytes[3..3 + 8192]);
    assert_eq!((get("/link").mode, &get("/link").data[..]), (0o124751, &b"/etc/file"[..]));
    assert_eq!((get("/dev/char").mode, get("/dev/char").union), (0o024751, 0xffff_ffff));
    assert_eq!((get("/dev/block").mode, get("/dev/block").union), (0o064751, 0x801));
    assert_eq!(get("/dev/pipe").mode, 0o014751);
    assert_eq!(get("/dev/socket").mode, 0o144751);
    assert_eq!((get("").names, get("/etc").names, get("").mode), (4, 2, 0o040755));
    assert_eq!(files.len(), 12);
}

#[test]
fn large_directories_and_attributes_come_back() {
    let (contents, _) = pattern(10);
    let mut tree = Tree::default();
    for number in 0..3000 {
        let name = format!("{number}{}", "x".repeat(number % 250));
        tree.put(name.as_bytes(), node(file(0, number as u64 % 10)), 0).unwrap();
    }
    let mut many = directory();
    for number in 0..60 {
        many.meta.xattrs.insert(format!("user.{number}").into_bytes().into(), [9; 1000].into());
    }
    tree.put(b"many", many.clone(), 0).unwrap();
    let bytes = image(&tree, &contents);
    let files = Image(&bytes).files().unwrap();
    assert_eq!(files.len(), 3002);
    assert_eq!(files[&b"/many"[..]].xattrs.len(), 60);
    assert_eq!(bytes, image(&tree, &contents), "equal trees are equal images");
}

#[test]
fn contents_may_be_beyond_four_gibibytes() {
    const HOLE: u64 = 5 << 30;
    let sparse = tempfile::tempfile().unwrap();
    sparse.set_len(HOLE).unwrap();
    sparse.write_all_at(b"end", HOLE - 3).unwrap();
    let mut contents = Contents::default();
    contents.add_file(Path::new("sparse"), sparse);
    let mut tree = Tree::default();
    tree.put(b"a", node(file(HOLE - 4096, 4096)), 0).unwrap();
    tree.put(b"large", node(file(0, HOLE)), 0).unwrap();
    tree.put(b"z", node(file(HOLE - 4096, 4096)), 0).unwrap();
    let layout = super::layout::Layout::new(&tree).unwrap();
    let blocks = |path: &[u8]| layout.places[tree.find(path).unwrap().unwrap() as usize].block;
    assert!(u64::from(blocks(b"z")) * 4096 > HOLE);
    assert_eq!(u64::from(layout.blocks), 2 + 1 + HOLE / 4096 + 1);
    assert_eq!(blocks(b"large"), 3);
    let places = &layout.places[ROOT as usize];
    assert_eq!((places.number, places.names), (1, 2));
}

/// Names, sizes and depths as they come.
fn trees() -> impl Strategy<Value = Vec<(Vec<u8>, u64, bool)>> {
    let name = proptest::collection::vec(1u8..=255, 1..40);
    proptest::collection::vec((name, 0u64..20_000, any::<bool>()), 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn any_tree_comes_back(entries in trees()) {
        let (contents, bytes) = pattern(20_000);
        let mut tree = Tree::default();
        let mut place = ROOT;
        let mut wanted = 1;
        for (name, size, down) in &entries {
            if name.contains(&b'/') || matches!(&name[..], b"." | b"..") {
                continue;
            }
            if tree.children(place).any(|(known, _)| **known == name[..]) {
                continue;
            }
            wanted += 1;
            let made = if *down { directory() } else { node(file(20_000 - size, *size)) };
            let id = tree.add(made).unwrap();
            tree.link(place, name, Child { node: id, layer: 0 }).unwrap();
            if *down {
                place = id;
            }
        }
        let image = image(&tree, &contents);
        let files = Image(&image).files().unwrap();
        prop_assert_eq!(files.len(), wanted);
        for inode in files.values().filter(|inode| inode.mode & 0o170000 == 0o100000) {
            prop_assert_eq!(&inode.data[..], &bytes[20_000 - inode.data.len()..]);
        }
    }
}
