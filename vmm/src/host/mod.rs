//! What this host offers: `/dev/kvm`, what stands behind it, and whether Linux
//! can run on it.
//!
//! ```text
//!  open_kvm ─► can_run_linux ── cheap facts ──► yes
//!                    └── in doubt ─► probe guest ─► yes / no
//!  doctor: all of it, and the host's limits, for people
//! ```

pub mod backend;
pub mod doctor;
pub mod probe;
pub mod processor;
pub mod spectrum;

pub use backend::Backend;
use kvm_ioctls::{Cap, Kvm};
use probe::Verdict;
use std::ffi::CStr;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A program as a shell looks for it, and where administrators' tools are, whatever
/// the user's path says.
pub fn find_command(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(|path| path.exists());
    }
    let paths = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    std::env::split_paths(&paths)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .filter(|place| !place.as_os_str().is_empty())
        .map(|place| place.join(name))
        .find(|path| path.is_file())
}

/// Where KVM is on any Linux.
pub const KVM_DEVICE: &str = "/dev/kvm";

/// The only KVM API there ever was since Linux 2.6.22.
const API_VERSION: i32 = 12;

/// What the monitor can't do without.
const REQUIRED: &[(Cap, &str)] = &[
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::SetIdentityMapAddr, "KVM_CAP_SET_IDENTITY_MAP_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// Why this host can't run the machine.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// There is no KVM device.
    #[error("{path}: no such device: {remedy}", path = path.display())]
    NoKvm {
        /// The device.
        path: PathBuf,
        /// What to do.
        remedy: &'static str,
    },
    /// The device may not be opened.
    #[error("{path}: permission denied: {remedy}", path = path.display())]
    NoPermission {
        /// The device.
        path: PathBuf,
        /// What to do.
        remedy: String,
    },
    /// The device can't be opened for another reason.
    #[error("{path}: {source}: microvm doctor tells more", path = path.display())]
    Open {
        /// The device.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The file answers, but not as KVM does.
    #[error("{path}: not a KVM device: give the host's /dev/kvm", path = path.display())]
    NotKvm {
        /// The file.
        path: PathBuf,
    },
    /// An API that never was.
    #[error("{path}: KVM API version {version}, not {API_VERSION}: use a newer kernel", path = path.display())]
    ApiVersion {
        /// The device.
        path: PathBuf,
        /// What it says.
        version: i32,
    },
    /// An old KVM.
    #[error("{path}: this KVM lacks {missing}: use a newer kernel (Linux 4.12 or later)", path = path.display())]
    MissingCaps {
        /// The device.
        path: PathBuf,
        /// Names of capabilities, separated by commas.
        missing: String,
    },
    /// The probe guest did not come to its end.
    #[error("/dev/kvm: this KVM ({backend}) can't run Linux: {step} fails in ring 0: {remedy}", remedy = backend.remedy())]
    CannotRunLinux {
        /// What stands behind KVM.
        backend: Backend,
        /// The instruction that failed.
        step: &'static str,
    },
    /// The probe guest could not be made.
    #[error("/dev/kvm: {what}: {source}: microvm doctor tells more")]
    Kvm {
        /// The ioctl.
        what: &'static str,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
    /// The probe guest could not be made.
    #[error("/dev/kvm: probe guest: {0}")]
    Probe(io::Error),
}

impl HostError {
    fn kvm(what: &'static str, source: kvm_ioctls::Error) -> Self {
        Self::Kvm { what, source }
    }
}

/// Opens KVM and makes sure that it can do what every machine needs.
pub fn open_kvm(path: &Path) -> Result<Kvm, HostError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|source| open_error(path, source))?;
    // SAFETY: the descriptor is open, and from here on it is Kvm's alone.
    let kvm = unsafe { Kvm::from_raw_fd(file.into_raw_fd()) };
    match kvm.get_api_version() {
        API_VERSION => {}
        ..0 => return Err(HostError::NotKvm { path: path.into() }),
        version => return Err(HostError::ApiVersion { path: path.into(), version }),
    }
    let missing = missing_caps(&kvm);
    if missing.is_empty() {
        Ok(kvm)
    } else {
        Err(HostError::MissingCaps { path: path.into(), missing: missing.join(", ") })
    }
}

/// Names of required capabilities that this KVM does not have.
fn missing_caps(kvm: &Kvm) -> Vec<&'static str> {
    REQUIRED.iter().filter(|(cap, _)| !kvm.check_extension(*cap)).map(|(_, name)| *name).collect()
}

/// Says why the device can't be opened and what helps.
fn open_error(path: &Path, source: io::Error) -> HostError {
    let path_buf = path.to_owned();
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => {
            HostError::NoKvm { path: path_buf, remedy: no_kvm_remedy() }
        }
        Some(libc::EACCES | libc::EPERM) => {
            HostError::NoPermission { path: path_buf, remedy: permission_remedy(path) }
        }
        Some(libc::EISDIR) => HostError::NotKvm { path: path_buf },
        _ => HostError::Open { path: path_buf, source },
    }
}

/// What to do about a missing device depends on the processor.
fn no_kvm_remedy() -> &'static str {
    match backend::cpu_flag() {
        Some(Backend::Vmx) => {
            "load the module with modprobe kvm_intel; in a container, pass the device in"
        }
        Some(Backend::Svm) => {
            "load the module with modprobe kvm_amd; in a container, pass the device in"
        }
        _ if backend::cpu_is_virtual() => {
            "this host is a virtual machine: ask for nested virtualization, or use a bare-metal host"
        }
        _ => "enable VT-x or AMD-V (SVM) in the firmware",
    }
}

/// Which group opens the door, by the device's own owner and mode.
fn permission_remedy(path: &Path) -> String {
    let acl = format!("sudo setfacl -m u:$USER:rw {}", path.display());
    let group = std::fs::metadata(path).ok().filter(|meta| {
        // A group that is allowed in, and is not root's own.
        meta.file_type().is_char_device() && meta.mode() & 0o060 == 0o060 && meta.gid() != 0
    });
    match group {
        Some(meta) => {
            let name = group_name(meta.gid()).unwrap_or_else(|| meta.gid().to_string());
            format!("join its group with sudo usermod -aG {name} $USER and log in again, or {acl}")
        }
        None => acl,
    }
}

/// The name of a group, from the file that every host has. Directory services
/// are left out: asking them needs the C library's plug-ins.
fn group_name(gid: u32) -> Option<String> {
    let groups = std::fs::read_to_string("/etc/group").ok()?;
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, id) = (fields.next()?, fields.nth(1)?);
        (id.parse() == Ok(gid)).then(|| name.to_owned())
    })
}

/// Whether this KVM can run Linux at all.
///
/// On nearly every host the answer is one ioctl away; only a KVM that shows
/// neither nested virtualization nor nested paging nor its module is probed.
pub fn can_run_linux(kvm: &Kvm) -> Result<(), HostError> {
    if is_surely_hardware(kvm) { Ok(()) } else { probe_linux(kvm) }
}

/// Facts that only a KVM on VT-x or SVM shows, cheapest first.
fn is_surely_hardware(kvm: &Kvm) -> bool {
    // Nested virtualization, on by default since Linux 4.20, and nested paging
    // (as told from 6.11 on) are VT-x's and SVM's. Without both it takes the
    // processor's flag and the module.
    kvm.check_extension(Cap::NestedState)
        || kvm.check_extension_raw(backend::KVM_CAP_PRE_FAULT_MEMORY) > 0
        || backend::cpu_flag().is_some_and(|cpu| exists(cpu.module()))
}

/// Runs the probe guest.
fn probe_linux(kvm: &Kvm) -> Result<(), HostError> {
    match probe::run(kvm)? {
        Verdict::CanRun => Ok(()),
        Verdict::CannotRun(step) => {
            Err(HostError::CannotRunLinux { backend: Backend::detect(Some(kvm)), step })
        }
    }
}

/// Whether a path is there: one system call, no allocation.
fn exists(path: &CStr) -> bool {
    // SAFETY: the string ends with NUL.
    unsafe { libc::access(path.as_ptr(), libc::F_OK) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_not_kvm_are_named_and_refused() {
        let dir = tempfile::tempdir().unwrap();
        let absent = dir.path().join("kvm");
        assert!(matches!(open_kvm(&absent), Err(HostError::NoKvm { path, .. }) if path == absent));
        assert!(matches!(open_kvm(dir.path()), Err(HostError::NotKvm { .. })));
        assert!(matches!(open_kvm(Path::new("/dev/null")), Err(HostError::NotKvm { .. })));
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let message = open_kvm(&file).unwrap_err().to_string();
        assert!(message.starts_with(file.to_str().unwrap()), "{message}");
    }

    #[test]
    fn every_message_is_one_line_with_a_remedy() {
        let path = PathBuf::from("/dev/kvm");
        for error in [
            open_error(&path, io::Error::from_raw_os_error(libc::ENOENT)),
            open_error(&path, io::Error::from_raw_os_error(libc::EACCES)),
            open_error(&path, io::Error::from_raw_os_error(libc::EBUSY)),
            HostError::ApiVersion { path: path.clone(), version: 11 },
            HostError::MissingCaps { path: path.clone(), missing: "KVM_CAP_X".into() },
            HostError::CannotRunLinux { backend: Backend::Pagetable, step: "SSE" },
        ] {
            let text = error.to_string();
            assert!(text.starts_with("/dev/kvm: ") && !text.contains('\n'), "{text}");
            assert!(text.splitn(3, ": ").count() == 3, "{text}");
        }
    }

    #[test]
    fn groups_have_names() {
        assert_eq!(group_name(0).as_deref(), Some("root"));
        assert_eq!(group_name(u32::MAX), None);
    }

    /// The answer differs between hosts; that it comes fast and that the
    /// shortcut never contradicts the probe must hold on all of them.
    #[test]
    fn the_shortcut_agrees_with_the_probe() {
        let Ok(kvm) = open_kvm(Path::new(KVM_DEVICE)) else { return };
        let start = std::time::Instant::now();
        let probed = probe_linux(&kvm);
        let took = start.elapsed();
        println!("probe: {probed:?} in {took:?}");
        println!("shortcut: {}", is_surely_hardware(&kvm));
        assert!(took < std::time::Duration::from_secs(1), "{took:?}");
        assert_eq!(can_run_linux(&kvm).is_ok(), probed.is_ok());
        if matches!(Backend::detect(Some(&kvm)), Backend::Vmx | Backend::Svm) {
            assert!(probed.is_ok(), "{probed:?}");
        }
    }
}
