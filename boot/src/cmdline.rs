//! The kernel command line: what the user wrote, completed where he did not
//! say otherwise (`Documentation/admin-guide/kernel-parameters.txt`).

/// What a command line is completed for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Completion {
    /// The first disk is the root device; `Some(true)` when it is read-only.
    pub root: Option<bool>,
    /// Linux calls the first disk `/dev/sda` instead of `/dev/vda`.
    pub ide: bool,
    /// There is a serial console.
    pub serial: bool,
    /// There is a virtio console, which is then the guest's.
    pub hvc: bool,
    /// There is a PCI bus.
    pub pci: bool,
}

/// The BIOS data area's warm-boot word, where Linux leaves [`WARM`] or 0 before
/// it resets the machine (`native_machine_emergency_restart`).
pub const WARM_WORD: u64 = 0x472;
/// The value for a warm reboot.
pub const WARM: u16 = 0x1234;
/// Resets through the keyboard controller: one port write. A reboot after a
/// panic says "warm", any other says "cold": so the monitor can tell a panic
/// from a reboot even if the guest has no pvpanic driver.
const REBOOT: &str = "reboot=panic_warm,k";

/// `user`'s words, and those that are missing.
pub fn complete(user: &str, completion: Completion) -> String {
    let mut words: Vec<String> = Vec::new();
    if let Some(readonly) = completion.root {
        if !has(user, "root=") {
            words.push(format!("root=/dev/{}", if completion.ide { "sda" } else { "vda" }));
        }
        if !["ro", "rw"].iter().any(|w| user.split_ascii_whitespace().any(|u| u == *w)) {
            words.push(if readonly { "ro" } else { "rw" }.to_owned());
        }
    }
    if completion.hvc && !has(user, "console=") {
        words.push("console=hvc0".to_owned());
    } else if completion.serial && !has(user, "console=") {
        words.push("console=ttyS0".to_owned());
    }
    if !has(user, "reboot=") {
        words.push(REBOOT.to_owned());
    }
    if !has(user, "panic=") {
        words.push("panic=-1".to_owned());
    }
    // Linux would look for a bus that isn't there, and complain, aloud, that it
    // found none.
    if !completion.pci && !has(user, "pci=") {
        words.push("pci=off".to_owned());
    }
    // The completion goes first: after "--" or a user's init arguments it
    // would be init's, not the kernel's.
    let user = user.trim();
    if !user.is_empty() {
        words.push(user.to_owned());
    }
    words.join(" ")
}

/// Whether the reset that follows a panic can be told from others: the user
/// left `reboot=` to [`complete`].
pub fn tells_panics(user: &str) -> bool {
    !has(user, "reboot=")
}

/// Whether the user turned ACPI off, so that devices have to be declared here
/// and the processors in an MP table.
pub fn acpi_off(user: &str) -> bool {
    kernel_words(user).any(|w| matches!(w, "acpi=off" | "noacpi"))
}

/// The declaration of a virtio-mmio device (`drivers/virtio/virtio_mmio.c`).
pub fn virtio_mmio(base: u64, size: u64, gsi: u32) -> String {
    format!("virtio_mmio.device={size}@{base:#x}:{gsi}")
}

fn has(user: &str, prefix: &str) -> bool {
    kernel_words(user).any(|w| w.starts_with(prefix))
}

/// The words that the kernel reads: all before "--".
fn kernel_words(user: &str) -> impl Iterator<Item = &str> {
    user.split_ascii_whitespace().take_while(|w| *w != "--")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Completion =
        Completion { root: Some(false), ide: false, serial: true, hvc: false, pci: false };

    #[test]
    fn an_empty_line_is_completed() {
        assert_eq!(
            complete("", ALL),
            "root=/dev/vda rw console=ttyS0 reboot=panic_warm,k panic=-1 pci=off"
        );
        assert_eq!(
            complete("", Completion { root: Some(true), ..Completion::default() }),
            "root=/dev/vda ro reboot=panic_warm,k panic=-1 pci=off"
        );
        assert_eq!(complete("", Completion::default()), "reboot=panic_warm,k panic=-1 pci=off");
        let hvc = Completion { hvc: true, ..ALL };
        assert_eq!(
            complete("", hvc),
            "root=/dev/vda rw console=hvc0 reboot=panic_warm,k panic=-1 pci=off"
        );
        let ide = Completion { ide: true, pci: true, ..ALL };
        assert!(complete("", ide).starts_with("root=/dev/sda rw console"));
        let pci = Completion { pci: true, ..Completion::default() };
        assert_eq!(complete("", pci), "reboot=panic_warm,k panic=-1");
    }

    #[test]
    fn the_user_has_the_last_word() {
        let user = "root=/dev/vdb ro console=hvc0 reboot=t panic=5 pci=conf1 quiet";
        assert_eq!(complete(user, ALL), user);
        assert!(!tells_panics(user));
        let late = "quiet -- root=x";
        assert!(complete(late, ALL).starts_with("root=/dev/vda rw "));
        assert!(complete(late, ALL).ends_with(late));
    }

    #[test]
    fn acpi_can_be_turned_off() {
        assert!(acpi_off("quiet acpi=off"));
        assert!(!acpi_off("acpi=offline -- acpi=off"));
    }
}
