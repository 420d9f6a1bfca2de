"""Five lines: a machine, a program in it, a file into it and one out of it."""

import sys

import vch

with vch.Machine(sys.argv[1]) as machine:
    machine.put(__file__, "/tmp")
    result = machine.exec("wc", "-l", "/tmp/hello.py")
    print(result.stdout, end="")
    machine.get("/etc/hostname", sys.argv[2])
