"""What Linux offers to PID 1, as Python calls: system calls, /proc and /sys, events, modules, clock, power."""
