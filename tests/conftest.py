"""For all tests: Ctrl-C works, also where the runner was started in the background."""

from __future__ import annotations

import signal

# A shell without job control starts background commands with SIGINT ignored, and children inherit that; the tests of
# Ctrl-C send it to this process and to programs they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
