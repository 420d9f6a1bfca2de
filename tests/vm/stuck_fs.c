/*
 * A file system that never lets anybody read: one folder with one executable file, /MOUNT/PROGRAM, whatever its name.
 *
 *     cc -static -O2 -o stuck-fs stuck_fs.c;  stuck-fs MOUNT
 *
 * Says "up" when it is mounted and "read" when somebody reads, to whom it gives no answer as long as it lives.
 * The protocol is linux/fuse.h; a request without an answer is what a dead server on the network comes to.
 */
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <unistd.h>

enum { FOLDER = FUSE_ROOT_ID, PROGRAM = 2, SIZE = 8192, REQUEST = 1 << 17, MINOR = 31, FOR_EVER = 1 << 30 };

static char request[REQUEST];
static int device;

static void answer(unsigned long long unique, int error, void *body, size_t size)
{
	struct fuse_out_header head = {.len = sizeof head + size, .error = -error, .unique = unique};
	struct iovec parts[] = {{&head, sizeof head}, {body, size}};

	writev(device, parts, size ? 2 : 1);
}

static struct fuse_attr attributes(unsigned long long node)
{
	struct fuse_attr found = {.ino = node, .nlink = 1, .blksize = 4096};

	found.mode = node == FOLDER ? S_IFDIR | 0755 : S_IFREG | 0755;
	found.size = node == FOLDER ? 0 : SIZE;
	return found;
}

static void serve(struct fuse_in_header *asked)
{
	struct fuse_init_out hello = {.major = FUSE_KERNEL_VERSION, .minor = MINOR, .max_write = 4096};
	struct fuse_entry_out entry = {.nodeid = PROGRAM, .entry_valid = FOR_EVER, .attr_valid = FOR_EVER};
	struct fuse_attr_out attr = {.attr_valid = FOR_EVER};
	struct fuse_open_out opened = {0};

	switch (asked->opcode) {
	case FUSE_INIT:
		answer(asked->unique, 0, &hello, sizeof hello);
		puts("up");
		break;
	case FUSE_LOOKUP:
		entry.attr = attributes(PROGRAM);
		answer(asked->unique, 0, &entry, sizeof entry);
		break;
	case FUSE_GETATTR:
		attr.attr = attributes(asked->nodeid);
		answer(asked->unique, 0, &attr, sizeof attr);
		break;
	case FUSE_OPEN:
		answer(asked->unique, 0, &opened, sizeof opened);
		break;
	case FUSE_READ:
		puts("read");
		break;
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:
		break;
	default:
		answer(asked->unique, 38 /* ENOSYS */, NULL, 0);
	}
}

int main(int argc, char **argv)
{
	char options[64];

	mknod("/dev/fuse", S_IFCHR | 0600, makedev(10, 229));
	device = open("/dev/fuse", O_RDWR);
	if (argc != 2 || device < 0)
		return 1;
	setvbuf(stdout, NULL, _IOLBF, 0);
	snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", device);
	if (mount("stuck", argv[1], "fuse", 0, options) < 0)
		return 2;
	while (read(device, request, sizeof request) > 0)
		serve((struct fuse_in_header *)request);
	return 0;
}
