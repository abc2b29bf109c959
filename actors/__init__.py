"""Where models run: Ray actors and the pool that distributes work over them.

Ray is imported here, in ``serve`` and in the command line's start-up only. Imports ``work``, the registry and what an
actor hosts (``engine``, ``verifiers``, ``rewriters``), never ``core`` or a strategy.
"""

import os

# Ray reads this at its import. It prints the death of a worker to standard output, where a program's own output
# goes; the pool logs a line of its own instead.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "^A worker died or was killed")
