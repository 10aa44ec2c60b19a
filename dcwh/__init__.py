"""Deep Class-Wise Hashing: short binary codes for image retrieval, learned from class labels.

Codes, and how well they retrieve::

    codes = dcwh.Codes.from_outputs(h, labels)      # real-valued outputs of any network, (N, K)
    dcwh.evaluate(query, database).map              # expected mAP: ties are averaged over

The paper's method in a loop of your own::

    criterion = dcwh.TwoStep(dcwh.DCWHLoss(num_classes=100, bits=48))
    criterion.begin_epoch(epoch, epochs)            # before each epoch
    loss = criterion(network(images), labels)       # each batch
    criterion.end_epoch()                           # after each epoch: the centres' turn

A whole experiment, from a configuration to a result::

    config = dcwh.resolve(dataset='digits', bits=48)
    result = dcwh.run(config)

Use what was trained::

    model = dcwh.HashModel.from_pretrained('runs/…/model')
    codes = model.encode(['a.jpg', 'b.jpg'])
    index = dcwh.CodeIndex.build(codes, kind='flat')
    distances, ids = index.search(codes, k=10)

A database of any size, here or in a bucket, scored part by part::

    dcwh.evaluate(query, dcwh.CodeParts.open('s3://bucket/codes.lance').numbered(classes)).map

Names are loaded when they are first asked for, so `import dcwh` is quick. Each module is written
from one notebook in nbs/, which explains it: nbs/tour.ipynb is where to begin.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .codes import Codes as Codes
    from .config import Config as Config
    from .config import resolve as resolve
    from .data import load as load
    from .evaluation import evaluate as evaluate
    from .experiment import run as run
    from .loss import ClassWiseLoss as ClassWiseLoss
    from .loss import DCWHLoss as DCWHLoss
    from .loss import cube_loss as cube_loss
    from .loss import vertex_loss as vertex_loss
    from .methods import METHODS as METHODS
    from .methods import register as register
    from .metrics import HashRetrieval as HashRetrieval
    from .model import HashModel as HashModel
    from .optimizer import TwoStep as TwoStep
    from .parts import CodeParts as CodeParts
    from .search import CodeIndex as CodeIndex
    from .training import train as train

_HOMES = {
    'Codes': 'codes',
    'DCWHLoss': 'loss',
    'ClassWiseLoss': 'loss',
    'cube_loss': 'loss',
    'vertex_loss': 'loss',
    'TwoStep': 'optimizer',
    'evaluate': 'evaluation',
    'HashRetrieval': 'metrics',
    'METHODS': 'methods',
    'register': 'methods',
    'load': 'data',
    'HashModel': 'model',
    'Config': 'config',
    'resolve': 'config',
    'train': 'training',
    'run': 'experiment',
    'CodeIndex': 'search',
    'CodeParts': 'parts',
}
_NEEDS = {'HashRetrieval': 'torchmetrics'}  # of the extra `metrics`

__all__ = [*_HOMES, '__version__']


def __getattr__(name: str) -> Any:
    "A public name, from the module it lives in."
    if name not in _HOMES:
        raise AttributeError(f'module dcwh has no {name}; public are {", ".join(_HOMES)}')
    value = getattr(import_module(f'.{_HOMES[name]}', __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    "All names that can be loaded here."
    lacking = {name for name, needs in _NEEDS.items() if find_spec(needs) is None}
    return sorted({*globals(), *_HOMES} - lacking)
