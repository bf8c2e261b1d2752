"""Operators: who may order what, and how they prove who they are. Roles and lock-out are pure; `service` puts them
together with the database. HTTP is not spoken here (`api.authentication` is the edge), except by `oidc`."""
