"""The device's update client against TUF's conformance protocol: a command line around it, and cases in our words.

The public suite (theupdateframework/tuf-conformance) runs any client that speaks this protocol; `client.py` does.
"""
