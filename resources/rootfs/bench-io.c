/* PID 1 of `cargo xtask bench io`, for init=/sbin/bench-io: moves data through
 * the disk and the network, with OUT 0x80 before and after each kind of it, and
 * ends the machine. What it moves it has moved before, unmarked, so that caches,
 * neighbours and buffers are there.
 *
 * Words of the kernel command line, which become its environment:
 *   bench_count=N      operations of each kind (1000 unless said)
 *   bench_end=reset    by the keyboard controller's reset line, otherwise by power off
 *
 * It uses what there is of: a disk of exactly 16 MiB; eth0, whose other end is
 * 10.0.0.1 and answers as `xtask bench io-host` does; vsock to the host.
 * No library: see bench-init.S.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/fs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <linux/vm_sockets.h>

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long u64;

enum { TCP_UDP_PORT = 7, VSOCK_PORT = 1234 };
enum { DISK = 16 << 20, BLOCK = 4096, LARGE = 64 << 10, PACKET = 64, WINDOW = 32 };

/* The kinds, as `xtask bench io` knows them. A mark is 0x10 and the kind before,
 * 0x40 and the kind after. */
enum { WRITE_LARGE, READ_LARGE, READ_RANDOM, WRITE_RANDOM, SEND, RECEIVE, ROUND_TRIP,
	TCP_OUT, TCP_IN, VSOCK_OUT, VSOCK_IN };

static u8 buffer[LARGE] __attribute__((aligned(4096)));
static u64 seed;

static long call(long number, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
	long result;
	__asm__ volatile("syscall" : "=a"(result)
		: "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
		: "rcx", "r11", "memory");
	return result;
}

static void out(unsigned short port, u8 value)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static u32 random_block(void)
{
	seed = seed * 6364136223846793005ul + 1442695040888963407ul;
	return (seed >> 33) % (DISK / BLOCK);
}

/* All of it, or 0. */
static int all(long number, int fd, u64 len)
{
	while (len > 0) {
		long n = call(number, fd, (long)buffer, len < LARGE ? len : LARGE, 0, 0, 0);
		if (n <= 0)
			return 0;
		len -= n;
	}
	return 1;
}

static int large(int fd, long number, u32 count)
{
	for (u32 i = 0; i < count; i++)
		if (call(number, fd, (long)buffer, LARGE, (long)i * LARGE % DISK, 0, 0) != LARGE)
			return 0;
	return 1;
}

static int random_access(int fd, long number, u32 count)
{
	for (u32 i = 0; i < count; i++)
		if (call(number, fd, (long)buffer, BLOCK, (long)random_block() * BLOCK, 0, 0) != BLOCK)
			return 0;
	return 1;
}

/* Packets of one letter: q is for nobody, a is answered, s is answered with as
 * many packets as its second byte says. */
static int packet(int fd, u8 letter, u8 number)
{
	buffer[0] = letter;
	buffer[1] = number;
	return call(__NR_write, fd, (long)buffer, PACKET, 0, 0, 0) == PACKET;
}

static int answer(int fd)
{
	return call(__NR_read, fd, (long)buffer, PACKET, 0, 0, 0) == PACKET;
}

static int send_packets(int fd, u32 count)
{
	for (u32 i = 1; i <= count; i++) {
		int last = i % WINDOW == 0 || i == count;
		if (!packet(fd, last ? 'a' : 'q', 0) || (last && !answer(fd)))
			return 0;
	}
	return 1;
}

static int receive_packets(int fd, u32 count)
{
	while (count > 0) {
		u32 now = count < WINDOW ? count : WINDOW;
		if (!packet(fd, 's', now))
			return 0;
		for (u32 i = 0; i < now; i++)
			if (!answer(fd))
				return 0;
		count -= now;
	}
	return 1;
}

static int round_trips(int fd, u32 count)
{
	for (u32 i = 0; i < count; i++)
		if (!packet(fd, 'a', 0) || !answer(fd))
			return 0;
	return 1;
}

/* w or r and a number of MiB; the host answers w with a byte in the end. */
static int stream(int fd, u8 letter, u32 mib)
{
	buffer[0] = letter;
	buffer[1] = mib;
	if (!all(__NR_write, fd, 2))
		return 0;
	if (letter == 'w')
		return all(__NR_write, fd, (u64)mib << 20) && all(__NR_read, fd, 1);
	return all(__NR_read, fd, (u64)mib << 20);
}

static int once(int kind, int fd, u32 count)
{
	u32 mib = (count + 249) / 250;
	switch (kind) {
	case WRITE_LARGE: return large(fd, __NR_pwrite64, count / 4);
	case READ_LARGE: return large(fd, __NR_pread64, count / 4);
	case READ_RANDOM: return random_access(fd, __NR_pread64, count);
	case WRITE_RANDOM: return random_access(fd, __NR_pwrite64, count);
	case SEND: return send_packets(fd, count);
	case RECEIVE: return receive_packets(fd, count);
	case ROUND_TRIP: return round_trips(fd, count);
	case TCP_OUT: case VSOCK_OUT: return stream(fd, 'w', mib);
	default: return stream(fd, 'r', mib);
	}
}

/* A kind that fails leaves no second mark. */
static void measure(int kind, int fd, u32 count, u32 before)
{
	if (!once(kind, fd, before))
		return;
	seed = 1;
	out(0x80, 0x10 + kind);
	if (once(kind, fd, count))
		out(0x80, 0x40 + kind);
}

static void disks(u32 count)
{
	static char name[] = "/dev/vda";
	for (name[7] = 'a'; name[7] < 'e'; name[7]++) {
		u64 size = 0;
		int fd = call(__NR_open, (long)name, O_RDWR | O_DIRECT, 0, 0, 0, 0);
		if (fd < 0)
			continue;
		call(__NR_ioctl, fd, BLKGETSIZE64, (long)&size, 0, 0, 0);
		if (size != DISK)
			continue;
		/* Twice over all of it first: the host has it in memory then. */
		measure(WRITE_LARGE, fd, count, 4 * 2 * DISK / LARGE);
		measure(READ_LARGE, fd, count, 64);
		measure(READ_RANDOM, fd, count, 64);
		measure(WRITE_RANDOM, fd, count, 64);
	}
}

static struct sockaddr_in address(u32 ip, u32 port)
{
	struct sockaddr_in a = { .sin_family = AF_INET };
	a.sin_addr.s_addr = __builtin_bswap32(ip);
	a.sin_port = __builtin_bswap16(port);
	return a;
}

static int up(int fd)
{
	struct ifreq request = { .ifr_name = "eth0" };
	struct sockaddr_in own = address(0x0a000002, 0), mask = address(0xffffff00, 0);
	__builtin_memcpy(&request.ifr_addr, &own, sizeof own);
	if (call(__NR_ioctl, fd, SIOCSIFADDR, (long)&request, 0, 0, 0) < 0)
		return 0;
	__builtin_memcpy(&request.ifr_addr, &mask, sizeof mask);
	call(__NR_ioctl, fd, SIOCSIFNETMASK, (long)&request, 0, 0, 0);
	request.ifr_flags = IFF_UP | IFF_RUNNING;
	return call(__NR_ioctl, fd, SIOCSIFFLAGS, (long)&request, 0, 0, 0) == 0;
}

static void network(u32 count)
{
	struct sockaddr_in host = address(0x0a000001, TCP_UDP_PORT);
	u64 timeout[2] = { 2, 0 };
	int fd = call(__NR_socket, AF_INET, SOCK_DGRAM, 0, 0, 0, 0);
	if (!up(fd))
		return;
	call(__NR_setsockopt, fd, SOL_SOCKET, SO_RCVTIMEO, (long)timeout, sizeof timeout, 0);
	call(__NR_connect, fd, (long)&host, sizeof host, 0, 0, 0);
	/* Until the host's end hears us. */
	for (int i = 0; i < 10 && !round_trips(fd, 1); i++)
		;
	measure(SEND, fd, count, 2 * WINDOW);
	measure(RECEIVE, fd, count, 2 * WINDOW);
	measure(ROUND_TRIP, fd, count, 2 * WINDOW);
	fd = call(__NR_socket, AF_INET, SOCK_STREAM, 0, 0, 0, 0);
	if (call(__NR_connect, fd, (long)&host, sizeof host, 0, 0, 0) < 0)
		return;
	measure(TCP_OUT, fd, count, count);
	measure(TCP_IN, fd, count, count);
}

static void sockets(u32 count)
{
	struct sockaddr_vm host = {
		.svm_family = AF_VSOCK,
		.svm_cid = VMADDR_CID_HOST,
		.svm_port = VSOCK_PORT,
	};
	int fd = call(__NR_socket, AF_VSOCK, SOCK_STREAM, 0, 0, 0, 0);
	if (fd < 0 || call(__NR_connect, fd, (long)&host, sizeof host, 0, 0, 0) < 0)
		return;
	measure(VSOCK_OUT, fd, count, count);
	measure(VSOCK_IN, fd, count, count);
}

/* Has the host give us our memory now: a huge page that it clears in the middle
 * of something costs as much as a MiB through TCP. */
static void touch_memory(void)
{
	struct sysinfo info;
	if (call(__NR_sysinfo, (long)&info, 0, 0, 0, 0, 0) < 0)
		return;
	u64 len = info.freeram / 4 * 3 & ~4095ul;
	long at = call(__NR_mmap, 0, len, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (at > 0)
		call(__NR_munmap, at, len, 0, 0, 0, 0);
}

/* What comes after `name` in the environment. */
static const char *value(const char *const *environment, const char *name)
{
	for (; *environment; environment++) {
		const char *a = *environment, *b = name;
		while (*b && *a == *b)
			a++, b++;
		if (!*b)
			return a;
	}
	return 0;
}

__attribute__((used)) static void start(const long *stack)
{
	const char *const *environment = (const char *const *)(stack + stack[0] + 2);
	const char *digits = value(environment, "bench_count=");
	const char *end = value(environment, "bench_end=");
	u32 count = 0;
	for (; digits && *digits >= '0' && *digits <= '9'; digits++)
		count = count * 10 + (*digits - '0');
	if (count == 0 || count > 50000)
		count = 1000;
	/* Started by hand, it would write to disks that are not its own. */
	if (call(__NR_getpid, 0, 0, 0, 0, 0, 0) != 1)
		call(__NR_exit_group, 2, 0, 0, 0, 0, 0);
	call(__NR_ioperm, 0x64, 0x80 - 0x64 + 1, 1, 0, 0, 0);
	touch_memory();
	disks(count);
	network(count);
	sockets(count);
	if (end && end[0] == 'r') {
		out(0x64, 0xfe);
		call(__NR_reboot, 0xfee1dead, 672274793, 0x01234567, 0, 0, 0);
	}
	call(__NR_reboot, 0xfee1dead, 672274793, 0x4321fedc, 0, 0, 0);
	for (;;)
		call(__NR_pause, 0, 0, 0, 0, 0, 0);
}

__asm__(".globl _start\n_start: xor %ebp, %ebp\n mov %rsp, %rdi\n and $-16, %rsp\n call start\n");
