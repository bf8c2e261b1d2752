"""The page: the fleet for people, rendered here from the same views as the API, kept current by its stream.

No framework, no build and nothing loaded from elsewhere; orders go to the API like anybody's.
"""
