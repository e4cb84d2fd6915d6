import pytest
import torch

from groundup.training import checkpoint


def tensors(value):
    return {"weight": torch.full((3, 4), float(value)), "updates": torch.tensor(value), "view": torch.ones(4, 3).T}


def loaded(folder, step):
    found = {name: torch.zeros_like(tensor) for name, tensor in tensors(0).items()}
    checkpoint.load(folder, step, found)
    return found


def test_what_is_saved_is_found_and_only_two_are_kept(tmp_path):
    assert checkpoint.latest(tmp_path) is None
    for step in (5, 10, 100):
        checkpoint.save(tmp_path, step, tensors(step))
    assert checkpoint.latest(tmp_path) == 100
    found = loaded(tmp_path, 100)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors(100).items())
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"state-{step:08d}.{kind}" for step in (10, 100) for kind in ("json", "safetensors")
    ]
    checkpoint.clear(tmp_path)
    assert not list(tmp_path.iterdir())


def truncate(state, note):
    state.write_bytes(state.read_bytes()[:-7])


def empty(state, note):
    state.write_bytes(b"")


def flip(state, note):
    content = bytearray(state.read_bytes())
    content[-1] ^= 1  # of the last tensor's data: still a readable file
    state.write_bytes(content)


def flip_header(state, note):
    content = bytearray(state.read_bytes())
    content[0] ^= 255
    state.write_bytes(content)


def lose_state(state, note):
    state.unlink()


def lose_note(state, note):
    note.unlink()


def truncate_note(state, note):
    note.write_bytes(note.read_bytes()[:-9])


def empty_note(state, note):
    note.write_text("{}")


def alter_note(state, note):
    note.write_text(note.read_text().replace('"step": ', '"step": 1'))


@pytest.mark.parametrize(
    "harm", [truncate, empty, flip, flip_header, lose_state, lose_note, truncate_note, empty_note, alter_note]
)
def test_a_damaged_state_is_passed_over_for_the_one_before(tmp_path, harm, capsys):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, tensors(step))
    harm(tmp_path / "state-00000002.safetensors", tmp_path / "state-00000002.json")
    assert checkpoint.latest(tmp_path) == 1
    assert torch.equal(loaded(tmp_path, 1)["weight"], tensors(1)["weight"])
    said = capsys.readouterr().err.splitlines()
    # A state whose note was never written is not there: the kill came before it was whole.
    assert len(said) == (0 if harm is lose_note else 1) and all("state-00000002" in line for line in said)
    harm(tmp_path / "state-00000001.safetensors", tmp_path / "state-00000001.json")
    assert checkpoint.latest(tmp_path) is None


def test_damaged_states_do_not_push_out_what_is_saved_after_them(tmp_path):
    for step in (200, 300):
        checkpoint.save(tmp_path, step, tensors(step))
        truncate(tmp_path / f"state-{step:08d}.safetensors", None)
    assert checkpoint.latest(tmp_path) is None
    checkpoint.save(tmp_path, 50, tensors(50))
    assert checkpoint.latest(tmp_path) == 50
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state-00000050.json", "state-00000050.safetensors"]


def test_a_save_that_is_cut_off_leaves_the_one_before(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, tensors(1))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_sealed", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path, 2, tensors(2))
    assert checkpoint.latest(tmp_path) == 1


@pytest.mark.parametrize("left", ["state-00000001.safetensors", "state-00000002.safetensors.partial"])
def test_what_a_kill_left_while_saving_is_cleared_too(tmp_path, left):
    """Or it would become part of the finished artifact, whose digest then depends on the moment of the kill."""
    checkpoint.save(tmp_path, 3, tensors(3))
    (tmp_path / left).write_bytes(b"not noted yet")
    checkpoint.clear(tmp_path)
    assert not list(tmp_path.iterdir())
