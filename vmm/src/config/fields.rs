//! The shorthand of the command line: `key=value,key=value`.

use super::ConfigError;
use std::str::FromStr;

/// The fields of a `key=value,key=value` shorthand.
pub struct Fields<'a> {
    what: &'static str,
    text: &'a str,
    fields: Vec<(String, String)>,
}

impl<'a> Fields<'a> {
    /// Splits `text` at single commas. The first field may leave out its key,
    /// which is then `first`.
    pub fn new(what: &'static str, text: &'a str, first: &str) -> Self {
        // A doubled comma stands for one in the value.
        let protected = text.replace(",,", "\0");
        let fields = protected
            .split(',')
            .enumerate()
            .map(|(i, field)| {
                let field = field.replace('\0', ",");
                match field.split_once('=') {
                    Some((k, v)) if i > 0 || is_key(what, k) => (k.to_owned(), v.to_owned()),
                    _ if i == 0 => (first.to_owned(), field),
                    _ => (field, String::new()),
                }
            })
            .collect();
        Self { what, text, fields }
    }

    pub fn error(&self, why: String) -> ConfigError {
        ConfigError::Parse { what: self.what, text: self.text.to_owned(), why }
    }

    pub fn take(&mut self, key: &str) -> Option<String> {
        let at = self.fields.iter().position(|(k, _)| k == key)?;
        Some(self.fields.remove(at).1)
    }

    pub fn required(&mut self, key: &str) -> Result<String, ConfigError> {
        match self.take(key) {
            Some(value) if !value.is_empty() => Ok(value),
            _ => Err(self.error(format!("{key}= is missing"))),
        }
    }

    pub fn switch(&mut self, key: &str) -> Result<Option<bool>, ConfigError> {
        match self.take(key).as_deref() {
            None => Ok(None),
            Some("on") => Ok(Some(true)),
            Some("off") => Ok(Some(false)),
            Some(_) => Err(self.error(format!("{key}= must be on or off"))),
        }
    }

    /// One of some words, or the default.
    pub fn word<T: Copy + Default>(
        &mut self,
        key: &str,
        words: &[(&str, T)],
    ) -> Result<T, ConfigError> {
        let Some(value) = self.take(key) else { return Ok(T::default()) };
        let found = words.iter().find(|(word, _)| *word == value);
        found.map(|(_, meaning)| *meaning).ok_or_else(|| {
            let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            self.error(format!("{key}= must be {}", words.join(" or ")))
        })
    }

    /// A value with a shorthand of its own.
    pub fn parse<T: FromStr<Err = ConfigError>>(
        &mut self,
        key: &str,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.take(key) else { return Ok(None) };
        value.parse().map(Some).map_err(|e| match e {
            ConfigError::Parse { why, .. } => self.error(format!("{key}={value}: {why}")),
            e => e,
        })
    }

    /// A number of things.
    pub fn number(&mut self, key: &str) -> Result<Option<u32>, ConfigError> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let number = value.parse().map(Some);
        number.map_err(|_| self.error(format!("{key}= must be a number, not {value:?}")))
    }

    /// Whatever nobody asked for is a mistake.
    pub fn end(self) -> Result<(), ConfigError> {
        match self.fields.first() {
            Some((key, _)) => Err(self.error(format!("unknown or repeated field {key:?}"))),
            None => Ok(()),
        }
    }
}

/// Whether the text before a `=` in the first field can be a key, so that a
/// plain path with a `=` in it still works.
fn is_key(what: &str, text: &str) -> bool {
    const KEYS: &str = "path readonly serial format engine direct offset size queues rate ops \
                        tap segment mac uds cid file socket every tag";
    // Where no value has a `=`, all before it is a key, known or not.
    matches!(what, "balloon" | "rng" | "port") || KEYS.split(' ').any(|key| key == text)
}
