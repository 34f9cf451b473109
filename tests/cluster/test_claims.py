"""Claims of other studies, as one study's coordinator judges them. No Ray."""

import pytest

from kdtvit_ray.cluster.claims import DEAD_SECONDS, Claims
from tests.clock import clock_of
from tests.study.test_library import library


@pytest.fixture
def pass_seconds(monkeypatch):
    return clock_of("kdtvit_ray.cluster.claims", monkeypatch)


def test_a_claim_that_nobody_looked_at_for_long_is_not_dead_by_that(tmp_path, pass_seconds):
    """The group that had met it trained another stage meanwhile."""
    claims, one, two = Claims(), library(tmp_path, "one"), library(tmp_path, "two")
    one.claim("k1")
    claims.deferred("k1", two.claim("k1", claims.tried("k1")))
    one.beat()
    pass_seconds(DEAD_SECONDS + 5)
    met = two.claim("k1", claims.tried("k1"))
    assert met is not None
    assert met.beat == 1
    claims.deferred("k1", met)
    pass_seconds(DEAD_SECONDS - 5)
    assert claims.tried("k1") is None, "its clock has started anew"
    pass_seconds(5)
    assert two.claim("k1", claims.tried("k1")) is None, "it has not beaten since"
