/*
 * The other end of a channel in the guest, as plain as it can be: what a port carries for this program is the floor
 * that the link is measured against, and the link's own numbers are taken with this program behind it.
 *
 *     floor_port PATH source BYTES     writes BYTES in pieces of 64 KiB
 *     floor_port PATH sink BYTES       reads BYTES, then writes one byte
 *     floor_port PATH echo COUNT       reads and writes back single bytes
 *     floor_port PATH relay COUNT      as "echo", done by a child behind two pipes
 *     floor_port PATH send BYTES       relays BYTES from standard input, in pieces of 64 KiB, as cat(1) would
 *     floor_port PATH fetch BYTES      relays BYTES to standard output
 *     floor_port - spawn COUNT         runs /bin/true COUNT times, prints the nanoseconds that one took
 *
 * PATH is a device, or "-" for standard input and output.  On a device "sink", "echo", "relay" and "fetch" first write
 * one byte: what comes before the line is raw would be lost.
 */
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static char piece[65536];
static int in = 0, out = 1;

static int failed(const char *what)
{
	perror(what);
	return 1;
}

static int source(long long left)
{
	memset(piece, 'x', sizeof(piece));
	while (left > 0) {
		ssize_t n = write(out, piece, left < (long long)sizeof(piece) ? (size_t)left : sizeof(piece));

		if (n < 0)
			return failed("write");
		left -= n;
	}
	return 0;
}

static int sink(long long left)
{
	while (left > 0) {
		ssize_t n = read(in, piece, sizeof(piece));

		if (n <= 0)
			return failed("read");
		left -= n;
	}
	return write(out, "d", 1) == 1 ? 0 : failed("write");
}

static int echo(long long count)
{
	char byte;

	while (count-- > 0)
		if (read(in, &byte, 1) != 1 || write(out, &byte, 1) != 1)
			return failed("echo");
	return 0;
}

/* What any agent has to do for a process that knows nothing of ports: both pipes and the port are waited for. */
static int relayed_echo(long long count)
{
	int to[2], from[2];

	if (pipe(to) || pipe(from))
		return failed("pipe");
	if (fork() == 0) {
		in = to[0];
		out = from[1];
		_exit(echo(count));
	}
	struct pollfd ends[2] = {{in, POLLIN, 0}, {from[0], POLLIN, 0}};

	for (long long left = count; left > 0;) {
		ssize_t n;

		if (poll(ends, 2, -1) < 0)
			return failed("poll");
		if (ends[0].revents & POLLIN) {
			n = read(in, piece, sizeof(piece));
			if (n <= 0 || write(to[1], piece, n) != n)
				return failed("to the child");
		}
		if (ends[1].revents & POLLIN) {
			n = read(from[0], piece, sizeof(piece));
			if (n <= 0 || write(out, piece, n) != n)
				return failed("from the child");
			left -= n;
		}
	}
	return 0;
}

static int relay(int from, int to, long long left)
{
	while (left > 0) {
		ssize_t n = read(from, piece, sizeof(piece));

		if (n <= 0)
			return failed("read");
		left -= n;
		for (ssize_t done = 0; done < n;) {
			ssize_t written = write(to, piece + done, n - done);

			if (written < 0)
				return failed("write");
			done += written;
		}
	}
	return 0;
}

static int spawn(long long count)
{
	struct timespec a, b;

	clock_gettime(CLOCK_MONOTONIC, &a);
	for (long long i = 0; i < count; i++) {
		pid_t child = vfork();

		if (child == 0) {
			execl("/bin/true", "true", NULL);
			_exit(127);
		}
		if (child < 0 || waitpid(child, NULL, 0) != child)
			return failed("spawn");
	}
	clock_gettime(CLOCK_MONOTONIC, &b);
	printf("%lld\n", ((b.tv_sec - a.tv_sec) * 1000000000LL + b.tv_nsec - a.tv_nsec) / count);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc != 4)
		return 2;
	if (strcmp(argv[1], "-") != 0) {
		struct termios settings;

		in = out = open(argv[1], O_RDWR | O_NOCTTY);
		if (in < 0)
			return failed(argv[1]);
		if (tcgetattr(in, &settings) == 0) {
			cfmakeraw(&settings);
			cfsetspeed(&settings, B115200);
			tcsetattr(in, TCSANOW, &settings);
		}
	}
	if (strcmp(argv[2], "source") == 0)
		return source(atoll(argv[3]));
	if (strcmp(argv[2], "send") == 0)
		return relay(0, out, atoll(argv[3]));
	if (in != 0 && write(out, "r", 1) != 1)
		return failed("write");
	if (strcmp(argv[2], "sink") == 0)
		return sink(atoll(argv[3]));
	if (strcmp(argv[2], "echo") == 0)
		return echo(atoll(argv[3]));
	if (strcmp(argv[2], "relay") == 0)
		return relayed_echo(atoll(argv[3]));
	if (strcmp(argv[2], "fetch") == 0)
		return relay(in, 1, atoll(argv[3]));
	return spawn(atoll(argv[3]));
}
