//! A few operations, each an exact number of times and between two lines that the
//! host is waited for: it reads its counters meanwhile.
//!
//! ```text
//!  agent                          host
//!  @step NAME ROUND           →   reads counters
//!     … the operations …      ←   a line
//!  @done NAME ROUND COUNT     →   reads counters
//!                             ←   a line
//! ```

use crate::timing::{Budget, Exact};
use crate::{disk, kernel, load, report, say};
use std::io;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

/// Of everything.
const ROUNDS: u32 = 3;
/// Sleeps of a round, a millisecond each.
const SLEEPS: u64 = 50;
/// Rounds of the loop that computes: some hundred milliseconds of most processors.
const COMPUTING: u64 = 100_000;

/// All steps. `nothing` is what two lines cost.
pub fn steps(place: &Path) {
    let idle = |_| {
        sleep(Duration::from_millis(300));
        Ok(())
    };
    let naps = |count| {
        (0..count).for_each(|_| sleep(Duration::from_millis(1)));
        Ok(())
    };
    told("nothing", exactly("nothing", 1, 1).time(|_| Ok(())));
    told("exits_idle", exactly("exits_idle", 1, 1).time(idle));
    told("exits_busy", exactly("exits_busy", COMPUTING, 1).time(load::integer));
    told("exits_getpid", kernel::getpid(exactly("exits_getpid", 5000, 1)));
    let pages = kernel::PAGES as u64;
    told("exits_page_fault", kernel::page_fault(exactly("exits_page_fault", 8, pages)));
    // There and back again.
    told("exits_switch", kernel::context_switch(exactly("exits_switch", 500, 2)));
    told("exits_timer", exactly("exits_timer", SLEEPS, 1).time(naps));
    let of_disk = |name, count| exactly(name, count, 1);
    disk::count(of_disk("exits_disk_read", 100), of_disk("exits_disk_fsync", 25), place, told);
}

fn exactly(name: &'static str, count: u64, each: u64) -> Budget {
    Budget::exactly(Exact { name, count, each, rounds: ROUNDS })
}

/// There are no values; what went wrong is told.
fn told(name: &str, result: io::Result<Vec<f64>>) {
    if let Err(error) = result {
        report(name, Err(error));
    }
}

/// Says a line and waits for one: whoever counts has seen it.
pub fn meet(line: &str) -> io::Result<()> {
    if say(line) != 0 {
        return Err(io::Error::other("nobody reads"));
    }
    let mut answer = String::new();
    match io::stdin().read_line(&mut answer)? {
        0 => Err(io::Error::other("nobody answers")),
        _ => Ok(()),
    }
}
