import errno
import json
import math
import os
import signal
from contextlib import suppress
from functools import partial

import numpy as np
import pytest
import torch

from groundup.core.errors import UserError
from groundup.training import checkpoint, loop
from groundup.training.objectives import next_token
from groundup.training.optimizer import Optimizer, one_lr, pretraining_lrs
from groundup.training.schedule import warmup_stable_decay

STEPS = 9


class Killed(BaseException):
    pass


class Toy:
    """A toy pre-training; `kill_at` cuts it off while that step's batch is fetched, `interrupt(step)` is called there."""

    def __init__(self, toy_decoder, folder, kill_at=None, bad_steps=(), interrupt=lambda step: None, **options):
        self.model = toy_decoder(seed=1, scale=0.1)
        self.folder, self.kill_at, self.bad_steps, self.interrupt = folder, kill_at, bad_steps, interrupt
        self.fetched = []
        self.options = {"lr": pretraining_lrs(32)[0], **options}

    def batches(self, step):
        if step == self.kill_at:
            raise Killed
        self.interrupt(step)
        self.fetched.append(step)
        ids = torch.from_numpy(np.random.default_rng(step).integers(50, size=(2, 9)))
        weight = torch.full((1, 8), 1 / 16)
        if step in self.bad_steps:
            weight = weight * math.nan
        return [{"ids": row[None, :-1], "targets": row[None, 1:], "weight": weight} for row in ids]

    def train(self, steps=STEPS, **options):
        return loop.train(
            self.model,
            partial(next_token, dtype=torch.float32),
            self.batches,
            Optimizer(self.model, self.options["lr"]),
            lambda step: warmup_stable_decay(step, steps, 2, 4),
            steps,
            self.folder,
            "toy",
            **{"observe": lambda: {"seen": float(len(self.model.state_dict()))}, "observe_every": 4, **options},
        )

    def weights(self):
        return {name: parameter.detach().numpy().tobytes() for name, parameter in self.model.named_parameters()}

    def metrics(self):
        return (self.folder / "metrics.jsonl").read_bytes()


@pytest.fixture
def every_step(monkeypatch):
    """Checkpoints after every step instead of every 15 seconds."""
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)


def test_metrics_tell_every_step(toy_decoder, tmp_path):
    toy = Toy(toy_decoder, tmp_path)
    history = toy.train()
    rows = [json.loads(line) for line in toy.metrics().decode().splitlines()]
    assert rows == history and [row["step"] for row in rows] == list(range(STEPS))
    assert all({"loss", "grad_norm", "lr"} <= row.keys() for row in rows)
    assert [row["step"] for row in rows if "seen" in row] == [3, 7, 8]
    assert [row["lr"] for row in rows] == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    assert toy.fetched == list(range(STEPS))


def test_training_learns(toy_decoder, tmp_path):
    toy = Toy(toy_decoder, tmp_path)
    fetch, toy.batches = toy.batches, lambda step: fetch(0)
    history = toy.train(steps=25)
    assert history[-1]["loss"] < 0.3 * history[0]["loss"]


@pytest.mark.parametrize("killed_at", range(STEPS))
def test_resumed_at_any_step_ends_with_the_same_bits(toy_decoder, tmp_path, every_step, killed_at):
    whole = Toy(toy_decoder, tmp_path / "whole")
    whole.train()
    with pytest.raises(Killed):
        Toy(toy_decoder, tmp_path / "cut", kill_at=killed_at).train()
    second_kill = (killed_at + STEPS) // 2
    resumed = Toy(toy_decoder, tmp_path / "cut", kill_at=second_kill)
    with pytest.raises(Killed):
        resumed.train()
    assert resumed.fetched == list(range(killed_at, second_kill))
    last = Toy(toy_decoder, tmp_path / "cut")
    history = last.train()
    assert last.fetched == list(range(second_kill, STEPS))
    assert last.weights() == whole.weights()
    assert last.metrics() == whole.metrics()
    assert len(history) == STEPS


@pytest.mark.parametrize("checkpointed", [2, 4])
def test_steps_after_the_last_checkpoint_are_computed_again(toy_decoder, tmp_path, every_step, checkpointed):
    whole = Toy(toy_decoder, tmp_path / "whole")
    whole.train()
    with pytest.raises(Killed):
        Toy(toy_decoder, tmp_path / "cut", kill_at=7).train(checkpoint_multiple=checkpointed)
    resumed = Toy(toy_decoder, tmp_path / "cut")
    resumed.train(checkpoint_multiple=checkpointed)
    assert resumed.fetched[0] == 7 // checkpointed * checkpointed
    assert resumed.weights() == whole.weights() and resumed.metrics() == whole.metrics()


@pytest.mark.parametrize("torn", ["half a line", "lost lines"])
def test_what_a_kill_did_to_the_log_after_the_checkpoint_does_not_matter(toy_decoder, tmp_path, every_step, torn):
    whole = Toy(toy_decoder, tmp_path / "whole")
    whole.train()
    with pytest.raises(Killed):
        Toy(toy_decoder, tmp_path / "cut", kill_at=6).train(checkpoint_multiple=4)
    log = tmp_path / "cut" / "metrics.jsonl"
    content = log.read_bytes()
    log.write_bytes(content[:-9] if torn == "half a line" else b"".join(content.splitlines(True)[:4]))
    resumed = Toy(toy_decoder, tmp_path / "cut")
    resumed.train()
    assert resumed.weights() == whole.weights() and resumed.metrics() == whole.metrics()


def one_bit(content):
    flipped = bytearray(content)
    flipped[content.index(b'"loss": ') + 10] ^= 1  # another digit of the first step's loss
    return bytes(flipped)


@pytest.mark.parametrize(
    "harm", [None, lambda c: b"", lambda c: b'{"step": 0}\n', lambda c: b"\xff\xfe", lambda c: b"[]\n" * 6, one_bit]
)
def test_with_metrics_that_are_lost_or_altered_training_begins_anew(toy_decoder, tmp_path, every_step, harm, capsys):
    whole = Toy(toy_decoder, tmp_path / "whole")
    whole.train()
    with pytest.raises(Killed):
        Toy(toy_decoder, tmp_path / "cut", kill_at=5).train()
    log = tmp_path / "cut" / "metrics.jsonl"
    log.unlink() if harm is None else log.write_bytes(harm(log.read_bytes()))
    capsys.readouterr()
    resumed = Toy(toy_decoder, tmp_path / "cut")
    resumed.train()
    assert "the metrics of its steps differ" in capsys.readouterr().err
    assert resumed.fetched[0] == 0
    assert resumed.weights() == whole.weights() and resumed.metrics() == whole.metrics()


def test_a_large_model_saves_more_seldom(toy_decoder, tmp_path, monkeypatch, replace_time):
    clock, saved = [0.0], []

    def slow_save(*arguments):
        clock[0] += 3.0
        saved.append(arguments[3])

    replace_time(loop, monotonic=lambda: clock[0])
    monkeypatch.setattr(loop, "_save", slow_save)
    Toy(toy_decoder, tmp_path, interrupt=lambda step: clock.__setitem__(0, clock[0] + 10)).train(steps=20)
    assert saved == [2, 9, 16, 20]  # after 15 seconds, then after four times 15, as saving takes four times 0.75


def test_a_kill_while_resuming_keeps_the_metrics(toy_decoder, tmp_path, every_step, monkeypatch):
    """Reading the history back must not put it at risk: whoever rewrites the log does so whole or not at all."""
    whole = Toy(toy_decoder, tmp_path / "whole")
    whole.train()
    with pytest.raises(Killed):
        Toy(toy_decoder, tmp_path / "cut", kill_at=6).train()
    log = tmp_path / "cut" / "metrics.jsonl"
    original = type(log).write_text

    def killed_while_writing(path, text, *arguments, **options):
        original(path, text[: len(text) // 2], *arguments, **options)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(type(log), "write_text", killed_while_writing)
        with suppress(Killed):
            Toy(toy_decoder, tmp_path / "cut", kill_at=6).train()
    resumed = Toy(toy_decoder, tmp_path / "cut")
    resumed.train()
    assert resumed.weights() == whole.weights() and resumed.metrics() == whole.metrics()


def test_a_finished_training_is_not_repeated(toy_decoder, tmp_path):
    first = Toy(toy_decoder, tmp_path)
    first.train()
    again = Toy(toy_decoder, tmp_path)
    history = again.train()
    assert again.fetched == [] and again.weights() == first.weights() and len(history) == STEPS


@pytest.mark.parametrize("harm", ["truncate", "flip"])
def test_a_corrupt_checkpoint_costs_a_step_and_changes_nothing(toy_decoder, tmp_path, every_step, harm):
    whole = Toy(toy_decoder, tmp_path / "whole")
    whole.train()
    with pytest.raises(Killed):
        Toy(toy_decoder, tmp_path / "cut", kill_at=5).train()
    newest = max((tmp_path / "cut").glob("state-*.safetensors"))
    content = bytearray(newest.read_bytes())
    if harm == "flip":
        content[len(content) // 2] ^= 0x10
    newest.write_bytes(content if harm == "flip" else content[: len(content) // 2])
    resumed = Toy(toy_decoder, tmp_path / "cut")
    resumed.train()
    assert resumed.fetched[0] == 4
    assert resumed.weights() == whole.weights() and resumed.metrics() == whole.metrics()


def test_steps_that_are_not_finite_are_skipped_and_counted(toy_decoder, tmp_path):
    toy = Toy(toy_decoder, tmp_path, bad_steps={2, 3, 6})
    history = toy.train()
    assert [row["step"] for row in history if row.get("skipped")] == [2, 3, 6]
    assert all(torch.isfinite(parameter).all() for parameter in toy.model.parameters())
    rows = [json.loads(line, parse_constant=pytest.fail) for line in toy.metrics().decode().splitlines()]
    assert rows[2]["loss"] == "nan" and rows[2]["skipped"] == 1

    skipped = Toy(toy_decoder, tmp_path / "other", bad_steps={0})
    skipped.train(steps=1)
    assert skipped.weights() == Toy(toy_decoder, tmp_path).weights()  # a skipped step changes nothing


def test_skipped_steps_survive_a_kill(toy_decoder, tmp_path, every_step):
    whole = Toy(toy_decoder, tmp_path / "whole", bad_steps={1, 4})
    whole.train()
    with pytest.raises(Killed):
        Toy(toy_decoder, tmp_path / "cut", kill_at=5, bad_steps={1, 4}).train()
    resumed = Toy(toy_decoder, tmp_path / "cut", bad_steps={1, 4})
    history = resumed.train()
    assert resumed.weights() == whole.weights() and resumed.metrics() == whole.metrics()
    assert sum("skipped" in row for row in history) == 2


def test_ten_bad_steps_in_a_row_are_an_error(toy_decoder, tmp_path, every_step):
    with pytest.raises(UserError, match=r"10 steps in a row, up to step 11; lower the learning rate"):
        Toy(toy_decoder, tmp_path / "ten", bad_steps=range(2, 12)).train(steps=15)
    with pytest.raises(UserError, match="10 steps in a row, up to step 11"):
        Toy(toy_decoder, tmp_path / "ten", bad_steps=range(2, 15)).train(steps=15)  # from the state after step 10
    history = Toy(toy_decoder, tmp_path / "nine", bad_steps=[*range(9), *range(10, 19)]).train(steps=20)
    assert sum("skipped" in row for row in history) == 18


class Staged:
    """One weight, and a loss that is given for each step; its gradient is 1, or what `gradient` says of the step."""

    def __init__(self, folder, losses, gradient=lambda step: 1.0, kill_at=None):
        self.model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.ones_(self.model.weight)
        self.folder, self.losses, self.gradient, self.kill_at = folder, losses, gradient, kill_at

    def batches(self, step):
        if step == self.kill_at:
            raise Killed
        return [{"step": torch.tensor(step)}]

    def objective(self, model, batch):
        step = int(batch["step"])
        return model.weight.sum() * self.gradient(step), {"loss": self.losses[step]}

    def train(self):
        optimizer = Optimizer(self.model, one_lr(0.01))
        return loop.train(self.model, self.objective, self.batches, optimizer, lambda step: 1.0, len(self.losses),
                          self.folder, "staged", skip_spikes=True)  # fmt: skip


def skipped(history):
    return [int(row["step"]) for row in history if "skipped" in row]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_skipped_though_the_loss_is(tmp_path, capsys, value):
    staged = Staged(tmp_path, [3.0, 2.0, 1.0], gradient=lambda step: value if step == 1 else 1.0)
    history = staged.train()
    assert skipped(history) == [1] and math.isfinite(history[1]["loss"])
    assert staged.model.weight.item() == pytest.approx(1 - 2 * 0.01, abs=1e-4)  # two steps of AdamW
    assert f"staged: step 1 skipped: the gradient's norm was {value}" in capsys.readouterr().err


LOSSES = [3 + 0.1 * math.sin(step) for step in range(60)]


def test_a_spike_is_skipped_and_a_rise_is_not(tmp_path, capsys):
    losses = list(LOSSES)
    losses[10] = 9.0  # too early to know
    losses[30], losses[45] = 9.0, 4.2
    losses[50] = 3.9  # far out, but by less than a nat
    assert skipped(Staged(tmp_path, losses).train()) == [30, 45]
    assert "step 30 skipped: the loss was 9.00, far above the median 3." in capsys.readouterr().err


def test_noisy_losses_are_no_spikes(tmp_path):
    noisy = (3 + np.random.default_rng(0).normal(size=400)).tolist()
    assert skipped(Staged(tmp_path, noisy).train()) == []


def test_what_a_spike_is_survives_a_kill(tmp_path, every_step):
    losses = [*LOSSES[:40], 9.0, *LOSSES[:5]]
    with pytest.raises(Killed):
        Staged(tmp_path, losses, kill_at=40).train()
    assert skipped(Staged(tmp_path, losses).train()) == [40]


def test_losses_that_stay_high_end_the_training_with_the_reason(tmp_path):
    with pytest.raises(
        UserError, match=r"10 steps in a row, up to step 49; .*at the last the loss was 9.00, far above"
    ):
        Staged(tmp_path, [*LOSSES[:40], *[9.0] * 20]).train()


@pytest.mark.parametrize(("multiple", "continues"), [(1, 4), (2, 4), (3, 3)])
def test_sigterm_saves_and_the_next_run_continues(toy_decoder, tmp_path, capsys, every_step, multiple, continues):
    whole = Toy(toy_decoder, tmp_path / "whole")
    whole.train()
    before = signal.getsignal(signal.SIGTERM)
    cut = Toy(toy_decoder, tmp_path / "cut", interrupt=lambda step: step == 3 and os.kill(os.getpid(), signal.SIGTERM))
    if multiple == 3:  # the signal comes where there is no saving: the state before it counts
        with pytest.raises(Killed):
            Toy(toy_decoder, tmp_path / "cut", kill_at=3).train(checkpoint_multiple=multiple)
    with pytest.raises(SystemExit) as ended:
        cut.train(checkpoint_multiple=multiple)
    assert ended.value.code == 143 and cut.fetched[-1] == 3
    [line] = [line for line in capsys.readouterr().err.splitlines() if "SIGTERM" in line]
    resume = f"run the same command again to resume after step {continues}"
    assert line.strip() == f"toy: stopped by SIGTERM after step 4 of {STEPS}; {resume}"
    assert signal.getsignal(signal.SIGTERM) == before
    resumed = Toy(toy_decoder, tmp_path / "cut")
    resumed.train()
    assert resumed.fetched[0] == continues and resumed.weights() == whole.weights()


def test_two_trainings_in_one_folder_are_refused(toy_decoder, tmp_path):
    def second(step):
        if step == 2:
            with pytest.raises(UserError, match="another training is running in this folder"):
                Toy(toy_decoder, tmp_path / "one").train()
            refused.append(step)

    refused = []
    first = Toy(toy_decoder, tmp_path / "one", interrupt=second)
    first.train()
    undisturbed = Toy(toy_decoder, tmp_path / "two")
    undisturbed.train()
    assert refused == [2] and first.weights() == undisturbed.weights() and first.metrics() == undisturbed.metrics()
    assert not list((tmp_path / "one").glob("*.lock"))


def test_a_full_disk_leaves_the_last_state_and_the_same_bits(toy_decoder, tmp_path, every_step):
    """/dev/full refuses every byte, as a disk without space does."""
    whole = Toy(toy_decoder, tmp_path / "whole")
    whole.train()
    folder = tmp_path / "full"

    def fill(step):
        if step == 5:
            (folder / "state-00000006.safetensors.partial").symlink_to("/dev/full")

    with pytest.raises(OSError, match="No space left") as raised:
        Toy(toy_decoder, folder, interrupt=fill).train()
    assert raised.value.errno == errno.ENOSPC and "state-00000006" in raised.value.filename
    assert checkpoint.latest(folder) == 5
    resumed = Toy(toy_decoder, folder)
    resumed.train()
    assert resumed.fetched[0] == 5
    assert resumed.weights() == whole.weights() and resumed.metrics() == whole.metrics()


def test_the_state_of_another_model_is_refused(toy_decoder, tmp_path):
    Toy(toy_decoder, tmp_path).train()
    other = Toy(lambda **options: toy_decoder(vocab_size=51, **options), tmp_path)
    with pytest.raises(
        UserError, match=r"embed_tokens.weight should be \(51, 32\), is \(50, 32\): the state of another"
    ):
        other.train()


def test_gradients_are_clipped_to_the_norm(toy_decoder, tmp_path):
    norms = []

    class Recorder(Optimizer):
        def step(self, multiplier):
            norms.append(torch.cat([p.grad.flatten() for p in self.parameters.values()]).norm().item())
            super().step(multiplier)

    toy = Toy(toy_decoder, tmp_path)
    history = loop.train(
        toy.model, partial(next_token, dtype=torch.float32), toy.batches, Recorder(toy.model, one_lr(1e-3)),
        lambda step: 1.0, 3, tmp_path, "toy", max_grad_norm=0.01,
    )  # fmt: skip
    assert all(row["grad_norm"] > 0.01 for row in history)
    assert norms == pytest.approx([0.01] * 3, rel=1e-4)


def test_mean_loss_takes_no_gradient(toy_decoder, tmp_path):
    toy = Toy(toy_decoder, tmp_path)
    objective = partial(next_token, dtype=torch.float32)
    expected = sum(objective(toy.model, batch)[0].item() for batch in toy.batches(0))
    assert loop.mean_loss(toy.model, objective, toy.batches(0)) == expected
    assert all(parameter.grad is None for parameter in toy.model.parameters())


def test_the_last_step_is_checkpointed(toy_decoder, tmp_path):
    Toy(toy_decoder, tmp_path).train()
    assert checkpoint.latest(tmp_path) == STEPS


class Clock:
    """In place of `time`: the first step of a process takes a minute longer than the four seconds of the others."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def step(self, slow):
        self.now += 64.0 if slow else 4.0


@pytest.mark.parametrize("compiled", [True, False])
def test_what_the_first_step_takes_to_compile_is_no_part_of_rate_or_peak(
    toy_decoder, tmp_path, monkeypatch, capsys, compiled
):
    clock = Clock()
    monkeypatch.setattr("groundup.core.progress.time", clock)
    for first, steps in ((0, 5), (5, STEPS)):  # and again when it is resumed
        toy = Toy(toy_decoder, tmp_path, interrupt=lambda step, first=first: clock.step(step == first))
        toy.train(steps, compiled=compiled, seconds_at_peak=1.0)
        said = capsys.readouterr().err.splitlines()
        assert ("toy: compiled in 1m04s" in said) == compiled
        lines = [line for line in said if "/s" in line]
        # A quarter of the peak, which a step would reach in a second; the minute is nowhere.
        assert len(lines) >= 2 and all("0.2/s" in line and "25% of peak" in line for line in lines)


def test_damage_behind_the_checkpoint_does_not_matter(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0, "loss": 2.5}\n{"step": 1, "lo\xe3s": 2.0}\n')
    assert loop._read_history(path, 1, rewrite=True) == [{"step": 0.0, "loss": 2.5}]
    assert path.read_bytes() == b'{"step": 0, "loss": 2.5}\n'
