"""What is in force for a task or thread: blocks within blocks, and the tenant and version that ``use()`` names."""

from __future__ import annotations

import contextlib
import sys
from contextvars import ContextVar
from inspect import CO_ASYNC_GENERATOR, CO_GENERATOR
from typing import TYPE_CHECKING, Literal, Self

from router.errors import TenantLocked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


class Block:
    """A ``with`` block that has an effect on the requests made inside it, by this task or thread and its child tasks.

    Threads and executors begin without any. In a generator it is in force only while that runs, not for whoever
    iterates over it; but for the body of a ``with`` that a generator was made for by ``contextlib``.
    """

    __slots__ = ("_generator", "_open", "_outer", "_owner")

    def __init__(self, owner: object) -> None:
        """Prepare the block.

        Args:
            owner: The router whose requests it is for.
        """
        self._owner = owner
        self._open = False
        self._outer: Block | None = None
        self._generator = 0

    def __enter__(self) -> Self:
        """Begin it."""
        if self._open:
            raise RuntimeError("this block is in use: call session() or use() once for each `with`")
        self._check()
        self._outer = _in_force()
        self._generator = _generator(sys._getframe(1))  # noqa: SLF001 (there is no other name for it)
        self._open = True
        CURRENT.set(self)
        return self

    def __exit__(self, *_: object) -> Literal[False]:
        """End it, and leave what was before in force."""
        self._open = False
        # A generator may be closed while a later block is in force, or in another context: then it is passed over.
        CURRENT.set(_in_force())
        return False

    def _check(self) -> None:
        """See whether it may begin."""

    def around(self) -> Block | None:
        """Find the next block outwards that is not over."""
        outer = self._outer
        while outer is not None and not outer.in_force():
            outer = outer._outer  # noqa: SLF001 (of this class)
        return outer

    def in_force(self) -> bool:
        """Whether it is not over, and not a generator's that does not run now."""
        return self._open and (not self._generator or _runs(self._generator))

    @property
    def owner(self) -> object:
        """The router whose requests it is for."""
        return self._owner


CURRENT: ContextVar[Block | None] = ContextVar("router_block", default=None)
"""The innermost block of this task or thread; its default is none, so that a thread never gets one by accident."""


def _in_force() -> Block | None:
    current = CURRENT.get()
    return current if current is None or current.in_force() else current.around()


def blocks(owner: object) -> Iterator[Block]:
    """List the blocks that the requests of this task or thread are in.

    Args:
        owner: The router they are made to.

    Yields:
        The blocks that are for it, innermost first.
    """
    block = _in_force()
    while block is not None:
        if block.owner is owner:
            yield block
        block = block.around()


def _generator(frame: FrameType | None) -> int:
    """The frame of the generator whose body a ``with`` stands in, unless it is there to be a context manager."""
    while frame is not None and frame.f_code.co_filename == contextlib.__file__:
        frame = frame.f_back  # an ExitStack
    if frame is None or not frame.f_code.co_flags & (CO_GENERATOR | CO_ASYNC_GENERATOR):
        return 0
    resumed_by = frame.f_back
    if resumed_by is not None and resumed_by.f_code.co_filename == contextlib.__file__:
        return 0
    # Not the frame itself, which would keep the generator alive. As long as the block is not over, nobody else has it.
    return id(frame)


def _runs(generator: int) -> bool:
    frame: FrameType | None = sys._getframe(2)  # noqa: SLF001 (as above)
    while frame is not None:
        if id(frame) == generator:
            return True
        frame = frame.f_back
    return False


class Use(Block):
    """Names the tenant and the version of requests that name none; made by ``use()``.

    Attributes:
        tenant: The tenant; ``None`` for that of the block around it.
        version: The version; ``None`` for that of the block around it.
        lock: Whether no other tenant may be named inside.
    """

    __slots__ = ("lock", "tenant", "version")

    def __init__(self, owner: object, tenant: str | None, version: str | None, *, lock: bool) -> None:
        """Prepare the block.

        Args:
            owner: The router whose requests it is for.
            tenant: The tenant.
            version: The version.
            lock: Whether no other tenant may be named inside.
        """
        super().__init__(owner)
        self.tenant = tenant
        self.version = version
        self.lock = lock

    def _check(self) -> None:
        named(self.owner, self.tenant, None)

    def __repr__(self) -> str:
        """Show what it names."""
        return f"<Use tenant={self.tenant!r} version={self.version!r}{' locked' if self.lock else ''}>"


def named(owner: object, tenant: str | None, version: str | None) -> tuple[str | None, str | None]:
    """Say which tenant and version a request is for.

    Args:
        owner: The router it is made to.
        tenant: The tenant that it names itself.
        version: The version that it names itself.

    Returns:
        Tenant and version; ``None`` for what neither it names nor a block around it.

    Raises:
        TenantLocked: It names another tenant than the one to which a block around it is locked.
    """
    locked: str | None = None
    for block in blocks(owner):
        if isinstance(block, Use):
            tenant = block.tenant if tenant is None else tenant
            version = block.version if version is None else version
            locked = block.tenant if block.lock and block.tenant is not None else locked
    if locked is not None and tenant != locked:
        raise TenantLocked(f"tenant {tenant!r} was named inside of use(tenant={locked!r}, lock=True)")
    return tenant, version
