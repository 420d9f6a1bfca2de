/*
 * The least a guest can do: say one line, power off.  What a boot costs with this as PID 1 is the floor of that
 * kernel with those devices; the bench states our own boot as a ratio to it.
 *
 *     cc -static -Os -s -o init floor_init.c      (and put it into an initramfs as /init, beside /dev/console)
 *
 * With the argument "list" (kernel command line: "-- list") it first prints the disks, network interfaces and
 * virtio-serial ports that the kernel found, waiting up to two seconds for those that are probed late.
 */
#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const char *const folders[] = {"/sys/class/block", "/sys/class/net", "/sys/class/virtio-ports"};

static void list(void)
{
	const struct timespec settle = {.tv_sec = 2};

	mkdir("/sys", 0755);
	if (mount("sysfs", "/sys", "sysfs", 0, NULL) != 0) {
		perror("mount sysfs on /sys");
		return;
	}
	nanosleep(&settle, NULL);
	for (unsigned int i = 0; i < sizeof(folders) / sizeof(folders[0]); i++) {
		DIR *folder = opendir(folders[i]);

		printf("%s:", folders[i]);
		for (struct dirent *entry; folder && (entry = readdir(folder));)
			if (entry->d_name[0] != '.')
				printf(" %s", entry->d_name);
		puts("");
		if (folder)
			closedir(folder);
	}
	fflush(stdout);
}

int main(int argc, char **argv)
{
	static const char line[] = "floor\n";

	if (write(STDOUT_FILENO, line, sizeof(line) - 1) < 0)
		return 1;
	for (int i = 1; i < argc; i++) /* the kernel also passes words on that it does not know */
		if (strcmp(argv[i], "list") == 0)
			list();
	reboot(RB_POWER_OFF);
	perror("power off");
	return 1;
}
