"""Dry runs of the real model families with random weights: shapes, step time, memory and one whole search each.

Used by ``lotts-search bench``. The throughput benchmarks of the framework are programs in ``benchmarks/``.
"""
