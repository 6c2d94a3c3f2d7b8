"""An asyncio service: one line in, one line out over TCP; on SIGTERM it finishes what it is doing, and ends.

It starts a cluster of its own; in a service, `RouterSettings()` reads the environment. A client that
calls it a few times, and then sends the SIGTERM, is part of it.
"""

from __future__ import annotations

import asyncio
import os
import signal

from router import AsyncRouter, RouterSettings, Unavailable
from router.testing import PostgresCluster


async def answer(router: AsyncRouter, request: str) -> str:
    """Answer "add NAME" by writing to the primary, anything else by reading the names from a replica."""
    try:
        if request.startswith("add "):
            async with router.connection(version="v1", timeout=2.0) as conn:
                await conn.execute("INSERT INTO guest VALUES (%s)", [request.removeprefix("add ")])
            return "added"
        async with router.connection(version="v1", read_only=True, timeout=2.0) as conn:
            return " ".join([name async for (name,) in await conn.execute("SELECT name FROM guest ORDER BY name")])
    except Unavailable as error:  # within 2 seconds no server was up, or no connection free: it says which and why
        return f"try again later: {type(error).__name__}"


async def serve(router: AsyncRouter, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one client: its request, our answer."""
    request = (await reader.readline()).decode().strip()
    writer.write(f"{await answer(router, request)}\n".encode())
    writer.close()
    await writer.wait_closed()


async def client(port: int) -> None:
    """Call the service a few times, see what was added, and stop it."""

    async def call(request: str) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"{request}\n".encode())
        reply = (await reader.readline()).decode().strip()
        writer.close()
        await writer.wait_closed()
        return reply

    print(await asyncio.gather(call("add ada"), call("add grace"), call("add hedy")))
    async with asyncio.timeout(10.0):  # a replica is a moment behind
        while (names := await call("list")) != "ada grace hedy":
            pass
    print(names)
    os.kill(os.getpid(), signal.SIGTERM)


async def main(settings: RouterSettings) -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    # Left from the inside out: everyone being served gets an answer, and only then the router closes.
    async with AsyncRouter(settings) as router, asyncio.TaskGroup() as tasks:
        async with router.connection(version="v1") as conn:
            await conn.execute("CREATE TABLE guest (name text)")
        server = await asyncio.start_server(lambda *streams: tasks.create_task(serve(router, *streams)), "127.0.0.1")
        tasks.create_task(client(server.sockets[0].getsockname()[1]))
        await stop.wait()
        server.close()
    print("stopped")


with PostgresCluster(standbys=2) as cluster:
    asyncio.run(main(RouterSettings(versions={"v1": cluster.version_settings()})))
