"""The gate's statistics: from the counts of a rollout to evidence, a verdict and the size of the next wave.

Pure arithmetic on counts. What is counted, when, and what follows from a verdict lives in `core.rollout`.
"""
