"""What images are made of, by the OCI image-spec: references, manifests, configs, platforms."""
