//! The same devices over virtio-pci.

use crate::guest::{Guest, check};
use crate::net::{self, HostTap};
use crate::{Verdict, kit, trial};
use libtest_mimic::{Completion, Trial};

pub fn tests() -> Vec<Trial> {
    vec![
        trial("pci::every_device_is_a_function_with_messages", functions),
        trial("pci::what_is_written_reaches_the_file", writes),
        trial("pci::a_guest_and_its_host_ping_each_other", ping),
        trial("pci::four_processors_and_a_driver_that_comes_and_goes", rebind),
        trial("pci::without_acpi_the_bus_is_found_by_its_ports", without_acpi),
        trial("pci::debian_6_12_cloud_finds_its_root", debian),
    ]
}

fn pci(guest: Guest) -> Guest {
    guest.arg("--transport").arg("pci")
}

fn functions() -> Verdict {
    let script = "echo virtio=$(ls /sys/bus/virtio/devices | wc -l)
        echo functions=$(ls /sys/bus/pci/devices | wc -l)
        echo messages=$(grep -c 'MSIX.*virtio' /proc/interrupts)
        echo bytes=$(head -c 1000 /dev/hwrng | wc -c)
        echo errors=$(dmesg | grep -ciE \"pci.*(can't|fail|invalid|no space)\")";
    let outcome = pci(Guest::tiny().script(script)).run()?.ended(0)?;
    // Two disks and the entropy device; and the bridge.
    check(outcome.count("virtio")? == 3, "all devices are there", &outcome)?;
    check(outcome.count("functions")? == 4, "each is a function", &outcome)?;
    check(outcome.count("messages")? == 6, "two vectors each", &outcome)?;
    check(outcome.count("bytes")? == 1000, "entropy comes", &outcome)?;
    check(outcome.count("errors")? == 0, "Linux is content", &outcome)?;
    Ok(Completion::Completed)
}

fn writes() -> Verdict {
    let guest = Guest::tiny();
    let image = guest.scratch("data.img");
    std::fs::write(&image, vec![0; 4 << 20]).map_err(|e| e.to_string())?;
    let script = "i=0; while [ $i -lt 1024 ]; do printf '%04d' $i; i=$((i + 1)); done >/tmp/part
        dd if=/tmp/part of=/dev/vdc bs=4096 seek=17 conv=fsync && sha256sum /tmp/part";
    let guest = guest.script(script).arg("--disk").arg(format!("path={}", image.display()));
    let mut started = pci(guest).start();
    started.expect("EXIT 0")?;
    let bytes = std::fs::read(&image).map_err(|e| e.to_string())?;
    let wanted: String = (0..1024).map(|i| format!("{i:04}")).collect();
    started.wait()?.script_passed()?;
    if &bytes[17 * 4096..18 * 4096] != wanted.as_bytes() {
        return Err("the file does not hold what was written".into());
    }
    Ok(Completion::Completed)
}

fn ping() -> Verdict {
    let Some(tap) = HostTap::new("vmpci", 9) else { return net::unavailable() };
    pci(tap.guest(&format!("ping -c 3 -W 10 {}", tap.host()))).run()?.script_passed()?;
    Ok(Completion::Completed)
}

/// Vectors and queues are torn down and set up again, with the interrupt on
/// whichever processor.
fn rebind() -> Verdict {
    let script = "cd /sys/bus/virtio/drivers/virtio_rng || exit 1
        device=$(basename virtio[0-9]*)
        for cpu in 1 2 3 0; do
            echo $device >unbind && echo $device >bind || exit 2
            for irq in $(grep \"$device-input\" /proc/interrupts | cut -d: -f1); do
                echo $cpu >/proc/irq/$irq/smp_affinity_list
            done
            [ $(head -c 500 /dev/hwrng | wc -c) = 500 ] || exit 3
        done";
    pci(Guest::tiny().arg("--cpus").arg("4").script(script)).run()?.script_passed()?;
    Ok(Completion::Completed)
}

fn without_acpi() -> Verdict {
    let guest =
        Guest::tiny().word("acpi=off microvm.exit=reboot").script("ls /sys/bus/pci/devices");
    pci(guest).run()?.script_passed()?;
    Ok(Completion::Completed)
}

fn debian() -> Verdict {
    let (kernel, initrd) = kit::debian("6_12_CLOUD");
    let guest = Guest::with_kernel(&kernel).rooted().arg("--initrd").arg(initrd);
    let script = "grep -q '^/dev/.* / ext4' /proc/mounts && grep MSI /proc/interrupts";
    pci(guest.arg("--memory").arg("512M").script(script)).run()?.script_passed()?;
    Ok(Completion::Completed)
}
