"""Verifiers in environments of their own: their packages conflict with this project's, or pin old releases.

A verifier class names its environment, ``environment = "hpsv2-package"``. A recipe (:mod:`.recipe`, a TOML file) says
what is installed there, ``lotts-search verifier-env`` prepares it once (:mod:`.prepare`), and every pool then runs the
verifier in a process of that environment (:mod:`.hosted`, :mod:`.host`). Both sides speak the frames of :mod:`.frames`.
"""
