//! `build`, `inspect`, `pull` and `cache`: images as a user handles them.

use crate::companion::Companion;
use crate::{Error, print};
use clap::Subcommand;
use indicatif::HumanBytes;
use job::image::Reference;
use job::image::bar::Bar;
use job::image::build::{Options, build};
use job::image::cache::{Cache, Cached};
use job::image::config::Description;
use job::image::inspect::{Report, inspect};
use std::ffi::OsString;
use std::fmt::Write;
use std::path::PathBuf;
use vmm::config::Size;
use vmm::exit::status;

/// What can be done with images.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Make one portable file of a directory, an archive or an OCI image
    ///
    /// SOURCE is one of
    ///   DIRECTORY               what is in it, with owners as they are
    ///   FILE                    a tar archive; gzip or zstd may be around it
    ///   oci:DIRECTORY[:TAG]     an OCI image layout
    ///   oci-archive:FILE[:TAG]  one in a tar archive
    ///   docker-archive:FILE[:NAME[:TAG]]
    ///                           what docker save writes
    /// The file is a read-only file system (EROFS) with what is known of the
    /// image around it. No root is needed, and equal sources make equal files;
    /// with SOURCE_DATE_EPOCH set no file in it is dated later. It appears
    /// when it is complete: an interrupted build leaves nothing.
    #[command(verbatim_doc_comment)]
    Build {
        /// What to make it of
        source: OsString,
        /// The file to make, in place of one that is there
        image: PathBuf,
        /// Make everything in it root's
        #[arg(long)]
        all_root: bool,
    },
    /// Tell what an image is: kind, size, processor, configuration, layers
    ///
    /// Besides the sources of microvm build this takes its files, disk
    /// images (ext4, squashfs, erofs) and SIF. Nothing is unpacked.
    #[command(verbatim_doc_comment)]
    Inspect {
        /// The image
        image: OsString,
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
    /// Fetch an image from a registry, and make one portable file of it
    ///
    /// NAME is HOST[:PORT]/NAME[:TAG][@DIGEST]; no registry is meant if none
    /// is named. What podman login or docker login wrote is used. Blobs are
    /// kept in the cache: what broke off is taken up again, and what images
    /// share is fetched once.
    #[command(verbatim_doc_comment)]
    Pull {
        /// What to fetch
        name: String,
        /// The file to make [default: NAME_TAG.img]
        image: Option<PathBuf>,
        /// Speak HTTP without TLS, as is done with this host itself
        #[arg(long)]
        plain_http: bool,
    },
    /// Show or empty the cache of images
    ///
    /// It is in $XDG_CACHE_HOME/microvm/images, or ~/.cache/microvm/images.
    #[command(verbatim_doc_comment, disable_help_subcommand = true)]
    Cache {
        #[command(subcommand)]
        command: CacheCommand,
    },
}

/// What can be done with the cache.
#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// List what is there, the least recently used first
    List {
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove the least recently used images
    Prune {
        /// Until all are no more than this
        #[arg(long, value_name = "SIZE", default_value = "0")]
        size: Size,
    },
}

/// Does it; returns the exit status.
pub fn run(command: ImageCommand) -> Result<u8, Error> {
    match command {
        ImageCommand::Build { source, image, all_root } => {
            let options = Options::of_environment(all_root)?;
            let mut bar = Bar::default();
            let built = build(&Reference::parse(&source)?, &image, options, &mut bar)?;
            bar.finish();
            print(&(built.line(&image) + "\n"))?;
        }
        ImageCommand::Pull { name, image, plain_http } => {
            let scheme = if plain_http { "http" } else { "https" };
            let words = [scheme.into(), name.into()].into_iter();
            let words = words.chain(image.map(PathBuf::into_os_string));
            return Err(Companion::Pull.become_it(words).into());
        }
        ImageCommand::Inspect { image, json } => {
            let report = inspect(&Reference::parse(&image)?)?;
            print(&if json { to_json(&report)? } else { table(&report) })?;
        }
        ImageCommand::Cache { command: CacheCommand::List { json } } => {
            let cache = Cache::of_user()?;
            let all = cache.list()?;
            print(&if json { to_json(&all)? } else { list(&all) })?;
        }
        ImageCommand::Cache { command: CacheCommand::Prune { size } } => {
            let removed = Cache::of_user()?.prune(size.0, None)?;
            let bytes = removed.iter().map(|cached| cached.size).sum();
            print(&format!("removed {} files, {}\n", removed.len(), HumanBytes(bytes)))?;
        }
    }
    Ok(status::OK)
}

fn to_json(value: &impl serde::Serialize) -> Result<String, Error> {
    serde_json::to_string_pretty(value).map(|text| text + "\n").map_err(Error::Json)
}

/// What an image is, a line for each thing.
fn table(report: &Report) -> String {
    let mut lines = vec![("kind", report.kind.to_owned())];
    if let Some(name) = report.file_system {
        let offset = report.offset.filter(|offset| *offset > 0);
        let offset = offset.map(|offset| format!(", from byte {offset}")).unwrap_or_default();
        lines.push(("file system", format!("{name}{offset}")));
    }
    if let Some(size) = report.size {
        lines.push(("size", format!("{} ({size} bytes)", HumanBytes(size))));
    }
    if let Some(description) = &report.description {
        describe(description, &mut lines);
    }
    let mut text = String::new();
    for (name, value) in lines {
        // What an image says must not write on the terminal what it likes.
        let value = vmm::visible(&value);
        let _ = writeln!(text, "{name:<14}{value}");
    }
    text
}

fn describe(description: &Description, lines: &mut Vec<(&'static str, String)>) {
    let config = &description.config;
    let mut add = |name, value: String| {
        if !value.is_empty() {
            lines.push((name, value));
        }
    };
    add("architecture", description.architecture.clone().unwrap_or_default());
    add("made from", description.source.clone());
    add("digest", description.digest.clone().unwrap_or_default());
    add("entrypoint", words(&config.entrypoint));
    add("cmd", words(&config.cmd));
    add("user", config.user.clone());
    if let Some(identity) = &description.identity {
        let groups: String = identity.groups.iter().map(|group| format!(" {group}")).collect();
        let groups = if groups.is_empty() { groups } else { format!(", also in{groups}") };
        add("identity", format!("user {}, group {}{groups}", identity.uid, identity.gid));
    }
    add("directory", config.working_directory.clone());
    add("stop signal", config.stop_signal.clone());
    config.env.iter().for_each(|variable| add("env", variable.clone()));
    config.labels.iter().for_each(|(name, value)| add("label", format!("{name}={value}")));
    for layer in &description.layers {
        add("layer", format!("{} {}", layer.digest, HumanBytes(layer.size)));
    }
}

/// As a JSON list, so that spaces and quotes can be told apart.
fn words(words: &[String]) -> String {
    if words.is_empty() {
        return String::new();
    }
    serde_json::to_string(words).unwrap_or_default()
}

fn list(all: &[Cached]) -> String {
    let mut text = String::new();
    for cached in all {
        let size = HumanBytes(cached.size).to_string();
        let _ = writeln!(text, "{size:>12}  {}  {}", cached.digest, cached.path.display());
    }
    text
}
