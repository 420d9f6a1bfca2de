"""The command ``imagebuild``: images from registries and archives, kept as disks for virtual machines.

Exit status: 0 done, 1 it failed (one sentence on standard error says why), 2 a wrong command line, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from imagebuild.errors import OperationError

_EXAMPLES = """\
examples:
  imagebuild pull debian:12-slim
  imagebuild pull 127.0.0.1:5000/app@sha256:...
  imagebuild pull oci:./layout:v1
  docker save app | imagebuild load
  imagebuild save -o app.tar app:1 app:2
  imagebuild disk image debian:12-slim
  imagebuild gc

IMAGE is a name in a registry, an image ID or its first digits, oci:DIR[:TAG], oci-archive:FILE[:TAG] or
docker-archive:FILE[:NAME].  Images are kept in images/ below VCH_HOME (default: ~/.local/share/vch); settings are in
~/.config/vch/config.toml (VCH_CONFIG).
"""


def make_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    from imagebuild.cli import disk as cli_disk
    from imagebuild.cli import initramfs as cli_initramfs
    from imagebuild.cli import media as cli_media
    from imagebuild.cli import store as cli_store
    from imagebuild.cli import transfer as cli_transfer

    parser = argparse.ArgumentParser(
        prog="imagebuild",
        description="Turns container images into disks for virtual machines.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in (cli_transfer, cli_store, cli_disk, cli_media, cli_initramfs):
        module.add_commands(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    options = make_parser().parse_args(arguments)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except OperationError as error:
        print(f"imagebuild: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader (head, less) has what it wanted; Python would complain once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("imagebuild: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    return status


if __name__ == "__main__":
    sys.exit(main())
