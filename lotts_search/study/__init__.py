"""Studies: models × strategies × prompts × seeds × budgets from one YAML file, resumable, in one run folder.

Imports ``core``, ``work``, the defaults in ``backbones``, and :mod:`lotts_search.api` with its registry. The format is
in ``docs/study.md``, the folder in ``docs/run-folder.md``; estimates and pages are made by ``curves`` and ``report``.
"""
