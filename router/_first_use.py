"""The lock for what happens once, at the first use: importing the package, and building what reads settings."""

from __future__ import annotations

import os
from threading import RLock

# Every fork takes it: importing and building hold locks of their own, and if another thread of the parent was at it,
# the child would wait for them for ever. It is registered before all else, so that no fork meets half of this.
first_use = RLock()
os.register_at_fork(before=first_use.acquire, after_in_parent=first_use.release, after_in_child=first_use.release)
