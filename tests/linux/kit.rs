//! The guest kit's files. They are made (or found in the cache) before the rig
//! starts; inside it, their paths come from the environment.

use std::path::PathBuf;
use std::process::Command;

/// Whether a program is installed.
pub fn has(program: &str) -> bool {
    rig::find_program(program).is_some()
}

/// Makes what is missing and puts all paths into the environment.
pub fn resolve() -> Result<(), String> {
    rig::kit::install_peers();
    ["mpich", "openmpi"].iter().try_for_each(|name| compile_ranks(name))?;
    make_images();
    let resources = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("resources");
    // Outputs by name lie beside the build's own files.
    let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    for part in &rig::kit::PARTS {
        if std::env::var_os(part.variable).is_none() {
            let path = part.make(&resources, &out).map_err(|error| format!("{error:#}"))?;
            // SAFETY: the program has one thread here.
            unsafe { std::env::set_var(part.variable, path) };
        }
    }
    Ok(())
}

/// A small Debian, by mmdebstrap as an archive and by buildah as an OCI archive of the
/// same: `$1.tar` and `$1.oci`.
const IMAGES: &str = r#"
mmdebstrap --quiet --variant=extract --mode=root --include=busybox-static bookworm "$1.tar"
b() { command buildah --root "$store/all" --runroot "$store/run" --storage-driver vfs "$@"; }
store=$(mktemp -d); trap 'rm -rf "$store"' EXIT
c=$(b from scratch); b add --quiet "$c" "$1.tar" / >/dev/null
b config --env FROM_IMAGE=yes --entrypoint '["/bin/busybox","sh"]' --workingdir /usr "$c"
rm -f "$1.oci"; b commit --quiet "$c" "oci-archive:$1.oci:app" >/dev/null
"#;

/// Where they can be made; a test that does not find them says so.
fn make_images() {
    let place = small_debian("tar");
    // SAFETY: has no preconditions.
    let may = std::env::var_os(rig::IN_RIG).is_none() && unsafe { libc::geteuid() } == 0;
    if !may || !has("mmdebstrap") || !has("buildah") || small_debian("oci").is_file() {
        return;
    }
    let made =
        Command::new("sh").args(["-ec", IMAGES, "sh"]).arg(place.with_extension("")).output();
    if let Ok(made) = made.as_ref()
        && !made.status.success()
    {
        eprintln!("mmdebstrap, buildah: {}", String::from_utf8_lossy(&made.stderr).trim());
    }
}

/// What mmdebstrap (`tar`) and buildah (`oci`) have made.
pub fn small_debian(extension: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("small-debian").with_extension(extension)
}

/// The parallel program, for one of the libraries.
const RANKS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/linux/ranks.c");

fn compile_ranks(library: &str) -> Result<(), String> {
    let compiler = format!("mpicc.{library}");
    if std::env::var_os(rig::IN_RIG).is_some() || !has(&compiler) || !has("gcc") {
        return Ok(());
    }
    let mut made = Command::new(&compiler);
    made.args(["-O2", "-o"]).arg(ranks_of(library)).args([RANKS, "-lm"]);
    match made.status().map_err(|e| format!("{compiler}: {e}"))? {
        status if status.success() => Ok(()),
        status => Err(format!("{compiler} {RANKS}: {status}")),
    }
}

fn ranks_of(library: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("ranks.{library}"))
}

/// The parallel program, if it could be made and can be started.
pub fn ranks(library: &str) -> Option<PathBuf> {
    let program = ranks_of(library);
    (has(&format!("mpirun.{library}")) && program.is_file()).then_some(program)
}

fn part(variable: &str) -> PathBuf {
    std::env::var_os(variable).unwrap_or_default().into()
}

/// Our kernel as an ELF with the PVH note.
pub fn vmlinux() -> PathBuf {
    part("MICROVM_KIT_KERNEL").join("vmlinux")
}

/// The same without the note: the 64-bit boot protocol.
pub fn vmlinux_without_pvh() -> PathBuf {
    part("MICROVM_KIT_KERNEL").join("vmlinux-nopvh")
}

/// Our kernel as a bzImage.
pub fn bzimage() -> PathBuf {
    part("MICROVM_KIT_KERNEL").join("bzImage")
}

/// The busybox root file system, ext4.
pub fn root() -> PathBuf {
    part("MICROVM_KIT_ROOT")
}

/// A disk with fio, iperf3 and tcc, for chroot.
pub fn tools() -> PathBuf {
    part("MICROVM_KIT_TOOLS")
}

/// The same as an initramfs.
pub fn initrd() -> PathBuf {
    part("MICROVM_KIT_INITRD")
}

/// A whole disk with GRUB and Debian on it; everybody's, so nobody writes to it.
pub fn debian_disk() -> PathBuf {
    part("MICROVM_KIT_DEBIAN_DISK").join("disk.img")
}

/// The files of Debian's iPXE.
pub fn ipxe() -> PathBuf {
    part("MICROVM_KIT_IPXE")
}

/// The files of Debian's Memtest86+.
pub fn memtest() -> PathBuf {
    part("MICROVM_KIT_MEMTEST")
}

/// The files of Debian's SYSLINUX.
pub fn syslinux() -> PathBuf {
    part("MICROVM_KIT_SYSLINUX")
}

/// A stock Debian kernel and its initramfs; `name` like `6_12_CLOUD`.
pub fn debian(name: &str) -> (PathBuf, PathBuf) {
    let variable = format!("MICROVM_KIT_DEBIAN_{name}");
    (part(&variable).join("vmlinuz"), part(&format!("{variable}_INITRD")))
}
