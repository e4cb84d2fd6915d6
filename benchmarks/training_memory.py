"""Peak memory of a training step at a vocabulary of 32,768: at most half of transformers'.

Qwen3 of 6 layers x 256 wide, 16 rows of 256 tokens, as in `training_throughput.py`. Each side takes three whole steps in
a process of its own, ours in bfloat16, with Muon as in pre-training and with AdamW as the peer; theirs in float32
and under bfloat16 autocast. The figure is the highest resident memory of the process (ru_maxrss), with all its libraries;
beside it that without what the process held before the model was made. Ours keeps AdamW's or Muon's state in float32.
"""

import json
import resource
import subprocess
import sys

from common import arguments, conclude, machine
from training_throughput import OURS, PEERS, our_step, their_step

CLAIM, BAR = "peak memory of a training step at vocabulary 32,768, share of transformers' float32 step", 0.5
VOCABULARY, STEPS, MIB = 32_768, 3, 1024


def main() -> None:
    arguments(__doc__)
    memory_of: dict[str, tuple[float, float]] = {}
    for name in (*PEERS, *OURS):
        done = subprocess.run([sys.executable, __file__, "worker", name], capture_output=True, text=True, check=False)
        if done.returncode:
            reason = f"{name}: {done.stderr.strip().splitlines()[-1]}"
            return conclude(CLAIM, None, "share", BAR, None, reason=reason)
        before, peak = json.loads(done.stdout.splitlines()[-1])
        memory_of[name] = peak, peak - before
    print(f"{machine()}\n{'step':<32} {'peak MiB':>9} {'without imports':>16}")
    for name, (peak, without_imports) in memory_of.items():
        print(f"{name:<32} {peak:9,.0f} {without_imports:16,.0f}")
    theirs, ours = memory_of[PEERS[0]], max(memory_of[name] for name in OURS)
    autocast = memory_of[PEERS[1]]
    print(f"of float32's peak {ours[0] / theirs[0]:.2f}, without imports {ours[1] / theirs[1]:.2f} (bar {BAR})")
    print(f"of autocast's peak {ours[0] / autocast[0]:.2f}, without imports {ours[1] / autocast[1]:.2f}")
    share = ours[0] / theirs[0]
    conclude(CLAIM, share, "share", BAR, share <= BAR, peer="of its autocast step", peer_figure=ours[0] / autocast[0])


def worker(name: str) -> None:
    import torch  # noqa: F401

    if name in PEERS:
        from transformers import Qwen3ForCausalLM  # noqa: F401
    before = peak_mib()
    step = our_step(name, VOCABULARY) if name in OURS else their_step(name, VOCABULARY)
    for _ in range(STEPS):
        step()
    print(json.dumps([before, peak_mib()]))


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB


if __name__ == "__main__":
    worker(sys.argv[2]) if sys.argv[1:2] == ["worker"] else main()
