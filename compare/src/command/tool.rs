//! Containers that other programs make.

use super::{Work, Workshop, cannot, placed};
use crate::Error;
use crate::cgroup;
use crate::place::Shown;
use crate::spawn::{Order, last_words};
use crate::subject::Tool;
use serde_json::{Value, json};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use vmm::host::find_command;

/// Where systemd-nspawn keeps a directory for each container.
const PROPAGATED: &str = "/run/systemd/nspawn/propagate";

/// What is in a container.
struct Inside {
    root: PathBuf,
    /// The host's directories in it, where it runs the host's programs.
    shown: Vec<Shown>,
    directory: String,
    words: Vec<String>,
}

impl Inside {
    fn root(&self) -> String {
        self.root.to_string_lossy().into_owned()
    }

    fn is_hosts(&self) -> bool {
        !self.shown.is_empty()
    }
}

impl Workshop {
    pub(super) fn tool(&self, tool: Tool, work: Work) -> Result<Order, Error> {
        let program = find_command(tool.program()).ok_or_else(|| cannot("not installed"))?;
        let inside = self.inside(work)?;
        let words = match tool {
            Tool::Bwrap => bwrap(inside),
            Tool::Crun | Tool::Runc => self.runtime(tool, &program, &inside)?,
            Tool::Podman => self.podman(inside),
            Tool::Nspawn => self.nspawn(inside),
            Tool::Apptainer if inside.is_hosts() => {
                return Err(cannot("it needs an image: crun and ns:all run the host's programs"));
            }
            Tool::Apptainer => apptainer(inside),
        };
        let order = Order::new(&program, words).map_err(Error::host("arguments"))?;
        Ok(match tool {
            // Several at once share the directory, as those of other tools do.
            Tool::Nspawn => order.with(c"SYSTEMD_NSPAWN_LOCK=0"),
            _ => order,
        })
    }

    /// The agent has a root of its own. A program of the host's has the host's files,
    /// and is where it was started if that is among them.
    fn inside(&self, work: Work) -> Result<Inside, Error> {
        match work {
            Work::Agent(agent) | Work::Counted(agent) => {
                let mut words = vec!["/agent".to_owned()];
                words.extend(placed(agent, "/scratch"));
                let directory = "/".to_owned();
                Ok(Inside { root: self.place.rootfs(), shown: Vec::new(), directory, words })
            }
            Work::Command(_) | Work::Parallel(_) => {
                let (program, rest) = self.on_host(work)?;
                let mut words = vec![program.to_string_lossy().into_owned()];
                words.extend(rest);
                let (root, shown) = self.place.host().map_err(Error::host("root of containers"))?;
                let here = env::current_dir().unwrap_or_else(|_| "/".into());
                let there = shown.iter().any(|shown| here.starts_with(&shown.path));
                let directory = if there { here } else { PathBuf::from("/") };
                let directory = directory.to_string_lossy().into_owned();
                Ok(Inside { root, shown, directory, words })
            }
        }
    }

    fn runtime(&self, tool: Tool, program: &Path, inside: &Inside) -> Result<Vec<String>, Error> {
        let bundle = self.bundle(program, inside)?.to_string_lossy().into_owned();
        let state = self.state(tool).to_string_lossy().into_owned();
        let mut words = vec!["--root".to_owned(), state];
        if tool == Tool::Crun && !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            words.extend(owned(&["--cgroup-manager", "disabled"]));
        }
        words.extend(owned(&["run", "--bundle", &bundle, &self.container()]));
        Ok(words)
    }

    fn podman(&self, inside: Inside) -> Vec<String> {
        let of = |name: &str| self.place.path().join(name).to_string_lossy().into_owned();
        let mut words = owned(&["--root", &of("podman"), "--runroot", &of("prun")]);
        words.extend(owned(&["--log-level", "error", "run", "--rm", "--interactive"]));
        words.extend(owned(&["--network", "none", "--log-driver", "none"]));
        if inside.is_hosts() {
            words.extend(owned(&["--env-host", "--workdir", &inside.directory]));
        }
        for Shown { path, writable } in &inside.shown {
            let how = if *writable { "rw" } else { "ro" };
            words.extend(owned(&["--volume", &format!("{path}:{path}:{how}")]));
        }
        words.extend(owned(&["--rootfs", &inside.root()]));
        words.extend(inside.words);
        words
    }

    fn nspawn(&self, inside: Inside) -> Vec<String> {
        let machine = format!("--machine={}", self.container());
        // Without the second and third it asks systemd for a scope, which a container's
        // host need not have.
        let mut words = owned(&["--quiet", "--register=no", "--keep-unit", &machine]);
        words.extend(owned(&["--private-network", "--pipe", "--directory", &inside.root()]));
        if inside.is_hosts() {
            // What it would otherwise write to /etc is the host's.
            words.extend(owned(&["--resolv-conf=off", "--timezone=off", "--link-journal=no"]));
            words.push(format!("--chdir={}", inside.directory));
            for (name, value) in variables().filter(|(name, _)| is_identifier(name)) {
                words.push(format!("--setenv={name}={value}"));
            }
        }
        for Shown { path, writable } in &inside.shown {
            words.push(format!("--bind{}={path}", if *writable { "" } else { "-ro" }));
        }
        words.extend(inside.words);
        words
    }

    /// A name that no other container has.
    pub(super) fn container(&self) -> String {
        format!("{}{}", prefix(), self.next())
    }

    /// Where an OCI runtime keeps what it knows of its containers.
    fn state(&self, tool: Tool) -> PathBuf {
        self.place.path().join(format!("state-{}", tool.program()))
    }

    /// Takes away what runtimes have left of containers that were killed.
    pub fn tidy(&self) {
        for tool in [Tool::Crun, Tool::Runc] {
            let state = self.state(tool);
            let Ok(left) = fs::read_dir(&state) else { continue };
            for container in left.flatten() {
                let Some(program) = find_command(tool.program()) else { continue };
                let mut delete = Command::new(program);
                delete
                    .arg("--root")
                    .arg(&state)
                    .args(["delete", "--force"])
                    .arg(container.file_name());
                let _ = delete
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .status();
            }
        }
        let ours = prefix();
        cgroup::sweep(&ours);
        // systemd-nspawn leaves one for each where /run is no tmpfs. They are empty.
        for entry in fs::read_dir(PROPAGATED).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&ours) {
                let _ = fs::remove_dir(entry.path());
            }
        }
    }

    /// A bundle as the runtime itself would describe it, but for its program.
    fn bundle(&self, runtime: &Path, inside: &Inside) -> Result<PathBuf, Error> {
        let bundle = self.place.path().join(format!("bundle{}", self.next()));
        fs::create_dir(&bundle).map_err(Error::host("bundle"))?;
        let mut spec = Command::new(runtime);
        spec.arg("spec").current_dir(&bundle).stdin(Stdio::null());
        // SAFETY: geteuid has no preconditions.
        if unsafe { libc::geteuid() } != 0 {
            spec.arg("--rootless");
        }
        let made = spec.output().map_err(Error::host("OCI runtime"))?;
        if !made.status.success() {
            let text = String::from_utf8_lossy(&made.stderr).into_owned();
            return Err(cannot(
                last_words(&text).unwrap_or_else(|| "it makes no configuration".into()),
            ));
        }
        let path = bundle.join("config.json");
        let text = fs::read(&path).map_err(Error::host("bundle"))?;
        let mut config: Value = serde_json::from_slice(&text).map_err(|e| cannot(e.to_string()))?;
        config["process"]["args"] = json!(inside.words);
        config["process"]["terminal"] = json!(false);
        config["process"]["cwd"] = json!(inside.directory);
        config["root"] = json!({ "path": inside.root, "readonly": false });
        if inside.is_hosts() {
            let all: Vec<_> = variables().map(|(name, value)| format!("{name}={value}")).collect();
            config["process"]["env"] = json!(all);
        }
        if let Some(mounts) = config["mounts"].as_array_mut() {
            mounts.extend(inside.shown.iter().map(bind));
        }
        fs::write(&path, config.to_string()).map_err(Error::host("bundle"))?;
        Ok(bundle)
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        self.tidy();
    }
}

/// Bubblewrap mounts the host's root itself.
fn bwrap(inside: Inside) -> Vec<String> {
    let mut words = owned(&["--unshare-all", "--die-with-parent"]);
    words.extend(match inside.is_hosts() {
        true => owned(&["--dev-bind", "/", "/", "--proc", "/proc", "--"]),
        false => owned(&[
            "--bind",
            &inside.root(),
            "/",
            "--proc",
            "/proc",
            "--dev",
            "/dev",
            "--tmpfs",
            "/tmp",
            "--",
        ]),
    });
    words.extend(inside.words);
    words
}

fn apptainer(inside: Inside) -> Vec<String> {
    let mut words = owned(&["--silent", "exec", "--containall", "--writable", &inside.root()]);
    words.extend(inside.words);
    words
}

/// A mount as OCI's runtime specification has it.
fn bind(Shown { path, writable }: &Shown) -> Value {
    let how = if *writable { "rw" } else { "ro" };
    json!({ "destination": path, "source": path, "type": "bind", "options": ["rbind", how] })
}

/// The caller's environment, as far as it is text.
fn variables() -> impl Iterator<Item = (String, String)> {
    env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// Letters, digits and underscores: systemd-nspawn takes no other names of variables.
fn is_identifier(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_';
    name.chars().all(fits) && name.starts_with(|c: char| !c.is_ascii_digit())
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// How the names of all containers and control groups of this process begin.
fn prefix() -> String {
    format!("microvm-compare-{}-", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_variables_that_nspawn_takes() {
        for (name, fits) in
            [("PATH", true), ("_a1", true), ("1a", false), ("A-B", false), ("", false)]
        {
            assert_eq!(is_identifier(name), fits, "{name:?}");
        }
    }
}
