"""Disks: VMDK descriptors and formats, partition tables, empty ext4 file systems."""
