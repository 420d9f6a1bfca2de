"""The one error of the vsock backend."""

from __future__ import annotations

from vch.errors import MachineError

REMEDY = "the guest's kernel is broken or hostile: do not trust this machine"


class VsockError(MachineError):
    """A guest broke the rules of virtio, or a QEMU those of vhost-user.  The device cannot go on."""

    def __init__(self, subject: str, cause: str, remedy: str = REMEDY) -> None:
        super().__init__("vsock", subject, cause, remedy)
