"""What is in force for a task or thread: blocks within blocks, and the tenant and version that ``use()`` names."""

from __future__ import annotations

import contextlib
import sys
from contextvars import ContextVar
from inspect import CO_ASYNC_GENERATOR, CO_GENERATOR
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from router.core.errors import TenantLocked, UnknownTenant, masked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


class Block:
    """A ``with`` block that has an effect on the requests made inside it, by this task or thread and its child tasks.

    Threads and executors begin without blocks. In a generator, a ``with`` is in force only while the generator runs,
    not in the code that iterates over it; if ``contextlib`` made a context manager of the generator, it is also in
    force in the body of that. Where other code runs while a generator is suspended, as with fixtures of pytest, use
    :meth:`enter` and :meth:`exit`.
    """

    __slots__ = ("_entry", "_owner")

    names: ClassVar = False
    """Whether it says whom requests are for: then a task that outlives it is not in the blocks around it, either."""

    guard: ClassVar = ""
    """How it was made, if no request may pass over it because its generator does not run; empty if it may."""

    def __init__(self, owner: object) -> None:
        """Prepare the block.

        Args:
            owner: Whose requests it is for: the routers with the same settings.
        """
        self._owner = owner
        self._entry: Entry | None = None

    def __enter__(self) -> Self:
        """Begin it."""
        self._begin(*_place(sys._getframe(1)))  # noqa: SLF001 (there is no other name for it)
        return self

    def enter(self) -> Self:
        """Begin it without a ``with``; in a generator it stays in force while that is suspended, until :meth:`exit`.

        Returns:
            The block itself.

        Raises:
            RuntimeError: It has begun already; or a request would be refused here, as :func:`blocks` says.
            UnknownTenant: As for a ``with``.
            TenantLocked: As for a ``with``.
        """
        self._begin(None, _place(sys._getframe(1))[1])  # noqa: SLF001 (as above)
        return self

    def exit(self) -> None:
        """End what :meth:`enter` began, in whatever task or thread; nothing happens if it is over."""
        self.__exit__()

    def _begin(self, generator: FrameType | None, level: FrameType | None) -> None:
        if self._entry is not None and self._entry.open:
            raise RuntimeError("this block is in use: call session() or use() once for each `with`")
        self._check()
        self._entry = Entry(self, _open(), generator, level)
        CURRENT.set(self._entry)

    def __exit__(self, *_: object) -> Literal[False]:
        """End it, and leave what was before in force."""
        if self._entry is not None:
            self._entry.end()
        # A generator may be closed while a later block is in force, or in another context: then it is passed over.
        CURRENT.set(_open(self._entry))
        return False

    def _check(self) -> None:
        """See whether it may begin."""

    def around(self) -> Block | None:
        """Find the next block outwards; no request is in this one whose blocks around it are open but not in force."""
        entry = None if self._entry is None else self._entry.outer
        while entry is not None and not entry.open:
            entry = None if entry.hides() else entry.outer
        return None if entry is None else entry.block

    @property
    def owner(self) -> object:
        """Whose requests it is for: the routers with the same settings."""
        return self._owner


class Entry:
    """One time that a block was entered; once it is over it stays so, although the block may be entered again.

    While a frame is held, no other one gets its ``id()``. That keeps no generator alive, but what was in the frame of
    one that ends before the block: so it is let go as soon as the block is over.

    Attributes:
        block: The block.
        outer: The one before it, which may be over by now, or a generator's that does not run.
        generator: The frame of the generator it is in; ``None`` for none, and once it is over.
        line: Where in that generator it was entered; 0 for no generator.
        level: That of the innermost generator that ran when it was entered; ``None`` for none.
        open: Whether it is not over.
    """

    __slots__ = ("block", "generator", "level", "line", "open", "outer")

    def __init__(self, block: Block, outer: Entry | None, generator: FrameType | None, level: FrameType | None) -> None:
        self.block = block
        self.outer = outer
        self.generator = generator
        self.line = 0 if generator is None else generator.f_lineno
        self.level = level
        self.open = True

    def in_force(self) -> bool:
        """Whether it is not over, and not a generator's that does not run now."""
        generator = self.generator  # before it is seen to be open: another thread may end it
        return self.open and (generator is None or id(generator) in _running())

    def hides(self) -> bool:
        """Whether what is around it is not meant for who finds it: a task made inside that outlives it."""
        return not self.open and self.block.names and not self.line

    def end(self) -> None:
        """See that it is over."""
        self.open = False
        self.generator = self.level = None


CURRENT: ContextVar[Entry | None] = ContextVar("router_block", default=None)
"""The innermost block of this task or thread; its default is none, so that a thread never gets one by accident."""


def _open(ended: Entry | None = None) -> Entry | None:
    """The last block that is not over, in force or not: its generator may go on. Those that are over are let go."""
    last: Entry | None = None
    innermost: Entry | None = None
    entry = CURRENT.get()
    while entry is not None and (entry is ended or not entry.hides()):
        if entry.open:
            if last is None:
                innermost = entry
            else:
                last.outer = entry
            last = entry
        entry = entry.outer
    if last is not None:
        last.outer = None
    return innermost


def blocks(owner: object) -> Iterator[Block]:
    """List the blocks that the requests of this task or thread are in.

    Args:
        owner: What they are made to: the routers with the same settings.

    Yields:
        The blocks that are for it, innermost first.

    Raises:
        RuntimeError: A session or a lock of its is open here and not in force, for its generator is suspended.
    """
    yield from (entry.block for entry in _in_force(owner) if entry.block.owner is owner)


def taken_along() -> Entry | None:
    """Take along what is in force here, for work in other threads and tasks that the caller waits for.

    Returns:
        What ``CURRENT`` has to be set to there; there, no generator of the caller's seems to run.
    """
    taken: Entry | None = None
    for entry in reversed(_in_force()):
        taken = Entry(entry.block, taken, None, None)
    return taken


def _in_force(owner: object = None) -> list[Entry]:
    """Those that are in force here, innermost first, for any owner; fails if one passes over a guard of this owner."""
    found = []
    entry = CURRENT.get()
    while entry is not None:
        if entry.in_force():
            found.append(entry)
        elif entry.hides():
            break
        elif (generator := entry.generator) is not None and entry.block.owner is owner and entry.block.guard:
            raise RuntimeError(
                f"{entry.block.guard} of {generator.f_code.co_filename}:{entry.line} is open, but is not in force for "
                "this request: it is in a generator, and is in force only while that runs. If requests "
                "are to be inside "
                "while it is suspended, call its enter() and exit() instead of `with`; else close the generator first"
            )
        entry = entry.outer
    if len(found) > 1 and any(entry.level for entry in found):
        # A block that a generator has entered comes before those that the code iterating over it has entered since.
        running = _running()
        found.sort(key=lambda entry: running.get(id(entry.level), len(running)))
    return found


def _place(frame: FrameType | None) -> tuple[FrameType | None, FrameType | None]:
    """The generator that a ``with`` stands in, and the innermost one that runs, as frames.

    One that is there to be a context manager does not count: it stands wherever that is entered.
    """
    directly = True
    while frame is not None:
        code, resumed_by = frame.f_code, frame.f_back
        if code.co_flags & (CO_GENERATOR | CO_ASYNC_GENERATOR):
            if resumed_by is None or resumed_by.f_code.co_filename != contextlib.__file__:
                return (frame if directly else None), frame
        elif code.co_filename != contextlib.__file__ and code.co_name not in ("__enter__", "__aenter__"):
            directly = False
        frame = resumed_by
    return None, None


def _running() -> dict[int, int]:
    """How far up the stack each frame is, by its id."""
    frames: dict[int, int] = {}
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 (as above)
    while frame is not None:
        frames[id(frame)] = len(frames)
        frame = frame.f_back
    return frames


class Use(Block):
    """Names the tenant and the version of requests that name none; made by ``use()``.

    Attributes:
        tenant: The tenant; ``None`` for that of the block around it.
        version: The version; ``None`` for that of the block around it.
        lock: Whether no other tenant may be named inside than this one, or the one of the block around it.
    """

    __slots__ = ("lock", "tenant", "version")

    names = True

    def __init__(self, owner: object, tenant: str | None, version: str | None, *, lock: bool) -> None:
        """Prepare the block.

        Args:
            owner: Whose requests it is for: the routers with the same settings.
            tenant: The tenant.
            version: The version.
            lock: Whether no other tenant may be named inside.
        """
        super().__init__(owner)
        self.tenant = tenant
        self.version = version
        self.lock = lock

    @property
    def guard(self) -> str:  # type: ignore[override]  # an attribute elsewhere
        """How it was made, if it locks."""
        return f"use(tenant={self.tenant!r}, lock=True)" if self.lock else ""

    def _check(self) -> None:
        tenant, _ = named(self.owner, self.tenant, None)
        if self.lock and tenant is None:
            raise UnknownTenant(None, "use(lock=True) names no tenant, and neither does a block around it: name one")

    def __repr__(self) -> str:
        """Show what it names."""
        tenant, version = (key and masked(key) for key in (self.tenant, self.version))
        return f"<Use tenant={tenant!r} version={version!r}{' locked' if self.lock else ''}>"


def named(owner: object, tenant: str | None, version: str | None) -> tuple[str | None, str | None]:
    """Say which tenant and version a request is for.

    Args:
        owner: What it is made to: the routers with the same settings.
        tenant: The tenant that it names itself.
        version: The version that it names itself.

    Returns:
        Tenant and version; ``None`` for what neither it names nor a block around it.

    Raises:
        TenantLocked: It names another tenant than the one to which a block around it is locked.
    """
    tenant, version, locked = _found(owner, tenant, version)
    if locked is not None and tenant != locked:
        raise TenantLocked(f"tenant {tenant!r} was named inside use(tenant={locked!r}, lock=True)")
    return tenant, version


def locked_to(owner: object) -> str | None:
    """Say which tenant requests are locked to.

    Args:
        owner: What they are made to.

    Returns:
        The tenant; ``None`` where any may be named.
    """
    return _found(owner, None, None)[2]


def _found(owner: object, tenant: str | None, version: str | None) -> tuple[str | None, str | None, str | None]:
    """Tenant and version of a request, and the tenant that it is locked to."""
    locked: str | None = None
    locks = False
    for block in blocks(owner):
        if isinstance(block, Use):
            tenant = block.tenant if tenant is None else tenant
            version = block.version if version is None else version
            locks = locks or block.lock
            if locks and block.tenant is not None:
                locked, locks = block.tenant, False
    return tenant, version, locked
