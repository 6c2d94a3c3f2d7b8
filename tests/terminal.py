"""A terminal for commands."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def on_terminal(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    size: tuple[int, int] = (80, 24),
    stdin: IO[str] | None = None,
) -> tuple[int, str]:
    """Run a command on a terminal.

    Args:
        command: The command.
        environment: Its environment.
        size: Columns and lines.
        stdin: What it reads instead of the terminal.

    Returns:
        Its exit code, and all that it wrote.
    """
    screen, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
    with os.fdopen(screen, "rb") as reader:
        process = subprocess.Popen(
            command, env=environment, stdin=end if stdin is None else stdin, stdout=end, stderr=end
        )
        os.close(end)
        shown = b""
        try:
            while part := reader.read1():
                shown += part
        except OSError:
            pass  # EIO: the other end is closed
        return process.wait(), shown.decode()
