"""Stages that another study trains: when they are tried again, and whose claim is dead. One process's clock only."""

import time

from kdtvit_ray.study.library import BEAT_SECONDS, Claim

AGAIN_SECONDS = 5.0
"""Seconds until a stage that another study trains is tried again."""
DEAD_SECONDS = 6 * BEAT_SECONDS
"""Seconds without a beat after which a claim is dead."""


class Claims:
    """What groups have met of other studies' claims."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        self._met: dict[str, tuple[Claim, float]] = {}

    def deferred(self, key: str, claim: Claim) -> None:
        """A group has met a claim on a stage."""
        now = time.monotonic()
        self._until[key] = now + AGAIN_SECONDS
        if key not in self._met or self._met[key][0] != claim:
            self._met[key] = claim, now

    def waiting(self) -> set[str]:
        """Stages that are not tried again yet."""
        now = time.monotonic()
        self._until = {key: until for key, until in self._until.items() if until > now}
        return set(self._until)

    def dead(self, key: str) -> str:
        """The token of the claim on a stage that has not beaten for long; empty where there is none."""
        claim, since = self._met.get(key, (None, 0.0))
        return claim.token if claim and time.monotonic() - since >= DEAD_SECONDS else ""
