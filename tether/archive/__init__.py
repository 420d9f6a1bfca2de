"""Trees of files as tar archives, for both ends of the link: out of a folder, into a folder, without leaving it."""
