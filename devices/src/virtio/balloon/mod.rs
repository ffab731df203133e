//! The balloon (virtio 1.2, 5.5): memory that the guest gives back to the host.
//!
//! ```text
//!  set_target ─► num_pages, configuration interrupt ─► driver
//!  inflateq   ─► page numbers ─► sorted, neighbours joined ─► madvise ─► host
//!  reportingq ─► free ranges ────────────────────────────────► madvise ─► host
//!  deflateq   ─► nothing to do: the host gives pages when they are touched
//!  statsq     ─► kept by us until we want the next report ─► counters
//! ```
//!
//! A page that was given back reads as zero; a guest that gives back pages which
//! it uses harms nobody else. Page numbers outside of RAM are counted and left
//! alone.

mod discard;
mod stats;
#[cfg(test)]
mod tests;

use super::queue::{Chain, Vq};
use super::{Activation, COMMON_FEATURES, DeviceError, DeviceId, Interrupt, Ram, VirtioDevice};
use crate::state::{Saved, StateError};
use discard::{Given, PAGE, discard};
use serde::{Deserialize, Serialize};
use stats::Stats;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;
use vmm_sys_util::timerfd::TimerFd;

/// `VIRTIO_BALLOON_F_STATS_VQ`.
pub const F_STATS_VQ: u64 = 1 << 1;
/// `VIRTIO_BALLOON_F_DEFLATE_ON_OOM`.
pub const F_DEFLATE_ON_OOM: u64 = 1 << 2;
/// `VIRTIO_BALLOON_F_PAGE_POISON`.
pub const F_PAGE_POISON: u64 = 1 << 4;
/// `VIRTIO_BALLOON_F_REPORTING`.
pub const F_REPORTING: u64 = 1 << 5;

const QUEUE_SIZES: [u16; 4] = [256; 4];
/// Page numbers in one request. Linux sends 256, others a page full: 1024.
const MAX_PFNS: u64 = 1 << 14;
/// Pages, or reported ranges, before other devices have their turn.
const SHARE: u64 = 1 << 14;

const KIND: &str = "virtio-balloon";
const VERSION: u32 = 1;

/// What a balloon is asked to be.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Bytes that the guest is to give back at first.
    pub target: u64,
    /// Bytes of guest RAM: no target is larger.
    pub memory: u64,
    /// The guest takes pages out rather than killing processes.
    pub deflate_on_oom: bool,
    /// The guest tells of its memory, as often as this, or when it is asked to
    /// if that is zero.
    pub stats: Option<Duration>,
    /// The guest tells which of its pages are free.
    pub reporting: bool,
}

/// A target larger than the guest's memory.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("balloon: {target} bytes are more than the guest's memory of {memory}")]
pub struct TooLarge {
    target: u64,
    memory: u64,
}

/// What a queue is for. Which index it has depends on the features.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Inflate,
    Deflate,
    Stats,
    Reporting,
}

/// The roles of the queues, in order, that there are with `features`.
fn roles(features: u64) -> impl Iterator<Item = Role> {
    let stats = (features & F_STATS_VQ != 0).then_some(Role::Stats);
    let reporting = (features & F_REPORTING != 0).then_some(Role::Reporting);
    [Some(Role::Inflate), Some(Role::Deflate), stats, reporting].into_iter().flatten()
}

/// What a balloon has done.
#[derive(Debug, Default)]
struct Counters {
    inflated: Given,
    reported: Given,
    deflated_pages: u64,
    /// Reports that were left alone because the guest fills free pages.
    kept_bytes: u64,
}

/// The balloon.
pub struct Balloon {
    options: Options,
    target_pages: u32,
    /// What the driver says is in the balloon.
    actual_pages: u32,
    /// What the driver fills free pages with.
    poison: u32,
    stats: Stats,
    /// The buffer for statistics, while the driver waits for us to ask.
    held: Option<u16>,
    timer: Option<TimerFd>,
    counters: Counters,
    active: Option<Active>,
}

struct Active {
    mem: Ram,
    queues: Vec<Option<Vq>>,
    roles: Vec<Role>,
    features: u64,
    interrupt: Arc<Interrupt>,
    chain: Chain,
    pfns: Vec<u32>,
}

#[derive(Serialize, Deserialize)]
struct State {
    features: u64,
    target_pages: u32,
    actual_pages: u32,
    poison: u32,
    held: Option<u16>,
}

/// Whole pages of so many bytes. Guests have at most 2³² of them.
fn pages(bytes: u64) -> u32 {
    u32::try_from(bytes / PAGE).unwrap_or(u32::MAX)
}

impl Balloon {
    /// A balloon. Fails when the host is out of file descriptors.
    pub fn new(options: Options) -> io::Result<Self> {
        let mut new = Self {
            options,
            target_pages: pages(options.target.min(options.memory)),
            actual_pages: 0,
            poison: 0,
            stats: Stats::default(),
            held: None,
            timer: None,
            counters: Counters::default(),
            active: None,
        };
        if options.stats.is_some_and(|every| !every.is_zero()) {
            new.timer = Some(TimerFd::new()?);
        }
        Ok(new)
    }

    /// Sets the timer to when the next report is due: whenever there is a buffer
    /// for it. It never has to be read, as each time that it runs out is an edge.
    fn wind_timer(&mut self) -> Result<(), DeviceError> {
        if let (Some(timer), Some(every), Some(_)) =
            (&mut self.timer, self.options.stats, self.held)
        {
            let error = |e: vmm_sys_util::errno::Error| e.into();
            let wound: io::Result<()> = timer.reset(every, None).map_err(error);
            wound.map_err(|source| DeviceError::Host { what: "balloon: timer", source })?;
        }
        Ok(())
    }

    /// Asks the guest to give back this much in all, more or less than now. It
    /// does so as fast as it can, and [`Balloon::actual`] tells how far it is.
    pub fn set_target(&mut self, bytes: u64) -> Result<(), TooLarge> {
        if bytes > self.options.memory {
            return Err(TooLarge { target: bytes, memory: self.options.memory });
        }
        self.target_pages = pages(bytes);
        if let Some(active) = &self.active {
            active.interrupt.config();
        }
        Ok(())
    }

    /// What the guest was asked to give back, in bytes.
    pub fn target(&self) -> u64 {
        u64::from(self.target_pages) * PAGE
    }

    /// What the guest says it has given back, in bytes.
    pub fn actual(&self) -> u64 {
        u64::from(self.actual_pages) * PAGE
    }

    /// Asks the guest for statistics, which are among the counters afterwards.
    /// Nothing happens while the last question is not answered.
    pub fn request_stats(&mut self) -> Result<(), DeviceError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        let Some(index) = active.roles.iter().position(|role| *role == Role::Stats) else {
            return Ok(());
        };
        let Some(Some(queue)) = active.queues.get_mut(index) else { return Ok(()) };
        let Some(head) = self.held.take() else { return Ok(()) };
        queue.push_used(&active.mem, head, 0)?;
        if queue.needs_interrupt(&active.mem)? {
            active.interrupt.queue(index);
        }
        Ok(())
    }

    /// `struct virtio_balloon_config`.
    fn config(&self) -> [u8; 16] {
        let mut config = [0; 16];
        config[..4].copy_from_slice(&self.target_pages.to_le_bytes());
        config[4..8].copy_from_slice(&self.actual_pages.to_le_bytes());
        config[12..].copy_from_slice(&self.poison.to_le_bytes());
        config
    }

    /// Serves a queue for as much as is its share.
    fn serve(&mut self, index: usize) -> Result<(), DeviceError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        let Some(role) = active.roles.get(index).copied() else { return Ok(()) };
        let Some(Some(queue)) = active.queues.get_mut(index) else { return Ok(()) };
        let (mem, chain) = (&active.mem, &mut active.chain);
        queue.suppress_notifications(mem)?;
        let mut done = 0;
        for _ in 0..queue.size() {
            if done >= SHARE || !queue.pop(mem, chain)? {
                break;
            }
            done += match role {
                Role::Inflate => inflate(mem, chain, &mut active.pfns, &mut self.counters)?,
                Role::Deflate => {
                    self.counters.deflated_pages += pfn_count(chain)?;
                    1
                }
                Role::Reporting => {
                    let keep = active.features & F_PAGE_POISON != 0 && self.poison != 0;
                    report(mem, chain, keep, &mut self.counters)
                }
                Role::Stats => {
                    self.stats.take(mem, chain)?;
                    // There is only one such buffer; one more gives back the last.
                    if let Some(head) = self.held.replace(chain.head) {
                        queue.push_used(mem, head, 0)?;
                    }
                    1
                }
            };
            if role != Role::Stats {
                queue.push_used(mem, chain.head, 0)?;
            }
        }
        if queue.enable_notifications(mem)? {
            queue.call_again();
        }
        if queue.needs_interrupt(mem)? {
            active.interrupt.queue(index);
        }
        match role {
            Role::Stats => self.wind_timer(),
            _ => Ok(()),
        }
    }
}

/// Page numbers in a request.
fn pfn_count(chain: &Chain) -> Result<u64, DeviceError> {
    match chain.readable_len() / 4 {
        count if count <= MAX_PFNS => Ok(count),
        _ => Err(DeviceError::Request("too many pages at once for a balloon")),
    }
}

/// Gives pages back, neighbours together: one large range is cheaper, and parts
/// of a huge page can only be freed with the rest of it.
fn inflate(
    mem: &Ram,
    chain: &Chain,
    pfns: &mut Vec<u32>,
    counters: &mut Counters,
) -> Result<u64, DeviceError> {
    let count = pfn_count(chain)?;
    let mut bytes = vec![0; count as usize * 4];
    chain.read_at(mem, 0, &mut bytes)?;
    pfns.clear();
    pfns.extend(bytes.as_chunks().0.iter().copied().map(u32::from_le_bytes));
    pfns.sort_unstable();
    pfns.dedup();
    for run in pfns.chunk_by(|a, b| a + 1 == *b) {
        let Some(first) = run.first() else { continue };
        counters.inflated.add(discard(mem, u64::from(*first) * PAGE, run.len() as u64 * PAGE));
    }
    Ok(count.max(1))
}

/// Gives back ranges that the guest says are free, unless it relies on what is
/// in there: they would come back as zeroes (5.5.6.7.2).
fn report(mem: &Ram, chain: &Chain, keep: bool, counters: &mut Counters) -> u64 {
    if keep {
        counters.kept_bytes += chain.writable_len();
        return 1;
    }
    for range in &chain.writable {
        counters.reported.add(discard(mem, range.addr.0, range.len.into()));
    }
    chain.writable.len().max(1) as u64
}

impl VirtioDevice for Balloon {
    fn id(&self) -> DeviceId {
        DeviceId::Balloon
    }

    fn queue_max_sizes(&self) -> &[u16] {
        let count = roles(self.features()).count();
        QUEUE_SIZES.get(..count).unwrap_or(&QUEUE_SIZES)
    }

    fn features(&self) -> u64 {
        let when = |on: bool, feature: u64| if on { feature } else { 0 };
        COMMON_FEATURES
            | when(self.options.deflate_on_oom, F_DEFLATE_ON_OOM)
            | when(self.options.stats.is_some(), F_STATS_VQ)
            // Linux reports nothing where it fills free pages and can't say so.
            | when(self.options.reporting, F_REPORTING | F_PAGE_POISON)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.config();
        let from = usize::try_from(offset).ok().and_then(|o| config.get(o..));
        data.fill(0);
        for (to, from) in data.iter_mut().zip(from.unwrap_or_default()) {
            *to = *from;
        }
    }

    /// `actual` and `poison_val` are the driver's, and written whole.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let Ok(value) = <[u8; 4]>::try_from(data).map(u32::from_le_bytes) else { return };
        match offset {
            4 => self.actual_pages = value,
            12 => self.poison = value,
            _ => {}
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        let Activation { mem, queues, features, interrupt } = activation;
        for queue in [0, 1] {
            if !matches!(queues.get(queue), Some(Some(_))) {
                return Err(DeviceError::MissingQueue(queue));
            }
        }
        // Linux offers its buffer for statistics before the device is active.
        queues.iter().flatten().for_each(Vq::call_again);
        let roles = roles(features).collect();
        let (chain, pfns) = Default::default();
        self.active = Some(Active { mem, queues, roles, features, interrupt, chain, pfns });
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
        self.actual_pages = 0;
        self.poison = 0;
        self.held = None;
    }

    fn queues(&self) -> Option<&[Option<Vq>]> {
        self.active.as_ref().map(|a| a.queues.as_slice())
    }

    fn queue_event(&mut self, queue: usize) -> Result<(), DeviceError> {
        self.serve(queue)
    }

    fn sources(&self) -> Vec<RawFd> {
        self.timer.iter().map(AsRawFd::as_raw_fd).collect()
    }

    fn source_event(&mut self, _source: usize) -> Result<(), DeviceError> {
        self.request_stats()
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let Counters { inflated, reported, deflated_pages, kept_bytes } = &self.counters;
        let mut all = vec![
            ("target_bytes", self.target()),
            ("actual_bytes", self.actual()),
            ("inflated_bytes", inflated.bytes),
            ("deflated_bytes", deflated_pages * PAGE),
            ("reported_free_bytes", reported.bytes),
            ("reported_kept_bytes", *kept_bytes),
            ("outside_ram_bytes", inflated.outside + reported.outside),
            ("refused_bytes", inflated.refused + reported.refused),
            ("stats_reports", self.stats.reports),
        ];
        all.extend(self.stats.all());
        all
    }

    fn save(&self) -> Result<Saved, StateError> {
        let state = State {
            features: self.features(),
            target_pages: self.target_pages,
            actual_pages: self.actual_pages,
            poison: self.poison,
            held: self.held,
        };
        Saved::new(KIND, VERSION, &state)
    }

    fn restore(&mut self, saved: &Saved) -> Result<(), StateError> {
        let state: State = saved.open(KIND, VERSION)?;
        // Which index a queue has depends on them.
        if state.features != self.features() {
            let (had, has) = (state.features, self.features());
            let reason = format!("saved with features {had:#x}, the balloon here has {has:#x}");
            return Err(StateError::Invalid { kind: KIND, reason });
        }
        self.target_pages = state.target_pages.min(pages(self.options.memory));
        self.actual_pages = state.actual_pages;
        self.poison = state.poison;
        self.held = state.held;
        Ok(())
    }
}
