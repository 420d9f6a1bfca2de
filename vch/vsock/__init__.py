"""A vsock device of our own: the backend of QEMU's vhost-user-vsock, for hosts without /dev/vhost-vsock.

    errors       the one error that a guest or a QEMU gone wrong ends in
    memory       the guest's memory, mapped here
    vring        split virtqueues in it
    packet       virtio-vsock packets
    stream       one connection: bytes between the guest and a socket, with credit
    device       packets from and to the rings, and who they are for
    vhost_user   QEMU's side: the messages that make rings and memory known
    kernel       the host kernel's own vsock, where there is one
    line         both, as lines of a machine's I/O thread

Everything below `line` runs in one thread on one reactor, and nothing in it waits.
"""
