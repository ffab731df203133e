//! What a program that computes gets: processor, memory, and being left alone.

use crate::kernel::Mapping;
use crate::report;
use crate::timing::{Budget, now};
use std::hint::black_box;
use std::io;

/// One operation of the loops.
const ROUNDS: u64 = 1000;
/// More than caches of the second level hold.
const COPY: usize = 8 << 20;
/// More pages than a TLB has entries for.
const CHASE: usize = 32 << 20;
/// A cache line after a page, so that not all are of one set.
const STRIDE: usize = 4096 + 64;
/// Pieces of equal work, and nanoseconds that each takes about.
const PIECES: usize = 400;
const PIECE: u64 = 50_000;

/// Every kind by its name.
pub fn measure(budget: Budget) {
    report("cpu_integer", per_round(budget.time(integer)));
    report("cpu_float", per_round(budget.time(float)));
    report("memory_copy", copy(budget));
    report("tlb", chase(budget));
    report("noise", noise());
}

fn per_round(times: io::Result<Vec<f64>>) -> io::Result<Vec<f64>> {
    times.map(|times| times.into_iter().map(|time| time / ROUNDS as f64).collect())
}

/// Each step needs the one before it: three shifts and three exclusive ors.
pub fn integer(count: u64) -> io::Result<()> {
    let mut x = black_box(0x2545_f491_4f6c_dd1d_u64);
    for _ in 0..count * ROUNDS {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
    }
    black_box(x);
    Ok(())
}

/// A multiplication and an addition that need the ones before them.
fn float(count: u64) -> io::Result<()> {
    let mut x = black_box(0.5_f64);
    for _ in 0..count * ROUNDS {
        x = x * 0.999_999 + 0.000_000_5;
    }
    black_box(x);
    Ok(())
}

fn copy(budget: Budget) -> io::Result<Vec<f64>> {
    let from = vec![1u8; COPY];
    let mut to = vec![2u8; COPY];
    budget.rate(COPY, |count| {
        for _ in 0..count {
            to.copy_from_slice(black_box(&from));
            black_box(&mut to);
        }
        Ok(())
    })
}

/// From page to page in an order that can't be foreseen.
fn chase(budget: Budget) -> io::Result<Vec<f64>> {
    let mut memory = Mapping::new(CHASE)?;
    memory.touch();
    let places = CHASE / STRIDE;
    // A walk through all of them: steps of an odd number in a power of two would
    // be foreseen, so places are exchanged first.
    let mut order: Vec<usize> = (0..places).collect();
    let mut x = 88_172_645_463_325_252_u64;
    for i in (1..places).rev() {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        order.swap(i, (x % (i as u64 + 1)) as usize);
    }
    for (i, place) in order.iter().enumerate() {
        let next = order.get((i + 1) % places).copied().unwrap_or(0);
        // SAFETY: place < places, so its eight bytes are inside of the mapping, and
        // aligned: the stride is a multiple of eight.
        unsafe { memory.start.add(place * STRIDE).cast::<usize>().write(next) };
    }
    let mut at = 0;
    budget.time(|count| {
        for _ in 0..count {
            // SAFETY: `at` is one of the places that were written above.
            at = unsafe { memory.start.add(at * STRIDE).cast::<usize>().read_volatile() };
        }
        black_box(at);
        Ok(())
    })
}

/// By how many percent pieces of equal work took longer than the shortest did: the
/// mean, of each tenth of them.
fn noise() -> io::Result<Vec<f64>> {
    let mut count = 1;
    loop {
        let start = now(libc::CLOCK_MONOTONIC);
        integer(count)?;
        if now(libc::CLOCK_MONOTONIC) - start >= PIECE || count > 1 << 20 {
            break;
        }
        count *= 2;
    }
    let mut times = Vec::with_capacity(PIECES);
    for _ in 0..PIECES {
        let start = now(libc::CLOCK_MONOTONIC);
        integer(count)?;
        times.push((now(libc::CLOCK_MONOTONIC) - start) as f64);
    }
    let shortest = times.iter().copied().fold(f64::INFINITY, f64::min).max(1.0);
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len().max(1) as f64;
    Ok(times.chunks(PIECES / 10).map(|part| (mean(part) / shortest - 1.0) * 100.0).collect())
}
