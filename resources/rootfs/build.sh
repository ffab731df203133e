#!/usr/bin/env bash
# Build a root file system for microvm's guests.
#
#   build.sh tiny OUT.ext4              busybox, 64 MiB sparse, byte for byte the same every time
#   build.sh initrd OUT.cpio[.gz|.zst|.lz4]
#                                       the same tree as an initramfs, compressed as OUT is named
#   build.sh debian OUT.ext4 [PACKAGE...]
#                                       Debian bookworm minbase and these packages; DEBIAN_SIZE=2G
#   build.sh tools OUT.ext4             fio, iperf3, tcc, perl, getfattr and setfattr with the
#                                       libraries they need, for chroot
#   build.sh script OUT FILE            a disk for microvm.run=/dev/vdb: FILE, padded to a block
#
# Every image starts with `init` beside this script, which lists the words of the
# kernel command line that tests and benchmarks use, and holds /sbin/bench-init
# and /sbin/bench-io.
# Out:  the path OUT on standard output. Needs no root, except debian where user
#       namespaces are off.
# Env:  MICROVM_CACHE (default $XDG_CACHE_HOME/microvm or ~/.cache/microvm)
# Exit: 0 done, 1 failed, 2 arguments, 3 a package only root can install

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=../lib.sh
. "$here/../lib.sh"

[ $# -ge 2 ] || usage
kind=$1 target=$2
shift 2
parts=("$here/init" "$here/inittab" "$here/udhcpc.script" "$here/bench-init.S"
	"$here/bench-io.c" "$here/build.sh")
uuid=6d696372-6f76-4d6d-8000-000000000001

# deliver CACHED: copy it to OUT, holes kept, in one step.
deliver() {
	local tmp
	mkdir -p "$(dirname "$target")"
	tmp=$(mktemp "$target.XXXXXXXX")
	cp --sparse=always "$1" "$tmp"
	chmod 644 "$tmp"
	mv -T "$tmp" "$target"
	echo "$target"
	exit 0
}

# add_init TREE: busybox, the init script and its parts, in any tree.
add_init() {
	local tree=$1
	mkdir -p "$tree"/{bin,sbin,etc,proc,sys,dev,run,root,tmp}
	[ -x "$tree/bin/busybox" ] || {
		need binutils
		unpack_deb busybox-static "$SCRATCH/busybox"
		install -m 755 "$SCRATCH/busybox/bin/busybox" "$tree/bin/busybox"
	}
	install -m 755 "$here/init" "$tree/sbin/microvm-init"
	install -m 755 "$here/udhcpc.script" "$tree/etc/udhcpc.script"
	install -m 644 "$here/inittab" "$tree/etc/inittab"
	echo microvm >"$tree/etc/hostname"
	need binutils
	as --64 -o "$SCRATCH/bench-init.o" "$here/bench-init.S"
	ld -static -n -z noseparate-code -s --build-id=none -o "$tree/sbin/bench-init" "$SCRATCH/bench-init.o"
	need gcc libc6-dev
	gcc -O2 -ffreestanding -fno-stack-protector -fcf-protection=none \
		-fno-asynchronous-unwind-tables -fno-pie -no-pie -nostdlib -static -s \
		-Wl,--build-id=none -o "$tree/sbin/bench-io" "$here/bench-io.c"
}

# tiny_tree TREE
tiny_tree() {
	local tree=$1 applet
	mkdir -p "$tree"/{usr/bin,usr/sbin,mnt,etc,var/log,var/run,home}
	add_init "$tree"
	# The applets the binary itself names, at the places it names.
	"$tree/bin/busybox" --list-full | while read -r applet; do
		case $applet in
		bin/busybox | linuxrc | "") ;;
		*) ln -sf /bin/busybox "$tree/$applet" ;;
		esac
	done
	ln -sf microvm-init "$tree/sbin/init"
	cat >"$tree/etc/passwd" <<-'END'
		root:x:0:0:root:/root:/bin/sh
		nobody:x:65534:65534:nobody:/nonexistent:/bin/false
	END
	cat >"$tree/etc/group" <<-'END'
		root:x:0:
		tty:x:5:
		nogroup:x:65534:
	END
	echo 'root::0:0:99999:7:::' >"$tree/etc/shadow"
	echo '127.0.0.1 localhost microvm' >"$tree/etc/hosts"
	echo 'nameserver 10.0.2.3' >"$tree/etc/resolv.conf"
	echo "PS1='microvm:\\w# '" >"$tree/etc/profile"
	chmod 700 "$tree/root"
	chmod 1777 "$tree/tmp"
	chmod 600 "$tree/etc/shadow"
	find "$tree" -exec touch -h -d @0 {} +
}

# ext4 TREE IMAGE SIZE: everything owned by root, all times zero.
ext4() {
	local tree=$1 image=$2 size=$3 path
	need e2fsprogs
	truncate -s "$size" "$image"
	# Journal small, no space kept for root, inode tables left to the holes.
	mke2fs -q -F -t ext4 -b 4096 -I 256 -m 0 -J size=4 -L microvm -U "$uuid" \
		-O ^resize_inode,^metadata_csum \
		-E "hash_seed=$uuid,root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0,nodiscard" \
		-d "$tree" "$image" >&2
	{
		(cd "$tree" && find . -printf '%P\n' | sort) | while IFS= read -r path; do
			for field in atime ctime mtime crtime; do
				echo "set_inode_field \"/$path\" $field @0"
				echo "set_inode_field \"/$path\" ${field}_extra 0"
			done
			echo "set_inode_field \"/$path\" uid 0"
			echo "set_inode_field \"/$path\" gid 0"
		done
		for path in '<1>' '<7>' '<8>' '<11>'; do
			for field in atime ctime mtime crtime; do
				echo "set_inode_field $path $field @0"
				echo "set_inode_field $path ${field}_extra 0"
			done
		done
		for field in mkfs_time wtime lastcheck mtime; do
			echo "set_super_value $field 0"
		done
		echo "set_super_value kbytes_written 0"
	} >"$SCRATCH/zero"
	E2FSPROGS_FAKE_TIME=1 debugfs -w -f "$SCRATCH/zero" "$image" >/dev/null 2>"$SCRATCH/zero.err" ||
		die 1 "debugfs: $(tail -n 1 "$SCRATCH/zero.err")"
	if grep -v '^debugfs' "$SCRATCH/zero.err" >&2; then die 1 "debugfs could not fix the image"; fi
}

case $kind in
tiny)
	[ $# -eq 0 ] || usage
	built=$CACHE/rootfs/tiny-$(SALT=$(candidate busybox-static) hash_of "${parts[@]}").ext4
	[ -e "$built" ] && deliver "$built"
	mkdir -p "$CACHE/rootfs"
	lock rootfs-tiny
	[ -e "$built" ] && deliver "$built"
	scratch
	say "building"
	tiny_tree "$SCRATCH/tree"
	ext4 "$SCRATCH/tree" "$SCRATCH/image" 64M
	publish "$SCRATCH/image" "$built"
	deliver "$built"
	;;
initrd)
	[ $# -eq 0 ] || usage
	case $target in
	*.gz) pack=(gzip -9n) suffix=.gz ;;
	*.zst) pack=(zstd -q -19 --no-progress) suffix=.zst ;;
	*.lz4) pack=(lz4 -q -l -9) suffix=.lz4 ;;
	*) pack=(cat) suffix= ;;
	esac
	built=$CACHE/rootfs/initrd-$(SALT=$(candidate busybox-static) hash_of "${parts[@]}").cpio$suffix
	[ -e "$built" ] && deliver "$built"
	mkdir -p "$CACHE/rootfs"
	lock rootfs-initrd
	[ -e "$built" ] && deliver "$built"
	need cpio
	[ "$suffix" = .zst ] && need zstd
	[ "$suffix" = .lz4 ] && need lz4
	scratch
	say "building"
	tiny_tree "$SCRATCH/tree"
	ln -s sbin/microvm-init "$SCRATCH/tree/init"
	find "$SCRATCH/tree" -exec touch -h -d @0 {} +
	(cd "$SCRATCH/tree" && find . -mindepth 1 -printf '%P\n' | sort |
		cpio --quiet -o -H newc --reproducible -R 0:0) | "${pack[@]}" >"$SCRATCH/image"
	publish "$SCRATCH/image" "$built"
	deliver "$built"
	;;
debian)
	size=${DEBIAN_SIZE:-2G}
	mapfile -t extra < <(printf '%s\n' "$@" | sed '/^$/d' | sort -u)
	built=$CACHE/rootfs/debian-$(SALT="$size ${extra[*]}" hash_of "${parts[@]}").ext4
	[ -e "$built" ] && deliver "$built"
	mkdir -p "$CACHE/rootfs"
	lock rootfs-debian
	[ -e "$built" ] && deliver "$built"
	need mmdebstrap
	scratch
	say "mmdebstrap bookworm minbase ${extra[*]}"
	if [ "$(id -u)" = 0 ]; then mode=root inside=(); else
		mode=unshare inside=(unshare --map-auto --map-root-user)
	fi
	list=$(IFS=,; echo "${extra[*]}")
	mmdebstrap --quiet --mode=$mode --variant=minbase --format=tar \
		--aptopt='Acquire::Languages "none"' \
		--dpkgopt=path-exclude='/usr/share/doc/*' --dpkgopt=path-exclude='/usr/share/man/*' \
		--dpkgopt=path-exclude='/usr/share/locale/*' \
		--include="busybox-static,ca-certificates${list:+,$list}" \
		bookworm "$SCRATCH/root.tar" >&2
	add_init "$SCRATCH/extra"
	# One process owns the whole conversion, so that owners and modes survive.
	cat >"$SCRATCH/convert" <<-'END'
		set -eu
		tree=$1 extra=$2 tar=$3 image=$4 size=$5 uuid=$6
		mkdir "$tree"
		tar -xf "$tar" -C "$tree" --numeric-owner --exclude='./dev/*'
		cp "$extra/sbin/microvm-init" "$extra/sbin/bench-init" "$extra/sbin/bench-io" "$tree/sbin/"
		cp "$extra/etc/inittab" "$extra/etc/udhcpc.script" "$extra/etc/hostname" "$tree/etc/"
		[ -e "$tree/sbin/init" ] || ln -s microvm-init "$tree/sbin/init"
		for name in poweroff reboot halt; do
			[ -e "$tree/sbin/$name" ] || ln -s /bin/busybox "$tree/sbin/$name"
		done
		printf 'nameserver 10.0.2.3\n' >"$tree/etc/resolv.conf"
		rm -rf "$tree"/var/cache/apt/*.bin "$tree"/var/lib/apt/lists/*_*
		truncate -s "$size" "$image"
		mke2fs -q -F -t ext4 -m 0 -L microvm -U "$uuid" -E "hash_seed=$uuid,nodiscard" -d "$tree" "$image" >&2
		rm -rf "$tree"
	END
	say "writing the image"
	"${inside[@]}" sh "$SCRATCH/convert" "$SCRATCH/tree" "$SCRATCH/extra" "$SCRATCH/root.tar" \
		"$SCRATCH/image" "$size" "${uuid%1}2"
	publish "$SCRATCH/image" "$built"
	deliver "$built"
	;;
tools)
	[ $# -eq 0 ] || usage
	built=$CACHE/rootfs/tools-$(SALT="$(candidate fio) $(candidate iperf3) $(candidate tcc) $(candidate attr)" hash_of "${parts[@]}").ext4
	[ -e "$built" ] && deliver "$built"
	mkdir -p "$CACHE/rootfs"
	lock rootfs-tools
	[ -e "$built" ] && deliver "$built"
	need fio iperf3 tcc attr perl-base libc-bin
	scratch
	say "building"
	mkdir -p "$SCRATCH/tree"/{tmp,dev,proc,sys,etc,usr/bin}
	for program in fio iperf3 tcc perl getfattr setfattr; do
		install -m 755 "/usr/bin/$program" "$SCRATCH/tree/usr/bin/$program"
		# The loader is named without "=>", the libraries with it.
		ldd "/usr/bin/$program" | sed -n 's/.*=> \(\/[^ ]*\).*/\1/p;s/^\t\(\/[^ ]*\) .*/\1/p' |
			while read -r library; do
				install -D -m 755 "$library" "$SCRATCH/tree$library"
			done
	done
	# What perl-base has beside its program: the modules that every Debian has.
	mkdir -p "$SCRATCH/tree/usr/lib/x86_64-linux-gnu"
	cp -R /usr/lib/x86_64-linux-gnu/perl-base "$SCRATCH/tree/usr/lib/x86_64-linux-gnu/"
	find "$SCRATCH/tree" -exec touch -h -d @0 {} +
	ext4 "$SCRATCH/tree" "$SCRATCH/image" 192M
	publish "$SCRATCH/image" "$built"
	deliver "$built"
	;;
script)
	[ $# -eq 1 ] || usage
	[ "$(head -c 2 "$1")" = '#!' ] || die 2 "$1 does not begin with #!"
	[ "$(stat -c %s "$1")" -le 1048576 ] || die 2 "$1 is larger than 1 MiB"
	scratch
	cp "$1" "$SCRATCH/image"
	truncate -s %4096 "$SCRATCH/image"
	deliver "$SCRATCH/image"
	;;
*) usage ;;
esac
