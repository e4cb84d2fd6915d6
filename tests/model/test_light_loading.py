"""Loading a model does not import what only looks into its shapes would need."""

import subprocess
import sys

from groundup.model import model_folder


def test_no_computer_algebra(toy_decoder, toy_tokenizer, tmp_path, environment):
    """torch's functions for tensors without memory import sympy: 1.8 s of processor time before every answer."""
    model_folder.save(tmp_path, toy_decoder(vocab_size=toy_tokenizer.size), toy_tokenizer, chat=False)
    code = "import sys; from pathlib import Path; from groundup.model.model_folder import load_decoder as load; "
    code += "load(Path(sys.argv[1])); print('sympy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, tmp_path], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
