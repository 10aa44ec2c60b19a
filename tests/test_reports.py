"""The reports of the repository: which there are, which can be made here, what they say beside
their tables."""

import errno
import importlib.util
import runpy
import shutil
from pathlib import Path

import nbformat
import pytest
import yaml
from nbclient import NotebookClient

from dcwh.config import resolve
from dcwh.experiment import execute, finished, report, start_folder
from dcwh.results import read_table, record, table_of

pytestmark = pytest.mark.usefixtures('begun')

ROOT = Path(__file__).parents[1]
BLOCKS = yaml.safe_load((ROOT / 'workflow/reports.yaml').read_text())


@pytest.fixture
def reports(tmp_path, monkeypatch):
    "The script, in a folder with two sets of which one has its images, at one code length."
    spec = importlib.util.spec_from_file_location('reports', ROOT / 'workflow/reports.py')
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for name in ('nbs', 'data'):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ('workflow', 'reports'):
        (tmp_path / name).mkdir()
    blocks = [
        {'dataset': 'digits', 'recipe': 'quick', 'epochs': 1},
        {'dataset': 'folder/birds', 'data_dir': 'nowhere'},
    ]
    (tmp_path / 'workflow/reports.yaml').write_text(yaml.safe_dump(blocks))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(script, 'BITS', (16,))
    return script


def test_a_kernel_may_take_minutes_to_start(tmp_path, monkeypatch):
    asked = {}

    def unchanged(template, draft, parameters, **options):
        asked.update(options)
        shutil.copy(template, draft)

    monkeypatch.setattr('papermill.execute_notebook', unchanged)
    execute(ROOT / 'nbs/templates/run.ipynb', tmp_path / 'report.ipynb', {})
    assert asked['start_timeout'] >= 600


def test_an_error_that_tears_the_draft_of_a_report_is_told(tmp_path, monkeypatch):
    def no_room(template, draft, parameters, **options):
        Path(draft).write_text('{"cells": [')
        raise OSError(errno.ENOSPC, 'No space left on device', draft)

    monkeypatch.setattr('papermill.execute_notebook', no_room)
    with pytest.raises(OSError, match='No space left on device'):
        execute(ROOT / 'nbs/templates/run.ipynb', tmp_path / 'report.ipynb', {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', ['runs', 'reports'])
def test_a_name_that_a_notebook_cannot_hold_is_refused_before_the_work(tmp_path, name):
    given = {'dataset': 'digits', 'recipe': 'quick', name: f'{tmp_path}/caf\udce9'}
    with pytest.raises(ValueError, match=rf'{name} is .*caf.xe9: its name is not UTF-8'):
        report(**given)
    with pytest.raises(ValueError, match='folders is .* not UTF-8'):
        execute('compare.ipynb', tmp_path / 'compare.ipynb', {'folders': ['caf\udce9']})
    assert not list(tmp_path.iterdir())


def test_a_notebook_that_is_opened_in_a_folder_of_its_own_finds_where_it_was_made(
    tmp_path, monkeypatch
):
    run, table = tmp_path / 'runs/digits-quick/dcwh-8', tmp_path / 'reports/digits'
    for folder in (run, table, tmp_path / 'templates'):
        folder.mkdir(parents=True)
    places = Path('runs/digits-quick/dcwh-8'), Path('reports/digits')
    for folder, found in (
        (run, tmp_path),
        (table, tmp_path),
        (tmp_path, tmp_path),
        (run.parent, run.parent),
        (tmp_path / 'templates', tmp_path / 'templates'),
        (ROOT / 'nbs/templates', ROOT),
    ):
        monkeypatch.chdir(folder)
        assert start_folder(*places) == found
        assert start_folder(*(tmp_path / place for place in places), '') in (folder, ROOT)
    monkeypatch.chdir(run)
    run.joinpath('reports/digits').mkdir(parents=True)  # and the other is not
    assert start_folder(places[1]) == run and start_folder(*places) == tmp_path
    monkeypatch.setenv('DCWH_EXECUTED', '{}')
    assert start_folder(*places) == run


def test_a_report_is_made_and_executed_again_wherever_it_lies(tmp_path, monkeypatch):
    "A folder of this name once sent the notebook two folders up, to train there again."
    here = tmp_path / 'mine/nbs/templates'
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    made = report(dataset='digits', recipe='quick', bits=8, epochs=1, detail='brief')
    place = {'metadata': {'path': str(made.parent)}}
    NotebookClient(nbformat.read(made, as_version=4), timeout=600, resources=place).execute()
    assert [*tmp_path.rglob('result.json')] == [made.absolute().with_name('result.json')]
    comparison = here / 'runs/compare.ipynb'
    execute(ROOT / 'nbs/templates/compare.ipynb', comparison, {'folders': ['runs']})
    again = nbformat.read(comparison, as_version=4)
    place = {'metadata': {'path': str(comparison.parent)}}
    NotebookClient(again, timeout=600, resources=place).execute()
    assert '1 run of 1 method on 1 data set, in runs' in nbformat.writes(again)


def test_reports_are_made_where_images_are(reports, capsys):
    made, skipped = Path('reports/digits/dcwh-16.ipynb'), Path('reports/birds/dcwh-16.ipynb')
    reports.main([])
    said = capsys.readouterr().out
    assert f'{skipped}: left as it is, ' in said and 'nowhere' in said and not skipped.exists()
    assert 'The row of this run' not in made.read_text() and Path('reports/compare.ipynb').is_file()
    # a row that says something else, as from another processor, is told
    result = finished(resolve(dataset='digits', bits=16, recipe='quick', epochs=1))
    known = {name: value for name, value in result['metrics'].items() if name != 'map_outputs'}
    record({**result, 'metrics': known}, modified=True)
    reports.main(['digits'])
    assert 'not as in the table' not in capsys.readouterr().out
    names = ('map', 'map_with_relevant', 'map_pessimistic', 'map_optimistic')
    half = dict.fromkeys(names, 0.5)
    record({**result, 'metrics': {**result['metrics'], **half}}, modified=True, replace=True)
    capsys.readouterr()
    reports.main(['digits'])
    assert 'not as in the table (another processor?): map' in capsys.readouterr().out
    assert 'The row of this run in the table has 0.5000' in made.read_text()


def interrupted(*given, **more):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    'script, called, said',
    [
        ('reports', 'dcwh.experiment.report', 'stopped; the same command goes on'),
        ('unions', 'dcwh.results.read_results', 'stopped; reports/unions.csv is as it was'),
        ('on_gpu', 'subprocess.run', 'on_gpu: stopped'),
    ],
)
def test_a_script_that_is_stopped_says_so_in_a_line(
    reports, monkeypatch, capsys, script, called, said
):
    monkeypatch.setattr(called, interrupted)
    monkeypatch.setattr(
        'sys.argv', ['script', *{'reports': ['digits'], 'on_gpu': ['1', 'true']}.get(script, [])]
    )
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / f'workflow/{script}.py'), run_name='__main__')
    assert end.value.code == 130 and capsys.readouterr().err == f'{said}\n'


def test_an_unknown_set_is_refused(reports):
    with pytest.raises(ValueError, match='unknown set fish; known are digits, birds'):
        reports.main(['fish'])


@pytest.mark.parametrize('block', BLOCKS, ids=lambda block: block['dataset'])
@pytest.mark.parametrize('bits', [16, 24, 32, 48])
def test_every_report_is_there_and_has_its_number(block, bits):
    config = resolve(**block, bits=bits)
    table = table_of(ROOT / 'reports', config.dataset)
    rows = read_table(table) if table.is_file() else []
    own = [row for row in rows if row['hash'] == config.hash]
    if not own:
        pytest.skip(f'{table.name} has no run of {bits} bits yet: workflow/grids')
    (row,) = own
    path = ROOT / 'reports' / table.stem / f'dcwh-{bits}.ipynb'
    shown = [
        output.get('data', {}).get('text/markdown', '')
        for cell in nbformat.read(path, 4).cells
        for output in cell.get('outputs', [])
    ]
    (headline,) = [text for text in shown if text.startswith('**mAP')]
    assert f'{row["map"]:.4f}' in headline and f'for {bits} bits' in headline


def test_the_folder_of_reports_stays_small():
    assert (
        sum(path.stat().st_size for path in (ROOT / 'reports').rglob('*') if path.is_file()) < 20e6
    )
