"""Device identity: the fleet's own CA, who may have a certificate of it, and the port where devices ask for one.

What a certificate's name may do on a broker is `broker.permissions`; who may order through the API is `operators`.
"""
