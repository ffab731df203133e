#!/usr/bin/env bash
# Build a disk image with Debian on it that boots as on any PC: an MBR with GRUB, and
# Debian bookworm minbase with its generic kernel in the first partition. Debian's
# own initramfs-tools make the initramfs, with the drivers of a PIIX and of an
# RTL8139 as modules.
#
#   disk.sh
#
# GRUB is on the serial port and starts the kernel after a second. Debian's init is
# sysvinit with a getty on the serial port and nothing else, not even udev, which takes
# longer than all before it where the processor is emulated; root has no password.
# Out:  one directory, its path on standard output, with
#         disk.img  vmlinuz  initrd.img  uuid (of the root file system)
# Env:  MICROVM_CACHE (default $XDG_CACHE_HOME/microvm or ~/.cache/microvm)
# Exit: 0 done, 1 failed, 2 arguments, 3 a package only root can install
# Needs no root where user namespaces are on, and no loop device ever.

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=../lib.sh
. "$here/../lib.sh"
[ $# -eq 0 ] || usage
uuid=6d696372-6f76-4d6d-8000-000000000003
size=1G

kernel=$(candidate linux-image-amd64)
out=$CACHE/debian/disk-$(SALT="$kernel $(candidate grub-pc-bin)" hash_of "$here/disk.sh")
if [ -e "$out/disk.img" ]; then
	echo "$out"
	exit
fi
mkdir -p "$CACHE/debian"
lock debian-disk
if [ -e "$out/disk.img" ]; then
	echo "$out"
	exit
fi

need mmdebstrap grub-common grub-pc-bin e2fsprogs fdisk
scratch
if [ "$(id -u)" = 0 ]; then mode=root inside=(); else
	mode=unshare inside=(unshare --map-auto --map-root-user)
fi
say "mmdebstrap bookworm minbase with linux-image-amd64"
# dash expands $1 in each hook.
# shellcheck disable=SC2016
mmdebstrap --quiet --mode=$mode --variant=minbase --format=tar \
	--aptopt='Acquire::Languages "none"' \
	--dpkgopt=path-exclude='/usr/share/doc/*' --dpkgopt=path-exclude='/usr/share/man/*' \
	--dpkgopt=path-exclude='/usr/share/locale/*' \
	--include=linux-image-amd64,initramfs-tools,sysvinit-core,udev,busybox \
	--essential-hook='mkdir -p "$1/etc/initramfs-tools/conf.d"' \
	--essential-hook='echo MODULES=list >"$1/etc/initramfs-tools/conf.d/microvm"' \
	--customize-hook='printf "%s\n" ata_piix sd_mod ext4 8139too >>"$1/etc/initramfs-tools/modules"' \
	--customize-hook='chroot "$1" update-initramfs -u' \
	--customize-hook='chroot "$1" passwd -d root >/dev/null' \
	--customize-hook='chroot "$1" update-rc.d udev disable' \
	--customize-hook='sed -i "/getty .*tty[1-6]/d" "$1/etc/inittab"' \
	--customize-hook='echo "T0:23:respawn:/sbin/agetty -L ttyS0 115200 vt100" >>"$1/etc/inittab"' \
	bookworm "$SCRATCH/root.tar" >&2

cat >"$SCRATCH/grub.cfg" <<END
serial --unit=0 --speed=115200
terminal_input serial
terminal_output serial
set timeout=1
menuentry 'Debian' {
	echo 'GRUB loads Debian'
	linux /vmlinuz root=UUID=$uuid ro console=ttyS0
	initrd /initrd.img
}
END
# What GRUB does before it has a configuration file: it looks for it.
cat >"$SCRATCH/early.cfg" <<END
search --no-floppy --fs-uuid --set=root $uuid
set prefix=(\$root)/boot/grub
END
# One process owns the whole conversion, so that owners and modes survive.
cat >"$SCRATCH/convert" <<-'END'
	set -eu
	scratch=$1 uuid=$2 size=$3
	tree=$scratch/tree
	mkdir "$tree" "$scratch/result"
	tar -xf "$scratch/root.tar" -C "$tree" --numeric-owner --exclude='./dev/*'
	mkdir -p "$tree/boot/grub"
	cp -r /usr/lib/grub/i386-pc "$tree/boot/grub/"
	cp "$scratch/grub.cfg" "$tree/boot/grub/"
	echo "UUID=$uuid / ext4 errors=remount-ro 0 1" >"$tree/etc/fstab"
	echo microvm >"$tree/etc/hostname"
	rm -rf "$tree"/var/cache/apt/*.bin "$tree"/var/lib/apt/lists/*_*
	cp "$tree"/boot/vmlinuz-* "$scratch/result/vmlinuz"
	cp "$tree"/boot/initrd.img-* "$scratch/result/initrd.img"
	truncate -s "$size" "$scratch/part"
	mke2fs -q -F -t ext4 -m 0 -L debian -U "$uuid" -E "hash_seed=$uuid,nodiscard" \
		-d "$tree" "$scratch/part"
	rm -rf "$tree"
END
say "writing the image"
"${inside[@]}" sh "$SCRATCH/convert" "$SCRATCH" "$uuid" "$size" >&2
disk=$SCRATCH/result/disk.img
grub-mkimage -O i386-pc -c "$SCRATCH/early.cfg" -p '(hd0,msdos1)/boot/grub' -o "$SCRATCH/core.img" \
	biosdisk part_msdos ext2 search search_fs_uuid configfile normal linux serial terminal echo minicmd
# The gap before the first partition, at 1 MiB, is GRUB's place.
[ "$(stat -c %s "$SCRATCH/core.img")" -le $((2047 * 512)) ] || die 1 "GRUB does not fit before the partition"
truncate -s "$size" "$disk"
truncate -s +1M "$disk"
echo 'start=2048, type=83, bootable' | /sbin/sfdisk -q --label dos "$disk" >&2
dd if="$SCRATCH/part" of="$disk" bs=1M seek=1 conv=sparse,notrunc status=none
# The MBR's code; what it loads begins in the next sector, as it expects.
dd if=/usr/lib/grub/i386-pc/boot.img of="$disk" bs=440 count=1 conv=notrunc status=none
dd if="$SCRATCH/core.img" of="$disk" bs=512 seek=1 conv=notrunc status=none
echo "$uuid" >"$SCRATCH/result/uuid"
publish "$SCRATCH/result" "$out"
echo "$out"
