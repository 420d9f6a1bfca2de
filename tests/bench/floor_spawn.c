/*
 * The least that starting a process in a container costs: fork, chroot, exec, and waiting for its end.
 *
 *     cc -static -O2 -o floor-spawn floor_spawn.c;  floor-spawn COUNT RESIDENT_BYTES PROGRAM
 *
 * prints nanoseconds for each, of a parent that has so much memory of its own beside the program's: what fork copies
 * grows with it.  A pipe that execve closes is read, as tether does to know that the program runs.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long long now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * 1000000000LL + at.tv_nsec;
}

static int spawn(char *program)
{
	char *arguments[] = {program, NULL}, nothing;
	int report[2], status;
	pid_t child;

	if (pipe2(report, O_CLOEXEC) < 0 || (child = fork()) < 0)
		return -1;
	if (child == 0) {
		setsid();
		if (chroot("/") == 0 && chdir("/") == 0)
			execv(program, arguments);
		_exit(1);
	}
	close(report[1]);
	if (read(report[0], &nothing, 1) != 0 || waitpid(child, &status, 0) < 0)
		return -1;
	close(report[0]);
	return status;
}

int main(int argc, char **argv)
{
	int count = argc == 4 ? atoi(argv[1]) : 0;
	long resident = argc == 4 ? atol(argv[2]) : 0;
	long long began;

	if (count <= 0)
		return 2;
	if (resident > 0) {
		char *memory = mmap(NULL, resident, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (memory == MAP_FAILED)
			return 1;
		for (long at = 0; at < resident; at += 4096)
			memory[at] = 1;
	}
	began = now();
	for (int i = 0; i < count; i++)
		if (spawn(argv[3]) != 0)
			return 1;
	printf("%lld\n", (now() - began) / count);
	return 0;
}
