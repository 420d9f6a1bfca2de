"""The command `imagebuild`."""
