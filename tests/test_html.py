"""Every notebook is valid and reads as HTML: tables are tables, no row of one stands as text, and
whoever does not see an image can read what it shows."""

import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbconvert import HTMLExporter

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / 'workflow'))
from readme import alternative  # noqa: E402 of workflow/

NOTEBOOKS = sorted(
    path
    for folder in ('nbs', 'reports')
    for path in (ROOT / folder).rglob('*.ipynb')
    if not any(part.startswith(('.', '_')) for part in path.relative_to(ROOT).parts)
)
PAGES = [ROOT / 'README.md', *sorted(ROOT.glob('docs/*.md')), *sorted(ROOT.glob('*/README.md'))]
MARKDOWN = 'text/markdown'
# words with which a line of an alternative text must not begin: nbdev would follow them
DIRECTIVES = {'hide', 'notest', 'slow', 'cuda', 'eval:', 'echo:', 'default_exp'}


def name(path):
    return path.relative_to(ROOT).as_posix()


def markdown(notebook):
    "All texts that are shown as Markdown: cells and outputs, without what is fenced as code."
    cells = [cell.source for cell in notebook.cells if cell.cell_type == 'markdown']
    outputs = [output for cell in notebook.cells for output in cell.get('outputs', [])]
    shown = [output.data[MARKDOWN] for output in outputs if MARKDOWN in output.get('data', {})]
    fenced = re.compile(r'^```.*?^```', re.DOTALL | re.MULTILINE)
    return [fenced.sub('', text) for text in cells + shown]


def tables(text):
    "How many Markdown tables there are in a text, by the line below their head."
    return len(re.findall(r'^ *\|?(?: *:?-+:? *\|)+ *:?-*:? *$', text, re.MULTILINE))


def rows_as_text(html):
    "Paragraphs, headings and list items of a page in which a row of a table stands as text."
    blocks = re.findall(r'<(p|li|h[1-6])\b[^>]*>(.*?)</\1>', html, re.DOTALL)
    return [text for _, text in blocks if re.search(r'^\s*\|.*\|\s*$', text, re.MULTILINE)]


def page(notebook):
    "As HTML, without code, which takes most of the time and has no tables."
    exporter = HTMLExporter(template_name='basic', exclude_input=True)
    return exporter.from_notebook_node(notebook)[0]


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name)
def test_is_valid_and_reads_as_html(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    html = page(notebook)
    assert not rows_as_text(html)
    assert html.count('<table') >= sum(map(tables, markdown(notebook)))


def unsaid(markdown):
    "Images of a text without an alternative text of two words or more."
    images = re.findall(r'!\[([^\]]*)\]\(([^)]*)\)', markdown)
    tags = re.findall(r'(<img\b(?:(?!alt="\w+ \w+)[^>])*>)', markdown)
    return [target for text, target in images if not re.search(r'\w \w', text)] + tags


@pytest.mark.parametrize('path', PAGES, ids=name)
def test_images_of_pages_have_alternative_texts(path):
    assert unsaid(path.read_text()) == []


@pytest.mark.parametrize('path', [p for p in NOTEBOOKS if 'nbs' in p.parts], ids=name)
def test_figures_have_alternative_texts(path):
    """A line `#| fig-alt: …` of the cell, as Quarto has it, goes on in lines `#|   …`. Reports take
    those of their template."""
    cells = nbformat.read(path, as_version=4).cells
    assert [t for cell in cells if cell.cell_type == 'markdown' for t in unsaid(cell.source)] == []
    code = {cell.id: cell for cell in cells if cell.cell_type == 'code'}
    texts = {i: alternative(cell.source) for i, cell in code.items()}
    silent = {
        i
        for i, cell in code.items()
        for output in cell.outputs
        if any(kind.startswith('image/') for kind in output.get('data', {}))
        if not re.fullmatch(r'\w.* .*\.', texts[i])
    }
    assert silent == set()
    lines = [line for cell in code.values() for line in re.findall(r'^#\|   (\S+)', cell.source)]
    assert not {*lines} & DIRECTIVES


def test_the_test_sees_images_without_a_text():
    assert unsaid('![png](a.png) ![](b.png) ![A small page](c.png)') == ['a.png', 'b.png']
    assert unsaid('<img src="a.png"> <img src="b.png" alt="A small page">') == ['<img src="a.png">']


def test_the_test_sees_what_is_wrong():
    good = '| a | b |\n|---|---|\n| 1 | 2 |'
    cells = [nbformat.v4.new_markdown_cell(text) for text in (good, f'A text.\n\n{good}')]
    notebook = nbformat.v4.new_notebook(cells=cells)
    assert [tables(text) for text in markdown(notebook)] == [1, 1]
    html = page(notebook)
    assert html.count('<table') == 2 and not rows_as_text(html)
    torn = nbformat.v4.new_markdown_cell('| a | b |\n| 1 | 2 |')
    assert rows_as_text(page(nbformat.v4.new_notebook(cells=[torn])))
    fenced = nbformat.v4.new_markdown_cell(f'```\n{good}\n```')
    assert [tables(text) for text in markdown(nbformat.v4.new_notebook(cells=[fenced]))] == [0]
