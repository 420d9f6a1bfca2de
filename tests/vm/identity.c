/* Says who it is to the kernel: effective and real user, AT_SECURE, whether others may trace it. */
#include <stdio.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <unistd.h>

int main(void)
{
	printf("%d %d %lu %d\n", geteuid(), getuid(), getauxval(AT_SECURE), prctl(PR_GET_DUMPABLE));
	return 0;
}
