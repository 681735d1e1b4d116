"""python tests/killed_inference.py FOLDER NUM_KILLS

Kill `pipeline.infer` again and again, at random moments of its work, and look at every file after
each kill; then let it complete. Each attempt is a process of its own, forked after one inference in
this one, so that the kills fall into the work and not into the first imports. FOLDER holds `run` (a
model) and `data/cohort.json`.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

from tqdm import tqdm

from pipeline import infer
from pipeline.data.files import TEMPORARY_NAME

VARYING = {"log.txt", "run.lock"}
"""Names whose content differs from run to run; all others are compared byte for byte, records by
what they say of their outputs."""


def start(root: Path, out: Path) -> int:
    """Start an inference in a process of its own and return its id."""
    process = os.fork()
    if process:
        return process
    # Its own lock lies in memory that forked processes share: one that is killed would keep it.
    tqdm.set_lock(threading.RLock())
    with (root / "said.txt").open("w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    os._exit(segment(root, out))


def segment(root: Path, out: Path) -> int:
    """Run the verb and return its exit code."""
    words = ["-m", root / "run", root / "data" / "cohort.json", "-o", out, "--probabilities"]
    return infer.main(list(map(str, words)))


def check(out: Path, reference: Path) -> int:
    """Assert that whatever has a final name is whole and right; return the number of records."""
    num_records = 0
    for path in out.glob("*"):
        if path.name in VARYING or TEMPORARY_NAME.fullmatch(path.name):
            continue
        if path.suffix == ".json" and not path.name.startswith("."):
            outputs = json.loads(path.read_text())["outputs"]
            for name, digest in outputs.items():
                assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest, name
            num_records += 1
        else:
            assert path.read_bytes() == (reference / path.name).read_bytes(), path.name
    return num_records


def main(root: Path, num_kills: int) -> None:
    """Make the reference, kill, check, complete, compare."""
    reference, out = root / "reference", root / "out"
    assert segment(root, root / "first") == 0
    begun = time.monotonic()
    assert os.waitpid(start(root, reference), 0)[1] == 0, (root / "said.txt").read_text()
    whole_s = time.monotonic() - begun
    generator = random.Random(num_kills)  # noqa: S311 - moments, no secrets
    num_killed, num_temporaries, counts = 0, 0, []
    while num_killed < num_kills:
        process = start(root, out)
        time.sleep(generator.uniform(0, whole_s))
        os.kill(process, signal.SIGKILL)
        killed = os.waitpid(process, 0)[1] == signal.SIGKILL
        num_killed += killed
        num_temporaries += any(TEMPORARY_NAME.fullmatch(path.name) for path in out.glob(".*"))
        counts.append(check(out, reference))
        if not killed and out.is_dir():  # it had ended: begin anew
            shutil.rmtree(out)
    assert os.waitpid(start(root, out), 0)[1] == 0, (root / "said.txt").read_text()
    check(out, reference)
    assert {path.name for path in out.iterdir()} == {path.name for path in reference.iterdir()}
    print(
        f"{num_killed} kills in {whole_s:.1f} s of work each, {num_temporaries} in the midst of a "
        f"file, {counts} cases finished at each; the rerun completed"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
