"""PIDs of the container's own, for programs that insist on being PID 1.  Imported when a spec asks.

tether makes the namespace for its next child (unshare(2), CLONE_NEWPID), forks, and goes back to its own: the child is
PID 1 inside, and a child of tether outside, which waits for it as for any other.  When it ends the kernel kills and
reaps everything in the namespace (pid_namespaces(7)).  /proc shows the PIDs of the namespace that it was mounted in: so
the container gets a mount namespace too, with a /proc of its own; what tether mounts later is passed on into it.
"""

import os

from tether.kernel.syscalls import CLONE_NEWNS, CLONE_NEWPID, MS_REC, MS_SHARED, MS_SLAVE, mount, setns, unshare
from tether.rootfs.furnish import PROC
from tether.rootfs.root import MERGED

OWN = "/proc/self/ns/pid"


class PidNamespace:
    """One for each life of the primary process."""

    def __init__(self) -> None:
        self._own = os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)
        self._init = 0  # PID of the primary process as tether sees it
        self._made = -1
        mount("", MERGED, "", MS_REC | MS_SHARED)

    def fork(self, primary: bool) -> int:
        """fork(2), with the child in the namespace; a new one if it is the primary process.  Raises OSError."""
        if primary:
            unshare(CLONE_NEWPID)
        else:
            setns(self._made, CLONE_NEWPID)
        pid = -1
        try:
            pid = os.fork()
        finally:
            if pid:
                setns(self._own, CLONE_NEWPID)
        if pid and primary:
            if self._made >= 0:
                os.close(self._made)
            self._init, self._made = pid, os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        return pid

    def furnish(self) -> None:
        """In the primary process, which has entered its root: mounts of its own, among them /proc."""
        unshare(CLONE_NEWNS)
        mount("", "/", "", MS_REC | MS_SLAVE)
        mount(PROC.kind, os.fsdecode(PROC.path), PROC.kind, PROC.flags)

    def join(self) -> None:
        """In another process: the mounts of the primary one, and the container's root."""
        handle = os.open(f"/proc/{self._init}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        setns(handle, CLONE_NEWNS)  # the root is PID 1's now, as the namespace has it
        os.chroot(MERGED)
        os.chdir("/")
