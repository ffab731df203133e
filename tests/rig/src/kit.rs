//! What tests in a host of their own need: packages, and files that scripts under
//! `resources/` make or find in the cache.

use crate::place::{IN_RIG, Place, place};
use crate::tools;
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

/// All of them.
pub const PARTS: [Part; 16] = [
    Part { variable: "MICROVM_KIT_KERNEL", script: "kernel/build.sh", arguments: &[] },
    Part {
        variable: "MICROVM_KIT_ROOT",
        script: "rootfs/build.sh",
        arguments: &["tiny", "tiny.ext4"],
    },
    Part {
        variable: "MICROVM_KIT_TOOLS",
        script: "rootfs/build.sh",
        arguments: &["tools", "tools.ext4"],
    },
    Part {
        variable: "MICROVM_KIT_INITRD",
        script: "rootfs/build.sh",
        arguments: &["initrd", "tiny.cpio"],
    },
    Part {
        variable: "MICROVM_KIT_DEBIAN_6_1_CLOUD",
        script: "debian/fetch-kernel.sh",
        arguments: &["6.1", "cloud"],
    },
    Part {
        variable: "MICROVM_KIT_DEBIAN_6_1_CLOUD_INITRD",
        script: "debian/initrd.sh",
        arguments: &["6.1", "cloud", "debian-6.1-cloud.cpio.gz"],
    },
    Part {
        variable: "MICROVM_KIT_DEBIAN_6_1_GENERIC",
        script: "debian/fetch-kernel.sh",
        arguments: &["6.1", "generic"],
    },
    Part {
        variable: "MICROVM_KIT_DEBIAN_6_1_GENERIC_INITRD",
        script: "debian/initrd.sh",
        arguments: &["6.1", "generic", "debian-6.1-generic.cpio.gz"],
    },
    Part {
        variable: "MICROVM_KIT_DEBIAN_6_12_CLOUD",
        script: "debian/fetch-kernel.sh",
        arguments: &["6.12", "cloud"],
    },
    Part {
        variable: "MICROVM_KIT_DEBIAN_6_12_CLOUD_INITRD",
        script: "debian/initrd.sh",
        arguments: &["6.12", "cloud", "debian-6.12-cloud.cpio.gz"],
    },
    Part {
        variable: "MICROVM_KIT_DEBIAN_6_12_GENERIC",
        script: "debian/fetch-kernel.sh",
        arguments: &["6.12", "generic"],
    },
    Part {
        variable: "MICROVM_KIT_DEBIAN_6_12_GENERIC_INITRD",
        script: "debian/initrd.sh",
        arguments: &["6.12", "generic", "debian-6.12-generic.cpio.gz"],
    },
    Part { variable: "MICROVM_KIT_DEBIAN_DISK", script: "debian/disk.sh", arguments: &[] },
    Part { variable: "MICROVM_KIT_IPXE", script: "debian/package.sh", arguments: &["ipxe"] },
    Part {
        variable: "MICROVM_KIT_MEMTEST",
        script: "debian/package.sh",
        arguments: &["memtest86+"],
    },
    Part {
        variable: "MICROVM_KIT_SYSLINUX",
        script: "debian/package.sh",
        arguments: &["syslinux-common"],
    },
];

/// Where Debian's SeaBIOS is.
const SEABIOS: &str = "/usr/share/seabios/bios-256k.bin";

/// Programs that tests compare with, and the Debian packages that have them.
const PEERS: [(&str, &str); 17] = [
    ("iperf3", "iperf3"),
    ("crun", "crun"),
    ("podman", "podman"),
    ("umoci", "umoci"),
    ("skopeo", "skopeo"),
    ("buildah", "buildah"),
    ("mmdebstrap", "mmdebstrap"),
    ("mksquashfs", "squashfs-tools"),
    ("getfattr", "attr"),
    ("setcap", "libcap2-bin"),
    ("mpicc.mpich", "libmpich-dev"),
    ("mpirun.mpich", "mpich"),
    ("mpicc.openmpi", "libopenmpi-dev"),
    ("mpirun.openmpi", "openmpi-bin"),
    ("slurmctld", "slurmctld"),
    ("slurmd", "slurmd"),
    ("srun", "slurm-client"),
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
    let missing = PEERS.iter().filter(|(program, _)| tools::find(program).is_none());
    let packages: Vec<&str> = missing.map(|(_, package)| *package).collect();
    let _ = tools::install(&packages);
    if !Path::new(SEABIOS).exists() {
        let _ = tools::install(&["seabios"]);
    }
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

/// What makes our own kernel.
const OWN_KERNEL: &str = "kernel/build.sh";
