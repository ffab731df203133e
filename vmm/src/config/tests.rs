//! What can be written, and what it means.

use super::*;
use proptest::prelude::{any, prop_assert_eq, proptest};

#[test]
fn a_place_in_a_segment_is_one_of_so_many() {
    let net: Net = "segment=/run/x,station=1,stations=2".parse().unwrap();
    let segment = Segment { path: "/run/x".into(), station: 1, stations: 2 };
    assert_eq!(net.backend, NetBackend::Segment(segment));
    let again: Net = serde_json::from_str(&serde_json::to_string(&net).unwrap()).unwrap();
    assert_eq!(again, net);
    for wrong in ["station=2,stations=2", "station=0", "station=0,stations=70000", "stations=257"] {
        let text = format!("segment=/run/x,{wrong}");
        assert_eq!(text.parse::<Net>(), Err(ConfigError::Stations), "{wrong}");
    }
    for wrong in ["mac=02:00:00:00:00:01", "mtu=1500", "queues=2"] {
        let text = format!("segment=/run/x,stations=2,{wrong}");
        assert!(text.parse::<Net>().is_err(), "{wrong}");
    }
}

#[test]
fn sizes_are_read_and_written() {
    for (text, bytes) in
        [("512M", 512 << 20), ("2G", 2 << 30), ("4096", 4096), ("64k", 65536), ("1GiB", 1 << 30)]
    {
        assert_eq!(text.parse::<Size>().unwrap().0, bytes);
    }
    for text in ["", "M", "1.5G", "-1", "1X", "99999999999999999999", "99999999T", "١G"] {
        assert!(text.parse::<Size>().is_err(), "{text}");
    }
    assert_eq!(Size(1536 << 20).to_string(), "1536M");
}

#[test]
fn disks_are_read_from_their_shorthand() {
    let disk: Disk = "path=/a,,b=c.img,readonly=on,serial=S1".parse().unwrap();
    assert_eq!(disk, Disk { readonly: true, serial: Some("S1".into()), ..Disk::raw("/a,b=c.img") });
    let plain: Disk = "odd=name.img".parse().unwrap();
    assert_eq!(plain.path, PathBuf::from("odd=name.img"));
    for text in
        ["", "path=", "a,readonly=yes", "a,colour=red", "a,readonly=on,readonly=off", "a,readonly"]
    {
        assert!(text.parse::<Disk>().is_err(), "{text}");
    }
}

#[test]
fn networks_are_read_from_their_shorthand() {
    let net: Net = "tap=vmtap0,mac=02:00:00:00:00:0a".parse().unwrap();
    assert_eq!(net.mac_bytes(), Some([2, 0, 0, 0, 0, 10]));
    for text in [
        "tap=",
        "tap=a/b",
        "tap=sixteen-letters-",
        "tap=x,mac=01:00:00:00:00:00",
        "tap=x,mac=02:00",
    ] {
        assert!(text.parse::<Net>().is_err(), "{text}");
    }
}

#[test]
fn the_ways_of_a_network_card_are_read_and_written_alike() {
    for text in [
        "tap=t,mtu=9000,queues=4",
        "t,rate=50M:10M,ops=1000",
        "tap=t,vhost=auto,ops=5",
        "user,rate=1M",
    ] {
        let net: Net = text.parse().unwrap();
        let json = serde_json::to_string(&net).unwrap();
        assert_eq!(serde_json::from_str::<Net>(&json).unwrap(), net, "{json}");
    }
    let net: Net = "t".parse().unwrap();
    assert_eq!([1, 4, 32].map(|cpus| net.pairs(cpus)), [(1, true), (4, true), (8, true)]);
    assert_eq!("t,queues=3".parse::<Net>().unwrap().pairs(32), (3, false));
    for (text, part) in [
        ("t,queues=0", "1 to 16"),
        ("t,queues=17", "1 to 16"),
        ("t,queues=x", "must be a number"),
        ("t,mtu=67", "68 to 65521"),
        ("t,mtu=70000", "68 to 65521"),
        ("t,rate=0", "more than 0"),
        ("t,vhost=yes", "off or on or auto"),
        ("t,vhost=on,ops=1", "vhost=off"),
        ("user,queues=2", "for tap="),
        ("user,vhost=auto", "for tap="),
    ] {
        let said = text.parse::<Net>().unwrap_err().to_string();
        assert!(said.starts_with("net ") && said.contains(part), "{said}");
    }
}

#[test]
fn a_user_network_is_read_from_its_shorthand() {
    let net: Net = "user".parse().unwrap();
    assert_eq!(net.user(), Some(&UserNet::default()));
    // An interface may have that name.
    let tap: Net = "tap=user".parse().unwrap();
    assert_eq!(tap.backend, NetBackend::Tap("user".into()));
    let text = "user,mac=02:00:00:00:00:0a,hostfwd=tcp::2222-:22,backend=internal,\
                hostfwd=udp:0.0.0.0:53-:5353,host-loopback=on";
    let net: Net = text.parse().unwrap();
    let user = net.user().unwrap();
    assert_eq!(user.backend, UserBackend::Internal);
    assert!(user.host_loopback);
    let shown: Vec<String> = user.hostfwd.iter().map(Forward::to_string).collect();
    assert_eq!(shown, ["tcp:127.0.0.1:2222-:22", "udp:0.0.0.0:53-:5353"]);
    for text in [
        "user=x,colour=red",
        "user,tap=x",
        "user,mac=01:00:00:00:00:00",
        "user,backend=slirp",
        "user,hostfwd=tcp::0-:22",
        "user,hostfwd=tcp::22-:65536",
        "user,hostfwd=tcp::22",
        "user,hostfwd=icmp::22-:22",
        "user,hostfwd=tcp:localhost:22-:22",
        "tap=x,hostfwd=tcp::2222-:22",
    ] {
        assert!(text.parse::<Net>().is_err(), "{text}");
    }
    let many = "user".to_owned() + &",hostfwd=tcp::1-:1".repeat(net::MAX_FORWARDS + 1);
    assert_eq!(many.parse::<Net>(), Err(ConfigError::Forwards(net::MAX_FORWARDS + 1)));
}

#[test]
fn a_network_card_of_a_file_has_one_backend() {
    let read = |text: &str| serde_json::from_str::<Net>(text);
    let tap = read(r#"{"tap":"t0","mac":"02:00:00:00:00:01"}"#).unwrap();
    assert_eq!(tap, "tap=t0,mac=02:00:00:00:00:01".parse().unwrap());
    let user = read(r#"{"user":{"hostfwd":["tcp::1-:2"]}}"#).unwrap();
    assert_eq!(user, "user,hostfwd=tcp::1-:2".parse().unwrap());
    assert_eq!(read(&serde_json::to_string(&user).unwrap()).unwrap(), user);
    for text in [
        "{}",
        r#"{"tap":"t0","user":{}}"#,
        r#"{"tap":"t0","colour":1}"#,
        r#"{"user":{"colour":1}}"#,
        r#"{"user":{"hostfwd":["x"]}}"#,
    ] {
        assert!(read(text).is_err(), "{text}");
    }
}

#[test]
fn a_vsock_is_read_from_its_shorthand() {
    let vsock: Vsock = "uds=/run/v,,s,cid=42".parse().unwrap();
    assert_eq!(vsock, Vsock { uds: "/run/v,s".into(), cid: 42 });
    assert_eq!("v".parse::<Vsock>().unwrap().cid, 3);
    let long = format!("uds={}", "x".repeat(MAX_UDS + 1));
    for text in [
        "uds=",
        "cid=3",
        "v,cid=2",
        "v,cid=4294967295",
        "v,cid=4294967296",
        "v,cid=x",
        "v,cid=",
        "v,colour=red",
        &long,
    ] {
        assert!(text.parse::<Vsock>().is_err(), "{text}");
    }
    assert_eq!("v,cid=4294967294".parse::<Vsock>().unwrap().cid, u32::MAX - 1);
}

#[test]
fn a_balloon_is_read_from_its_shorthand() {
    let all = "size=64M,deflate-on-oom=on,stats=5,free-page-reporting=on";
    let wanted = Balloon {
        size: Size(64 << 20),
        deflate_on_oom: true,
        stats: Some(5),
        free_page_reporting: true,
    };
    assert_eq!(all.parse::<Balloon>(), Ok(wanted));
    assert_eq!("0".parse::<Balloon>(), Ok(Balloon::default()));
    let reporting: Balloon = "free-page-reporting=on".parse().unwrap();
    assert!(reporting.free_page_reporting && reporting.size == Size(0));
    for text in ["", "size=", "1X", "1M,stats=x", "1M,stats=86401", "1M,colour=red", "colour=red"] {
        assert!(text.parse::<Balloon>().is_err(), "{text}");
    }
    let mut config = Config::new("/k");
    config.balloon = Some("257M".parse().unwrap());
    assert!(matches!(config.validate(), Err(ConfigError::BalloonSize { .. })));
    config.balloon = Some("256M".parse().unwrap());
    assert_eq!(config.validate(), Ok(()));
}

#[test]
fn a_rate_of_entropy_is_read_from_its_shorthand() {
    let rng: Rng = "source=getrandom,rate=64K:1M".parse().unwrap();
    assert_eq!(rng, Rng { rate: Size(64 << 10), burst: Some(Size(1 << 20)) });
    assert_eq!("rate=5".parse(), Ok(Rng { rate: Size(5), burst: None }));
    for text in
        ["", "rate=", "rate=0", "rate=1:0", "rate=1:", "rate=2T", "source=x,rate=1", "rate=1,b=2"]
    {
        assert!(text.parse::<Rng>().is_err(), "{text}");
    }
}

#[test]
fn consoles_and_ports_are_read_from_their_shorthand() {
    assert_eq!("pty".parse(), Ok(Console::Pty));
    assert_eq!("socket=/a=b,c".parse(), Ok(Console::Socket("/a=b,c".into())));
    assert_eq!("file=f".parse(), Ok(Console::File("f".into())));
    let long = format!("socket={}", "x".repeat(108));
    for text in ["", "tty", "socket", "socket=", "file=", "stdio=1", &long] {
        assert!(text.parse::<Console>().is_err(), "{text}");
    }
    let port: Port = "name=org.agent.0,socket=/run/a,,b".parse().unwrap();
    assert_eq!(port.to, PortTo::Socket("/run/a,b".into()));
    for text in ["", "name=a", "a,socket=", "a,socket=s,file=f", "a/b,file=f", "a,file=f,c=1"] {
        assert!(text.parse::<Port>().is_err(), "{text}");
    }
}

#[test]
fn one_terminal_is_for_one_console() {
    let mut config = Config::new("/k");
    assert_eq!(config.serial(), Serial::Stdio);
    config.console = Some(Console::Stdio);
    assert_eq!((config.serial(), config.validate()), (Serial::Off, Ok(())));
    config.serial = Some(Serial::Stdio);
    assert_eq!(config.validate(), Err(ConfigError::BothStdio));
    config.console = Some(Console::Pty);
    assert_eq!(config.validate(), Ok(()));
    config.ports = vec!["a,file=f".parse().unwrap(); 2];
    assert_eq!(config.validate(), Err(ConfigError::PortTwice("a".into())));
    config.ports = (0..17).map(|i| format!("a{i},file=f").parse().unwrap()).collect();
    assert_eq!(config.validate(), Err(ConfigError::Ports(17)));
}

#[test]
fn a_file_says_no_more_and_no_less_than_the_command_line() {
    let mut config = Config::new("/k");
    config.rootfs = Some("/r,readonly=on".parse().unwrap());
    config.nets.push("tap=t0".parse().unwrap());
    config.nets.push("user,hostfwd=tcp::1-:2,host-loopback=on".parse().unwrap());
    config.vsock = Some("uds=/v,cid=7".parse().unwrap());
    config.balloon = Some("1M,stats=0".parse().unwrap());
    config.rng = Some("rate=1K:2K".parse().unwrap());
    config.console = Some(Console::Socket("/c".into()));
    config.ports = vec!["name=a,socket=/s".parse().unwrap(), "b,file=/f".parse().unwrap()];
    config.serial = Some(Serial::File("/log".into()));
    let text = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<Config>(&text).unwrap(), config);
    assert_eq!(serde_json::from_str::<Config>(r#"{"kernel":"/k"}"#).unwrap(), Config::new("/k"));
    assert!(serde_json::from_str::<Config>(r#"{"kernel":"/k","colour":1}"#).is_err());
}

#[test]
fn limits_are_checked() {
    let with = |f: fn(&mut Config)| {
        let mut c = Config::new("/k");
        f(&mut c);
        c.validate()
    };
    assert!(with(|_| ()).is_ok());
    assert!(with(|c| c.cpus = 0).is_err());
    assert!(with(|c| c.cpus = 33).is_err());
    assert!(with(|c| c.memory = Size(MIN_MEMORY - 4096)).is_err());
    assert!(with(|c| c.memory = Size(MIN_MEMORY + 1)).is_err());
    assert!(with(|c| c.cmdline = "a\nb".into()).is_err());
    assert!(with(|c| c.disks = vec!["/d".parse().unwrap(); 17]).is_err());
    assert!(with(|c| c.vsock = Some("v".parse().unwrap())).is_ok());
    let cid = with(|c| c.vsock = Some(Vsock { uds: "v".into(), cid: 2 }));
    assert_eq!(cid, Err(ConfigError::Cid(2)));
    assert!(with(|c| c.vsock = Some(Vsock { uds: "".into(), cid: 3 })).is_err());
    let full = |c: &mut Config| {
        c.disks = vec!["/d".parse().unwrap(); 16];
        c.vsock = Some("v".parse().unwrap());
    };
    assert_eq!(with(full), Err(ConfigError::Devices(17)));
}

proptest! {
    #[test]
    fn no_text_makes_the_shorthands_panic(text in ".{0,60}") {
        let _ = (text.parse::<Disk>(), text.parse::<Net>(), text.parse::<Vsock>(), text.parse::<Size>(), text.parse::<Serial>(), text.parse::<Balloon>(), text.parse::<Rng>(), text.parse::<Console>(), text.parse::<Port>());
    }

    #[test]
    fn a_size_survives_being_written(n in any::<u64>()) {
        prop_assert_eq!(Size(n).to_string().parse::<Size>().unwrap(), Size(n));
    }
}

#[test]
fn disks_and_metrics_are_read_and_written_alike() {
    for text in [
        "a,format=qcow2,queues=2",
        "a,engine=uring,direct=on,offset=1M,size=512K",
        "a,rate=50M:10M,ops=1000",
    ] {
        let disk: Disk = text.parse().unwrap();
        let json = serde_json::to_string(&disk).unwrap();
        assert_eq!(serde_json::from_str::<Disk>(&json).unwrap(), disk, "{json}");
    }
    for text in ["m.json", "socket=/run/m,format=prometheus", "file=m,every=1"] {
        let metrics: MetricsConfig = text.parse().unwrap();
        let json = serde_json::to_string(&metrics).unwrap();
        assert_eq!(serde_json::from_str::<MetricsConfig>(&json).unwrap(), metrics, "{json}");
    }
    for (text, part) in [
        ("a,format=vmdk", "raw or qcow2"),
        ("a,format=qcow2,direct=on", "format=raw"),
        ("a,queues=0", "1 to 32"),
        ("a,queues=x", "must be a number"),
        ("a,rate=0", "more than 0"),
        ("a,rate=1M:", "whole number"),
        ("a,engine=fast", "auto or sync or uring"),
    ] {
        let said = text.parse::<Disk>().unwrap_err().to_string();
        assert!(said.starts_with("disk ") && said.contains(part), "{said}");
    }
    for text in ["", "socket=", "file=a,socket=b", "a,every=0", "a,format=xml"] {
        let said = text.parse::<MetricsConfig>().unwrap_err().to_string();
        assert!(said.starts_with("metrics "), "{said}");
    }
}
