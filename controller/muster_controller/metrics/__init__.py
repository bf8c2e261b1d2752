"""Takes in what mixers and twins say, keeps it small as it ages, and finds what a question is about.

What the numbers mean is `core.metrics`; rows are `db.metrics_store`.
"""
