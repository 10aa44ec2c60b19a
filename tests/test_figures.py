"""Figures on files and on many classes, the same each time; what is missing for them is said."""

import io
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

matplotlib.use('agg')
import matplotlib.pyplot as plt

from dcwh import figures
from dcwh.codes import Codes
from dcwh.data import ImageSet, load
from dcwh.results import comparison
from dcwh.sources import Source

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close('all')


def test_figures_of_files_and_of_many_classes(tmp_path):
    rng = np.random.default_rng(0)
    for c in range(30):
        folder = tmp_path / f'class{c:02}'
        folder.mkdir()
        for i in range(6):
            pixels = rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f'{i}.png')
    data = load('folder/many', data_dir=tmp_path)

    def codes(images):
        return Codes.from_outputs(rng.normal(size=(len(images), 24)), images.labels, images.ids)

    assert figures.samples(data.train).get_suptitle() == '20 of 30 classes'
    query, database = codes(data.query), codes(data.database)
    shown = figures.gallery(data.query, data.database, query, database, 3, 5)
    assert len(shown.axes) == 18


def test_what_cannot_be_drawn_is_refused():
    pixels, labels = np.zeros((8, 4, 4, 3), np.uint8), np.arange(8) % 4
    images = ImageSet(Source('four', pixels, labels, tuple('abcd')), np.arange(8))
    codes = Codes.from_outputs(np.random.default_rng(0).normal(size=(8, 8)), labels)
    for name in ('per_class', 'classes'):
        with pytest.raises(ValueError, match=f'^{name} is 0; give a whole number, 1 to'):
            figures.samples(images, **{name: 0})
    for figure in (figures.class_table, figures.code_map):
        with pytest.raises(ValueError, match='^classes has 2 names, and none for class [23]$'):
            figure(codes, classes=('a', 'b'))


def test_the_legend_of_a_map_counts_the_classes_that_are_there():
    rng = np.random.default_rng(0)
    names = tuple(f'class {c}' for c in range(30))
    few = Codes.from_outputs(rng.normal(size=(60, 12)), 10 * (np.arange(60) % 3))
    legend = figures.code_map(few, classes=names).axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ['class 0', 'class 10', 'class 20']
    assert legend.get_title().get_text() == ''


def test_a_method_with_two_settings_has_two_looks():
    looks = {'dcwh': {'color': 'b', 'marker': 'o'}, 'ce': {'color': 'r', 'marker': 's'}}
    own = figures._own_looks(['dcwh', 'ce', 'dcwh, lr=0.01', 'dcwh, lr=0.1'], looks)
    assert own['dcwh'] == looks['dcwh'] and own['ce'] == looks['ce']
    assert len({str(look) for look in own.values()}) == 4


def test_names_are_shown_as_they_are():
    names = ('$5_$10', '_background', 'a$', 'plain')
    pixels, labels = np.zeros((8, 4, 4, 3), np.uint8), np.arange(8) % 4
    images = ImageSet(Source('prices', pixels, labels, names), np.arange(8))
    codes = Codes.from_outputs(np.random.default_rng(0).normal(size=(8, 8)), labels, images.ids)
    drawn = [
        figures.samples(images),
        figures.gallery(images, images, codes, codes, 4, 3),
        figures.code_map(codes, np.ones((4, 8)), names),
        figures.class_trees({'all alike': 1 - np.eye(4)}, names, ('_a', '_a', '$b_$', 'c')),
        figures.contact_sheet([[pixels[0], pixels[1]]], [['$x_$.jpg', 'y']]),
    ]
    for figure in drawn:
        figures.as_image(figure)
    legends = [*drawn[2].axes[0].get_legend().get_texts(), *drawn[3].legends[0].get_texts()]
    shown = [text.get_text().lstrip('\u200b').replace(r'\$', '$') for text in legends]
    assert sorted(shown) == sorted([*names, '_a', '$b_$', 'c'])


def test_the_map_of_codes_is_the_same_each_time():
    rng = np.random.default_rng(0)
    codes = Codes.from_outputs(rng.normal(size=(200, 24)), np.arange(200) % 30)
    centres = rng.normal(size=(30, 24))
    files = [io.BytesIO(), io.BytesIO()]
    for file in files:
        figures.code_map(codes, centres).savefig(file, format='png')
    assert files[0].getvalue() == files[1].getvalue()


def cell_of(method, bits, value):
    "A row as `summary` has it."
    return {
        'dataset': 'digits',
        'protocol': 'full',
        'train_per_class': 0,
        'top_k': pd.NA,
        'normaliser': 'all',
        'method': method,
        'setting': 'default',
        'shared': 'default',
        'backbone': 'small',
        'bits': bits,
        'n': 2,
        'map': value,
        'interval': 0.1,
        'stood': False,
    }


def test_a_method_that_was_run_at_more_lengths_is_no_worse_for_it():
    "The mean mAP is lower of one that has short codes, too."
    long, both = [('long', 48, 0.54)], [('both', 16, 0.47), ('both', 48, 0.55)]
    cells = comparison(pd.DataFrame([cell_of(*cell) for cell in long + both]))
    assert list(dict.fromkeys(cells['method'])) == ['both', 'long']
    assert figures._foremost(cells, 'none', 2) == ['both', 'long']


@pytest.mark.parametrize('number', [1, 6, 7, 20])
def test_at_most_six_lines_have_a_colour(number):
    table = pd.DataFrame(
        [cell_of(f'm{m}', bits, (m + 1) / 21) for m in range(number) for bits in (16, 32)]
    )
    ax = figures.map_by_bits(comparison(table), main='m0').axes[0]
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    coloured = [name for name in names if name != 'other methods']
    assert len(coloured) == min(number, 6) and 'm0' in coloured
    assert ('other methods' in names) == (number > 6)
    grey = [line for line in ax.lines if line.get_color() == figures.OTHER_LINE['color']]
    assert len(grey) == number - len(coloured)
    low, high = ax.get_ylim()
    assert 0 <= low < high <= 1


def test_a_branch_has_a_colour_where_all_of_it_are_kin():
    kin = [str(c // 5) for c in range(100)]
    group = np.arange(100) // 5
    near = np.where(group[:, None] == group, 1, 9)
    far = np.random.default_rng(0).integers(5, 9, (100, 100))
    far = far + far.T
    fig = figures.class_trees({'near': near, 'far': far}, [f'class {c}' for c in range(100)], kin)
    grey = matplotlib.colors.to_rgba(matplotlib.colors.to_hex('0.7'))
    coloured = [
        [lines for lines in ax.collections if tuple(lines.get_colors()[0]) != grey]
        for ax in fig.axes
    ]
    near_links, far_links = (sum(len(lines.get_paths()) for lines in own) for own in coloured)
    assert near_links == 20 * 4 and far_links < 20
    assert len(coloured[0]) == len(figures.LINES)  # colours that are told apart
    assert [len(ax.get_yticklabels()) for ax in fig.axes] == [100, 100]
    assert len(fig.legends[0].get_texts()) == 20
    for trees in ({'near': near}, {'near': near, 'far': far}):
        fig = figures.class_trees(trees, kin, [f'superclass of a long name {c}' for c in kin])
        fig.draw_without_rendering()
        legend = fig.legends[0].get_window_extent()
        assert 0 <= legend.x0 < legend.x1 <= fig.bbox.width


def test_without_the_extra_the_import_says_what_to_install():
    code = "import sys; sys.modules['seaborn'] = None; import dcwh.figures"
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode and "pip install '.[report]' in a clone of dcwh" in done.stderr


def test_images_without_a_label_have_no_margin_to_show():
    bits = np.repeat([[0] * 8, [1] * 8, [0] * 4 + [1] * 4], 20, 0)
    labels = np.repeat([[1, 0], [0, 1], [0, 0]], 20, 0)
    title = figures.diagnostics(Codes.from_bits(bits, labels)).axes[3].get_title()
    assert title == '0.0% of the images have no margin'
