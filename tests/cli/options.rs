//! Options, configuration files, and what is said when they are wrong.

use crate::{microvm, refused, run, stderr, stdout};
use std::io::Write;
use tempfile::NamedTempFile;

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

/// Runs with `--config` a file of this text and `--print-config`.
fn print_config(text: &str, words: &[&str]) -> std::process::Output {
    let file = file(text);
    microvm().arg("--config").arg(file.path()).args(words).arg("--print-config").output().unwrap()
}

#[test]
fn help_documents_everything() {
    let output = run(&["--help"]);
    let text = stdout(&output);
    assert!(output.status.success());
    assert_eq!(stderr(&output), "");
    for word in [
        "--kernel",
        "--rootfs",
        "--initrd",
        "--cmdline",
        "--cpus",
        "--memory",
        "--disk",
        "--net",
        "--vsock",
        "--share",
        "--serial",
        "--config",
        "--print-config",
        "--log",
        "--metrics",
        "--mode",
        "--disk-bus",
        "--net-model",
        "--board",
        "--intr",
        "--pv-features",
        "--cdrom",
        "--control",
        "microvm ctl",
        "doctor",
        "spectrum",
        "Examples:",
        "Exit status:",
        "Ctrl-a x",
        "What to boot:",
        "The machine:",
    ] {
        assert!(text.contains(word), "{word} is missing in\n{text}");
    }
    assert!(stdout(&run(&["-h"])).len() < text.len(), "-h is the short one");
    assert!(stdout(&run(&["--version"])).starts_with("microvm "));
}

#[test]
fn a_command_line_that_cannot_be_read_is_refused_in_one_line() {
    for (words, part) in [
        (&[][..], "--kernel"),
        (&["--kernel"], "--kernel"),
        (&["--kernel", "k", "--memory", "lots"], "--memory"),
        (&["--kernel", "k", "--cpus", "-1"], "-1"),
        (&["--kernel", "k", "--disk", "a,colour=red"], "colour"),
        (&["--kernel", "k", "--net", "tap="], "tap="),
        (&["--kernel", "k", "--net", "user,hostfwd=tcp::22"], "hostfwd=tcp::22"),
        (&["--kernel", "k", "--net", "user,backend=slirp"], "passt"),
        (&["--kernel", "k", "--serial", "printer"], "stdio"),
        (&["--kernel", "k", "--bios", "x"], "--bios"),
        (&["--kernel", "k", "--mode", "xen"], "hvm-pv"),
        (&["--kernel", "k", "--disk-bus", "scsi"], "ide-pio"),
        (&["--kernel", "k", "--pv-features", "sun=off"], "steal-time"),
        (&["--kernel", "k", "doctor"], "doctor"),
        (&["k"], "k"),
    ] {
        let text = refused(&run(words), 2);
        assert!(text.contains(part), "{words:?}: {text}");
    }
}

#[test]
fn values_that_no_machine_can_have_are_refused() {
    for (words, part) in [
        (["--cpus", "0"], "1 to 32"),
        (["--cpus", "33"], "1 to 32"),
        (["--memory", "1M"], "32M"),
        (["--cmdline", "a\nb"], "one line"),
        (["--board", "bios"], "leave out --kernel"),
    ] {
        let text = refused(&run(&[&["--kernel", "k"], &words[..]].concat()), 3);
        assert!(text.contains(part), "{words:?}: {text}");
    }
}

#[test]
fn what_is_printed_can_be_read_again() {
    let words = [
        "--kernel",
        "/boot/k",
        "--rootfs",
        "r,,1.img,readonly=on",
        "--initrd",
        "i",
        "--cmdline",
        "quiet \"q\"",
        "--cpus",
        "4",
        "--memory",
        "1536M",
        "--disk",
        "path=a,serial=S1",
        "--net",
        "tap=t0,mac=02:00:00:00:00:01",
        "--net",
        "user,hostfwd=tcp::2222-:22,hostfwd=udp:0.0.0.0:53-:53,backend=internal",
        "--vsock",
        "uds=v,cid=9",
        "--serial",
        "file=log",
        "--mode",
        "pvhvm",
        "--disk-bus",
        "ide-pio",
        "--net-model",
        "ne2000",
        "--board",
        "direct",
        "--pv-features",
        "eoi=off",
        "--cdrom",
        "cd.iso",
        "--print-config",
    ];
    let first = run(&words);
    assert!(first.status.success(), "{}", stderr(&first));
    let again = print_config(&stdout(&first), &[]);
    assert_eq!(stdout(&again), stdout(&first));
    assert!(stdout(&first).contains("\"memory\": \"1536M\""));
    let fewer = print_config(&stdout(&first), &["--memory", "64M", "--disk", "c"]);
    let text = stdout(&fewer);
    assert!(
        text.contains("\"64M\"") && text.contains("\"S1\"") && text.contains("\"c\""),
        "{text}"
    );
}

#[test]
fn configuration_files_that_are_none_are_refused() {
    for (text, part) in [
        ("", "EOF"),
        ("{\"kernel\": ", "line 1"),
        ("[]", "struct Config"),
        ("{\"kernel\": \"k\", \"colour\": 1}", "colour"),
        ("{\"kernel\": \"k\", \"memory\": \"1Q\"}", "1Q"),
        ("{\"kernel\": \"k\", \"cpus\": 99}", "1 to 32"),
    ] {
        let output = print_config(text, &[]);
        let said = refused(&output, 3);
        assert!(said.contains(part), "{text}: {said}");
    }
    assert!(refused(&print_config("{}", &[]), 2).contains("--kernel"));
    let large = format!("{{\"kernel\": \"{}\"}}", "k".repeat(2 << 20));
    assert!(refused(&print_config(&large, &[]), 3).contains("1 MiB"));
    for path in ["/nonexistent/config", "/", "/dev/null", "/dev/zero"] {
        let text = refused(&run(&["--config", path, "--print-config"]), 3);
        assert!(text.contains(path), "{text}");
    }
}

#[test]
fn output_that_cannot_be_written_is_told() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = microvm().args(["--kernel", "k", "--print-config"]).stdout(full).output().unwrap();
    assert!(refused(&output, 8).contains("standard output"));
}

#[test]
fn kernels_that_cannot_be_opened_are_named() {
    let empty = file("");
    for path in ["/nonexistent/vmlinux", "/", empty.path().to_str().unwrap()] {
        let text = refused(&run(&["--kernel", path, "--serial", "off"]), 3);
        assert!(text.contains(path), "{text}");
    }
}

#[test]
fn what_is_wrong_with_a_job_is_told_with_a_status_of_its_own() {
    let kernel = file("");
    let kernel = kernel.path().to_str().unwrap();
    for (words, part) in [
        (&["run"][..], "IMAGE"),
        (&["run", "--cpus", "x", "host", "true"], "--cpus"),
        (&["run", "--net", "tap=t0", "host", "true"], "address=ADDRESS/PREFIX"),
        (&["run", "--net", "segment=/x,stations=2", "host", "true"], "none, user or tap"),
        (&["run", "--join", "some", "host", "true"], "auto or never"),
        (&["run", "--user", "me", "host", "true"], "caller or image"),
        (&["run", "--kernel", kernel, "--user", "image", "host", "true"], "names no user"),
        (&["run", "--bind", "/:/x:rx", "host", "true"], "ro or rw"),
        (&["run", "--isolation", "some", "host", "true"], "strict"),
        (&["run", "--kernel", kernel, "/nonexistent/image", "true"], "/nonexistent/image"),
        (&["run", "--kernel", kernel, "host"], "no program"),
        (&["run", "--kernel", kernel, "--pwd", "here", "host", "true"], "absolute"),
        (&["run", "--kernel", kernel, "host", "true"], "the file is empty"),
    ] {
        let output = run(words);
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(125), "{words:?}: {told}");
        assert!(told.contains(part) && told.lines().count() == 1, "{words:?}: {told}");
    }
    let output = microvm()
        .args(["run", "host", "true"])
        .env_remove("MICROVM_KERNEL")
        .env("XDG_DATA_HOME", "/nonexistent")
        .output()
        .unwrap();
    // Unless one is installed for all users.
    if !std::path::Path::new("/usr/lib/microvm/vmlinux").exists() {
        assert!(stderr(&output).contains("--kernel or $MICROVM_KERNEL"), "{}", stderr(&output));
    }
    let help = stdout(&run(&["run", "--help"]));
    for word in ["--bind", "--contain", "--overlay", "--isolation", "--net", "126", "Examples:"] {
        assert!(help.contains(word), "{word} is missing in\n{help}");
    }
}
