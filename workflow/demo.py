"""Train for about two minutes on images that are at hand, and open the search page on them.

    make demo                            # scikit-learn's digits
    make demo ARGS=/data/birds           # images in folders, one for each class
    make demo ARGS=folder/cifar10-jpeg   # a set of data/cache, by its name
    make demo ARGS="--no-open"           # print the address only
    make demo ARGS="/data/birds --force" # train anew, once images came or went

The page is on 127.0.0.1, and Ctrl-C ends it. What was trained once is shown at once.
"""

import argparse
import logging
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from dcwh import app
from dcwh.codes import Codes
from dcwh.config import Config, resolve
from dcwh.data import ImageSet
from dcwh.experiment import retrieval_set, run
from dcwh.model import HashModel
from dcwh.results import run_name
from dcwh.search import CodeIndex
from dcwh.sources import Files

RUNS = Path('runs/demo')
DRAWN = {'digits', 'digit-pairs'}  # whose own recipes take two minutes
SMALL = {'backbone': 'small', 'weights': 'none', 'image_size': 32, 'lr': 3e-3, 'batch_size': 64}
MOST = 3000  # training images of any other set


def config_of(images: str, epochs: int) -> Config:
    "A short run on a set, or on a folder of images. Raises ValueError or FileNotFoundError."
    given = {'dataset': images, 'bits': 32, 'epochs': epochs}
    if Path(images).is_dir():
        place = Path(images).resolve()
        given |= {'dataset': f'folder/{place.name}', 'data_dir': str(place)}
    elif images.startswith(('/', '.', '~')):
        raise FileNotFoundError(f'there is no folder {images}; give one, or a set by its name')
    if images in DRAWN:
        return resolve(**given)
    given |= {**SMALL, 'epochs': epochs or 10}
    found = len(retrieval_set(resolve(**given)).train)
    return resolve(**given, train_images=MOST if found > MOST else 0)


def pictures_of(images: ImageSet, folder: Path) -> tuple[Path, list[str]]:
    "Where images lie as files, and their names there; those of a set in memory are written."
    held = images.source.images
    if isinstance(held, Files):
        return held.root, [held.names[i] for i in images.ids]
    names = [f'{i}.png' for i in images.ids]
    folder.mkdir(parents=True, exist_ok=True)
    for n, name in enumerate(names):
        Image.fromarray(images[n].permute(1, 2, 0).numpy()).save(folder / name)
    return folder, names


def labels_of(images: ImageSet) -> list[str]:
    "The names of the classes of each image."
    names, labels = np.array(images.source.classes), images.labels
    if labels.ndim == 1:
        return names[labels].tolist()
    return [', '.join(names[: labels.shape[1]][row]) for row in labels]


def main(images: str, epochs: int, port: int, open_browser: bool, force: bool) -> None:
    app.find_gradio()
    app.check_port(port)
    config = config_of(images, epochs)
    print(f'training on {config.dataset}, {config.epochs} epochs', flush=True)
    metrics = run(config, RUNS, resume=not force)['metrics']
    home, database = RUNS / run_name(config), retrieval_set(config).database
    print(f'mAP {metrics["map"]:.3f}: {metrics["queries"]} queries, {len(database)} images')
    root, names = pictures_of(database, home / 'pictures')
    codes = Codes.load(home / 'database.npz')
    named = Codes.from_packed(codes.packed, codes.bits, ids=np.array(names), model=codes.model)
    index = CodeIndex.build(named, 'flat', {'label': labels_of(database)}, str(root.resolve()))
    app.serve(index, HashModel.from_pretrained(home / 'model'), '', port, open_browser)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description='Train for two minutes, and search in a browser.')
    parser.add_argument('images', nargs='?', default='digits', help='a folder, or a set by name')
    parser.add_argument('--epochs', type=int, default=0, help='0: so many as take two minutes')
    parser.add_argument('--port', type=int, default=7860, help='of 127.0.0.1')
    parser.add_argument('--no-open', action='store_true', help='print the address only')
    parser.add_argument('--force', action='store_true', help='train anew, as with other images')
    asked = parser.parse_args()
    logging.basicConfig(format='%(message)s', level=logging.WARNING)
    logging.getLogger('dcwh').setLevel(logging.INFO)
    try:
        main(asked.images, asked.epochs, asked.port, not asked.no_open, asked.force)
    except (ValueError, OSError, ImportError) as e:
        sys.exit(str(e))
    except KeyboardInterrupt:
        print('stopped; the same command goes on', file=sys.stderr)
        sys.exit(130)
