"""The registry client: challenges, credentials, retries, pull and push (OCI distribution-spec)."""
