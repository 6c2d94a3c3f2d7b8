"""The blocks that a task or thread is in, and the tenant and version that ``use()`` names in them."""

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
    """A ``with`` block that affects the requests made inside it, by this task or thread and its child tasks.

    Threads and executors begin without blocks. A ``with`` inside a generator is in force only while the generator runs,
    not in the code that iterates over it. If ``contextlib`` has made a context manager of the generator, it is also in
    force in the body of that context manager. Where other code runs while a generator is suspended, as with fixtures of
    pytest, use :meth:`enter` and :meth:`exit`.
    """

    __slots__ = ("_entry", "_owner")

    names: ClassVar = False
    """Whether it names a tenant or version: then a task made inside that outlives it is not in any block around it."""

    guard: ClassVar = ""
    """The call that made it, if requests must fail rather than ignore it while its generator is suspended; or empty."""

    def __init__(self, owner: object) -> None:
        """Prepare the block.

        Args:
            owner: The owner of the requests it is for: it stands for all routers with the same settings.
        """
        self._owner = owner
        self._entry: Entry | None = None

    def __enter__(self) -> Self:
        """Begin the block."""
        self._begin(*_place(sys._getframe(1)))  # noqa: SLF001 (there is no other name for it)
        return self

    def enter(self) -> Self:
        """Begin the block without a ``with``; in a generator it stays in force during suspension, until :meth:`exit`.

        Returns:
            The block itself.

        Raises:
            RuntimeError: The block has begun already; or a request would be refused here, as :func:`blocks` says.
            UnknownTenant: As for a ``with``.
            TenantLocked: As for a ``with``.
        """
        self._begin(None, _place(sys._getframe(1))[1])  # noqa: SLF001 (as above)
        return self

    def exit(self) -> None:
        """End the block that :meth:`enter` began, from any task or thread; nothing happens if it has ended."""
        self.__exit__()

    def _begin(self, generator: FrameType | None, level: FrameType | None) -> None:
        if self._entry is not None and self._entry.open:
            raise RuntimeError("this block is in use: call session() or use() once for each `with`")
        self._check()
        self._entry = Entry(self, _open(), generator, level)
        CURRENT.set(self._entry)

    def __exit__(self, *_: object) -> Literal[False]:
        """End the block; the blocks around it stay in force."""
        if self._entry is not None:
            self._entry.end()
        # A generator may be closed while a later block is in force, or in another context. So this entry need not be
        # the innermost one: the innermost open entry becomes the current one.
        CURRENT.set(_open(self._entry))
        return False

    def _check(self) -> None:
        """Check that the block may begin."""

    def around(self) -> Block | None:
        """Find the next block outwards.

        It does not check whether generators run: requests are in this block only while every open block around it is in
        force.
        """
        entry = None if self._entry is None else self._entry.outer
        while entry is not None and not entry.open:
            entry = None if entry.hides() else entry.outer
        return None if entry is None else entry.block

    @property
    def owner(self) -> object:
        """The owner of the requests it is for: it stands for all routers with the same settings."""
        return self._owner


class Entry:
    """One entry into a block: once ended it stays ended, although the block may be entered again.

    The entry keeps frames, so that no other frame gets the same ``id()``. A frame does not keep its generator alive,
    but it keeps the local variables of a generator that ends before the block. So the frames are dropped as soon as the
    entry ends.

    Attributes:
        block: The block.
        outer: The entry before it, which may have ended, or may be in a generator that is suspended.
        generator: The frame of the generator that it is in; ``None`` for none, and once it has ended.
        line: The line in that generator where the block was entered; 0 for no generator.
        level: The frame of the innermost generator that ran when the block was entered; ``None`` for none.
        open: Whether it has not ended.
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
        """Whether it has not ended, and is not in a generator that is suspended."""
        generator = self.generator  # read before ``open``: another thread may end it in between
        return self.open and (generator is None or id(generator) in _running())

    def hides(self) -> bool:
        """Whether the task that finds it was made inside and outlives it, so that no block around it applies."""
        return not self.open and self.block.names and not self.line

    def end(self) -> None:
        """End it."""
        self.open = False
        self.generator = self.level = None


CURRENT: ContextVar[Entry | None] = ContextVar("router_block", default=None)
"""The innermost entry of this task or thread; the default is none, so that a new thread is in no block."""


def _open(ended: Entry | None = None) -> Entry | None:
    """The innermost entry that has not ended, whether its generator runs or is suspended; drops those that ended."""
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
        owner: The owner of the requests, which stands for all routers with the same settings.

    Yields:
        The blocks of that owner, innermost first.

    Raises:
        RuntimeError: A session or lock of that owner is open here, but not in force because its generator is suspended.
    """
    yield from (entry.block for entry in _in_force(owner) if entry.block.owner is owner)


def taken_along() -> Entry | None:
    """Copy the blocks in force here for work in other threads and tasks that the caller waits for.

    Returns:
        The value for ``CURRENT`` there. The copies are in no generator, since no generator of the caller runs there.
    """
    taken: Entry | None = None
    for entry in reversed(_in_force()):
        taken = Entry(entry.block, taken, None, None)
    return taken


def _in_force(owner: object = None) -> list[Entry]:
    """The entries in force here, innermost first, for any owner; fails if a guard of this owner is suspended."""
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
        # A block entered by a generator is further in than blocks entered since by the code that iterates over it.
        running = _running()
        found.sort(key=lambda entry: running.get(id(entry.level), len(running)))
    return found


def _place(frame: FrameType | None) -> tuple[FrameType | None, FrameType | None]:
    """The frames of the generator that a ``with`` stands in, and of the innermost generator that runs.

    A generator that ``contextlib`` has made a context manager of does not count: its ``with`` belongs to the code that
    enters the context manager.
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
        tenant: The tenant; ``None`` for the tenant of the block around it.
        version: The version; ``None`` for the version of the block around it.
        lock: Whether requests inside may name no other tenant than this one, or the one of the block around it.
    """

    __slots__ = ("lock", "tenant", "version")

    names = True

    def __init__(self, owner: object, tenant: str | None, version: str | None, *, lock: bool) -> None:
        """Prepare the block.

        Args:
            owner: The owner of the requests it is for: it stands for all routers with the same settings.
            tenant: The tenant.
            version: The version.
            lock: Whether requests inside may name no other tenant.
        """
        super().__init__(owner)
        self.tenant = tenant
        self.version = version
        self.lock = lock

    @property
    def guard(self) -> str:  # type: ignore[override]  # an attribute elsewhere
        """The call that made it, if it locks."""
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
    """Return the tenant and the version that a request is for.

    Args:
        owner: The owner of the request, which stands for all routers with the same settings.
        tenant: The tenant that the request names.
        version: The version that the request names.

    Returns:
        The tenant and the version; ``None`` for each that neither the request nor a block around it names.

    Raises:
        TenantLocked: The request names another tenant than the one that a block around it is locked to.
    """
    tenant, version, locked = _found(owner, tenant, version)
    if locked is not None and tenant != locked:
        raise TenantLocked(f"tenant {tenant!r} was named inside use(tenant={locked!r}, lock=True)")
    return tenant, version


def locked_to(owner: object) -> str | None:
    """Return the tenant that requests are locked to.

    Args:
        owner: The owner of the requests.

    Returns:
        The tenant; ``None`` if requests may name any tenant.
    """
    return _found(owner, None, None)[2]


def _found(owner: object, tenant: str | None, version: str | None) -> tuple[str | None, str | None, str | None]:
    """The tenant and the version of a request, and the tenant that it is locked to."""
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
