"""Bundles, blobs, signing keys and the TUF repository, on both desks: the operator's (offline) and the controller's.

No HTTP and no database here; what is signed and what is stored is decided by python-tuf's rules, never by a route.
"""
