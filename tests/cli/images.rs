//! Images: built, looked at, refused; and read back by Debian's tools.

use crate::{microvm, refused, run, stderr, stdout};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A small root file system.
fn root(directory: &Path) {
    fs::create_dir_all(directory.join("bin")).unwrap();
    fs::write(directory.join("bin/tool"), vec![1; 10_000]).unwrap();
    fs::set_permissions(directory.join("bin/tool"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::hard_link(directory.join("bin/tool"), directory.join("bin/other")).unwrap();
    symlink("bin/tool", directory.join("link")).unwrap();
}

#[test]
fn an_image_is_built_looked_at_and_equal_when_built_again() {
    let directory = tempfile::tempdir().unwrap();
    let (source, image) = (directory.path().join("root"), directory.path().join("app.img"));
    root(&source);
    let output = run(&["build", path(&source), path(&image)]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stderr(&output), "", "no progress bar where there is no terminal");
    assert!(stdout(&output).contains("app.img: ") && stdout(&output).contains("4 files"));
    let first = fs::read(&image).unwrap();
    assert!(run(&["build", path(&source), path(&image)]).status.success());
    assert_eq!(fs::read(&image).unwrap(), first);
    let told = stdout(&run(&["inspect", path(&image)]));
    for part in ["microvm image", "erofs", "directory"] {
        assert!(told.contains(part), "{told}");
    }
    let json = stdout(&run(&["inspect", "--json", path(&image)]));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((json["kind"].as_str(), json["format"].as_u64()), (Some("microvm image"), Some(1)));
}

/// Debian's fsck, and what it unpacks.
#[test]
fn debian_reads_what_is_built() {
    rig::install_packages(&["erofs-utils"]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (source, image) = (directory.path().join("root"), directory.path().join("app.img"));
    root(&source);
    for number in 0..2000 {
        fs::write(source.join(format!("file{number}")), vec![2; number]).unwrap();
    }
    assert!(run(&["build", path(&source), path(&image)]).status.success());
    let unpacked = directory.path().join("unpacked");
    let mut fsck = Command::new("fsck.erofs");
    let output = fsck.arg(format!("--extract={}", unpacked.display())).arg(&image).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let mut diff = Command::new("diff");
    let output = diff.args(["-r", "--no-dereference"]).arg(&source).arg(&unpacked).output();
    assert_eq!(stdout(&output.unwrap()), "");
}

#[test]
fn a_build_that_is_killed_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("root");
    root(&source);
    // Long enough to be caught at it.
    fs::File::create(source.join("large")).unwrap().set_len(64 << 30).unwrap();
    let image = directory.path().join("app.img");
    let mut child = microvm().args(["build", path(&source), path(&image)]).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "it is still at it");
    child.kill().unwrap();
    child.wait().unwrap();
    let left: Vec<_> = fs::read_dir(directory.path()).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn what_is_no_image_is_refused_in_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "text").unwrap();
    let image = directory.path().join("app.img");
    let oci = format!("oci:{}", directory.path().display());
    for (words, part) in [
        (&["build", path(&file), path(&image)][..], "no image that we know"),
        (&["build", "/nonexistent", path(&image)], "No such file"),
        (&["build", "host", path(&image)], "is this host itself"),
        (&["build", "docker://x", path(&image)], "microvm pull"),
        (&["build", &oci, path(&image)], "index.json is missing"),
        (&["build", path(directory.path()), "/nonexistent/app.img"], "/nonexistent"),
        (&["build", path(directory.path()), path(directory.path())], "is no file"),
        (&["inspect", path(&file)], "no image that we know"),
        (&["inspect", "/dev/null"], "a character device"),
    ] {
        let mut command = microvm();
        let output = command.args(words).env("XDG_CACHE_HOME", directory.path().join("cache"));
        let text = refused(&output.output().unwrap(), 3);
        assert!(text.contains(part), "{words:?}: {text}");
    }
    assert!(!image.exists());
}

#[test]
fn pull_becomes_the_program_beside_it() {
    let directory = tempfile::tempdir().unwrap();
    let own = directory.path().join("microvm");
    fs::copy(env!("CARGO_BIN_EXE_microvm"), &own).unwrap();
    let pull = |words: &[&str]| {
        let mut command = std::process::Command::new(&own);
        command.arg("pull").args(words).env("PATH", "/nonexistent");
        command.output().unwrap()
    };
    let text = refused(&pull(&["localhost/app"]), 3);
    assert!(text.contains("microvm-pull: is not installed"), "{text}");
    let other = directory.path().join("microvm-pull");
    fs::write(&other, "#!/bin/sh\necho \"$@\"; exit 4\n").unwrap();
    fs::set_permissions(&other, fs::Permissions::from_mode(0o755)).unwrap();
    let output = pull(&["localhost/app", "--plain-http", "app.img"]);
    assert_eq!(stdout(&output), "http localhost/app app.img\n");
    assert_eq!(output.status.code(), Some(4), "its status is ours");
    assert_eq!(stdout(&pull(&["localhost/app"])), "https localhost/app\n");
}

#[test]
fn the_cache_can_be_listed_and_emptied() {
    let directory = tempfile::tempdir().unwrap();
    let images = directory.path().join("microvm/images");
    fs::create_dir_all(&images).unwrap();
    fs::write(images.join(format!("{}-1.img", "a".repeat(64))), vec![1; 8192]).unwrap();
    fs::write(images.join("not ours"), "").unwrap();
    let cache = |words: &[&str]| {
        let mut command = microvm();
        command.arg("cache").args(words).env("XDG_CACHE_HOME", directory.path());
        stdout(&command.output().unwrap())
    };
    assert!(cache(&["list"]).contains(&format!("sha256:{}", "a".repeat(64))));
    assert!(cache(&["list", "--json"]).starts_with("[\n"));
    assert!(cache(&["prune", "--size", "1G"]).starts_with("removed 0 files"));
    assert!(cache(&["prune"]).starts_with("removed 1 files, 8.00 KiB"));
    assert_eq!(cache(&["list"]), "");
    assert!(images.join("not ours").exists());
}

#[test]
fn help_of_image_commands_fits_a_terminal() {
    for words in [&["build"][..], &["inspect"], &["pull"], &["cache"], &["cache", "prune"]] {
        for help in ["-h", "--help"] {
            let text = stdout(&run(&[words, &[help]].concat()));
            assert!(text.contains("Usage: microvm"), "{words:?}: {text}");
            for line in text.lines() {
                assert!(line.chars().count() <= 80, "{words:?}: {line}");
            }
        }
    }
}
