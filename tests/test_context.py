"""`use()`: whose requests it names a tenant and a version for, and whose it does not."""

from __future__ import annotations

import asyncio
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import ref

import pytest

import router as process_wide
from router import AsyncRouter, Router, TenantLocked, Unavailable, UnknownTenant, UnknownVersion
from router.context import CURRENT
from tests.support import settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from router import Use

NOWHERE = "postgresql://app@127.0.0.1:1/app"  # nothing here is ever opened
OPTIONS = settings(
    versions={"v1": {"primary": NOWHERE}, "v2": {"primary": NOWHERE}},
    aliases={"live": "v2"},
    tenant_template={"schema": "{tenant}"},
    pool={"timeout": 0.05},
)

OTHERS = settings(
    versions={"v1": {"primary": NOWHERE}, "v2": {"primary": NOWHERE}}, tenant_template={"schema": "{tenant}"}
)


@pytest.fixture
def router() -> Iterator[Router]:
    with Router(OPTIONS) as router:
        yield router
    assert CURRENT.get() is None


def named(router: Router | AsyncRouter) -> tuple[str, str] | None:
    """The tenant and version of a request that names neither; ``None`` when it is refused for that."""
    try:
        target = router.explain().target
    except UnknownTenant:
        return None
    assert target.tenant is not None
    return target.tenant, target.version


def test_it_names_the_tenant_and_the_version_of_requests_that_name_none(router: Router) -> None:
    assert named(router) is None
    with router.use(tenant="acme"):
        assert named(router) == ("acme", "v1")
        with router.use(version="live"):
            assert named(router) == ("acme", "v2")
            with router.use(tenant="globex"):
                assert named(router) == ("globex", "v2")
                assert router.explain(tenant="initech", version="v1").target.tenant == "initech"
            assert named(router) == ("acme", "v2")
        assert named(router) == ("acme", "v1")
    assert named(router) is None


def test_it_holds_for_everything_that_is_asked_of_the_router(router: Router) -> None:
    with router.use(tenant="acme"):
        for use in (
            lambda: router.connection().__enter__(),
            lambda: router.execute("SELECT 1"),
            lambda: router.run(lambda _: None),
        ):
            with pytest.raises(Unavailable) as raised:
                use()
            assert raised.value.tenant == "acme"
    for ask in (router.connection, router.explain, partial(router.execute, "SELECT 1"), partial(router.run, id)):
        with pytest.raises(
            UnknownTenant,
            match=r"no tenant was named, and no use\(\) is in force here: name a "
            r"tenant, or",
        ):
            ask()


def test_a_version_without_a_tenant_is_named_on_purpose(router: Router) -> None:
    assert router.explain(version="v2").target.tenant is None
    with router.use(version="v2"):
        assert router.explain().target.tenant is None
        assert router.explain().target.version == "v2"
    with router.use(version="v9"), pytest.raises(UnknownVersion, match="v9"):
        router.explain()


def test_a_block_that_fails_is_over(router: Router) -> None:
    with pytest.raises(ZeroDivisionError), router.use(tenant="acme"):
        raise ZeroDivisionError
    assert named(router) is None


def test_a_use_may_be_entered_again_but_not_twice_at_once(router: Router) -> None:
    use = router.use(tenant="acme")
    for _ in range(2):
        with use:
            assert named(router) == ("acme", "v1")
            with pytest.raises(RuntimeError, match="in use"), use:
                pytest.fail("it was entered twice")
    assert named(router) is None
    assert "acme" in repr(use)


def test_two_routers_with_other_settings_do_not_name_each_others(router: Router) -> None:
    with Router(OTHERS) as other, router.use(tenant="acme"):
        assert named(other) is None
        with other.use(tenant="globex", version="v2"):
            assert (named(router), named(other)) == (("acme", "v1"), ("globex", "v2"))
        assert named(other) is None


@pytest.mark.parametrize(
    "key", ["", "Acme", "a b", "../a", '"; DROP', "%s", "a\0", "\uff41cme", "a" * 10_000, 1, b"a", [], {}]
)
def test_what_is_no_key_is_refused_before_it_is_in_force(router: Router, key: Any) -> None:
    with pytest.raises(UnknownTenant):
        router.use(tenant=key)


def test_a_use_that_names_nothing_is_refused_and_is_not_for_the_tenant_around_it(router: Router) -> None:
    with router.use(tenant="acme"), pytest.raises(UnknownTenant, match="names neither a tenant nor a version"):
        router.use(tenant=None)


def test_without_tenants_in_the_settings_there_is_none_to_use() -> None:
    with Router(settings(primary=NOWHERE)) as router, pytest.raises(UnknownTenant, match="have no tenants"):
        router.use(tenant="acme")


# Locked


def test_a_locked_block_knows_no_other_tenant(router: Router) -> None:
    with router.use(tenant="acme", lock=True):
        assert named(router) == ("acme", "v1")
        assert router.explain(tenant="acme", version="v2").target.tenant == "acme"
        with router.use(version="v2"), router.use(tenant="acme"):
            assert named(router) == ("acme", "v2")
            for ask in (router.explain, router.connection, partial(router.execute, "SELECT 1")):
                with pytest.raises(TenantLocked, match=r"'globex' was named inside use\(tenant='acme', lock=True\)"):
                    ask(tenant="globex")
        with pytest.raises(TenantLocked), router.use(tenant="globex"):
            pytest.fail("another tenant was in use")
        assert named(router) == ("acme", "v1")
    with router.use(tenant="globex"):
        assert named(router) == ("globex", "v1")


def test_a_lock_within_another_tenants_block_is_for_its_own(router: Router) -> None:
    with router.use(tenant="globex"), router.use(tenant="acme", lock=True):
        assert named(router) == ("acme", "v1")
        with pytest.raises(TenantLocked):
            router.explain(tenant="globex")


def test_a_locked_block_that_names_no_tenant_is_locked_to_the_one_around_it(router: Router) -> None:
    with router.use(tenant="acme"), router.use(version="v2", lock=True):
        assert named(router) == ("acme", "v2")
        with pytest.raises(TenantLocked):
            router.explain(tenant="globex")
    with pytest.raises(UnknownTenant, match=r"use\(lock=True\) names no tenant"), router.use(lock=True):
        pytest.fail("it was locked to nobody")


# With sessions


def test_it_holds_inside_a_session_and_around_one(router: Router) -> None:
    with router.session(), router.use(tenant="acme"), router.session():
        assert named(router) == ("acme", "v1")
    with router.use(tenant="acme"), router.session(), router.use(version="v2"):
        assert named(router) == ("acme", "v2")


# Threads


def test_threads_and_executors_see_none(router: Router) -> None:
    seen: list[tuple[str, str] | None] = []
    with router.use(tenant="acme"):
        thread = threading.Thread(target=lambda: seen.append(named(router)))
        if hasattr(thread, "_context"):  # 3.14, where -X thread_inherit_context would hand it on
            assert thread._context is None
        thread.start()
        thread.join()
        with ThreadPoolExecutor(1) as executor:
            seen.append(executor.submit(named, router).result())
            seen.append(executor.submit(copy_context().run, named, router).result())  # on purpose
    assert seen == [None, None, ("acme", "v1")]


async def test_an_executor_of_the_loops_sees_none_and_to_thread_copies_it_on_purpose(router: Router) -> None:
    with router.use(tenant="acme"):
        assert await asyncio.get_running_loop().run_in_executor(None, named, router) is None
        assert await asyncio.to_thread(named, router) == ("acme", "v1")


def test_threads_have_each_their_own(router: Router) -> None:
    together = threading.Barrier(4)

    def work(tenant: str) -> tuple[str, str] | None:
        with router.use(tenant=tenant):
            together.wait()
            return named(router)

    with ThreadPoolExecutor(4) as executor:
        assert [found and found[0] for found in executor.map(work, "abcd")] == list("abcd")


# Tasks


async def test_tasks_have_what_was_in_force_where_they_were_made() -> None:
    async with AsyncRouter(OPTIONS) as router:
        go = asyncio.Event()

        async def look() -> tuple[str, str] | None:
            await go.wait()
            return named(router)

        with router.use(tenant="acme"):
            inside = asyncio.create_task(look())
            await asyncio.sleep(0)
            others = asyncio.gather(look(), look())
            await asyncio.sleep(0)
            go.set()
            assert await inside == ("acme", "v1")
            assert set(await others) == {("acme", "v1")}
        assert await asyncio.create_task(look()) is None
        assert set(await asyncio.gather(look(), look())) == {None}


async def test_a_task_that_outlives_the_block_names_no_tenant_any_more() -> None:
    async with AsyncRouter(OPTIONS) as router:
        go = asyncio.Event()

        async def look() -> tuple[str, str] | None:
            await go.wait()
            return named(router)

        with router.use(tenant="acme"):
            late = asyncio.create_task(look())
            await asyncio.sleep(0)
        go.set()
        assert await late is None


@pytest.mark.parametrize("lock", [True, False])
async def test_a_task_that_outlives_an_inner_block_is_not_in_the_outer_one(lock: bool) -> None:
    async with AsyncRouter(OPTIONS) as router:
        go = asyncio.Event()

        async def look() -> tuple[str, str] | None:
            await go.wait()
            return named(router)

        async def look_in_a_block_of_its_own() -> str | None:
            with router.use(version="v2"):
                await go.wait()
                return router.explain().target.tenant

        with router.use(tenant="globex"):
            with router.use(tenant="acme", lock=lock):
                late = asyncio.create_task(look())
                later = asyncio.create_task(look_in_a_block_of_its_own())
                await asyncio.sleep(0)
            go.set()
            assert await late is None
            assert await later is None
            assert named(router) == ("globex", "v1")


async def test_a_task_that_outlives_a_session_keeps_its_tenant() -> None:
    async with AsyncRouter(OPTIONS) as router:
        go = asyncio.Event()

        async def look() -> tuple[str, str] | None:
            await go.wait()
            return named(router)

        with router.use(tenant="acme"):
            with router.session():
                late = asyncio.create_task(look())
                await asyncio.sleep(0)
            go.set()
            assert await late == ("acme", "v1")


async def test_gathered_tasks_do_not_disturb_each_other_or_their_parent() -> None:
    async with AsyncRouter(OPTIONS) as router:
        together = asyncio.Barrier(4)

        async def work(tenant: str) -> str | None:
            with router.use(tenant=tenant):
                await together.wait()
                found = named(router)
                await together.wait()
            assert named(router) == ("parent", "v1")
            return found and found[0]

        with router.use(tenant="parent"):
            assert await asyncio.gather(*map(work, "abcd")) == list("abcd")
            assert named(router) == ("parent", "v1")


async def test_a_cancelled_task_leaves_nothing() -> None:
    async with AsyncRouter(OPTIONS) as router:

        async def work() -> None:
            with router.use(tenant="acme"):
                await asyncio.Event().wait()

        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert named(router) is None


# Generators


def test_a_generators_block_is_in_force_only_while_it_runs(router: Router) -> None:
    seen = []

    def generate() -> Iterator[int]:
        with router.use(tenant="acme"):
            for number in range(3):
                seen.append(named(router))
                yield number
            seen.append(named(router))

    for _ in generate():
        assert named(router) is None
    with router.use(tenant="globex"):
        for _ in generate():
            assert named(router) == ("globex", "v1")
    assert seen == [("acme", "v1")] * 8


async def test_an_async_generators_block_is_in_force_only_while_it_runs(router: Router) -> None:
    seen = []

    async def generate() -> AsyncIterator[int]:
        with router.use(tenant="acme"):
            for number in range(3):
                await asyncio.sleep(0)
                seen.append(named(router))
                yield number

    async for _ in generate():
        await asyncio.sleep(0)
        assert named(router) is None
        assert await asyncio.create_task(asyncio.to_thread(named, router)) is None
    assert seen == [("acme", "v1")] * 3


def test_what_a_generator_calls_is_inside_its_block(router: Router) -> None:
    def inner() -> Iterator[tuple[str, str] | None]:
        yield named(router)

    def generate() -> Iterator[tuple[str, str] | None]:
        with router.use(tenant="acme"):
            yield from inner()
            yield partial(named, router)()

    assert list(generate()) == [("acme", "v1")] * 2


def test_two_generators_that_take_turns(router: Router) -> None:
    def generate(tenant: str) -> Iterator[tuple[str, str] | None]:
        with router.use(tenant=tenant):
            yield named(router)
            yield named(router)

    one, two = generate("one"), generate("two")
    assert [next(one), next(two), next(one), next(two)] == [("one", "v1"), ("two", "v1")] * 2
    assert named(router) is None
    assert [*one, *two] == []
    assert named(router) is None


def test_a_suspended_generator_gets_its_own_back_whatever_came_in_between(router: Router) -> None:
    def generate() -> Iterator[tuple[str, str] | None]:
        with router.use(tenant="acme"):
            while True:
                yield named(router)

    with router.use(tenant="globex"):
        generator = generate()
        assert next(generator) == ("acme", "v1")
        for tenant in ("initech", "hooli"):
            with router.use(tenant=tenant):
                assert next(generator) == ("acme", "v1")
                assert named(router) == (tenant, "v1")
            assert next(generator) == ("acme", "v1")
            assert named(router) == ("globex", "v1")
    assert next(generator) == ("acme", "v1")
    assert named(router) is None
    generator.close()  # type: ignore[attr-defined]
    assert named(router) is None


def test_generators_that_overlap_for_ever_keep_no_memory_of_each_other(router: Router) -> None:
    def generate() -> Iterator[None]:
        with router.use(tenant="acme"):
            yield

    last = generate()
    next(last)
    for _ in range(100):
        following = generate()
        next(following)
        del last
        last = following
    depth, entry = 0, CURRENT.get()
    while entry is not None:
        depth, entry = depth + 1, entry.outer
    assert depth <= 2
    del last, following


def test_a_block_entered_again_is_not_that_of_who_was_in_it_before(router: Router) -> None:
    use = router.use(tenant="acme")
    with use:
        context = copy_context()
    with use:
        assert context.run(named, router) is None


def test_a_generator_that_is_dropped_leaves_nothing(router: Router) -> None:
    def generate() -> Iterator[None]:
        with router.use(tenant="acme"):
            yield

    with router.use(tenant="globex"):
        generator = generate()
        next(generator)
        assert named(router) == ("globex", "v1")
        del generator
        assert named(router) == ("globex", "v1")
    generator = generate()
    next(generator)
    with router.use(tenant="globex"):
        del generator
        assert named(router) == ("globex", "v1")
    assert named(router) is None


async def test_an_async_generator_that_is_closed_elsewhere_leaves_nothing(router: Router) -> None:
    async def generate() -> AsyncIterator[None]:
        with router.use(tenant="acme"):
            yield

    generator = generate()
    await anext(generator)
    with router.use(tenant="globex"):
        await asyncio.create_task(generator.aclose())  # type: ignore[attr-defined]
        assert named(router) == ("globex", "v1")
    assert named(router) is None


def strangers(router: Router) -> set[tuple[str, str] | None]:
    """What generators find that are made now; where there are many, some are where others were."""

    def look() -> Iterator[tuple[str, str] | None]:
        yield named(router)

    generators = [look() for _ in range(200)]
    return {next(generator) for generator in generators}


def by_hand(use: Use, stack: ExitStack) -> Iterator[None]:
    use.__enter__()
    stack.push(use)
    yield


def by_a_stack(use: Use, stack: ExitStack) -> Iterator[None]:
    stack.enter_context(use)
    yield


def by_a_function(use: Use, stack: ExitStack) -> Iterator[None]:
    def begin() -> None:
        stack.push(use.__enter__())

    begin()
    yield


@pytest.mark.parametrize("enter", [by_hand, by_a_stack])
def test_a_block_that_outlives_its_generator_is_in_force_in_no_other(
    router: Router, enter: Callable[[Use, ExitStack], Iterator[None]]
) -> None:
    for _ in range(20):
        with ExitStack() as stack:
            list(enter(router.use(tenant="acme"), stack))
            assert strangers(router) == {None}


def test_a_block_that_was_entered_below_a_generator_stays_around_later_ones(router: Router) -> None:
    for _ in range(20):
        with ExitStack() as stack:
            list(by_a_function(router.use(tenant="acme"), stack))
            assert strangers(router) == {("acme", "v1")}
            with router.use(tenant="globex"):
                assert strangers(router) == {("globex", "v1")}


def test_an_async_generator_that_nobody_finalises_leaves_its_block_to_no_other(
    router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def generate() -> AsyncIterator[None]:
        with router.use(tenant="acme"):
            yield

    def drop() -> None:
        generator = generate()
        with suppress(StopIteration):
            anext(generator).__await__().send(None)

    def drop_them() -> None:
        for _ in range(20):
            drop()
            assert strangers(router) == {None}

    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(finalizer=lambda _: None)  # as that of an event loop that is closed by then
    try:
        copy_context().run(drop_them)
    finally:
        sys.set_asyncgen_hooks(*hooks)


@pytest.mark.parametrize("enter", [by_hand, by_a_stack, by_a_function])
def test_a_block_that_is_over_keeps_nothing_of_its_generator(
    router: Router, enter: Callable[[Use, ExitStack], Iterator[None]]
) -> None:
    use, stack = router.use(tenant="acme"), ExitStack()
    list(enter(use, stack))
    stack.close()
    held_by_the_generator = ref(stack)
    del stack
    assert held_by_the_generator() is None
    assert named(router) is None
    del use


def test_a_generator_made_a_context_manager_passes_it_on(router: Router) -> None:
    @contextmanager
    def acting_as(tenant: str) -> Iterator[Use]:
        with router.use(tenant=tenant) as use:
            yield use

    with acting_as("acme"):
        assert named(router) == ("acme", "v1")
        with acting_as("globex"):
            assert named(router) == ("globex", "v1")
        assert named(router) == ("acme", "v1")
    with ExitStack() as stack:
        stack.enter_context(acting_as("acme"))
        assert named(router) == ("acme", "v1")
        stack.enter_context(router.use(version="v2"))
        assert named(router) == ("acme", "v2")
    assert named(router) is None

    @acting_as("acme")
    def work() -> tuple[str, str] | None:
        return named(router)

    assert work() == ("acme", "v1")
    assert named(router) is None


async def test_an_async_generator_made_a_context_manager_passes_it_on(router: Router) -> None:
    @asynccontextmanager
    async def acting_as(tenant: str) -> AsyncIterator[None]:
        await asyncio.sleep(0)
        with router.use(tenant=tenant):
            yield

    async with acting_as("acme"):
        await asyncio.sleep(0)
        assert named(router) == ("acme", "v1")
        assert await asyncio.create_task(asyncio.to_thread(named, router)) == ("acme", "v1")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(acting_as("acme"))
        assert named(router) == ("acme", "v1")
    assert named(router) is None


def test_a_stack_inside_a_generator_does_not_leak(router: Router) -> None:
    def generate() -> Iterator[tuple[str, str] | None]:
        with ExitStack() as stack:
            stack.enter_context(router.use(tenant="acme"))
            yield named(router)

    for found in generate():
        assert found == ("acme", "v1")
        assert named(router) is None


class ActingAs:
    """A context manager of the application's own."""

    def __init__(self, router: Router, tenant: str) -> None:
        self._use = router.use(tenant=tenant)

    def __enter__(self) -> None:
        self._use.__enter__()

    def __exit__(self, *exc: object) -> None:
        self._use.__exit__(*exc)


def test_a_context_manager_inside_a_generator_does_not_leak(router: Router) -> None:
    @contextmanager
    def acting_as(tenant: str) -> Iterator[None]:
        with router.use(tenant=tenant):
            yield

    def generate(acting: AbstractContextManager[None]) -> Iterator[tuple[str, str] | None]:
        with acting:
            yield named(router)

    for acting in (acting_as("acme"), ActingAs(router, "acme")):
        for found in generate(acting):
            assert found == ("acme", "v1")
            assert named(router) is None
    with ActingAs(router, "acme"):
        assert named(router) == ("acme", "v1")


# The process-wide router


def test_the_process_wide_router_has_it_too() -> None:
    process_wide.configure(OPTIONS)
    try:
        with process_wide.use(tenant="acme", version="v2", lock=True):
            target = process_wide.explain().target
            assert (target.tenant, target.version) == ("acme", "v2")
            with pytest.raises(TenantLocked):
                process_wide.connection(tenant="globex")
        with pytest.raises(UnknownTenant):
            process_wide.connection()
    finally:
        process_wide.close()
