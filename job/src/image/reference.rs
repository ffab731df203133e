//! What a user writes to name an image.

use super::error::{Error, Result};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// An image, as it was named; nothing has been opened yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// `host`: the host's own root, for which nothing is unpacked.
    Host,
    /// A directory, or a file whose content says what it is.
    Path(PathBuf),
    /// `oci:DIR[:TAG]`: an OCI image layout.
    Oci(Archive),
    /// `oci-archive:FILE[:TAG]`: such a layout in a tar archive.
    OciArchive(Archive),
    /// `docker-archive:FILE[:NAME[:TAG]]`: what `docker save` writes.
    DockerArchive(Archive),
}

/// Where images are, and which of them is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    /// The directory or file.
    pub path: PathBuf,
    /// Which image; without one there has to be only one.
    pub tag: Option<String>,
}

/// Transports of other programs, which need a network.
const REMOTE: [&str; 6] = ["docker:", "oras:", "library:", "shub:", "http:", "https:"];

impl Reference {
    /// Reads what was written. A file called `host` is `./host`, and so is one
    /// whose name starts like a transport.
    pub fn parse(text: &OsStr) -> Result<Self> {
        let bytes = text.as_bytes();
        let refuse = |reason: &str| {
            let text = text.to_string_lossy().into_owned();
            Error::Reference { text, reason: reason.to_owned() }
        };
        if bytes.is_empty() {
            return Err(refuse("no name: give a directory, a file, or oci:DIR"));
        }
        if bytes == b"host" {
            return Ok(Self::Host);
        }
        type Make = fn(Archive) -> Reference;
        let transports: [(&[u8], Make); 3] = [
            (b"oci:", Self::Oci),
            (b"oci-archive:", Self::OciArchive),
            (b"docker-archive:", Self::DockerArchive),
        ];
        for (prefix, make) in transports {
            if let Some(rest) = bytes.strip_prefix(prefix) {
                return Ok(make(Archive::parse(rest).map_err(refuse)?));
            }
        }
        if REMOTE.iter().any(|name| bytes.starts_with(name.as_bytes())) {
            return Err(refuse("is not on this host: fetch it with microvm pull first"));
        }
        Ok(Self::Path(text.into()))
    }
}

impl Archive {
    /// `PATH[:TAG]`. The first colon ends the path, as it does for the other
    /// programs that take such names.
    fn parse(text: &[u8]) -> std::result::Result<Self, &'static str> {
        let (path, tag) = match text.iter().position(|&byte| byte == b':') {
            Some(colon) => (&text[..colon], Some(&text[colon + 1..])),
            None => (text, None),
        };
        if path.is_empty() {
            return Err("no path: give one after the colon");
        }
        let tag = match tag {
            None => None,
            Some([]) => return Err("no tag: give one after the last colon"),
            Some(tag) => Some(std::str::from_utf8(tag).map_err(|_| "the tag is not UTF-8")?),
        };
        let path = PathBuf::from(OsString::from_vec(path.to_vec()));
        Ok(Self { path, tag: tag.map(str::to_owned) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Reference> {
        Reference::parse(OsStr::new(text))
    }

    fn archive(path: &str, tag: Option<&str>) -> Archive {
        Archive { path: path.into(), tag: tag.map(str::to_owned) }
    }

    #[test]
    fn references_are_what_they_look_like() {
        for (text, wanted) in [
            ("host", Reference::Host),
            ("./host", Reference::Path("./host".into())),
            ("app.img", Reference::Path("app.img".into())),
            ("a:b", Reference::Path("a:b".into())),
            ("oci:dir", Reference::Oci(archive("dir", None))),
            ("oci:dir:1.0", Reference::Oci(archive("dir", Some("1.0")))),
            ("oci-archive:a.tar:t", Reference::OciArchive(archive("a.tar", Some("t")))),
            ("docker-archive:a:n:t", Reference::DockerArchive(archive("a", Some("n:t")))),
        ] {
            assert_eq!(parse(text).unwrap(), wanted, "{text}");
        }
    }

    #[test]
    fn references_without_an_image_are_refused() {
        for (text, part) in [
            ("", "no name"),
            ("oci:", "no path"),
            ("oci::tag", "no path"),
            ("oci:dir:", "no tag"),
            ("docker://name", "microvm pull"),
        ] {
            let said = parse(text).unwrap_err().to_string();
            assert!(said.contains(part) && said.starts_with("image "), "{said}");
        }
        // Names that are not UTF-8 are files like others; tags have to be text.
        assert!(Reference::parse(OsStr::from_bytes(b"\xff")).is_ok());
        assert!(Reference::parse(OsStr::from_bytes(b"oci:a:\xff")).is_err());
    }
}
