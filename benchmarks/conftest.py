"""Writes what was measured as a table beside the benchmark: the least time of the rounds, and
what the benchmark adds to it. A table is not replaced by a shorter one, of a part of the
measurements."""

from pathlib import Path

from tables import write_table


def rows_of_evaluation(found):
    "Time as a multiple of ours, and the mAP found."
    yield ['what', 'seconds', 'times ours', 'mAP', 'from', 'to']
    for b in found:
        numbers = (
            b['extra_info']['map']
            if isinstance(b['extra_info']['map'], (list, tuple))
            else [b['extra_info']['map'], None, None]
        )
        yield [
            b['extra_info']['name'],
            f'{b["stats"]["min"]:.3g}',
            f'{b["stats"]["min"] / found[0]["stats"]["min"]:.3g}',
            *('' if x is None else f'{x:.6f}' for x in numbers),
        ]


def rows_of_loading(found):
    "Images a second, and how many times as fast as the benchmark that it names as its peer."
    seconds = {b['extra_info']['name']: b['stats']['min'] for b in found}
    yield ['what', 'seconds', 'images a second', 'times as fast as', 'the peer']
    for b in found:
        info, s = b['extra_info'], b['stats']['min']
        yield [
            info['name'],
            f'{s:.3g}',
            f'{info["images"] / s:.0f}',
            *([f'{seconds[info["peer"]] / s:.3g}', info['peer']] if info['peer'] else ['', '']),
        ]


def rows_of_encoding(found):
    "Images a second, and what that is of the backbone alone."

    def point(b):
        return b['extra_info']['backbone'], b['extra_info']['images']

    alone = {
        point(b): b['stats']['min'] for b in found if b['extra_info']['name'] == 'backbone alone'
    }
    yield ['backbone', 'images', 'what', 'images a second', 'of the backbone alone']
    for b in sorted(found, key=point, reverse=True):
        yield [
            *point(b),
            b['extra_info']['name'],
            f'{point(b)[1] / b["stats"]["min"]:.0f}',
            f'{alone[point(b)] / b["stats"]["min"]:.2f}',
        ]


def rows_of_training(found):
    """Milliseconds of a step, what the loss keeps between steps and, within one, for the
    backward pass."""
    yield [
        'method',
        'batch',
        'bits',
        'classes',
        'images',
        'milliseconds',
        'state (MB)',
        'kept for backward (MB)',
    ]
    for b in found:
        info = b['extra_info']
        yield [
            *(info[name] for name in ('method', 'batch', 'bits', 'classes', 'images')),
            f'{1000 * b["stats"]["min"] / info.get("steps", 1):.4g}',
            *('' if info[name] is None else f'{info[name]:.3g}' for name in ('state', 'kept')),
        ]


def pytest_benchmark_update_json(config, benchmarks, output_json):
    for table, rows in {
        'evaluation': rows_of_evaluation,
        'loading': rows_of_loading,
        'encoding': rows_of_encoding,
        'training': rows_of_training,
    }.items():
        found = [b for b in output_json['benchmarks'] if f'test_{table}.py' in b['fullname']]
        if not found:
            continue
        write_table(Path(__file__).with_name(f'{table}.csv'), list(rows(found)))
