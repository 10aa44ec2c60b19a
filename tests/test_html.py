"""Every notebook is valid and reads as HTML: tables are tables, no row of one stands as text."""

import re
from pathlib import Path

import nbformat
import pytest
from nbconvert import HTMLExporter

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(
    path
    for folder in ('nbs', 'reports')
    for path in (ROOT / folder).rglob('*.ipynb')
    if not any(part.startswith(('.', '_')) for part in path.relative_to(ROOT).parts)
)
MARKDOWN = 'text/markdown'


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
