//! The kernel of the emulated host: a stock Debian package, unpacked into the
//! cache and never installed.

use crate::{cache, tools};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A kernel ready to be started.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// As a boot loader wants it.
    pub image: PathBuf,
    /// Decompressed, for an emulator that can start ELF: unpacking would be the
    /// longest part of an emulated boot.
    pub elf: PathBuf,
    /// Decompressed modules of [`MODULES`] and what they depend on.
    modules: PathBuf,
}

/// One module file to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Name as `modprobe` takes it, with dashes.
    pub name: String,
    /// The file, in [`Kernel::module_path`].
    pub file: String,
}

/// Modules a rig may ask for.
const MODULES: &[&str] = &[
    "9p",
    "9pnet_virtio",
    "kvm-amd",
    "kvm-intel",
    "tun",
    "vhost_net",
    "vhost_vsock",
    "overlay",
    "loop",
    "ext4",
    "squashfs",
    "isofs",
    "cdrom",
    "sr_mod",
    "ata_piix",
    "ata_generic",
    "bridge",
    "veth",
];

/// Changes with what is done to the files; makes old caches be made anew.
const LAYOUT: &str = "2: hidden from the function tracer";

impl Kernel {
    /// Fetches and unpacks the kernel, unless that was done before.
    pub fn prepare() -> Result<Self> {
        let _lock = cache::lock()?;
        let contents = [LAYOUT].into_iter().chain(MODULES.iter().copied());
        let version = cache::fingerprint(contents.map(str::as_bytes));
        let top = cache::directory()?.join(format!("linux-{version}"));
        let kernel = Self {
            image: top.join("vmlinuz"),
            elf: top.join("vmlinux"),
            modules: top.join("modules"),
        };
        let stamp = top.join("complete");
        if stamp.exists() {
            return Ok(kernel);
        }
        fs::create_dir_all(&kernel.modules)
            .with_context(|| format!("creating {}", kernel.modules.display()))?;
        let unpacked = unpack_package(&top)?;
        let boot = find_file(&unpacked.join("boot"), &|name| name.starts_with("vmlinuz-"))?
            .context("the kernel package has no vmlinuz")?;
        let image = fs::read(&boot)?;
        let payload = top.join("payload");
        fs::write(&payload, elf_payload(&image)?)?;
        cache::write_whole(&kernel.elf, &tools::decompress("zstd", &payload)?)?;
        cache::write_whole(&kernel.image, &image)?;
        for module in MODULES {
            kernel.unpack_module(&unpacked, module)?;
        }
        fs::remove_file(&payload)?;
        fs::remove_dir_all(&unpacked)?;
        cache::write_whole(&stamp, b"")?;
        Ok(kernel)
    }

    /// Where the file of a module lies.
    pub fn module_path(&self, module: &Module) -> PathBuf {
        self.modules.join(&module.file)
    }

    /// `names` and everything they depend on, in loading order.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<Module>> {
        let mut order = Vec::new();
        for name in names {
            self.collect(&plain(name), &mut order)?;
        }
        Ok(order)
    }

    fn collect(&self, name: &str, order: &mut Vec<Module>) -> Result<()> {
        if order.iter().any(|module| module.name == name) {
            return Ok(());
        }
        let file = format!("{name}.ko");
        let path = self.modules.join(&file);
        let content = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        for dependency in dependencies(&content) {
            self.collect(&dependency, order)?;
        }
        order.push(Module { name: name.to_owned(), file });
        Ok(())
    }

    fn unpack_module(&self, package: &Path, name: &str) -> Result<()> {
        let name = plain(name);
        let target = self.modules.join(format!("{name}.ko"));
        let packed = find_file(&package.join("lib"), &|file| {
            let stem = file.strip_suffix(".xz").unwrap_or(file);
            stem.strip_suffix(".ko").is_some_and(|stem| plain(stem) == name)
        })?
        .with_context(|| format!("the kernel package has no module {name}"))?;
        let mut content = if packed.extension().is_some_and(|e| e == "xz") {
            tools::decompress("xz", &packed)?
        } else {
            fs::read(&packed)?
        };
        strip_signature(&mut content);
        hide_from_function_tracer(&mut content);
        for dependency in dependencies(&content) {
            self.unpack_module(package, &dependency)?;
        }
        cache::write_whole(&target, &content)
    }
}

/// File names use dashes and underscores as they like.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

/// Unpacks the newest suitable package under `top`. Packages are kept, in the
/// place where the guest kit keeps its own: they are what takes long to get.
fn unpack_package(top: &Path) -> Result<PathBuf> {
    let name = choose_package()?;
    let packages = cache::root()?.join("deb");
    fs::create_dir_all(&packages)?;
    let wanted = format!("{name}_");
    let find = |directory: &Path| {
        find_file(directory, &|file| file.starts_with(&wanted) && file.ends_with(".deb"))
    };
    let package = match find(&packages)? {
        Some(package) => package,
        None => {
            eprintln!("rig: fetching {name}");
            // Into a place of its own, lest half a file be taken for a whole one.
            let partial = top.join("partial");
            fs::create_dir_all(&partial)?;
            tools::output(
                Command::new("apt-get").args(["-q", "download", &name]).current_dir(&partial),
            )?;
            let fetched = find(&partial)?.context("apt-get downloaded nothing")?;
            let package = packages.join(fetched.file_name().unwrap_or_default());
            fs::rename(&fetched, &package)?;
            fs::remove_dir_all(&partial)?;
            package
        }
    };
    let unpacked = top.join("unpacked");
    tools::output(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&unpacked))?;
    Ok(unpacked)
}

/// The newest stock 6.12 kernel, or the newest 6.1 where there is no 6.12.
fn choose_package() -> Result<String> {
    let search = || -> Result<Option<String>> {
        let listing =
            tools::output(Command::new("apt-cache").args(["pkgnames", "linux-image-6.1"]))?;
        Ok(newest_package(&String::from_utf8_lossy(&listing)))
    };
    if let Some(name) = search()? {
        return Ok(name);
    }
    // SAFETY: takes and touches nothing.
    if unsafe { libc::geteuid() } == 0 {
        tools::output(Command::new("apt-get").args(["-q", "update"]))?;
    }
    search()?.context("apt knows no linux-image-6.12 or 6.1 package; try `apt-get update`")
}

fn newest_package(listing: &str) -> Option<String> {
    let key = |name: &str| -> Option<(Vec<u32>, bool)> {
        let version = name.strip_prefix("linux-image-")?.strip_suffix("-amd64")?;
        if version.contains("rt") || version.contains("cloud") || !version.contains('.') {
            return None;
        }
        let numbers: Vec<u32> = version
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|part| part.parse().ok())
            .collect();
        let wanted = numbers.starts_with(&[6, 12]) || numbers.starts_with(&[6, 1]);
        (wanted && numbers.len() >= 4).then_some((numbers, true))
    };
    listing
        .lines()
        .filter_map(|name| Some((key(name.trim())?, name.trim())))
        .max()
        .map(|(_, name)| name.to_owned())
}

fn find_file(directory: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Option<PathBuf>> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
    let mut sorted = BTreeMap::new();
    for entry in entries {
        let entry = entry?;
        sorted.insert(entry.file_name(), entry);
    }
    for (name, entry) in sorted {
        if entry.file_type()?.is_dir() {
            if let Some(found) = find_file(&entry.path(), wanted)? {
                return Ok(Some(found));
            }
        } else if wanted(&name.to_string_lossy()) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

/// The compressed ELF inside a bzImage (offsets from the Linux boot protocol).
fn elf_payload(image: &[u8]) -> Result<&[u8]> {
    let word = |at: usize| -> Option<usize> {
        let bytes = image.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
    };
    let payload = (|| {
        let sectors = usize::from(*image.get(0x1f1)?);
        let start = (sectors + 1) * 512 + word(0x248)?;
        // The last four bytes are the unpacked length, not compressed data.
        image.get(start..start + word(0x24c)?.checked_sub(4)?)
    })()
    .context("not a bzImage")?;
    if !payload.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        bail!("the kernel is not compressed with zstd");
    }
    Ok(payload)
}

/// What `modinfo -F depends` prints.
fn dependencies(module: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(at) = module.windows(key.len()).position(|w| w == key) else {
        return Vec::new();
    };
    let value = &module[at + key.len()..];
    let end = value.iter().position(|&b| b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end])
        .split(',')
        .filter(|name| !name.is_empty())
        .map(plain)
        .collect()
}

/// Renames the section that lists a module's functions for the function tracer.
///
/// The kernel looks each of them up in the module's symbols, one after the
/// other: of the 355 million instructions that loading `kvm.ko` takes, 300
/// million are that. Tracepoints are another thing and stay.
fn hide_from_function_tracer(module: &mut [u8]) {
    let name = b"__mcount_loc\0";
    let mut at = 0;
    while let Some(found) = module[at..].windows(name.len()).position(|w| w == name) {
        module[at + found + 2] = b'x';
        at += found + name.len();
    }
}

/// Checking a signature costs an emulated machine more than it can gain.
fn strip_signature(module: &mut Vec<u8>) {
    let magic = b"~Module signature appended~\n";
    if !module.ends_with(magic) {
        return;
    }
    // Before the magic: 8 bytes of description, then the big-endian length.
    let end = module.len() - magic.len();
    let Some(length) = end.checked_sub(4).and_then(|at| module[at..end].try_into().ok()) else {
        return;
    };
    let signature = u32::from_be_bytes(length) as usize;
    if let Some(kept) = end.checked_sub(12 + signature) {
        module.truncate(kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_stock_kernel_is_chosen() {
        let listing = "linux-image-6.1.0-56-amd64\nlinux-image-6.12.9+deb12-amd64\n\
            linux-image-6.12.117+deb12-amd64\nlinux-image-6.12.118+deb12-rt-amd64\n\
            linux-image-6.12-amd64\nlinux-image-6.12.119+deb12-amd64-dbg\n\
            linux-image-6.16.3+deb12-amd64\n";
        assert_eq!(newest_package(listing).as_deref(), Some("linux-image-6.12.117+deb12-amd64"));
        assert_eq!(
            newest_package("linux-image-6.1.0-9-amd64\nlinux-image-6.1.0-56-amd64").as_deref(),
            Some("linux-image-6.1.0-56-amd64")
        );
        assert_eq!(newest_package("linux-image-amd64\n"), None);
    }

    #[test]
    fn dependencies_are_read_from_modinfo() {
        assert_eq!(
            dependencies(b"\x01\0license=GPL\0depends=kvm,rng-core\0name=x\0"),
            ["kvm", "rng_core"]
        );
        assert!(dependencies(b"license=GPL\0depends=\0").is_empty());
        assert!(dependencies(b"nothing").is_empty());
    }

    #[test]
    fn function_list_is_renamed_wherever_it_is() {
        let mut module = b"\0.rela__mcount_loc\0.text\0__mcount_loc\0__mcount_locx".to_vec();
        hide_from_function_tracer(&mut module);
        assert_eq!(module, b"\0.rela__xcount_loc\0.text\0__xcount_loc\0__mcount_locx");
    }

    #[test]
    fn signature_goes_and_nothing_else() {
        let mut module = b"code".to_vec();
        module.extend(b"sig");
        module.extend([0; 8]);
        module.extend(3u32.to_be_bytes());
        module.extend(b"~Module signature appended~\n");
        strip_signature(&mut module);
        assert_eq!(module, b"code");
        let mut bare = b"~Module signature appended~\n".to_vec();
        strip_signature(&mut bare);
        assert!(!bare.is_empty());
    }
}
