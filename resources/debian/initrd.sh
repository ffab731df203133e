#!/usr/bin/env bash
# Build the initramfs with which a stock Debian kernel boots on microvm: busybox
# and exactly the modules for the disk, the network card and the root.
#
#   initrd.sh 6.1|6.12 cloud|generic OUT.cpio.gz
#
# Its /init is ../rootfs/init: it loads the modules, waits for root=, mounts it and
# goes there; without root= it behaves as the initrd of ../rootfs/build.sh.
# Out:  the path OUT on standard output.
# Env:  MICROVM_CACHE (default $XDG_CACHE_HOME/microvm or ~/.cache/microvm)
#       MODULES: other modules than the ones named below
# Exit: 0 done, 1 failed, 2 arguments, 3 a package only root can install

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=../lib.sh
. "$here/../lib.sh"
[ $# -eq 3 ] || usage
target=$3
modules=${MODULES:-virtio_mmio virtio_pci virtio_blk virtio_net virtio_rng vmw_vsock_virtio_transport \
	ext4 crc32c_generic crc32c_intel pvpanic pvpanic-mmio pvpanic-pci}
# The cloud's flavour has none of a PC's.
[ -n "${MODULES:-}" ] || [ "$2" = cloud ] || modules+=" ata_piix sd_mod sr_mod 8139too"

kernel=$("$here/fetch-kernel.sh" "$1" "$2")
built=$CACHE/debian/initrd-$(SALT="$kernel $modules $(candidate busybox-static)" \
	hash_of "$here/initrd.sh" "$here"/../rootfs/*).cpio.gz

if [ ! -e "$built" ]; then
	lock "initrd-$1-$2"
fi
if [ ! -e "$built" ]; then
	need cpio kmod xz-utils gzip
	scratch
	say "building for $(cat "$kernel/version")"
	release=$(cat "$kernel/version")
	mkdir -p "$SCRATCH/tree/modules"
	"$here/../rootfs/build.sh" initrd "$SCRATCH/base" >/dev/null
	(cd "$SCRATCH/tree" && cpio --quiet -idm --no-absolute-filenames <"$SCRATCH/base")
	# modprobe knows the closure and the order; what is built in has no file.
	for module in $modules; do
		modprobe -d "$kernel" -S "$release" -n -D "$module" 2>/dev/null || true
	done | awk '$1 == "insmod" && !seen[$2]++ {print $2}' |
		while IFS= read -r file; do
			name=${file##*/}
			name=${name%%.ko*}.ko
			case $file in
			*.xz) xz -dc "$file" >"$SCRATCH/tree/modules/$name" ;;
			*) cp "$file" "$SCRATCH/tree/modules/$name" ;;
			esac
			echo "$name"
		done >"$SCRATCH/order"
	[ -s "$SCRATCH/order" ] && mv "$SCRATCH/order" "$SCRATCH/tree/modules/order"
	[ -x "$SCRATCH/tree/init" ] || die 1 "the base image has no init"
	say "modules: $(tr '\n' ' ' <"$SCRATCH/tree/modules/order")"
	find "$SCRATCH/tree" -exec touch -h -d @0 {} +
	(cd "$SCRATCH/tree" && find . -mindepth 1 -printf '%P\n' | sort |
		cpio --quiet -o -H newc --reproducible -R 0:0) | gzip -6n >"$SCRATCH/image"
	publish "$SCRATCH/image" "$built"
fi

tmp=$(mktemp "$target.XXXXXXXX")
cp "$built" "$tmp"
chmod 644 "$tmp"
mv -T "$tmp" "$target"
echo "$target"
