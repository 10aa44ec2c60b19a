"""What another runtime and half the precision do to the codes of one trained network: writes
benchmarks/precision.csv.

.venv/bin/python benchmarks/precision.py

CIFAR-10 as JPEG (data/README.md) and the model of the result named below, which a run of it
leaves in runs/. Every fifth test image is a query, every tenth training image is in the
database. Where either is missing, the table stays as it is."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from tables import write_table

from dcwh.codes import Codes
from dcwh.data import ImageSet
from dcwh.evaluation import evaluate
from dcwh.model import HashModel
from dcwh.sharing import OnnxModel, export_onnx
from dcwh.sources import find_source

ROOT = Path(__file__).parents[1]
CIFAR, MODEL = (
    ROOT / 'data/cache/cifar10',
    ROOT / 'runs/cifar10-jpeg-default/dcwh-48-seed0-def7e8b6/model',
)


def rows():
    model = HashModel.from_pretrained(MODEL)
    source = find_source('folder/cifar10-jpeg', CIFAR)
    sets = {
        'query': ImageSet(source, source.split.query[::5]),
        'database': ImageSet(source, source.split.train[::10]),
    }
    with TemporaryDirectory() as folder:
        onnx = OnnxModel(export_onnx(model, f'{folder}/model.onnx'))
    outputs = {
        name: {role: f(images).numpy() for role, images in sets.items()}
        for name, f in {
            'fp32': lambda images: model.outputs(images, batch_size=64),
            'onnx': lambda images: onnx.outputs(images, batch_size=64),
            'parts': lambda images: model.outputs(images, batch_size=7),
            'bf16': lambda images: model.outputs(images, batch_size=64, precision='bf16'),
        }.items()
    }
    outputs['mixed'] = {'query': outputs['bf16']['query'], 'database': outputs['fp32']['database']}
    exact = np.concatenate([*outputs['fp32'].values()])
    yield [
        'what',
        'bits changed',
        'of',
        'images with a changed bit',
        'largest change of an output',
        'largest output whose bit changed',
        'mAP',
    ]
    for name, said in {
        'fp32': 'torch, float32',
        'parts': 'torch, float32, batches of 7 in place of 64',
        'onnx': 'onnxruntime, float32',
        'bf16': 'torch, bfloat16',
        'mixed': 'queries in bfloat16, database in float32',
    }.items():
        h = np.concatenate([*outputs[name].values()])
        changed = (h > 0) != (exact > 0)
        codes = {
            role: Codes.from_outputs(part, sets[role].labels)
            for role, part in outputs[name].items()
        }
        yield [
            said,
            changed.sum(),
            changed.size,
            f'{changed.any(1).mean():.1%}',
            f'{abs(h - exact).max():.2g}',
            f'{abs(exact[changed]).max():.2g}' if changed.any() else '',
            f'{evaluate(**codes).map:.5f}',
        ]


if missing := [p for p in (CIFAR, MODEL) if not p.is_dir()]:
    print(f'{missing[0].relative_to(ROOT)} is not there; benchmarks/precision.csv stays as it is')
else:
    write_table(Path(__file__).with_suffix('.csv'), list(rows()))
