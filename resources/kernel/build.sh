#!/usr/bin/env bash
# Build the guest kernel of microvm from Debian's linux-source-6.12.
#
#   build.sh [FLAVOUR]
#
# In:   microvm.config beside this script, and with a flavour FLAVOUR.config after
#       it, merged on `make tinyconfig`; every line must hold in the result, or the
#       build stops and names those that do not. Flavours: lean.
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
[ $# -le 1 ] || usage
flavour=${1:-microvm}
[ -f "$here/$flavour.config" ] || usage

# overridden_by FILE: standard input, with FILE's lines in place of its own.
overridden_by() {
	awk -F= -v file="$1" '
		BEGIN { while ((getline line < file) > 0) if (line ~ /^CONFIG_/) { split(line, part, "="); new[part[1]] = line } }
		!($1 in new)
		END { for (name in new) print new[name] | "sort" }' -
}

# Read once: what is hashed is what is built, whoever edits the file meanwhile.
package=linux-source-6.12
fragment=$(cat "$here/microvm.config")
[ "$flavour" = microvm ] || fragment=$(printf '%s\n' "$fragment" | overridden_by "$here/$flavour.config")
version=$(candidate $package)
key=$(SALT=$version$fragment hash_of "$here/build.sh")
out=$CACHE/kernel/$flavour-$version-$key

if [ -e "$out/vmlinux" ]; then
	echo "$out"
	exit 0
fi

mkdir -p "$CACHE/kernel"
lock "kernel-$flavour"
if [ -e "$out/vmlinux" ]; then
	echo "$out"
	exit 0
fi
need gcc make flex bison bc libelf-dev libssl-dev xz-utils lz4 binutils

scratch
src=$CACHE/kernel/source-$version
obj=$CACHE/kernel/objects-$flavour-$version
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
printf '%s\n' "$fragment" >"$SCRATCH/fragment"
make -s -C "$src" O="$SCRATCH/config" ARCH=x86_64 tinyconfig >/dev/null
(cd "$SCRATCH/config" && "$src/scripts/kconfig/merge_config.sh" -m -O . .config "$SCRATCH/fragment" >/dev/null)
make -s -C "$src" O="$SCRATCH/config" ARCH=x86_64 olddefconfig >&2
wrong=
while IFS= read -r line; do
	case $line in
	CONFIG_*=n) grep -q "^${line%=n}=" "$SCRATCH/config/.config" && wrong+=" $line" ;;
	CONFIG_*=*) grep -qxF "$line" "$SCRATCH/config/.config" || wrong+=" $line" ;;
	esac
done <"$SCRATCH/fragment"
[ -z "$wrong" ] || die 1 "these lines of the configuration do not hold:$wrong"
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
case $(readelf -nW "$res/vmlinux" 2>/dev/null) in
*Xen*) ;;
*) die 1 "vmlinux has no PVH note" ;;
esac

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
case $(readelf -lnW "$res/vmlinux-nopvh" 2>/dev/null) in
*' NOTE '* | *Xen*) die 1 "vmlinux-nopvh still has its note" ;;
esac

publish "$res" "$out"
say "vmlinux $(stat -c %s "$out/vmlinux") bytes, bzImage $(stat -c %s "$out/bzImage") bytes"
echo "$out"
