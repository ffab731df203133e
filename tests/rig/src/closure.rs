//! Which files a command needs when the host's own are out of reach.

use crate::Options;
use crate::job::Job;
use crate::tools;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

/// The command's program, every existing absolute path or file among its
/// arguments, the files asked for, and the libraries of all programs.
pub fn of(options: &Options, job: &Job) -> Result<Vec<PathBuf>> {
    let mut found = BTreeSet::new();
    let (program, arguments) = job.command.split_first().context("no command")?;
    let program = resolve(program, Path::new(&job.directory))
        .with_context(|| format!("no such program: {}", Path::new(program).display()))?;
    add(&program, &mut found)?;
    for argument in arguments {
        let path = Path::new(&job.directory).join(argument);
        if path.is_file() {
            add(&path, &mut found)?;
        }
    }
    for file in &options.files {
        let path = std::path::absolute(file)?;
        if !path.exists() {
            anyhow::bail!("no such file: {}", path.display());
        }
        add(&path, &mut found)?;
    }
    Ok(found.into_iter().collect())
}

/// As `execvp` finds it.
fn resolve(program: &OsStr, directory: &Path) -> Option<PathBuf> {
    let path = Path::new(program);
    if path.components().count() > 1 || path.is_absolute() {
        let path = directory.join(path);
        return path.is_file().then_some(path);
    }
    tools::find(program.to_str()?)
}

/// Adds `path`; if it is reached by links, those and where they lead too; if
/// it is a program, its libraries.
fn add(path: &Path, found: &mut BTreeSet<PathBuf>) -> Result<()> {
    let path = normal(path);
    if !follow_links(&path, found)? {
        return Ok(());
    }
    if path.is_file() {
        for library in libraries(&path) {
            add(&library, found)?;
        }
    }
    Ok(())
}

/// Walks `path` from the root, recording each link on the way and, at the end,
/// the file itself. Returns whether it was new.
fn follow_links(path: &Path, found: &mut BTreeSet<PathBuf>) -> Result<bool> {
    let mut walked = PathBuf::new();
    let mut components = path.components();
    while let Some(component) = components.next() {
        walked.push(component);
        let metadata = fs::symlink_metadata(&walked)
            .with_context(|| format!("packing {}", walked.display()))?;
        if metadata.is_symlink() {
            let target = fs::read_link(&walked)?;
            let base = walked.parent().unwrap_or(Path::new("/")).join(target);
            found.insert(walked);
            return follow_links(&normal(&base.join(components.as_path())), found);
        }
    }
    Ok(found.insert(walked))
}

/// Without `.` and `..`, which an archive cannot hold.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                normal.pop();
            }
            other => normal.push(other),
        }
    }
    normal
}

/// The shared libraries of a program: what `ldd` prints; none if it is static.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let is_elf = fs::File::open(program).is_ok_and(|mut file| {
        let mut magic = [0; 4];
        std::io::Read::read_exact(&mut file, &mut magic).is_ok() && magic == *b"\x7fELF"
    });
    if !is_elf {
        return Vec::new();
    }
    let output =
        Command::new("ldd").arg(program).stdin(Stdio::null()).stderr(Stdio::null()).output();
    output.map_or_else(|_| Vec::new(), |output| parse_ldd(&String::from_utf8_lossy(&output.stdout)))
}

fn parse_ldd(text: &str) -> Vec<PathBuf> {
    text.lines()
        .flat_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_lines_of_every_form() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\
            \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n\
            \tnot a dynamic executable\n\tlibz.so => not found\n";
        assert_eq!(
            parse_ldd(text),
            [
                PathBuf::from("/lib/x86_64-linux-gnu/libc.so.6"),
                PathBuf::from("/lib64/ld-linux-x86-64.so.2")
            ]
        );
    }

    #[test]
    fn dots_are_taken_out() {
        assert_eq!(normal(Path::new("/a/./b/../c")), Path::new("/a/c"));
    }
}
