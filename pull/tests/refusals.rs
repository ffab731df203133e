//! The built program, as `microvm pull` calls it.

use std::process::Command;

#[test]
fn what_can_not_be_fetched_is_told_in_one_line() {
    let directory = tempfile::tempdir().unwrap();
    for (words, part) in [
        (&["https", "app"][..], "names no registry"),
        (&["https", "127.0.0.1:1/app"], "127.0.0.1:1/app:latest"),
        (&["https", "127.0.0.1:1/app\n", "app.img"], "\\n"),
        (&["https"], "call that"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_microvm-pull"))
            .args(words)
            .current_dir(&directory)
            .env("XDG_CACHE_HOME", directory.path().join("cache"))
            .output()
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(3), "{text}");
        assert!(text.starts_with("microvm: ") && text.lines().count() == 1, "{text}");
        assert!(text.contains(part), "{words:?}: {text}");
        assert!(!directory.path().join("app.img").exists());
    }
}
