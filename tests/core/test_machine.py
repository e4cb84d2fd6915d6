import json

from groundup.core.executor import cores
from groundup.core.machine import machine


def test_it_names_the_processor_and_can_be_written():
    found = json.loads(json.dumps(machine()))
    assert found.keys() == {"processor", "cores", "memory_gb", "system"}
    assert found["processor"].strip() and found["cores"] == cores() and found["memory_gb"] > 0
