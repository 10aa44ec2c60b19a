"""What Ray costs where two plain processes would do: writes benchmarks/ray.csv.

.venv/bin/python benchmarks/on_ray.py [images, at least 200]

JPEGs of 256 pixels in one folder, ResNet-18 at 224 pixels with random weights, one thread for
each process. In turn, three times, two processes encode half of the folder each, and Ray encodes
it with two actors, in parts of 64 images. The median of each number counts. Start-up is the time
until a process has loaded its model, and until the first part has been added. The rate is that of
the rest: up to the end of the slower process, and up to the last part. When the first part is
added, the other actor is in its own first part: neither is counted."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import time

os.environ['OMP_NUM_THREADS'] = '1'
import numpy as np
import torch
from PIL import Image
from tables import most_of, write_table

from dcwh.encoding import encode_dataset
from dcwh.model import HashModel

COLUMNS = ['what', 'images', 'start-up (s)', 'images a second', 'of two processes', 'load']
PART = 64
HALF = """
import sys
from dcwh.model import HashModel
from dcwh.sources import Files, catalogue
model = HashModel.from_pretrained(sys.argv[1])
files = catalogue(sys.argv[2])[0]
half = Files(files.root, files.names[int(sys.argv[3]) :: 2])
print('ready', flush=True)
input()
print(len(model.encode(half, batch_size=64)), flush=True)
"""


def draw_photos(folder, images):
    "Noise, smoothed: as large to decode as a photograph of this size."
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(images):
        coarse = Image.fromarray(rng.integers(256, size=(64, 64, 3), dtype=np.uint8))
        coarse.resize((256, 256), Image.Resampling.BICUBIC).save(folder / f'{i:06}.jpg')


def by_processes(model, photos, images):
    "Start-up and rate of two processes."
    began = time()
    halves = [
        subprocess.Popen(
            [sys.executable, '-c', HALF, model, photos, str(k)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for k in (0, 1)
    ]
    assert [half.stdout.readline() for half in halves] == ['ready\n'] * 2
    ready = time()
    for half in halves:
        half.stdin.write('\n')
        half.stdin.flush()
    done = sum(int(half.stdout.readline()) for half in halves)
    ended = time()
    assert done == images and [half.wait() for half in halves] == [0, 0]
    return ready - began, images / (ended - ready)


def by_ray(model, photos, images, to):
    "Start-up and rate of two actors: when each part was added stands in the time of its file."
    began = time()
    made = encode_dataset(str(model), photos, to, actors=2, part=PART, threads=1)
    assert made.images == images
    times = sorted(file.stat().st_mtime for file in to.glob('part-*.parquet'))
    return times[0] - began, (images - 2 * PART) / (times[-1] - times[0])


if __name__ == '__main__':
    images = most_of(sys.argv[1:], 200, 2_000)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        draw_photos(home / 'photos', images)
        torch.manual_seed(0)
        HashModel('resnet18', 48, 'none').save_pretrained(home / 'model')
        model, photos = home / 'model', home / 'photos'
        found = {'two processes': [], 'Ray, two actors': []}
        for n in range(3 if images >= 1000 else 1):  # few are a try of this program
            found['two processes'].append(by_processes(model, photos, images))
            found['Ray, two actors'].append(by_ray(model, photos, images, home / f'codes-{n}'))
    medians = {
        what: [median(each) for each in zip(*runs, strict=True)] for what, runs in found.items()
    }
    plain = medians['two processes'][1]
    load = f'{os.getloadavg()[2]:.1f}'  # of the last quarter of an hour
    rows = [
        [what, images, f'{start:.3g}', f'{rate:.3g}', f'{rate / plain:.2f}', load]
        for what, (start, rate) in medians.items()
    ]
    write_table(Path(__file__).with_name('ray.csv'), [COLUMNS, *rows])
