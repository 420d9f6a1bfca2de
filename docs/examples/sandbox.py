"""Runs a program that nobody has to trust, and takes home what it made.

    python docs/examples/sandbox.py IMAGE PROGRAM OUT
"""

import sys
from pathlib import Path

import vch


def main(image: str, program: Path, out: Path) -> int:
    with vch.Machine(image, network="none", memory="256m") as machine:
        machine.exec("mkdir", "/work", check=True)
        machine.put(program, "/work")
        try:
            result = machine.exec("sh", f"/work/{program.name}", cwd="/work", timeout=60)
        except vch.DeadlineError as error:
            print(error)
            return 1
        print(result.stdout, end="")
        for change in machine.diff():
            print(change)
        machine.get("/work/.", out)
        return result.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
