//! virtio-fs: a directory of the host in the guest, compared with a file system
//! of the guest's own.

use crate::guest::{Guest, Outcome, check};
use crate::kit;
use crate::{Verdict, trial};
use libtest_mimic::{Completion, Trial};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

pub fn tests() -> Vec<Trial> {
    vec![
        trial("share::does_what_a_local_file_system_does_over_mmio", || posix("mmio")),
        trial("share::does_what_a_local_file_system_does_over_pci", || posix("pci")),
        trial("share::answers_system_calls_as_ext4_does", system_calls),
        trial("share::bytes_go_both_ways", bytes),
        trial("share::debian_6_12_cloud_has_it_as_its_root_without_an_initramfs", root),
        trial("share::nothing_leads_out", confined),
        trial("share::a_read_only_share_changes_nothing", read_only),
        trial("share::a_source_tree_is_built_as_on_a_local_disk", build),
        trial("share::a_guest_can_mount_it_again", again),
    ]
}

/// A guest with `dir` at /mnt and a script.
fn guest(dir: &Path, more: &str, script: &str) -> Guest {
    let script = format!("mount -t virtiofs host /mnt || exit 99; {script}");
    let share = format!("tag=host,path={}{more}", dir.display());
    Guest::tiny().script(&script).arg("--share").arg(share)
}

/// What is done in an empty directory. Each line is a case; its output and its
/// status are what is compared.
const CASES: &str = r#"
mkdir d
mkdir d
rmdir d
rmdir d
mkdir -p a/b/c; ls a/b
rmdir a
rm -r a; ls
echo one >f; cat f; stat -c '%s %a %h %F' f
echo two >>f; cat f; wc -c <f
: >f; stat -c %s f
cat none
cat .
echo x >d/none
printf 0123456789 >f; dd if=f bs=1 skip=3 count=4 2>/dev/null
printf ab | dd of=f bs=1 seek=2 conv=notrunc 2>/dev/null; cat f
truncate -s 4 f; cat f; stat -c %s f
truncate -s 100000 f; stat -c %s f; md5sum <f
dd if=/dev/urandom of=big bs=64k count=20 2>/dev/null; cp big copy; cmp big copy && echo same
dd if=/dev/zero of=sparse bs=1 count=1 seek=1048575 2>/dev/null; stat -c %s sparse; md5sum <sparse
rm big copy sparse; ls
umask 077; echo p >private; stat -c %a private
umask 0; mkdir open; touch open/f; stat -c %a open open/f
umask 022; mkdir m; stat -c %a m
chmod 4755 f; stat -c %a f
chmod 000 f; stat -c %a f; chmod 644 f
chmod u+s,g+s m; stat -c %a m
ln f hard; stat -c %h f hard; rm hard; stat -c %h f
ln f f
ln -s f soft; readlink soft; cat soft; stat -c %F soft
ln -s nowhere dangling; cat dangling
ln -s loop loop; cat loop
ln -s f soft
rm soft dangling loop; ls
echo old >x; echo new >y; mv y x; cat x; ls
mkdir full; touch full/f; mkdir empty; mv -T empty full
mv -T full empty; ls empty
touch plain; mv -T plain empty
mv -T empty plain
mkdir p; mv p p/q
rm -r p plain empty x; ls
touch -d '2001-02-03 04:05:06' t; stat -c %Y t
touch -a -d '2002-02-03 04:05:06' t; stat -c '%X %Y' t
touch t; [ $(stat -c %Y t) -gt 1000000000 ] && echo now
mkfifo pipe; stat -c %F pipe; (echo through >pipe &) ; cat pipe
n=$(printf %255s | tr ' ' n); echo x >$n && cat $n && rm $n
n=$(printf %256s | tr ' ' n); echo x >$n
echo x >'a b'; echo x >'-'; ls | sort; rm 'a b' ./-
echo x >"$(printf 'new\nline')"; ls | wc -l; rm new*
mkdir many; for i in $(seq 300); do echo $i >many/$i; done; ls many | wc -l; cat many/* | md5sum
(cd many && rm [1-9] && ls | wc -l); find many -type f | wc -l; rm -r many
exec 3>gone; rm gone; echo still >&3; ls gone; exec 3>&-
exec 3<>f; rm f; echo text >&3; exec 3>&-; ls f
echo old >f; exec 3<f; mv f g; cat <&3; exec 3<&-; cat g
flock g true && echo locked
(flock 9; flock -n g true || echo held) 9>g
flock -s g flock -s -n g true && echo shared
printf '#!/bin/sh\necho ran\n' >s; ./s; chmod +x s; ./s
mkdir deep; d=deep; for i in $(seq 40); do d=$d/x; mkdir $d; done; touch $d/end; find deep | wc -l; rm -r deep
touch a b c; rm a b c; ls
mkdir ro; chmod 555 ro; stat -c %a ro; chmod 755 ro; rmdir ro
echo x >f; chown 1000:1001 f; stat -c '%u %g' f; chmod 6755 f; chown 0:0 f; stat -c %a f
tar -c -C / etc | tar -x; find etc | sort | md5sum; tar -c etc | tar -t | wc -l; rm -r etc
yes | head -c 3000000 | gzip >z; gunzip <z | md5sum; rm z
seq 20000 | sort -R >u; sort -n u | md5sum; rm u
i=0; while [ $i -lt 200 ]; do echo $i >>log; i=$((i+1)); done; wc -l <log; rm log
sync; fsync g && echo synced
stat -f -c %l .
ls -a | sort
"#;

fn posix(transport: &str) -> Verdict {
    let dir = tempfile::tempdir()?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    let cases = dir.path().join("cases");
    fs::create_dir(dir.path().join("work"))?;
    fs::write(&cases, CASES)?;
    // Each case in a shell of its own; the case is named, so that a difference
    // shows which it is.
    let script = "run() { cd $1; while IFS= read -r case; do [ -n \"$case\" ] || continue; \
         echo \"+ $case\"; sh -c \"$case\" </dev/null 2>&1; echo \"= $?\"; done </mnt/cases; }; \
         mkdir /tmp/local; (run /tmp/local) >/mnt/local; (run /mnt/work) >/mnt/shared; \
         echo lines=$(wc -l </mnt/local); \
         diff -aU2 /mnt/local /mnt/shared && echo alike";
    let outcome =
        guest(dir.path(), "", script).arg("--transport").arg(transport).run()?.script_passed()?;
    check(outcome.console.contains("alike"), "both do the same", &outcome)?;
    check(outcome.count("lines")? > 180, "all cases ran", &outcome)?;
    Ok(Completion::Completed)
}

/// Files, names, modes, times, locks, mappings and rights in system calls, as
/// root and as an ordinary user; extended attributes; mappings under fio.
const SYSTEM_CALLS: &str = include_str!("posix.pl");

const ATTRIBUTES: &str = "
f=$1/attributes; : >$f; mkdir $1/d
setfattr -n user.a -v one $f; getfattr --absolute-names --only-values -n user.a $f; echo
setfattr -n user.b $f; setfattr -n user.a -v two $f; getfattr --absolute-names -d $f | grep -v '^#'
getfattr --absolute-names -n user.none $f
setfattr -x user.a $f; setfattr -x user.a $f; getfattr --absolute-names -d $f | grep -v '^#'
setfattr -n user.long -v $(printf %700s | tr ' ' v) $f; getfattr --absolute-names -d $f | wc -c
setfattr -n user.d -v dir $1/d; getfattr --absolute-names --only-values -n user.d $1/d; echo
ln -s nowhere $1/l; setfattr -h -n user.l -v x $1/l
setfattr -n other.x -v x $f
fio --minimal --thread --name=m --filename=$1/m --ioengine=mmap --rw=randrw --bs=4k --size=2m \\
    --verify=crc32c --verify_fatal=1 --do_verify=1 >/dev/null && echo mapped
";

fn system_calls() -> Verdict {
    let dir = tempfile::tempdir()?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    fs::write(dir.path().join("posix.pl"), SYSTEM_CALLS)?;
    fs::write(dir.path().join("attributes"), ATTRIBUTES)?;
    fs::create_dir(dir.path().join("work"))?;
    // The tools' own root, with both file systems in it at paths of one length.
    let script = "t=/tmp/t; mkdir $t; mount -t ext4 -o ro /dev/vdc $t; mount -t tmpfs tmp $t/tmp
        mount -t devtmpfs dev $t/dev; cp /bin/busybox $t/tmp; mkdir $t/tmp/disk $t/tmp/host $t/tmp/bin
        for a in sh printf tr mkdir grep wc ln; do ln -s ../busybox $t/tmp/bin/$a; done
        mount -t ext4 /dev/vdd $t/tmp/disk && mount --bind /mnt/work $t/tmp/host || exit 98
        cp /mnt/posix.pl /mnt/attributes $t/tmp
        try() { PATH=/usr/bin:/tmp/bin chroot $t \"$@\" 2>&1; }
        for d in disk host; do
            { try perl /tmp/posix.pl /tmp/$d; try sh /tmp/attributes /tmp/$d; } |
                sed s,/tmp/$d,DIR,g >/mnt/$d
        done
        echo cases=$(grep -c '^\\(root\\|user\\) ' /mnt/disk)
        grep -c '^mapped$' /mnt/disk | sed s/^/mapped=/
        diff -aU1 /mnt/disk /mnt/host && echo alike";
    let guest = guest(dir.path(), "", script);
    let disk = guest.scratch("ext4");
    if !ext4(&disk)? {
        return Ok(Completion::ignored_with("mke2fs is missing"));
    }
    let tools = format!("path={},readonly=on", kit::tools().display());
    let outcome = guest.arg("--disk").arg(tools).arg("--disk").arg(&disk).run()?.script_passed()?;
    check(outcome.console.contains("alike"), "both answer the same", &outcome)?;
    check(outcome.count("cases")? > 190, "all cases ran", &outcome)?;
    check(outcome.count("mapped")? == 1, "mappings were tried", &outcome)?;
    Ok(Completion::Completed)
}

/// A stock kernel that has virtio-pci and virtio-fs built in.
fn root() -> Verdict {
    let dir = tempfile::tempdir()?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    for name in ["bin", "sbin", "proc", "sys", "dev", "tmp"] {
        fs::create_dir(dir.path().join(name))?;
    }
    // The root's own busybox, which debugfs takes out without mounting it.
    let busybox = dir.path().join("bin/busybox");
    let request = format!("dump -p /bin/busybox {}", busybox.display());
    let taken = Command::new("debugfs").arg("-R").arg(request).arg(kit::root()).output();
    if !taken.is_ok_and(|output| output.status.success()) {
        return Ok(Completion::ignored_with("debugfs is missing"));
    }
    fs::set_permissions(&busybox, fs::Permissions::from_mode(0o755))?;
    let init = "#!/bin/busybox sh\n/bin/busybox mount -t proc proc /proc\n\
        echo root=$(/bin/busybox grep -c ' / virtiofs' /proc/mounts)\n\
        echo written >/tmp/word; /bin/busybox sync; /bin/busybox poweroff -f\n";
    fs::write(dir.path().join("sbin/init"), init)?;
    fs::set_permissions(dir.path().join("sbin/init"), fs::Permissions::from_mode(0o755))?;
    let (kernel, _) = kit::debian("6_12_CLOUD");
    let guest = Guest::with_kernel(&kernel).word("root=host rootfstype=virtiofs rw quiet");
    let share = format!("tag=host,path={}", dir.path().display());
    let guest = guest.arg("--transport=pci").arg("--memory=512M").arg("--share").arg(share);
    let outcome = guest.run()?.ended(0)?;
    check(outcome.count("root")? == 1, "the directory is the root", &outcome)?;
    check(fs::read(dir.path().join("tmp/word"))? == b"written\n", "and written to", &outcome)?;
    Ok(Completion::Completed)
}

fn sum(outcome: &Outcome, name: &str) -> Result<String, String> {
    outcome.value(name).map(str::to_owned)
}

fn bytes() -> Verdict {
    let dir = tempfile::tempdir()?;
    let data: Vec<u8> =
        (0..5_000_000u32).map(|i| (i.wrapping_mul(2654435761) >> 13) as u8).collect();
    fs::write(dir.path().join("in"), &data)?;
    let script = "echo sum=$(sha256sum </mnt/in | cut -d' ' -f1); cp /mnt/in /mnt/out; \
                  echo again=$(sha256sum </mnt/out | cut -d' ' -f1); \
                  echo guest >/mnt/word; sleep 1; cat /mnt/later 2>/dev/null; \
                  (umask 027; echo x >/mnt/owned); sync";
    let outcome = guest(dir.path(), "", script).run()?.script_passed()?;
    check(fs::read(dir.path().join("out"))? == data, "what is written is here", &outcome)?;
    check(sum(&outcome, "sum")? == sum(&outcome, "again")?, "and read back", &outcome)?;
    check(fs::read(dir.path().join("word"))? == b"guest\n", "small files, too", &outcome)?;
    let owned = fs::metadata(dir.path().join("owned"))?;
    check(owned.mode() & 0o777 == 0o640, "with the mode that the guest gave", &outcome)?;
    Ok(Completion::Completed)
}

fn confined() -> Verdict {
    let dir = tempfile::tempdir()?;
    let (inside, secret) = (dir.path().join("inside"), dir.path().join("secret"));
    fs::create_dir(&inside)?;
    fs::write(&secret, "secret of the host")?;
    symlink(&secret, inside.join("absolute"))?;
    symlink("../secret", inside.join("relative"))?;
    symlink("/proc/self/root", inside.join("magic"))?;
    // A link is the guest's to follow, in its own tree.
    let script = "cd /mnt; for f in absolute relative ../secret magic/etc/hostname; do \
                  echo \"$f: $(cat $f 2>&1)\"; done; \
                  ln -s / out; ls out/ | tr '\\n' ' '; echo; \
                  mkdir sub; ls -id /mnt /mnt/sub/.. | awk '{print $1}' | uniq | wc -l | sed s/^/same=/; \
                  echo x >/mnt/relative; ls /mnt";
    let outcome = guest(&inside, "", script).run()?.script_passed()?;
    check(!outcome.console.contains("secret of the host"), "nothing comes in", &outcome)?;
    check(fs::read(&secret)? == b"secret of the host", "nothing goes out", &outcome)?;
    check(outcome.count("same")? == 1, "the top is its own parent's", &outcome)?;
    Ok(Completion::Completed)
}

fn read_only() -> Verdict {
    let dir = tempfile::tempdir()?;
    fs::write(dir.path().join("f"), "text")?;
    let before = fs::metadata(dir.path())?.mtime_nsec();
    let script = "cd /mnt; cat f; echo; n=0; \
        for c in 'echo x >f' 'echo x >new' 'rm f' 'mkdir d' 'ln f g' 'ln -s f s' 'mv f g' \
                 'chmod 600 f' 'touch f' 'truncate -s 0 f' 'mknod p p' 'chown 1 f'; do \
        sh -c \"$c\" 2>/tmp/e && echo \"done: $c\"; grep -q 'Read-only' /tmp/e && n=$((n+1)); done; \
        echo refused=$n";
    let outcome = guest(dir.path(), ",readonly=on", script).run()?.script_passed()?;
    check(outcome.console.contains("text"), "it can be read", &outcome)?;
    check(!outcome.console.contains("done: "), "nothing is changed", &outcome)?;
    check(outcome.count("refused")? == 12, "and that is said", &outcome)?;
    check(fs::read(dir.path().join("f"))? == b"text", "here neither", &outcome)?;
    check(fs::metadata(dir.path())?.mtime_nsec() == before, "not even the time", &outcome)?;
    Ok(Completion::Completed)
}

/// An empty ext4 of 64 MiB, for a disk; `false` where that can't be made.
fn ext4(path: &Path) -> std::io::Result<bool> {
    fs::File::create(path)?.set_len(64 << 20)?;
    let made = Command::new("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(path).status();
    Ok(made.is_ok_and(|status| status.success()))
}

/// Forty C files and a header, compiled and put together by tcc; the same on a
/// local disk.
fn build() -> Verdict {
    let dir = tempfile::tempdir()?;
    let script = "mkdir /tmp/t; mount -t ext4 -o ro /dev/vdc /tmp/t; \
        mkdir /tmp/t/tmp/x 2>/dev/null; mount -t tmpfs tmp /tmp/t/tmp; \
        mkdir /tmp/t/tmp/local /tmp/t/tmp/shared; mount --bind /mnt /tmp/t/tmp/shared; \
        mount -t ext4 /dev/vdd /tmp/t/tmp/local || exit 98; \
        make() { cd /tmp/t/tmp/$1; mkdir src obj; \
          echo 'struct pair { int a, b; }; int all(int);' >src/all.h; \
          for i in $(seq 40); do echo \"#include \\\"all.h\\\"\nint f$i(struct pair p) \
            { int s = $i; for (int i = 0; i < p.a; i++) s += all(i) * p.b; return s; }\" >src/f$i.c; \
          done; \
          for i in $(seq 40); do chroot /tmp/t /usr/bin/tcc -nostdinc -c -o /tmp/$1/obj/f$i.o \
            /tmp/$1/src/f$i.c || return 1; done; \
          (cd obj; cat $(ls | sort) | sha256sum | cut -d' ' -f1); ls -l obj src | awk '{print $5, $9}' | sha256sum; }; \
        make local >/tmp/a || exit 1; make shared >/tmp/b || exit 2; \
        cat /tmp/b; cmp /tmp/a /tmp/b && echo built=$(ls /mnt/obj | wc -l)";
    let tools = format!("path={},readonly=on", kit::tools().display());
    let guest = guest(dir.path(), "", script);
    let local = guest.scratch("ext4");
    if !ext4(&local)? {
        return Ok(Completion::ignored_with("mke2fs is missing"));
    }
    let outcome = guest.arg("--disk").arg(tools).arg("--disk").arg(&local).run()?;
    let outcome = outcome.script_passed()?;
    check(outcome.count("built")? == 40, "all objects are the same", &outcome)?;
    check(fs::read_dir(dir.path().join("obj"))?.count() == 40, "and they are here", &outcome)?;
    Ok(Completion::Completed)
}

fn again() -> Verdict {
    let dir = tempfile::tempdir()?;
    fs::write(dir.path().join("f"), "text")?;
    let script = "for i in 1 2 3; do cat /mnt/f >/tmp/f$i; umount /mnt || exit 1; \
         mount -t virtiofs host /mnt || exit 2; done; cat /mnt/f; umount /mnt; \
         d=$(basename $(ls -d /sys/bus/virtio/drivers/virtiofs/virtio*)); \
         cd /sys/bus/virtio/drivers/virtiofs; echo $d >unbind; echo $d >bind; \
         mount -t virtiofs host /mnt; echo; echo is=$(cat /mnt/f)";
    let outcome = guest(dir.path(), "", script).run()?.script_passed()?;
    check(outcome.value("is")? == "text", "it is there after all that", &outcome)?;
    Ok(Completion::Completed)
}
