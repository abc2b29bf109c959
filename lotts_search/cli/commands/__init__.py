"""The commands of ``lotts-search``, one per file: options and messages.

Work of more than a few lines is done by the modules of ``cli`` and by the package; heavy imports stay inside functions.
"""
