//! What the emulated host boots into.

use crate::job::{self, Job};
use crate::linux::{Kernel, Module};
use crate::{Options, closure, cpio};
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

/// The contents of one initramfs.
pub struct Plan<'a> {
    init: &'a Path,
    kernel: &'a Kernel,
    modules: Vec<Module>,
    packed: Vec<PathBuf>,
}

impl<'a> Plan<'a> {
    /// Just the init so far.
    pub fn new(init: &'a Path, kernel: &'a Kernel) -> Self {
        Self { init, kernel, modules: Vec::new(), packed: Vec::new() }
    }

    /// Adds modules with what they depend on. Returns what init must load, in
    /// order, with `parameters` (module, parameters) in place.
    pub fn modules(&mut self, names: &[&str], parameters: &[(&str, &str)]) -> Result<Vec<String>> {
        let mut load = Vec::new();
        for module in self.kernel.modules(names)? {
            if self.modules.contains(&module) {
                continue;
            }
            let own = parameters.iter().find(|(name, _)| *name == module.name);
            load.push(match own {
                Some((_, words)) => format!("{} {words}", module.file),
                None => module.file.clone(),
            });
            self.modules.push(module);
        }
        Ok(load)
    }

    /// Adds the command, the files the caller names and all they need, to be
    /// found under their own paths.
    pub fn pack(&mut self, options: &Options, job: &Job) -> Result<()> {
        self.packed = closure::of(options, job)?;
        Ok(())
    }
}

/// What makes an emulated kernel start fast and keep steady time: no
/// mitigations, watchdogs, self-tests or certificates, and no calibration
/// against clocks that are emulated themselves. The initcalls left out cost 500
/// million instructions and serve the function tracer, kprobes and entropy.
const PARAMETERS: &str = "panic=-1 nokaslr mitigations=off tsc=reliable no_timer_check \
    nowatchdog audit=0 apparmor=0 selinux=0 random.trust_cpu=on cryptomgr.notests \
    raid=noautodetect 8250.nr_uarts=2 rcupdate.rcu_expedited=1 rodata=off \
    initcall_blacklist=jent_mod_init,trace_eval_init,init_kprobe_trace,\
load_system_certificate_list,bpf_tcp_ca_kfunc_init";

/// The kernel's parameters: `console`, ours, and last (so that they win) those a
/// developer of the rig sets in `MICROVM_RIG_KERNEL_PARAMETERS`.
pub fn kernel_parameters(console: &str) -> String {
    let more = std::env::var("MICROVM_RIG_KERNEL_PARAMETERS").unwrap_or_default();
    format!("{console} {PARAMETERS} {more}")
}

/// Writes the archive.
pub fn write(plan: &Plan<'_>, job: &Job, target: &Path) -> Result<()> {
    let file = File::create(target).with_context(|| format!("creating {}", target.display()))?;
    let mut archive = cpio::Archive::new(BufWriter::new(file));
    let init = fs::read(plan.init).with_context(|| format!("reading {}", plan.init.display()))?;
    archive.file(Path::new("init"), 0o755, &init)?;
    for directory in ["dev", "proc", "sys", "new"] {
        archive.directory(Path::new(directory))?;
    }
    // The kernel opens it for PID 1 before anything is mounted.
    archive.device(Path::new("dev/console"), 5, 1)?;
    for module in &plan.modules {
        let path = plan.kernel.module_path(module);
        archive.copy(&path, &Path::new(job::MODULES_PATH).join(&module.file))?;
    }
    archive.file(Path::new(job::JOB_PATH), 0o600, &job.encode())?;
    if !plan.packed.is_empty() {
        archive.directory(Path::new(job::TREE_PATH))?;
    }
    for path in &plan.packed {
        let inside = path.strip_prefix("/").unwrap_or(path);
        archive.copy(path, &Path::new(job::TREE_PATH).join(inside))?;
    }
    archive.finish()?;
    Ok(())
}
