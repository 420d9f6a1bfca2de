"""What a machine boots: kernels, modules, the initramfs."""
