"""What the kernel command line tells tether.

    tether.debug               say each step on the console when it begins
    tether.spec=SOURCES        nobody talks to this VM: run what the spec from there says, with the console as its
                               output.  The first of these, separated by commas, that has one: iso:LABEL,
                               fw_cfg[:NAME], guestinfo[:KEY], smbios, cmdline:SPEC, auto (tether/sources/search.py)
    tether.link=LINE           where the appliance is (default virtio:org.vch.link.0):
                                 virtio:NAME         the virtio-serial port of this name
                                 uart:ttyS1          the serial port of this name
                                 vsock:CID:PORT      connect there; CID 2 is the host
                                 vsock:listen:PORT   wait there for the host to connect
                               A word without a colon is the name of a virtio-serial port.
    tether.template            be cloned: everything that can be done before there is a spec, then wait to wake up as
                               another VM (tether/template.py)
    tether.off=reset           end by a reset instead of a power-off: for machines that cannot power off, under a
                               hypervisor that takes a reset for the end (QEMU's -no-reboot)

Other words belong to the kernel and are passed over; an unknown word that begins with "tether." is an error.
"""

from tether.faults import TetherError
from tether.link.record import Record

PREFIX = "tether."
VIRTIO, UART, VSOCK = "virtio", "uart", "vsock"
DEFAULT_LINK = f"{VIRTIO}:org.vch.link.0"
_KNOWN = "tether.debug, tether.link=LINE, tether.spec=SOURCES, tether.template, tether.off=reset"


class KernelArguments(Record):
    """The words that are meant for tether.  `link` is always of the form KIND:ADDRESS."""

    debug: bool = False
    link: str = DEFAULT_LINK
    reset_at_end: bool = False
    template: bool = False
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
            arguments = arguments.but(link=_link(word.removeprefix("tether.link=")))
        elif word.startswith("tether.spec="):
            arguments = arguments.but(spec=word.removeprefix("tether.spec="))
        elif word == "tether.template":
            arguments = arguments.but(template=True)
        elif word == "tether.off=reset":
            arguments = arguments.but(reset_at_end=True)
        else:
            raise TetherError("kernel command line", f"unknown word {word!r}", hint=f"known are {_KNOWN}")
    return arguments


def _link(value: str) -> str:
    kind, colon, _ = value.partition(":")
    if not colon:
        return f"{VIRTIO}:{value}"
    if kind not in (VIRTIO, UART, VSOCK):
        raise TetherError("kernel command line", f"tether.link={value}: unknown kind of link {kind!r}",
                          hint=f"known are {VIRTIO}:NAME, {UART}:NAME, {VSOCK}:CID:PORT, {VSOCK}:listen:PORT")
    return value
