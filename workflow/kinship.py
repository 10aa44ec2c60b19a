"""How near kindred classes are, in the codes of runs and in the features that their backbone had
before training. Writes reports/<set>/kinship.csv, a row for each run and one for the backbone, and
reports/<set>/kinship-<name>.csv, distances between classes for `dcwh.figures.class_trees`.

    .venv/bin/python workflow/kinship.py runs/cifar100-jpeg-default/dcwh-48-seed0-* [more runs]

All runs are of one task on one set, which has superclasses (data/README.md), and of one backbone.
Its features are those of the images of the first run, and of its seed if it has no weights to
begin with. Images, codes and weights of a run have to be at hand. Distances between classes are
Hamming distances of class codes, or one less the cosine of class means of features, which have
length 1 before the mean is taken. Both are of the database.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import normalize

from dcwh.codes import Codes, class_codes, hamming
from dcwh.config import Config
from dcwh.data import ImageSet, RetrievalSet
from dcwh.evaluation import kinship_of_classes
from dcwh.experiment import (
    check_data,
    check_superclasses,
    check_weights,
    codes_of_run,
    kinship_of_run,
    retrieval_set,
)
from dcwh.files import write_whole
from dcwh.model import HashModel, feature_model
from dcwh.results import check_result, read_result, table_of

COLUMNS = 'method', 'bits', 'seed', 'map', 'map_kin', 'ndcg_kin', 'map_kin_classes', 'run'
ALIKE = (  # in all runs: numbers of others cannot stand in one column
    'dataset',
    'protocol',
    'evaluate_on',
    'unseen',
    'map_top_k',
    'map_normaliser',
    'backbone',
    'weights',
    'image_size',
    'resize',
)


def features_before(config: Config, images: ImageSet) -> torch.Tensor:
    "Features of images, (N, F), by the backbone that a run of this configuration begins with."
    torch.manual_seed(config.seed)  # as `training.build`, where no weights are given
    sizes = config.image_size, config.resize
    model = feature_model(HashModel(config.backbone, config.bits, config.weights, *sizes))
    model = model.to('cuda' if torch.cuda.is_available() else 'cpu')
    return model.outputs(images, workers=config.workers, progress=sys.stderr.isatty())


def feature_distances(features: torch.Tensor, labels: np.ndarray) -> np.ndarray:
    "One less the cosine of the class means of features (N, F), for each two classes that occur."
    classes, place = np.unique(labels, return_inverse=True)
    sums = torch.zeros(len(classes), features.shape[1], dtype=torch.float64)
    sums.index_add_(0, torch.from_numpy(place), normalize(features.double()))
    means = normalize(sums)
    return (1 - means @ means.T).numpy()


def code_distances(codes: Codes) -> np.ndarray:
    "Hamming distances of the class codes of each two classes that occur."
    centres = class_codes(codes).packed
    return hamming(centres, centres)


def superclasses_of(data: RetrievalSet) -> np.ndarray:
    "The superclass of each class. Raises ValueError where a set has none."
    source = data.query.source
    if source.superclasses is None:
        raise ValueError(f'{source.name} has no superclasses; data/README.md says how to give them')
    return np.array(source.superclasses)


def of_run(folder: Path, data: RetrievalSet) -> tuple[dict, np.ndarray]:
    "The row of a run, and the distances of its class codes."
    result, superclasses = read_result(folder / 'result.json'), superclasses_of(data)
    check_weights(result, check_result(result), folder / 'result.json')
    check_data(result, data, folder / 'result.json')
    if 'map_kin' in result['metrics']:  # which the row has, too
        check_superclasses(result, data, folder / 'result.json')
    codes = codes_of_run(folder, result['manifest'].get('model'))
    distances = code_distances(codes['database'])
    present = np.unique(codes['database'].labels)
    row = {name: result['config'][name] for name in ('method', 'bits', 'seed')}
    row |= {'map': result['metrics']['map'], 'run': f'{folder.parent.name}/{folder.name}'}
    row |= kinship_of_run(data, codes)
    row['map_kin_classes'] = kinship_of_classes(distances, superclasses[present])
    return row, distances


def of_backbone(config: Config, data: RetrievalSet) -> tuple[dict, np.ndarray]:
    "The row of the backbone before training, and the distances of its class means."
    images, superclasses = data.database, superclasses_of(data)
    distances = feature_distances(features_before(config, images), images.labels)
    near = kinship_of_classes(distances, superclasses[np.unique(images.labels)])
    return {'method': 'backbone', 'map_kin_classes': near}, distances


def write_distances(file: Path, distances: np.ndarray, data: RetrievalSet) -> None:
    "A table of distances, with the names of the classes as its first line and column."
    names = [data.classes[c] for c in np.unique(data.database.labels)]
    table = pd.DataFrame(distances, names, names).rename_axis('class')
    write_whole(file, lambda f: f.write(table.to_csv(float_format='%.4f').encode()))


def write_tables(folders: list[Path], reports: str | Path = 'reports') -> Path:  # of the tables
    """Write the tables of some runs of one set, the distances of the first run of each method and
    code length.

    Raises FileNotFoundError, or ValueError for runs that do not belong together."""
    configs = [check_result(read_result(folder / 'result.json')) for folder in folders]
    differ = [name for name in ALIKE if len({getattr(config, name) for config in configs}) > 1]
    if differ:
        raise ValueError(f'the runs differ in {", ".join(differ)}; give runs of one task')
    out = Path(reports) / table_of(reports, configs[0].dataset).stem
    sets = [retrieval_set(config) for config in configs]
    found = [of_run(folder, data) for folder, data in zip(folders, sets, strict=True)]
    data = sets[0]
    row, distances = of_backbone(configs[0], data)
    rows, named = [row], {'backbone': distances}
    for row, distances in found:
        rows.append(row)
        named.setdefault(f'{row["method"].replace(":", ".")}-{row["bits"]}', distances)
    table = pd.DataFrame(rows, columns=[*COLUMNS]).astype({'bits': 'Int64', 'seed': 'Int64'})
    for name, distances in named.items():
        write_distances(out / f'kinship-{name}.csv', distances, data)
    text = table.to_csv(index=False, float_format='%.6f')
    write_whole(out / 'kinship.csv', lambda f: f.write(text.encode()))
    return out


if __name__ == '__main__':
    if not sys.argv[1:]:
        sys.exit(__doc__)
    try:
        print(write_tables([Path(folder) for folder in sys.argv[1:]]))
    except (ValueError, OSError) as e:
        sys.exit(str(e))
    except KeyboardInterrupt:
        print('stopped; the tables are as they were', file=sys.stderr)
        sys.exit(130)
