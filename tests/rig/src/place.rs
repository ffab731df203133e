//! Which place on this machine can boot Linux under KVM.

use crate::Options;
use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// Set for every command in a rig, so that it does not start another one.
pub const IN_RIG: &str = "MICROVM_IN_RIG";
/// The user's own choice: `direct`, `svm`, `vtx` or `never` (no rig).
const CHOICE: &str = "MICROVM_RIG";

/// What kind of processor the rig emulates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Emulation {
    /// AMD's virtualization, by QEMU.
    Svm,
    /// Intel's virtualization, by Bochs.
    Vtx,
}

/// Where a command that needs KVM runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Right here.
    Direct,
    /// In an emulated host.
    Rig(Emulation),
}

/// Decides, from the user's choice and then from what this host is.
pub fn place() -> Result<Place> {
    let choice = std::env::var_os(CHOICE).unwrap_or_default();
    let inside = std::env::var_os(IN_RIG).is_some();
    decide(choice.to_str().unwrap_or("?"), inside, host_boots_linux())
}

fn decide(choice: &str, inside: bool, host: bool) -> Result<Place> {
    Ok(match choice {
        _ if inside => Place::Direct,
        "direct" => Place::Direct,
        "svm" => Place::Rig(Emulation::Svm),
        "vtx" => Place::Rig(Emulation::Vtx),
        "" if host => Place::Direct,
        "" => Place::Rig(Emulation::Svm),
        "never" if host => Place::Direct,
        "never" => bail!("this host's KVM cannot boot Linux and {CHOICE}=never forbids the rig"),
        other => bail!("{CHOICE}={other}: expected direct, svm, vtx or never"),
    })
}

/// Whether this host's KVM rests on VT-x or SVM and may be opened. A KVM
/// without either (a pagetable-based one) runs small programs, not Linux.
fn host_boots_linux() -> bool {
    let hardware = ["kvm_intel", "kvm_amd"]
        .iter()
        .any(|module| Path::new("/sys/module").join(module).is_dir());
    hardware && OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok()
}

/// Makes sure that the calling program is where Linux guests can run.
///
/// Returns `None` there. Anywhere else, runs this same program with the same
/// arguments in the rig and returns the exit code to end with.
///
/// ```no_run
/// fn main() -> std::process::ExitCode {
///     match rig::ensure() {
///         Ok(None) => std::process::ExitCode::SUCCESS, // run the tests here
///         Ok(Some(code)) => code,
///         Err(error) => {
///             eprintln!("error: {error:#}");
///             std::process::ExitCode::FAILURE
///         }
///     }
/// }
/// ```
pub fn ensure() -> Result<Option<ExitCode>> {
    let emulation = match place()? {
        Place::Direct => return Ok(None),
        Place::Rig(emulation) => emulation,
    };
    let program = std::env::current_exe().context("finding this program")?;
    let command: Vec<OsString> =
        std::iter::once(program.into_os_string()).chain(std::env::args_os().skip(1)).collect();
    let options =
        Options { emulation, limit: Some(Duration::from_secs(3600)), ..Options::default() };
    Ok(Some(ExitCode::from(options.run(&command)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_decides_before_the_host_does() {
        let is = |choice, inside, host| decide(choice, inside, host).ok();
        assert_eq!(is("", false, true), Some(Place::Direct));
        assert_eq!(is("", false, false), Some(Place::Rig(Emulation::Svm)));
        assert_eq!(is("svm", false, true), Some(Place::Rig(Emulation::Svm)));
        assert_eq!(is("vtx", false, true), Some(Place::Rig(Emulation::Vtx)));
        assert_eq!(is("direct", false, false), Some(Place::Direct));
        assert_eq!(is("never", false, false), None);
        assert_eq!(is("never", false, true), Some(Place::Direct));
        assert_eq!(is("maybe", false, true), None);
    }

    #[test]
    fn a_rig_never_starts_a_rig() {
        assert_eq!(decide("svm", true, false).ok(), Some(Place::Direct));
    }
}
