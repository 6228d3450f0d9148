"""Life on a rented machine: checks before money is spent, a supervised run, spend, notices, and the pod's stop.

Runs on a bare Python before anything is installed: the standard library alone. ``python -m pipelines.pod`` is what
entrypoints/runpod.sh starts.
"""
