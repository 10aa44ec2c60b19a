"""Make the reports of this repository: one notebook for each data set and code length.

    make reports                        # all sets whose images are here
    make reports ARGS="digits"          # one of them

Each is the run template executed by papermill, at reports/<set>/<method>-<bits>.ipynb. A run that
is finished in runs/ is shown, any other is trained first. Where a result is the same to the bit,
so is its report. Last comes the comparison, which needs no images. The verdicts are made by
executing nbs/experiments/claims.ipynb.
"""

import sys
from pathlib import Path

import yaml

from dcwh.config import resolve
from dcwh.experiment import execute, finished, report, retrieval_set
from dcwh.results import METRICS, row_of_config, table_of

METHOD, BITS = 'dcwh', (16, 24, 32, 48)


def of_repository(wanted: list[str]) -> list[tuple[dict, Path]]:
    "The parameters of each report, and where it goes. Raises ValueError for an unknown set."
    blocks = yaml.safe_load(Path('workflow/reports.yaml').read_text(encoding='utf-8'))
    sets = {table_of('reports', block['dataset']).stem: block for block in blocks}
    if unknown := [name for name in wanted if name not in sets]:
        raise ValueError(f'unknown set {unknown[0]}; known are {", ".join(sets)}')
    return [
        (
            {**sets[name], 'method': METHOD, 'bits': bits},
            Path('reports') / name / f'{METHOD}-{bits}.ipynb',
        )
        for name in wanted or sets
        for bits in BITS
    ]


def missing(parameters: dict) -> str:
    "Why a report cannot be made here; empty if it can."
    config = resolve(**parameters)
    try:
        retrieval_set(config)
    except (FileNotFoundError, ValueError) as e:
        return str(e)
    pretrained = config.weights not in ('none', 'default')
    return (
        f'{config.weights} is not there'
        if pretrained and not Path(config.weights).is_file()
        else ''
    )


def differing(parameters: dict) -> list[str]:
    "Metrics in which the run that is shown is not the one of the table, if there is a row."
    config = resolve(**parameters)
    row, result = row_of_config(config), finished(config)
    known = [name for name in METRICS if row and row[name] is not None]
    return [name for name in known if row[name] != result['metrics'].get(name)]


def main(wanted: list[str]) -> None:
    for parameters, path in of_repository(wanted):
        if why := missing(parameters):
            print(f'{path}: left as it is, {why}', flush=True)
            continue
        report(path=path, **parameters)
        other = differing(parameters)
        note = f'; not as in the table (another processor?): {", ".join(other)}' if other else ''
        print(f'{path}{note}', flush=True)
    compared = {'folders': ['reports'], 'published': ''}  # as `dcwh compare reports` has it
    execute('nbs/templates/compare.ipynb', 'reports/compare.ipynb', compared, partial=False)
    print('reports/compare.ipynb')


if __name__ == '__main__':
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as e:
        sys.exit(str(e))
    except KeyboardInterrupt:
        print('stopped; the same command goes on', file=sys.stderr)
        sys.exit(130)
