//! `microvm-pull`: what `microvm pull` becomes.
//!
//! It is a program of its own so that TLS, HTTP and whatever else a network
//! needs are no part of the one that guests can attack, and do not triple its
//! size. `microvm` has parsed the command line:
//!
//! ```text
//!  microvm-pull http|https NAME [IMAGE]
//! ```

mod registry;

use job::image::bar::Bar;
use job::image::build::{Options, build_unpacked};
use job::image::cache::Cache;
use job::image::source::unpack_image;
use job::image::{Error, Result};
use registry::{RemoteName, pull};
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// As `microvm`'s: a file or value that the user gave can't be used.
const INPUT: u8 = 3;

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let done = match words.as_slice() {
        [scheme, name] => fetch(scheme == "http", &name.to_string_lossy(), None),
        [scheme, name, image] => {
            fetch(scheme == "http", &name.to_string_lossy(), Some(image.into()))
        }
        _ => Err(Error::unsupported("microvm-pull", "is a part of microvm pull: call that")),
    };
    match done.and_then(|line| told(&line)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line, whatever a registry has said.
            let text = vmm::visible(&error.to_string());
            // Nobody is left to tell if this fails.
            let _ = writeln!(std::io::stderr(), "microvm: {text}");
            ExitCode::from(INPUT)
        }
    }
}

/// Fetches an image and makes one file of it; returns what it is.
fn fetch(plain_http: bool, name: &str, image: Option<PathBuf>) -> Result<String> {
    let name = RemoteName::parse(name)?;
    let output = image.unwrap_or_else(|| name.file_name().into());
    let cache = Cache::of_user()?;
    let options = Options::of_environment(false)?;
    let mut bar = Bar::default();
    let found = pull(&name, &cache, plain_http, &mut bar)?;
    let unpacked = unpack_image(found, cache.directory(), &mut bar)?;
    let built = build_unpacked(unpacked, &output, options, &mut bar)?;
    bar.finish();
    cache.prune_to_size(None)?;
    Ok(built.line(&output))
}

fn told(line: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{line}").map_err(Error::host("standard output"))
}
