"""The mixer, a process of its own: it opens anonymous windows, sums them, and publishes the sums with exact noise.

It shares nothing with the controller but the broker: no database, no fleet, no server. What a window held leaves this
package in noised sums alone, and never in a log.
"""
