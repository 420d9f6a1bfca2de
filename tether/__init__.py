"""The agent of a container VM: PID 1, started by the kernel, driven by the appliance over the link."""

__version__ = "0.1.0"
