#!/usr/bin/env bash
# Build the guest kernel of microvm from Debian's linux-source-6.12.
#
#   build.sh
#
# In:   microvm.config beside this script, merged on `make tinyconfig`; every
#       line of it must hold in the result, or the build stops and names those
#       that do not.
# Out:  one directory in the cache, its path on standard output, with
#         vmlinux        uncompressed ELF, stripped, with the PVH entry note
#         vmlinux-nopvh  the same, the note taken out (64-bit boot protocol)
#         bzImage        the same kernel, compressed, with its setup code
#         System.map  config  version
# Env:  MICROVM_CACHE (default $XDG_CACHE_HOME/microvm or ~/.cache/microvm)
#       JOBS (default: all processors)
# Exit: 0 done, 1 failed, 2 arguments, 3 a package only root can install
#
# The result is kept under the hash of configuration, this script and source
# version. Objects are kept too: after a small change only a little is rebuilt.

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=../lib.sh
. "$here/../lib.sh"
[ $# -eq 0 ] || usage

package=linux-source-6.12
fragment=$here/microvm.config
version=$(candidate $package)
key=$(SALT=$version hash_of "$fragment" "$here/build.sh")
out=$CACHE/kernel/$version-$key

if [ -e "$out/vmlinux" ]; then
	echo "$out"
	exit 0
fi

mkdir -p "$CACHE/kernel"
lock kernel
if [ -e "$out/vmlinux" ]; then
	echo "$out"
	exit 0
fi
need gcc make flex bison bc libelf-dev libssl-dev xz-utils lz4 binutils

scratch
src=$CACHE/kernel/source-$version
obj=$CACHE/kernel/objects-$version
if [ ! -d "$src" ]; then
	unpack_deb $package "$SCRATCH/deb"
	say "unpacking the source"
	mkdir "$SCRATCH/src"
	tar -xJf "$SCRATCH/deb/usr/src/$package.tar.xz" -C "$SCRATCH/src" --strip-components=1
	publish "$SCRATCH/src" "$src"
fi

export KBUILD_BUILD_TIMESTAMP='1970-01-01 00:00:00 UTC' KBUILD_BUILD_VERSION=1
export KBUILD_BUILD_USER=microvm KBUILD_BUILD_HOST=microvm
kmake() { make -s -C "$src" O="$obj" ARCH=x86_64 "$@" >&2; }

# The configuration is made aside and moved in only when it differs, so that
# make sees an unchanged file as unchanged.
say "configuring"
mkdir -p "$obj" "$SCRATCH/config"
make -s -C "$src" O="$SCRATCH/config" ARCH=x86_64 tinyconfig >/dev/null
(cd "$SCRATCH/config" && "$src/scripts/kconfig/merge_config.sh" -m -O . .config "$fragment" >/dev/null)
make -s -C "$src" O="$SCRATCH/config" ARCH=x86_64 olddefconfig >&2
wrong=
while IFS= read -r line; do
	case $line in
	CONFIG_*=n) grep -q "^${line%=n}=" "$SCRATCH/config/.config" && wrong+=" $line" ;;
	CONFIG_*=*) grep -qxF "$line" "$SCRATCH/config/.config" || wrong+=" $line" ;;
	esac
done <"$fragment"
[ -z "$wrong" ] || die 1 "these lines of microvm.config do not hold:$wrong"
cmp -s "$SCRATCH/config/.config" "$obj/.config" || cp "$SCRATCH/config/.config" "$obj/.config"

say "compiling $version with ${JOBS:-$(nproc)} jobs"
start=$SECONDS
kmake -j"${JOBS:-$(nproc)}" vmlinux bzImage
say "compiled in $((SECONDS - start)) s"

res=$SCRATCH/result
mkdir "$res"
objcopy --strip-all "$obj/vmlinux" "$res/vmlinux"
cp "$obj/arch/x86/boot/bzImage" "$obj/System.map" "$res/"
cp "$obj/.config" "$res/config"
cat "$obj/include/config/kernel.release" >"$res/version"

# The PVH entry is an ELF note "Xen", type 18, in a PT_NOTE segment.
readelf -nW "$res/vmlinux" 2>/dev/null | grep -q Xen || die 1 "vmlinux has no PVH note"

# Without it: the segment's type becomes PT_NULL and the notes become zeros.
cp "$res/vmlinux" "$res/vmlinux-nopvh"
word() { od -An -v -t "u$3" -j "$2" -N "$3" "$1" | tr -d ' '; }
phoff=$(word "$res/vmlinux" 32 8)
phsize=$(word "$res/vmlinux" 54 2)
phnum=$(word "$res/vmlinux" 56 2)
for ((i = 0; i < phnum; i++)); do
	at=$((phoff + i * phsize))
	[ "$(word "$res/vmlinux" "$at" 4)" = 4 ] || continue
	offset=$(word "$res/vmlinux" $((at + 8)) 8)
	size=$(word "$res/vmlinux" $((at + 32)) 8)
	dd if=/dev/zero of="$res/vmlinux-nopvh" bs=1 seek="$at" count=4 conv=notrunc status=none
	dd if=/dev/zero of="$res/vmlinux-nopvh" bs=1 seek="$offset" count="$size" conv=notrunc status=none
done
if readelf -lW "$res/vmlinux-nopvh" | grep -q ' NOTE ' ||
	readelf -nW "$res/vmlinux-nopvh" 2>/dev/null | grep -q Xen; then
	die 1 "vmlinux-nopvh still has its note"
fi

publish "$res" "$out"
say "vmlinux $(stat -c %s "$out/vmlinux") bytes, bzImage $(stat -c %s "$out/bzImage") bytes"
echo "$out"
