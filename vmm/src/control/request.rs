//! What can be asked of a machine, and what a line of it looks like.

use super::MAX_FILES;
use crate::config::{Disk, Net, Size, Vhost};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Seconds that a guest has to let go of a device, unless the request says it.
pub const PATIENCE: u32 = 10;
/// The longest that it may say.
const MAX_PATIENCE: u32 = 600;
/// The longest `id` that is a string.
const MAX_ID: usize = 64;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Command {
    /// What devices there are, and how they are.
    Status {},
    /// Another disk; its image comes along, open, and the image's backing files
    /// behind it.
    AddDisk {
        /// As in a configuration file.
        disk: Disk,
        /// How many files it is.
        #[serde(default = "one")]
        files: u32,
    },
    /// Another network card; its TAP comes along, open: as many queues of it as
    /// `queues` says, one by default.
    AddNet {
        /// As in a configuration file.
        net: Net,
        /// The interface's MTU.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mtu: Option<u16>,
    },
    /// The guest is to let go of a disk or a network card, which then goes.
    /// Answered when that has happened.
    Remove {
        /// Which one.
        name: String,
        /// How many seconds the guest has for it.
        #[serde(default = "patience")]
        timeout: u32,
        /// Take it away when they are over, at the guest's peril.
        #[serde(default)]
        force: bool,
    },
    /// Make a disk and its image so large, or the disk as large as its image
    /// has become.
    ResizeDisk {
        /// Which one.
        name: String,
        /// How large; as its image is by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size: Option<Size>,
    },
    /// What the guest is to give back by the balloon, in all.
    Balloon {
        /// How much.
        size: Size,
    },
    /// Press the power button.
    PowerButton {},
    /// End the machine, at once.
    Quit {},
}

fn one() -> u32 {
    1
}

fn patience() -> u32 {
    PATIENCE
}

impl Command {
    /// How many descriptors come with it.
    pub fn files(&self) -> usize {
        match self {
            Self::AddDisk { files, .. } => *files as usize,
            Self::AddNet { net, .. } => net.queues.unwrap_or(1) as usize,
            _ => 0,
        }
    }

    /// Checks all that can be said without the machine.
    fn validate(&self) -> Result<(), String> {
        match self {
            Self::AddDisk { files, .. } if !(1..=MAX_FILES as u32).contains(files) => {
                Err(format!("files {files}: must be 1 to {MAX_FILES}"))
            }
            Self::AddDisk { disk, .. } => disk.validate().map_err(|e| e.to_string()),
            Self::AddNet { net, .. } => {
                net.validate().map_err(|e| e.to_string())?;
                let why = "only tap=, without vhost=on, can be added to a running machine";
                match net.user().is_some() || net.vhost == Vhost::On {
                    true => Err(format!("net {}: {why}", net.backend.name())),
                    false => Ok(()),
                }
            }
            Self::Remove { timeout, .. } if *timeout > MAX_PATIENCE => {
                Err(format!("timeout {timeout}: must be 0 to {MAX_PATIENCE} seconds"))
            }
            _ => Ok(()),
        }
    }
}

/// A request.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// What its answer is called.
    pub id: Value,
    /// What is asked.
    pub command: Command,
}

/// A request that can't be: what its answer is called, as far as that could be
/// read, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    /// `null` where there is none.
    pub id: Value,
    /// In one line.
    pub why: String,
}

impl Request {
    /// Reads a line.
    pub fn parse(line: &[u8]) -> Result<Self, Refusal> {
        let nameless = |why: String| Refusal { id: Value::Null, why };
        let fields: Map<String, Value> =
            serde_json::from_slice(line).map_err(|e| nameless(format!("not a request: {e}")))?;
        let mut fields = fields;
        let id = fields.remove("id").unwrap_or(Value::Null);
        let good = match &id {
            Value::String(text) => text.len() <= MAX_ID,
            // A fraction might not come back as it was.
            other => other.is_i64() || other.is_u64(),
        };
        if !good {
            return Err(nameless(format!(
                "id: must be a whole number or at most {MAX_ID} characters"
            )));
        }
        let refuse = |why| Refusal { id: id.clone(), why };
        let command = Command::deserialize(Value::Object(fields));
        let command = command.map_err(|e| refuse(e.to_string()))?;
        command.validate().map_err(refuse)?;
        Ok(Self { id, command })
    }

    /// The request as a line, with its end.
    pub fn line(&self) -> Result<String, serde_json::Error> {
        let mut value = serde_json::to_value(&self.command)?;
        if let Value::Object(fields) = &mut value {
            fields.insert("id".to_owned(), self.id.clone());
        }
        Ok(format!("{value}\n"))
    }
}

/// An answer as a line, with its end.
pub fn answer(id: &Value, result: Result<Value, String>) -> String {
    let line = match result {
        Ok(ok) => json!({"id": id, "ok": ok}),
        Err(error) => json!({"id": id, "error": error}),
    };
    format!("{line}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refused(line: &str) -> String {
        let refusal = Request::parse(line.as_bytes()).unwrap_err();
        assert!(!refusal.why.contains('\n'), "{refusal:?}");
        refusal.why
    }

    #[test]
    fn every_command_is_a_line_and_back() {
        for command in [
            Command::Status {},
            Command::AddDisk { disk: "a.img,readonly=on,serial=S".parse().unwrap(), files: 3 },
            Command::AddNet { net: "tap=t0".parse().unwrap(), mtu: Some(9000) },
            Command::Remove { name: "block1".into(), timeout: 3, force: true },
            Command::ResizeDisk { name: "block1".into(), size: Some(Size(1 << 30)) },
            Command::Balloon { size: Size(1 << 20) },
            Command::PowerButton {},
            Command::Quit {},
        ] {
            let request = Request { id: 7.into(), command };
            let line = request.line().unwrap();
            assert_eq!(line.matches('\n').count(), 1);
            assert_eq!(Request::parse(line.trim_end().as_bytes()), Ok(request));
        }
    }

    #[test]
    fn what_may_be_left_out_has_its_default() {
        let parse = |line: &str| Request::parse(line.as_bytes()).unwrap();
        let request = parse(r#"{"id":"x","command":"remove","name":"net0"}"#);
        assert_eq!(request.id, "x");
        let Command::Remove { timeout, force, .. } = request.command else { panic!() };
        assert_eq!((timeout, force), (PATIENCE, false));
        let request = parse(r#"{"id":1,"command":"add-disk","disk":{"path":"a"}}"#);
        assert_eq!(request.command, Command::AddDisk { disk: Disk::raw("a"), files: 1 });
    }

    #[test]
    fn what_is_no_request_is_refused_in_one_line() {
        for (line, part) in [
            ("", "not a request"),
            ("[]", "not a request"),
            ("{\"id\":1}", "command"),
            (r#"{"command":"status"}"#, "id"),
            (r#"{"id":{},"command":"status"}"#, "id"),
            (r#"{"id":0.1,"command":"status"}"#, "whole number"),
            (r#"{"id":1,"command":"explode"}"#, "explode"),
            (r#"{"id":1,"command":"remove"}"#, "name"),
            (r#"{"id":1,"command":"remove","name":"a","timeout":601}"#, "600"),
            (r#"{"id":1,"command":"status","colour":"red"}"#, "colour"),
            (r#"{"id":1,"command":"add-disk","disk":{"path":""}}"#, "empty path"),
            (r#"{"id":1,"command":"add-disk","disk":{"path":"a"},"files":65}"#, "1 to 64"),
            (r#"{"id":1,"command":"add-disk","disk":{"path":"a","colour":1}}"#, "colour"),
            (r#"{"id":1,"command":"add-net","net":{"tap":"a/b"}}"#, "a/b"),
            (r#"{"id":1,"command":"add-net","net":{"user":{}}}"#, "only tap="),
            (r#"{"id":1,"command":"add-net","net":{"tap":"a","queues":17}}"#, "1 to 16"),
            (r#"{"id":1,"command":"balloon","size":"much"}"#, "much"),
        ] {
            let why = refused(line);
            assert!(why.contains(part), "{line}: {why}");
        }
        let long = format!(r#"{{"id":"{}","command":"status"}}"#, "x".repeat(65));
        assert!(refused(&long).contains("64 characters"));
        let deep = format!(r#"{{"id":1,"command":{}"#, "[".repeat(10_000));
        assert!(refused(&deep).contains("not a request"));
    }

    #[test]
    fn an_answer_is_one_line_whatever_is_said() {
        let line = answer(&1.into(), Err("disk a\nb: no".to_owned()));
        assert_eq!(line, "{\"error\":\"disk a\\nb: no\",\"id\":1}\n");
    }

    proptest! {
        #[test]
        fn no_line_breaks_the_parser(line in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Request::parse(&line);
        }

        #[test]
        fn no_json_breaks_the_parser(
            id in "[0-9a-z\"{}]{0,5}",
            command in "(status|add-disk|add-net|remove|resize-disk|balloon|quit|[a-z]{1,6})",
            field in "(disk|net|name|size|timeout|force|[a-z]{1,5})",
            value in r#"(\{"path":".{0,5}"\}|"[0-9]{0,25}[KMGT]?"|-?[0-9]{1,25}|true|null|\[\])"#,
        ) {
            let line = format!(r#"{{"id":{id},"command":"{command}","{field}":{value}}}"#);
            if let Ok(request) = Request::parse(line.as_bytes()) {
                prop_assert_eq!(Request::parse(request.line().unwrap().trim_end().as_bytes()), Ok(request));
            }
        }
    }
}
