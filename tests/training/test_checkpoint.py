import pytest
import torch

from groundup.training import checkpoint


def tensors(value):
    return {"weight": torch.full((3, 4), float(value)), "updates": torch.tensor(value), "view": torch.ones(4, 3).T}


def test_what_is_saved_is_found_and_only_two_are_kept(tmp_path):
    assert checkpoint.latest(tmp_path) is None
    for step in (5, 10, 100):
        checkpoint.save(tmp_path, step, tensors(step))
    step, found = checkpoint.latest(tmp_path)
    assert step == 100 and found.keys() == tensors(100).keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors(100).items())
    assert found["updates"].dtype == torch.int64
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


@pytest.mark.parametrize("harm", [truncate, empty, flip, flip_header, lose_state, lose_note, truncate_note, empty_note])
def test_a_damaged_state_is_passed_over_for_the_one_before(tmp_path, harm):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, tensors(step))
    harm(tmp_path / "state-00000002.safetensors", tmp_path / "state-00000002.json")
    step, found = checkpoint.latest(tmp_path)
    assert step == 1 and torch.equal(found["weight"], tensors(1)["weight"])
    harm(tmp_path / "state-00000001.safetensors", tmp_path / "state-00000001.json")
    assert checkpoint.latest(tmp_path) is None


def test_a_save_that_is_cut_off_leaves_the_one_before(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, tensors(1))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_json", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path, 2, tensors(2))
    assert checkpoint.latest(tmp_path)[0] == 1


@pytest.mark.parametrize("left", ["state-00000001.safetensors", "state-00000002.safetensors.partial"])
def test_what_a_kill_left_while_saving_is_cleared_too(tmp_path, left):
    """Or it would become part of the finished artifact, whose digest then depends on the moment of the kill."""
    checkpoint.save(tmp_path, 3, tensors(3))
    (tmp_path / left).write_bytes(b"not noted yet")
    checkpoint.clear(tmp_path)
    assert not list(tmp_path.iterdir())
