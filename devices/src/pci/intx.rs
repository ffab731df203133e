//! Interrupt pins of PCI functions (PCI 3.0, 2.2.6), and where the PIIX3 leads
//! them (Intel 82371SB, 2.2.4).
//!
//! ```text
//!  function's pin ─┐
//!  function's pin ─┴─(wired or)─► PIRQA# … PIRQD# ─► PIRQRC[A:D] ─► IRQ of PIC and IOAPIC
//! ```
//!
//! The lines are levels, low active and shared: an IRQ is asserted as long as
//! any pin that leads to it is.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::bus::lock;

/// Lines of the bus.
pub const LINES: usize = 4;
/// `PIRQRC`: the line leads nowhere.
pub const ROUTE_DISABLED: u8 = 1 << 7;
/// `PIRQRC`: the IRQ that it leads to.
pub const ROUTE_IRQ: u8 = 0x0f;
/// Where the lines lead when the machine starts, as SeaBIOS sets them up too.
pub const STANDARD_ROUTES: [u8; LINES] = [10, 10, 11, 11];

/// The inputs of the machine's interrupt controllers.
pub trait InterruptInputs: Send + Sync {
    /// Sets the level of an input. Called on any thread, and must not block.
    fn set(&self, irq: u32, level: bool);
}

/// Which of the four lines pin `pin` (1: INTA#) of device `device` is wired to.
pub fn line_of(device: u8, pin: u8) -> usize {
    (usize::from(device) + usize::from(pin) + 2) % LINES
}

/// The router.
pub struct Router {
    inputs: Arc<dyn InterruptInputs>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    routes: [u8; LINES],
    /// Devices that assert each line, a bit each.
    asserted: [u32; LINES],
    /// IRQs that are asserted, a bit each.
    levels: u16,
}

impl State {
    fn wanted(&self) -> u16 {
        let lines = self.routes.iter().zip(&self.asserted);
        lines
            .filter(|(route, devices)| *route & ROUTE_DISABLED == 0 && **devices != 0)
            .fold(0, |levels, (route, _)| levels | 1 << (route & ROUTE_IRQ))
    }
}

impl Router {
    /// A router as firmware has set it up.
    pub fn new(inputs: Arc<dyn InterruptInputs>) -> Arc<Self> {
        let state = State { routes: STANDARD_ROUTES, ..State::default() };
        Arc::new(Self { inputs, state: Mutex::new(state) })
    }

    /// Leads the lines elsewhere (`PIRQRC[A:D]`).
    pub fn route(&self, routes: [u8; LINES]) {
        self.change(|state| state.routes = routes);
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        // Held while the inputs are set: two threads must not swap their order.
        let mut state = lock(&self.state);
        change(&mut state);
        let (before, after) = (state.levels, state.wanted());
        state.levels = after;
        for irq in (0..u16::BITS).filter(|irq| (before ^ after) >> irq & 1 != 0) {
            self.inputs.set(irq, after >> irq & 1 != 0);
        }
    }

    /// The pin `pin` of device `device`.
    pub fn pin(self: &Arc<Self>, device: u8, pin: u8) -> Pin {
        let (wanted, enabled) = (AtomicBool::new(false), AtomicBool::new(true));
        Pin { router: self.clone(), line: line_of(device, pin), device, wanted, enabled }
    }
}

/// The interrupt pin of a function, the only one of its device.
pub struct Pin {
    router: Arc<Router>,
    line: usize,
    device: u8,
    wanted: AtomicBool,
    enabled: AtomicBool,
}

impl Pin {
    /// Asserts it or lets it go.
    pub fn set(&self, level: bool) {
        if self.wanted.swap(level, Ordering::SeqCst) != level {
            self.drive();
        }
    }

    /// `Command`: whether the function may use it.
    pub fn enable(&self, on: bool) {
        if self.enabled.swap(on, Ordering::SeqCst) != on {
            self.drive();
        }
    }

    fn drive(&self) {
        let bit = 1u32 << (self.device % 32);
        self.router.change(|state| {
            let level = self.wanted.load(Ordering::SeqCst) && self.enabled.load(Ordering::SeqCst);
            let line = &mut state.asserted[self.line];
            *line = if level { *line | bit } else { *line & !bit };
        });
    }
}

/// Inputs that remember their levels, for tests and fuzzers.
#[cfg(any(test, feature = "testing"))]
pub mod testing {
    use super::*;

    /// What was set, in order.
    #[derive(Default)]
    pub struct Recorder(pub Mutex<Vec<(u32, bool)>>);

    impl InterruptInputs for Recorder {
        fn set(&self, irq: u32, level: bool) {
            lock(&self.0).push((irq, level));
        }
    }

    impl Recorder {
        /// What was set since the last time.
        pub fn take(&self) -> Vec<(u32, bool)> {
            std::mem::take(&mut lock(&self.0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::Recorder;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_are_shared_and_levels() {
        let inputs = Arc::new(Recorder::default());
        let router = Router::new(inputs.clone());
        // Devices 1 and 5 have INTA# on the same line.
        let (a, b, other) = (router.pin(1, 1), router.pin(5, 1), router.pin(3, 1));
        a.set(true);
        a.set(true);
        b.set(true);
        assert_eq!(inputs.take(), [(10, true)]);
        other.set(true);
        assert_eq!(inputs.take(), [(11, true)]);
        a.set(false);
        assert_eq!(inputs.take(), []);
        b.enable(false);
        assert_eq!(inputs.take(), [(10, false)]);
        b.enable(true);
        b.set(false);
        other.set(false);
        assert_eq!(inputs.take(), [(10, true), (10, false), (11, false)]);
    }

    #[test]
    fn another_route_takes_the_level_with_it() {
        let inputs = Arc::new(Recorder::default());
        let router = Router::new(inputs.clone());
        let pin = router.pin(1, 1);
        pin.set(true);
        router.route([5, 10, 11, 11]);
        assert_eq!(inputs.take(), [(10, true), (5, true), (10, false)]);
        router.route([ROUTE_DISABLED | 5, 10, 11, 11]);
        assert_eq!(inputs.take(), [(5, false)]);
    }

    #[test]
    fn pins_are_spread_over_the_lines() {
        assert_eq!([1, 2, 3, 4, 5].map(|device| line_of(device, 1)), [0, 1, 2, 3, 0]);
        assert_eq!([1, 2, 3, 4].map(|pin| line_of(1, pin)), [0, 1, 2, 3]);
    }

    proptest! {
        #[test]
        fn an_input_is_up_while_any_pin_that_leads_to_it_is(
            steps in prop::collection::vec((0u8..8, any::<bool>(), any::<u8>()), 0..60)
        ) {
            let inputs = Arc::new(Recorder::default());
            let router = Router::new(inputs.clone());
            let pins: Vec<_> = (0..8).map(|device| router.pin(device, 1)).collect();
            let (mut up, mut routes) = ([false; 8], STANDARD_ROUTES);
            let mut seen = [false; 16];
            for (device, level, route) in steps {
                match route {
                    0..64 => {
                        routes[usize::from(route % 4)] = route | if level { ROUTE_DISABLED } else { 0 };
                        router.route(routes);
                    }
                    _ => {
                        pins[usize::from(device)].set(level);
                        up[usize::from(device)] = level;
                    }
                }
                inputs.take().into_iter().for_each(|(irq, level)| seen[irq as usize] = level);
                for (irq, seen) in seen.iter().enumerate() {
                    let leads = |device: u8| {
                        let route = routes[line_of(device, 1)];
                        route & ROUTE_DISABLED == 0 && usize::from(route & ROUTE_IRQ) == irq
                    };
                    let wanted = (0..8u8).any(|device| up[usize::from(device)] && leads(device));
                    prop_assert_eq!(*seen, wanted);
                }
            }
        }
    }
}
