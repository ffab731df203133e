# shellcheck shell=bash
# What the builders under resources/ share. Sourced, never run.
#
# Provides: say, die, cache, need, candidate, fetch_deb, with_lock, hash_of.
# Exit codes of every script: 0 done, 1 a step failed, 2 wrong arguments,
# 3 a Debian package is missing and only root could install it.

export LC_ALL=C

# say TEXT...: progress, on standard error; standard output carries the result.
say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

# die CODE TEXT...
die() {
	local code=$1
	shift
	say "$*"
	exit "$code"
}

# usage: the header comment of the running script, exit 2.
usage() {
	sed -n '2,/^$/{s/^# \{0,1\}//;p;}' "$0" >&2
	exit 2
}

# CACHE: where everything built or downloaded lives, outside the checkout.
CACHE=${MICROVM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/microvm}
mkdir -p "$CACHE/locks" "$CACHE/deb" "$CACHE/versions"

# scratch: a fresh directory beside the cache's entries (so that a rename is
# atomic), removed when the script ends. Its name is left in $SCRATCH.
scratch() {
	SCRATCH=$(mktemp -d "$CACHE/tmp.XXXXXXXX")
	chmod 755 "$SCRATCH"
	trap 'rm -rf "$SCRATCH"' EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM
}

# lock NAME: one builder of NAME at a time; held until the script ends.
lock() {
	exec {LOCK_FD}>"$CACHE/locks/$1"
	if ! flock -n "$LOCK_FD"; then
		say "waiting for another build of $1"
		flock "$LOCK_FD"
	fi
}

# hash_of FILE...: a short hash of their contents and of $SALT.
hash_of() {
	{
		printf '%s\n' "${SALT:-}"
		cat "$@"
	} | sha256sum | cut -c1-16
}

# apt_lists: package lists exist, or are brought once.
apt_lists() {
	local f
	for f in /var/lib/apt/lists/*_Packages*; do
		[ -e "$f" ] && return 0
	done
	[ "$(id -u)" = 0 ] || die 3 "no package lists: run 'apt-get update' as root"
	say "apt-get update"
	apt-get update -q >&2
}

# need PACKAGE...: these Debian packages are installed, or are now.
need() {
	local p missing=()
	for p in "$@"; do
		case $(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null || true) in
		installed) ;;
		*) missing+=("$p") ;;
		esac
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	[ "$(id -u)" = 0 ] || die 3 "missing: run 'apt-get install ${missing[*]}' as root"
	apt_lists
	say "installing ${missing[*]}"
	DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
		-o DPkg::Lock::Timeout=300 "${missing[@]}" >&2
}

# remembered NAME COMMAND...: the output of a slow question to apt, asked again
# only when the package lists have changed since.
remembered() {
	local memo="$CACHE/versions/$1" stamp tmp
	shift
	stamp=$(stat -c %Y /var/lib/apt/lists 2>/dev/null || echo 0)
	if [ -s "$memo" ] && [ "$(sed -n 1p "$memo")" = "$stamp" ]; then
		sed 1d "$memo"
		return 0
	fi
	apt_lists
	stamp=$(stat -c %Y /var/lib/apt/lists)
	tmp=$(mktemp "$memo.XXXXXX")
	{ echo "$stamp" && "$@"; } >"$tmp" || {
		rm -f "$tmp"
		return 1
	}
	mv "$tmp" "$memo"
	sed 1d "$memo"
}

apt_candidate() {
	local v
	v=$(apt-cache show --no-all-versions "$1" 2>/dev/null | sed -n 's/^Version: //p')
	[ -n "$v" ] && echo "$v"
}

# candidate PACKAGE: the version apt would install.
candidate() {
	remembered "$1" apt_candidate "$1" && return 0
	# Lists may be there of other sources only, as on a fresh machine.
	if [ "$(id -u)" = 0 ]; then
		say "apt-get update"
		apt-get update -q >&2
		remembered "$1" apt_candidate "$1" && return 0
	fi
	die 1 "apt knows no package $1"
}

# fetch_deb PACKAGE: its newest .deb in the cache, downloaded unless there.
# Prints the path.
fetch_deb() {
	local version deb dir opt=()
	version=$(candidate "$1")
	deb="$CACHE/deb/$1_${version//:/%3a}.deb"
	if [ ! -s "$deb" ]; then
		say "downloading $1 $version"
		dir=$(mktemp -d "$CACHE/deb/tmp.XXXXXXXX")
		[ "$(id -u)" = 0 ] && opt=(-o APT::Sandbox::User=root)
		(cd "$dir" && apt-get download -q "${opt[@]}" "$1=$version" >&2) || {
			rm -rf "$dir"
			die 1 "could not download $1 $version"
		}
		mv "$dir"/*.deb "$deb"
		rm -rf "$dir"
	fi
	echo "$deb"
}

# unpack_deb PACKAGE DIRECTORY
unpack_deb() {
	local deb
	deb=$(fetch_deb "$1")
	mkdir -p "$2"
	dpkg -x "$deb" "$2"
}

# publish TMP FINAL: put a finished directory or file in place in one step.
# Somebody else's equal result, already there, is kept.
publish() {
	if [ -d "$1" ]; then
		if [ -e "$2" ]; then rm -rf "$1"; else mv -T "$1" "$2"; fi
	else
		mv -T "$1" "$2"
	fi
}
