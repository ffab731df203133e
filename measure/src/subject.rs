//! The machines that are measured: rows of Xen's table, and two that teach what
//! the worst cost.

use std::str::FromStr;
use vmm::config::{Config, DiskBus, Intr, Mode, NetModel};

/// A mode, or a variant of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subject {
    /// Its name in the report.
    pub name: &'static str,
    /// What the name does not tell.
    pub about: &'static str,
    mode: Mode,
    variant: Variant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    Plain,
    Pio,
    UserInterrupts,
}

const fn subject(name: &'static str, mode: Mode, variant: Variant, about: &'static str) -> Subject {
    Subject { name, about, mode, variant }
}

impl Subject {
    /// All there are, from the one that takes most to the one that takes least.
    pub const ALL: [Self; 6] = [
        subject(
            "hvm-pio",
            Mode::Hvm,
            Variant::Pio,
            "hvm whose processor moves every byte: --disk-bus ide-pio --net-model ne2000",
        ),
        subject(
            "hvm-user",
            Mode::Hvm,
            Variant::UserInterrupts,
            "hvm with interrupts and timers in the monitor: --intr user",
        ),
        subject("hvm", Mode::Hvm, Variant::Plain, "a PC, and nothing made for virtual machines"),
        subject("hvm-pv", Mode::HvmPv, Variant::Plain, "the same PC with virtio disk and network"),
        subject("pvhvm", Mode::Pvhvm, Variant::Plain, "and with KVM's clock and interrupts"),
        subject("pv", Mode::Pv, Variant::Plain, "and no PC around it: microvm's default"),
    ];

    /// Which row of Xen's table it is, or is a variant of.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether it is a row itself.
    pub fn is_row(&self) -> bool {
        self.variant == Variant::Plain
    }

    /// Whether it can have a second processor.
    pub fn can_have_two(&self) -> bool {
        self.variant != Variant::UserInterrupts
    }

    /// Whether the guest tells KVM in memory that an interrupt is done.
    pub fn has_pv_eoi(&self) -> bool {
        let mut config = Config::new("");
        self.configure(&mut config);
        config.choices().paravirtual
    }

    /// Makes a configuration this subject's.
    pub fn configure(&self, config: &mut Config) {
        config.mode = self.mode;
        match self.variant {
            Variant::Plain => {}
            Variant::Pio => {
                config.disk_bus = Some(DiskBus::IdePio);
                config.net_model = Some(NetModel::Ne2000);
            }
            Variant::UserInterrupts => config.intr = Some(Intr::User),
        }
    }
}

impl FromStr for Subject {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|subject| subject.name == text);
        found.ok_or_else(|| {
            let names = Self::ALL.map(|subject| subject.name);
            format!("must be some of {}, with commas between", names.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_a_machine_that_can_be() {
        for subject in Subject::ALL {
            let mut config = Config::new("k");
            config.nets = vec!["user,backend=internal".parse().unwrap()];
            config.disks = vec!["d".parse().unwrap()];
            subject.configure(&mut config);
            config.validate().unwrap();
            assert_eq!(subject.name.parse::<Subject>().unwrap(), subject);
        }
        assert!("xen".parse::<Subject>().unwrap_err().contains("hvm-pio"));
    }
}
