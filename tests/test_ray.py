"""Ray, on a cluster of two nodes that the test starts on loopback: the same bytes, and a killed worker changes nothing."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from groundup.core import executor
from groundup.core.errors import UserError
from groundup.corpus.annotate import measure as module
from groundup.corpus.archive.warc import WarcWriter
from groundup.corpus.config import AnnotationsConfig

WORDS = ["compiler", "language", "reads", "program", "memory", "value", "register", "loop", "branch", "table", "stack"]
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed: groundup[ray]")

# A process of its own: what Ray reads of its environment it reads once. Each shard notes on which node it was made; the
# worker that is first at the third one dies of it.
DRIVER = """
import json, os, signal, sys
from pathlib import Path
from types import ModuleType
from groundup.core import ray_tasks
from groundup.corpus.annotate import measure as module
from groundup.corpus.config import AnnotationsConfig

def measure(*job):
    import ray
    notes = job[3].parents[2] / "notes"
    (notes / f"{job[3].name}-{ray.get_runtime_context().get_node_id()}").touch()
    died = notes / "died"
    if job[3].name.endswith("-00002.arrow") and not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*job)

if __name__ == "__main__":
    os.environ.update(ray_tasks.QUIET | ray_tasks.ON_LOOPBACK)
    from ray.cluster_utils import Cluster
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    try:
        module.SHARD_PAGES = 4
        original, module._measure = module._measure, measure
        counts = module.annotate(
            [(Path(sys.argv[1]), "web")], Path(sys.argv[2]), AnnotationsConfig(), 0, ray=cluster.address
        )
        print(json.dumps({"address": cluster.address, "pages": counts["pages"]}))
    finally:
        cluster.shutdown()
"""


@needs_ray
def test_two_nodes_and_a_killed_worker_give_the_same_bytes(tmp_path, monkeypatch):
    with WarcWriter(tmp_path / "web.warc.gz") as warc:
        for seed in range(40):
            words = " ".join(np.random.default_rng(seed).choice(WORDS, 100))
            warc.response(f"https://a.org/{seed}", 200, [("Content-Type", "text/html")], f"<p>{words}</p>".encode())
    (tmp_path / "notes").mkdir()
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    done = subprocess.run(
        [sys.executable, script, tmp_path / "web.warc.gz", tmp_path / "ray"],
        env={**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[3])},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["address"].startswith("127.0.0.1:") and said["pages"] == 40
    notes = [path.name for path in (tmp_path / "notes").iterdir()]
    assert "died" in notes
    assert len({name.rpartition("-")[2] for name in notes if name != "died"}) == 2  # nodes
    monkeypatch.setattr(module, "SHARD_PAGES", 4)
    module.annotate([(tmp_path / "web.warc.gz", "web")], tmp_path / "here", AnnotationsConfig(), workers=1)
    names = sorted(path.name for path in (tmp_path / "here").iterdir())
    assert len(names) == 11 and names == sorted(path.name for path in (tmp_path / "ray").iterdir())
    for name in names:
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "ray" / name).read_bytes()


def test_without_ray_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="ray is not installed"), executor.pool(2, "local"):
        pass


def test_a_node_that_is_not_up_in_time_is_one_line(monkeypatch):
    """Ray raises a plain Exception then."""
    slow = ModuleType("ray")

    def init(**_):
        raise Exception("The current node timed out during startup.\nIt is overloaded.")

    slow.init = init
    monkeypatch.setitem(sys.modules, "ray", slow)
    with pytest.raises(UserError, match=r"ray at local: .*timed out during startup\. It is"), executor.pool(1, "local"):
        pass
