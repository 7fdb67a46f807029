"""Plant faults in a copy of the code, one at a time: every one must be caught by a test.

python tests/faults.py            # all
python tests/faults.py nan-let-through hash-in-key

A fault is one replacement of text. The copy is what the tests import; the tests named for the
fault must fail with a failed assertion, and pass on the copy without a fault.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[1]
# Imported before pytest could rewrite their assertions, which are not ours.
IMPORTED = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
SLOW = [
    "hypothesis",
    "pandas",
    "pyarrow",
    "pydantic",
    "scipy.stats",
    "timm",
    "torch",
    "torchvision",
]
COPIED = ("benchmark", "registry", "tests")
# The copy must be what is tested; an assertion here ends pytest with another code than 1.
GUARD = """

def pytest_sessionstart():
    import benchmark, registry
    for package in (benchmark, registry):
        assert str(package.__file__).startswith({root!r}), package.__file__
"""
ASSERTION = re.compile(r"^FAILED (tests/.+?) - (?:AssertionError|assert |Failed: )", re.M)


@dataclass(frozen=True)
class Fault:
    """A planted fault.

    Attributes:
        file: File below the root.
        old: Text that is there exactly once.
        new: Text in its place.
        tests: Test files, or single tests, that must catch it.
    """

    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def contract(entry: str, check: str) -> str:
    """Name the contract test of an entry."""
    return f"tests/test_contract.py::test_an_entry_keeps_its_contract[{entry}: {check}]"


ISLANDS = "An image does not feel its neighbours: alone, reordered or in company"
BALL = "It stays in ball, box and budget, on any image shape and norm"
SAME = "It is random exactly as declared: same seed, same"
ORACLE, STORE, ENGINE = ("tests/test_oracle.py",), ("tests/test_store.py",), "tests/test_engine.py"
TALLY = ("tests/test_tally.py",)

FAULTS = {
    "square-one-window-for-all": Fault(
        "registry/attacks/square.py",
        "place = places(members, corner(rng, chosen, side, shape, 1)[:, 0], side, shape)",
        "top_left = corner(rng, chosen, side, shape, 1)[:1, 0].expand(len(members), 2)\n"
        "        place = places(members, top_left, side, shape)",
        (contract("square", ISLANDS),),
    ),
    "square-global-seed": Fault(
        "registry/attacks/square.py",
        "    rows = problem.rows\n",
        "    torch.manual_seed(0)\n    rows = problem.rows\n",
        (contract("square", "It draws from its own streams only"),),
    ),
    "square-global-draw": Fault(
        "registry/attacks/square.py",
        "stripes = rng.integers(rows, 2, (self._low.shape[1], 1, self._low.shape[3])).bool()",
        "stripes = torch.rand(len(rows), self._low.shape[1], 1, self._low.shape[3]) < 0.5",
        (contract("square", f"{SAME} questions"),),
    ),
    "nes-no-projection": Fault(
        "registry/moves/estimates.py",
        "return project(current - stride * step, centres, threat.eps, threat.norm)",
        "return current - stride * step",
        (contract("nes", BALL),),
    ),
    "writes-into-the-problem": Fault(
        "registry/attacks/square.py",
        "    rows = problem.rows\n",
        "    problem.images.clamp_(min=1e-3)\n    rows = problem.rows\n",
        (contract("square", "It leaves the images and labels it was given as they are"),),
    ),
    "counter-of-the-shard": Fault(
        "benchmark/oracle.py",
        "self.used.index_add_(0, rows, torch.ones_like(rows))",
        "self.used += len(rows)",
        ORACLE,
    ),
    "no-cap-within-a-round": Fault(
        "benchmark/oracle.py",
        "number = self.used[queries.rows] + self._lock.rank + 1",
        "number = self.used[queries.rows] + 1",
        ORACLE,
    ),
    "hit-outside-the-ball": Fault(
        "benchmark/tally.py",
        "inside = (seen.away <= self._radius) & open_",
        "inside = open_",
        ORACLE,
    ),
    "hit-outside-the-box": Fault(
        "benchmark/oracle.py",
        "hits = hits[(shown.amin(1) >= 0) & (shown.amax(1) <= 1)]",
        "hits = hits[shown.amin(1) < 2]",
        ORACLE,
    ),
    "probe-outside-the-ball-is-best": Fault(
        "benchmark/memory.py",
        "better = better[inside]",
        "better = better[inside | True]",
        ("tests/test_memory.py",),
    ),
    "scores-under-label-access": Fault(
        "benchmark/oracle.py",
        "if self.terms.access is not Access.LABEL:",
        "if self.terms.access:",
        ORACLE,
    ),
    "refused-hit-stops": Fault(
        "benchmark/oracle.py",
        "[tally.broken_at > 0 for tally in self.tallies]",
        "[tally.first_hit > 0 for tally in self.tallies]",
        (*ORACLE, ENGINE),
    ),
    "later-hit-hides-one-before-the-checkpoint": Fault(
        "benchmark/tally.py",
        "stretch = torch.bucketize(number[hits], self._marks)",
        "stretch = torch.zeros_like(hits)",
        ORACLE,
    ),
    "nearest-hit-not-pushed": Fault(
        "benchmark/tally.py",
        "pushed = self._pushed(images, rows)",
        "pushed = images",
        TALLY,
    ),
    "curve-lags-by-a-query": Fault("benchmark/curves.py", 'side="right"', 'side="left"', TALLY),
    "one-radius-is-enough": Fault(
        "benchmark/oracle.py",
        "self.finished |= broken.all(0)",
        "self.finished |= broken.any(0)",
        TALLY,
    ),
    "runs-to-the-budget-stop-at-the-ball": Fault(
        "benchmark/oracle.py",
        "if len(hits) and not self.terms.run_to_budget:",
        "if len(hits):",
        TALLY,
    ),
    "other-radii-share-a-run-at-eps": Fault(
        "benchmark/spec.py",
        "if cell.protocol.run_to_budget:",
        "if cell.threat.budget:",
        ("tests/test_radii.py",),
    ),
    "ball-moves-with-the-attack": Fault(
        "benchmark/oracle.py",
        "images=problem.images.clone(), labels=problem.labels.clone()",
        "images=problem.images, labels=problem.labels",
        ORACLE,
    ),
    "nan-let-through": Fault(
        "benchmark/defended.py",
        "if not bool(logits.isfinite().all()):",
        "if bool(logits.isinf().any()):",
        ("tests/test_failures.py::test_a_bad_image_costs_its_own_shard_only",),
    ),
    "noise-shared-by-a-batch": Fault(
        "registry/defenses/rnd.py",
        "noisy = context.rng.normal(context.rows, images.shape[1:]).to(images)",
        "noisy = context.rng.normal(context.rows[:1], images.shape[1:]).to(images)"
        ".expand_as(images).clone()",
        (contract("rnd", "Each query of a call draws noise of its own"),),
    ),
    "unig-without-limits": Fault(
        "registry/defenses/unig.py",
        "scales = (scales - self.alpha * velocity).clamp_(1.0 - self.delta, 1.0 + self.delta)",
        "scales = scales - self.alpha * velocity",
        ("tests/test_unig.py",),
    ),
    "randomised-denied": Fault(
        "registry/defenses/rnd.py",
        "traits=Traits(randomised=True)",
        "traits=Traits()",
        (contract("rnd", f"{SAME} answers"),),
    ),
    "randomised-claimed": Fault(
        "registry/defenses/none.py",
        "traits=Traits(keeps_label=True)",
        "traits=Traits(keeps_label=True, randomised=True)",
        (contract("none", f"{SAME} answers"),),
    ),
    "attack-noise-by-defense": Fault(
        "benchmark/tasks/attack.py",
        "attack_streams(self._cell.attack, self._cell.seed,",
        "attack_streams(self._cell.defense, self._cell.seed,",
        (ENGINE,),
    ),
    "attack-noise-without-seed": Fault(
        "benchmark/tasks/attack.py",
        "attack_streams(self._cell.attack, self._cell.seed,",
        "attack_streams(self._cell.attack, 0,",
        (ENGINE,),
    ),
    "verification-from-counted-stream": Fault(
        "benchmark/tasks/attack.py",
        'audit.Judge(desk(), problem, votes, streams.defense("verify", ids))',
        "audit.Judge(desk(), problem, votes, noise)",
        (ENGINE,),
    ),
    "misread-images-attacked": Fault(
        "benchmark/tasks/attack.py",
        "attacked = 2 * right > draws",
        "attacked = 2 * right >= 0 * draws",
        (ENGINE,),
    ),
    "misread-images-robust": Fault(
        "benchmark/measured.py",
        "(attacked & (self.broken_at > budget))",
        "(self.broken_at > budget)",
        STORE,
    ),
    "broken-at-the-budget-is-robust": Fault(
        "benchmark/measured.py",
        "(attacked & (self.broken_at > budget))",
        "(attacked & (self.broken_at >= budget))",
        STORE,
    ),
    "any-wrong-label-is-the-target": Fault(
        "benchmark/types.py",
        "return predicted == self.targets[rows]",
        "return predicted != self.labels[rows]",
        ("tests/test_objective.py",),
    ),
    "targets-by-attack": Fault(
        "benchmark/tasks/attack.py",
        "targets = draw_targets(labels, ids, dataset.num_classes, cell.seed)",
        "targets = draw_targets(labels, ids, dataset.num_classes, int(cell.attack.name < 'r'))",
        ("tests/test_choices.py",),
    ),
    "worst-case-of-the-average": Fault(
        "benchmark/measured.py",
        "np.minimum.reduce([one.broken_at for one in cells])",
        "min((one.broken_at for one in cells), key=lambda hits: hits.sum())",
        ("tests/test_choices.py",),
    ),
    "repeats-beyond-the-budget": Fault(
        "benchmark/eot.py",
        "sent = (occurrence(rows) + 1) * self._times <= self._oracle.left(rows)",
        "sent = occurrence(rows) * self._times < self._oracle.left(rows)",
        ("tests/test_objective.py",),
    ),
    "repeats-reduced-to-the-first": Fault(
        "benchmark/eot.py",
        "return draws.mean(1)",
        "return draws[:, 0]",
        ("tests/test_objective.py",),
    ),
    "hidden-classes-have-nothing": Fault(
        "benchmark/scores.py",
        "torch.where(shown, chances, rest)",
        "torch.where(shown, chances, 0 * rest)",
        ("tests/test_objective.py",),
    ),
    "square-l2-loses-what-was-clipped": Fault(
        "registry/attacks/square.py",
        "target = (mass + lost[:, None])",
        "target = (mass + 0 * lost[:, None])",
        ("tests/test_square_l2.py",),
    ),
    "signhunt-refuses-ties": Fault(
        "registry/attacks/signhunt.py",
        "kept = loss <= self._best",
        "kept = loss < self._best",
        ("tests/test_signhunt.py",),
    ),
    "simba-asks-a-direction-twice": Fault(
        "registry/attacks/simba.py",
        "self._turn = torch.where(better, self._turn | 1, self._turn) + 1",
        "self._turn = self._turn + 1",
        ("tests/test_simba.py",),
    ),
    "threads-share-a-victim": Fault(
        "benchmark/loading.py",
        "_mine = threading.local()",
        '_mine = type("Shared", (), {})()',
        ("tests/test_backends.py::test_threads_have_victims_of_their_own",),
    ),
    "older-tables-come-last": Fault(
        "benchmark/tables.py",
        "    with store.alone():\n",
        "    if store:\n",
        ("tests/test_verify.py::test_tables_are_not_overwritten_by_older_ones",),
    ),
    "key-forgets-the-seed": Fault(
        "benchmark/spec.py",
        '"images": self.images,\n            "seed": self.seed,\n',
        '"images": self.images,\n',
        (ENGINE,),
    ),
    "hash-in-key": Fault(
        "benchmark/spec.py",
        "return hashlib.sha256(text.encode()).hexdigest()[:16]",
        'return f"{hash(text) % 2**64:016x}"',
        (ENGINE,),
    ),
    "key-forgets-the-company": Fault(
        "benchmark/muster.py",
        "if defense.traits.coupled:",
        "if defense.traits.stateful:",
        (f"{ENGINE}::test_a_coupled_defense_has_the_shard_size_in_its_key_and_no_other_has",),
    ),
    "key-forgets-the-code-of-others": Fault(
        "benchmark/entry.py",
        "return record if self.entry.builtin else",
        "return record if self.entry else",
        (f"{ENGINE}::test_an_edited_plug_in_has_another_key",),
    ),
    "half-written-file": Fault(
        "benchmark/files.py",
        "            file.write(data)\n            file.flush()\n"
        "            os.fsync(file.fileno())\n"
        "        Path(name).chmod(0o644)\n        Path(name).replace(path)\n",
        "            path.write_bytes(data[:9])\n            os.fsync(file.fileno())\n"
        "            path.write_bytes(data)\n        Path(name).unlink()\n",
        STORE,
    ),
    "name-taken-twice": Fault(
        "benchmark/catalogue.py",
        "if name in self._entries:\n            first",
        "if name in ():\n            first",
        ("tests/test_names.py",),
    ),
    "bisects-the-wrong-half": Fault(
        "benchmark/calibration.py",
        "if middle.drop < target else (low, middle.strength)",
        "if middle.drop > target else (low, middle.strength)",
        ("tests/test_calibration.py",),
    ),
    "drop-with-the-wrong-sign": Fault(
        "benchmark/tasks/look.py",
        "lost = base - right",
        "lost = right - base",
        (
            "tests/test_look.py::test_a_noisy_defense_is_looked_at_several_times_and_paired_with_"
            "itself_without_noise",
        ),
    ),
    "stack-hides-noise": Fault(
        "benchmark/stack.py",
        "randomised=any(t.randomised for t in each),",
        "randomised=all(t.randomised for t in each),",
        ("tests/test_stack.py",),
    ),
    "recipe-not-in-the-key": Fault(
        "benchmark/fitting.py",
        '"recipe": dict(defense.recipe())',
        '"recipe": {}',
        ("tests/test_fitting.py",),
    ),
    "trains-the-victim-itself": Fault(
        "benchmark/fitting.py",
        "    victim = copy.deepcopy(victim)\n    with torch.random",
        "    with torch.random",
        ("tests/test_fitting.py",),
    ),
    "every-label-attack-is-ahead": Fault(
        "benchmark/flags.py",
        ".pvalue >= _CHANCE",
        ".pvalue > 1",
        (
            "tests/test_match_drop.py::test_a_label_attack_that_breaks_other_images_only_by_chance_"
            "is_not",
        ),
    ),
    "distance-with-the-common-offset": Fault(
        "benchmark/closeness.py",
        "    return logits - logits.mean(1, keepdim=True)",
        "    return logits",
        ("tests/test_look.py::test_distances_are_what_their_names_say",),
    ),
    "input-site-taken-for-output": Fault(
        "benchmark/sites.py",
        "return module.register_forward_pre_hook(before)",
        "return module.register_forward_hook(after)",
        ("tests/test_feature.py",),
    ),
    "aaa-margin-not-mirrored": Fault(
        "registry/parts/aaa.py",
        "return tau * (cell + 0.5 - alpha * (place - 0.5))",
        "return tau * (cell + 0.5 + alpha * (place - 0.5))",
        ("tests/test_aaa.py",),
    ),
    "ties-lose-the-label": Fault(
        "registry/parts/margins.py",
        "return logits.scatter(1, labels, torch.maximum(logits.gather(1, labels), least))",
        "return logits",
        ("tests/test_rounding.py",),
    ),
    "dent-means-over-the-call": Fault(
        "registry/defenses/dent.py",
        "return entropies.mean() if self.traits.coupled else entropies.sum()",
        "return entropies.mean()",
        ("tests/test_dent.py",),
    ),
    "mixup-draws-the-predicted-class": Fault(
        "registry/defenses/mixup_inference.py",
        "chosen = turn + (known[:, None] & (turn >= place[:, None]))",
        "chosen = turn",
        ("tests/test_mixup_inference.py",),
    ),
    "pni-shares-its-weights": Fault(
        "registry/defenses/pni.py",
        "weights = self._perturbed(victim, context.rows[part], context)",
        "weights = self._perturbed(victim, context.rows[:1].expand(len(part)), context)",
        ("tests/test_pni.py",),
    ),
    "mean-loss-for-loss-of-the-mean": Fault(
        "registry/defenses/rnd_gf.py",
        "return (math.log(len(logits)) - every.logsumexp(0)).mean()",
        "return -every.mean() + 0 * math.log(2)",
        ("tests/test_training.py::test_the_loss_of_the_mean_softmax_is_at_most_the_mean_loss",),
    ),
    "blacklight-half-asleep": Fault(
        "registry/defenses/blacklight.py",
        "near = shared.double() / sizes >= self.threshold",
        "near = shared.double() / sizes >= 2 * self.threshold",
        ("tests/test_blacklight.py",),
    ),
    "purify-forward-noise-too-small": Fault(
        "registry/parts/diffusion.py",
        "decay = times * (_FIRST + (_LAST - _FIRST) / 2 * times)",
        "decay = times * (_FIRST + (_LAST - _FIRST) / 4 * times)",
        ("tests/test_purify.py",),
    ),
    "regress-expects-equality-anywhere": Fault(
        "benchmark/regression.py",
        "if old.get(name) != new.get(name)",
        "if False",
        ("tests/test_regression.py",),
    ),
    "regress-corrects-nothing": Fault(
        "benchmark/chance.py",
        "corrected = holm(np.array([p for *_, p in tests]))",
        "corrected = np.array([p for *_, p in tests])",
        ("tests/test_regression.py",),
    ),
    "regress-reads-old-results": Fault(
        "benchmark/rerun.py",
        "if out and (out / SHARDS).exists()",
        "if False",
        ("tests/test_regress.py::test_a_rerun_does_nothing_from_memory",),
    ),
    "accepts-half-a-run": Fault(
        "benchmark/acceptance.py",
        'if lost := {*shards["cell"]} - {*cells["cell"]}',
        "if lost := set()",
        ("tests/test_accept.py",),
    ),
}


def copy(folder: Path) -> Path:
    """Copy what is tested, with a guard that the copy is what is imported."""
    for name in COPIED:
        ignored = shutil.ignore_patterns("__pycache__", ".*")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    with (folder / "tests" / "conftest.py").open("a", encoding="utf-8") as file:
        file.write(GUARD.format(root=str(folder)))
    return folder


def plant(folder: Path, fault: Fault) -> None:
    """Replace the text of a fault, which must be there exactly once."""
    path = folder / fault.file
    text = path.read_text(encoding="utf-8")
    if text.count(fault.old) != 1:
        raise SystemExit(f"{fault.file} has {text.count(fault.old)} times, not once:\n{fault.old}")
    path.write_text(text.replace(fault.old, fault.new), encoding="utf-8")


def check(folder: Path, tests: list[str], *more: str) -> tuple[int, str]:
    """Run tests on a copy, in this process; return pytest's exit code and what it printed."""
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    os.environ |= {"PYTHONPATH": str(folder), "COLUMNS": "500", "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    options = ["-x", "-rf", "--tb=short", "-p", "no:cacheprovider", *IMPORTED, *more]
    with redirect_stdout(io.StringIO()) as said, redirect_stderr(said):
        code = pytest.main([*options, *tests])
    return int(code), said.getvalue()


def caught_by(fault: Fault | None, tests: list[str], *more: str) -> str:
    """Name the test that caught a fault; empty if none did."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = copy(Path(temporary).resolve())
        if fault:
            plant(folder, fault)
        code, said = check(folder, tests, *more)
    if code == 0:
        return ""
    if code == 1 and (found := ASSERTION.search(said)):
        return found[1].removeprefix("tests/")
    raise SystemExit(f"pytest ended with {code} and no failed assertion:\n{said}")


def _row(name: str, fault: Fault) -> list[str]:
    began = time.monotonic()
    test = caught_by(fault, list(fault.tests), "-n0")
    return [name, test or "ESCAPED", f"{time.monotonic() - began:.1f}"]


def main(names: list[str]) -> int:
    """Plant every fault asked for; 1 if one escapes."""
    chosen = {name: FAULTS[name] for name in names or FAULTS}
    wanted = sorted({test for fault in chosen.values() for test in fault.tests})
    # Each run is a fork of a process that has imported what is slow to import, and nothing of ours.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(SLOW)
    with ProcessPoolExecutor(os.cpu_count(), context, max_tasks_per_child=1) as pool:
        if caught := pool.submit(caught_by, None, wanted, "-nauto").result():
            raise SystemExit(f"without any fault, {caught} fails")
        rows = list(pool.map(_row, chosen, chosen.values()))
    escaped = sum(row[1] == "ESCAPED" for row in rows)
    print(tabulate(rows, headers=["fault", "caught by", "seconds"]))
    print(f"{len(rows) - escaped} of {len(rows)} caught")
    return 1 if escaped else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
