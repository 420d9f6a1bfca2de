"""The first Python in a container VM: brings in what starting takes, all of it from one file, and starts the agent.

In the boot image this is both /init, which the kernel finds by itself, and /init.pyc, the same compiled, which it is
told to run where we write its command line: parsing and compiling these lines takes a tenth of what starting the
interpreter does.

Not a file for each module, because the usual way to a module lists folders and makes five system calls; and because
a boot image is memory, which nothing takes back: the file of what starting needs is removed once it is read, and what
is imported late, if ever, stays compressed.  Extension modules are found the usual way.
"""

from time import monotonic_ns

BEGAN_NS = monotonic_ns()

import gc  # noqa: E402
import marshal  # noqa: E402
import posix  # noqa: E402
import sys  # noqa: E402

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import CodeType, ModuleType
else:
    ModuleSpec = type(sys.__spec__)

START_MODULES = "/start.modules"  # marshalled: name -> code, and for a package True; an index of the others
LATE_MODULES = "/late.modules"  # the others, each compressed


class BootImage:
    """Finds and loads the modules of the boot image (PEP 451): what starting imports from memory, where each is handed
    out once, the rest out of the file of late modules."""

    def __init__(
        self, start: "dict[str, tuple[CodeType, bool]]", late: "dict[str, tuple[int, int, bool]]"
    ) -> None:
        self._start, self._late = start, late

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> "ModuleSpec | None":
        """For the import system; None for what is not here."""
        found = self._start.get(name) or self._late.get(name)
        return ModuleSpec(name, self, is_package=found[-1]) if found else None  # type: ignore[arg-type]

    def create_module(self, _spec: "ModuleSpec") -> "ModuleType | None":
        """For the import system: an ordinary module."""
        return None

    def exec_module(self, module: "ModuleType") -> None:
        """For the import system."""
        name = module.__name__
        exec(self._start.pop(name)[0] if name in self._start else self._late_code(name), module.__dict__)

    def import_late(self, but: "tuple[str, ...]") -> None:
        """Imports all late modules, `but` those whose names begin so, which then can no longer be imported: the file
        is memory, and is given back."""
        for name in self._late:
            if not name.startswith(but):
                __import__(name)
        posix.unlink(LATE_MODULES)

    def _late_code(self, name: str) -> "CodeType":
        import zlib

        offset, size, _ = self._late[name]
        handle = posix.open(LATE_MODULES, posix.O_RDONLY | posix.O_CLOEXEC)
        try:
            code: CodeType = marshal.loads(zlib.decompress(posix.pread(handle, size, offset)))
        finally:
            posix.close(handle)
        return code


def read_once(path: str) -> bytes:
    """A file's content; the file is gone afterwards."""
    handle = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    content = posix.read(handle, posix.fstat(handle).st_size)
    posix.close(handle)
    posix.unlink(path)
    return content


if __name__ == "__main__":
    # The garbage collector would look at everything that the imports make, again and again, and find nothing: 3 million
    # of the 35 million instructions that they take.  The agent switches it on once the container runs.
    gc.disable()
    sys.meta_path.insert(0, BootImage(*marshal.loads(read_once(START_MODULES))))

    from tether.__main__ import main

    main(BEGAN_NS)
