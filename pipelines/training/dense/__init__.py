"""Layers that are spread over processes with Megatron-Core: each computes some of a block's heads."""
