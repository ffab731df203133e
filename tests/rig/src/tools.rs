//! The programs the rig is made of, and how they get onto this machine.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A program and the Debian packages that bring it.
pub struct Tool {
    /// Name in `PATH`, or the whole path of a file that the packages bring.
    pub program: &'static str,
    /// Packages to install for it.
    pub packages: &'static [&'static str],
}

/// What the SVM rig needs.
pub const SVM: &[Tool] = &[
    Tool {
        program: "qemu-system-x86_64",
        packages: &["qemu-system-x86", "qemu-system-data", "seabios"],
    },
    // Not for the rig itself: tests in it have QEMU check disk images, and the
    // monitor start passt.
    Tool { program: "qemu-img", packages: &["qemu-utils"] },
    Tool { program: "passt", packages: &["passt"] },
    XZ,
    ZSTD,
];

/// What the VT-x rig needs.
pub const VTX: &[Tool] = &[
    Tool { program: "bochs", packages: &["bochs", "bochsbios", "vgabios"] },
    // One line for each package: another test may have brought some of them
    // without the rest (a disk with GRUB needs no xorriso).
    Tool { program: "grub-mkrescue", packages: &["grub-common"] },
    Tool { program: "/usr/lib/grub/i386-pc/moddep.lst", packages: &["grub-pc-bin"] },
    Tool { program: "xorriso", packages: &["xorriso"] },
    Tool { program: "mformat", packages: &["mtools"] },
    XZ,
    ZSTD,
];

const XZ: Tool = Tool { program: "xz", packages: &["xz-utils"] };
const ZSTD: Tool = Tool { program: "zstd", packages: &["zstd"] };

/// Makes sure that all `tools` are there: installs what is missing when it may,
/// otherwise says in one line what to install.
pub fn require(tools: &[Tool]) -> Result<()> {
    // Again, because a package may take away another one that is of another release.
    for _ in 0..2 {
        let packages: Vec<&str> = tools
            .iter()
            .filter(|tool| find(tool.program).is_none())
            .flat_map(|tool| tool.packages.iter().copied())
            .collect();
        install(&packages)?;
    }
    Ok(())
}

/// Installs Debian packages, or says that somebody should.
pub fn install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    // SAFETY: takes and touches nothing.
    let root = unsafe { libc::geteuid() } == 0;
    if !root || find("apt-get").is_none() {
        bail!("missing programs; please install the packages: {list}");
    }
    eprintln!("rig: installing {list}");
    let apt = |words: &[&str]| {
        let output = Command::new("apt-get")
            .args(["-q", "-y", "-o", "DPkg::Lock::Timeout=300"])
            .args(words)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .output()
            .context("starting apt-get")?;
        if !output.status.success() {
            bail!(
                "apt-get {} failed: {}",
                words.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    };
    let mut words = vec!["install", "--no-install-recommends"];
    words.extend(packages);
    if apt(&words).is_err() {
        // The package lists may be missing (a fresh image) or stale.
        apt(&["update"])?;
        apt(&words)?;
    }
    Ok(())
}

/// Where `program` is; `sbin` counts even when the user's `PATH` leaves it out.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

/// Runs a command and returns what it prints.
pub fn output(command: &mut Command) -> Result<Vec<u8>> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("starting {name}"))?;
    if !output.status.success() {
        bail!("{name} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}

/// Decompresses a file with one of the tools above.
pub fn decompress(program: &str, file: &Path) -> Result<Vec<u8>> {
    output(Command::new(program).args(["-q", "-d", "-c"]).arg(file))
        .with_context(|| format!("decompressing {}", file.display()))
}
