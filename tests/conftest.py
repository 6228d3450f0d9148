"""What holds for every test."""

from __future__ import annotations

from hypothesis import settings

# An example's time is the machine's affair: on a busy one hypothesis's 200 ms fail what is right.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")
