//! Counting test results.

use std::ops::AddAssign;

/// How many tests did what.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed, and steps that did not get as far as testing.
    pub failed: u64,
    /// Tests that could not run here or were left out.
    pub skipped: u64,
}

impl Tally {
    /// Adds what one line of a test program's output says, if it is a summary.
    pub fn read(&mut self, line: &str) {
        if let Some(other) = parse(line) {
            self.add(other);
        }
    }

    /// Adds other results.
    pub fn add(&mut self, other: Self) {
        self.passed.add_assign(other.passed);
        self.failed.add_assign(other.failed);
        self.skipped.add_assign(other.skipped);
    }

    /// Prints the last line of a run; returns its exit status.
    pub fn conclude(self) -> u8 {
        println!("\n{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped);
        u8::from(self.failed > 0 || self.passed == 0)
    }
}

/// `test result: ok. 3 passed; 0 failed; 1 ignored; …`
fn parse(line: &str) -> Option<Tally> {
    // A terminal may have coloured the verdict: only the counts matter.
    let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let mut tally = Tally::default();
    for part in counts.split(';') {
        let Some((number, what)) = part.trim().split_once(' ') else {
            continue;
        };
        let Ok(number) = number.parse::<u64>() else {
            continue;
        };
        match what {
            "passed" => tally.passed = number,
            "failed" => tally.failed = number,
            "ignored" => tally.skipped = number,
            _ => {}
        }
    }
    Some(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_add_up() {
        let mut tally = Tally::default();
        tally.read("running 3 tests");
        tally.read("test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.1s");
        tally
            .read("test result: FAILED. 5 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out");
        tally.read("test some::test ... ok");
        assert_eq!(tally, Tally { passed: 7, failed: 2, skipped: 1 });
    }

    #[test]
    fn nothing_run_is_no_success() {
        assert_eq!(Tally::default().conclude(), 1);
    }
}
