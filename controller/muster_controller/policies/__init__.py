"""Example policies, as `muster policy example` prints them: documents to copy, nothing that is imported."""
