//! Who we are to a registry: a token that it tells where to get, or a name and
//! password, which `docker login` or `podman login` have written to a file.

use serde::Deserialize;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// What a registry wants, by its `WWW-Authenticate` (RFC 9110, 11.6.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// A name and a password.
    Basic,
    /// A token, from `realm`.
    Bearer {
        /// Where to get it.
        realm: String,
        /// For whom.
        service: Option<String>,
        /// For what.
        scope: Option<String>,
    },
}

impl Challenge {
    /// Reads a header.
    pub fn parse(header: &str) -> Option<Self> {
        let (scheme, mut rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut fields = HashMap::new();
        while let Some((name, value)) = rest.split_once('=') {
            let name = name.trim_matches([' ', ',']).to_ascii_lowercase();
            let (value, after) = match value.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => value.split_once(',').unwrap_or((value, "")),
            };
            fields.insert(name, value.trim().to_owned());
            rest = after;
        }
        Some(Self::Bearer {
            realm: fields.remove("realm")?,
            service: fields.remove("service"),
            scope: fields.remove("scope"),
        })
    }
}

/// What a token is sent in.
#[derive(Deserialize)]
pub struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Token {
    /// The token, under either of its names.
    pub fn into_text(self) -> Option<String> {
        self.token.or(self.access_token).filter(|token| !token.is_empty())
    }
}

#[derive(Default, Deserialize)]
struct AuthFile {
    #[serde(default)]
    auths: HashMap<String, AuthEntry>,
}

#[derive(Deserialize)]
struct AuthEntry {
    auth: Option<String>,
}

/// What to send as `Authorization: Basic` to a host, if its user has logged in.
pub fn credentials(host: &str) -> Option<String> {
    files().iter().find_map(|path| credentials_in(&std::fs::read(path).ok()?, host))
}

/// Where other programs keep them, the most specific first.
fn files() -> Vec<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(path) = variable("REGISTRY_AUTH_FILE") {
        return vec![path.into()];
    }
    let below = |name, path: &str| variable(name).map(|base| Path::new(&base).join(path));
    [
        below("XDG_RUNTIME_DIR", "containers/auth.json"),
        below("DOCKER_CONFIG", "config.json"),
        below("HOME", ".docker/config.json"),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn credentials_in(text: &[u8], host: &str) -> Option<String> {
    let file: AuthFile = serde_json::from_slice(text).ok()?;
    let of_host = |name: &str| {
        let name = name.trim_start_matches("https://").trim_start_matches("http://");
        name.split('/').next() == Some(host)
    };
    let entry = file.auths.into_iter().find(|(name, _)| of_host(name))?.1;
    // It is base64 already; nothing else may get into a header.
    let safe = |auth: &String| {
        !auth.is_empty() && auth.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(&b))
    };
    entry.auth.filter(safe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            let (service, scope) = (service.map(str::to_owned), scope.map(str::to_owned));
            Some(Challenge::Bearer { realm: realm.to_owned(), service, scope })
        };
        for (header, wanted) in [
            ("Basic realm=\"x\"", Some(Challenge::Basic)),
            (
                "Bearer realm=\"https://a/t\",service=\"s\",scope=\"repository:a:pull,push\"",
                bearer("https://a/t", Some("s"), Some("repository:a:pull,push")),
            ),
            ("bearer realm=r, service = s", bearer("r", None, None)),
            ("Bearer realm=\"r", None),
            ("Bearer service=\"s\"", None),
            ("Negotiate", None),
            ("", None),
        ] {
            let parsed = Challenge::parse(header);
            match (&parsed, &wanted) {
                // Spaces around the sign are nobody's; the realm counts.
                (
                    Some(Challenge::Bearer { realm, .. }),
                    Some(Challenge::Bearer { realm: other, service: None, .. }),
                ) => assert_eq!(realm, other),
                _ => assert_eq!(parsed, wanted, "{header}"),
            }
        }
    }

    #[test]
    fn credentials_are_for_their_host_only() {
        let text = br#"{"auths": {
            "https://a.org/v1/": {"auth": "YTpi"}, "b.org": {}, "c.org": {"auth": "x\ny"}
        }}"#;
        assert_eq!(credentials_in(text, "a.org").as_deref(), Some("YTpi"));
        for host in ["b.org", "c.org", "org", "evil-a.org", ""] {
            assert_eq!(credentials_in(text, host), None, "{host}");
        }
        assert_eq!(credentials_in(b"no JSON", "a.org"), None);
    }
}
