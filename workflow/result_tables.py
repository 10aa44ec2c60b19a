"""Tables of results in Markdown, for the README and the website: made from reports/*.csv and
reports/claims.csv, never typed."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from dcwh.methods import METHODS
from dcwh.results import (
    STOOD,
    changed,
    half_width,
    mean_text,
    read_results,
    standings,
    stood,
    table_of,
)

LENGTHS = 16, 24, 32, 48
REPORTS = {  # data set: protocol, what is changed in the recipe
    'digits': ('full', ''),
    'digit-pairs': ('full', ''),
    'cifar10-jpeg': ('sampled', 'image_size=64, epochs=10'),
    'tiny-imagenet100': ('full', ''),
    'cifar100-jpeg': ('sampled-50-100', 'epochs=6'),
    'corel5k': ('full', ''),
}
TASK = ['dataset', 'protocol', 'shared']


def recorded(
    reports: str | Path,  # the folder of tables
) -> pd.DataFrame:
    """Rows of the task that a protocol gives: all classes and images are trained on, k is its own.

    Raises ValueError where a method was run with several settings of its own: a cell has one."""
    results = read_results(reports)
    changed_task = results[['train_per_class', 'train_images', 'map_top_k', 'unseen']].any(axis=1)
    kept = results[~changed_task & (results['part'] == '')]
    settings = kept.groupby([*TASK, 'method', 'bits'])['setting'].unique()
    for (dataset, _, _, method, bits), several in settings[settings.map(len) > 1].items():
        raise ValueError(
            f'{method} was run on {dataset} at {bits} bits with several settings of its own '
            f'({"; ".join(several)}); keep the rows of the one that was chosen'
        )
    return kept


def table(head: list[str], rows: list[list[str]]) -> str:
    "A Markdown table."
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join(f'| {" | ".join(line)} |'.replace('| --- ', '|---') for line in lines)


def of_set(results: pd.DataFrame, name: str) -> pd.DataFrame:
    "The rows of a data set, by the name that its table of results has."
    return results[results['dataset'].map(lambda dataset: table_of('', dataset).stem) == name]


def reported(results: pd.DataFrame, name: str) -> pd.DataFrame:
    "The rows of a data set that the reports in its folder show, one a code length."
    protocol, changes = REPORTS[name]
    own = results[(results['method'] == 'dcwh') & (results['seed'] == 0)]
    own = of_set(own, name)
    return own[(own['protocol'] == protocol) & (own['setting'].map(changed) == changes)]


def reports_table(
    results: pd.DataFrame,
    reports: str,  # the folder of reports, as the links see it
) -> str:
    "mAP of data sets that were run by code lengths, each linked to its report where that is there."

    def cell(rows: pd.DataFrame, name: str, bits: int) -> str:
        maps = [f'{value:.3f}' for value in rows.loc[rows['bits'] == bits, 'map']]
        report = f'{reports}/{name}/dcwh-{bits}.ipynb'
        return ''.join(f'[{text}]({report})' if Path(report).is_file() else text for text in maps)

    lines = []
    for name, (protocol, changes) in REPORTS.items():
        rows = reported(results, name)
        if rows.empty:
            continue
        what = [f'`{name}`', protocol, *(f'`{c}`' for c in changes.split(', ') if c)]
        lines.append([', '.join(what), *(cell(rows, name, bits) for bits in LENGTHS)])
    return table(['', *(f'{bits} bits' for bits in LENGTHS)], lines)


def facts(protocol: str, shared: str, run: pd.Series) -> list[str]:
    "What a task is, part by part: protocol, sizes, network and epochs, what is changed."
    sizes = f'{run["query"]:,} / {run["train"]:,} / {run["database"]:,}'
    network = run['backbone'].removeprefix('timm/')
    if run['weights'] != 'none':
        network += ' (pretrained)'
    trained = f'{network}, {run["image_size"]} px, {run["epochs"]} epochs'
    changes = [f'`{change}`' for change in changed(shared).split(', ') if change]
    return [protocol, sizes, trained, *changes]


def tasks(results: pd.DataFrame) -> dict[tuple, pd.Series]:
    "Each task with its first run: small images first, then photographs."
    photographs = results['dataset'].str.contains('/')
    ordered = pd.concat([results[~photographs], results[photographs]])
    return {task: rows.iloc[0] for task, rows in ordered.groupby(TASK, sort=False)}


def best(results: pd.DataFrame, by: str) -> set[tuple]:
    "The keys of `cells`, and a setting, that show the highest mean of three seeds or more."
    maps = results.groupby([*TASK, 'method', by, 'setting'])['map'].agg(['mean', 'size'])
    means = maps.loc[maps['size'] >= 3, 'mean'].round(3)
    return {*means.index[means == means.groupby([*TASK, by]).transform('max')]}


def cells(
    results: pd.DataFrame,
    by: str,  # beside the method: a column, such as bits
) -> dict[tuple, str]:  # (*task, method, value of the column) -> what stands there
    """Mean over seeds, half its 95 % interval, how many seeds, and settings of a method alone. The
    best of a task and a column are bold."""
    shown, bold = {}, best(results, by)
    for (*key, value, setting), runs in results.groupby([*TASK, 'method', by, 'setting']):
        shared = key[2].split(', ')
        own = [f'`{part}`' for part in setting.split(', ') if part not in shared]
        mark = '**' * ((*key, value, setting) in bold)
        maps = runs['map']
        mean = mean_text(maps.mean(), half_width(maps)).replace(' ', '\N{NO-BREAK SPACE}')
        text = f'{mark}{mean}{mark} ({len(maps)})'
        dagger = STOOD if stood(runs).any() else ''
        shown[*key, value] = ', '.join([text + dagger, *own])
    return shown


def by_method(columns: list[str], cell: Callable, corner: str = '') -> str:
    "Methods by columns, without the methods that have no cell."
    rows = [[f'`{method}`', *cell(method)] for method in METHODS if any(cell(method))]
    return table([corner, *columns], rows)


def maps_table(results: pd.DataFrame, bits: int) -> str:
    "Methods by tasks, at one code length."
    here = results[results['bits'] == bits]
    shown, heads = cells(here, 'bits'), tasks(here)
    columns = ['<br>'.join([f'`{t[0]}`', *facts(*t[1:], run)]) for t, run in heads.items()]
    return by_method(
        columns, lambda m: [shown.get((*t, m, bits), '') for t in heads], f'{bits} bits'
    )


def task_table(results: pd.DataFrame, task: tuple) -> str:
    "Methods by code lengths, on one task."
    shown = cells(results, 'bits')
    lengths = sorted({key[-1] for key in shown if key[:3] == task})
    return by_method(
        [f'{bits} bits' for bits in lengths],
        lambda m: [shown.get((*task, m, bits), '') for bits in lengths],
        'method',
    )


def rules(
    notebook: str | Path,  # of claims
) -> dict[int, str]:  # of a section, by its number
    "The rule that decides a claim, as its section states it."
    found = {}
    for cell in json.loads(Path(notebook).read_text(encoding='utf-8'))['cells']:
        text = ''.join(cell['source'])
        number = re.match(r'## (\d)\. ', text)
        rule = re.search(r'^\*\*Rule:\*\*.*?(?=\n\n(?!\d\. )|\Z)', text, re.MULTILINE | re.DOTALL)
        if number and rule:
            found[int(number[1])] = re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', rule[0])
    return found


def claims_page(
    file: str | Path,  # reports/claims.csv
    notebook: str | Path,  # of claims
) -> str:
    "A table of the verdicts, then for each its rule, the evidence and the command that makes it."
    claims = list(pd.read_csv(file).itertuples())
    lines = [[str(c.number), c.claim, f'**{c.verdict}**'] for c in claims]
    parts, ruled = [table(['', 'claim', 'verdict'], lines)], rules(notebook)
    for c in claims:
        evidence = '\n'.join(f'- {part}' for part in c.evidence.split('; '))
        rule = [ruled[c.number]] if c.number in ruled else []
        heading = f'## {c.number}. {c.claim[0].upper()}{c.claim[1:]}'
        verdict, again = f'**{c.verdict.capitalize()}.**', f'Make it again: `{c.command}`'
        parts.append('\n\n'.join([heading, verdict, *rule, evidence, again]))
    return '\n\n'.join(parts)


RIVALS = [
    name for name in METHODS if 'dcwh' not in name
]  # of eight other papers, and cross-entropy


def maps_of(results: pd.DataFrame, name: str, bits: int) -> pd.Series:
    "mAP by method, mean over seeds, on the task of a set that the reports show."
    protocol, changes = REPORTS[name]
    own = of_set(results, name)
    own = own[(own['protocol'] == protocol) & (own['shared'].map(changed) == changes)]
    return own[own['bits'] == bits].groupby('method')['map'].mean()


def still_cells(
    results: pd.DataFrame,
    rows: pd.DataFrame,  # of `standings`, of the method dcwh
) -> int:
    "In how many cells the centres of a run of dcwh stayed at their start."
    cell = ['dataset', 'protocol', 'shared', 'bits']
    still = results[(results['method'] == 'dcwh') & stood(results)][cell].drop_duplicates()
    return len(rows.merge(still, on=cell))


def findings(results: pd.DataFrame) -> str:
    "What the tables say of tasks whose classes are all seen, as lines of a list."
    rows = standings(results, 'dcwh', RIVALS)
    rows = rows[rows['n'] >= 3]
    n = rows['standing'].value_counts()
    pairs = maps_of(results, 'digit-pairs', 48)
    against = f'`dcwh` is above in {n["above"]} of {len(rows)}, level in {n["level"]}'
    handwritten = rows['dataset'].str.startswith('digit').sum()
    return f"""- **Against {len(RIVALS)} rivals**, with all classes and training images. A cell is \
a task, a code length and a rival, with three seeds or more. In mAP, {against} and below in \
{n['below']}. *Level*: the 95 % interval of the difference contains 0. Handwritten digits are \
{handwritten} of the cells, photographs {len(rows) - handwritten}. In {still_cells(results, rows)} \
cells the centres of `dcwh` stayed at their start († in the comparison). (`idcwh` and our \
`dcwh-…` are variants, not rivals.)
- **Several labels per image.** On `digit-pairs` at 48 bits `dcwh` has an mAP of \
{pairs['dcwh']:.3f} and `{pairs.idxmax()}` {pairs.max():.3f}, the highest mean."""


def unseen_finding(
    reports: str | Path,  # the folder of tables
) -> str:
    "What the tables say of classes that training never saw, as a line of a list."
    rows = read_results(reports)
    asked = rows[(rows['unseen'] > 0) & rows['part'].isin(['unseen@unseen', 'unseen@all'])]
    stands = standings(asked, 'dcwh', RIVALS).query('n >= 3')['standing'].value_counts()
    above, level, below = (stands.get(name, 0) for name in ('above', 'level', 'below'))
    rows = rows[rows['dataset'] == 'folder/cifar100-jpeg']
    rows = rows[(rows['part'] == 'unseen@unseen') & (rows['unseen'] == 0.05) & (rows['bits'] == 32)]
    maps = rows.groupby('method')['map'].mean()[rows.groupby('method').size() >= 3]
    said = [f'`{name}` {maps[name]:.3f}' for name in ('dcwh', 'greedyhash', 'ce')]
    verdicts = pd.read_csv(Path(reports) / 'claims.csv').set_index('number')['verdict']
    return f"""- **Classes never seen.** We kept 5 of the 100 classes of CIFAR-100 from training, \
and trained on 2,000 images of the others. Queries and database are images of those 5 classes \
only. mAP@1000 (normaliser min) at 32 bits, mean of three seeds: {', '.join(said)}, our \
`dcwh-balanced` {maps['dcwh-balanced']:.3f}. The paper's title claims that codes preserve \
semantics. By our rules, this is {verdicts[7]} for classes never seen (above in {above}, level in \
{level} and below in {below} of {stands.sum()} cells), and {verdicts[8]} for kindred ones (of one \
superclass)."""
