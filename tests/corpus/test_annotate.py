import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.corpus.acquire.sources import collect
from groundup.corpus.annotate import corpus_quality
from groundup.corpus.annotate import measure as module
from groundup.corpus.annotate.measure import annotate, host_of, kind_of, scrub_addresses
from groundup.corpus.archive.warc import WarcWriter
from groundup.corpus.classify import linear
from groundup.corpus.config import AnnotationsConfig, SourceConfig

ADDRESS = "<function load at 0x7f3c8386ca90> 'libc.so.6', handle 7f8ed45132e0 at 0x7f8ed4a1>"
WORDS = ["compiler", "language", "reads", "program", "memory", "value", "register", "loop", "branch", "table", "stack"]


def prose(seed, words=120):
    return " ".join(np.random.default_rng(seed).choice(WORDS, words)) + f" number{seed}."


def html(seed, extra=""):
    body = f"<p>{prose(seed)}</p><p>{extra}</p>"
    return f"<html><head><title>Page {seed}</title></head><body>{body}</body></html>".encode()


@pytest.fixture
def pages(tmp_path):
    with WarcWriter(tmp_path / "docs.warc.gz") as warc:
        for seed in range(6):
            warc.response(f"https://docs.net:80/{seed}", 200, [("Content-Type", "text/html")], html(seed))
        warc.response("https://docs.net/0", 200, [("Content-Type", "text/html")], html(0))
        warc.response("https://docs.net/0", 200, [("Content-Type", "text/html")], html(0))  # the same page once more
        warc.response("https://www.docs.net:80/2/?utm_source=x", 200, [("Content-Type", "text/html")], html(20))
        warc.response("https://docs.net/near", 200, [("Content-Type", "text/html")], html(1, "mail jane@acme.com now"))
    with WarcWriter(tmp_path / "code.warc.gz") as warc:
        for seed in range(10, 14):
            warc.resource(f"file:///stdlib/m{seed}.py", "text/x-python", f"x = 1  # {prose(seed)}\n".encode())
        warc.resource("file:///stdlib/address.py", "text/x-python", ADDRESS.encode())
        warc.resource("file:///stdlib/empty.py", "text/x-python", b"")
        warc.resource("file:///stdlib/rule.txt", "text/plain", b"---- ====")
    return [(tmp_path / "docs.warc.gz", "reference"), (tmp_path / "code.warc.gz", "code")]


def rows(out):
    return [row for path in sorted(out.glob("annotations-*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_rows_say_what_they_should(pages, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_quality, "MIN_CHUNKS", 1)
    counts = annotate(pages, tmp_path / "out", AnnotationsConfig(), workers=1, label="annotate")
    found = {row["url"]: row for row in rows(tmp_path / "out")}
    assert not (tmp_path / "out" / "pass1").exists()
    assert counts["pages"] == 17 and counts["repeated_pages"] == 1 and counts["documents"] == 16
    assert counts["empty"] == 1 and counts["lost"] == 0 and counts["memory_addresses"] == 3
    assert counts["exact_duplicates"] == 1 and counts["near_duplicates"] == 1
    assert counts["personal"] == {"email": 1}
    page, copy = found["https://docs.net:80/0"], found["https://docs.net/0"]
    original, other = sorted((page, copy), key=lambda row: row["id"])
    assert (original["duplicate_of"], other["duplicate_of"]) == (None, original["id"])
    assert original["cluster"] == other["cluster"] == original["id"]
    assert counts["same_urls"] == 1
    refetched = found["https://www.docs.net:80/2/?utm_source=x"]  # one character longer than what it was before
    assert found["https://docs.net:80/2"]["same_url_as"] == refetched["id"] and refetched["same_url_as"] is None
    near = found["https://docs.net/near"]
    assert found["https://docs.net:80/1"]["near_duplicate_of"] == near["id"] == near["cluster"]  # the longer one stays
    assert page["host"] == "docs.net" and page["kind"] == "html" and page["title"] == "Page 0"
    code = found["file:///stdlib/m10.py"]
    assert code["host"] == "stdlib" and code["kind"] == "code" and code["template_lines"] == []
    assert "0x7f3c" not in found["file:///stdlib/address.py"]["text"]
    assert counts["quality_training_chunks"]["en"] > 0
    reference = sorted(row["quality"] for row in found.values() if row["domain"] == "reference")
    assert 0 < reference[0] < 0.5 < reference[-1] < 1


def test_two_files_of_one_url_are_two_documents_and_one_file_twice_is_one(tmp_path):
    archives = []
    for number, owner in enumerate(("alice", "bob", "alice")):
        folder = tmp_path / owner / "notes"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "1.md").write_text(prose(number % 2))
        collect(SourceConfig(source=str(folder), domain="d"), tmp_path / "pages", str(number), 1.0, "test")
        archives.append((tmp_path / "pages" / f"{number}.warc.gz", "d"))
    counts = annotate(archives, tmp_path / "out", AnnotationsConfig(), workers=1, label="annotate")
    assert [row["url"] for row in rows(tmp_path / "out")] == ["file:///notes/1.md"] * 2
    assert (counts["documents"], counts["repeated_pages"], counts["same_urls"]) == (2, 1, 0)


def test_bytes_do_not_depend_on_workers_or_hash_seed(pages, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD_PAGES", 4)
    annotate(pages, tmp_path / "one", AnnotationsConfig(), workers=1)
    code = (
        "import sys; from pathlib import Path\n"
        "from groundup.corpus.annotate import measure as m; from groundup.corpus.config import AnnotationsConfig\n"
        "if __name__ == '__main__':\n"
        "    m.SHARD_PAGES, m.MAX_PIPE_BYTES = 4, 2000\n"
        "    pages = [(Path(sys.argv[1]), 'reference'), (Path(sys.argv[2]), 'code')]\n"
        "    for workers in (2, 5):\n"
        "        m.annotate(pages, Path(sys.argv[3]) / str(workers), AnnotationsConfig(), workers)\n"
    )
    script = tmp_path / "more.py"
    script.write_text(code)
    source = str(Path(module.__file__).parents[3])
    subprocess.run(
        [sys.executable, script, pages[0][0], pages[1][0], tmp_path / "more"],
        env={**os.environ, "PYTHONPATH": source, "PYTHONHASHSEED": "7"},
        check=True,
    )
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(names) == 6
    for workers in ("2", "5"):
        assert names == sorted(path.name for path in (tmp_path / "more" / workers).iterdir())
        for name in names:
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "more" / workers / name).read_bytes()


def test_bodies_go_to_another_process_in_a_file_that_does_not_stay(pages, tmp_path, monkeypatch):
    batch = list(module.read_pages(pages[0][0], module.Losses()))
    shards = [tmp_path / name for name in ("here.arrow", "sent.arrow")]
    job, other = ((batch, "reference", AnnotationsConfig(), shard, b"same") for shard in shards)
    assert module._with_bodies_in_file(other) is other  # so few bytes are soon through a pipe
    monkeypatch.setattr(module, "MAX_PIPE_BYTES", 1)
    sent = module._with_bodies_in_file(other)
    assert (tmp_path / "sent.bodies").read_bytes() == b"".join(page.body for page in batch)
    assert not any(page.body for page in sent[0])
    assert module._measure(*job) == module._measure(*sent) == len(batch)
    assert shards[0].read_bytes() == shards[1].read_bytes()
    assert not (tmp_path / "sent.bodies").exists()


def test_resuming_with_other_workers_after_a_kill_gives_the_same_bytes(pages, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD_PAGES", 4)
    annotate(pages, tmp_path / "whole", AnnotationsConfig(), workers=1)
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from groundup.corpus.annotate import measure as m; from groundup.corpus.config import AnnotationsConfig\n"
        "m.SHARD_PAGES, real = 4, m._measure\n"
        "def killed_at_the_third(*job):\n"
        "    if job[3].name == 'docs-00002.arrow':\n"
        "        job[3].with_name(job[3].name + '.partial').write_bytes(b'half')\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(*job)\n"
        "m._measure = killed_at_the_third\n"
        "m.annotate([(Path(sys.argv[1]), 'reference'), (Path(sys.argv[2]), 'code')], Path(sys.argv[3]), AnnotationsConfig(), 1)\n"
    )
    out = tmp_path / "resumed"
    killed = subprocess.run(
        [sys.executable, "-c", code, pages[0][0], pages[1][0], out],
        env={**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[3])},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    done = {path: path.stat().st_mtime_ns for path in (out / "pass1").glob("*.arrow")}
    assert [path.name for path in sorted(done)] == ["docs-00000.arrow", "docs-00001.arrow"]
    found = {}

    def look(folder):
        found.update({path: path.stat().st_mtime_ns for path in folder.glob("*.arrow")})

    monkeypatch.setattr(module, "shutil", SimpleNamespace(rmtree=look))
    annotate(pages, out, AnnotationsConfig(), workers=2)
    assert len(found) == 5 and done.items() < found.items()  # those that were there were not made again
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in out.iterdir() if path.is_file())
    assert all((tmp_path / "whole" / name).read_bytes() == (out / name).read_bytes() for name in names)


def test_a_shard_that_is_there_is_not_measured_again_unless_it_is_damaged_or_its_pages_changed(pages, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD_PAGES", 4)
    measured = []
    real = module._measure
    monkeypatch.setattr(module, "_measure", lambda *job: measured.append(job[3].name) or real(*job))
    monkeypatch.setattr(module.corpus_pass, "read_columns", lambda shards: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        annotate(pages, tmp_path / "out", AnnotationsConfig(), workers=1)
    assert len(measured) == 5
    measured.clear()
    with WarcWriter(pages[1][0]) as warc:
        warc.resource("file:///stdlib/other.py", "text/x-python", b"y = 2")
    damaged = tmp_path / "out" / "pass1" / "docs-00001.arrow"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    monkeypatch.undo()
    monkeypatch.setattr(module, "SHARD_PAGES", 4)
    monkeypatch.setattr(module, "_measure", lambda *job: measured.append(job[3].name) or real(*job))
    annotate(pages, tmp_path / "out", AnnotationsConfig(), workers=1)
    assert measured == ["docs-00001.arrow", "code-00000.arrow"]
    assert [row["url"] for row in rows(tmp_path / "out") if row["domain"] == "code"] == ["file:///stdlib/other.py"]


def test_without_positives_there_is_no_quality(pages, tmp_path):
    counts = annotate(pages[1:], tmp_path / "out", AnnotationsConfig(), workers=1)
    assert counts["quality_training_chunks"] == {} and sum(counts["without_quality"].values()) > 0
    assert {row["quality"] for row in rows(tmp_path / "out")} == {None}


def test_the_users_classifiers_judge_every_page_and_a_new_one_judges_again(pages, tmp_path):
    def classifier(name, bias):
        weights = np.zeros((1 << linear.BITS, 1), np.float32)
        path = tmp_path / f"{name}.npz"
        linear.Classifier([name], weights, np.array([bias], np.float32), languages=["en"]).save(path)
        return str(path)

    (tmp_path / "words.txt").write_text("compiler\n")
    settings = AnnotationsConfig(
        toxicity_classifier=classifier("toxic", -30.0),
        quality_classifier=classifier("en", 0.0),
        domain_classifier=classifier("docs", 30.0),
        toxic_words=str(tmp_path / "words.txt"),
    )
    annotate(pages, tmp_path / "out", settings, workers=1)
    page = next(row for row in rows(tmp_path / "out") if row["url"] == "https://docs.net/near")
    assert page["toxic_words"] == page["text"].lower().split().count("compiler") > 0
    assert page["toxicity"] < 1e-9 and page["calibrated_quality"] == 0.5
    assert (page["domain_class"], page["domain_score"]) == ("docs", 1.0)
    before = module._classifier_digests(settings)
    classifier("toxic", 3.0)
    assert module._classifier_digests(settings) != before
    with pytest.raises(UserError, match=r"annotations\.quality_classifier: .*no such file"):
        annotate(pages, tmp_path / "out", AnnotationsConfig(quality_classifier="missing.npz"), workers=1)


def test_no_pages_are_refused(tmp_path):
    WarcWriter(tmp_path / "none.warc.gz").file.close()
    with pytest.raises(UserError, match="no page in"):
        annotate([(tmp_path / "none.warc.gz", "x")], tmp_path / "out", AnnotationsConfig(), 1)


def test_two_files_of_one_name_are_refused(tmp_path):
    with pytest.raises(UserError, match="rename one"):
        annotate([(tmp_path / "a.warc.gz", "x"), (tmp_path / "b" / "a.warc", "x")], tmp_path / "out", AnnotationsConfig(), 1)


def test_scrub_addresses():
    text, count = scrub_addresses(ADDRESS)
    assert text == "<function load at 0x…> 'libc.so.6', handle 0x… at 0x…>" and count == 3
    for other in ("at 0xff", "the mask 0xdeadbeef", "to handle decades", "handle facade1", "at 0x12345678901234567890"):
        assert scrub_addresses(other) == (other, 0)


@given(st.text())
def test_scrubbing_twice_changes_nothing_more(text):
    assert scrub_addresses(scrub_addresses(text)[0]) == (scrub_addresses(text)[0], 0)


def test_kind_and_host():
    assert kind_of("text/html", "https://a.org/x.py") == "html"
    assert kind_of("text/plain", "file:///stdlib/ast.py") == "code"
    assert kind_of("text/x-rst", "file:///peps/pep-0008.rst") == kind_of("text/plain", "https://a.org/b") == "text"
    assert host_of("https://a.org:8080/x") == "a.org"
    assert host_of("file:///stdlib/json/decoder.py") == "stdlib"
