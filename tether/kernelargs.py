"""What the kernel command line tells tether.

    tether.debug               say on the console what is being done
    tether.spec=iso:LABEL      nobody talks to this VM: run what /vch/spec.json on the ISO with this volume label says,
                               with the console as its output
    tether.link=NAME           name of the virtio-serial port of the link (default org.vch.link.0)
    tether.off=reset           end by a reset instead of a power-off: for machines that cannot power off, under a
                               hypervisor that takes a reset for the end (QEMU's -no-reboot)

Other words belong to the kernel and are passed over; an unknown word that begins with "tether." is an error.
"""

from tether.faults import TetherError
from tether.link.record import Record

PREFIX = "tether."
DEFAULT_PORT = "org.vch.link.0"


class KernelArguments(Record):
    """The words that are meant for tether."""

    debug: bool = False
    port: str = DEFAULT_PORT
    reset_at_end: bool = False
    spec: str = ""


def parse(line: str) -> KernelArguments:
    """Reads /proc/cmdline.  Raises TetherError for a word of ours that is not known."""
    arguments = KernelArguments()
    for word in line.split():
        if not word.startswith(PREFIX):
            continue
        if word == "tether.debug":
            arguments = arguments.but(debug=True)
        elif word.startswith("tether.link="):
            arguments = arguments.but(port=word.removeprefix("tether.link="))
        elif word.startswith("tether.spec="):
            arguments = arguments.but(spec=word.removeprefix("tether.spec="))
        elif word == "tether.off=reset":
            arguments = arguments.but(reset_at_end=True)
        else:
            raise TetherError("kernel command line", f"unknown word {word!r}",
                              hint="known are tether.debug, tether.link=NAME, tether.spec=SOURCE, tether.off=reset")
    return arguments
