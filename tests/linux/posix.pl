# What a file system answers to system calls, one line a case: run in an empty
# directory on two file systems, the lines are compared. As root first, then in a
# directory of its own as an ordinary user.
#
# Usage: perl posix.pl DIRECTORY
use strict;
use warnings;
use Fcntl qw(:DEFAULT :flock :mode :seek);
use POSIX ();

my $number = 0;
my $who;

# The outcome of a system call: 0, or the error's name.
sub did { return $_[0] ? 'ok' : POSIX::strerror($!) }

# A case: its name, and what came of it.
sub case {
    my ($name, @outcome) = @_;
    $number += 1;
    print "$who $name: ", join(' ', map { defined $_ ? $_ : 'undef' } @outcome), "\n";
}

sub make {
    my ($name, $text) = @_;
    sysopen(my $file, $name, O_WRONLY | O_CREAT | O_TRUNC, 0644) or return;
    syswrite($file, defined $text ? $text : '');
    close $file;
}

sub text {
    my ($name) = @_;
    open(my $file, '<', $name) or return "$!";
    local $/;
    my $all = <$file>;
    return defined $all ? $all : '';
}

# Mode, links, size and kind, as they are told.
sub facts {
    my @s = lstat($_[0]) or return "$!";
    return sprintf('%o links=%d size=%s', $s[2], $s[3], S_ISDIR($s[2]) ? '-' : $s[7]);
}

sub opens {
    my ($name, $flags, $mode) = @_;
    return did(sysopen(my $file, $name, $flags, defined $mode ? $mode : 0644));
}

# What another process says.
sub elsewhere {
    my ($what) = @_;
    pipe(my $from, my $to);
    my $child = fork;
    if (!$child) {
        close $from;
        syswrite($to, $what->());
        POSIX::_exit(0);
    }
    close $to;
    local $/;
    my $said = <$from>;
    waitpid($child, 0);
    return $said;
}

# struct flock of x86-64: l_type, l_whence, l_start, l_len, l_pid.
sub lock_range {
    my ($file, $command, $type, $start, $len) = @_;
    my $lock = pack('s s x4 q q i x4', $type, SEEK_SET, $start, $len, 0);
    my $done = fcntl($file, $command, $lock) or return "$!";
    my ($held) = unpack('s', $lock);
    return $command == F_GETLK ? ($held == F_UNLCK ? 'free' : 'held') : 'ok';
}

sub opening {
    case 'open missing', opens('none', O_RDONLY);
    case 'create', opens('f', O_WRONLY | O_CREAT, 0640), facts('f');
    case 'create exclusively again', opens('f', O_WRONLY | O_CREAT | O_EXCL);
    case 'exclusive through a dangling link', do { symlink('void', 'l'); opens('l', O_WRONLY | O_CREAT | O_EXCL) };
    case 'create through a dangling link', opens('l', O_WRONLY | O_CREAT), facts('void');
    case 'no follow', opens('l', O_RDONLY | O_NOFOLLOW);
    case 'directory wanted', opens('f', O_RDONLY | O_DIRECTORY);
    mkdir 'd';
    case 'a directory to write', opens('d', O_WRONLY), opens('d', O_RDWR), opens('d', O_RDONLY);
    case 'through a file', opens('f/x', O_RDONLY), opens('f/', O_RDONLY), opens('f/x', O_WRONLY | O_CREAT);
    case 'create with a slash', opens('new/', O_WRONLY | O_CREAT);
    make('t', 'text');
    case 'truncate while opening', opens('t', O_WRONLY | O_TRUNC), -s 't';
    make('t', 'text');
    case 'truncate without the right to write', opens('t', O_RDONLY | O_TRUNC), -s 't';
    umask 0; case 'umask 0', opens('u0', O_WRONLY | O_CREAT, 0666), facts('u0');
    umask 077; case 'umask 077', opens('u7', O_WRONLY | O_CREAT, 0666), facts('u7');
    umask 022;
    case 'set-user-ID at creation', opens('suid', O_WRONLY | O_CREAT, 04755), facts('suid');
    case 'a fifo without a reader', did(POSIX::mkfifo('p', 0644)), opens('p', O_WRONLY | O_NONBLOCK), facts('p');
    case 'name of 255', opens('n' x 255, O_WRONLY | O_CREAT), did(unlink('n' x 255));
    case 'name of 256', opens('n' x 256, O_WRONLY | O_CREAT);
    case 'path of 4096', opens('x/' x 2048 . 'y', O_RDONLY);
    case 'empty name', opens('', O_RDONLY);
    case 'link loop', do { symlink('b', 'a'); symlink('a', 'b'); opens('a', O_RDONLY) };
}

sub reading_and_writing {
    sysopen(my $file, 'rw', O_RDWR | O_CREAT | O_APPEND) or die;
    syswrite($file, 'one');
    sysseek($file, 0, SEEK_SET);
    syswrite($file, 'two');
    case 'append is at the end', text('rw');
    truncate($file, 2);
    case 'shortened', text('rw');
    truncate($file, 5);
    case 'lengthened with zeroes', unpack('H*', text('rw'));
    case 'negative length', did(truncate($file, -1));
    sysopen(my $other, 'rw', O_RDONLY);
    truncate('rw', 0);
    syswrite($file, 'later');
    sysread($other, my $seen, 10);
    case 'another descriptor sees it', $seen;
    case 'write without the right to', do { no warnings; did(syswrite($other, 'x')) };
    case 'seek over the end', sysseek($other, 100, SEEK_END), sysread($other, $seen, 5);
    sysopen(my $sparse, 'sparse', O_RDWR | O_CREAT);
    sysseek($sparse, 1 << 30, SEEK_SET);
    syswrite($sparse, 'end');
    case 'sparse', -s 'sparse', (stat 'sparse')[12] < 1000 ? 'has holes' : 'has none';
    sysseek($sparse, 5, SEEK_SET);
    sysread($sparse, $seen, 4);
    case 'a hole is zero', unpack('H*', $seen);
    unlink 'sparse';
    sysopen(my $gone, 'gone', O_RDWR | O_CREAT);
    syswrite($gone, 'still here');
    unlink 'gone';
    sysseek($gone, 0, SEEK_SET);
    sysread($gone, $seen, 20);
    case 'an unlinked file lives on', $seen, (stat $gone)[3], facts('gone');
    case 'mode of an unlinked file', did(chmod(0600, $gone)), sprintf('%o', (stat $gone)[2] & 07777);
    case 'read a directory', do { sysopen(my $d, '.', O_RDONLY); did(defined sysread($d, $seen, 1)) };
}

sub names {
    make('a', 'A'); make('b', 'B');
    case 'link', did(link('a', 'c')), facts('a'), facts('c');
    case 'link over a name', did(link('a', 'b'));
    case 'link a directory', do { mkdir 'd'; did(link('d', 'e')) };
    case 'link what is missing', did(link('none', 'e'));
    case 'rename to the same file', did(rename('a', 'c')), facts('a'), facts('c');
    case 'rename over a file', did(rename('a', 'b')), text('b'), facts('a');
    case 'rename what is missing', did(rename('none', 'x'));
    case 'file over directory', did(rename('b', 'd'));
    case 'directory over file', did(rename('d', 'b'));
    mkdir 'full'; make('full/f', 'x'); mkdir 'empty';
    case 'directory over a full one', did(rename('empty', 'full'));
    case 'directory over an empty one', did(rename('full', 'empty')), text('empty/f');
    case 'directory into itself', did(rename('empty', 'empty/in'));
    case 'rename dot', did(rename('.', 'x'));
    case 'rmdir', did(rmdir 'empty'), did(rmdir 'd'), did(rmdir 'b'), did(rmdir 'none'), did(rmdir '.');
    case 'unlink a directory', do { mkdir 'd'; unlink('d') ? 'ok' : 'refused' };
    case 'mkdir twice', did(mkdir 'd'), did(mkdir 'd/x/y'), did(mkdir 'b/x');
    case 'mkdir modes', did(mkdir('m', 01777)), facts('m');
    case 'links of directories', do { mkdir 'd/1'; mkdir 'd/2'; (stat 'd')[3] }, do { rmdir 'd/1'; (stat 'd')[3] };
    case 'symlink', did(symlink('target', 's')), readlink('s'), facts('s');
    case 'symlink over a name', did(symlink('x', 'b'));
    case 'symlink of 900', did(symlink('t' x 900, 'long')), length(readlink 'long');
    case 'symlink of 4096', did(symlink('t' x 4096, 'longer'));
    case 'readlink of a file', defined readlink('b') ? 'ok' : POSIX::strerror($!);
    case 'hard link to a symlink', did(link('s', 's2')), readlink('s2');
    case 'names in a directory', do {
        mkdir 'many'; make("many/$_") for 1 .. 500;
        opendir(my $d, 'many'); my @all = sort grep { !/^\./ } readdir $d;
        scalar(@all), "$all[0] $all[499]";
    };
    case 'removed while they are read', do {
        opendir(my $d, 'many'); my $n = 0;
        while (defined(my $e = readdir $d)) { next if $e =~ /^\./; unlink("many/$e"); $n++ }
        $n, did(rmdir 'many');
    };
    case 'read again from the start', do {
        mkdir 'again'; make("again/$_") for 1 .. 50;
        opendir(my $d, 'again'); my $first = () = readdir $d; rewinddir $d; my $second = () = readdir $d;
        $first, $second;
    };
    case 'from a place in between', do {
        opendir(my $d, 'again'); readdir $d for 1 .. 20; my $at = telldir $d;
        my $next = readdir $d; readdir $d for 1 .. 10; seekdir($d, $at); readdir($d) eq $next ? 'same' : 'other';
    };
}

sub modes_and_times {
    make('f', 'text');
    case 'chmod', map { my $m = $_; did(chmod($m, 'f')), facts('f') } 0, 0400, 0777, 04755, 02755, 01644;
    chmod 0644, 'f';
    case 'chmod what is missing', did(chmod(0644, 'none'));
    case 'chmod through a link', do { symlink('f', 's'); did(chmod(0600, 's')) }, facts('f');
    case 'times', did(utime(1000, 2000, 'f')), (stat 'f')[8, 9];
    case 'times before 1970', did(utime(-1000, -2000, 'f')), (stat 'f')[8, 9];
    case 'times after 2038', did(utime(4000000000, 4000000001, 'f')), (stat 'f')[8, 9];
    case 'now', did(utime(undef, undef, 'f')), abs(time - (stat 'f')[9]) < 100 ? 'now' : 'not now';
    utime(1000, 1000, 'f');
    make('f', 'new text');
    case 'a write changes the time', (stat 'f')[9] > 1000 ? 'yes' : 'no';
    utime(1000, 1000, '.');
    make('fresh', '');
    case 'a new name changes its directory', (stat '.')[9] > 1000 ? 'yes' : 'no';
    utime(1000, 1000, 'f');
    case 'a rename does not change the file', did(rename('f', 'g')), (stat 'g')[9];
    case 'truncate changes the time', do { utime(1000, 1000, 'g'); truncate('g', 1) }, (stat 'g')[9] > 1000 ? 'yes' : 'no';
    case 'chown to oneself', did(chown($>, -1, 'g')), (stat 'g')[4] == $> ? 'own' : 'other';
    case 'chown to another', did(chown(12345, -1, 'g'));
    case 'set-user-ID goes with a write', do {
        chmod 04755, 'g'; sysopen(my $f, 'g', O_WRONLY); syswrite($f, 'x'); sprintf('%o', (stat 'g')[2] & 07777);
    };
    case 'mknod', did(POSIX::mkfifo('fifo', 0600)), facts('fifo'), did(POSIX::mkfifo('fifo', 0600));
    case 'through a fifo', do {
        my $child = fork;
        if (!$child) { sysopen(my $f, 'fifo', O_WRONLY); syswrite($f, 'through'); POSIX::_exit(0) }
        my $all = text('fifo'); waitpid($child, 0); $all;
    };
    case 'access', map { (-r 'g' ? 'r' : '-') . (-w 'g' ? 'w' : '-') . (-x 'g' ? 'x' : '-') } 1;
}

sub locks {
    sysopen(my $file, 'lock', O_RDWR | O_CREAT) or die;
    syswrite($file, 'x' x 100);
    case 'a range is locked', lock_range($file, F_SETLK, F_WRLCK, 10, 20);
    my $try = sub {
        my ($type, $start, $len) = @_;
        return elsewhere(sub {
            sysopen(my $mine, 'lock', O_RDWR);
            my $answer = lock_range($mine, F_SETLK, $type, $start, $len);
            return $answer eq 'ok' ? 'got' : 'refused';
        });
    };
    case 'others are held off it', $try->(F_WRLCK, 10, 20), $try->(F_RDLCK, 29, 1), $try->(F_WRLCK, 0, 10), $try->(F_WRLCK, 30, 0);
    case 'others can see it', elsewhere(sub { sysopen(my $m, 'lock', O_RDWR); lock_range($m, F_GETLK, F_WRLCK, 0, 0) });
    case 'part of it is freed', lock_range($file, F_SETLK, F_UNLCK, 15, 5), $try->(F_WRLCK, 15, 5), $try->(F_WRLCK, 14, 1), $try->(F_WRLCK, 20, 1);
    lock_range($file, F_SETLK, F_RDLCK, 0, 0);
    case 'readers share', $try->(F_RDLCK, 0, 50), $try->(F_WRLCK, 0, 50);
    case 'closing any descriptor frees it', do { sysopen(my $second, 'lock', O_RDONLY); close $second; $try->(F_WRLCK, 0, 0) };
    lock_range($file, F_SETLK, F_WRLCK, 0, 0);
    case 'a process that ends frees its own', elsewhere(sub { sysopen(my $m, 'lock', O_RDWR); lock_range($m, F_SETLK, F_WRLCK, 200, 1) }), $try->(F_WRLCK, 200, 1);
    lock_range($file, F_SETLK, F_UNLCK, 0, 0);
    case 'waiting for it', do {
        pipe(my $ready, my $say);
        my $child = fork;
        if (!$child) {
            sysopen(my $m, 'lock', O_RDWR); lock_range($m, F_SETLK, F_WRLCK, 0, 0);
            syswrite($say, '!'); select(undef, undef, undef, 0.3); syswrite($m, 'child'); POSIX::_exit(0);
        }
        sysread($ready, my $byte, 1);
        my $answer = lock_range($file, F_SETLKW, F_WRLCK, 0, 0);
        waitpid($child, 0); $answer, substr(text('lock'), 0, 5);
    };
    case 'flock', did(flock($file, LOCK_EX | LOCK_NB)), elsewhere(sub { sysopen(my $m, 'lock', O_RDWR); flock($m, LOCK_EX | LOCK_NB) ? 'got' : 'refused' });
}

# mmap(2) and msync(2) by number: perl has no names for them.
use constant { SYS_MMAP => 9, SYS_MSYNC => 26, SYS_MUNMAP => 11, READ_WRITE => 3, SHARED => 1, PRIVATE => 2, SYNC => 4 };

sub mappings {
    sysopen(my $file, 'map', O_RDWR | O_CREAT) or die;
    syswrite($file, join '', map { chr(97 + $_) x 4096 } 0 .. 3);
    my $map = sub { syscall(SYS_MMAP, 0, 16384, READ_WRITE, $_[0], fileno($file), 0) };
    my $peek = sub { unpack('P8', pack('Q', $_[0])) };
    # read(2) into the mapping: a store that perl can do.
    my $poke = sub {
        my ($at, $bytes) = @_;
        pipe(my $r, my $w); syswrite($w, $bytes);
        return syscall(0, fileno($r), $at, length $bytes);
    };
    my $at = $map->(SHARED);
    case 'a file is mapped', $at > 0 ? 'ok' : "$!", $peek->($at), $peek->($at + 12288);
    case 'a store reaches the file', $poke->($at + 4096, 'stored!!'), did(syscall(SYS_MSYNC, $at, 16384, SYNC) == 0), substr(text('map'), 4096, 8);
    sysseek($file, 8192, SEEK_SET); syswrite($file, 'written!');
    case 'a write reaches the mapping', $peek->($at + 8192);
    my $private = $map->(PRIVATE);
    case 'a private store stays', $poke->($private, 'private!'), $peek->($private), substr(text('map'), 0, 8);
    case 'both see one file', do { my $second = $map->(SHARED); $poke->($second, 'together'); $peek->($at) };
    case 'unmapped', did(syscall(SYS_MUNMAP, $at, 16384) == 0), substr(text('map'), 0, 8);
}

sub rights {
    return if $> == 0;
    make('own', 'x');
    chmod 0, 'own';
    case 'no right to read', opens('own', O_RDONLY), opens('own', O_WRONLY);
    chmod 0400, 'own';
    case 'no right to write', opens('own', O_RDONLY), opens('own', O_WRONLY), did(truncate('own', 0));
    mkdir 'shut'; make('shut/f', 'x'); chmod 0, 'shut';
    case 'a directory that is shut', opens('shut/f', O_RDONLY), did(unlink 'shut/f'), did(opendir(my $d, 'shut')), facts('shut/f');
    chmod 0555, 'shut';
    case 'a directory to read only', opens('shut/f', O_RDONLY), opens('shut/new', O_WRONLY | O_CREAT), did(unlink 'shut/f'), did(rename('shut/f', 'f')), did(mkdir 'shut/d');
    chmod 0755, 'shut';
    case "another's file", opens('../roots', O_RDONLY), opens('../roots', O_WRONLY), did(chmod(0777, '../roots')), did(chown($>, -1, '../roots')), did(utime(1, 1, '../roots')), did(unlink '../roots'), did(link('../roots', 'mine'));
    case "another's sticky directory", did(unlink '../sticky/roots'), did(rename('../sticky/roots', '../sticky/x')), opens('../sticky/mine', O_WRONLY | O_CREAT), did(unlink '../sticky/mine');
    case 'a device', did(POSIX::mkfifo('ff', 0600));
}

my ($directory) = @ARGV;
chdir $directory or die "$directory: $!";
$| = 1;
umask 022;
make('roots', 'x'); mkdir('sticky', 0777); chmod 01777, 'sticky'; make('sticky/roots', 'x');
mkdir 'user'; chown 65534, 65534, 'user';
for my $user (0, 65534) {
    $who = $user ? 'user' : 'root';
    my $child = fork;
    if (!$child) {
        if ($user) { $) = "$user $user"; $( = $user; POSIX::setuid($user); }
        mkdir 'user/root' if !$user;
        chdir($user ? 'user' : 'user/root') or die;
        for my $part ([opening => \&opening], [rw => \&reading_and_writing], [names => \&names], [times => \&modes_and_times], [locks => \&locks], [mappings => \&mappings], [rights => \&rights]) {
            mkdir $part->[0] or die "$part->[0]: $!"; chdir $part->[0] or die;
            # Rights are tried on what lies beside the user's own directory.
            if ($part->[0] eq 'rights') { chdir '..'; }
            $part->[1]->();
            chdir '..' if $part->[0] ne 'rights';
        }
        print "$who cases: $number\n";
        POSIX::_exit(0);
    }
    waitpid($child, 0);
    print "$who ended: $?\n";
}
