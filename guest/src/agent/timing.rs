//! How long an operation takes.

use std::io;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Nanoseconds that a batch takes at least.
    pub batch: u64,
    /// How many there are.
    pub batches: usize,
    /// Instead of batches: whoever counts them is waited for.
    exact: Option<Exact>,
}

/// An exact number of operations.
#[derive(Debug, Clone, Copy)]
pub struct Exact {
    /// What they are called.
    pub name: &'static str,
    /// How many.
    pub count: u64,
    /// What each consists of.
    pub each: u64,
    /// How many times.
    pub rounds: u32,
}

/// How many times longer than reading the clock a batch takes at least.
const CLOCKS: u64 = 100;
/// How often a count has to take long enough.
const TRIALS: usize = 3;
/// The most operations of a batch.
const MAX: u64 = 1 << 26;

impl Budget {
    /// As the command line has them.
    pub fn new(microseconds: &str, batches: &str) -> Self {
        let microseconds: u64 = microseconds.parse().unwrap_or(1000);
        Self {
            // A clock may be a device of the machine's, which costs an exit.
            batch: (microseconds.clamp(1, 1_000_000) * 1000).max(clock_cost() * CLOCKS),
            batches: batches.parse().unwrap_or(9).clamp(1, 1000),
            exact: None,
        }
    }

    /// Not for time: an exact number of operations ([`super::exits`]).
    pub fn exactly(exact: Exact) -> Self {
        Self { batch: 0, batches: 0, exact: Some(exact) }
    }

    /// Nanoseconds for one operation, in each batch. `operation` does as many as it
    /// is told; the first batches, which find out how many that should be, count as
    /// its warm-up.
    pub fn time(self, mut operation: impl FnMut(u64) -> io::Result<()>) -> io::Result<Vec<f64>> {
        if let Some(exact) = self.exact {
            return exact.run(operation);
        }
        let mut count = 1;
        loop {
            // The least of some: a turn of something else is no reason to stop.
            let mut took = u64::MAX;
            for _ in 0..TRIALS {
                took = took.min(once(&mut operation, count)?.max(1));
                if took < self.batch {
                    break;
                }
            }
            if took >= self.batch || count >= MAX {
                break;
            }
            // Towards the batch, but no more than tenfold: the first ones are slow.
            count = (count * self.batch / took + 1).clamp(count + 1, count * 10).min(MAX);
        }
        let each = |_| Ok(once(&mut operation, count)? as f64 / count as f64);
        (0..self.batches).map(each).collect()
    }

    /// The same as MiB/s, where one operation moves so many bytes.
    pub fn rate(
        self,
        bytes: usize,
        operation: impl FnMut(u64) -> io::Result<()>,
    ) -> io::Result<Vec<f64>> {
        let mib = bytes as f64 / (1 << 20) as f64;
        let times = self.time(operation)?;
        Ok(times.into_iter().map(|nanoseconds| mib * 1e9 / nanoseconds.max(1.0)).collect())
    }
}

impl Exact {
    /// Once to warm up, and then between two lines.
    fn run(self, mut operation: impl FnMut(u64) -> io::Result<()>) -> io::Result<Vec<f64>> {
        let Self { name, count, each, rounds } = self;
        operation(count)?;
        for round in 0..rounds {
            super::exits::meet(&format!("@step {name} {round} "))?;
            operation(count)?;
            super::exits::meet(&format!("@done {name} {round} {}", count * each))?;
        }
        Ok(Vec::new())
    }
}

/// Nanoseconds between two looks at the clock, at best.
fn clock_cost() -> u64 {
    let cost = |_| {
        let start = now(libc::CLOCK_MONOTONIC);
        now(libc::CLOCK_MONOTONIC).saturating_sub(start)
    };
    (0..8).map(cost).min().unwrap_or(0)
}

fn once(operation: &mut impl FnMut(u64) -> io::Result<()>, count: u64) -> io::Result<u64> {
    let start = now(libc::CLOCK_MONOTONIC);
    operation(count)?;
    Ok(now(libc::CLOCK_MONOTONIC).saturating_sub(start))
}

/// Nanoseconds of a clock.
pub fn now(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call fills in a struct that lives across it.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
