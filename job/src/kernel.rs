//! Where the kernel of a job's guest is.

use crate::Error;
use std::ffi::OsString;
use std::path::PathBuf;

/// The variable that names it.
pub const VARIABLE: &str = "MICROVM_KERNEL";
/// Where it is installed for all users.
const SYSTEM: [&str; 2] = ["/usr/local/lib/microvm/vmlinux", "/usr/lib/microvm/vmlinux"];

/// The kernel: as given, as the environment says, or at the first of the usual
/// places that has one.
pub fn find(given: Option<PathBuf>) -> Result<PathBuf, Error> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(path) = given.or_else(|| variable(VARIABLE).map(PathBuf::from)) {
        return Ok(path);
    }
    let places = places(variable("XDG_DATA_HOME"), variable("HOME"));
    let found = places.iter().find(|path| path.is_file()).cloned();
    found.ok_or(Error::NoKernel { places })
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
