#!/usr/bin/env bash
# Fetch a Debian package into the cache and unpack it, without installing it.
#
#   package.sh NAME
#
# Out:  the directory with its files, its path on standard output.
# Env:  MICROVM_CACHE (default $XDG_CACHE_HOME/microvm or ~/.cache/microvm)
# Exit: 0 done, 1 failed, 2 arguments, 3 a package only root can install

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=../lib.sh
. "$here/../lib.sh"
[ $# -eq 1 ] || usage

version=$(candidate "$1")
out=$CACHE/debian/$1_${version//:/%3a}
if [ ! -e "$out" ]; then
	mkdir -p "$CACHE/debian"
	lock "debian-package-$1"
	scratch
	[ -e "$out" ] || unpack_deb "$1" "$SCRATCH/files"
	[ -e "$out" ] || publish "$SCRATCH/files" "$out"
fi
echo "$out"
