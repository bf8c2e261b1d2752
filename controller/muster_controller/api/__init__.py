"""The HTTP API: typed views of the fleet, orders to it, and the stream of changes. Shared by the page and the CLI.

Routes parse, call and answer; what is decided lives in `core` and `fleet`. There is no authentication yet: the server
listens on the loopback interface alone, and `guard` keeps web pages from elsewhere out.
"""
