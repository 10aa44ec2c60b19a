"""Several lengths from one training: what a run measures and keeps, resumed to the bit, rows that
stand beside runs of their length."""

import numpy as np
import pytest
import torch

from dcwh import experiment, results
from dcwh.codes import Codes
from dcwh.config import resolve
from dcwh.data import load
from dcwh.evaluation import evaluate
from dcwh.methods import nested
from dcwh.model import HashModel
from dcwh.training import train

TASK = {'dataset': 'digits', 'bits': 24, 'method': 'dcwh-nested', 'epochs': 2, 'workers': 0}


@pytest.fixture(scope='module')
def done(tmp_path_factory):
    "A finished run of 16 and 24 bits: its folder of runs, and its result."
    runs = tmp_path_factory.mktemp('runs')
    config = resolve(**TASK, train_per_class=40)
    return runs / results.run_name(config), experiment.run(config, runs)


def test_each_length_is_measured_as_its_codes_are(done):
    folder, result = done
    codes = [Codes.load(folder / f'{role}.npz') for role in ('query', 'database')]
    assert [*result['parts']] == ['16 bits']
    part = result['parts']['16 bits']
    short = [side.first(16) for side in codes]
    assert part['metrics']['map'] == evaluate(*short).map != result['metrics']['map']
    assert part['metrics']['bits'] == 16 and part['query'] == len(codes[0])
    assert part['metrics']['distinct_codes'] == len(np.unique(short[1].packed, axis=0))
    assert 0 < part['metrics']['map_decisions'] <= 1


def test_the_saved_model_says_its_lengths(done):
    folder, result = done
    model = HashModel.from_pretrained(folder / 'model')
    assert model.lengths == (16, 24) and model.identity() == result['manifest']['model']


def test_rows_stand_beside_runs_of_their_length(done, tmp_path):
    _, result = done
    table = results.record(result, tmp_path, modified=True)
    rows = results.read_table(table)
    assert [(row['bits'], row['part']) for row in rows] == [(24, None), (24, '16 bits')]
    assert rows[1]['map'] == result['parts']['16 bits']['metrics']['map']
    frame = results.read_results(tmp_path)
    assert sorted(frame['bits']) == [16, 24] and {*frame['protocol']} == {
        f'full, 40 {results.LIMITED}'
    }
    config = resolve(**TASK, train_per_class=40)
    assert results.row_of_config(config, tmp_path)['part'] is None
    before = table.read_bytes()
    results.record(result, tmp_path, modified=True)
    assert table.read_bytes() == before
    results.write_rows(tmp_path / 'digits.csv', rows)
    table.write_text('\n'.join(table.read_text().splitlines()[:2]) + '\n')
    with pytest.raises(ValueError, match='of this run 16 bits is missing'):
        results.read_table(table)


def test_a_result_with_other_parts_is_none(done):
    _, result = done
    part = result['parts']['16 bits']
    for parts, said in (
        ({}, "should be .'16 bits'"),
        ({'8 bits': part}, "should be .'16 bits'"),
        ({'16 bits': part | {'query': 1}}, 'should be of the same images'),
    ):
        with pytest.raises(ValueError, match=said):
            results.check_result(result | {'parts': parts})


def test_one_length_is_dcwh_to_the_bit():
    data, made = load('digits', train_per_class=20), {}
    for method in ('dcwh', 'dcwh-nested'):
        config = resolve(**TASK | {'bits': 16, 'method': method})
        made[method] = train(config, data, progress=False)
    plain, nested = made['dcwh'], made['dcwh-nested']
    assert plain.history == nested.history and nested.model.lengths == (16,)
    assert plain.model.identity() == nested.model.identity()
    assert torch.equal(plain.criterion.centres, nested.criterion.centres)


def test_a_resumed_training_is_the_same_to_the_bit(tmp_path, monkeypatch):
    data = load('digits', train_per_class=20)
    for settings in ({}, {'centres': 'exact'}):
        config = resolve(settings, **TASK | {'epochs': 4})
        whole = train(config, data, progress=False)
        folder = tmp_path / (config.hash)
        folder.mkdir()
        with monkeypatch.context() as patch:
            patch.setattr('dcwh.training.SPACING', 0)
            patch.setattr('dcwh.methods.Nested.begin_epoch', _dying_at(2))
            with pytest.raises(KeyboardInterrupt):
                train(config, data, folder=folder, progress=False)
        again = train(config, data, folder=folder, progress=False)
        assert again.history == whole.history
        assert again.model.identity() == whole.model.identity()
        states = whole.criterion.state_dict(), again.criterion.state_dict()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def _dying_at(last):
    "`begin_epoch` of a process that is stopped before an epoch."

    def begin_epoch(self, epoch, epochs):
        if epoch == last:
            raise KeyboardInterrupt
        for criterion in self.criteria:
            criterion.begin_epoch(epoch, epochs)

    return begin_epoch


def test_its_centres_are_found_as_those_of_dcwh():
    with pytest.raises(ValueError, match="^method dcwh-nested cannot have centres='gradient'"):
        resolve(**TASK, centres='gradient')
    assert resolve(**TASK).method_settings == {'shortest': 16}


def test_lengths_of_several_trainings_stand_apart(tmp_path):
    longer = TASK | {'bits': 48, 'epochs': 1}
    alone = TASK | {'bits': 16, 'method': 'dcwh', 'epochs': 1}
    shorter = TASK | {'epochs': 1}
    for task in (shorter, longer, alone):
        config = resolve(**task, train_per_class=40)
        results.record(experiment.run(config, tmp_path), tmp_path, modified=True)
    frame = results.read_results(tmp_path)
    nested = ['dcwh-nested (of 24 bits)', 'dcwh-nested (of 48 bits)']
    at_16 = results.summary(frame).query('bits == 16')
    assert at_16['method'].tolist() == ['dcwh', *nested] and set(at_16['n']) == {1}
    rows = results.standings(frame, 'dcwh')
    assert rows['other'].tolist() == nested and set(rows['method']) == {'dcwh'}
    differences = frame.set_index(['called', 'bits'])['map']
    for called, difference in zip(rows['other'], rows['difference'], strict=True):
        assert difference == differences['dcwh', 16] - differences[called, 16]
    assert all(
        name in results.as_html(results.comparison(results.summary(frame))) for name in nested
    )


@pytest.mark.parametrize(('bits', 'said'), [(16, True), (24, False)])
def test_codes_too_short_for_a_shorter_length_are_told_of(bits, said, caplog):
    nested(resolve(method='dcwh-nested', bits=bits), 10, torch.Generator())
    assert ('dcwh-nested trains as dcwh: below 16 bits' in caplog.text) == said
