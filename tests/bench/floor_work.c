/*
 * What an agent has to do from its first instruction to the container's, done by C with nothing around it: mounts, entropy
 * and time, the image's layers, the writable disk, overlayfs, the container's /proc, /sys and /dev, its names, the network,
 * fork, chroot, execve.  Then it says how many microseconds that took, and powers off.  The bench states the agent as a ratio to it.
 *
 *     cc -static -Os -s -o init floor_work.c      (and put it into an initramfs as /init, beside /dev/console)
 *
 * The first disk has the layers as its partitions, the second is the writable one; everything is built into the kernel.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/ipv6.h>
#include <linux/random.h>
#include <net/if.h>
#include <net/route.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MOST_LAYERS 16
static const char *const names[] = {"hosts", "hostname", "resolv.conf"};

static void must(int result, const char *what)
{
	if (result >= 0)
		return;
	perror(what);
	reboot(RB_POWER_OFF);
	_exit(1);
}

static void mounted(const char *source, const char *target, const char *kind, const char *options)
{
	mkdir(target, 0755);
	must(mount(source, target, kind, 0, options), target);
}

static void root(void)
{
	char lower[64 * MOST_LAYERS] = "lowerdir=", device[32], place[32];

	for (int i = 1; i <= MOST_LAYERS; i++) {
		snprintf(device, sizeof(device), "/dev/sda%d", i);
		if (access(device, F_OK) != 0)
			break;
		snprintf(place, sizeof(place), "/l%d", i);
		mkdir(place, 0755);
		must(mount(device, place, "erofs", MS_RDONLY, ""), device);
	}
	for (int i = MOST_LAYERS; i; i--) { /* the topmost first */
		snprintf(place, sizeof(place), "/l%d", i);
		if (access(place, F_OK) != 0)
			continue;
		strcat(strcat(lower, place), ":");
	}
	lower[strlen(lower) - 1] = 0;
	mounted("/dev/sdb", "/top", "ext4", "");
	mkdir("/top/upper", 0755);
	mkdir("/top/work", 0755);
	strcat(lower, ",upperdir=/top/upper,workdir=/top/work");
	mounted("overlay", "/m", "overlay", lower);
	mounted("proc", "/m/proc", "proc", "");
	mounted("sysfs", "/m/sys", "sysfs", "");
	mounted("tmpfs", "/m/dev", "tmpfs", "mode=0755,size=64k");
	mounted("devpts", "/m/dev/pts", "devpts", "newinstance,ptmxmode=0666,mode=0620,gid=5");
	mounted("tmpfs", "/m/dev/shm", "tmpfs", "mode=1777,size=64m");
	mounted("mqueue", "/m/dev/mqueue", "mqueue", "");
	must(mknod("/m/dev/null", S_IFCHR | 0666, 0x103), "null");
	mounted("tmpfs", "/n", "tmpfs", "size=1m");
	for (unsigned int i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		char from[32], to[48];
		int file;

		snprintf(from, sizeof(from), "/n/%s", names[i]);
		snprintf(to, sizeof(to), "/m/etc/%s", names[i]);
		must(file = open(from, O_WRONLY | O_CREAT, 0644), from);
		must(write(file, "127.0.0.1 localhost\n", 20), from);
		close(file);
		close(open(to, O_WRONLY | O_CREAT, 0644));
		must(mount(from, to, NULL, MS_BIND, NULL), to);
	}
}

static void address(struct sockaddr *into, const char *text)
{
	struct sockaddr_in *in = (struct sockaddr_in *)into;

	in->sin_family = AF_INET;
	inet_pton(AF_INET, text, &in->sin_addr);
}

static void set(const char *path, const char *value)
{
	int file;

	must(file = open(path, O_WRONLY), path);
	must(write(file, value, strlen(value)), path);
	close(file);
}

static void identity(void)
{
	struct { int bits, bytes; char entropy[64]; } fed = {512, 64, "so much comes with a spec, and here need not be random"};
	struct timespec now = {1700000000, 0};
	int device;

	must(device = open("/dev/urandom", O_WRONLY), "/dev/urandom");
	must(ioctl(device, RNDADDENTROPY, &fed), "RNDADDENTROPY");
	must(ioctl(device, RNDRESEEDCRNG), "RNDRESEEDCRNG");
	close(device);
	must(clock_settime(CLOCK_REALTIME, &now), "clock");
}

static void network6(void)
{
	int channel = socket(AF_INET6, SOCK_DGRAM, 0);
	struct in6_ifreq own = {.ifr6_prefixlen = 64, .ifr6_ifindex = if_nametoindex("eth0")};
	struct in6_rtmsg route = {.rtmsg_flags = RTF_UP | RTF_GATEWAY, .rtmsg_metric = 1};

	if (channel < 0)
		return; /* the kernel was started without */
	set("/proc/sys/net/ipv6/conf/eth0/accept_ra", "0");
	inet_pton(AF_INET6, "fec0::15", &own.ifr6_addr);
	must(ioctl(channel, SIOCSIFADDR, &own), "IPv6 address");
	inet_pton(AF_INET6, "fec0::2", &route.rtmsg_gateway);
	route.rtmsg_ifindex = own.ifr6_ifindex;
	must(ioctl(channel, SIOCADDRT, &route), "IPv6 route");
	close(channel);
}

static void network(void)
{
	int channel = socket(AF_INET, SOCK_DGRAM, 0);
	struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};
	static const char *const links[] = {"lo", "eth0"};

	must(sethostname("floor", 5), "hostname");
	set("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
	set("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
	for (int i = 0; i < 2; i++) {
		struct ifreq wish = {0};

		strcpy(wish.ifr_name, links[i]);
		if (i) {
			address(&wish.ifr_addr, "10.0.2.15");
			must(ioctl(channel, SIOCSIFADDR, &wish), "address");
			address(&wish.ifr_netmask, "255.255.255.0");
			must(ioctl(channel, SIOCSIFNETMASK, &wish), "netmask");
		}
		must(ioctl(channel, SIOCGIFFLAGS, &wish), "flags");
		wish.ifr_flags |= IFF_UP;
		must(ioctl(channel, SIOCSIFFLAGS, &wish), "up");
	}
	address(&route.rt_dst, "0.0.0.0");
	address(&route.rt_genmask, "0.0.0.0");
	address(&route.rt_gateway, "10.0.2.2");
	must(ioctl(channel, SIOCADDRT, &route), "route");
	close(channel);
	network6();
}

static void program(void)
{
	int told[2];
	char byte;

	must(pipe2(told, O_CLOEXEC), "pipe");
	if (fork() == 0) {
		must(chroot("/m"), "chroot");
		must(chdir("/"), "chdir");
		execl("/bin/true", "true", NULL);
		must(-1, "execve");
	}
	close(told[1]);
	must(read(told[0], &byte, 1), "pipe"); /* it ends with execve */
}

int main(void)
{
	struct timespec began, done;

	clock_gettime(CLOCK_MONOTONIC, &began);
	mounted("proc", "/proc", "proc", "");
	mounted("sysfs", "/sys", "sysfs", "");
	mounted("devtmpfs", "/dev", "devtmpfs", "");
	identity();
	root();
	network();
	program();
	clock_gettime(CLOCK_MONOTONIC, &done);
	printf("work %ld\n", (done.tv_sec - began.tv_sec) * 1000000 + (done.tv_nsec - began.tv_nsec) / 1000);
	fflush(stdout);
	wait(NULL);
	reboot(RB_POWER_OFF);
	return 1;
}
