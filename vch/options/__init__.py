"""What a user asks for, in Docker's words: parsed, checked, and merged with the image's config to a spec."""
