//! What a few samples say, without assuming how they are distributed.

/// Samples in short.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// How many.
    pub count: usize,
    /// The middle one.
    pub median: f64,
    /// Where the true median is, from
    pub low: f64,
    /// to; with 95 % confidence, if there are six samples or more: else these are the
    /// least and the greatest.
    pub high: f64,
    /// The least sample.
    pub least: f64,
    /// The greatest.
    pub greatest: f64,
    /// Median distance from the median, as a part of it.
    pub spread: f64,
}

/// How sure an interval has to be.
const CONFIDENCE: f64 = 0.95;
/// A spread above this is told: what is smaller than it can't be seen.
const NOISY: f64 = 0.15;

impl Summary {
    /// Of at least one sample; others than numbers are left out.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted: Vec<f64> = samples.iter().copied().filter(|x| x.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let (least, greatest) = (*sorted.first()?, *sorted.last()?);
        let median = middle(&sorted);
        let rank = rank(sorted.len());
        let low = sorted.get(rank).copied().unwrap_or(least);
        let high = sorted.get(sorted.len() - 1 - rank).copied().unwrap_or(greatest);
        let mut distances: Vec<f64> = sorted.iter().map(|x| (x - median).abs()).collect();
        distances.sort_by(f64::total_cmp);
        let spread = if median == 0.0 { 0.0 } else { middle(&distances) / median.abs() };
        Some(Self { count: sorted.len(), median, low, high, least, greatest, spread })
    }

    /// Whether the samples differ so much that the median should not be trusted far.
    pub fn is_noisy(&self) -> bool {
        self.spread > NOISY
    }

    /// Whether another's median is surely not this one's: the intervals are apart.
    pub fn differs_from(&self, other: &Self) -> bool {
        self.low > other.high || other.low > self.high
    }
}

fn middle(sorted: &[f64]) -> f64 {
    let half = sorted.len() / 2;
    let upper = sorted.get(half).copied().unwrap_or(f64::NAN);
    match sorted.len() % 2 {
        1 => upper,
        _ => (upper + sorted.get(half.wrapping_sub(1)).copied().unwrap_or(f64::NAN)) / 2.0,
    }
}

/// The greatest number of samples to leave out at each end so that the rest spans the
/// median with confidence: by the binomial distribution, whatever the samples'.
fn rank(count: usize) -> usize {
    // The chance that exactly `k` of the samples are below the median.
    let mut chance = 0.5f64.powi(count.min(1000) as i32);
    let mut below = 0.0;
    let mut rank = 0;
    for k in 0..count / 2 {
        below += chance;
        if 1.0 - 2.0 * below < CONFIDENCE {
            break;
        }
        rank = k;
        chance *= (count - k) as f64 / (k + 1) as f64;
    }
    rank
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn medians_and_their_intervals_are_as_in_the_tables() {
        let summary = Summary::of(&[5.0, 1.0, 3.0]).unwrap();
        assert_eq!((summary.median, summary.low, summary.high), (3.0, 1.0, 5.0));
        let to = |n: u32| (1..=n).map(f64::from).collect::<Vec<_>>();
        // Of tables of the sign test: the order statistics that bound the median.
        for (count, low, high) in [(6, 1.0, 6.0), (9, 2.0, 8.0), (20, 6.0, 15.0), (30, 10.0, 21.0)]
        {
            let summary = Summary::of(&to(count)).unwrap();
            assert_eq!((summary.low, summary.high), (low, high), "{count}");
        }
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[f64::NAN]), None);
    }

    #[test]
    fn noise_and_differences_are_seen() {
        assert!(!Summary::of(&[10.0, 10.1, 9.9, 10.0]).unwrap().is_noisy());
        assert!(Summary::of(&[1.0, 10.0, 5.0, 20.0]).unwrap().is_noisy());
        let (low, high) =
            (Summary::of(&[1.0, 1.1, 1.2]).unwrap(), Summary::of(&[1.3, 1.4]).unwrap());
        assert!(low.differs_from(&high) && high.differs_from(&low) && !low.differs_from(&low));
    }

    proptest! {
        #[test]
        fn the_median_is_inside_of_all(samples in proptest::collection::vec(-1e9..1e9f64, 1..80)) {
            let s = Summary::of(&samples).unwrap();
            prop_assert!(s.least <= s.low && s.low <= s.median);
            prop_assert!(s.median <= s.high && s.high <= s.greatest);
            prop_assert_eq!(s.count, samples.len());
        }
    }
}
