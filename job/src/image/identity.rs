//! Who an image's user is: names looked up in the image's own `/etc/passwd` and
//! `/etc/group`, never in the host's.

use super::config::Identity;
use super::content::Contents;
use super::error::{Error, Result};
use super::tree::{Kind, Tree};

/// More than any of the two files has.
const MOST: u64 = 4 << 20;
/// Groups that Linux lets a process have.
const GROUPS: usize = 65_536;

/// Resolves `NAME|UID[:GROUP|GID]`. A number need not be in the files; without a
/// group it is the user's, and those that list the user are there, too.
pub fn resolve(user: &str, tree: &Tree, contents: &Contents) -> Result<Identity> {
    let passwd = read(tree, contents, b"etc/passwd")?;
    let group = read(tree, contents, b"etc/group")?;
    resolve_in(user, &passwd, &group)
}

fn read(tree: &Tree, contents: &Contents, path: &[u8]) -> Result<String> {
    let Some(Kind::File(content)) = tree.find_file(path).map(|id| &tree.node(id).kind) else {
        return Ok(String::new());
    };
    let bytes = contents.read(content, MOST)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn resolve_in(user: &str, passwd: &str, group: &str) -> Result<Identity> {
    let (user, wanted) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (user, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let unknown = |what: &str, name: &str| {
        let name = name.escape_debug();
        let reason = format!("the image's {what} does not have {name}");
        Error::malformed("image's user", reason)
    };
    let number: Option<u32> = user.parse().ok();
    // name:password:uid:gid:comment:home:shell
    let known = passwd
        .lines()
        .map(fields)
        .find(|line| line.first() == Some(&user) || (number.is_some() && parse(line, 2) == number));
    let known = known.unwrap_or_default();
    let uid = parse(&known, 2).or(number).ok_or_else(|| unknown("/etc/passwd", user))?;
    let home = known.get(5).filter(|home| home.starts_with('/')).map(|home| (*home).to_owned());
    let name = known.first().copied().unwrap_or_default();
    if let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty()) {
        // name:password:gid:members
        let found = group.lines().map(fields).find(|line| line.first() == Some(&wanted));
        let gid = found.and_then(|line| parse(&line, 2)).or_else(|| wanted.parse().ok());
        let gid = gid.ok_or_else(|| unknown("/etc/group", wanted))?;
        return Ok(Identity { uid, gid, groups: Vec::new(), home });
    }
    let member = |line: &Vec<&str>| {
        !name.is_empty() && line.get(3).is_some_and(|all| all.split(',').any(|one| one == name))
    };
    let groups = group.lines().map(fields).filter(member).filter_map(|line| parse(&line, 2));
    let groups = groups.take(GROUPS).collect();
    Ok(Identity { uid, gid: parse(&known, 3).unwrap_or(0), groups, home })
}

fn fields(line: &str) -> Vec<&str> {
    line.split(':').collect()
}

fn parse(line: &[&str], at: usize) -> Option<u32> {
    line.get(at)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\napp:x:100:200::/srv/app:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nstaff:x:50:app,other\napp:x:200:\nwheel:x:10:root\n:x:7:";

    #[test]
    fn users_are_the_images_own() {
        let identity = |uid, gid, groups: &[u32], home: Option<&str>| Identity {
            uid,
            gid,
            groups: groups.to_vec(),
            home: home.map(str::to_owned),
        };
        for (user, wanted) in [
            ("", identity(0, 0, &[10], Some("/root"))),
            ("app", identity(100, 200, &[50], Some("/srv/app"))),
            ("100", identity(100, 200, &[50], Some("/srv/app"))),
            ("app:staff", identity(100, 50, &[], Some("/srv/app"))),
            ("app:77", identity(100, 77, &[], Some("/srv/app"))),
            ("4000", identity(4000, 0, &[], None)),
            ("4000:4000", identity(4000, 4000, &[], None)),
            (":staff", identity(0, 50, &[], Some("/root"))),
        ] {
            assert_eq!(resolve_in(user, PASSWD, GROUP).unwrap(), wanted, "{user}");
        }
    }

    #[test]
    fn users_that_the_image_does_not_have_are_named() {
        for user in ["nobody", "app:nogroup", "-1", "4294967296"] {
            let said = resolve_in(user, PASSWD, GROUP).unwrap_err().to_string();
            assert!(said.contains(user.split(':').next_back().unwrap()), "{said}");
        }
    }
}
