"""The benchmark for GPUs runs where there is none, with tiny sizes."""
from pathlib import Path
import csv
import subprocess
import sys

ROOT = Path(__file__).parents[1]


def test_the_benchmark_of_gpus_runs_on_a_processor(tmp_path):
    script, out = ROOT / 'benchmarks/gpu.py', tmp_path / 'gpu.csv'
    subprocess.run([sys.executable, script, '--sizes', 'tiny', '--out', out], check=True, capture_output=True)
    with open(out) as file: rows = {row['what']: float(row['value']) for row in csv.DictReader(file)}
    parts = 'whole step', 'bare loop', 'cuts in a loop', 'by one gather', 'counting', 'evaluate'
    for part in parts: assert any(part in what for what in rows), part
    assert all(value > 0 for value in rows.values())
