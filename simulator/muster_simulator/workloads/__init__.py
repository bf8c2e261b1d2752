"""Reference workloads: real models in honest versions, with the labelled inputs that tell them apart; made in seconds.

Here live data, training, conversion and measuring. Nothing here knows devices, rollouts or how traffic is sent.
"""
