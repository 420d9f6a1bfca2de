"""What becomes of a start, through a pipe: nothing in it means that the program runs, anything else is the Fault."""

import os

from tether.faults import fault_of
from tether.link.cbor import dumps, loads
from tether.link.errors import LinkError
from tether.link.messages import Fault
from tether.link.record import decode, encode

MAX_REPORT = 65536  # what fits into a pipe without anybody reading
_SHOWN = 200  # characters of a name in an error: an argument may be 128 KiB long


def write_report(told: int, step: str, error: BaseException) -> None:
    """Tells that `step` has failed."""
    fault = fault_of(step, error)
    os.write(told, dumps(encode(fault.but(object=fault.object[:_SHOWN], text=fault.text[:_SHOWN]))))


def read_report(report: int) -> Fault | None:
    """What was told until all who could have closed the pipe.  Closes our end, too."""
    try:
        told = os.read(report, MAX_REPORT)
    finally:
        os.close(report)
    if not told:
        return None
    try:
        return decode(Fault, loads(told))
    except LinkError as error:  # a process of the same user has meddled with the child
        return Fault(step="exec", object="report of the child", text=str(error), errno="EPROTO")
