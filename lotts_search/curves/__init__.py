"""Scaling curves: quality against compute from trial tables, with intervals. See ``docs/curves.md``."""
