"""The verdicts on the paper's claims: a notebook writes them, a table holds them, the website
shows them."""

import csv
import re
import sys
from pathlib import Path

import nbformat
import pytest

from dcwh.results import read_results

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / 'workflow'))
import result_tables  # noqa: E402 as the path comes first

README = (ROOT / 'README.md').read_text()
NOTEBOOK = ROOT / 'nbs/experiments/claims.ipynb'
SETS = 'digits', 'digit-pairs', 'cifar10-jpeg', 'tiny-imagenet100', 'cifar100-jpeg', 'corel5k'


@pytest.fixture(scope='module')
def verdicts():
    with open(ROOT / 'reports/claims.csv', newline='') as f:
        return list(csv.DictReader(f))


def rows_of(table):
    "Head and rows of a Markdown table, as cells."
    lines = [line for line in table.splitlines() if line.startswith('| ')]
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in lines]
    return rows[0], rows[1:]


def test_every_claim_has_a_verdict_its_evidence_and_a_command(verdicts):
    known = {'reproduced', 'in part', 'not reproduced', 'undecided', 'not tested here'}
    assert len(verdicts) == len({v['claim'] for v in verdicts}) == 9
    assert {v['verdict'] for v in verdicts} <= known
    assert all(v['evidence'] and v['command'] for v in verdicts)


def test_a_command_of_a_verdict_names_a_grid_or_says_how_many_cores(verdicts):
    for verdict in verdicts:
        for grid in re.findall(r'GRID=(\S+)', verdict['command']):
            assert (ROOT / f'workflow/grids/{grid}.yaml').is_file(), grid
        assert 'snakemake' not in verdict['command'] or '--cores' in verdict['command']


def test_commands_of_grids_say_how_many_cores():
    "A profile for GPUs or for Slurm says it too."
    for file in [*(ROOT / 'workflow/grids').glob('*.yaml'), ROOT / 'workflow/README.md']:
        text = file.read_text().replace('\\\n', ' ')
        for command in re.findall(r'snakemake --.*', text):
            assert '--cores' in command or '--workflow-profile' in command, (file, command)


def test_the_website_shows_the_verdicts_of_the_table(verdicts):
    page = result_tables.claims_page(ROOT / 'reports/claims.csv', NOTEBOOK)
    names, rows = rows_of(page)
    assert names == ['', 'claim', 'verdict']
    assert rows == [[v['number'], v['claim'], f'**{v["verdict"]}**'] for v in verdicts]
    parts = page.split('\n## ')[1:]
    for verdict, part in zip(verdicts, parts, strict=True):
        head, said, *rule, evidence, command = part.strip().split('\n\n')
        assert head.lower() == f'{verdict["number"]}. {verdict["claim"].lower()}'
        assert said == f'**{verdict["verdict"].capitalize()}.**'
        assert (verdict['number'] == '5') == (not rule)  # what is not tested has none
        assert not rule or rule[0].startswith('**Rule:** ')
        assert '; '.join(line[2:] for line in evidence.splitlines()) == verdict['evidence']
        assert command == f'Make it again: `{verdict["command"]}`'


def test_numbers_of_claims_are_those_of_the_notebook(verdicts):
    text = ''.join(cell.source + '\n' for cell in nbformat.read(NOTEBOOK, as_version=4).cells)
    sections = re.findall(r'^## (\d)\.', text, re.MULTILINE)
    assert [*dict.fromkeys(v['number'] for v in verdicts)] == sections


def test_the_notebook_shows_the_verdicts_of_the_table(verdicts):
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    last = next(c for c in cells if 'write_verdicts(found)' in c.source)
    page = last.outputs[0].data['text/html']
    told = re.findall('<td>(.*?)</td>', page)
    assert told[::4] == [v['claim'] for v in verdicts]
    assert told[1::4] == [v['verdict'] for v in verdicts]


def test_readme_says_what_the_tables_say():
    results = result_tables.recorded(ROOT / 'reports')
    assert result_tables.findings(results) in README
    told = r'above in \d+ of (\d+), .*digits are (\d+) of the cells, photographs (\d+)\.'
    cells, handwritten, photographs = map(int, re.search(told, README).groups())
    assert cells == handwritten + photographs and handwritten > 0 < photographs
    assert result_tables.unseen_finding(ROOT / 'reports') in README


def test_reports_are_listed_with_what_the_tables_say():
    results = read_results(ROOT / 'reports')
    (_, *lengths), rows = rows_of(result_tables.reports_table(results, ROOT / 'reports'))
    assert lengths == ['16 bits', '24 bits', '32 bits', '48 bits']
    shown = [what.split('`')[1] for what, *_ in rows]
    assert shown == [name for name in SETS if name in shown] and shown[:4] == list(SETS[:4])
    assert '' not in rows[0] + rows[1]
    for name, (_, *cells) in zip(shown, rows, strict=True):
        own = results[results['dataset'].str.rpartition('/')[2] == name]
        own = own[(own['method'] == 'dcwh') & (own['seed'] == 0)]
        for length, cell in zip(lengths, cells, strict=True):
            bits = length.removesuffix(' bits')
            maps = own.loc[own['bits'] == int(bits), 'map'].map('{:.3f}'.format)
            report = ROOT / f'reports/{name}/dcwh-{bits}.ipynb'
            link = f'({report})' if cell and report.is_file() else ''
            assert cell in {'', *(f'[{text}]{link}' if link else text for text in maps)}


def test_the_best_of_three_seeds_or_more_is_bold():
    results = result_tables.recorded(ROOT / 'reports')
    marked = 0
    for task in result_tables.tasks(results):
        _, rows = rows_of(result_tables.task_table(results, task))
        for column in list(zip(*rows, strict=True))[1:]:
            told = [re.match(r'(\**)([\d.]+).*?\((\d+)\)', cell) for cell in column if cell]
            means = [float(mean) for _, mean, n in (t.groups() for t in told) if int(n) >= 3]
            bold = [float(t[2]) for t in told if t[1]]
            assert {*bold} == {*sorted(means)[-1:]}
            marked += len(bold)
    assert marked > 10


def test_settings_of_a_method_alone_stand_as_code():
    shown = result_tables.cells(result_tables.recorded(ROOT / 'reports'), 'bits')
    assert any('(1), `lr=0.001`, `head_lr=1`' in cell for cell in shown.values())


def test_a_dagger_marks_runs_whose_centres_stayed():
    rows = result_tables.recorded(ROOT / 'reports')
    shown = result_tables.cells(rows, 'bits')
    rows = rows[(rows['method'] == 'dcwh') & (rows['seed'] == 0)]
    stayed = (rows['epochs_held'] > 0) & (rows['centres_found'] == 0)
    assert {*stayed} == {True, False}
    for row, dagger in zip(rows.itertuples(), stayed, strict=True):
        assert ('†' in shown[row.dataset, row.protocol, row.shared, 'dcwh', row.bits]) == dagger
