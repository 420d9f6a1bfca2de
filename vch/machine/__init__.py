"""One container VM from outside: the I/O thread with the link, sessions, files, hardware; and why it ended."""
