"""From a key to the cluster that serves it."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from router.errors import UnknownVersion
from router.resolve import resolve
from router.topology import Cluster, Target, Topology

BLUE, GREEN = Cluster("blue", ()), Cluster("green", ())


def topology(default_version: str | None = None) -> Topology:
    return Topology({"blue": BLUE, "green": GREEN}, {"stable": "blue", "next": "green"}, default_version)


@pytest.mark.parametrize(("version", "cluster"), [("blue", BLUE), ("green", GREEN), ("stable", BLUE), ("next", GREEN)])
@pytest.mark.parametrize("default_version", [None, "green", "stable"])
def test_a_version_or_an_alias_names_its_cluster_whatever_the_default(
    version: str, cluster: Cluster, default_version: str | None
) -> None:
    target = resolve(topology(default_version), version)
    assert target == Target(version, cluster)
    assert target.cluster is cluster
    assert target.version == cluster.name


@pytest.mark.parametrize(("default_version", "cluster"), [("green", GREEN), ("stable", BLUE)])
def test_a_request_that_names_none_gets_the_default(default_version: str, cluster: Cluster) -> None:
    assert resolve(topology(default_version), None) == Target(default_version, cluster)


def test_without_a_default_a_request_must_name_one() -> None:
    with pytest.raises(UnknownVersion) as caught:
        resolve(topology(), None)
    assert str(caught.value) == (
        "no version was named and the settings have no default_version; known: blue, green, next, stable"
    )
    assert caught.value.version is None


@pytest.mark.parametrize("default_version", [None, "green"])
def test_an_unknown_version_is_an_error_that_names_the_nearest_even_with_a_default(default_version: str | None) -> None:
    with pytest.raises(UnknownVersion) as caught:
        resolve(topology(default_version), "stabel")
    assert str(caught.value) == ("unknown version 'stabel'; did you mean 'stable'?; known: blue, green, next, stable")
    assert (caught.value.version, caught.value.known) == ("stabel", ("blue", "green", "next", "stable"))


def test_a_default_that_names_nothing_is_what_is_unknown() -> None:
    with pytest.raises(UnknownVersion, match="unknown version 'gren'; did you mean 'green'"):
        resolve(topology("gren"), None)


@given(st.text())
def test_nothing_but_the_exact_key_will_do(version: str) -> None:
    assume(version not in {"blue", "green", "stable", "next"})
    with pytest.raises(UnknownVersion):
        resolve(topology("blue"), version)


@pytest.mark.parametrize("version", ["Blue", " blue", "blue ", "", "blu"])
def test_nothing_is_guessed(version: str) -> None:
    with pytest.raises(UnknownVersion):
        resolve(topology("blue"), version)
