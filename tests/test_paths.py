"""What is no path is refused in a line wherever a path is taken, and nothing is made of it."""

import numpy as np
import pytest
from programs import free_port

import dcwh
from dcwh import encoding, experiment, files, model, parts, results, sharing, sources, training
from dcwh.app import serve

CODES = dcwh.Codes.from_bits(np.eye(4, 8, dtype=np.uint8), [0, 0, 1, 1])
INDEX = dcwh.CodeIndex.build(CODES)
CONFIG = dcwh.resolve(bits=16)
DIGITS = {'dataset': 'digits', 'bits': 16}
TAKING = {
    'Codes.save': CODES.save,
    'Codes.load': dcwh.Codes.load,
    'CodeIndex.save': INDEX.save,
    'CodeIndex.load': dcwh.CodeIndex.load,
    'CodeParts.open': dcwh.CodeParts.open,
    'HashModel.from_pretrained': dcwh.HashModel.from_pretrained,
    'load': lambda where: dcwh.load('folder/birds', data_dir=where),
    'lists': lambda where: sources.lists('lists/birds', where),
    'cifar': lambda where: sources.cifar('cifar10', where),
    'run': lambda where: dcwh.run(CONFIG, runs=where),
    'report, template': lambda where: experiment.report(where, **DIGITS),
    'report, path': lambda where: experiment.report(path=where, **DIGITS),
    'finished': lambda where: experiment.finished(CONFIG, where),
    'finished_runs': experiment.finished_runs,
    'reported': lambda where: experiment.reported(where, CONFIG),
    'Checkpoint': lambda where: training.Checkpoint(where, 'key'),
    'encode_dataset, model': lambda where: encoding.encode_dataset(where, '.', 'codes'),
    'encode_dataset, source': lambda where: encoding.encode_dataset('m', where, 'codes'),
    'encode_dataset, to': lambda where: encoding.encode_dataset('m', '.', where),
    'files_at': parts.files_at,
    'read_saved': model.read_saved,
    'read_results': results.read_results,
    'result_files': results.result_files,
    'table_of': lambda where: results.table_of(where, 'digits'),
    'publish': lambda where: sharing.publish(where, 'there'),
    'OnnxModel': sharing.OnnxModel,
    'locked': lambda where: files.locked(where).__enter__(),
    'folder_lock': lambda where: files.folder_lock(where).__enter__(),
}


@pytest.mark.parametrize('name', TAKING)
@pytest.mark.parametrize('where', (5, b'birds', ['birds', 5], 'a\0b'), ids=ascii)
def test_what_is_no_path_is_refused_in_a_line(name, where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, OSError)) as error:
        TAKING[name](where)
    assert len(str(error.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('dataset', (5, None, '', 'birds', 'folder/'))
def test_a_table_is_that_of_a_set(dataset):
    with pytest.raises(ValueError, match='dataset'):
        results.table_of('reports', dataset)


def test_names_in_a_file_of_codes_are_text(tmp_path):
    CODES.save(tmp_path / 'codes.npz')
    with pytest.raises(ValueError, match='codes and labels name arrays of the file; give text'):
        dcwh.codes.read_codes(tmp_path / 'codes.npz', labels=np.zeros(4))


def test_a_page_takes_an_index_and_an_encoder():
    with pytest.raises(ValueError, match='index is of type int, and'):
        serve(5, dcwh.HashModel('small', 8, weights='none'), port=free_port())
    with pytest.raises(ValueError, match='encoder is of type int, and'):
        serve(INDEX, 5, port=free_port())
