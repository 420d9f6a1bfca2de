"""How a step says why it failed: an object, a cause, a remedy; and how that becomes the Fault that the host shows."""

import errno

from tether.link.messages import Fault


class TetherError(Exception):
    """A step failed.  `object` is with what, `text` the cause, `number` its errno or 0, `hint` what to do about it."""

    def __init__(self, what: str, text: str, number: int = 0, hint: str = "") -> None:
        self.what, self.text, self.number, self.hint = what, text, number, hint
        super().__init__(what, text)

    def __str__(self) -> str:
        return f"{self.what}: {self.text}"


def fault_of(step: str, error: BaseException) -> Fault:
    """The Fault for whatever was raised while `step` was being done.

    An OSError brings its own object and errno; anything unforeseen is a bug of ours and names the place in our code.
    """
    if isinstance(error, TetherError):
        name = errno.errorcode.get(error.number, "")
        return Fault(step=step, object=error.what, text=error.text, errno=name, hint=error.hint)
    if isinstance(error, OSError):
        name = errno.errorcode.get(error.errno or 0, "")
        return Fault(step=step, object=_shown(error.filename), text=error.strerror or str(error), errno=name)
    return Fault(step=step, object=_place(error), text=f"{type(error).__name__}: {error}",
                 hint="this is a bug in tether; please report it with this line")


def one_line(fault: Fault) -> str:
    """A fault as the console shows it."""
    name = f" [{fault.errno}]" if fault.errno else ""
    subject = f"{fault.object}: " if fault.object else ""
    hint = f" ({fault.hint})" if fault.hint else ""
    return f"tether: {fault.step}: {subject}{fault.text}{name}{hint}".replace("\n", " ")


def _shown(name: object) -> str:
    if isinstance(name, bytes):
        return name.decode("utf-8", "backslashreplace")
    return "" if name is None else str(name)


def _place(error: BaseException) -> str:
    """File and line of our code where an exception came from (the module traceback costs too much)."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return "" if place is None else f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}"
