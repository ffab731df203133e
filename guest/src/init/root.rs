//! The root file system of the job.
//!
//! ```text
//!  image, read-only ─┐
//!                    ├─ overlay ─► / ─► /proc, /sys, /dev, shares, scratch, files
//!  memory or a disk ─┘
//! ```
//!
//! The overlay is always there, because places to mount things on are needed in
//! any image. Once all is in its place it is made read-only, unless the job may
//! write. The new root is entered before anything is put into it, so that no link
//! of an image leads elsewhere.

use guest::protocol::{Disk, File, Lower, Root, Share, Spec, Upper};
use guest::system::{
    About, Fault, SAFE, c_string, check, make_directory, mount, mount_kernel_files,
};
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Where a directory is for as long as one file of it is taken.
const ASIDE: &str = "/run/bind";

/// Where the initramfs has modules, for a kernel that needs them, and their order.
const MODULES: &str = "/modules";
/// `MODULE_INIT_COMPRESSED_FILE` of `linux/module.h`.
const COMPRESSED: libc::c_int = 4;

fn load_modules() -> Result<(), Fault> {
    let Ok(order) = fs::read_to_string(Path::new(MODULES).join("order")) else { return Ok(()) };
    for name in order.lines() {
        let file = fs::File::open(Path::new(MODULES).join(name)).about(name)?;
        let flags = if name.ends_with(".ko") { 0 } else { COMPRESSED };
        // SAFETY: the parameters are a string that ends with NUL; both outlive the
        // call.
        let done = unsafe {
            let (fd, none) = (file.as_raw_fd(), c"".as_ptr());
            check(libc::syscall(libc::SYS_finit_module, fd, none, flags) as libc::c_int)
        };
        match done {
            Err(e) if e.raw_os_error() != Some(libc::EEXIST) => {
                return Err(Fault::new(format_args!("module {name}"), &e));
            }
            _ => {}
        }
    }
    Ok(())
}

/// What init itself needs, before it knows the job.
pub fn mount_first() -> Result<(), Fault> {
    load_modules()?;
    make_directory(Path::new("/dev"))?;
    mount("devtmpfs", Path::new("/dev"), "devtmpfs", libc::MS_NOSUID, "mode=0755")
}

/// Makes the root file system and enters it.
pub fn enter(spec: &Spec) -> Result<(), Fault> {
    assemble(&spec.root)?;
    switch(Path::new("/new"))?;
    mount_kernel_files()?;
    for path in &spec.scratch {
        let path = path_of(path);
        make_directory(path)?;
        mount("tmpfs", path, "tmpfs", SAFE, "mode=1777")?;
    }
    spec.shares.iter().try_for_each(mount_share)?;
    spec.files.iter().try_for_each(put_file)?;
    if !spec.root.writable {
        let flags = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY;
        mount("", Path::new("/"), "", flags, "")?;
    }
    Ok(())
}

fn path_of(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

fn text_of(bytes: &[u8]) -> Result<&str, Fault> {
    std::str::from_utf8(bytes).map_err(|_| Fault("a name that is no text".to_owned()))
}

fn assemble(root: &Root) -> Result<(), Fault> {
    let [lower, upper, new] = ["/lower", "/upper", "/new"].map(Path::new);
    [lower, upper, new].into_iter().try_for_each(make_directory)?;
    match &root.lower {
        Lower::Disk(disk) => mount_disk(disk, lower, libc::MS_RDONLY)?,
        Lower::Share { tag } => mount(text_of(tag)?, lower, "virtiofs", libc::MS_RDONLY, "")?,
    }
    let options = match &root.upper {
        Upper::Memory => {
            mount("tmpfs", upper, "tmpfs", 0, "mode=0755")?;
            ",volatile"
        }
        Upper::Disk(disk) => {
            mount_disk(disk, upper, 0)?;
            ""
        }
    };
    // The names that Singularity gives them on an overlay's image.
    [upper.join("upper"), upper.join("work")].iter().try_for_each(|p| make_directory(p))?;
    let data = format!("lowerdir=/lower,upperdir=/upper/upper,workdir=/upper/work{options}");
    mount("overlay", new, "overlay", 0, &data)
}

fn mount_disk(disk: &Disk, target: &Path, flags: libc::c_ulong) -> Result<(), Fault> {
    let letter = char::from(b'a'.wrapping_add(disk.number));
    mount(&format!("/dev/vd{letter}"), target, text_of(&disk.kind)?, flags, "")
}

/// `switch_root(8)`. What the initramfs holds is this program, which still runs.
fn switch(new: &Path) -> Result<(), Fault> {
    std::env::set_current_dir(new).about(new.display())?;
    mount(".", Path::new("/"), "", libc::MS_MOVE, "")?;
    let here = c_string(b".").about("chroot")?;
    // SAFETY: the string ends with NUL.
    check(unsafe { libc::chroot(here.as_ptr()) }).about("chroot")?;
    std::env::set_current_dir("/").about("/")
}

fn mount_share(share: &Share) -> Result<(), Fault> {
    let target = path_of(&share.target);
    let flags = SAFE | if share.readonly { libc::MS_RDONLY } else { 0 };
    if let Some(name) = &share.file {
        return mount_file(share, path_of(name), target, flags);
    }
    if !target.is_dir() {
        make_directory(target)?;
    }
    mount(text_of(&share.tag)?, target, "virtiofs", flags, "")
}

/// A file, of a directory that is out of sight.
fn mount_file(
    share: &Share,
    name: &Path,
    target: &Path,
    flags: libc::c_ulong,
) -> Result<(), Fault> {
    if !target.exists() {
        target.parent().map_or(Ok(()), make_directory)?;
        fs::File::create(target).about(target.display())?;
    }
    let aside = Path::new(ASIDE);
    make_directory(aside)?;
    mount(text_of(&share.tag)?, aside, "virtiofs", flags, "")?;
    let file = aside.join(name);
    let Some(file) = file.to_str() else {
        return Err(Fault("a name that is no text".to_owned()));
    };
    let mounted = mount(file, target, "", libc::MS_BIND, "");
    // SAFETY: the path ends with NUL. The file stays where it is mounted.
    check(unsafe { libc::umount2(c"/run/bind".as_ptr(), libc::MNT_DETACH) }).about(ASIDE)?;
    fs::remove_dir(aside).about(ASIDE)?;
    mounted
}

fn put_file(file: &File) -> Result<(), Fault> {
    let path = path_of(&file.path);
    if let Some(parent) = path.parent() {
        make_directory(parent)?;
    }
    if file.append {
        return append(path, &file.content);
    }
    // A link of the image (resolv.conf is one in many) is replaced, not followed.
    let _ = fs::remove_file(path);
    let mut options = fs::File::options();
    let opened = options.write(true).create_new(true).mode(0o644).open(path);
    opened.and_then(|mut f| f.write_all(&file.content)).about(path.display())
}

/// Adds a line for a number (the third field) that has none.
fn append(path: &Path, line: &[u8]) -> Result<(), Fault> {
    let mut text = fs::read(path).unwrap_or_default();
    if has_number(&text, line) {
        return Ok(());
    }
    if text.last().is_some_and(|last| *last != b'\n') {
        text.push(b'\n');
    }
    text.extend_from_slice(line);
    fs::write(path, text).about(path.display())
}

fn has_number(text: &[u8], line: &[u8]) -> bool {
    let number = |line: &[u8]| line.split(|b| *b == b':').nth(2).map(<[u8]>::to_vec);
    let wanted = number(line);
    wanted.is_some() && text.split(|b| *b == b'\n').any(|line| number(line) == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_added_once() {
        let text = b"root:x:0:0:root:/root:/bin/sh\nu:x:1000:1000::/:/bin/sh";
        assert!(has_number(text, b"other:x:1000:7::/:/bin/sh\n"));
        assert!(!has_number(text, b"other:x:100:7::/:/bin/sh\n"));
        assert!(!has_number(b"", b"other:x:0:7::/:/bin/sh\n"));
    }
}
