use super::super::client::Client as Asker;
use super::super::{ClientError, Command};
use super::*;
use event_manager::{EventManager, SubscriberOps};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

type Loop = EventManager<Arc<Mutex<dyn MutEventSubscriber + Send>>>;

/// A server on an event loop that answers with what it was asked, how many
/// descriptors came, and the first bytes of the first one.
fn serve(path: &Path) -> JoinHandle<usize> {
    let server = Arc::new(Mutex::new(Server::listen(path).unwrap()));
    std::thread::spawn(move || {
        let mut events = Loop::new().unwrap();
        events.add_subscriber(server.clone());
        let mut served = 0;
        loop {
            events.run().unwrap();
            let mut server = server.lock().unwrap();
            while let Some(Job { client, request, mut files }) = server.next_job() {
                let mut text = String::new();
                if let Some(file) = files.first_mut() {
                    file.take(16).read_to_string(&mut text).unwrap();
                }
                let told = json!({"files": files.len(), "text": text});
                server.answer(client, &request.id, Ok(told));
                served += 1;
                if request.command == (Command::Quit {}) {
                    return served;
                }
            }
        }
    })
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control");
    (dir, path)
}

fn connect(path: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(path).unwrap();
    assert_eq!(line(&mut stream), "{\"version\":1}\n");
    stream
}

/// Reads to the end of a line, or of the stream.
fn line(stream: &mut UnixStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while let Ok(1) = stream.read(&mut byte) {
        line.push(byte[0]);
        if byte == *b"\n" {
            break;
        }
    }
    String::from_utf8(line).unwrap()
}

fn image(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.as_file().set_len(4096).unwrap();
    file
}

#[test]
fn the_socket_is_its_users_alone_and_goes_with_the_server() {
    let (_dir, path) = place();
    let server = Server::listen(&path).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let again = Server::listen(&path).err().unwrap().to_string();
    assert!(again.contains("exists already"), "{again}");
    drop(server);
    assert!(!path.exists());
    let server = Server::listen(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "another's").unwrap();
    drop(server);
    assert!(path.exists(), "what took its place is not removed");
}

#[test]
fn images_go_over_the_socket() {
    let (_dir, path) = place();
    let thread = serve(&path);
    let mut client = Asker::connect(&path).unwrap();
    let image = image("hello disk");
    let disk = format!("{},readonly=on", image.path().display()).parse().unwrap();
    let answer = client.ask(Command::AddDisk { disk, files: 1 }).unwrap();
    assert_eq!(answer["files"], 1);
    assert!(answer["text"].as_str().unwrap().starts_with("hello disk"));
    assert_eq!(client.ask(Command::Status {}).unwrap()["files"], 0);
    let missing = "/nonexistent/image".parse().unwrap();
    let refused = client.ask(Command::AddDisk { disk: missing, files: 1 }).unwrap_err();
    assert!(matches!(refused, ClientError::Disk(_)), "{refused}");
    // Asked all at once, each gets its own.
    let disk = |text: &str| (text.to_owned(), self::image(text));
    let images = [disk("one"), disk("two")];
    for (_, image) in &images {
        let disk = image.path().display().to_string().parse().unwrap();
        client.send(Command::Status {}, &[]).unwrap();
        client.send(Command::AddDisk { disk, files: 1 }, &[image.reopen().unwrap()]).unwrap();
    }
    for (text, _) in &images {
        assert_eq!(client.read().unwrap()["ok"]["files"], 0);
        assert!(client.read().unwrap()["ok"]["text"].as_str().unwrap().starts_with(text));
    }
    client.ask(Command::Quit {}).unwrap();
    assert_eq!(thread.join().unwrap(), 7);
}

#[test]
fn a_hostile_client_is_answered_or_sent_away() {
    let (_dir, path) = place();
    let thread = serve(&path);
    let mut odd = connect(&path);
    odd.write_all(b"\x00\xff\n{}\n{\"id\":4}\n").unwrap();
    for id in ["null", "null", "4"] {
        let told = line(&mut odd);
        assert!(told.contains("\"error\"") && told.contains(&format!("\"id\":{id}")), "{told}");
    }
    // No end of line.
    let mut endless = connect(&path);
    let sent = endless.write_all(&vec![b'x'; 4 * MAX_LINE]);
    assert!(line(&mut endless).contains("65536 bytes") || sent.is_err());
    assert_eq!(line(&mut endless), "");
    // More descriptors than any request takes.
    let mut rich = connect(&path);
    let file = image("x");
    for _ in 0..=MAX_FILES {
        let _ = rich.send_with_fd(&b" "[..], file.as_raw_fd());
    }
    assert_eq!(line(&mut rich), "");
    // One that never reads.
    let mut deaf = connect(&path);
    deaf.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    let storm = b"\n".repeat(1 << 12);
    let sent = (0..1 << 12).try_for_each(|_| deaf.write_all(&storm));
    assert_eq!(sent.unwrap_err().kind(), ErrorKind::BrokenPipe);
    // And all the while others are served.
    drop((endless, rich, deaf, odd));
    Asker::connect(&path).unwrap().ask(Command::Quit {}).unwrap();
    thread.join().unwrap();
}

#[test]
fn there_is_room_for_so_many_clients() {
    let (_dir, path) = place();
    let thread = serve(&path);
    let mut clients: Vec<UnixStream> = (0..MAX_CLIENTS).map(|_| connect(&path)).collect();
    let Err(ClientError::Refused(why)) = Asker::connect(&path) else { panic!("one more") };
    assert!(why.contains("8 clients"), "{why}");
    clients.pop();
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut client = loop {
        match Asker::connect(&path) {
            Ok(client) => break client,
            Err(e) => assert!(Instant::now() < deadline, "{e}"),
        }
    };
    client.ask(Command::Quit {}).unwrap();
    thread.join().unwrap();
}

#[test]
fn a_timer_brings_the_loop_round() {
    let (_dir, path) = place();
    let server = Arc::new(Mutex::new(Server::listen(&path).unwrap()));
    let wake = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    server.lock().unwrap().wake_by(wake.try_clone().unwrap());
    let mut events = Loop::new().unwrap();
    events.add_subscriber(server.clone());
    server.lock().unwrap().wake_at(Some(Instant::now()));
    assert_eq!(events.run_with_timeout(10_000).unwrap(), 1);
    assert_eq!(events.run_with_timeout(0).unwrap(), 0, "once");
    server.lock().unwrap().wake_at(Some(Instant::now() + Duration::from_millis(20)));
    server.lock().unwrap().wake_at(None);
    assert_eq!(events.run_with_timeout(60).unwrap(), 0);
    wake.write(1).unwrap();
    assert_eq!(events.run_with_timeout(10_000).unwrap(), 1);
}
