//! From images of all kinds to files that hold the same.

use super::build::{Options, build, build_unpacked};
use super::cache::Cache;
use super::erofs::read::{Image as Erofs, Inode};
use super::error::Result;
use super::inspect::inspect;
use super::open::{Ready, Root, prepare};
use super::progress::Unseen;
use super::reference::Reference;
use super::testing::{Archive, Image, gzip, zstd};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn reference(prefix: &str, path: &Path, suffix: &str) -> Reference {
    let text = format!("{prefix}{}{suffix}", path.display());
    Reference::parse(OsStr::new(&text)).unwrap()
}

fn files(path: &Path) -> BTreeMap<String, Inode> {
    let bytes = fs::read(path).unwrap();
    let files = Erofs(&bytes).files().unwrap();
    files.into_iter().map(|(path, inode)| (String::from_utf8(path).unwrap(), inode)).collect()
}

/// Two layers: one of gzip, one of zstd, and a user by name.
fn image() -> (Image, Value) {
    let mut image = Image::default();
    let lower = Archive::default()
        .file("etc/passwd", b"app:x:7:8::/srv:/bin/sh\n")
        .file("etc/group", b"more:x:9:app\n")
        .file("bin/tool", &[3; 10_000])
        .file("gone", b"x")
        .finish();
    let upper = Archive::default().file(".wh.gone", b"").file("new", b"here").finish();
    image.layer(&lower, &gzip(&lower));
    image.layer(&upper, &zstd(&upper));
    let config = json!({
        "Entrypoint": ["/bin/tool"], "Cmd": ["a b"], "Env": ["A=1"], "User": "app",
        "WorkingDir": "/srv", "Labels": { "k": "v" }, "StopSignal": "SIGINT",
    });
    let manifest = image.manifest("amd64", config);
    (image, manifest)
}

/// A layout of that image in a new directory.
fn layout() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("layout");
    let (image, manifest) = image();
    image.write(&path, &[manifest]);
    (directory, path)
}

fn build_to(source: &Reference, output: &Path) -> Result<()> {
    build(source, output, Options::default(), &mut Unseen).map(drop)
}

#[test]
fn an_oci_image_becomes_one_file_with_its_configuration() {
    let (directory, path) = layout();
    let output = directory.path().join("app.img");
    build_to(&reference("oci:", &path, ""), &output).unwrap();
    let files = files(&output);
    let names: Vec<&str> = files.keys().map(String::as_str).collect();
    let wanted = ["", "/bin", "/bin/tool", "/etc", "/etc/group", "/etc/passwd", "/new"];
    assert_eq!(names, wanted);
    assert_eq!(files["/bin/tool"].data, [3; 10_000]);
    assert_eq!(files["/new"].data, b"here");
    let report = inspect(&reference("", &output, "")).unwrap();
    let description = report.description.unwrap();
    let config = description.config;
    assert_eq!((report.kind, report.file_system), ("microvm image", Some("erofs")));
    assert_eq!((config.entrypoint, config.cmd), (vec!["/bin/tool".into()], vec!["a b".into()]));
    assert_eq!((&*config.user, &*config.working_directory), ("app", "/srv"));
    assert_eq!((&*config.stop_signal, &*config.labels["k"]), ("SIGINT", "v"));
    let identity = description.identity.unwrap();
    assert_eq!((identity.uid, identity.gid, identity.groups), (7, 8, vec![9]));
    assert_eq!(description.layers.len(), 2);
    assert_eq!(description.architecture.as_deref(), Some("amd64"));
    // It can be run, and it is what a machine starts from.
    assert!(fs::read(&output).unwrap().starts_with(b"#!/usr/bin/env -S microvm run\n"));
    let metadata = fs::metadata(&output).unwrap();
    assert_eq!((metadata.len() % 4096, metadata.permissions().mode() & 0o100), (0, 0o100));
    let left: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn equal_sources_make_equal_files() {
    let (directory, path) = layout();
    let (one, two) = (directory.path().join("one"), directory.path().join("two"));
    build_to(&reference("oci:", &path, ""), &one).unwrap();
    // Over one that is there.
    fs::write(&two, "old").unwrap();
    build_to(&reference("oci:", &path, ""), &two).unwrap();
    assert_eq!(fs::read(one).unwrap(), fs::read(two).unwrap());
}

#[test]
fn a_directory_becomes_a_file_that_holds_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    fs::create_dir_all(root.join("a/b")).unwrap();
    fs::write(root.join("a/file"), vec![5; 5000]).unwrap();
    fs::hard_link(root.join("a/file"), root.join("z")).unwrap();
    symlink("/nowhere/at/all", root.join("a/b/link")).unwrap();
    fs::set_permissions(root.join("a/file"), fs::Permissions::from_mode(0o4711)).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
    let mut attributes = vec![];
    if rustix::fs::setxattr(root.join("z"), "user.k", b"v", rustix::fs::XattrFlags::empty()).is_ok()
    {
        attributes.push((b"user.k".to_vec(), b"v".to_vec()));
    }
    // An image in the directory that it is made of is not in itself.
    let output = root.join("app.img");
    fs::write(&output, "an earlier one").unwrap();
    build_to(&reference("", &root, ""), &output).unwrap();
    drop(socket);
    let files = files(&output);
    let names: Vec<&str> = files.keys().map(String::as_str).collect();
    assert_eq!(names, ["", "/a", "/a/b", "/a/b/link", "/a/file", "/socket", "/z"]);
    let (file, host) = (&files["/a/file"], fs::metadata(root.join("a/file")).unwrap());
    assert_eq!(file.data, [5; 5000]);
    assert_eq!((file.number, file.names), (files["/z"].number, 2));
    assert_eq!((u32::from(file.mode), file.uid, file.gid), (host.mode(), host.uid(), host.gid()));
    assert_eq!(file.mtime, (host.mtime(), host.mtime_nsec() as u32));
    assert_eq!(file.xattrs.clone().into_iter().collect::<Vec<_>>(), attributes);
    assert_eq!(files["/a/b/link"].data, b"/nowhere/at/all");
    let options = Options { all_root: true, latest: Some(1000) };
    build(&reference("", &root, ""), &output, options, &mut Unseen).unwrap();
    let files = self::files(&output);
    assert!(files.values().all(|file| (file.uid, file.gid, file.mtime) == (0, 0, (1000, 0))));
}

#[test]
fn a_tar_archive_may_be_compressed() {
    let directory = tempfile::tempdir().unwrap();
    // A name like a whiteout's is only that in a layer.
    let archive = Archive::default().file("a", &[1; 9000]).file(".wh.a", b"").finish();
    let mut built = Vec::new();
    for (name, bytes) in [("t", archive.clone()), ("g", gzip(&archive)), ("z", zstd(&archive))] {
        let path = directory.path().join(name);
        fs::write(&path, bytes).unwrap();
        let output = directory.path().join("out");
        build_to(&reference("", &path, ""), &output).unwrap();
        built.push(fs::read(&output).unwrap());
    }
    assert!(built[0] == built[1] && built[0] == built[2]);
    assert_eq!(Erofs(&built[0]).files().unwrap().len(), 3);
}

/// A layout in a tar archive.
fn archive(path: &Path) -> Vec<u8> {
    let mut archive = Archive::default();
    for name in ["index.json", "oci-layout"] {
        archive = archive.file(name, &fs::read(path.join(name)).unwrap());
    }
    for entry in fs::read_dir(path.join("blobs/sha256")).unwrap() {
        let entry = entry.unwrap();
        let name = format!("./blobs/sha256/{}", entry.file_name().to_str().unwrap());
        archive = archive.file(&name, &fs::read(entry.path()).unwrap());
    }
    archive.finish()
}

#[test]
fn archives_of_images_are_images() {
    let (directory, path) = layout();
    let tar = directory.path().join("image.tar");
    fs::write(&tar, archive(&path)).unwrap();
    let (one, two) = (directory.path().join("one"), directory.path().join("two"));
    build_to(&reference("oci:", &path, ""), &one).unwrap();
    build_to(&reference("oci-archive:", &tar, ""), &two).unwrap();
    assert_eq!(fs::read(&one).unwrap(), fs::read(&two).unwrap());
    // What docker save wrote, with a layer that is a link to another's.
    let layer = Archive::default().file("f", b"1").finish();
    let id = super::digest::Digest::of(&layer).to_string();
    let config = json!({ "os": "linux", "rootfs": { "diff_ids": [id, id] } }).to_string();
    let list = json!([
        { "Config": "c.json", "RepoTags": ["host/app:1"], "Layers": ["a/layer.tar", "b/layer.tar"] },
        { "Config": "absent.json", "RepoTags": null, "Layers": [] },
    ]);
    let saved = Archive::default()
        .file("a/layer.tar", &layer)
        .symlink("b/layer.tar", "../a/layer.tar")
        .file("c.json", config.as_bytes())
        .file("manifest.json", list.to_string().as_bytes());
    fs::write(&tar, saved.finish()).unwrap();
    build_to(&reference("docker-archive:", &tar, ":app:1"), &one).unwrap();
    assert_eq!(files(&one)["/f"].data, b"1");
    for (suffix, part) in [("", "more than one image"), (":app:2", "has no image app:2")] {
        let said = build_to(&reference("docker-archive:", &tar, suffix), &one).unwrap_err();
        assert!(said.to_string().contains(part), "{said}");
    }
}

#[test]
fn the_image_for_this_processor_is_chosen() {
    let directory = tempfile::tempdir().unwrap();
    let (mut image, manifest) = image();
    let other = image.manifest("arm64", json!({}));
    let with = |descriptor: &Value, architecture: &str, name: &str| {
        let mut descriptor = descriptor.clone();
        descriptor["platform"] = json!({ "os": "linux", "architecture": architecture });
        descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
        descriptor
    };
    let inner = json!({ "manifests": [with(&other, "arm64", ""), with(&manifest, "amd64", "")] });
    let index_type = "application/vnd.oci.image.index.v1+json";
    let index = image.blob(index_type, inner.to_string().as_bytes());
    let mut named = index.clone();
    named["annotations"] = json!({ "org.opencontainers.image.ref.name": "both" });
    let wrong = with(&other, "arm64", "arm");
    image.write(directory.path(), &[named, wrong, with(&other, "amd64", "liar")]);
    let build = |tag: &str| {
        build_to(&reference("oci:", directory.path(), tag), &directory.path().join("out"))
    };
    build(":both").unwrap();
    for (tag, part) in [
        (":arm", "has no image for linux on amd64"),
        (":liar", "is for linux on arm64"),
        (":absent", "has no image absent: both, arm, liar"),
        ("", "more than one image"),
    ] {
        let said = build(tag).unwrap_err().to_string();
        assert!(said.contains(part), "{said}");
    }
}

#[test]
fn images_that_are_not_what_they_say_are_refused_and_leave_nothing() {
    let gone = |image: &mut Image, digest: &str| drop(image.blobs.remove(digest));
    type Change = Box<dyn Fn(&mut Image, &mut Value)>;
    let bomb = gzip(&vec![0; 16 << 20]).repeat(64);
    let changes: Vec<(Change, &str)> = vec![
        (Box::new(move |i, m| gone(i, m["digest"].as_str().unwrap())), "is missing"),
        (Box::new(|_, m| m["digest"] = json!("sha256:../../etc/passwd")), "64 digits"),
        (Box::new(|_, m| m["digest"] = json!("md5:00")), "none of SHA-256"),
        (Box::new(|_, m| m["size"] = json!(1)), "should have 1"),
        (Box::new(|_, m| m["size"] = json!(-1)), "no document"),
        (
            Box::new(|i, _| i.blobs.values_mut().for_each(|blob| *blob.last_mut().unwrap() ^= 1)),
            "damaged",
        ),
        (
            Box::new(|i, m| {
                i.layer(b"not what is inside", &gzip(&Archive::default().finish()));
                *m = i.manifest("amd64", json!({}));
            }),
            "diff_ids",
        ),
        (
            Box::new(move |i, m| {
                i.layer(b"", &bomb);
                *m = i.manifest("amd64", json!({}));
            }),
            "250 times",
        ),
        (
            Box::new(|i, m| {
                i.layer(b"", &gzip(b"no archive at all, and shorter than a block"));
                *m = i.manifest("amd64", json!({}));
            }),
            "ends within a header",
        ),
        (Box::new(|i, m| *m = i.manifest("amd64", json!({ "User": "who" }))), "does not have who"),
        (Box::new(|i, m| *m = i.manifest("s390x", json!({}))), "is for linux on s390x"),
        (
            Box::new(|i, m| {
                let kind = "application/vnd.oci.image.config.v1+json";
                let config = i.blob(kind, br#"{"rootfs":{"diff_ids":["sha256:0"]}}"#);
                *m = i.blob("", json!({ "config": config, "layers": [] }).to_string().as_bytes());
            }),
            "0 layers, and 1",
        ),
        (
            Box::new(|i, m| {
                let config = i.blob("application/vnd.helm.config", b"{}");
                *m = i.blob("", json!({ "config": config, "layers": [] }).to_string().as_bytes());
            }),
            "is no image",
        ),
    ];
    for (change, part) in changes {
        let directory = tempfile::tempdir().unwrap();
        let (mut image, mut manifest) = image();
        change(&mut image, &mut manifest);
        let path = directory.path().join("layout");
        image.write(&path, &[manifest]);
        let output = directory.path().join("out");
        let said = build_to(&reference("oci:", &path, ""), &output).unwrap_err().to_string();
        assert!(said.contains(part) && said.lines().count() == 1, "{part}: {said}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "{part}");
    }
}

#[test]
fn the_cache_puts_an_image_together_once() {
    let (directory, path) = layout();
    let cache = Cache::new(directory.path().join("cache"), 1 << 30);
    let reference = reference("oci:", &path, "");
    let prepare = || prepare(&reference, &cache, &mut Unseen);
    let ready: Vec<Ready> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..4).map(|_| scope.spawn(prepare)).collect();
        all.into_iter().map(|one| one.join().unwrap().unwrap()).collect()
    });
    assert!(ready.iter().all(|one| *one == ready[0]));
    assert_eq!(ready[0].description.as_ref().unwrap().config.user, "app");
    let Root::Disk { path: cached, size, .. } = &ready[0].root else { panic!("no disk") };
    assert_eq!(*size, fs::metadata(cached).unwrap().len());
    let inode = fs::metadata(cached).unwrap().ino();
    // The layers aren't needed any more.
    for entry in fs::read_dir(path.join("blobs/sha256")).unwrap() {
        let entry = entry.unwrap();
        if entry.metadata().unwrap().len() < 200 {
            fs::write(entry.path(), vec![0; entry.metadata().unwrap().len() as usize]).unwrap();
        }
    }
    prepare().unwrap();
    assert_eq!(fs::metadata(cached).unwrap().ino(), inode);
    let all = cache.list().unwrap();
    assert_eq!(all.len(), 1);
    assert!(cache.prune(all[0].size, None).unwrap().is_empty());
    assert_eq!(cache.prune(0, None).unwrap().len(), 1);
    assert!(cache.list().unwrap().is_empty());
    assert_eq!(fs::read_dir(cache.directory()).unwrap().count(), 0, "locks are gone, too");
}

#[test]
fn a_description_that_was_changed_is_refused() {
    let (directory, path) = layout();
    let output = directory.path().join("app.img");
    let unpacked =
        super::source::unpack(&reference("oci:", &path, ""), directory.path(), None, &mut Unseen);
    build_unpacked(unpacked.unwrap(), &output, Options::default(), &mut Unseen).unwrap();
    let mut bytes = fs::read(&output).unwrap();
    let place = bytes.windows(9).rposition(|text| text == b"/bin/tool").unwrap();
    bytes[place] = b'!';
    fs::write(&output, &bytes).unwrap();
    let said = inspect(&reference("", &output, "")).unwrap_err().to_string();
    assert!(said.contains("description is damaged"), "{said}");
}
