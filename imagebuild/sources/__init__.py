"""Where images can be read from: a registry, an OCI layout, an archive."""
