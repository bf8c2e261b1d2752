"""What a device measures of what its models see and say, and how it leaves the device: anonymous, or not at all.

`fold` counts on the serving loop; `windows` and `journal` keep hours and days; `sending` seals and sends them. The
detectors decide in `core/drift`. No input is in here, but for the ring (`outliers`) that never leaves the device.
"""
