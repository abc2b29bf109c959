"""Measurements of a shapes model by the oracle: calibration, localization, slices and regimes.

Run as ``python -m lotts_search.shapes.measure --help``. Searches run through a pool as anywhere else; the oracle judges
their results and never guides a search or trains a model.
"""
