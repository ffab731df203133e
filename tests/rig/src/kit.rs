//! What tests in a host of their own need: packages, and files that scripts under
//! `resources/` make or find in the cache.

use crate::place::{IN_RIG, Place, place};
use crate::tools::{self, Tool};
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::{Command, Stdio};

/// The variable that hands a path into the rig, and the script that prints it.
pub struct Part {
    /// The variable.
    pub variable: &'static str,
    script: &'static str,
    arguments: &'static [&'static str],
}

const fn part(
    variable: &'static str,
    script: &'static str,
    arguments: &'static [&'static str],
) -> Part {
    Part { variable, script, arguments }
}

/// What makes our own kernel.
const OWN_KERNEL: &str = "kernel/build.sh";

/// All of them.
pub const PARTS: [Part; 16] = [
    part("MICROVM_KIT_KERNEL", OWN_KERNEL, &[]),
    part("MICROVM_KIT_ROOT", "rootfs/build.sh", &["tiny", "tiny.ext4"]),
    part("MICROVM_KIT_TOOLS", "rootfs/build.sh", &["tools", "tools.ext4"]),
    part("MICROVM_KIT_INITRD", "rootfs/build.sh", &["initrd", "tiny.cpio"]),
    part("MICROVM_KIT_DEBIAN_6_1_CLOUD", "debian/fetch-kernel.sh", &["6.1", "cloud"]),
    part(
        "MICROVM_KIT_DEBIAN_6_1_CLOUD_INITRD",
        "debian/initrd.sh",
        &["6.1", "cloud", "debian-6.1-cloud.cpio.gz"],
    ),
    part("MICROVM_KIT_DEBIAN_6_1_GENERIC", "debian/fetch-kernel.sh", &["6.1", "generic"]),
    part(
        "MICROVM_KIT_DEBIAN_6_1_GENERIC_INITRD",
        "debian/initrd.sh",
        &["6.1", "generic", "debian-6.1-generic.cpio.gz"],
    ),
    part("MICROVM_KIT_DEBIAN_6_12_CLOUD", "debian/fetch-kernel.sh", &["6.12", "cloud"]),
    part(
        "MICROVM_KIT_DEBIAN_6_12_CLOUD_INITRD",
        "debian/initrd.sh",
        &["6.12", "cloud", "debian-6.12-cloud.cpio.gz"],
    ),
    part("MICROVM_KIT_DEBIAN_6_12_GENERIC", "debian/fetch-kernel.sh", &["6.12", "generic"]),
    part(
        "MICROVM_KIT_DEBIAN_6_12_GENERIC_INITRD",
        "debian/initrd.sh",
        &["6.12", "generic", "debian-6.12-generic.cpio.gz"],
    ),
    part("MICROVM_KIT_DEBIAN_DISK", "debian/disk.sh", &[]),
    part("MICROVM_KIT_IPXE", "debian/package.sh", &["ipxe"]),
    part("MICROVM_KIT_MEMTEST", "debian/package.sh", &["memtest86+"]),
    part("MICROVM_KIT_SYSLINUX", "debian/package.sh", &["syslinux-common"]),
];

const fn tool(program: &'static str, packages: &'static [&'static str]) -> Tool {
    Tool { program, packages }
}

/// Where Debian's SeaBIOS is.
const SEABIOS: Tool = tool("/usr/share/seabios/bios-256k.bin", &["seabios"]);

/// Programs that tests compare with.
const PEERS: [Tool; 17] = [
    tool("iperf3", &["iperf3"]),
    tool("crun", &["crun"]),
    tool("podman", &["podman"]),
    tool("umoci", &["umoci"]),
    tool("skopeo", &["skopeo"]),
    tool("buildah", &["buildah"]),
    tool("mmdebstrap", &["mmdebstrap"]),
    tool("mksquashfs", &["squashfs-tools"]),
    tool("getfattr", &["attr"]),
    tool("setcap", &["libcap2-bin"]),
    tool("mpicc.mpich", &["libmpich-dev"]),
    tool("mpirun.mpich", &["mpich"]),
    tool("mpicc.openmpi", &["libopenmpi-dev"]),
    tool("mpirun.openmpi", &["openmpi-bin"]),
    tool("slurmctld", &["slurmctld"]),
    tool("slurmd", &["slurmd"]),
    tool("srun", &["slurm-client"]),
];

impl Part {
    /// Runs the script, unless somebody has before; its outputs by name are below `out`.
    pub fn make(&self, resources: &Path, out: &Path) -> Result<String> {
        let arguments = self.arguments.iter().map(|word| match is_output(word) {
            true => out.join(word).into_os_string(),
            false => word.into(),
        });
        let mut command = Command::new(resources.join(self.script));
        let made = command.args(arguments).stderr(Stdio::inherit()).output();
        let made = made.with_context(|| format!("starting {}", self.script))?;
        if !made.status.success() {
            bail!("{}: {}", self.script, made.status);
        }
        Ok(String::from_utf8_lossy(&made.stdout).trim().to_owned())
    }

    /// Whether all that it makes is kept in the cache.
    fn is_cached(&self) -> bool {
        !self.arguments.iter().any(|word| is_output(word))
    }
}

fn is_output(word: &str) -> bool {
    word.contains(".ext4") || word.contains(".cpio")
}

/// Installs what tests compare with, where it can be had. What is not there then, tests
/// say themselves.
pub fn install_peers() {
    if std::env::var_os(IN_RIG).is_some() {
        return;
    }
    let _ = tools::require(&PEERS);
    let _ = tools::require(&[SEABIOS]);
}

/// Brings packages, and fills the cache with all but our own kernel, so that who needs
/// it later finds it there. What fails is told then.
pub fn prefetch(resources: &Path) {
    install_peers();
    if let Ok(Place::Rig(_)) = place() {
        let _ = tools::require(tools::SVM);
    }
    for part in PARTS.iter().filter(|part| part.is_cached() && part.script != OWN_KERNEL) {
        let _ = part.make(resources, Path::new(""));
    }
}
