"""`python -m tests.simulator --seeds 0:2000` runs many seeds; `--seed 17 --trace` prints the events of one."""

import argparse
import time
from collections import Counter

from tests.simulator.crowd import run_seeds
from tests.simulator.world import simulate


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulator", description=__doc__)
    parser.add_argument("--seeds", default="0:300", help="FROM:TO, the last not included")
    parser.add_argument("--seed", type=int, help="one seed only")
    parser.add_argument("--trace", action="store_true", help="print the seed's story")
    parser.add_argument("--coverage", action="store_true", help="print what happened how often")
    requested = parser.parse_args()
    first, _, last = requested.seeds.partition(":")
    hits: Counter[str] = Counter()
    broken, count, tasks, virtual, began = [], 0, 0, 0.0, time.perf_counter()
    alone = None if requested.seed is None else [simulate(requested.seed, trace=requested.trace)]
    for outcome in alone or run_seeds(range(int(first), int(last))):
        hits.update(outcome.hits)
        count, tasks, virtual = count + 1, tasks + outcome.tasks, virtual + outcome.seconds
        if outcome.story:
            print(*outcome.story, sep="\n")
        if outcome.violations:
            broken.append(outcome.seed)
            print(f"seed {outcome.seed}:", *outcome.violations, sep="\n    ", flush=True)
    seconds = time.perf_counter() - began
    if requested.coverage:
        for name, number in sorted(hits.items()):
            print(f"{number:9} {name}")
    print(
        f"{count} seeds, {tasks} tasks, {virtual / 3600:.1f} h of their time in {seconds:.0f} s"
        f" ({count / seconds:.0f} seeds/s); broken: {broken or 'none'}"
    )
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
