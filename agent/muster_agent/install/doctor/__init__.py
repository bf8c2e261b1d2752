"""What `muster-agent doctor` looks at, one file for each part of a device.

A check changes nothing, judges by values (`now` is an argument), and says what to do about what it finds.
"""
