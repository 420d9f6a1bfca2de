"""Boot media: ISO 9660 images and OVA packages of a kernel, an initramfs and, if wanted, a container."""
