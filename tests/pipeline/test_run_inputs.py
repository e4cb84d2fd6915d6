"""What a run builds on counts by its content, and what it left behind is checked before it is believed."""

import json
import os
import shutil
from pathlib import Path

import pytest

from groundup.core import files, plain_files
from groundup.core.errors import UserError
from groundup.corpus.archive.warc import WarcWriter, digest_of_pages
from groundup.pipeline import steps
from groundup.pipeline.recipe import Recipe
from groundup.pipeline.run import Run, Step, open_stage

PAGES = {"sources": [{"source": "topics:", "domain": "reference"}]}
TEXT = "The little model number {0} reads a long sentence about things of many kinds, every day. " * 12


def recipe(sources=PAGES["sources"], **sections):
    return Recipe.model_validate({"name": "toy", "threads": 1, "pages": {"sources": sources}, **sections})


def local(path, domain="own"):
    return {"source": str(path), "domain": domain}


def copying(*paths):
    """A stage that reads `paths`."""

    def make(context):
        (context.work / "all.txt").write_text("".join(p.read_text() for p in paths if p.is_file()))
        return {}

    return make


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "own" / "deep").mkdir(parents=True)
    (tmp_path / "own" / "a.txt").write_text(TEXT.format(1))
    (tmp_path / "own" / "deep" / "b.txt").write_text(TEXT.format(2))
    return tmp_path / "own"


def rewrite(folder):
    """Same size, same time: only the content tells."""
    path = folder / "a.txt"
    before = path.stat()
    path.write_text(TEXT.format(3))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        rewrite,
        lambda folder: (folder / "c.txt").write_text("x"),
        lambda folder: (folder / "deep" / "b.txt").unlink(),
        lambda folder: (folder / "deep" / "b.txt").rename(folder / "deep" / "c.txt"),
    ],
)
def test_a_source_that_changed_is_noticed(tmp_path, folder, change):
    pipeline = steps.STANDARD[:1]
    run = Run(tmp_path / "run", recipe([local(folder)]), pipeline)
    run.execute()
    assert [step.state for step in run.plan()] == ["done"]
    change(folder)
    (step,) = run.plan()
    assert step.state == "make" and f"{folder} changed" in step.reason
    assert run.execute()["pages"]["results"]["00-own"]["pages"] in (1, 2, 3)
    assert [step.state for step in run.plan()] == ["done"]


def test_a_file_that_may_not_be_read_is_passed_over_and_counts_once_it_may(tmp_path, folder, monkeypatch):
    run = Run(tmp_path / "run", recipe([local(folder)]), steps.STANDARD[:1])
    closed = folder / "closed.txt"
    closed.write_text("A text that only its owner may read, for now. " * 9)
    opened, digest = plain_files.os.open, files.digest

    def without_permission(path, *arguments):
        if Path(path).name == closed.name:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments)

    def digest_of(path):
        if path == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return digest(path)

    with monkeypatch.context() as patched:
        patched.setattr(plain_files.os, "open", without_permission)
        patched.setattr(files, "digest", digest_of)
        before = run.execute()["pages"]["results"]["00-own"]
        assert before["refused"] == {"refused files": 1}
        assert [step.state for step in run.plan()] == ["done"]
    (step,) = run.plan()
    assert step.state == "make" and f"{folder} changed" in step.reason
    assert run.execute()["pages"]["results"]["00-own"]["pages"] == before["pages"] + 1


def test_a_relative_path_that_is_not_there_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"notes: no such source in {tmp_path}: give"):
        Run(tmp_path / "run", recipe([local("notes")]), steps.STANDARD[:1]).plan()


def test_a_wrong_path_is_known_before_the_sources_before_it_are_read(tmp_path, folder):
    run = Run(tmp_path / "run", recipe([local(folder), local(tmp_path / "absent")]), steps.STANDARD[:1])
    with pytest.raises(UserError, match="absent: no such source"):
        run.execute()
    assert not (tmp_path / "run").exists()


def test_every_file_of_a_given_tokenizer_and_model_counts(tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json", "model.safetensors"):
        (tmp_path / name).write_text("x")
    given = recipe(tokenizer={"folder": str(tmp_path)}, base={"start_from": str(tmp_path)})
    by_name = {stage.name: stage for stage in steps.STANDARD}
    small = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json"}
    assert {path.name for path in by_name["tokenizer"].files(given)} == small
    assert {path.name for path in by_name["base"].files(given)} == small | {"model.safetensors"}


def test_an_input_that_changes_while_it_is_read_is_said(tmp_path):
    given = tmp_path / "given.txt"
    given.write_text("a")

    def make(context):
        given.write_text("b")
        return {}

    run = Run(tmp_path / "run", recipe(), (Step("corpus", (), make, files=lambda recipe: [given]),))
    with pytest.raises(UserError, match=r"given\.txt changed while step corpus read it"):
        run.execute()
    assert not (tmp_path / "run" / "corpus").exists()


def archive(path, bodies, date, monkeypatch):
    class Clock:
        @staticmethod
        def now(zone):
            return date

    monkeypatch.setattr("groundup.corpus.archive.warc.datetime", Clock)
    with WarcWriter(path) as warc:
        for url, body in bodies.items():
            warc.response(url, 200, [("Content-Type", "text/html"), ("Date", str(date))], body)
    return digest_of_pages(path)


def test_pages_are_the_same_whenever_they_were_fetched(tmp_path, monkeypatch):
    from datetime import UTC, datetime

    bodies = {"https://a.org/": b"<p>one</p>", "https://a.org/b": b"<p>two</p>"}
    first = archive(tmp_path / "a.warc.gz", bodies, datetime(2020, 1, 1, tzinfo=UTC), monkeypatch)
    second = archive(tmp_path / "b.warc.gz", bodies, datetime(2026, 5, 5, tzinfo=UTC), monkeypatch)
    assert first == second and (tmp_path / "a.warc.gz").read_bytes() != (tmp_path / "b.warc.gz").read_bytes()
    for other in ({**bodies, "https://a.org/b": b"<p>tow</p>"}, {"https://a.org/c": b"<p>one</p>"}, {}):
        assert archive(tmp_path / "c.warc.gz", other, datetime(2020, 1, 1, tzinfo=UTC), monkeypatch) != first


def test_pages_made_again_to_the_same_pages_redo_nothing(tmp_path, folder):
    pipeline, source = steps.STANDARD[:2], [local(folder)]
    before = Run(tmp_path / "run", recipe(source), pipeline).execute()
    shutil.rmtree(tmp_path / "run" / "pages")
    (folder / "._ignored.pdf").write_bytes(b"%PDF")  # another key, the same pages
    stamp = (tmp_path / "run" / "annotations" / "stage.json").stat().st_mtime_ns
    after = Run(tmp_path / "run", recipe(source), pipeline).execute()
    assert after["pages"]["digest"] == before["pages"]["digest"]
    assert (tmp_path / "run" / "annotations" / "stage.json").stat().st_mtime_ns == stamp


class Cut(BaseException):
    """Stands for a kill."""


@pytest.mark.parametrize("harmed", ["00-own.warc.gz", "00-own.json", "00-own.warc.gz.seal", ""])
def test_sources_that_were_finished_are_taken_over_unless_damaged(tmp_path, folder, monkeypatch, harmed, capsys):
    from groundup.corpus.acquire import sources

    collect, collected = sources.collect, []

    def cut_short(source, *rest):
        if source.domain == "last" and not collected.count("last"):
            collected.append("last")
            raise Cut
        collected.append(source.domain)
        return collect(source, *rest)

    monkeypatch.setattr(sources, "collect", cut_short)
    run = Run(tmp_path / "run", recipe([local(folder), local(folder / "a.txt", "last")]), steps.STANDARD[:1])
    with pytest.raises(Cut):
        run.execute()
    if harmed:
        path = tmp_path / "run" / "pages.partial" / harmed
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    made = run.execute()["pages"]
    assert collected == (["own", "last", "own", "last"] if harmed else ["own", "last", "last"])
    assert ("is damaged: made again" in capsys.readouterr().err) == bool(harmed)
    assert sorted(made["outputs"]) == ["00-own.json", "00-own.warc.gz", "01-last.json", "01-last.warc.gz"]


def test_shards_that_were_damaged_are_measured_again(tmp_path, folder, monkeypatch):
    from groundup.corpus.annotate import corpus_pass

    pipeline = steps.STANDARD[:2]
    expected = Run(tmp_path / "whole", recipe([local(folder)]), pipeline).execute()["annotations"]
    with monkeypatch.context() as patched:
        patched.setattr(corpus_pass, "join", lambda *_: (_ for _ in ()).throw(Cut()))
        with pytest.raises(Cut):
            Run(tmp_path / "run", recipe([local(folder)]), pipeline).execute()
    (shard,) = (tmp_path / "run" / "annotations.partial" / "pass1").glob("*.arrow")
    content = bytearray(shard.read_bytes())
    place = content.index(b"little model number 1")
    content[place] ^= 2
    shard.write_bytes(content)
    made = Run(tmp_path / "run", recipe([local(folder)]), pipeline).execute()["annotations"]
    assert made["outputs"] == expected["outputs"] and made["results"] == expected["results"]


def two_stages():
    def first(context):
        (context.work / "a.txt").write_text("a" * context.recipe.base.depth)
        return {"figure": 1.5}

    def second(context):
        (context.work / "b.txt").write_text((context.inputs["first"] / "a.txt").read_text())
        return {}

    return Step("first", (), first, ("base",)), Step("second", ("first",), second, ("dpo",))


@pytest.mark.parametrize("entry", ["results", "digest", "outputs", "seconds", "key"])
def test_what_a_manifest_says_cannot_be_altered_unseen(tmp_path, entry):
    run = Run(tmp_path, recipe(), two_stages())
    run.execute()
    path = tmp_path / "first" / "stage.json"
    manifest = json.loads(path.read_text())
    manifest[entry] = {"results": {"figure": 9.9}, "outputs": {}, "key": {}, "seconds": 1}.get(entry, "0" * 32)
    path.write_text(json.dumps(manifest))
    for act in (run.execute, run.plan, lambda: open_stage(tmp_path, "first")):
        with pytest.raises(UserError, match=r"stage\.json was altered or damaged"):
            act()


def test_a_reader_refuses_an_altered_file_and_a_missing_one(tmp_path):
    Run(tmp_path, recipe(), two_stages()).execute()
    assert open_stage(tmp_path, "first") == tmp_path / "first"
    (tmp_path / "first" / "a.txt").write_text("b")
    with pytest.raises(UserError, match=r"a\.txt was altered"):
        open_stage(tmp_path, "first")
    (tmp_path / "first" / "a.txt").unlink()
    with pytest.raises(UserError, match=r"a\.txt is missing"):
        open_stage(tmp_path, "first")


@pytest.mark.parametrize("name", ["first", "first.partial"])
def test_what_a_link_leads_to_is_never_taken_away(tmp_path, name):
    run = tmp_path / "run"
    Run(run, recipe(), two_stages()).execute()
    elsewhere = tmp_path / "elsewhere"
    if name == "first":
        (run / "first").rename(elsewhere)
    else:
        elsewhere.mkdir()
        (elsewhere / "precious.txt").write_text("x")
    (run / name).symlink_to(elsewhere)
    before = {path: path.read_bytes() for path in elsewhere.iterdir()}
    assert [step.state for step in Run(run, recipe(), two_stages()).plan()] == ["done", "done"]
    Run(run, recipe(base={"depth": 3}), two_stages()).execute()
    assert (run / "first" / "a.txt").read_text() == "aaa" and not (run / "first").is_symlink()
    assert {path: path.read_bytes() for path in elsewhere.iterdir()} == before


@pytest.mark.parametrize("kind", ["file", "dangling link", "file in place of partial", "pipe"])
def test_whatever_stands_in_place_of_a_stage(tmp_path, kind):
    path = tmp_path / ("first.partial" if "partial" in kind else "first")
    if "link" in kind:
        path.symlink_to(tmp_path / "nowhere")
    elif kind == "pipe":
        path.mkdir()
        os.mkfifo(path / "stage.json")
    else:
        path.write_text("x")
        with pytest.raises(UserError, match="no step of a run made it"):
            Run(tmp_path, recipe(), two_stages()).execute()
        assert path.read_text() == "x"
        return
    Run(tmp_path, recipe(), two_stages()).execute()
    assert (tmp_path / "first" / "a.txt").read_text() == "aaaa"


@pytest.mark.parametrize("left", [b"", b'{"seconds": 1e999}', b'{"seconds": 90.0}', b"[" * 20_000])
def test_a_damaged_note_of_the_time_is_no_matter(tmp_path, left):
    first, second = two_stages()
    work = tmp_path / "first.partial"

    def fails(context):
        raise Cut

    with pytest.raises(Cut):
        Run(tmp_path, recipe(), (Step("first", (), fails, ("base",)), second)).execute()
    (work / "elapsed.json").write_bytes(left)
    assert Run(tmp_path, recipe(), (first, second)).execute()["first"]["seconds"] < 5


def test_what_was_made_before_from_outside_is_checked_too(tmp_path):
    """A stage of another run that is given as a source, a tokenizer or a model."""
    Run(tmp_path / "other", recipe(), two_stages()).execute()
    made = tmp_path / "other" / "first" / "a.txt"
    pipeline = (Step("corpus", (), copying(made), files=lambda recipe: [made]),)
    Run(tmp_path / "run", recipe(), pipeline).execute()
    made.write_text("flipped")
    with pytest.raises(UserError, match=r"a\.txt was altered since stage first made it"):
        Run(tmp_path / "again", recipe(), pipeline).execute()


def test_folders_are_told_apart_by_names_and_contents(tmp_path):
    from groundup.core.files import digest_of_all

    def digest_with(**files):
        folder = Path(tmp_path / "f")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
        return digest_of_all(folder)

    assert digest_with(a="x", b="y") == digest_with(b="y", a="x")
    assert len({digest_with(a="x", b="y"), digest_with(a="y", b="x"), digest_with(a="xy"), digest_with(ab="xy")}) == 4
