"""The tests of the core see small changes of it: some planted by hand, a hundred drawn at random."""

from __future__ import annotations

import json
import logging
import os
import random
import time
from datetime import datetime, timezone
from pathlib import Path

import pytest

from tests.long import commit, size, tree_key
from tests.mutants.trial import CACHE, ROOT, Tree, seen_by, trial

PLANTED = json.loads(Path(__file__).with_name("planted.json").read_text(encoding="utf-8"))
RESULT = ROOT / "tests" / "results" / "mutants.json"
SEED = int(os.environ.get("ZIMAGE_SEED", "1234"))
COUNT, MUST_SEE = 100, 90
log = logging.getLogger(__name__)


@pytest.mark.sampled
def test_planted_faults_are_seen(tmp_path: Path) -> None:
    """Each by the test that is named for it, which passes without the fault."""
    faults = random.Random(SEED).sample(PLANTED, size(3, len(PLANTED)))
    tree = Tree(tmp_path)
    try:
        assert tree.tested([fault["test"] for fault in faults], 600.0)["code"] == 0, f"no fault, seed {SEED}"
        for fault in faults:
            source = (ROOT / fault["path"]).read_text(encoding="utf-8")
            assert source.count(fault["was"]) == 1, fault
            with tree.changed(fault["path"], source.replace(fault["was"], fault["became"])):
                found = tree.tested([fault["test"]], 600.0)
            assert found["code"] == 1 and found["failed"], f"not seen (seed {SEED}): {fault}"
    finally:
        tree.close()


@pytest.mark.long
def test_ninety_of_a_hundred_random_mutants_are_seen(record_property) -> None:
    """ZIMAGE_SEED chooses others. What was tried in this state of the tree is not tried again."""
    from tests.mutants.draw import draw  # needs cosmic-ray, which only the long command installs

    begun = time.monotonic()
    mutants, aside = draw(SEED, COUNT)
    kept = CACHE / f"tried-{tree_key(ROOT)}.jsonl"
    tried = dict(map(json.loads, kept.read_text().splitlines())) if kept.exists() else {}
    with trial() as (tree, coverage), kept.open("a") as file:
        for number, mutant in enumerate(mutants, 1):
            if str(mutant) not in tried:
                tried[str(mutant)] = seen_by(tree, coverage, mutant.path, mutant.line, mutant.source)
                file.write(json.dumps([str(mutant), tried[str(mutant)]]) + "\n")
                file.flush()
            log.info("%d: %s\n%s", number, tried[str(mutant)] or "NOT SEEN", mutant)
    unseen = [mutant for mutant in mutants if tried[str(mutant)] is None]
    result = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": commit(ROOT),
        "seed": SEED,
        "drawn": COUNT,
        "seen": COUNT - len(unseen),
        "minutes": round((time.monotonic() - begun) / 60, 1),
        "not seen": [str(mutant).splitlines() for mutant in unseen],
        "set aside, others drawn in their place": aside,
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    record_property("seed", SEED)
    record_property("seen", f"{result['seen']} of {COUNT}")
    assert result["seen"] >= MUST_SEE, f"seed {SEED}: {result['not seen']}"
