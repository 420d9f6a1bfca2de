/* Makes argv[1] orphans: processes whose parent has ended before them, so that PID 1 has to bury them. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static pid_t fork_in_the_end(void) {
    pid_t child;
    while ((child = fork()) < 0 && errno == EAGAIN) /* PID 1 is behind, and there is no number left */
        usleep(1000);
    return child;
}

int main(int count, char **words) {
    long wanted = count > 1 ? atol(words[1]) : 0;
    for (long made = 0; made < wanted; made++) {
        pid_t child = fork_in_the_end();
        if (child == 0)
            _exit(fork_in_the_end() < 0); /* both: the grandchild ends, too */
        int status;
        if (child < 0 || waitpid(child, &status, 0) != child || status != 0)
            return 1;
    }
    printf("%ld\n", wanted);
    return 0;
}
