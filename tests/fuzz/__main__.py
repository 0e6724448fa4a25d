"""``python -m tests.fuzz TARGET --seconds 600``: look for what breaks for as long as you like.

Damaged: conversions (models to convert), nodes (of the op), operators (of constant expressions) and
sessions (converted models).
Whole, and judged by the numbers they give: products (of the op) and graphs (random models).

Each attempt runs in a child process that a finding may end; the parent says which attempt it was.
``--only SEED:ATTEMPT`` repeats one. For memory errors build the library with
-DONNX_TERNARY_SANITIZE=ON and preload the sanitizers, as .ci/run does.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

SECONDS_AN_ATTEMPT = 120
TARGETS = ("conversions", "graphs", "nodes", "operators", "products", "sessions")


def attempts(target: str) -> Callable[[np.random.Generator], str]:
    """The target as a function of a generator."""
    if target == "nodes":
        from tests.fuzz import nodes

        def try_node(rng: np.random.Generator) -> str:
            variant = nodes.VARIANTS[rng.integers(len(nodes.VARIANTS))]
            return nodes.try_node(*next(nodes.hostile_nodes(variant, rng)), rng)

        return try_node
    if target == "products":
        from tests.fuzz import products

        return products.try_product
    if target == "graphs":
        from tests.fuzz import graphs

        return graphs.try_graph
    if target == "operators":
        from tests.fuzz import operators

        operators.cases()
        return operators.try_operator
    if target == "conversions":
        from tests.fuzz import conversions

        contents = conversions.base_models()
        return lambda rng: conversions.try_model(contents[rng.integers(len(contents))], rng)
    from tests.fuzz import sessions

    models = sessions.base_models()
    return lambda rng: sessions.try_model(models[rng.integers(len(models))], rng)


def child(target: str, seed: int, first: int, seconds: float, place: Path) -> None:
    """Run attempts from ``first`` on; write the number of each to ``place`` before it starts."""
    attempt = attempts(target)
    outcomes: collections.Counter[str] = collections.Counter()
    until = time.monotonic() + seconds
    for number in itertools.count(first):
        place.write_text(str(number))
        faulthandler.dump_traceback_later(SECONDS_AN_ATTEMPT, exit=True)
        outcomes[attempt(np.random.default_rng((seed, number)))] += 1
        if time.monotonic() > until:
            break
    faulthandler.cancel_dump_traceback_later()
    counts = ", ".join(f"{count} {name}" for name, count in sorted(outcomes.items()))
    print(f"{target}: {outcomes.total()} attempts from seed {seed}: {counts}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="SEED:ATTEMPT")
    parser.add_argument("--first", type=int, default=0, help="attempt: behind a finding")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        seed, first = map(int, arguments.only.split(":"))
        with tempfile.NamedTemporaryFile() as place:
            child(arguments.target, seed, first, 0, Path(place.name))
        return 0
    if arguments.child:
        child(
            arguments.target,
            arguments.seed,
            arguments.first,
            arguments.seconds,
            arguments.child,
        )
        return 0
    with tempfile.TemporaryDirectory() as folder:
        return watch(arguments, Path(folder) / "attempt")


def watch(arguments: argparse.Namespace, place: Path) -> int:
    """Run a child until the time is over; 1 if it found something."""
    until = time.monotonic() + arguments.seconds
    first = arguments.first
    while True:
        place.unlink(missing_ok=True)
        command = [sys.executable, "-m", "tests.fuzz", arguments.target, "--child", str(place)]
        command += ["--seconds", str(max(0, until - time.monotonic()))]
        command += ["--seed", str(arguments.seed), "--first", str(first)]
        code = subprocess.run(command, check=False).returncode
        if not code:
            return 0
        number = int(place.read_text()) if place.exists() else first
        at = f"{arguments.target} --only {arguments.seed}:{number}"
        if code > 0 or not is_the_originals(arguments.target, arguments.seed, number):
            print(f"finding (exit code {code}); repeat with {at}")
            return 1
        print(f"onnxruntime ends the process that opens the original: {at}", flush=True)
        first = number + 1


def is_the_originals(target: str, seed: int, number: int) -> bool:
    """Whether a process ended for what onnxruntime does to the model as it was drawn."""
    if target != "graphs":
        return False
    from tests.fuzz import graphs

    return graphs.original_ends_the_process(np.random.default_rng((seed, number)))


if __name__ == "__main__":
    sys.exit(main())
