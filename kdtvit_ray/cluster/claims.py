"""Stages that another study trains: when they are tried again, and whose claim may be dead. One process's clock."""

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
        self.elsewhere: set[str] = set()
        """Stages that another study trained when they were tried last."""

    def deferred(self, key: str, claim: Claim) -> None:
        """A group has met a claim on a stage."""
        now = time.monotonic()
        self.elsewhere.add(key)
        self._until[key] = now + AGAIN_SECONDS
        if key not in self._met or self._met[key][0] != claim:
            self._met[key] = claim, now

    def waiting(self) -> set[str]:
        """Stages that are not tried again yet."""
        now = time.monotonic()
        self._until = {key: until for key, until in self._until.items() if until > now}
        return set(self._until)

    def tried(self, key: str) -> Claim | None:
        """A group tries a stage. Returns the claim on it that was met so long ago that its holder is dead if it has not
        beaten since, which who claims the stage sees (`StageLibrary.claim`): groups may have been busy meanwhile."""
        self.elsewhere.discard(key)
        claim, since = self._met.get(key, (None, 0.0))
        return claim if time.monotonic() - since >= DEAD_SECONDS else None
