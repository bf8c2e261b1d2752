"""paho's names, imported without `urllib.request`.

paho asks that for web proxies, and only where PySocks is installed. It brings http, email and tempfile along, 1.6 MB
that a device would hold for as long as it runs.
"""

import sys
from importlib.util import find_spec
from types import ModuleType

_UNUSED = "urllib.request"
_is_spared = _UNUSED not in sys.modules and find_spec("socks") is None
if _is_spared:
    sys.modules[_UNUSED] = ModuleType(_UNUSED)
try:
    from paho.mqtt import client as mqtt
    from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode
finally:
    if _is_spared:
        del sys.modules[_UNUSED]  # Whoever imports it later gets the real one.

__all__ = [
    "CallbackAPIVersion",
    "MQTTErrorCode",
    "MQTTProtocolVersion",
    "PacketTypes",
    "Properties",
    "ReasonCode",
    "mqtt",
]
