"""Studies: models × strategies × prompts × seeds × budgets from one YAML file, resumable, into one folder
(``docs/study.md``, ``docs/run-folder.md``)."""
