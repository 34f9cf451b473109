"""What a reproducible search costs in idle time: simulated groups, random stage times, the real search and tree.

`reproducible = true` draws suggestion n from the results of trials 1 .. n - lag and waits for them; `false` draws from
whatever has come, with as many trials open. The peer is the second; the figure is the share of time that groups work.
"""

import heapq
import random

from kdtvit_ray.study.search import Outcome, Search
from kdtvit_ray.study.space import Space
from kdtvit_ray.study.tree import StageTree, State


def simulate(groups: int, lag: int, reproducible: bool, trials: int = 120, seed: int = 0) -> tuple[float, float]:
    """(makespan in mean stage times, utilisation) of a study on `groups` groups."""
    plain = {
        "study": {"trials": trials, "lag": lag, "reproducible": reproducible, "sampler": "random", "baselines": []}
        | {"objective_folds": 1},
        "search": {"temperature": [1, 2, 4, 8], "alpha": [0.1, 0.3, 0.5, 0.7, 0.9], "order": "all"},
    }
    space = Space(plain)
    search, tree, rng = Search(space), StageTree(), random.Random(seed)
    idle, now, busy = [f"g{n}" for n in range(groups)], 0.0, 0.0
    ends: list[tuple[float, str, str]] = []
    last: dict[str, str] = {}
    open_trials: dict[int, list[str]] = {}
    while True:
        while (found := search.suggest()) is not None:
            stages = space.plan(found[1])
            tree.join(str(found[0]), [(stage.key, stage.parent) for stage in stages])
            open_trials[found[0]] = [stage.key for stage in stages]
        over = [n for n, keys in open_trials.items() if all(tree.nodes[key].state is State.DONE for key in keys)]
        if over:
            for number in over:
                del open_trials[number]
                search.end(number, Outcome("complete", (rng.random(),)))
            continue
        waiting = []
        for group in idle:
            key = tree.take(group, last.get(group))
            if key is None:
                waiting.append(group)
            else:
                heapq.heappush(ends, (now + rng.lognormvariate(-0.125, 0.5), group, key))  # mean 1
        idle = waiting
        if not ends:
            return now, busy / (now * groups)
        before, (now, group, key) = now, heapq.heappop(ends)
        busy += (groups - len(idle)) * (now - before)
        tree.finish(group, key)
        last[group] = key
        idle.append(group)


def main() -> None:
    print("  groups  lag  reproducible          as they come          longer by")
    for groups in (2, 8, 32):
        for lag in (groups, 2 * groups, 4 * groups):
            ours, theirs = simulate(groups, lag, True), simulate(groups, lag, False)
            told = [f"busy {busy:4.0%}, span {span:5.0f}" for span, busy in (ours, theirs)]
            print(f"  {groups:6d} {lag:4d}  {told[0]}   {told[1]}   {ours[0] / theirs[0] - 1:+.0%}")


if __name__ == "__main__":
    main()
