import json
import os
import subprocess
import sys

import pytest

import groundup
from groundup.cli.options import result

HEAVY = {"torch", "numpy", "pyarrow", "transformers", "tokenizers", "matplotlib", "resiliparse", "fastwarc"}


def refused(outcome):
    """The one line that a person reads; whatever came before it on stderr is progress of stages that had begun."""
    assert outcome.returncode == 2, outcome.stderr
    assert outcome.stdout == "" and "Traceback" not in outcome.stderr
    *before, last = outcome.stderr.splitlines()
    assert last.startswith("groundup: ") and not any(line.startswith("groundup: ") for line in before)
    assert all(line.startswith(("[", "  ")) for line in before), outcome.stderr
    return last


def finished_stages(folder):
    return sorted(path.parent.name for path in folder.glob("*/stage.json"))


def written(tmp_path, source):
    path = tmp_path / "recipe.toml"
    path.write_text(f'[[pages.sources]]\nsource = "{source}"\ndomain = "reference"\n')
    return path


def test_help_names_the_verbs(run_groundup):
    for arguments in ((), ("--help",)):
        outcome = run_groundup(*arguments)
        said = outcome.stdout + outcome.stderr
        assert {"run", "chat"} <= set(said.split()) and "Traceback" not in said
    assert outcome.returncode == 0
    for command, option in (("run", "--dry-run"), ("chat", "--temperature")):
        outcome = run_groundup(command, "--help")
        assert outcome.returncode == 0 and option in outcome.stdout


@pytest.mark.parametrize("dry_run", [False, True], ids=["help", "dry run"])
def test_looking_does_not_wait_for_torch(environment, tiny_recipe, tmp_path, dry_run):
    """Unless a model is to be trained: then its sizes and the machine's rate are looked up by it."""
    folder = tmp_path / "run"
    fewer = 'standard=["pages", "annotations", "corpus", "tokenizer", "tokens"]'
    arguments = ["run", str(tiny_recipe), "--run", str(folder), "--set", fewer, "--dry-run"] if dry_run else ["--help"]
    command = [sys.executable, "-X", "importtime", "-m", "groundup", *arguments]
    outcome = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert outcome.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in outcome.stderr.splitlines() if "|" in line}
    assert "groundup.cli" in imported and not imported & (HEAVY if dry_run else HEAVY | {"rich", "pydantic", "jinja2"})
    if dry_run:
        assert not folder.exists()
        plan = json.loads(outcome.stdout.splitlines()[-1])["plan"]
        assert [*plan] == ["pages", "annotations", "corpus", "tokenizer", "tokens", "report"] and set(plan.values()) == {"make"}


def test_unknown_key(run_groundup, tiny_recipe, tmp_path):
    outcome = run_groundup("run", tiny_recipe, "--run", tmp_path / "run", "--set", "base.dept=3")
    assert refused(outcome).endswith("unknown key base.dept; did you mean base.depth?")
    assert outcome.stderr.count("\n") == 1 and not (tmp_path / "run").exists()


def test_missing_recipe(run_groundup, tmp_path):
    outcome = run_groundup("run", tmp_path / "nowhere.toml", "--run", tmp_path / "run")
    assert "no such recipe" in refused(outcome)
    assert not (tmp_path / "run").exists()


def test_an_error_of_several_lines_is_said_in_one(run_groundup, tiny_recipe, tmp_path):
    outcome = run_groundup("run", tiny_recipe, "--run", tmp_path / "run", "--set", "base.de\npth=3")
    refused(outcome)
    assert outcome.stderr.count("\n") == 1


@pytest.mark.parametrize("below", ["", "run"], ids=["a file", "below a file"])
def test_run_folder_that_cannot_be(run_groundup, tiny_recipe, tmp_path, below):
    file = tmp_path / "file"
    file.write_text("mine")
    outcome = run_groundup("run", tiny_recipe, "--run", file / below if below else file)
    assert str(file) in refused(outcome)
    assert file.read_text() == "mine"


def test_looking_refuses_a_file_for_a_run_folder_too(groundup_here, tiny_recipe, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "a file, where a run's folder" in refused(groundup_here("run", tiny_recipe, "--run", tmp_path / "file", "--dry-run"))


HOMELESS = "~nobody-of-this-name/a"


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "tiny", "--dry-run", "--set", f"sft.data={HOMELESS!r}"],
        ["run", "tiny", "--dry-run", "--set", f"given.corpus={HOMELESS!r}"],
        ["corpus", "--from", HOMELESS, "--out", "out"], ["data", "convert", HOMELESS, "--to", "out"], ["serve", HOMELESS],
    ],
)  # fmt: skip
def test_the_home_of_nobody_is_one_line(groundup_here, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    assert HOMELESS in refused(groundup_here(*arguments))


@pytest.mark.parametrize("name", ["/dev/null", "/dev/zero"])
def test_a_device_is_no_data(groundup_here, tmp_path, name):
    arguments = ["run", "tiny", "--run", tmp_path / "run", "--dry-run", "--set", f"sft.data={name!r}"]
    assert f"{name}: a device, pipe or socket, which step sft needs" in refused(groundup_here(*arguments))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_run_folder_without_permission(run_groundup, tiny_recipe, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    assert "permission denied" in refused(run_groundup("run", tiny_recipe, "--run", locked / "run"))


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/", "http://no-such-host.invalid/"])
def test_site_that_cannot_be_reached(groundup_here, tmp_path, address):
    folder = tmp_path / "run"
    outcome = groundup_here("run", written(tmp_path, address), "--run", folder)
    assert address in refused(outcome)
    assert finished_stages(folder) == [] and not list(folder.rglob("*.warc.gz"))


@pytest.mark.parametrize("source", ["nowhere.warc.gz", "empty folder", "not a warc"])
def test_source_that_holds_no_pages(groundup_here, tmp_path, source):
    path = tmp_path / "nowhere.warc.gz"
    if source == "empty folder":
        path = tmp_path / "pages"
        path.mkdir()
    elif source == "not a warc":
        path.write_bytes(b"something else\n" * 100)
    folder = tmp_path / "run"
    assert str(path) in refused(groundup_here("run", written(tmp_path, path), "--run", folder))
    assert finished_stages(folder) == []


@pytest.mark.parametrize("pages", [0, 1], ids=["no text", "one short page"])
def test_too_little_to_learn_from_is_said(groundup_here, tmp_path, pages):
    source = tmp_path / "pages"
    source.mkdir()
    (source / "page.txt").write_text("the mouse eats the cheese . " * 30 if pages else "")
    folder = tmp_path / "run"
    refused(groundup_here("run", written(tmp_path, source), "--run", folder, "--set", "corpus.min_words=1"))
    assert "report" not in finished_stages(folder)


def test_chat_with_a_stage_that_is_not_there(groundup_here, tmp_path):
    assert "choose one of base, sft, dpo, ppo" in refused(groundup_here("chat", tmp_path, "--stage", "reward"))
    assert "no finished stage 'sft'" in refused(groundup_here("chat", tmp_path, "--stage", "sft"))


@pytest.mark.parametrize("command", [[], ["run"], ["chat"], ["corpus"], ["tokenizer"], ["tokenizer", "train"], ["ask"]])
def test_short_help_everywhere(run_groundup, command):
    outcome = run_groundup(*command, "-h")
    assert outcome.returncode == 0 and "Usage" in outcome.stdout


def test_version(run_groundup):
    outcome = run_groundup("--version")
    assert outcome.returncode == 0 and outcome.stdout.strip() == f"groundup {groundup.__version__}"


def test_a_message_is_short_and_cannot_command_the_terminal(run_groundup, tmp_path):
    name = "\x1b[2J\x9b\u202e" + "a/" * 400 + "no.toml"
    refusal = refused(run_groundup("run", tmp_path / name))
    assert len(refusal.rstrip("\n")) <= 300 and refusal.rstrip("\n").isprintable()


@pytest.mark.parametrize(
    "arguments",
    [("chat", "x", "--temperature", "HOSTILE"), ("chat", "x", "--stage", "HOSTILE"), ("HOSTILE",), ("chat", "--HOSTILE", "x"),
     ("chat", "x", "HOSTILE"), ("chat",), ("chat", "x", "--max-tokens"), ("tokenizer", "HOSTILE"), ("run", "HOSTILE"),
     ("tokenizer", "train", "x", "--kind", "HOSTILE", "--out", "y"), ("corpus", "--workers", "HOSTILE"), ("tokenizer", "train")],
    ids=" ".join,
)  # fmt: skip
def test_arguments_that_cannot_be_are_said_in_one_line_that_commands_no_terminal(arguments, monkeypatch, capsys, tmp_path):
    from groundup import cli

    hostile = "a\x1b[2J\x1b]0;title\x07\x9b31m\u202e\u2066\udc9b\ufeff" + "b" * 400
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["groundup", *(part.replace("HOSTILE", hostile) for part in arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    out, err = capsys.readouterr()
    assert end.value.code == 2 and out == ""
    assert err.startswith("groundup: ") and err.count("\n") == 1 and len(err) <= 301 and err[:-1].isprintable()


def test_the_traceback_of_a_bug_commands_no_terminal(monkeypatch, capsys):
    from groundup import cli

    def buggy(**_):
        raise TypeError("of \x1b[2J\x9b\u202e")

    monkeypatch.setattr(cli, "app", buggy)
    with pytest.raises(SystemExit) as end:
        cli.main()
    out, err = capsys.readouterr()
    assert end.value.code == 1 and out == "" and "Traceback" in err and "of \\x1b[2J\\x9b\\u202e" in err
    assert all(character.isprintable() or character == "\n" for character in err)


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [
        ("tokenizer train", "--rule", "--pattern"),
        ("tokenizer sweep", "--rule", "--pattern"),
        ("tokenizer sweep", "--context", "--context-length"),
        ("scale plan", "--context", "--context-length"),
    ],
)
def test_an_old_option_is_refused_with_its_new_name(groundup_here, command, old, new):
    assert f": {old} is called {new} now; `groundup {command} -h`" in refused(groundup_here(*command.split(), old, "1"))
    assert new in groundup_here(*command.split(), "-h").stdout


def test_several_files_after_one_option_are_explained(groundup_here):
    said = groundup_here("sft", "model", "--data", "a.jsonl", "b.jsonl", "--out", "out")
    assert said.returncode == 2
    assert "unexpected extra argument(s) (b.jsonl); --data takes one value: give it again for each" in said.stderr


def test_what_is_not_defined_is_null_in_the_result(capsys):
    result({"share": float("nan"), "bounds": [0.5, float("inf")], "n": 0})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {"share": None, "bounds": [0.5, None], "n": 0}
