//! Lines out of a stream that comes in pieces.

use super::MAX_LINE;

/// A line that is longer than [`MAX_LINE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong;

/// What has come and is no whole line yet.
#[derive(Debug, Default)]
pub struct Lines {
    bytes: Vec<u8>,
    /// As much of it as is known to have no end of a line.
    searched: usize,
}

impl Lines {
    /// Adds what has come.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole line, without its end.
    pub fn take_line(&mut self) -> Result<Option<Vec<u8>>, TooLong> {
        let rest = self.bytes.get(self.searched..).unwrap_or_default();
        let Some(at) = rest.iter().position(|byte| *byte == b'\n') else {
            self.searched = self.bytes.len();
            return if self.bytes.len() > MAX_LINE { Err(TooLong) } else { Ok(None) };
        };
        let end = self.searched + at;
        if end > MAX_LINE {
            return Err(TooLong);
        }
        let mut line: Vec<u8> = self.bytes.drain(..=end).collect();
        line.pop();
        self.searched = 0;
        Ok(Some(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    #[test]
    fn a_line_may_be_as_long_as_allowed_and_no_longer() {
        let mut lines = Lines::default();
        lines.push(&[b'x'; MAX_LINE]);
        assert_eq!(lines.take_line(), Ok(None));
        lines.push(b"\n\n");
        assert_eq!(lines.take_line().unwrap().unwrap().len(), MAX_LINE);
        assert_eq!(lines.take_line(), Ok(Some(Vec::new())));
        lines.push(&[b'x'; MAX_LINE + 1]);
        assert_eq!(lines.take_line(), Err(TooLong));
        let mut lines = Lines::default();
        lines.push(&[b'x'; MAX_LINE + 1]);
        lines.push(b"\n");
        assert_eq!(lines.take_line(), Err(TooLong));
    }

    proptest! {
        #[test]
        fn however_it_is_cut_the_lines_are_the_same(
            text in vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..300),
            cuts in vec(1usize..40, 0..40),
        ) {
            let mut lines = Lines::default();
            let mut found = Vec::new();
            let mut rest = text.as_slice();
            for cut in cuts.into_iter().chain([usize::MAX]) {
                let (piece, behind) = rest.split_at(cut.min(rest.len()));
                lines.push(piece);
                rest = behind;
                while let Some(line) = lines.take_line().unwrap() {
                    found.push(line);
                }
            }
            let mut wanted: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
            wanted.pop();
            prop_assert_eq!(found, wanted);
        }
    }
}
