"""What crosses the wire between agent and controller: topics, messages, bundles, assignments, trust, the MQTT link.

Nothing that only one side needs lives here; a device installs this package and the agent, never the controller.
"""
