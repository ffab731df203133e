//! What an image of Singularity's says of how it is run: its own program, and
//! scripts that set variables.

use guest::protocol::Spec;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// The image's own program.
const RUNSCRIPT: &str = "/.singularity.d/runscript";
/// Where the scripts are.
const ENVIRONMENT: &str = "/.singularity.d/env";
/// Lets each of them set its variables, and becomes the program.
const SCRIPT: &[u8] = b"for script in /.singularity.d/env/*.sh; do \
    if [ -f \"$script\" ]; then . \"$script\"; fi; done; exec \"$0\" \"$@\"";

/// The whole command, in the job's root file system.
pub fn command(spec: &Spec) -> Vec<Vec<u8>> {
    let program = spec.runscript && is_program(Path::new(RUNSCRIPT));
    let scripts = spec.runscript && Path::new(ENVIRONMENT).is_dir();
    complete(&spec.arguments, program, scripts)
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

fn complete(arguments: &[Vec<u8>], program: bool, scripts: bool) -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = Vec::new();
    if program {
        all.push(RUNSCRIPT.into());
    }
    all.extend_from_slice(arguments);
    if scripts && !all.is_empty() {
        let shell = [&b"/bin/sh"[..], b"-c", SCRIPT].map(<[u8]>::to_vec);
        all.splice(0..0, shell);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_the_images_own_programs_where_it_has_one() {
        let words = |words: &[&str]| -> Vec<Vec<u8>> { words.iter().map(|&w| w.into()).collect() };
        let given = words(&["a", "b"]);
        assert_eq!(complete(&given, false, false), given);
        assert_eq!(complete(&given, true, false), words(&[RUNSCRIPT, "a", "b"]));
        let all = complete(&given, true, true);
        assert_eq!(all[..2], words(&["/bin/sh", "-c"]));
        assert_eq!(all[3..], words(&[RUNSCRIPT, "a", "b"]));
        assert_eq!(complete(&[], true, false), words(&[RUNSCRIPT]));
        assert!(complete(&[], false, true).is_empty());
    }
}
