"""The local store of images and layers."""
