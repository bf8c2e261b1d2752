"""The inference engines behind one port, the self-test on golden cases, and the warm-up.

Nothing here opens a socket or decides about a release: `serving` answers applications, `core` decides.
"""
