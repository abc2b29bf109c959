"""The built-in methods that find the region of an image to resample; their settings are in ``work.masks``.

Imports torch, ``work`` and ``backbones``; a method plans network rows and turns their outputs into a heat map.
"""
