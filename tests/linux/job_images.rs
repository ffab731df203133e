//! Images of other tools as jobs: what umoci, skopeo and mksquashfs make is the
//! same file tree in a job as in podman.

use crate::job::{Kit, Told, complete};
use crate::{Verdict, kit, trial};
use libtest_mimic::{Completion, Trial};
use std::fs;
use std::path::Path;
use std::process::Command;

pub fn tests() -> Vec<Trial> {
    vec![
        trial("job::images_of_other_tools_are_the_same_tree_as_in_podman", images),
        trial("job::images_of_mmdebstrap_and_buildah_are_the_same_tree", debian),
    ]
}

/// The base layer's tree, made in `$1`: every kind of file, odd names, owners,
/// modes, times, extended attributes.
const BASE: &str = r#"
umask 022; cd "$1"; mkdir bin dev etc lib lib64 opt proc root run sys tmp usr var home mnt
debugfs -R "dump -p /bin/busybox bin/busybox" "$2" 2>/dev/null; chmod 755 bin/busybox
for name in sh find sort stat md5sum readlink xargs sed cat env pwd; do ln -s busybox bin/$name; done
cp "$(command -v getfattr)" bin/
for library in $(ldd bin/getfattr | grep -o '/[^ ]*'); do
    mkdir -p ".${library%/*}"; cp "$library" ".$library"; done
mkdir -p opt/app/deep/er opt/app/many opt/gone opt/emptied opt/swap && cd opt/app
mknod null c 1 3; mknod disk b 254 70000; mkfifo pipe; ln -s /nowhere/at/all link
head -c 300000 /dev/urandom >large; ln large many/hard; : >empty; mkdir -m 1777 sticky
printf x >setuid; chown 12:70000 setuid; chmod 6751 setuid; touch -d @1000000000 setuid
printf y >'two words'; printf z >"$(printf 'latin\351')"; printf w >'back\slash'
mkdir private; chmod 700 private; chown 1000:1000 private; printf p >private/key
truncate -s 5000000 sparse; printf end >>sparse
printf c >capable; setcap cap_net_raw+ep capable; printf u >noted
setfattr -n user.note -v "a note" noted
i=0; while [ $i -lt 60 ]; do head -c $((i * 137)) large >many/$i; i=$((i + 1)); done
cd ..; printf 1 >gone/a; printf 2 >emptied/old; printf 3 >swap/file; printf 4 >turned
"#;

/// The second layer: files gone, a directory emptied, others in each other's place.
const SECOND: &str = r#"
umask 022; cd "$1"; mkdir -p opt/emptied opt/app; cd opt; : >.wh.gone; : >emptied/.wh..wh..opq
printf new >emptied/new; printf file >swap; mkdir turned; printf in >turned/in
printf changed >app/empty; chmod 600 app/empty; mkdir app/many; : >app/many/.wh.hard
"#;

/// Every file of an image with all that is known of it. What runtimes put over an
/// image is elsewhere.
const INVENTORY: &str = r#"
place=$(pwd); cd /; find bin lib lib64 opt | sort >/dev/shm/all
while IFS= read -r name; do printf '%s\0' "$name"; done </dev/shm/all >/dev/shm/list
xargs -0 stat -c '%n %F %a %u %g %h %t:%T' </dev/shm/list
find bin opt -type f | while IFS= read -r name; do printf '%s\0' "$name"; done |
    xargs -0 stat -c '%n %s %Y' | sort
find bin lib lib64 opt -type f | sort | while IFS= read -r name; do printf '%s\0' "$name"; done |
    xargs -0 md5sum
find bin lib lib64 opt -type l | sort | while IFS= read -r name; do echo "$name $(readlink "$name")"; done
xargs -0 getfattr -h -d -e hex -m '^(user|security)\.' </dev/shm/list
env | grep -E '^(FROM_IMAGE|PATH)=' | sort; echo "$place $0 $*"
exit 7
"#;

fn shell(script: &str, arguments: &[&Path]) -> Result<(), String> {
    let mut shell = Command::new("sh");
    let output = shell.args(["-ec", script, "sh"]).args(arguments).output();
    let output = output.map_err(|e| e.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{script}\n{}", String::from_utf8_lossy(&output.stderr))),
    }
}

/// Puts a tree into one file as SIF does: a header, a table, a squashfs.
fn write_sif(squashfs: &Path, sif: &Path) -> std::io::Result<()> {
    const DATA: usize = 36864;
    let root = fs::read(squashfs)?;
    let mut bytes = vec![0; DATA];
    bytes[..20].copy_from_slice(b"#!/usr/bin/env run-s");
    bytes[32..48].copy_from_slice(b"SIF_MAGIC\x0001\x0002\0");
    let number = |bytes: &mut [u8], at: usize, value: usize| {
        bytes[at..at + 8].copy_from_slice(&(value as i64).to_le_bytes());
    };
    for (at, value) in [(88, 48), (96, 4096), (104, 28080), (112, DATA), (120, root.len())] {
        number(&mut bytes, at, value);
    }
    let part = &mut bytes[4096..4096 + 585];
    // A partition, used, the first: squashfs, the primary system, amd64.
    part[..5].copy_from_slice(&[4, 0x40, 0, 0, 1]);
    for (at, value) in [(17, DATA), (25, root.len()), (33, root.len())] {
        number(part, at, value);
    }
    part[201] = 1;
    part[205] = 2;
    part[209..211].copy_from_slice(b"02");
    bytes.extend(root);
    fs::write(sif, bytes)
}

fn images() -> Verdict {
    for program in ["umoci", "skopeo", "podman", "mksquashfs", "getfattr", "setcap", "debugfs"] {
        if !crate::kit::has(program) {
            return Ok(Completion::ignored_with(format!("{program} is missing")));
        }
    }
    // SAFETY: has no preconditions.
    if std::env::var_os(rig::IN_RIG).is_none() || unsafe { libc::geteuid() } != 0 {
        return Ok(Completion::ignored_with("needs root on a host that is ours: the rig"));
    }
    let kit = Kit::new()?;
    // Extended attributes and device nodes, whatever the scratch directory is on;
    // podman takes the path for a name, in which no letter may be large.
    let place = std::env::temp_dir().join(format!("job-images-{}", std::process::id()));
    fs::create_dir(&place)?;
    shell("mount -t tmpfs none \"$1\"", &[&place])?;
    let result = compare(&kit, &place);
    shell("umount -l \"$1\"; rmdir \"$1\"", &[&place])?;
    result
}

fn compare(kit: &Kit, place: &Path) -> Verdict {
    let [base, second, layout] = ["base", "second", "layout"].map(|name| place.join(name));
    fs::create_dir(&base)?;
    fs::create_dir(&second)?;
    shell(BASE, &[&base, &kit::root()])?;
    shell(SECOND, &[&second])?;
    shell(
        r#"cd "$1"; for layer in base second; do
        tar --xattrs --xattrs-include='*' --numeric-owner --sort=name -C $layer -cf $layer.tar .; done
        export TMPDIR="$1"; umoci init --layout layout; umoci new --image layout:app
        umoci raw add-layer --image layout:app base.tar
        umoci raw add-layer --image layout:app second.tar
        umoci config --image layout:app --config.env FROM_IMAGE=yes --config.env PATH=/bin \
            --config.workingdir /opt/app --config.entrypoint /bin/sh
        skopeo copy -q oci:layout:app oci-archive:app.oci:app
        skopeo copy -q oci:layout:app docker-archive:app.docker:example/app:1
        umoci raw unpack --image layout:app unpacked
        mkdir -p unpacked/.singularity.d/env
        echo 'export FROM_IMAGE=yes PATH=/bin; cd /opt/app' >unpacked/.singularity.d/env/10-app.sh
        mksquashfs unpacked app.squashfs -quiet -no-progress -comp zstd -Xcompression-level 1"#,
        &[place],
    )?;
    let sif = place.join("app.sif");
    write_sif(&place.join("app.squashfs"), &sif)?;
    // The entrypoint's arguments.
    let words = ["-c", INVENTORY, "name", "a", "b c"];
    let podman = podman(place, &layout, &words)?;
    let enough = String::from_utf8_lossy(&podman.stdout).into_owned();
    // What all could agree on by not having it. (An attribute without a value is not
    // among it: podman drops it, as PAX takes an empty record for none.)
    for part in [
        "opt/app/many/59 ",
        "security.capability=0x",
        "user.note=0x",
        "turned/in",
        "/opt/app name a b c",
    ] {
        if !enough.contains(part) {
            return Err(format!("podman, no {part}:\n{enough}\n{}", podman.stderr).into());
        }
    }
    let options = ["--contain", "--cleanenv"];
    let oci = format!("oci:{}:app", layout.display());
    let archive = format!("oci-archive:{}", place.join("app.oci").display());
    let docker = format!("docker-archive:{}", place.join("app.docker").display());
    let exec = ["--contain", "--cleanenv", "--env", "PATH=/bin", "--pwd", "/opt/app"];
    let program = [&["/bin/sh"][..], &words].concat();
    let sif = sif.display().to_string();
    let all = [
        (&oci, &options[..], &words[..]),
        (&archive, &options, &words),
        (&docker, &options, &words),
        (&sif, &exec, &program),
    ];
    for (image, options, words) in all {
        let mut command = kit.run(options, image, words);
        command.env("XDG_CACHE_HOME", place.join("cache")).env("SECRET", "no");
        let job = complete(command, Vec::new())?;
        if job != podman {
            return Err(
                format!("{image} is not as in podman: {}", difference(&podman, &job)).into()
            );
        }
    }
    Ok(Completion::Completed)
}

/// The files that a runtime leaves alone, and what is in them. (A job has a `/var/tmp`.)
const FILES: &str = r#"
b=/bin/busybox; cd /; $b find bin usr var -xdev ! -path var/tmp | $b sort | while read -r name; do
    $b stat -c '%n %F %a %u %g' "$name"
    [ -L "$name" ] && $b readlink "$name"
    [ -f "$name" ] && [ ! -L "$name" ] && $b stat -c %Y "$name" && $b md5sum "$name"; done
echo "$FROM_IMAGE"; exit 9
"#;

/// What mmdebstrap made, as a directory and as one built file, and what buildah made of
/// it, against the same directory in a chroot.
fn debian() -> Verdict {
    let [tar, oci] = ["tar", "oci"].map(kit::small_debian);
    if !tar.is_file() || !oci.is_file() {
        return Ok(Completion::ignored_with("mmdebstrap or buildah is missing, or its registry"));
    }
    // SAFETY: has no preconditions.
    if std::env::var_os(rig::IN_RIG).is_none() || unsafe { libc::geteuid() } != 0 {
        return Ok(Completion::ignored_with("needs root on a host that is ours: the rig"));
    }
    let kit = Kit::new()?;
    let place = std::env::temp_dir().join(format!("job-debian-{}", std::process::id()));
    fs::create_dir(&place)?;
    shell("mount -t tmpfs none \"$1\"", &[&place])?;
    let result = same_debian(&kit, &place, &tar, &oci);
    shell("umount -l \"$1\"; rmdir \"$1\"", &[&place])?;
    result
}

fn same_debian(kit: &Kit, place: &Path, tar: &Path, oci: &Path) -> Verdict {
    let [tree, built] = ["tree", "built.img"].map(|name| place.join(name));
    fs::create_dir(&tree)?;
    shell("tar --numeric-owner -C \"$1\" -xpf \"$2\"", &[&tree, tar])?;
    let build =
        Command::new(env!("CARGO_BIN_EXE_microvm")).arg("build").args([&tree, &built]).output()?;
    if !build.status.success() {
        return Err(format!("build: {}", String::from_utf8_lossy(&build.stderr)).into());
    }
    let words = ["/bin/busybox", "sh", "-c", FILES];
    let mut chroot = Command::new("chroot");
    chroot.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").arg(&tree).args(words);
    let natively = complete(chroot, Vec::new())?;
    let list = String::from_utf8_lossy(&natively.stdout).into_owned();
    if !list.contains("  bin/busybox") || list.lines().count() < 20 {
        return Err(format!("chroot: {list}{}", natively.stderr).into());
    }
    let options = ["--contain", "--cleanenv"];
    let oci = format!("oci-archive:{}", oci.display());
    let [tree, built] = [&tree, &built].map(|path| path.display().to_string());
    for (image, words, more) in
        [(&tree, &words[..], ""), (&built, &words, ""), (&oci, &words[2..], "yes")]
    {
        let mut command = kit.run(&options, image, words);
        command.env("XDG_CACHE_HOME", place.join("cache"));
        let job = complete(command, Vec::new())?;
        // The last line is the image's own variable.
        let before = list.strip_suffix('\n').unwrap_or(&list);
        let (stdout, stderr) = (format!("{before}{more}\n").into(), natively.stderr.clone());
        let expected = Told { stdout, stderr, status: natively.status };
        if job != expected {
            return Err(format!("{image}: {}", difference(&expected, &job)).into());
        }
    }
    Ok(Completion::Completed)
}

fn podman(place: &Path, layout: &Path, words: &[&str]) -> Result<Told, String> {
    let podman = || {
        let mut podman = Command::new("podman");
        podman.env("TMPDIR", place).arg("--root").arg(place.join("storage"));
        podman.arg("--runroot").arg(place.join("run"));
        podman.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"]);
        podman
    };
    let mut pull = podman();
    pull.args(["pull", "-q"]).arg(format!("oci:{}:app", layout.display()));
    let pulled = complete(pull, Vec::new())?;
    if pulled.status != 0 {
        return Err(format!("podman pull: {}", pulled.stderr));
    }
    let id = String::from_utf8_lossy(&pulled.stdout).trim().to_owned();
    let mut run = podman();
    run.args([
        "run",
        "--rm",
        "--cgroups=disabled",
        "--net=none",
        "--security-opt",
        "seccomp=unconfined",
    ]);
    // As a job: not in a smaller namespace of capabilities, no variables of podman's.
    run.args(["--read-only=false", "--privileged"]).arg(id).args(words);
    complete(run, Vec::new())
}

/// The first lines that differ.
fn difference(one: &Told, other: &Told) -> String {
    let text = |told: &Told| String::from_utf8_lossy(&told.stdout).into_owned();
    let (one_text, other_text) = (text(one), text(other));
    let lines = one_text.lines().zip(other_text.lines()).filter(|(a, b)| a != b);
    let lines: Vec<String> = lines.take(5).map(|(a, b)| format!("{a}\n  {b}")).collect();
    format!(
        "{} and {} lines, status {:#x} and {:#x}\n{}\n{}\n{}",
        one_text.lines().count(),
        other_text.lines().count(),
        one.status,
        other.status,
        lines.join("\n"),
        one.stderr,
        other.stderr
    )
}
