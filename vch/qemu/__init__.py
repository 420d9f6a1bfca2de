"""QEMU: a machine as a record and as a command line, the process, its monitor.  Knows nothing of the link."""
