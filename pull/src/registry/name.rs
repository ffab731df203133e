//! What a user writes to name an image in a registry.

use job::image::digest::Digest;
use job::image::error::{Error, Result};
use std::fmt;

/// `HOST[:PORT]/NAME[:TAG][@DIGEST]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteName {
    /// The registry, with its port.
    pub host: String,
    /// The repository there.
    pub name: String,
    /// Which image of it; `latest` if nothing is said.
    pub tag: String,
    /// Exactly which; counts more than the tag.
    pub digest: Option<Digest>,
}

impl RemoteName {
    /// Reads one. There is no registry that is meant when none is named.
    pub fn parse(text: &str) -> Result<Self> {
        let refuse = |reason: &str| Error::Reference {
            text: text.escape_debug().to_string(),
            reason: reason.to_owned(),
        };
        let rest = text.strip_prefix("docker://").unwrap_or(text);
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => (rest, Some(Digest::parse(digest)?)),
            None => (rest, None),
        };
        let (host, rest) = rest
            .split_once('/')
            .filter(|(host, _)| *host == "localhost" || host.contains(['.', ':']))
            .ok_or_else(|| refuse("names no registry: write HOST/NAME[:TAG]"))?;
        let (name, tag) = rest.split_once(':').unwrap_or((rest, "latest"));
        if !host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".:-[]".contains(&byte)) {
            return Err(refuse("the registry's name is no host's"));
        }
        let lower = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let part = |part: &str| {
            part.bytes().all(|byte| lower(byte) || b"._-".contains(&byte))
                && part.bytes().next().is_some_and(lower)
        };
        if name.len() > 255 || !name.split('/').all(part) {
            return Err(refuse("the name has other characters than a-z, 0-9, ., _, - and /"));
        }
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let tagged = tag.len() <= 128
            && tag.bytes().next().is_some_and(word)
            && tag.bytes().all(|byte| word(byte) || b".-".contains(&byte));
        if !tagged {
            return Err(refuse("the tag has other characters than a-z, A-Z, 0-9, _, . and -"));
        }
        Ok(Self { host: host.to_owned(), name: name.to_owned(), tag: tag.to_owned(), digest })
    }

    /// What its file is called where nothing else is said.
    pub fn file_name(&self) -> String {
        let last = self.name.rsplit('/').next().unwrap_or_default();
        format!("{last}_{}.img", self.tag)
    }

    /// Whether it is on this host, where nobody listens in between.
    pub fn is_loopback(&self) -> bool {
        let host = match self.host.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
            _ => &self.host,
        };
        let address = host.trim_start_matches('[').trim_end_matches(']').parse();
        host == "localhost" || address.is_ok_and(|address: std::net::IpAddr| address.is_loopback())
    }
}

impl fmt::Display for RemoteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.name)?;
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => write!(f, ":{}", self.tag),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_a_registry() {
        let digest = Digest::of(b"");
        for (text, host, name, tag, digest) in [
            ("example.org/app", "example.org", "app", "latest", None),
            ("docker://localhost/a/b:1.0", "localhost", "a/b", "1.0", None),
            ("[::1]:5000/a:t", "[::1]:5000", "a", "t", None),
            (&format!("h:1/a@{digest}"), "h:1", "a", "latest", Some(digest)),
        ] {
            let parsed = RemoteName::parse(text).unwrap();
            assert_eq!((&*parsed.host, &*parsed.name, &*parsed.tag), (host, name, tag));
            assert_eq!(parsed.digest, digest);
        }
        for text in [
            "",
            "app",
            "library/app:1",
            "a.b/",
            "a.b/A",
            "a.b/../x",
            "a.b/x:",
            "a.b/x:a/b",
            "a.b/x@1",
        ] {
            assert!(RemoteName::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn only_loopback_is_loopback() {
        for (text, wanted) in [
            ("localhost:5000/a", true),
            ("127.0.0.1/a", true),
            ("[::1]:1/a", true),
            ("example.org:5000/a", false),
            ("localhost.example.org/a", false),
            ("10.0.0.1:5000/a", false),
        ] {
            assert_eq!(RemoteName::parse(text).unwrap().is_loopback(), wanted, "{text}");
        }
    }
}
