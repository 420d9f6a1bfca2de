"""Images in and out of the store: pull, push, load, save, import."""
