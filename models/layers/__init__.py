"""Layers: the parts that models are written with."""
