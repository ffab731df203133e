#!/usr/bin/env bash
# Fetch a stock Debian kernel into the cache, without installing it.
#
#   fetch-kernel.sh 6.1|6.12 cloud|generic
#
# Out:  one directory, its path on standard output, with
#         vmlinuz  config  version  modules -> lib/modules/<version>
#       of the newest linux-image package of that series that apt knows.
# Env:  MICROVM_CACHE (default $XDG_CACHE_HOME/microvm or ~/.cache/microvm)
# Exit: 0 done, 1 failed, 2 arguments, 3 a package only root can install

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=../lib.sh
. "$here/../lib.sh"
[ $# -eq 2 ] || usage
case $1 in 6.1 | 6.12) series=$1 ;; *) usage ;; esac
case $2 in cloud) flavour=cloud-amd64 ;; generic) flavour=amd64 ;; *) usage ;; esac

# Signed packages only; the real-time, debug and other flavours end otherwise.
newest() {
	apt-cache pkgnames "linux-image-$series." |
		grep -E "^linux-image-${series/./\\.}\.[0-9]+[-+][a-z0-9]+-$flavour$" |
		sort -V | tail -n 1 | grep .
}
package=$(remembered "newest-$series-$flavour" newest) || die 1 "apt knows no $series kernel of flavour $2"
version=$(candidate "$package")
out=$CACHE/debian/$package-$version

if [ ! -e "$out/vmlinuz" ]; then
	mkdir -p "$CACHE/debian"
	lock "debian-$package"
	if [ ! -e "$out/vmlinuz" ]; then
		need kmod
		scratch
		unpack_deb "$package" "$SCRATCH/deb"
		say "unpacking $package"
		release=$(basename "$SCRATCH"/deb/lib/modules/*)
		mkdir -p "$SCRATCH/result"
		mv "$SCRATCH/deb/boot/vmlinuz-$release" "$SCRATCH/result/vmlinuz"
		mv "$SCRATCH/deb/boot/config-$release" "$SCRATCH/result/config"
		mv "$SCRATCH/deb/lib" "$SCRATCH/result/lib"
		depmod -b "$SCRATCH/result" "$release"
		ln -s "lib/modules/$release" "$SCRATCH/result/modules"
		echo "$release" >"$SCRATCH/result/version"
		publish "$SCRATCH/result" "$out"
	fi
fi
echo "$out"
