"""What ``router each`` starts for each tenant: runs the command, and notes in the log that it begins and how it ended.

That is done here, and not by who waits for it, so that nothing is lost when that is killed. It runs apart from the
package, with neither ``site`` nor any import that takes time: `signal` would take as long as all the rest.

Usage: ``_child.py LOG ENTRY COMMAND…``: the log's descriptor, the beginning of its lines, the command.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from _signal import SIGPIPE, SIGXFSZ  # type: ignore[import-not-found]


def main(log: int, entry: str, command: list[str]) -> None:
    """Run the command.

    Args:
        log: The descriptor of the log. Its lock is held as long as this runs; the command does not inherit it.
        entry: How the log's lines begin.
        command: The command.
    """
    os.set_inheritable(log, False)  # noqa: FBT003 (its only argument)
    _write(log, f'{entry}, "at": "{time.strftime("%FT%TZ", time.gmtime())}"}}\n')
    begun = time.monotonic()
    try:
        # Those two signals Python ignores, and what is ignored is inherited.
        child = os.posix_spawnp(command[0], command, os.environ, setsigdef=[SIGPIPE, SIGXFSZ])
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
        code = 127
    _write(log, f'{entry}, "code": {code}, "seconds": {time.monotonic() - begun:.3f}}}\n')


def _write(log: int, line: str) -> None:
    data = line.encode()
    if os.write(log, data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(log)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
