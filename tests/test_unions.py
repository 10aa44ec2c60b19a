"""The script behind the table of bits that are unions: codes made by hand, in which it is known which are."""
from pathlib import Path
import runpy

import numpy as np

from dcwh.codes import Codes

SCRIPT = runpy.run_path(str(Path(__file__).resolve().parents[1] / 'workflow/unions.py'))


def test_counts_bits_that_are_unions():
    labels = np.random.default_rng(0).random((400, 4)) < .5
    labels[:, 0] |= ~labels.any(1)
    union, either = labels[:, 0] | labels[:, 2], labels[:, 1] ^ labels[:, 3]   # the second is no union of classes
    noisy = union ^ (np.arange(400) % 20 == 0)                                 # one in twenty flipped
    bits = np.stack([union, ~union, noisy, either, np.ones(400, bool)], axis=1)
    assert SCRIPT['unions'](Codes(np.packbits(bits, axis=1), 5, labels, np.arange(400))) == [2, 2, 2, 0, 0]
