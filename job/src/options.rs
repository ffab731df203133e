//! What a user asks for when running a job: plain data.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;
use vmm::config;

/// A job, as its user asks for it.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The image ([`crate::image::Reference`]).
    pub image: OsString,
    /// What follows it.
    pub arguments: Vec<OsString>,
    /// Those are a program, even if the image has its own.
    pub exec: bool,
    /// The guest kernel; else it is looked for.
    pub kernel: Option<PathBuf>,
    /// vCPUs; else as many as the caller may use.
    pub cpus: Option<u32>,
    /// Guest memory in bytes; else by the caller's limits.
    pub memory: Option<u64>,
    /// `NAME=value`, or `NAME` for what the caller has.
    pub env: Vec<String>,
    /// Take nothing else of the caller's environment.
    pub clean_env: bool,
    /// The working directory.
    pub pwd: Option<PathBuf>,
    /// Who runs it.
    pub user: User,
    /// More directories of the host.
    pub binds: Vec<Bind>,
    /// Do not share the home directory.
    pub no_home: bool,
    /// Share nothing but `binds`.
    pub contain: bool,
    /// Let the job change the root file system, in memory.
    pub writable_tmpfs: bool,
    /// Let the job change the root file system, in this image.
    pub overlay: Option<PathBuf>,
    /// Whether there is a terminal; else as the caller's streams are.
    pub terminal: Option<bool>,
    /// The network card; `None` is none.
    pub network: Option<config::Net>,
    /// What if the host does not offer all that isolates.
    pub isolation: crate::Isolation,
    /// Where the ranks of a parallel program run.
    pub join: Join,
    /// What others find the job by.
    pub name: Option<crate::named::Name>,
    /// Where the kernel's messages go.
    pub kernel_log: Option<PathBuf>,
}

/// Who a job is in its machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum User {
    /// Who runs microvm.
    #[default]
    Caller,
    /// Whom the image names.
    Image,
}

impl FromStr for User {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "caller" => Ok(Self::Caller),
            "image" => Ok(Self::Image),
            _ => Err("must be caller or image"),
        }
    }
}

/// In which machines the ranks of a parallel program run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Join {
    /// All of a host in one.
    #[default]
    Auto,
    /// Each in its own.
    Never,
}

impl FromStr for Join {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "never" => Ok(Self::Never),
            _ => Err("must be auto or never"),
        }
    }
}

/// A directory of the host that the job sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// On the host.
    pub source: PathBuf,
    /// In the guest.
    pub target: PathBuf,
    /// Whether it can't be changed there.
    pub readonly: bool,
}

/// `SOURCE[:TARGET[:ro|rw]]`.
impl FromStr for Bind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(':');
        let source = parts.next().filter(|part| !part.is_empty()).ok_or("no directory")?;
        let target = parts.next().filter(|part| !part.is_empty()).unwrap_or(source);
        let readonly = match parts.next() {
            None | Some("rw") => false,
            Some("ro") => true,
            Some(other) => return Err(format!("{other:?} must be ro or rw")),
        };
        if parts.next().is_some() {
            return Err("must be SOURCE[:TARGET[:ro]]".to_owned());
        }
        Ok(Self { source: source.into(), target: target.into(), readonly })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binds_are_read_as_singularity_reads_them() {
        let bind = |source: &str, target: &str, readonly| Bind {
            source: source.into(),
            target: target.into(),
            readonly,
        };
        assert_eq!("/a".parse(), Ok(bind("/a", "/a", false)));
        assert_eq!("/a:/b".parse(), Ok(bind("/a", "/b", false)));
        assert_eq!("a:/b:ro".parse(), Ok(bind("a", "/b", true)));
        assert_eq!("/a::rw".parse(), Ok(bind("/a", "/a", false)));
        for wrong in ["", ":/b", "/a:/b:rx", "/a:/b:ro:x"] {
            assert!(wrong.parse::<Bind>().is_err(), "{wrong}");
        }
    }
}
