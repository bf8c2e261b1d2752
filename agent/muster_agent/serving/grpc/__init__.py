"""The gRPC front of the Open Inference Protocol (V2): the extra `muster-agent[grpc]`; without it only `start` imports.

It decodes, encodes and maps errors; what is checked is `serving.v2`'s, who is served is `serving.service`'s.
"""
