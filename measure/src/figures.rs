//! Figures from what was recorded.

use crate::eoi::PLAIN_TICK;
use crate::names::{Map, PROCESSOR, is_port};
use crate::report::{
    Boot, Clock, Figure, Gap, Log, Milestone, Mode, Reason, Register, Step, Value,
};
use crate::run::{Ran, SIGALRM};
use crate::{Effort, Subject};
use guest::measure::{BLOCK, Operation, TICK_US};
use std::collections::BTreeMap;
use vmm::exit::Exit;
use vmm::record::{Access, Kind, Mark};

/// Registers of the boot, of an operation, and gaps of the log that are told.
const TOP: usize = 256;
const FEW: usize = 12;
const GAPS: usize = 5;
/// Exits of which KVM has no statistics.
const PROCESSORS: &str = "CPUID, MSR, APIC and others";
/// KVM's statistics of the time for which a processor sleeps.
const ASLEEP: [&str; 3] = ["halt_wait_ns", "halt_poll_success_ns", "halt_poll_fail_ns"];
/// What the measuring init writes into the kernel's log as it starts.
const INIT_LINE: &str = "microvm: init";

/// What one subject did.
#[derive(Clone, Copy)]
pub struct Runs<'a> {
    /// With one processor.
    pub alone: &'a Ran,
    /// With two, if it can have them.
    pub pair: Option<&'a Ran>,
    /// With one and without KVM's way to end interrupts, if it has that.
    pub plain: Option<&'a Ran>,
}

/// The figures of one subject.
pub fn mode(subject: &Subject, runs: Runs<'_>, effort: Effort, clock: Clock) -> Mode {
    let alone = runs.alone;
    let map = Map::new(&alone.config);
    let told = Told::read(&alone.record.data);
    let log = told.log();
    let marks = &alone.record.marks;
    let boot = boot(alone, &map, &told, &log);
    let mut mode = Mode::failed(subject, String::new());
    mode.problem = problem(alone, boot.is_some());
    mode.row = alone.config.row();
    const ALONE: [Operation; 7] = [
        Operation::Read,
        Operation::Write,
        Operation::ReadStream,
        Operation::WriteStream,
        Operation::Packet,
        Operation::SendStream,
        Operation::Tick,
    ];
    if effort != Effort::Boot {
        let figure = |name: &str, value| Figure { operation: name.to_owned(), value };
        let measured = |operation: Operation| figure(operation.word(), measured(alone, operation));
        mode.operations.extend(ALONE.map(measured));
        let ipi = runs.pair.map_or_else(|| two_are_needed(subject), |pair| second(pair, clock));
        mode.operations.push(figure(Operation::Ipi.word(), ipi));
        let plain = runs.plain.map(|plain| figure(PLAIN_TICK, elsewhere(plain, Operation::Tick)));
        mode.operations.extend(plain);
    }
    mode.read = steps(marks, Operation::OneRead, &map);
    mode.packet = steps(marks, Operation::OnePacket, &map);
    mode.boot = boot;
    mode.log = log;
    mode
}

fn problem(ran: &Ran, booted: bool) -> Option<String> {
    if ran.exit == Exit::Told {
        return None;
    }
    let how = match ran.exit {
        Exit::Signal(SIGALRM) => "it took too long".to_owned(),
        ref other => other.to_string(),
    };
    let console = String::from_utf8_lossy(&ran.record.console);
    let last: Vec<&str> = console.lines().rev().filter(|line| !line.trim().is_empty()).collect();
    let said = match (last.first(), booted) {
        (Some(line), _) => format!("; the console's last line: {}", line.trim().escape_debug()),
        (None, true) => String::new(),
        (None, false) => "; the guest did not come to init".to_owned(),
    };
    Some(how + &said)
}

fn two_are_needed(subject: &Subject) -> Value {
    let why = match subject.can_have_two() {
        true => "the machine with two processors did not run",
        false => "interrupt controllers of the monitor's are for one processor",
    };
    Value::Missing { why: why.to_owned() }
}

/// What an operation of a machine cost.
fn measured(ran: &Ran, operation: Operation) -> Value {
    let told = Told::read(&ran.record.data);
    let marks = &ran.record.marks;
    match Interval::find(marks, operation).filter(|_| !told.is_void(operation)) {
        Some(interval) => value(&interval, operation, nothing(marks), &Map::new(&ran.config)),
        None => told.why(operation),
    }
}

/// The same of a machine of which nothing else is told.
fn elsewhere(ran: &Ran, operation: Operation) -> Value {
    match (measured(ran, operation), problem(ran, true)) {
        (Value::Missing { .. }, Some(why)) => Value::Missing { why },
        (value, _) => value,
    }
}

/// The one thing for which a second processor was there.
fn second(pair: &Ran, clock: Clock) -> Value {
    let mut value = elsewhere(pair, Operation::Ipi);
    let one = std::thread::available_parallelism().map_or(1, usize::from) == 1;
    if let Value::Measured { time, cpu_time, note, .. } = &mut value
        && (one || clock == Clock::Instructions)
    {
        // The sender waits for a processor that does not run meanwhile.
        (*time, *cpu_time) = (None, None);
        *note = "without time, and with exits of the wait: this host has one processor for both of the \
                 guest's"
            .to_owned();
    }
    value
}

/// What the guest told in lines.
struct Told {
    lines: Vec<String>,
}

impl Told {
    fn read(data: &[u8]) -> Self {
        let bytes: Vec<u8> = data.iter().copied().filter(|byte| *byte != 0).collect();
        let text = String::from_utf8_lossy(&bytes);
        Self { lines: text.lines().map(str::to_owned).collect() }
    }

    fn after<'a>(&'a self, word: &'a str) -> impl Iterator<Item = &'a str> {
        self.lines.iter().filter_map(move |line| line.strip_prefix(word)?.strip_prefix(' '))
    }

    /// The reason for what the guest could not do. A group of operations has the
    /// reason of its first.
    fn why(&self, operation: Operation) -> Value {
        let group = match operation {
            Operation::Write | Operation::ReadStream | Operation::WriteStream => Operation::Read,
            Operation::SendStream => Operation::Packet,
            other => other,
        };
        let find = |operation: Operation| {
            self.after("why")
                .find_map(|line| line.strip_prefix(operation.word())?.strip_prefix(' '))
        };
        let why = find(operation).or_else(|| find(group));
        Value::Missing { why: why.unwrap_or("the guest did not come to it").to_owned() }
    }

    fn is_void(&self, operation: Operation) -> bool {
        self.after("void").any(|word| word == operation.word())
    }

    fn log(&self) -> Vec<Log> {
        let read = |line: &str| {
            let mut words = line.splitn(3, ' ');
            let us = words.next()?.parse().ok()?;
            let driver = words.next()? == "*";
            Some(Log { us, driver, text: words.next().unwrap_or_default().to_owned() })
        };
        self.after("log").filter_map(read).collect()
    }
}

/// From an operation's first mark to its last.
struct Interval<'a> {
    begin: &'a Mark,
    end: &'a Mark,
    count: u32,
}

impl<'a> Interval<'a> {
    fn find(marks: &'a [Mark], operation: Operation) -> Option<Self> {
        let mut pairs = marks.windows(2).filter_map(|pair| {
            let [begin, end] = pair else { return None };
            let (first, zero) = Operation::of(begin.word)?;
            let (last, count) = Operation::of(end.word)?;
            let fits = first == operation && last == operation && zero == 0 && count > 0;
            fits.then_some(Self { begin, end, count })
        });
        pairs.next()
    }

    fn time(&self) -> u64 {
        self.end.arrived.saturating_sub(self.begin.left)
    }

    fn cpu_time(&self) -> u64 {
        self.end.cpu_arrived.saturating_sub(self.begin.cpu_left)
    }

    /// Without the exit of the last mark itself and those of what was told.
    fn statistic(&self, name: &str) -> Option<u64> {
        let (end, begin) = (self.end.statistics.get(name)?, self.begin.statistics.get(name)?);
        Some(end.saturating_sub(*begin))
    }

    /// Exits for marks and data: none of the guest's business.
    fn own(&self) -> u64 {
        self.end.own.saturating_sub(self.begin.own)
    }

    fn exits(&self) -> Option<u64> {
        Some(self.statistic("exits")?.saturating_sub(self.own()))
    }

    fn counts(&self) -> impl Iterator<Item = (Kind, u64, u64)> {
        self.end.counts.iter().filter_map(|((kind, address), count)| {
            let before = self.begin.counts.get(&(*kind, *address)).copied().unwrap_or(0);
            Some((*kind, *address, count.checked_sub(before).filter(|more| *more > 0)?))
        })
    }

    fn user_exits(&self) -> u64 {
        self.counts().map(|(_, _, count)| count).sum()
    }

    /// Exits for the processor's own registers, its APIC's among them.
    fn processors(&self) -> Option<u64> {
        self.exits()?;
        let found = self.reasons().into_iter().find(|reason| reason.name == PROCESSORS);
        Some(found.map_or(0, |reason| reason.exits))
    }

    /// How long the guest slept; only KVM knows, if it is KVM that it sleeps in.
    fn asleep(&self) -> Option<u64> {
        if self.counts().any(|(kind, ..)| kind == Kind::Halt) {
            return None;
        }
        ASLEEP.iter().map(|name| self.statistic(name)).sum()
    }

    /// Exits by reason; together they are all exits.
    fn reasons(&self) -> Vec<Reason> {
        let of = |wanted: &dyn Fn(Kind) -> bool| -> u64 {
            self.counts().filter(|(kind, ..)| wanted(*kind)).map(|(.., count)| count).sum()
        };
        let ports = of(&is_port);
        let memory = of(&|kind| matches!(kind, Kind::MemoryRead | Kind::MemoryWrite));
        let processor =
            of(&|kind| matches!(kind, Kind::Halt | Kind::Window | Kind::Ended | Kind::Called));
        let reason = |name: &str, exits, user| Reason { name: name.to_owned(), exits, user };
        let mut reasons = vec![
            reason("port, to microvm", ports, true),
            reason("register in memory, to microvm", memory, true),
            reason("HLT and interrupts, to microvm", processor, true),
        ];
        if let Some(total) = self.exits() {
            let statistic = |name| self.statistic(name).unwrap_or(0);
            let in_kernel = [
                ("port, in KVM", statistic("io_exits").saturating_sub(ports + self.own())),
                // Those of registers in memory are page faults, too.
                ("page not there yet", statistic("pf_fixed")),
                ("HLT", statistic("halt_exits").saturating_sub(of(&|kind| kind == Kind::Halt))),
                (
                    "host's interrupts",
                    statistic("irq_exits").saturating_sub(of(&|kind| kind == Kind::Called)),
                ),
                ("hypercall", statistic("hypercalls")),
                (
                    "interrupt window",
                    statistic("irq_window_exits").saturating_sub(of(&|kind| kind == Kind::Window)),
                ),
            ];
            let mut left = total.saturating_sub(ports + memory + processor);
            for (name, exits) in in_kernel {
                let exits = exits.min(left);
                left -= exits;
                reasons.push(reason(name, exits, false));
            }
            reasons.push(reason(PROCESSORS, left, false));
        }
        reasons.retain(|reason| reason.exits > 0);
        reasons
    }

    /// Registers by how often they were touched, for each of `count` repetitions.
    fn registers(&self, map: &Map, most: usize, count: u32) -> Vec<Register> {
        let mut all: BTreeMap<(bool, u64), (Kind, u64, u64)> = BTreeMap::new();
        for (kind, address, count) in self.counts() {
            let entry = all.entry((is_port(kind), address)).or_insert((kind, 0, 0));
            match kind {
                Kind::PortRead | Kind::MemoryRead => entry.1 += count,
                _ => entry.2 += count,
            }
        }
        let mut sorted: Vec<_> = all.into_iter().collect();
        sorted.sort_by_key(|(_, (_, reads, writes))| std::cmp::Reverse(reads + writes));
        let each = |n: u64| n as f64 / f64::from(count.max(1));
        let register = |((_, address), (kind, reads, writes))| {
            let (device, name) = map.name(kind, address);
            // What is no register has none.
            let address =
                if device == PROCESSOR { "-".to_owned() } else { format!("{address:#x}") };
            Register { address, device, name, reads: each(reads), writes: each(writes) }
        };
        sorted.into_iter().take(most).map(register).collect()
    }
}

/// What a pair of marks takes with nothing between them: the least that was seen.
fn nothing(marks: &[Mark]) -> (u64, u64) {
    let pairs = marks.windows(2).filter_map(|pair| match pair {
        [begin, end] if end.word == Operation::Nothing.mark(1) => {
            let interval = Interval { begin, end, count: 1 };
            Some((interval.time(), interval.cpu_time()))
        }
        _ => None,
    });
    pairs.min().unwrap_or_default()
}

fn value(interval: &Interval, operation: Operation, nothing: (u64, u64), map: &Map) -> Value {
    let count = interval.count;
    let each = |n: u64| n as f64 / f64::from(count);
    let (time, cpu_time) = (interval.time(), interval.cpu_time());
    let time = each(time.saturating_sub(nothing.0));
    let cpu_time = each(cpu_time.saturating_sub(nothing.1));
    let is_stream =
        matches!(operation, Operation::ReadStream | Operation::WriteStream | Operation::SendStream);
    let is_tick = operation == Operation::Tick;
    Value::Measured {
        count,
        // What a sleeper waits is not the timer's cost.
        time: (!is_tick).then_some(time),
        cpu_time: Some(cpu_time),
        exits: interval.exits().map(each),
        user_exits: each(interval.user_exits()),
        processor_exits: interval.processors().map(each),
        interrupts: interval.statistic("irq_injections").map(each),
        bytes: is_stream.then(|| u64::from(count) * BLOCK as u64),
        registers: interval.registers(map, FEW, count),
        note: if is_tick { format!("woken after {TICK_US} µs of sleep") } else { String::new() },
    }
}

fn steps(marks: &[Mark], operation: Operation, map: &Map) -> Vec<Step> {
    let Some(interval) = Interval::find(marks, operation) else { return Vec::new() };
    let step = |access: &Access| Step {
        at: access.at.saturating_sub(interval.begin.left),
        device: map.name(access.kind, access.address).0,
        what: map.tell(access),
    };
    interval.end.trace.iter().map(step).collect()
}

fn boot(ran: &Ran, map: &Map, told: &Told, log: &[Log]) -> Option<Boot> {
    let marks = &ran.record.marks;
    let begin = marks.first()?;
    let end = marks.iter().find(|mark| mark.word == Operation::Init.mark(1))?;
    let interval = Interval { begin, end, count: 1 };
    let mut devices = BTreeMap::new();
    for (kind, address, count) in interval.counts() {
        *devices.entry(map.name(kind, address).0).or_default() += count;
    }
    Some(Boot {
        time: end.arrived.saturating_sub(begin.left),
        asleep: interval.asleep(),
        exits: interval.exits(),
        user_exits: interval.user_exits(),
        reasons: interval.reasons(),
        devices,
        registers: interval.registers(map, TOP, 1),
        milestones: milestones(ran, map, told, log, (begin, end)),
        gaps: gaps(log),
    })
}

/// The way to init. What the kernel's log tells has its clock; the line that init
/// wrote into it right after its mark ties that to the host's.
fn milestones(
    ran: &Ran,
    map: &Map,
    told: &Told,
    log: &[Log],
    (begin, end): (&Mark, &Mark),
) -> Vec<Milestone> {
    let since = |at: u64| at.saturating_sub(begin.left);
    let there =
        |name: &str, at: u64, note: String| Milestone { name: name.to_owned(), at: Some(at), note };
    let missing =
        |name: &str, why: &str| Milestone { name: name.to_owned(), at: None, note: why.to_owned() };
    let mut all = vec![there("entry", 0, "the first KVM_RUN".to_owned())];
    let first = ran.record.marks.get(1).and_then(|mark| mark.trace.first());
    if let Some(access) = first {
        all.push(there("first register", since(access.at), map.tell(access)));
    }
    let init = log.iter().find(|line| line.text.contains(INIT_LINE)).map(|line| line.us);
    let offset = init.map(|us| since(end.left).saturating_sub(us * 1000));
    let no_log = "the kernel's log does not tell";
    all.push(match offset {
        Some(offset) => {
            let note = "where start_kernel has a clock: the log's time 0".to_owned();
            there("start_kernel", offset, note)
        }
        None => missing("start_kernel", no_log),
    });
    let driver = log.iter().find(|line| line.driver);
    all.push(match (offset, driver) {
        (Some(offset), Some(line)) => {
            there("first driver", offset + line.us * 1000, line.text.clone())
        }
        _ => missing("first driver", no_log),
    });
    let root = ran.record.marks.iter().find(|mark| mark.word == Operation::Root.mark(1));
    all.push(match root {
        Some(mark) => there("root mounted", since(mark.arrived), String::new()),
        None if ran.config.rootfs.is_none() => missing("root mounted", "no --rootfs was given"),
        None => match told.why(Operation::Root) {
            Value::Missing { why } => missing("root mounted", &why),
            Value::Measured { .. } => missing("root mounted", no_log),
        },
    });
    all.push(there("init", since(end.arrived), String::new()));
    all
}

/// The longest silences up to init.
fn gaps(log: &[Log]) -> Vec<Gap> {
    let until = log.iter().position(|line| line.text.contains(INIT_LINE));
    let log = log.get(..=until.unwrap_or(log.len().saturating_sub(1))).unwrap_or_default();
    let mut gaps: Vec<Gap> = log
        .windows(2)
        .filter_map(|pair| {
            let [before, after] = pair else { return None };
            let ms = after.us.saturating_sub(before.us) as f64 / 1000.0;
            Some(Gap { ms, before: before.text.clone(), after: after.text.clone() })
        })
        .collect();
    gaps.sort_by(|a, b| b.ms.total_cmp(&a.ms));
    gaps.truncate(GAPS);
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm::config::Config;
    use vmm::record::Record;

    fn mark(word: u32, at: u64, exits: u64, counts: &[((Kind, u64), u64)]) -> Mark {
        Mark {
            word,
            arrived: at,
            left: at + 10,
            cpu_arrived: at / 2,
            cpu_left: at / 2 + 5,
            statistics: [("exits", exits), ("halt_exits", exits / 10)]
                .into_iter()
                .chain(ASLEEP.map(|name| (name, at / 4)))
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
            counts: counts.iter().copied().collect(),
            own: 0,
            trace: Vec::new(),
        }
    }

    fn ran() -> Ran {
        const STATUS: (Kind, u64) = (Kind::PortRead, 0x1f7);
        const COMMAND: (Kind, u64) = (Kind::PortWrite, 0x1f7);
        let mut marks = vec![
            mark(0, 0, 0, &[]),
            mark(Operation::Root.mark(1), 500_000, 90, &[(STATUS, 20)]),
            mark(Operation::Init.mark(1), 1_000_000, 100, &[(STATUS, 40), (COMMAND, 4)]),
            mark(Operation::Nothing.mark(0), 1_000_100, 101, &[(STATUS, 40), (COMMAND, 4)]),
            mark(Operation::Nothing.mark(1), 1_000_130, 102, &[(STATUS, 40), (COMMAND, 4)]),
            mark(Operation::Read.mark(0), 1_001_000, 103, &[(STATUS, 40), (COMMAND, 4)]),
            mark(Operation::Read.mark(2), 1_003_030, 133, &[(STATUS, 52), (COMMAND, 6)]),
            mark(Operation::Write.mark(0), 1_004_000, 140, &[(STATUS, 52), (COMMAND, 6)]),
            mark(Operation::Write.mark(2), 1_005_000, 150, &[(STATUS, 52), (COMMAND, 6)]),
        ];
        for (own, mark) in marks.iter_mut().enumerate() {
            mark.own = own as u64;
        }
        marks[1].trace = vec![Access {
            at: 700,
            kind: Kind::PortRead,
            address: 0x1f7,
            size: 1,
            items: 1,
            value: 0x50,
        }];
        let data =
            b"log 0 - Linux version\nlog 300 * serial8250: ttyS0\nlog 990 - microvm: init\n\0\0\
            log 995 - later\nvoid write\nwhy write no space\nwhy packet no card\n";
        let mut config = Config::new("k");
        config.rootfs = Some("r".parse().unwrap());
        "hvm".parse::<Subject>().unwrap().configure(&mut config);
        Ran {
            record: Record { marks, data: data.to_vec(), console: Vec::new() },
            config,
            exit: Exit::Told,
        }
    }

    fn figures_of(ran: &Ran) -> Mode {
        let runs = Runs { alone: ran, pair: None, plain: None };
        mode(&"hvm".parse().unwrap(), runs, Effort::Quick, Clock::Nanoseconds)
    }

    #[test]
    fn an_operation_costs_what_lies_between_its_marks() {
        let mode = figures_of(&ran());
        assert_eq!(mode.problem, None);
        let Some(Value::Measured { count, time, exits, user_exits, registers, .. }) =
            mode.value("read")
        else {
            panic!("{mode:?}");
        };
        // 2020 less the 20 of nothing; 30 exits less the last mark's.
        assert_eq!((*count, *time, *exits), (2, Some(1000.0), Some(14.5)));
        assert_eq!(*user_exits, 7.0);
        assert_eq!((registers[0].reads, registers[0].writes), (6.0, 1.0));
        assert_eq!(registers[0].device, "IDE");
    }

    #[test]
    fn what_was_not_measured_has_its_reason() {
        let mode = figures_of(&ran());
        for (operation, part) in [
            ("write", "no space"),
            ("packet", "no card"),
            ("send-stream", "no card"),
            ("tick", "did not come"),
            ("ipi", "two processors"),
        ] {
            match mode.value(operation) {
                Some(Value::Missing { why }) => assert!(why.contains(part), "{operation}: {why}"),
                other => panic!("{operation}: {other:?}"),
            }
        }
    }

    #[test]
    fn the_way_to_init_is_on_one_clock() {
        let mode = figures_of(&ran());
        let boot = mode.boot.unwrap();
        let at = |name| boot.milestones.iter().find(|m| m.name == name).unwrap().at.unwrap();
        assert_eq!(at("entry"), 0);
        assert_eq!(at("first register"), 690);
        // Init's line, 990 µs on the log's clock, came with its mark at 1 ms.
        assert_eq!(at("start_kernel"), 10_000);
        assert_eq!(at("first driver"), 310_000);
        assert_eq!((at("root mounted"), at("init")), (499_990, 999_990));
        assert_eq!(boot.gaps[0].ms, 0.69);
        assert_eq!(boot.asleep, Some(750_000));
        assert!(boot.gaps.iter().all(|gap| gap.after != "later"), "{:?}", boot.gaps);
    }

    #[test]
    fn reasons_add_up_to_all_exits() {
        let boot = figures_of(&ran()).boot.unwrap();
        let sum: u64 = boot.reasons.iter().map(|reason| reason.exits).sum();
        // Two marks are not the guest's own.
        assert_eq!((boot.exits, sum), (Some(98), 98));
        assert_eq!((boot.user_exits, boot.devices["IDE"]), (44, 44));
    }

    #[test]
    fn a_machine_that_ends_otherwise_says_how() {
        let mut ran = ran();
        ran.exit = Exit::Panic;
        ran.record.console = b"one\nKernel panic - not syncing: no init\n\n".to_vec();
        let mode = figures_of(&ran);
        assert!(mode.problem.as_deref().unwrap().contains("no init"), "{:?}", mode.problem);
    }
}
