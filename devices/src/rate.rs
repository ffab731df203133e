//! Token buckets: a limit on how much of something may happen in a time.
//!
//! A bucket holds up to `burst` tokens and is refilled steadily. What happens
//! takes tokens, as many as it is large. The bucket may go into debt by one
//! such taking, so that something larger than the burst is possible at all; it
//! is paid off before anything else happens. The rate therefore holds over
//! time whatever the sizes are.
//!
//! A [`Limiter`] is two of them, for bytes and for operations, with a timer that
//! becomes readable when there is something to take again.

use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};
use vmm_sys_util::timerfd::TimerFd;

const NANOS: u128 = 1_000_000_000;
/// What waits is let go this much later than it could, and more of it at once:
/// a timer for each packet would cost more than the packet.
const BATCH: Duration = Duration::from_millis(1);

/// A limit, as it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Tokens in a second; not 0.
    pub per_second: u64,
    /// Tokens that may be taken at once after a rest.
    pub burst: u64,
}

impl Rate {
    /// A rate whose burst is what comes in a tenth of a second.
    pub fn steady(per_second: u64) -> Self {
        Self { per_second, burst: (per_second / 10).max(1) }
    }
}

/// The bucket of one [`Rate`].
#[derive(Debug)]
struct Bucket {
    rate: Rate,
    /// In tokens × 10⁻⁹, so that no part of one is lost; negative: in debt.
    level: i128,
    at: Instant,
}

impl Bucket {
    fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, level: i128::from(rate.burst) * NANOS as i128, at: now }
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_nanos() as i128;
        self.at = now;
        let full = i128::from(self.rate.burst) * NANOS as i128;
        let gained = passed.saturating_mul(self.rate.per_second.into());
        self.level = self.level.saturating_add(gained).min(full);
    }

    /// How long until there is anything to take; zero: there is.
    fn wait(&self) -> Duration {
        match u128::try_from(-self.level) {
            Ok(debt) => self.time(debt + 1),
            Err(_) => Duration::ZERO,
        }
    }

    /// How long until there is enough to go on with: no more than the bucket
    /// holds, so that nothing is lost while nobody takes.
    fn pause(&self) -> Duration {
        let full = self.time(u128::from(self.rate.burst) * NANOS);
        self.wait() + BATCH.min(full / 2)
    }

    /// How long so many billionths of a token take to come. Rounded up: a timer
    /// that is early would only be set again.
    fn time(&self, parts: u128) -> Duration {
        let nanos = parts.div_ceil(self.rate.per_second.max(1).into());
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// A limit on bytes, on operations, or on both.
#[derive(Debug)]
pub struct Limiter {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
    timer: TimerFd,
    /// When the timer runs out, if it is set.
    until: Option<Instant>,
}

impl Limiter {
    /// A limiter whose buckets are full.
    pub fn new(bytes: Option<Rate>, operations: Option<Rate>) -> io::Result<Self> {
        let now = Instant::now();
        let bucket = |rate: Option<Rate>| rate.map(|rate| Bucket::new(rate, now));
        // Never read: each time that it runs out is an edge of its own.
        let timer = TimerFd::new()?;
        Ok(Self { bytes: bucket(bytes), operations: bucket(operations), timer, until: None })
    }

    /// Whether something may happen now. If not, the timer is set to when it may.
    pub fn ready(&mut self) -> bool {
        let now = Instant::now();
        if self.until.is_some_and(|until| now < until) {
            return false;
        }
        self.until = None;
        let mut pause = Duration::ZERO;
        for bucket in [&mut self.bytes, &mut self.operations].into_iter().flatten() {
            bucket.refill(now);
            if !bucket.wait().is_zero() {
                pause = pause.max(bucket.pause());
            }
        }
        if pause.is_zero() {
            return true;
        }
        if let Err(e) = self.timer.reset(pause, None) {
            // Without a timer nothing would ever go on: better too fast.
            log::error!("rate limit: timer: {e}");
            return true;
        }
        self.until = Some(now + pause);
        false
    }

    /// One operation of so many bytes has happened.
    pub fn take(&mut self, bytes: u64) {
        for (bucket, tokens) in [(&mut self.bytes, bytes), (&mut self.operations, 1)] {
            if let Some(bucket) = bucket {
                bucket.level -= i128::from(tokens) * NANOS as i128;
            }
        }
    }

    /// What becomes readable, and stays so, when [`Limiter::ready`] may say yes.
    pub fn source(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A bucket in a time of our own.
    fn run(rate: Rate, sizes: &[u64], pauses: &[u64]) -> (u64, Duration) {
        let start = Instant::now();
        let mut bucket = Bucket::new(rate, start);
        let (mut now, mut taken) = (start, 0);
        for (size, pause) in sizes.iter().zip(pauses.iter().cycle()) {
            now += Duration::from_nanos(*pause);
            bucket.refill(now);
            if !bucket.wait().is_zero() {
                now += bucket.pause();
            }
            bucket.refill(now);
            assert_eq!(bucket.wait(), Duration::ZERO, "{bucket:?}");
            bucket.level -= i128::from(*size) * NANOS as i128;
            taken += size;
        }
        // The last debt is paid, too.
        now += bucket.wait();
        (taken, now - start)
    }

    proptest! {
        /// Never more than the burst and what has been refilled since.
        #[test]
        fn no_more_than_the_rate(
            per_second in 1..1_000_000_000_000u64,
            burst in 1..1_000_000_000u64,
            sizes in prop::collection::vec(1..10_000_000u64, 1..100),
            pauses in prop::collection::vec(0..1_000_000_000u64, 1..10),
        ) {
            let (taken, time) = run(Rate { per_second, burst }, &sizes, &pauses);
            let most = burst as f64 + per_second as f64 * time.as_secs_f64();
            prop_assert!(taken as f64 <= most * 1.000_001 + 1.0, "{taken} > {most}");
        }

        /// And no less, for who takes whenever it may.
        #[test]
        fn no_less_than_the_rate(
            per_second in 1000..1_000_000_000_000u64,
            sizes in prop::collection::vec(1..10_000_000u64, 1..100),
        ) {
            let rate = Rate::steady(per_second);
            let (taken, time) = run(rate, &sizes, &[0]);
            let least = per_second as f64 * time.as_secs_f64();
            prop_assert!(taken as f64 + 1.0 >= least * 0.999_999, "{taken} < {least}");
        }
    }

    #[test]
    fn a_limiter_without_limits_is_always_ready() {
        let mut limiter = Limiter::new(None, None).unwrap();
        for _ in 0..1000 {
            assert!(limiter.ready());
            limiter.take(u64::MAX);
        }
    }

    #[test]
    fn the_timer_tells_when_there_is_something_again() {
        let operations = Some(Rate { per_second: 1000, burst: 1 });
        let mut limiter = Limiter::new(None, operations).unwrap();
        assert!(limiter.ready());
        limiter.take(0);
        limiter.take(0);
        assert!(!limiter.ready());
        let mut poll = libc::pollfd { fd: limiter.source(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        assert_eq!(unsafe { libc::poll(&mut poll, 1, 10_000) }, 1);
        assert!(limiter.ready());
    }
}
