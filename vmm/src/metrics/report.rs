//! Samples as text: JSON, and the form that Prometheus reads (exposition format
//! 0.0.4).

use super::Sample;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

/// One line:
/// `{"uptime_ms":…,"devices":{"block0":{"reads":…,"queues":[{…}]}},"vcpus":[{…}],"kvm":[{…}]}`.
pub fn json(samples: &[Sample], uptime: Duration) -> String {
    let mut devices: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    let mut lists: BTreeMap<&str, BTreeMap<usize, Map<String, Value>>> = BTreeMap::new();
    let mut queues: BTreeMap<&str, BTreeMap<usize, Map<String, Value>>> = BTreeMap::new();
    for Sample { family, labels, name, value } in samples {
        let label = |key| labels.iter().find(|(k, _)| *k == key).map(|(_, v)| v.as_str());
        let number = |key| label(key).and_then(|v| v.parse::<usize>().ok()).unwrap_or(0);
        let device = label("device").unwrap_or_default();
        let map = match *family {
            "device" => devices.entry(device).or_default(),
            "queue" => {
                devices.entry(device).or_default();
                queues.entry(device).or_default().entry(number("queue")).or_default()
            }
            family => lists.entry(family).or_default().entry(number("vcpu")).or_default(),
        };
        map.insert(name.clone(), json!(value));
    }
    for (device, queues) in queues {
        let list: Vec<Map<String, Value>> = queues.into_values().collect();
        devices.entry(device).or_default().insert("queues".to_owned(), json!(list));
    }
    let list = |family| -> Vec<&Map<String, Value>> {
        lists.get(family).map(|all| all.values().collect()).unwrap_or_default()
    };
    let uptime = uptime.as_millis() as u64;
    let all = json!({
        "uptime_ms": uptime, "devices": devices, "vcpus": list("vcpu"), "kvm": list("kvm"),
    });
    format!("{all}\n")
}

/// A block of lines for each name.
pub fn prometheus(samples: &[Sample], uptime: Duration) -> String {
    let mut names: BTreeMap<String, Vec<&Sample>> = BTreeMap::new();
    for sample in samples {
        let name = format!("microvm_{}_{}", sample.family, clean(&sample.name));
        names.entry(name).or_default().push(sample);
    }
    let mut text = format!(
        "# TYPE microvm_uptime_seconds gauge\nmicrovm_uptime_seconds {}\n",
        uptime.as_secs_f64()
    );
    for (name, samples) in names {
        // Writing to a string can't fail.
        let _ = writeln!(text, "# TYPE {name} {}", kind(&name));
        for sample in samples {
            let labels: Vec<String> =
                sample.labels.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
            let _ = writeln!(text, "{name}{{{}}} {}", labels.join(","), sample.value);
        }
    }
    text
}

/// Numbers that may fall, by the end of their names.
fn kind(name: &str) -> &'static str {
    const GAUGES: [&str; 4] = ["_now", "_actual_bytes", "_memory_bytes", "_target_bytes"];
    match GAUGES.iter().any(|end| name.ends_with(end)) {
        true => "gauge",
        false => "counter",
    }
}

/// A name of nothing but letters, digits and `_`.
fn clean(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Sample> {
        let sample = |family, labels: &[(&'static str, &str)], name: &str, value| Sample {
            family,
            labels: labels.iter().map(|(k, v)| (*k, (*v).to_owned())).collect(),
            name: name.to_owned(),
            value,
        };
        vec![
            sample("device", &[("device", "block0")], "reads", 3),
            sample("queue", &[("device", "block0"), ("queue", "0")], "doorbells", 5),
            sample("queue", &[("device", "block0"), ("queue", "1")], "doorbells", 6),
            sample("vcpu", &[("vcpu", "0")], "exits_port_in", 7),
            sample("kvm", &[("vcpu", "0")], "halt-exits", 8),
        ]
    }

    #[test]
    fn json_is_one_line_and_a_tree() {
        let text = json(&samples(), Duration::from_millis(1500));
        assert_eq!(text.matches('\n').count(), 1);
        let value: Value = serde_json::from_str(&text).unwrap();
        let wanted = json!({
            "uptime_ms": 1500,
            "devices": {"block0": {"reads": 3, "queues": [{"doorbells": 5}, {"doorbells": 6}]}},
            "vcpus": [{"exits_port_in": 7}],
            "kvm": [{"halt-exits": 8}],
        });
        assert_eq!(value, wanted);
    }

    #[test]
    fn prometheus_has_a_type_for_each_name() {
        let text = prometheus(&samples(), Duration::from_millis(1500));
        assert_eq!(
            text,
            "# TYPE microvm_uptime_seconds gauge\n\
             microvm_uptime_seconds 1.5\n\
             # TYPE microvm_device_reads counter\n\
             microvm_device_reads{device=\"block0\"} 3\n\
             # TYPE microvm_kvm_halt_exits counter\n\
             microvm_kvm_halt_exits{vcpu=\"0\"} 8\n\
             # TYPE microvm_queue_doorbells counter\n\
             microvm_queue_doorbells{device=\"block0\",queue=\"0\"} 5\n\
             microvm_queue_doorbells{device=\"block0\",queue=\"1\"} 6\n\
             # TYPE microvm_vcpu_exits_port_in counter\n\
             microvm_vcpu_exits_port_in{vcpu=\"0\"} 7\n"
        );
    }
}
