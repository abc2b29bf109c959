"""Measurements behind ``lotts-search bench``.

``families`` are dry runs of the real model families with random weights: shapes, step time, memory and one whole search each. ``ratios`` compare
the framework with bare networks, pipelines and loops in one run. Programs in ``benchmarks/`` measure the rest.
"""
