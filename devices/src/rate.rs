//! Token buckets: a limit on how much of something may happen in a time.
//!
//! A bucket holds up to `burst` tokens and is refilled steadily. What happens
//! takes tokens, as many as it is large. The bucket may go into debt by one
//! such taking, so that something larger than the burst is possible at all; it
//! is paid off before anything else happens. The rate therefore holds over
//! time whatever the sizes are.
//!
//! What a full bucket cannot hold is lost to who does not want it. It is not
//! lost to who waits: a host that is busy comes later than its timer said, often
//! by more than a tenth of a second, and what came meanwhile is kept, for
//! [`LATENESS`] at most.
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
/// So much later than its timer may one who waits be called, and lose nothing.
const LATENESS: Duration = Duration::from_secs(1);

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

    /// What has come until `now`. It fills the bucket, and no more; `awaited`
    /// for so long, the bucket has held as much more as has come in that time.
    fn refill(&mut self, now: Instant, awaited: Duration) {
        let tokens = |time: Duration| {
            i128::from(self.rate.per_second).saturating_mul(time.as_nanos() as i128)
        };
        let full = i128::from(self.rate.burst) * NANOS as i128;
        let room = full.saturating_add(tokens(awaited.min(LATENESS)));
        let gained = tokens(now.saturating_duration_since(self.at));
        // What was kept for one who waited stays until it is taken.
        self.level = self.level.max(self.level.saturating_add(gained).min(room));
        self.at = now;
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

/// Both buckets, in whatever time they are told.
#[derive(Debug)]
struct Buckets {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
    /// When who waits is called, if anyone does.
    until: Option<Instant>,
}

impl Buckets {
    fn new(bytes: Option<Rate>, operations: Option<Rate>, now: Instant) -> Self {
        let bucket = |rate: Option<Rate>| rate.map(|rate| Bucket::new(rate, now));
        Self { bytes: bucket(bytes), operations: bucket(operations), until: None }
    }

    fn each(&mut self) -> impl Iterator<Item = &mut Bucket> {
        [&mut self.bytes, &mut self.operations].into_iter().flatten()
    }

    /// How long who asks has to wait, from now on; zero: not at all. `None`: it
    /// waits already.
    fn pause(&mut self, now: Instant) -> Option<Duration> {
        let awaited = match self.until.take() {
            Some(until) if now < until => {
                self.until = Some(until);
                return None;
            }
            Some(until) => now - until,
            None => Duration::ZERO,
        };
        let mut pause = Duration::ZERO;
        for bucket in self.each() {
            bucket.refill(now, awaited);
            if !bucket.wait().is_zero() {
                pause = pause.max(bucket.pause());
            }
        }
        self.until = (!pause.is_zero()).then(|| now + pause);
        Some(pause)
    }

    fn take(&mut self, bytes: u64) {
        for (bucket, tokens) in [(&mut self.bytes, bytes), (&mut self.operations, 1)] {
            if let Some(bucket) = bucket {
                bucket.level -= i128::from(tokens) * NANOS as i128;
            }
        }
    }
}

/// A limit on bytes, on operations, or on both.
#[derive(Debug)]
pub struct Limiter {
    buckets: Buckets,
    timer: TimerFd,
}

impl Limiter {
    /// A limiter whose buckets are full.
    pub fn new(bytes: Option<Rate>, operations: Option<Rate>) -> io::Result<Self> {
        // Never read: each time that it runs out is an edge of its own.
        let timer = TimerFd::new()?;
        Ok(Self { buckets: Buckets::new(bytes, operations, Instant::now()), timer })
    }

    /// Whether something may happen now. If not, the timer is set to when it may.
    pub fn ready(&mut self) -> bool {
        match self.buckets.pause(Instant::now()) {
            None => false,
            Some(Duration::ZERO) => true,
            Some(pause) => match self.timer.reset(pause, None) {
                Ok(()) => false,
                Err(e) => {
                    // Without a timer nothing would ever go on: better too fast.
                    log::error!("rate limit: timer: {e}");
                    self.buckets.until = None;
                    true
                }
            },
        }
    }

    /// One operation of so many bytes has happened.
    pub fn take(&mut self, bytes: u64) {
        self.buckets.take(bytes);
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
            bucket.refill(now, Duration::ZERO);
            if !bucket.wait().is_zero() {
                now += bucket.pause();
            }
            bucket.refill(now, Duration::ZERO);
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

    /// Someone who always wants `size` bytes, for `time`, and is called `late`
    /// by as much as its turn says: bytes and operations that got through, for
    /// each that could have.
    fn served(limits: [Option<Rate>; 2], size: u64, time: Duration, late: &[u64]) -> [f64; 2] {
        let start = Instant::now();
        let mut buckets = Buckets::new(limits[0], limits[1], start);
        let (mut now, mut operations) = (start, 0);
        let mut late = late.iter().cycle();
        while now < start + time {
            match buckets.pause(now) {
                Some(Duration::ZERO) => {
                    buckets.take(size);
                    operations += 1;
                }
                Some(pause) => now += pause + Duration::from_millis(*late.next().unwrap()),
                None => panic!("called too early"),
            }
        }
        let could = |rate: Option<Rate>| {
            rate.map_or(f64::NAN, |rate| rate.per_second as f64 * (now - start).as_secs_f64())
        };
        [(operations * size) as f64 / could(limits[0]), operations as f64 / could(limits[1])]
    }

    /// The default burst is a tenth of a second, and a busy host is later.
    #[test]
    fn who_waits_gets_the_rate_though_it_is_called_late() {
        let on_time: &[u64] = &[0];
        let busy = &[0, 3, 250, 40, 0, 990, 1, 130, 0, 0, 700];
        for late in [on_time, busy] {
            for (per_second, size) in [(64 << 10, 1000), (2 << 20, 16 << 10), (1 << 30, 1500)] {
                let minute = Duration::from_secs(60);
                let bytes = Rate::steady(per_second);
                let [share, _] = served([Some(bytes), None], size, minute, late);
                assert!((0.95..=1.05).contains(&share), "{bytes:?}, {size}: {share}");
            }
            for per_second in [10, 50, 200, 100_000] {
                let operations = Rate::steady(per_second);
                let [_, share] =
                    served([None, Some(operations)], 64, Duration::from_secs(60), late);
                assert!((0.95..=1.05).contains(&share), "{operations:?}: {share}");
            }
        }
    }

    #[test]
    fn who_does_not_wait_gets_a_burst_and_no_more() {
        let start = Instant::now();
        let rate = Rate { per_second: 1000, burst: 100 };
        let mut buckets = Buckets::new(None, Some(rate), start);
        let mut taken_at = |now: Instant| {
            let mut taken = 0;
            while buckets.pause(now) == Some(Duration::ZERO) {
                buckets.take(1);
                taken += 1;
            }
            taken
        };
        let rest = Duration::from_secs(3600);
        assert_eq!(taken_at(start), 100);
        // It waited then, and was called an hour late: that is a second's worth.
        assert_eq!(taken_at(start + rest), 1100);
        let mut idle = Buckets::new(None, Some(rate), start);
        assert_eq!(idle.pause(start + rest), Some(Duration::ZERO));
        assert_eq!(idle.operations.unwrap().level, 100 * NANOS as i128);
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
