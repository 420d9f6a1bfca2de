"""The container's root filesystem: disks found, layers mounted and stacked, volumes, and what is mounted over them."""
