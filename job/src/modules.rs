//! Modules of a guest kernel that has its drivers in files, as those of
//! distributions have: which ones a job needs, and where they are. Nothing is
//! asked of `modprobe`.
//!
//! ```text
//!  /boot/vmlinuz-RELEASE, /usr/lib/modules/RELEASE/vmlinuz ─► modules of RELEASE
//!  PATH ─► the directory `modules` beside it, if there is one
//!
//!  modules.builtin: is in the kernel           modules.dep: file: files before it
//!  no modules.dep:  .modinfo of each file, "depends="
//! ```
//!
//! Files that are compressed with gzip or zstd are unpacked here; xz is left to
//! the guest's kernel (`CONFIG_MODULE_DECOMPRESS`).

use crate::Error;
use crate::kernel::MODULES;
use flate2::read::GzDecoder;
use guest::protocol::{Lower, Spec, Upper};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use vmm::config::Config;

/// No module that a job needs is nearly as large.
const LARGEST: u64 = 64 << 20;
/// Directories in directories: `kernel/drivers/net/…` has six.
const DEEPEST: usize = 12;

/// What a job cannot be without, by the names of modules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needs(Vec<String>);

impl Needs {
    /// For these devices, and for what init mounts.
    pub fn of(config: &Config, spec: &Spec) -> Self {
        let mut all = vec!["virtio_mmio", "vmw_vsock_virtio_transport", "overlay"];
        if !config.disks.is_empty() {
            all.push("virtio_blk");
        }
        if !config.shares.is_empty() {
            all.push("virtiofs");
        }
        if !config.nets.is_empty() {
            all.push("virtio_net");
        }
        let mut all: Vec<String> = all.into_iter().map(str::to_owned).collect();
        let mut file_system = |kind: &[u8]| all.push(String::from_utf8_lossy(kind).into_owned());
        if let Lower::Disk(disk) = &spec.root.lower {
            file_system(&disk.kind);
        }
        if let Upper::Disk(disk) = &spec.root.upper {
            file_system(&disk.kind);
        }
        Self(all)
    }
}

/// What some of those ask the kernel for by a name, and can be without.
const HELPERS: [&str; 1] = ["crc32c_generic"];

/// A module for the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Its file's name, which ends as what it is: `.ko`, `.ko.xz`.
    pub file: String,
    /// The file.
    pub content: Vec<u8>,
}

/// What `kernel` needs for a job, in the order in which it is loaded; nothing, if
/// it has no modules.
pub fn find(kernel: &Path, needs: &Needs) -> Result<Vec<Module>, Error> {
    let Some(directory) = directory(kernel, Path::new("/")) else { return Ok(Vec::new()) };
    let error = |reason: String| Error::Modules { kernel: kernel.to_owned(), reason };
    Tree::read(directory).and_then(|tree| tree.resolve(&needs.0)).map_err(error)
}

/// Where the modules of a kernel are, under a root.
fn directory(kernel: &Path, root: &Path) -> Option<PathBuf> {
    let kernel = fs::canonicalize(kernel).unwrap_or_else(|_| kernel.to_owned());
    let beside = kernel.parent()?;
    let name = kernel.file_name()?.to_str()?;
    let release = name.strip_prefix("vmlinuz-").map(str::to_owned);
    let own = beside.join("modules.builtin").is_file().then(|| beside.to_owned());
    let installed = release
        .into_iter()
        .flat_map(|release| MODULES.map(|place| root.join(place).join(&release)));
    let all = own.into_iter().chain(installed).chain([beside.join("modules")]);
    all.into_iter().find(|path| path.is_dir())
}

/// A module's name: of `a/virtio-rng.ko.xz`, `virtio_rng`.
fn name_of(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let (name, _) = file.split_once(".ko")?;
    Some(name.replace('-', "_"))
}

/// The modules of one kernel.
struct Tree {
    directory: PathBuf,
    builtin: BTreeSet<String>,
    /// By name: the file, and the files before it if that is known.
    files: BTreeMap<String, (String, Option<Vec<String>>)>,
}

impl Tree {
    fn read(directory: PathBuf) -> Result<Self, String> {
        let text = |name: &str| fs::read_to_string(directory.join(name)).unwrap_or_default();
        let builtin = text("modules.builtin").lines().filter_map(name_of).collect();
        let dependencies = text("modules.dep");
        let mut files = BTreeMap::new();
        for line in dependencies.lines() {
            let Some((file, before)) = line.split_once(':') else { continue };
            // The last of them is to be loaded first.
            let before = before.split_whitespace().rev().map(str::to_owned).collect();
            if let Some(name) = name_of(file) {
                files.insert(name, (file.to_owned(), Some(before)));
            }
        }
        let mut tree = Self { directory, builtin, files };
        if tree.files.is_empty() {
            tree.walk(Path::new("kernel"), 0).map_err(|e| vmm::plain(&e))?;
        }
        Ok(tree)
    }

    /// Without a list, what is there.
    fn walk(&mut self, below: &Path, depth: usize) -> std::io::Result<()> {
        for entry in fs::read_dir(self.directory.join(below))?.flatten() {
            let path = below.join(entry.file_name());
            if entry.file_type()?.is_dir() && depth < DEEPEST {
                self.walk(&path, depth + 1)?;
            } else if let Some(path) = path.to_str()
                && let Some(name) = name_of(path)
            {
                self.files.insert(name, (path.to_owned(), None));
            }
        }
        Ok(())
    }

    fn resolve(&self, needs: &[String]) -> Result<Vec<Module>, String> {
        let mut all = Vec::new();
        let helpers = HELPERS.map(str::to_owned);
        for (name, needed) in
            helpers.iter().map(|h| (h, false)).chain(needs.iter().map(|n| (n, true)))
        {
            if self.files.contains_key(name) {
                self.add(name, &mut all)?;
            } else if needed && !self.builtin.contains(name) {
                return Err(format!(
                    "has no {name}, neither built in nor in {}",
                    self.directory.display()
                ));
            }
        }
        Ok(all)
    }

    /// A module behind those that it depends on.
    fn add(&self, name: &str, all: &mut Vec<Module>) -> Result<(), String> {
        let Some((path, before)) = self.files.get(name) else {
            return match self.builtin.contains(name) {
                true => Ok(()),
                false => Err(format!("{}: no module {name}", self.directory.display())),
            };
        };
        let taken = |path: &str, all: &[Module]| all.iter().any(|m| m.file == unpacked_name(path));
        if taken(path, all) {
            return Ok(());
        }
        let module = self.load(path)?;
        match before {
            Some(before) => {
                for path in before {
                    if !taken(path, all) {
                        all.push(self.load(path)?);
                    }
                }
            }
            None => {
                for name in self.depends(path, &module)? {
                    self.add(&name, all)?;
                }
            }
        }
        all.push(module);
        Ok(())
    }

    fn load(&self, path: &str) -> Result<Module, String> {
        let full = self.directory.join(path);
        let told = |e: std::io::Error| format!("{}: {}", full.display(), vmm::plain(&e));
        let file = fs::File::open(&full).map_err(told)?;
        let mut content = Vec::new();
        file.take(LARGEST).read_to_end(&mut content).map_err(told)?;
        let content = match path.rsplit_once('.') {
            Some((_, "gz")) => unpack(GzDecoder::new(&content[..])).map_err(told)?,
            Some((_, "zst")) => {
                let decoder = ruzstd::decoding::StreamingDecoder::new(&content[..]);
                let decoder = decoder.map_err(|e| told(std::io::Error::other(e.to_string())))?;
                unpack(decoder).map_err(told)?
            }
            _ => content,
        };
        Ok(Module { file: unpacked_name(path).to_owned(), content })
    }

    /// What a module says of itself.
    fn depends(&self, path: &str, module: &Module) -> Result<Vec<String>, String> {
        if !module.file.ends_with(".ko") {
            let directory = self.directory.display();
            return Err(format!("{directory}: no modules.dep for {path}: depmod makes it"));
        }
        const KEY: &[u8] = b"\0depends=";
        let at = module.content.windows(KEY.len()).position(|window| window == KEY);
        let value = at.and_then(|at| module.content.get(at + KEY.len()..)).unwrap_or_default();
        let value = value.split(|byte| *byte == 0).next().unwrap_or_default();
        let names = String::from_utf8_lossy(value);
        Ok(names.split(',').filter(|n| !n.is_empty()).map(|n| n.replace('-', "_")).collect())
    }
}

/// The name of a module's file, without what says that we unpack it.
fn unpacked_name(path: &str) -> &str {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.strip_suffix(".gz").or_else(|| file.strip_suffix(".zst")).unwrap_or(file)
}

fn unpack(from: impl Read) -> std::io::Result<Vec<u8>> {
    let mut content = Vec::new();
    from.take(LARGEST).read_to_end(&mut content)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// `top` needs `mid`, which needs `low`.
    fn tree(with_list: bool) -> tempfile::TempDir {
        let place = tempfile::tempdir().unwrap();
        let drivers = place.path().join("kernel/drivers/a");
        fs::create_dir_all(&drivers).unwrap();
        let module = |depends: &str| format!("\x7fELF\0depends={depends}\0name=x\0");
        let mut low = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        low.write_all(module("").as_bytes()).unwrap();
        fs::write(drivers.join("low-er.ko.gz"), low.finish().unwrap()).unwrap();
        fs::write(drivers.join("mid.ko"), module("low-er")).unwrap();
        fs::write(drivers.join("top.ko"), module("mid")).unwrap();
        fs::write(drivers.join("packed.ko.xz"), "xz").unwrap();
        fs::write(place.path().join("modules.builtin"), "kernel/fs/inside.ko\n").unwrap();
        if with_list {
            let list = "kernel/drivers/a/low-er.ko.gz:\n\
                kernel/drivers/a/mid.ko: kernel/drivers/a/low-er.ko.gz\n\
                kernel/drivers/a/top.ko: kernel/drivers/a/mid.ko kernel/drivers/a/low-er.ko.gz\n\
                kernel/drivers/a/packed.ko.xz:\n";
            fs::write(place.path().join("modules.dep"), list).unwrap();
        }
        place
    }

    fn names(place: &Path, needs: &[&str]) -> Result<Vec<String>, String> {
        let needs: Vec<String> = needs.iter().map(|&name| name.to_owned()).collect();
        let all = Tree::read(place.to_owned())?.resolve(&needs)?;
        assert!(all.iter().all(|m| m.file.ends_with(".xz") || m.content.starts_with(b"\x7fELF")));
        Ok(all.into_iter().map(|module| module.file).collect())
    }

    #[test]
    fn modules_come_behind_those_that_they_need() {
        for with_list in [true, false] {
            let place = tree(with_list);
            let all = names(place.path(), &["top", "inside", "mid"]).unwrap();
            assert_eq!(all, ["low-er.ko", "mid.ko", "top.ko"]);
            let missing = names(place.path(), &["other"]).unwrap_err();
            assert!(missing.contains("has no other"), "{missing}");
        }
        let (listed, unlisted) = (tree(true), tree(false));
        assert_eq!(names(listed.path(), &["packed"]).unwrap(), ["packed.ko.xz"]);
        let told = names(unlisted.path(), &["packed"]).unwrap_err();
        assert!(told.contains("depmod"), "{told}");
    }

    #[test]
    fn modules_are_where_their_kernel_says() {
        let place = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(place.path()).unwrap();
        let installed = root.join("usr/lib/modules/6.1-a");
        fs::create_dir_all(&installed).unwrap();
        fs::create_dir_all(root.join("boot/modules")).unwrap();
        fs::write(root.join("boot/vmlinuz-6.1-a"), "").unwrap();
        fs::write(root.join("boot/vmlinux"), "").unwrap();
        let of = |kernel: &str| directory(&root.join(kernel), &root);
        assert_eq!(of("boot/vmlinuz-6.1-a"), Some(installed.clone()));
        assert_eq!(of("boot/vmlinux"), Some(root.join("boot/modules")));
        fs::write(installed.join("vmlinuz"), "").unwrap();
        assert_eq!(of("usr/lib/modules/6.1-a/vmlinuz"), None);
        fs::write(installed.join("modules.builtin"), "").unwrap();
        assert_eq!(of("usr/lib/modules/6.1-a/vmlinuz"), Some(installed));
    }
}
