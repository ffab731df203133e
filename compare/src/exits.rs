//! How often a machine leaves its guest: KVM's own statistics and the monitor's
//! counters, read from outside before and after each of the agent's steps.
//!
//! What two lines through a console cost is measured as a step of its own, and taken
//! off all others.

use crate::Error;
use crate::report::Value;
use crate::spawn::{Child, Order, Signals};
use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// What the counters say at a moment.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Counters {
    at: Instant,
    /// All exits of all vCPUs; KVM may not tell.
    all: Option<f64>,
    /// Those that microvm handles.
    user: f64,
}

/// Exits of a step, all and those to microvm; for each of its operations, or a second.
type Samples = BTreeMap<&'static str, Vec<(Option<f64>, f64)>>;

/// The agent's steps, in its order; whether they are counted a second, and where
/// what comes to microvm is told as well.
const STEPS: [(&str, bool, Option<&str>); 9] = [
    ("nothing", false, None),
    ("exits_idle", true, None),
    ("exits_busy", true, None),
    ("exits_getpid", false, None),
    ("exits_page_fault", false, None),
    ("exits_switch", false, None),
    ("exits_timer", false, None),
    ("exits_disk_read", false, Some("exits_disk_read_user")),
    ("exits_disk_fsync", false, None),
];
const ROUNDS: usize = 3;
/// The most that a monitor has to say.
const MAX_REPORT: u64 = 1 << 20;
const UNTOLD: &str = "KVM here keeps no statistics";

/// Runs it to its end; every figure, or why it is not there.
pub fn measure(
    order: Order,
    socket: &Path,
    signals: &Signals,
    limit: Duration,
) -> Result<Vec<(&'static str, Value)>, Error> {
    // The one before may have been killed.
    let _ = std::fs::remove_file(socket);
    let mut child = Child::start(order).map_err(Error::Subject)?;
    child.until("@ready", signals, limit)?;
    let boot = read(socket)?;
    let mut samples = Samples::new();
    let mut missing = BTreeMap::new();
    for (name, a_second, _) in STEPS {
        for round in 0..ROUNDS {
            let begin = format!("@step {name} {round} ");
            let refused = format!("@n {name} ");
            child.until_any(&[&begin, &refused], signals, limit)?;
            if let Some(line) = child.line(&refused) {
                let why = line.trim_start_matches(&refused).to_owned();
                missing.insert(name, why);
                break;
            }
            let before = read(socket)?;
            child.tell("")?;
            let end = format!("@done {name} {round} ");
            child.until(&end, signals, limit)?;
            let after = read(socket)?;
            child.tell("")?;
            let line = child.line(&end).unwrap_or_default();
            let count: f64 = line.trim_start_matches(&end).trim().parse().unwrap_or(0.0);
            let idle = samples.get("nothing").map(|of| least(of));
            let each = if a_second { (after.at - before.at).as_secs_f64() } else { count };
            samples.entry(name).or_default().push(spent(before, after, idle, each));
        }
    }
    child.until("@end", signals, limit)?;
    child.let_go();
    child.finish(signals, limit)?;
    Ok(figures(boot, &samples, &missing))
}

/// What lies between, without what the lines themselves have cost.
fn spent(
    before: Counters,
    after: Counters,
    lines: Option<(Option<f64>, f64)>,
    each: f64,
) -> (Option<f64>, f64) {
    let (lines_all, lines_user) = lines.unwrap_or_default();
    let of = |more: f64, lines: f64| (more - lines).max(0.0) / each.max(f64::MIN_POSITIVE);
    let all = match (after.all, before.all) {
        (Some(after), Some(before)) => Some(of(after - before, lines_all.unwrap_or(0.0))),
        _ => None,
    };
    (all, of(after.user - before.user, lines_user))
}

fn least(samples: &[(Option<f64>, f64)]) -> (Option<f64>, f64) {
    let all = samples.iter().filter_map(|(all, _)| *all).min_by(f64::total_cmp);
    let user = samples.iter().map(|(_, user)| *user).min_by(f64::total_cmp);
    (all, user.unwrap_or(0.0))
}

fn figures(
    boot: Counters,
    samples: &Samples,
    missing: &BTreeMap<&str, String>,
) -> Vec<(&'static str, Value)> {
    let known = |values: Option<Vec<f64>>, why: Option<&String>| match values {
        Some(values) if !values.is_empty() => Value::Samples(values),
        _ => Value::Missing(why.cloned().unwrap_or_else(|| UNTOLD.to_owned())),
    };
    let mut figures = vec![
        ("exits_boot", known(boot.all.map(|all| vec![all]), None)),
        ("exits_boot_user", Value::Samples(vec![boot.user])),
    ];
    for (name, _, user) in STEPS.iter().skip(1) {
        let of = samples.get(name).map(Vec::as_slice).unwrap_or_default();
        let all = of.iter().map(|(all, _)| *all).collect();
        figures.push((*name, known(all, missing.get(name))));
        if let Some(user) = user {
            let values = of.iter().map(|(_, user)| *user).collect();
            figures.push((*user, known(Some(values), missing.get(name))));
        }
    }
    figures
}

/// Asks the monitor.
fn read(socket: &Path) -> Result<Counters, Error> {
    let cannot =
        |error: std::io::Error| Error::Subject(format!("counters: {}", vmm::plain(&error)));
    let at = Instant::now();
    let stream = UnixStream::connect(socket).map_err(cannot)?;
    stream.set_read_timeout(Some(Duration::from_secs(60))).map_err(cannot)?;
    let mut text = String::new();
    stream.take(MAX_REPORT).read_to_string(&mut text).map_err(cannot)?;
    counters(&text, at)
        .ok_or_else(|| Error::Subject("its counters are not what they should be".into()))
}

/// Of a report of `--metrics` in JSON.
fn counters(text: &str, at: Instant) -> Option<Counters> {
    let report: serde_json::Value = serde_json::from_str(text).ok()?;
    let sum = |list: &str, wanted: &dyn Fn(&str) -> bool| -> Option<f64> {
        let all = report.get(list)?.as_array()?.iter().filter_map(|part| part.as_object());
        let numbers = all.flatten().filter(|(name, _)| wanted(name));
        numbers
            .map(|(_, number)| number.as_f64())
            .collect::<Option<Vec<f64>>>()
            .map(|numbers| if numbers.is_empty() { f64::NAN } else { numbers.iter().sum() })
    };
    let user = sum("vcpus", &|name| name.starts_with("exits_"))?;
    let all = sum("kvm", &|name| name == "exits").filter(|all| all.is_finite());
    user.is_finite().then_some(Counters { at, all, user })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{Group, METRICS};

    fn at(all: Option<f64>, user: f64) -> Counters {
        Counters { at: Instant::now(), all, user }
    }

    #[test]
    fn counters_are_sums_of_all_vcpus() {
        let now = Instant::now();
        let text = r#"{"vcpus": [{"exits_port_in": 7, "kicks": 9}, {"exits_mmio_read": 3}],
                       "kvm": [{"exits": 40, "halt_exits": 2}, {"exits": 2}]}"#;
        let read = counters(text, now).unwrap();
        assert_eq!((read.all, read.user), (Some(42.0), 10.0));
        let without = counters(r#"{"vcpus": [{"exits_port_in": 7}], "kvm": []}"#, now).unwrap();
        assert_eq!((without.all, without.user), (None, 7.0));
        for wrong in ["", "{}", r#"{"vcpus": []}"#, r#"{"vcpus": [{"exits_hlt": "x"}]}"#] {
            assert!(counters(wrong, now).is_none(), "{wrong}");
        }
    }

    #[test]
    fn what_the_lines_cost_is_taken_off() {
        let (before, after) = (at(Some(100.0), 10.0), at(Some(350.0), 40.0));
        assert_eq!(spent(before, after, Some((Some(50.0), 10.0)), 100.0), (Some(2.0), 0.2));
        assert_eq!(spent(before, after, Some((Some(300.0), 90.0)), 1.0), (Some(0.0), 0.0));
        assert_eq!(spent(before, at(None, 40.0), None, 10.0), (None, 3.0));
    }

    #[test]
    fn every_figure_of_the_catalogue_has_a_value_or_a_reason() {
        let missing = BTreeMap::from([("exits_disk_fsync", "read-only".to_owned())]);
        let samples = Samples::from([("exits_getpid", vec![(None, 1.0)])]);
        let figures = figures(at(None, 5.0), &samples, &missing);
        let mut names: Vec<_> = figures.iter().map(|(name, _)| *name).collect();
        names.sort_unstable();
        let mut expected: Vec<_> =
            METRICS.iter().filter(|m| m.group == Group::Exits).map(|m| m.name).collect();
        expected.sort_unstable();
        assert_eq!(names, expected);
        let of = |wanted: &str| &figures.iter().find(|(name, _)| *name == wanted).unwrap().1;
        assert_eq!(*of("exits_getpid"), Value::Missing(UNTOLD.to_owned()));
        assert_eq!(*of("exits_disk_fsync"), Value::Missing("read-only".to_owned()));
        assert_eq!(*of("exits_boot_user"), Value::Samples(vec![5.0]));
    }
}
