"""How patients are dealt into parts, the same for the same patients and seed.

Dealing is iterative stratification (Sechidis et al., ECML PKDD 2011, doi 10.1007/978-3-642-23808-6_10), which serves
the rarest label first and counts patients. Then patients of two parts change places while that evens out the images. It
draws from hashes of (seed, name), so neither the order of a table's rows nor the version of a random generator decides
anything.
"""

import hashlib
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence, Set

import numpy as np

Pair = tuple[bool, int]
"""A side and a magnification: (malignant, magnification)."""

EXCHANGE_ROUNDS = 10
EXCHANGE_CANDIDATES = 250
"""How often each unit looks for another to change places with, and among how many: a bound on the time that sets of
thousands of patients take, which are even anyway."""
EXCHANGE_GAIN = 1e-12
"""A gain that is no rounding error."""


def deal(
    classes: Mapping[str, Set[str]], images: Mapping[str, Mapping[Pair, int]], shares: Sequence[float], seed: str
) -> list[set[str]]:
    """Deal units into parts of the given shares, so that every part has about its share of the units of every class and
    of every pair (side, magnification), and of the images of every pair.

    classes: those of each unit. images: how many each unit has of each of its pairs. A pair goes to every part once at
    least where there are units enough; then the parts keep their shares of the pairs, as seats are dealt to parties by
    Webster's method; then of the classes, which come one after the other. Images decide between parts that are even,
    and which of the units with equal pairs go where.
    """
    labels: dict[str, set[Hashable]] = {unit: {*its, *images[unit]} for unit, its in classes.items()}
    having: dict[Hashable, set[str]] = {}
    for unit, its in labels.items():
        for label in its:
            having.setdefault(label, set()).add(unit)
    got = {label: [0] * len(shares) for label in having}
    total = [0] * len(shares)
    part_of: dict[str, int] = {}
    size = [0] * len(shares)
    left = set(labels)
    while left:
        open_labels = {label: units & left for label, units in having.items() if units & left}
        rarest = min(open_labels, key=lambda label: (len(open_labels[label]), isinstance(label, tuple), str(label)))
        # units with many labels first: the others can still even out what they did
        for unit in sorted(open_labels[rarest], key=lambda unit: (-len(labels[unit]), draw(seed, unit))):
            pairs = images[unit]
            # pairs of which no more units are left than parts that lack them: those parts come first
            urgent = [pair for pair in pairs if len(having[pair] & left) <= got[pair].count(0)]
            merits = [
                (
                    sum(got[pair][part] == 0 for pair in urgent),
                    # sums of whole numbers before any division: the order of a set must not move the last bit
                    -sum(2 * got[pair][part] + 1 for pair in pairs) / share,
                    -sum(2 * got[each][part] + 1 for each in classes[unit]) / share,
                    -(2 * size[part] + 1) / share,
                    -total[part] / share,
                    -part,
                )
                for part, share in enumerate(shares)
            ]
            part = part_of[unit] = merits.index(max(merits))
            left.discard(unit)
            size[part] += 1
            total[part] += sum(images[unit].values())
            for label in labels[unit]:
                got[label][part] += 1
    _even_out(part_of, classes, images, shares, seed)
    return [{unit for unit, its in part_of.items() if its == part} for part in range(len(shares))]


def _even_out(
    part_of: dict[str, int],
    classes: Mapping[str, Set[str]],
    images: Mapping[str, Mapping[Pair, int]],
    shares: Sequence[float],
    seed: str,
) -> None:
    """Let units of two parts change places while that brings the parts' shares of the images nearer to `shares`. They
    have the same pairs, and a class that only one of them has comes where Webster's method would have it as well, so
    the dealing of patients stays as even as it was.

    What shrinks is a chi-squared distance, summed over pairs: over parts, (share of the pair's images - share)^2 /
    share. It falls with every exchange, so this ends; it may end before nothing is left to gain.
    """
    kinds: dict[frozenset[Pair], list[str]] = {}
    for unit in sorted(part_of, key=lambda unit: draw(seed, unit)):
        kinds.setdefault(frozenset(images[unit]), []).append(unit)
    pairs = sorted({pair for its in images.values() for pair in its})
    totals = {pair: sum(its.get(pair, 0) for its in images.values()) for pair in pairs}
    counts = Counter((each, part_of[unit]) for unit in part_of for each in classes[unit])
    share = np.array(shares)
    got = {pair: np.zeros(len(shares)) for pair in pairs}
    for unit, part in part_of.items():
        for pair, count in images[unit].items():
            got[pair][part] += count
    for pair in pairs:
        got[pair] /= totals[pair]

    def welcome(unit: str, other: str) -> bool:
        """Whether the classes that only one of two units has may change places with it."""
        source, target = part_of[unit], part_of[other]
        return all(
            (2 * counts[each, into] + 1) / shares[into] <= (2 * counts[each, out] - 1) / shares[out]
            for which, out, into in (
                (classes[unit] - classes[other], source, target),
                (classes[other] - classes[unit], target, source),
            )
            for each in which
        )

    def exchange(unit: str, other: str) -> None:
        for name, into in ((unit, part_of[other]), (other, part_of[unit])):
            for pair, count in images[name].items():
                got[pair][part_of[name]] -= count / totals[pair]
                got[pair][into] += count / totals[pair]
            counts.subtract((each, part_of[name]) for each in classes[name])
            counts.update((each, into) for each in classes[name])
        part_of[unit], part_of[other] = part_of[other], part_of[unit]

    owned_by = {
        kind: {pair: np.array([images[unit][pair] / totals[pair] for unit in units]) for pair in sorted(kind)}
        for kind, units in kinds.items()
    }
    for _ in range(EXCHANGE_ROUNDS):
        exchanged = False
        for kind, units in kinds.items():
            for index, unit in enumerate(units):
                others = units[index + 1 : index + 1 + EXCHANGE_CANDIDATES]
                mine, theirs = part_of[unit], np.array([part_of[other] for other in others], int)
                # one operation at a time on each element, and no sum over an axis: the last bit is the same everywhere
                change = np.zeros(len(others))
                for pair, has in owned_by[kind].items():
                    more = has[index + 1 : index + 1 + EXCHANGE_CANDIDATES] - has[index]
                    change += more * (
                        (2 * got[pair][mine] + more) / share[mine] - (2 * got[pair][theirs] - more) / share[theirs]
                    )
                change[theirs == mine] = 0
                for best in np.argsort(change, kind="stable"):
                    if change[best] > -EXCHANGE_GAIN:
                        break
                    if welcome(unit, others[best]):
                        exchange(unit, others[best])
                        exchanged = True
                        break
        if not exchanged:
            break


def draw(seed: str, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}\n{name}".encode(), digest_size=8).digest())
