//! Layers on each other, and archives that were made to do harm.

use super::content::Contents;
use super::testing::{Archive, hostile, layers};
use super::tree::{Kind, NodeId, Tree};
use proptest::prelude::*;

fn paths(tree: &Tree) -> Vec<String> {
    fn walk(tree: &Tree, id: NodeId, path: &str, found: &mut Vec<String>) {
        for (name, child) in tree.children(id) {
            let path = format!("{path}/{}", String::from_utf8_lossy(name));
            walk(tree, child.node, &path, found);
            found.push(path);
        }
    }
    let mut found = Vec::new();
    walk(tree, 0, "", &mut found);
    found.sort();
    found
}

fn text(tree: &Tree, contents: &Contents, path: &str) -> String {
    let node = tree.find(path.as_bytes()).unwrap().unwrap();
    let Kind::File(content) = &tree.node(node).kind else { panic!("{path} is no file") };
    String::from_utf8(contents.read(content, 1 << 20).unwrap()).unwrap()
}

fn said(archives: &[Vec<u8>]) -> String {
    layers(archives).unwrap_err().to_string()
}

#[test]
fn whiteouts_remove_what_layers_below_have_and_nothing_else() {
    let lower = Archive::default()
        .file("a/one", b"1")
        .file("a/two", b"2")
        .file("a/deep/three", b"3")
        .file("b/four", b"4")
        .file("c", b"5")
        .finish();
    let upper = Archive::default()
        // Whatever the order, what this layer has itself stays.
        .file("a/two", b"new")
        .file("a/.wh..wh..opq", b"")
        .file("a/deep/six", b"6")
        .file(".wh.c", b"")
        .file("b/.wh.four", b"")
        .file("b/.wh.absent", b"")
        .file("absent/.wh.five", b"")
        .file(".wh..wh.plnk", b"")
        .finish();
    let (tree, contents) = layers(&[lower.clone(), upper]).unwrap();
    assert_eq!(paths(&tree), ["/a", "/a/deep", "/a/deep/six", "/a/two", "/b"]);
    assert_eq!(text(&tree, &contents, "a/two"), "new");
    // A directory that is removed and made again is a new one.
    let again = Archive::default().directory("a").file(".wh.a", b"").file("a/x", b"").finish();
    let (tree, _) = layers(&[lower, again]).unwrap();
    assert_eq!(paths(&tree), ["/a", "/a/x", "/b", "/b/four", "/c"]);
}

#[test]
fn entries_take_the_place_of_what_was_there() {
    let lower = Archive::default()
        .file("was-file", b"1")
        .file("was-directory/x", b"2")
        .symlink("was-link", "/etc/passwd")
        .file("twice", b"first")
        .link("other", "twice")
        .file("twice", b"second")
        .finish();
    let upper = Archive::default().file("was-file/y", b"").finish();
    assert!(said(&[lower.clone(), upper]).contains("was-file/y is below something that is no"));
    let upper = Archive::default()
        .directory("was-file")
        .file("was-directory", b"")
        .file("was-link", b"mine")
        .directory("./")
        .file("/absolute", b"")
        .finish();
    let (tree, contents) = layers(&[lower, upper]).unwrap();
    let wanted = ["/absolute", "/other", "/twice", "/was-directory", "/was-file", "/was-link"];
    assert_eq!(paths(&tree), wanted);
    assert_eq!(text(&tree, &contents, "twice"), "second");
    assert_eq!(text(&tree, &contents, "other"), "first", "a name is of an inode, not of a path");
    assert_eq!(text(&tree, &contents, "was-link"), "mine");
    assert_eq!(tree.node(0).meta.mode, 0o640);
}

#[test]
fn links_within_the_image_are_followed_on_the_way_to_a_file() {
    let archive = Archive::default()
        .directory("usr/lib")
        .symlink("lib", "usr/lib")
        .symlink("usr/up", "../usr/lib")
        .symlink("usr/absolute", "/usr/lib")
        .file("lib/a", b"")
        .file("usr/up/b", b"")
        .file("usr/absolute/c", b"")
        .link("usr/lib/d", "lib/a")
        .finish();
    let (tree, _) = layers(&[archive]).unwrap();
    let found = paths(&tree);
    for name in ["a", "b", "c", "d"] {
        assert!(found.contains(&format!("/usr/lib/{name}")), "{found:?}");
    }
}

#[test]
fn archives_that_lead_out_are_refused() {
    let many = (0..60).fold(Archive::default(), |archive, at| {
        archive.symlink(&format!("l{at}"), &format!("l{}", at + 1))
    });
    let deep = vec!["d"; 600].join("/");
    for (archive, part) in [
        (Archive::default().file("../evil", b""), "leads out of the image"),
        (Archive::default().file("a/../../evil", b""), "leads out of the image"),
        (Archive::default().symlink("l", "../../tmp").file("l/evil", b""), "leads out"),
        (Archive::default().symlink("l", "/tmp").file("l/evil", b""), "leads to no directory"),
        (Archive::default().symlink("l", "l").file("l/evil", b""), "leads to no directory"),
        (many.file("l0/evil", b""), "leads to no directory"),
        (Archive::default().link("l", "../../etc/shadow"), "leads out of the image"),
        (Archive::default().link("l", "/etc/shadow"), "hard link to no file"),
        (Archive::default().directory("d").link("l", "d"), "hard link to no file"),
        (Archive::default().link("l", "l"), "hard link to no file"),
        (Archive::default().file(".", b""), "no name for a file"),
        (Archive::default().file("", b""), "no name for a file"),
        (Archive::default().file("a/.wh...", b""), "no name for a file"),
        (Archive::default().file("a/.wh.", b""), "no name for a file"),
        (Archive::default().records(&[("path", b"a/../../x")]).file("x", b""), "leads out"),
        (Archive::default().records(&[("path", &[b'x'; 300])]).file("x", b""), "is longer"),
        (Archive::default().records(&[("path", deep.as_bytes())]).file("x", b""), "deep"),
        (Archive::default().records(&[("path", b"a\0b")]).file("x", b""), "zero byte"),
        (Archive::default().symlink("l", ""), "link to what is no path"),
    ] {
        let text = said(&[archive.finish()]);
        assert!(text.starts_with("layer: ") && text.contains(part), "{part}: {text}");
        assert!(!text.contains('\0') && !text.contains('\n'), "{text:?}");
    }
}

#[test]
fn links_do_not_make_a_tree_deeper_than_it_may_be() {
    let step = vec!["d"; 200].join("/");
    let mut archive = Archive::default();
    let mut top = step.clone();
    for at in 0..4 {
        archive = archive.records(&[("path", top.as_bytes())]).directory("x");
        let link = format!("link{at}");
        archive = archive.records(&[("linkpath", top.as_bytes())]).symlink(&link, "x");
        top = format!("{link}/{step}");
    }
    assert!(said(&[archive.finish()]).contains("512 directories deep"));
}

#[test]
fn device_nodes_are_inodes_of_the_image_only() {
    let archive = Archive::default()
        .entry(b'3', b"dev/char", b"", b"")
        .entry(b'4', b"dev/block", b"", b"")
        .entry(b'6', b"pipe", b"", b"")
        .finish();
    let (tree, _) = layers(&[archive]).unwrap();
    let kind = |path: &str| &tree.node(tree.find(path.as_bytes()).unwrap().unwrap()).kind;
    assert_eq!(kind("dev/char"), &Kind::Character(8, 17));
    assert_eq!(kind("dev/block"), &Kind::Block(8, 17));
    assert_eq!(kind("pipe"), &Kind::Fifo);
}

#[test]
fn attributes_that_mean_nothing_to_linux_are_left_out() {
    let archive = Archive::default()
        .records(&[
            ("SCHILY.xattr.user.kept", b"a=b\n\0"),
            ("SCHILY.xattr.com.apple.provenance", b"x"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.", b"z"),
        ])
        .file("f", b"")
        .finish();
    let (tree, _) = layers(&[archive]).unwrap();
    let meta = &tree.node(tree.find(b"f").unwrap().unwrap()).meta;
    let kept: Vec<_> = meta.xattrs.iter().collect();
    assert_eq!(kept, [(&Box::from(&b"user.kept"[..]), &Box::from(&b"a=b\n\0"[..]))]);
    let large = vec![0; 70_000];
    let archive = Archive::default().records(&[("SCHILY.xattr.user.l", &large)]).file("f", b"");
    assert!(said(&[archive.finish()]).contains("larger than Linux's"));
}

proptest! {
    #[test]
    fn damaged_archives_are_survived(
        changes in proptest::collection::vec((0usize..5000, any::<u8>()), 1..30),
        kind in 2u8..4,
        cut in 0usize..6000,
    ) {
        let mut bytes = vec![kind];
        bytes.extend(
            Archive::default()
                .records(&[("path", b"long/name"), ("SCHILY.xattr.user.a", b"1")])
                .file("x", b"content")
                .symlink("l", "long")
                .file("l/.wh.name", b"")
                .link("h", "l/name")
                .finish(),
        );
        for (at, byte) in changes {
            if let Some(old) = bytes.get_mut(at + 1) {
                *old = byte;
            }
        }
        bytes.truncate(cut);
        hostile(&bytes);
    }

    #[test]
    fn any_document_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        hostile(&[&[1], &bytes[..]].concat());
    }
}

/// Where the fuzzer starts from: `cargo test -p job corpus -- --ignored`.
#[test]
#[ignore = "writes fuzz/corpus/image"]
fn corpus() {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/image");
    std::fs::create_dir_all(&directory).unwrap();
    let lower = Archive::default()
        .records(&[("path", b"long/name"), ("SCHILY.xattr.user.a", b"1")])
        .file("x", b"content")
        .symlink("l", "long")
        .link("h", "l/name");
    let upper = Archive::default()
        .file("l/.wh.name", b"")
        .file("long/.wh..wh..opq", b"")
        .entry(b'L', b"L", b"", b"gnu/name")
        .entry(b'3', b"dev", b"", b"")
        .directory("..")
        .file("../x", b"");
    let both = [&lower.0[..], &upper.0].concat();
    let index = r#"{"manifests":[{"digest":"sha256:00","size":1,"platform":{"os":"linux"}}]}"#;
    let config = r#"{"os":"linux","config":{"Env":["a"]},"rootfs":{"diff_ids":["sha256:0"]}}"#;
    let saved = r#"[{"Config":"c","RepoTags":["a:b"],"Layers":["l"]}]"#;
    let mut sif = vec![0; 128];
    sif[32..48].copy_from_slice(b"SIF_MAGIC\x0001\x0002\0");
    let mut descriptor = vec![0; 585];
    descriptor[..5].copy_from_slice(&[4, 0x40, 0, 0, 1]);
    descriptor[205] = 2;
    descriptor[209..212].copy_from_slice(b"02\0");
    let seeds: [(u8, &[u8]); 8] = [
        (2, &lower.0),
        (2, &upper.0),
        (3, &both),
        (1, index.as_bytes()),
        (1, config.as_bytes()),
        (1, saved.as_bytes()),
        (0, &sif),
        (0, &descriptor),
    ];
    for (number, (kind, bytes)) in seeds.into_iter().enumerate() {
        std::fs::write(directory.join(number.to_string()), [&[kind], bytes].concat()).unwrap();
    }
}
