"""The measured figures of a shapes model: calibration, localization, and LoTTS against its baselines.

Run as ``python -m lotts_search.shapes.measure --help``. The oracle judges what comes out and guides nothing.
"""
