//! Plans, without a machine.

use super::*;
use crate::image::progress::Unseen;
use std::fs;

/// A file that looks like an erofs image.
fn image(directory: &Path, name: &str) -> PathBuf {
    let mut bytes = vec![0; 8192];
    bytes[1024..1028].copy_from_slice(&[0xe2, 0xe1, 0xf5, 0xe0]);
    (bytes[1036], bytes[1060]) = (12, 1);
    let path = directory.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn caller() -> Caller {
    let mut caller = Caller::this().unwrap();
    caller.environment = [("A", "1"), ("PATH", "/mine"), ("HOME", "/h"), ("LD_PRELOAD", "x")]
        .map(|(name, value)| (name.into(), value.into()))
        .to_vec();
    (caller.home, caller.directory) = (None, Some("/usr".into()));
    caller
}

fn options(image: impl AsRef<OsStr>, words: &[&str]) -> Options {
    Options {
        image: image.as_ref().to_owned(),
        arguments: words.iter().map(OsString::from).collect(),
        kernel: Some("/kernel".into()),
        cpus: Some(1),
        memory: Some(256 << 20),
        ..Options::default()
    }
}

fn make(
    options: Options,
    caller: &Caller,
    terminal: Option<Window>,
    progress: &mut dyn Progress,
) -> Result<Plan, Error> {
    Plan::new(options, caller, terminal, progress).map(|(plan, _)| plan)
}

fn texts(all: &[Vec<u8>]) -> Vec<String> {
    all.iter().map(|bytes| String::from_utf8(bytes.clone()).unwrap()).collect()
}

#[test]
fn an_image_is_a_read_only_disk() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), "app.img");
    let plan = make(options(&path, &["echo", "a b"]), &caller(), None, &mut Unseen).unwrap();
    assert!(plan.config.disks[0].readonly && plan.config.disks[0].path == path);
    let disk = Disk { number: 0, kind: b"erofs".to_vec() };
    assert_eq!(plan.spec.root.lower, Lower::Disk(disk));
    assert!(!plan.spec.root.writable);
    assert_eq!(texts(&plan.spec.arguments), ["echo", "a b"]);
    assert_eq!(plan.config.shares.len(), plan.spec.shares.len());
    plan.config.validate().unwrap();
}

#[test]
fn a_directory_is_a_read_only_share() {
    let dir = tempfile::tempdir().unwrap();
    let plan = make(options(dir.path(), &["x"]), &caller(), None, &mut Unseen).unwrap();
    assert!(plan.config.disks.is_empty());
    let root = &plan.config.shares[0];
    assert_eq!((root.tag.as_str(), root.readonly), (ROOT_TAG, true));
    assert_eq!(plan.config.shares.len(), plan.spec.shares.len() + 1);
    plan.config.validate().unwrap();
}

#[test]
fn the_host_may_be_changed_in_memory() {
    let plan = make(options("host", &["x"]), &caller(), None, &mut Unseen).unwrap();
    assert!(plan.spec.root.writable && plan.config.shares[0].readonly);
    assert!(plan.spec.files.is_empty() && plan.spec.networks.is_empty());
    assert!(texts(&plan.spec.environment).contains(&"PATH=/mine".to_owned()));
}

#[test]
fn an_overlay_is_an_ext4_image() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), "app.img");
    let mut wanted = options(&path, &["x"]);
    wanted.overlay = Some(path.clone());
    let refused = make(wanted.clone(), &caller(), None, &mut Unseen).unwrap_err();
    assert!(matches!(refused, Error::Overlay { .. }), "{refused}");
    let mut ext4 = vec![0; 16384];
    (ext4[1028], ext4[1048], ext4[1080], ext4[1081]) = (4, 2, 0x53, 0xef);
    let overlay = dir.path().join("over.img");
    fs::write(&overlay, ext4).unwrap();
    wanted.overlay = Some(overlay);
    let plan = make(wanted, &caller(), None, &mut Unseen).unwrap();
    assert!(plan.spec.root.writable && !plan.config.disks[1].readonly);
    assert!(matches!(&plan.spec.root.upper, Upper::Disk(disk) if disk.number == 1));
}

#[test]
fn the_environment_is_the_callers_less_what_is_the_hosts() {
    let dir = tempfile::tempdir().unwrap();
    let mut wanted = options(dir.path(), &["x"]);
    wanted.env = vec!["B=2=3".into(), "A=4".into()];
    let plan = make(wanted.clone(), &caller(), None, &mut Unseen).unwrap();
    let all = texts(&plan.spec.environment);
    let path = format!("PATH={PATH}");
    assert_eq!(all, [path.as_str(), "A=4", "HOME=/h", "B=2=3"]);
    wanted.clean_env = true;
    wanted.env.clear();
    let plan = make(wanted.clone(), &caller(), None, &mut Unseen).unwrap();
    assert_eq!(texts(&plan.spec.environment), [path.as_str(), "HOME=/h"]);
    wanted.env = vec!["A".into()];
    let plan = make(wanted.clone(), &caller(), None, &mut Unseen).unwrap();
    assert!(texts(&plan.spec.environment).contains(&"A=1".to_owned()));
    for wrong in ["", "=1", "NONE"] {
        wanted.env = vec![wrong.into()];
        let refused = make(wanted.clone(), &caller(), None, &mut Unseen).unwrap_err();
        assert!(matches!(refused, Error::Env(_)), "{refused}");
    }
}

#[test]
fn arguments_follow_the_entrypoint_and_replace_the_command() {
    let run = ImageConfig {
        entrypoint: vec!["/app".into()],
        cmd: vec!["--help".into()],
        ..ImageConfig::default()
    };
    let of = |words: &[&str]| texts(&program(&options("x", words), &run, false).unwrap());
    assert_eq!(of(&[]), ["/app", "--help"]);
    assert_eq!(of(&["a", "b"]), ["/app", "a", "b"]);
    let exec = Options { exec: true, ..options("x", &["a"]) };
    assert_eq!(texts(&program(&exec, &run, false).unwrap()), ["a"]);
    let none = |runscript| program(&options("x", &[]), &ImageConfig::default(), runscript);
    assert!(matches!(none(false), Err(Error::NoProgram)));
    assert!(none(true).unwrap().is_empty());
}

#[test]
fn where_a_job_starts() {
    let of = |options: &Options| directory(options, &ImageConfig::default(), &caller()).unwrap();
    let mut wanted = options("x", &[]);
    assert_eq!(of(&wanted), ("/usr".into(), false));
    wanted.contain = true;
    assert_eq!(of(&wanted), ("/".into(), false));
    let image = ImageConfig { working_directory: "/app".into(), ..ImageConfig::default() };
    assert_eq!(directory(&wanted, &image, &caller()).unwrap(), ("/app".into(), false));
    wanted.pwd = Some("/data".into());
    assert_eq!(of(&wanted), ("/data".into(), true));
    wanted.pwd = Some("data".into());
    assert!(directory(&wanted, &ImageConfig::default(), &caller()).is_err());
}

#[test]
fn a_network_is_a_card_with_an_address_and_a_server_of_names() {
    let mut wanted = options("host", &["x"]);
    wanted.network = Some("user".parse().unwrap());
    let mut on_tap = wanted.clone();
    on_tap.network = Some("tap=t0,address=10.1.2.3/24".parse().unwrap());
    let plan = make(on_tap, &caller(), None, &mut Unseen).unwrap();
    assert_eq!(plan.spec.networks[0].address, [10, 1, 2, 3]);
    assert_eq!(plan.spec.networks[0].gateway, None);
    let plan = make(wanted, &caller(), None, &mut Unseen).unwrap();
    assert_eq!(plan.config.nets.len(), 1);
    assert_eq!(plan.spec.networks.first().map(|net| net.address), Some([10, 0, 2, 15]));
    let text = String::from_utf8(plan.spec.files[0].content.clone()).unwrap();
    assert!(text.starts_with("nameserver 10.0.2.3\n"), "{text}");
    plan.config.validate().unwrap();
}
