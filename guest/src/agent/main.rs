//! The program that `microvm compare` runs in each of its subjects: the same file
//! on the host, in namespaces and in a virtual machine.
//!
//! ```text
//!  agent hello                     says that it runs, and ends
//!  agent hold                      says so, and stays until its input ends
//!  agent measure GROUP,… US N DIR  times operations: batches of US microseconds, N of them
//!  agent surface                   makes many different system calls, none of which does anything
//!  agent exits DIR                 does some of them, each between two lines that it waits for
//!  agent probe NONCE PATH PORT     tells what it sees and may do
//!  agent boot WORD…                the first process of a guest: does that, and powers off
//! ```
//!
//! What it says are lines that begin with `@`; a console's other lines do not.

mod disk;
mod exits;
mod kernel;
mod load;
mod net;
mod probe;
mod surface;
mod timing;

use guest::network;
use guest::system::{Fault, make_directory, mount, mount_kernel_files, plain, power_off};
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use timing::Budget;

fn main() {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    let words: Vec<&str> = words.iter().filter_map(|word| word.to_str()).collect();
    let status = match words.as_slice() {
        ["true"] => 0,
        ["hello"] => say(&ready()),
        ["hold", ..] => hold(),
        ["measure", groups, microseconds, batches, place] => {
            measure(groups, Budget::new(microseconds, batches), Path::new(place))
        }
        ["exits", place] => {
            say(&ready());
            exits::steps(Path::new(place));
            say("@end")
        }
        ["surface"] => {
            surface::call_all();
            say("@end")
        }
        ["probe", nonce, path, port] => {
            probe::tell(nonce, Path::new(path), port.parse().unwrap_or(0));
            say("@end")
        }
        ["boot", rest @ ..] => boot(rest),
        _ => {
            eprintln!("agent: this is for microvm compare");
            2
        }
    };
    std::process::exit(status);
}

/// One line, in one write. 1 if nobody reads it.
fn say(line: &str) -> i32 {
    let mut out = io::stdout().lock();
    let written = out.write_all(format!("{line}\n").as_bytes()).and_then(|()| out.flush());
    i32::from(written.is_err())
}

/// With the time since the kernel's start, which in a guest is its own.
fn ready() -> String {
    format!("@ready {}", timing::now(libc::CLOCK_BOOTTIME))
}

fn hold() -> i32 {
    say(&ready());
    // A console has no end: whoever holds a guest there ends the machine.
    let mut buffer = [0; 64];
    while let Ok(1..) = io::stdin().read(&mut buffer) {}
    0
}

/// A measurement by its name; values of batches, or why there are none.
fn report(name: &str, values: io::Result<Vec<f64>>) {
    match values {
        Ok(values) => {
            let values: Vec<String> = values.iter().map(|value| format!("{value:.3}")).collect();
            say(&format!("@m {name} {}", values.join(" ")));
        }
        Err(error) => {
            say(&format!("@n {name} {}", plain(&error)));
        }
    }
}

fn measure(groups: &str, budget: Budget, place: &Path) -> i32 {
    for group in groups.split(',') {
        match group {
            "kernel" => kernel::measure(budget),
            "load" => load::measure(budget),
            "disk" => disk::measure(budget, place),
            "net" => net::measure(budget),
            other => report(other, Err(io::Error::other("no such group"))),
        }
    }
    say("@end")
}

/// Makes a guest of the bare kernel, runs the agent again there, as its child.
fn boot(words: &[&str]) -> i32 {
    let made = prepare();
    if let Err(error) = &made {
        say(&format!("@n boot {error}"));
    }
    // The disk is whatever this machine has.
    let disk = ["/dev/vda", "/dev/sda"].map(PathBuf::from).into_iter().find(|path| path.exists());
    let disk = disk.unwrap_or_else(|| "/tmp".into());
    let words: Vec<&OsStr> = words
        .iter()
        .map(|word| if *word == "DISK" { disk.as_os_str() } else { OsStr::new(word) })
        .collect();
    if let Err(error) = Command::new("/agent").args(words).status() {
        say(&format!("@n boot {error}"));
    }
    power_off()
}

fn prepare() -> Result<(), Fault> {
    mount_kernel_files()?;
    make_directory(Path::new("/tmp"))?;
    mount("tmpfs", Path::new("/tmp"), "tmpfs", 0, "")?;
    network::bring_up(&[])
}
