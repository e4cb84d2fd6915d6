"""The kernels in float32 against the decoder itself, and what they must not do: corrupt, depend on company, ignore the switch."""

import platform
import shlex
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
import torch

from groundup import kernels
from groundup.core import device
from groundup.core.errors import UserError
from groundup.generation.decoding import Decoding
from groundup.generation.engine import Sampling, generate

LENGTHS = (19, 1, 33)
ODD = {"hidden_size": 48, "intermediate_size": 80, "vocab_size": 37}
SHAPES = {
    "six heads to three": {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 32},
    "six heads to one, tied": {
        "num_attention_heads": 6, "num_key_value_heads": 1, "head_dim": 32, "tie_word_embeddings": True,
    },
    "qwen2, biases": {"model_type": "qwen2", "head_dim": 64},
    "llama, heads of 96": {"model_type": "llama", "head_dim": 96},
}  # fmt: skip


needs_kernels = pytest.mark.float32_kernels


def prompts(vocabulary=37):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(vocabulary, (length,), generator=generator).tolist() for length in LENGTHS]


def plain(model, rows, length):
    state = Decoding(model, rows, length)
    state.steps = None
    return state


@needs_kernels
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@torch.inference_mode()
def test_prompts_parts_and_drafts_are_those_of_pytorch(toy_decoder, shape):
    model = toy_decoder(seed=2, **ODD, **shape)
    by_kernels, by_pytorch = Decoding(model, 4, 60), plain(model, 4, 60)
    assert by_kernels.steps
    some, more = prompts(), [3, 1, 4, 1, 5, 9, 2]
    drafts = torch.tensor([more[:5], more[1:6], more[2:]])
    for ask in (
        lambda state: state.prefill(some),
        lambda state: state.decode(drafts).flatten(0, 1),
        lambda state: state.extend(3, more * 3, all_tokens=True),
        lambda state: state.extend(3, more),
    ):
        found, expected = ask(by_kernels), ask(by_pytorch)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(by_kernels.cache, by_pytorch.cache, rtol=0, atol=1e-4)


@needs_kernels
def test_greedy_answers_are_those_of_pytorch(toy_decoder, monkeypatch):
    model = toy_decoder(seed=3, **ODD, **SHAPES["six heads to three"])
    ours = generate(model, prompts(), [], Sampling(24, temperature=0), seed=0)
    monkeypatch.setattr(Decoding, "steps", None)
    assert generate(model, prompts(), [], Sampling(24, temperature=0), seed=0) == ours


@needs_kernels
@torch.inference_mode()
def test_a_prompt_has_the_same_bits_in_any_company_in_any_parts_by_any_threads(toy_decoder):
    model, some = toy_decoder(seed=2, **ODD, head_dim=32), prompts()
    whole = Decoding(model, 3, 60).prefill(some)
    try:
        torch.set_num_threads(3)
        assert torch.equal(Decoding(model, 3, 60).prefill(some), whole)
    finally:
        torch.set_num_threads(1)
    for row, prompt in enumerate(some):
        alone = Decoding(model, 2, 60)
        found = [alone.extend(1, prompt[start : start + 7]) for start in range(0, len(prompt), 7)][-1]
        assert torch.equal(found[0], whole[row])


@needs_kernels
@torch.inference_mode()
def test_threads_that_are_not_the_first_one_may_call_at_the_same_time(toy_decoder):
    model, some = toy_decoder(seed=2, **ODD, head_dim=32), prompts()
    expected, found = Decoding(model, 3, 60).prefill(some), []

    def ask():
        with torch.inference_mode():
            torch.set_num_threads(2)
            found.append([Decoding(model, 3, 60).prefill(some) for _ in range(5)])

    callers = [threading.Thread(target=ask) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    torch.set_num_threads(1)
    assert len(found) == 3 and all(torch.equal(one, expected) for some in found for one in some)


@needs_kernels
@torch.inference_mode()
def test_tensors_of_another_kind_or_shape_raise(toy_decoder):
    model = toy_decoder(**ODD, head_dim=32)
    state = Decoding(model, 2, 20)
    ids, rows, positions = (torch.tensor([0, 1]) for _ in range(3))
    good = {"ids_N": ids, "rows_N": rows, "positions_N": positions, "rope_cache": state.rope_cache, "cache": state.cache}
    state.steps(**good)
    for error, wrong in (
        (ValueError, {"ids_N": ids.int()}),
        (ValueError, {"ids_N": torch.zeros(4, dtype=torch.long)[::2]}),
        (ValueError, {"ids_N": ids[:1]}),
        (ValueError, {"positions_N": positions[None]}),
        (IndexError, {"ids_N": ids - 1}),
        (IndexError, {"ids_N": ids + 36}),
        (IndexError, {"rows_N": rows + 1}),
        (IndexError, {"positions_N": positions + 19}),
        (IndexError, {"wanted_M": torch.tensor([2])}),
        (IndexError, {"wanted_M": torch.tensor([1, 0])}),
        (IndexError, {"wanted_M": torch.tensor([-1])}),
        (ValueError, {"wanted_M": torch.tensor([0.0])}),
        (ValueError, {"cache": state.cache.double()}),
        (ValueError, {"cache": state.cache.transpose(2, 3)}),
        (ValueError, {"cache": state.cache[:1]}),
        (ValueError, {"cache": state.cache[..., :16].contiguous()}),
        (ValueError, {"rope_cache": state.rope_cache[:19].clone()}),
        (ValueError, {"rope_cache": state.rope_cache.real.contiguous()}),
    ):
        with pytest.raises(error):
            state.steps(**good | wrong)


@pytest.fixture
def asked_again():
    def forget():
        kernels.library_or_reason.cache_clear(), kernels.float32_or_reason.cache_clear()

    forget()
    yield
    forget()


def test_the_switch_forces_kernels_down(monkeypatch, asked_again, toy_decoder):
    monkeypatch.setenv("GROUNDUP_KERNELS", "none")
    for asked in (kernels.library, kernels.float32_library):
        with pytest.raises(kernels.Unavailable, match="GROUNDUP_KERNELS=none"):
            asked()
    state = Decoding(toy_decoder(head_dim=32), 1, 4)
    assert state.steps is None and "native kernels disabled: GROUNDUP_KERNELS=none; using PyTorch" in state.disabled
    monkeypatch.setenv("GROUNDUP_KERNELS", "fastest")
    with pytest.raises(UserError, match="must be avx512, avx2 or none"):
        kernels.float32_vectors()


@pytest.mark.parametrize(
    ("capabilities", "switch", "vectors"),
    [
        ({"avx2": True, "fma3": True}, "", ("avx2", "fma")),
        ({"avx2": True, "fma3": True, "avx512_f": True}, "", ("avx2", "fma", "avx512f")),
        ({"avx2": True, "fma3": True, "avx512_f": True}, "avx2", ("avx2", "fma")),
        ({"architecture": "aarch64"}, "", ()),
        ({"avx2": True}, "", "the processor has neither AVX2 with FMA nor NEON"),
    ],
)
def test_the_widest_vectors_of_the_processor_are_taken(monkeypatch, capabilities, switch, vectors):
    monkeypatch.setenv("GROUNDUP_KERNELS", switch)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert kernels.float32_vectors() == vectors


@pytest.mark.parametrize(
    ("switch", "dtype"), [("", torch.bfloat16), ("none", torch.bfloat16), ("avx512", torch.float32), ("avx2", torch.float32)]
)
def test_the_switch_makes_of_any_processor_one_that_trains_as_an_avx2_one(monkeypatch, switch, dtype):
    every = ("avx2", "fma3", "avx512_f", "avx512_bf16", "amx_bf16")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(every, True))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setenv("GROUNDUP_KERNELS", switch)
    assert device.choose.__wrapped__(torch.get_num_threads()).training_dtype == dtype
    assert device.has_tiles() == (dtype == torch.bfloat16)


@pytest.mark.parametrize(("compiler", "reason"), [("no-such-compiler", "no C\\+\\+ compiler"), ("false", "did not compile")])
def test_without_a_compiler_the_reason_is_told(monkeypatch, tmp_path, asked_again, compiler, reason):
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "fma3": True})
    with pytest.raises(kernels.Unavailable, match=reason):
        kernels.float32_library()


SANITIZED = ("kernels_sanitized.cpp", "training_kernels_sanitized.cpp")


@pytest.mark.parametrize("program_of", SANITIZED)
def test_odd_sizes_on_arm_by_an_emulator(program_of, tmp_path):
    compiler, emulator, program = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64"), tmp_path / "arm"
    if not compiler or not emulator:
        pytest.skip("no aarch64-linux-gnu-g++ or no qemu-aarch64")
    source = Path(__file__).with_name(program_of)
    flags = [flag for flag in kernels.FLOAT32_FLAGS if flag not in ("-O3", "-fPIC")]
    subprocess.run([compiler, *flags, "-O1", "-static", str(source), "-o", str(program)], check=True)
    assert subprocess.run([emulator, str(program)], check=True, capture_output=True).stdout == b"sound\n"


def require_sound(program_of, flags, tmp_path):
    """Built with the sanitizers, it finds nothing wrong."""
    program, empty = tmp_path / "sanitized", tmp_path / "empty.cpp"
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command = ["g++", "-std=c++17", "-Wno-psabi", *sanitizers, *flags, "-o", program]
    empty.write_text("int main() {}")
    if subprocess.run([*command, empty], capture_output=True, check=False).returncode:
        pytest.skip(f"no sanitizers: {shlex.join(command[:1])} on {platform.machine()}")
    subprocess.run([*command, Path(__file__).with_name(program_of)], check=True, capture_output=True)
    found = subprocess.run([program], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "sound\n"), found.stderr[-3000:]


@needs_kernels
@pytest.mark.parametrize("program_of", SANITIZED)
@pytest.mark.parametrize("lanes", [8, 16])
def test_odd_sizes_under_the_sanitizers(lanes, program_of, tmp_path):
    """In vectors as AVX2 has them and as AVX-512 has them; where the processor has others the compiler makes them of its own."""
    vectors = [f"-m{name}" for name in kernels.float32_vectors()]
    require_sound(program_of, ["-O0", "-pthread", *vectors, f"-DVECTOR_LANES={lanes}"], tmp_path)


@pytest.mark.parametrize("tiles", [False, True])
def test_bfloat16_under_the_sanitizers_on_any_processor(tiles, tmp_path):
    """By plain C++ for what AVX-512 and AMX do: numbers that only such processors multiply otherwise."""
    own = [f"-I{Path(__file__).with_name('emulated')}", *(["-D__AMX_BF16__"] if tiles else [])]
    require_sound("bfloat16_kernels_sanitized.cpp", ["-O0", "-fopenmp", *own], tmp_path)
