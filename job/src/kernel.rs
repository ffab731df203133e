//! Where the kernel of a job's guest is: one of ours, else one of the host's.

use crate::Error;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// The variable that names it.
pub const VARIABLE: &str = "MICROVM_KERNEL";
/// Where it is installed for all users.
const SYSTEM: [&str; 2] = ["/usr/local/lib/microvm/vmlinux", "/usr/lib/microvm/vmlinux"];

/// The kernel: as given, as the environment says, at the first of the usual places
/// that has one, or the host's own.
pub fn find(given: Option<PathBuf>) -> Result<PathBuf, Error> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(path) = given.or_else(|| variable(VARIABLE).map(PathBuf::from)) {
        return Ok(path);
    }
    let places = places(variable("XDG_DATA_HOME"), variable("HOME"));
    let ours = places.iter().find(|path| path.is_file()).cloned();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let found = ours.or_else(|| installed(Path::new("/"), release.trim()));
    found.ok_or(Error::NoKernel { places })
}

/// Where a distribution has the modules of its kernels, in a directory for each release.
pub(crate) const MODULES: [&str; 2] = ["usr/lib/modules", "lib/modules"];

/// A kernel of the distribution's under a root: of the release that runs, else the
/// newest of those that can be read.
fn installed(root: &Path, running: &str) -> Option<PathBuf> {
    let mut releases = Vec::new();
    for place in MODULES {
        let entries = fs::read_dir(root.join(place)).into_iter().flatten().flatten();
        releases.extend(entries.filter_map(|entry| entry.file_name().into_string().ok()));
    }
    releases.sort_by_cached_key(|release| (release == running, numbers(release)));
    let kernels = |release: &String| {
        MODULES
            .map(|place| root.join(place).join(release).join("vmlinuz"))
            .into_iter()
            .chain([root.join("boot").join(format!("vmlinuz-{release}"))])
            .find(|path| File::open(path).is_ok())
    };
    releases.iter().rev().find_map(kernels)
}

/// `6.12.1-10` is newer than `6.12.1-9`.
fn numbers(release: &str) -> Vec<u64> {
    let parts = release.split(|c: char| !c.is_ascii_digit());
    parts.filter_map(|part| part.parse().ok()).collect()
}

fn places(data: Option<OsString>, home: Option<OsString>) -> Vec<PathBuf> {
    let data = data.map(PathBuf::from);
    let data = data.or_else(|| home.map(|home| PathBuf::from(home).join(".local/share")));
    let own = data.map(|data| data.join("microvm/vmlinux"));
    own.into_iter().chain(SYSTEM.map(PathBuf::from)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_own_is_the_one_that_runs_or_the_newest() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        assert_eq!(installed(root, "6.1"), None);
        fs::create_dir_all(root.join("boot")).unwrap();
        for release in ["6.1.0-9-amd64", "6.1.0-10-amd64", "5.10.0-99-amd64"] {
            fs::create_dir_all(root.join("usr/lib/modules").join(release)).unwrap();
            assert_eq!(installed(root, release), None);
        }
        for release in ["6.1.0-9-amd64", "6.1.0-10-amd64", "5.10.0-99-amd64"] {
            fs::write(root.join(format!("boot/vmlinuz-{release}")), "").unwrap();
        }
        let newest = root.join("boot/vmlinuz-6.1.0-10-amd64");
        assert_eq!(installed(root, "6.6.1-other"), Some(newest));
        let runs = root.join("boot/vmlinuz-6.1.0-9-amd64");
        assert_eq!(installed(root, "6.1.0-9-amd64"), Some(runs));
        let beside = root.join("usr/lib/modules/6.1.0-9-amd64/vmlinuz");
        fs::write(&beside, "").unwrap();
        assert_eq!(installed(root, "6.1.0-9-amd64"), Some(beside));
    }

    #[test]
    fn a_kernel_that_is_named_is_taken_and_others_are_looked_for() {
        assert_eq!(find(Some("/k".into())).unwrap(), PathBuf::from("/k"));
        let of = |data: Option<&str>, home: Option<&str>| {
            places(data.map(OsString::from), home.map(OsString::from)).remove(0)
        };
        assert_eq!(of(Some("/d"), Some("/h")), PathBuf::from("/d/microvm/vmlinux"));
        assert_eq!(of(None, Some("/h")), PathBuf::from("/h/.local/share/microvm/vmlinux"));
        assert_eq!(of(None, None), PathBuf::from(SYSTEM[0]));
    }
}
