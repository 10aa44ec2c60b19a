"""Writes what was measured as a table beside the benchmark: the least time of the rounds, as a multiple of ours, and the mAP found."""
import csv
from pathlib import Path


def pytest_benchmark_update_json(config, benchmarks, output_json):
    found = [{'what': b['extra_info']['name'], 'seconds': b['stats']['min'], 'map': b['extra_info']['map']} for b in output_json['benchmarks']]
    with open(Path(__file__).parent / 'evaluation.csv', 'w', newline='') as f:
        table = csv.writer(f, lineterminator='\n')
        table.writerow(['what', 'seconds', 'times ours', 'mAP', 'from', 'to'])
        for row in found:
            numbers = row['map'] if isinstance(row['map'], (list, tuple)) else [row['map'], None, None]
            table.writerow([row['what'], f'{row["seconds"]:.3g}', f'{row["seconds"] / found[0]["seconds"]:.3g}', *('' if x is None else f'{x:.6f}' for x in numbers)])
