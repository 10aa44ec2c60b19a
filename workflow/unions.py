"""Which share of the bits of each method are unions, and of how many classes, on `digit-pairs` at
24 bits, with all classes and images. Writes reports/unions.csv, which the claims notebook shows.

    make grid GRID=digit-pairs        # leaves the codes of its queries in runs/
    .venv/bin/python workflow/unions.py

A class owns a bit that is on for four in five of the images with its label. The bit is a union if
it is on exactly where one of its owners is among an image's labels, for nine images in ten. On and
off are a matter of sign, so a bit counts if it or its opposite is one.
"""

import csv
import io
import sys
from pathlib import Path

import numpy as np

from dcwh.codes import Codes, unpack
from dcwh.experiment import codes_of_run
from dcwh.files import write_whole
from dcwh.results import read_results

OWNED, UNION = 0.8, 0.9
COLUMNS = 'method', 'bits', 'seed', 'unions', 'classes a union'


def owners(bit: np.ndarray, labels: np.ndarray) -> int:
    "How many classes a bit (N,) is the union of, given the labels (N, C); 0 if it is none."
    owned = np.array([bit[column].mean() for column in labels.T]) >= OWNED
    if not owned.any() or owned.all():
        return 0
    union = labels[:, owned].any(1)
    return int(owned.sum()) if (union == bit).mean() >= UNION else 0


def unions(codes: Codes) -> list[int]:
    "Of how many classes each bit is the union; 0 where it is none."
    on = unpack(codes.packed, codes.bits) > 0
    return [owners(bit, codes.labels) or owners(~bit, codes.labels) for bit in on.T]


def row(method: str, seed: int, codes: Codes) -> list:
    "What the table says of the codes of a run."
    found = unions(codes)
    number = np.count_nonzero(found)
    share, classes = number / len(found), sum(found) / max(1, number)
    return [method, codes.bits, seed, f'{share:.4f}', f'{classes:.2f}']


def write_table(
    reports: str | Path = 'reports',  # tables of results
    runs: str | Path = 'runs',  # the codes of their queries, <run>/query.npz
) -> None:
    """Write reports/unions.csv. Raises FileNotFoundError for a run whose codes are not there, and
    ValueError where another model made them."""
    results = read_results(reports)
    results = results[(results['dataset'] == 'digit-pairs') & (results['setting'] == 'default')]
    limits = results[['unseen', 'train_per_class', 'train_images', 'map_top_k']].any(axis=1)
    results = results[~limits]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(COLUMNS)
    for run in results[results['bits'] == 24].itertuples():
        codes = codes_of_run(Path(runs, run.run), run.model, ('query',))
        writer.writerow(row(run.method, run.seed, codes['query']))
    write_whole(Path(reports, 'unions.csv'), lambda f: f.write(text.getvalue().encode()))


if __name__ == '__main__':
    try:
        write_table()
    except (ValueError, OSError) as e:
        sys.exit(str(e))
    except KeyboardInterrupt:
        print('stopped; reports/unions.csv is as it was', file=sys.stderr)
        sys.exit(130)
