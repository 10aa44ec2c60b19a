"""Which share of the bits of each method are unions, and of how many classes, on `digit-pairs` at 24 bits: writes reports/unions.csv, which the claims notebook shows.

    make grid GRID=digit-pairs        # leaves the codes of its queries in runs/
    .venv/bin/python workflow/unions.py

A class owns a bit that is on for four in five of the images with its label. The bit is a union if it is on exactly where one of its owners is among an image's labels,
for nine images in ten. On and off are a matter of sign, so a bit counts if it or its opposite is one.
"""
import csv
from pathlib import Path

import numpy as np

from dcwh.codes import Codes, unpack
from dcwh.report import read_results

OWNED, UNION = .8, .9


def owners(bit: np.ndarray, labels: np.ndarray) -> int:
    "How many classes a bit (N,) is the union of, given the labels (N, C); 0 if it is none."
    owned = np.array([bit[column].mean() for column in labels.T]) >= OWNED
    return int(owned.sum()) if 0 < owned.sum() < len(owned) and (labels[:, owned].any(1) == bit).mean() >= UNION else 0


def unions(codes: Codes) -> list[int]:
    "Of how many classes each bit is the union; 0 where it is none."
    return [owners(bit, codes.labels) or owners(~bit, codes.labels) for bit in (unpack(codes.packed, codes.bits) > 0).T]


if __name__ == '__main__':
    results = read_results()
    runs = results[(results['dataset'] == 'digit-pairs') & (results['setting'] == 'default') & (results['bits'] == 24)]
    rows = []
    for r in runs.itertuples():
        found = unions(Codes.load(Path('runs', r.file).with_suffix('') / 'query.npz'))
        rows.append([r.method, r.bits, r.seed, f'{np.count_nonzero(found) / len(found):.4f}', f'{sum(found) / max(1, np.count_nonzero(found)):.2f}'])
    with open('reports/unions.csv', 'w', newline='') as f: csv.writer(f, lineterminator='\n').writerows([['method', 'bits', 'seed', 'unions', 'classes a union'], *rows])
