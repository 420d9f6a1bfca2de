"""The first Python in a container VM: brings in what starting takes, all of it read from one file, and starts the agent.

In the boot image this is both /init, which the kernel finds by itself, and /init.pyc, the same compiled, which it is told
to run where we write its command line: parsing and compiling these lines takes a tenth of what starting the
interpreter does.

One file instead of one a module, because the usual way to a module lists folders and makes five system calls for each; and
because a boot image is memory: the file is removed once it is read.  Modules that are not in it are found the usual way.
"""

from time import monotonic_ns

BEGAN_NS = monotonic_ns()

# The garbage collector would look at everything that the imports make, again and again, and find nothing: 3 million of
# the 35 million instructions that they take.  The agent switches it on once the container runs.
import gc  # noqa: E402

gc.disable()

import marshal  # noqa: E402
import posix  # noqa: E402
import sys  # noqa: E402

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import CodeType, ModuleType
else:
    ModuleSpec = type(sys.__spec__)

START_MODULES = "/start.modules"  # a dictionary, marshalled: name -> code, and for a package its folder, else ""


class StartModules:
    """Finds and loads modules (PEP 451) that are in memory as code already; each is handed out once."""

    def __init__(self, modules: "dict[str, tuple[CodeType, str]]") -> None:
        self._modules = modules

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> "ModuleSpec | None":
        """For the import system; None for what is not here."""
        if name not in self._modules:
            return None
        folder = self._modules[name][1]
        spec = ModuleSpec(name, self, is_package=bool(folder))  # type: ignore[arg-type]
        if folder and spec.submodule_search_locations is not None:
            spec.submodule_search_locations.append(folder)
        return spec

    def create_module(self, _spec: "ModuleSpec") -> "ModuleType | None":
        """For the import system: an ordinary module."""
        return None

    def exec_module(self, module: "ModuleType") -> None:
        """For the import system."""
        exec(self._modules.pop(module.__name__)[0], module.__dict__)  # noqa: S102 - it is what importing means


def read_once(path: str) -> bytes:
    """A file's content; the file is gone afterwards."""
    handle = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    content = posix.read(handle, posix.fstat(handle).st_size)
    posix.close(handle)
    posix.unlink(path)
    return content


sys.meta_path.insert(0, StartModules(marshal.loads(read_once(START_MODULES))))  # type: ignore[arg-type]

from tether.__main__ import main  # noqa: E402

main(BEGAN_NS)
