//! Who has started whom.

use std::ptr;

/// Ends every process that comes from this one, but for those named. A runtime's
/// helpers are ours as well once their parents have ended.
pub fn end_others(but: &[libc::pid_t]) {
    for _ in 0..50 {
        let others: Vec<_> = children(std::process::id() as i32)
            .into_iter()
            .filter(|pid| !but.contains(pid))
            .collect();
        if others.is_empty() {
            return;
        }
        for pid in others {
            // SAFETY: the pid is a child of ours that has not been waited for.
            unsafe {
                libc::kill(pid, libc::SIGKILL);
                libc::waitpid(pid, ptr::null_mut(), libc::__WALL);
            }
        }
    }
}

/// Who has this parent.
fn children(parent: i32) -> Vec<libc::pid_t> {
    processes().into_iter().filter(|(_, of)| *of == parent).map(|(pid, _)| pid).collect()
}

/// All processes and their parents.
pub fn processes() -> Vec<(libc::pid_t, libc::pid_t)> {
    let Ok(all) = std::fs::read_dir("/proc") else { return Vec::new() };
    let parent = |pid: libc::pid_t| -> Option<libc::pid_t> {
        // The name, in brackets, may hold anything; the parent is the second after.
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        text.get(text.rfind(')')? + 1..)?.split_whitespace().nth(1)?.parse().ok()
    };
    let pids = all.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| Some((pid, parent(pid)?))).collect()
}
