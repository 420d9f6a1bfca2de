"""The environment of a process: Docker's defaults under what the spec says."""

PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TERM = b"xterm"


def merged(given: tuple[bytes, ...], hostname: str, terminal: bool, home: bytes) -> dict[bytes, bytes]:
    """PATH, HOSTNAME and (with a terminal) TERM, then what is `given` ("NAME=value"), then HOME if nobody set it.

    As in Docker: a later entry of the same name wins in the place of the first, and a name without "=" takes the
    default of that name away.
    """
    env = {b"PATH": PATH, b"HOSTNAME": hostname.encode()}
    if terminal:
        env[b"TERM"] = TERM
    for entry in given:
        name, equals, value = entry.partition(b"=")
        if not equals:
            env.pop(name, None)
        elif name:
            env[name] = value
    if not env.get(b"HOME"):
        env[b"HOME"] = home
    return env


def candidates(program: bytes, path: bytes) -> list[bytes]:
    """The files to try for a program name, in order: itself if it has a slash, else one per folder of PATH.

    An empty folder of PATH means the working directory (POSIX, XBD 8.3).
    """
    if b"/" in program:
        return [program]
    return [(folder or b".") + b"/" + program for folder in path.split(b":")]
