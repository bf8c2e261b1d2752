"""Calls: what the controller asks this device to do now and to answer. Nothing here changes what serves, and nothing of
the serving path waits for it."""
