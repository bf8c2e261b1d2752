"""Who this device is: its identity key, the certificates that it is granted, and how it asks for them.

What may be imported by the running daemon imports no cryptography (`folder`, `renewing`, `key_uri`); the rest works in
processes that end. Nothing here knows models or MQTT.
"""
