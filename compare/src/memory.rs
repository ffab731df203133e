//! What an instance takes of the host's memory.

use crate::processes::processes;
use std::fs;

/// KiB of a process and all that come from it: `Pss` of `/proc/PID/smaps_rollup`,
/// where pages that are shared count in parts.
pub fn pss(root: libc::pid_t) -> Result<f64, String> {
    let all = processes();
    let mut tree = vec![root];
    let mut next = 0;
    while let Some(parent) = tree.get(next).copied() {
        tree.extend(all.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    let mut sum = 0.0;
    for pid in tree {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"));
        let text = text.map_err(|error| format!("smaps_rollup: {}", vmm::plain(&error)))?;
        sum += kib(&text, "Pss:").unwrap_or(0.0);
    }
    Ok(sum)
}

/// KiB that the host could give to new processes.
pub fn available() -> Option<f64> {
    kib(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

/// MiB of the host.
pub fn total() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    kib(&text, "MemTotal:").map_or(0, |kib| (kib / 1024.0) as u64)
}

fn kib(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_the_host_has_more() {
        let own = pss(std::process::id() as i32).unwrap();
        assert!(own > 100.0 && own < available().unwrap(), "{own}");
        assert!(total() as f64 * 1024.0 > own);
    }
}
