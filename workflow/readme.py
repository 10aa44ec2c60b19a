"""Write README.md, and its pictures in nbs/index_images/, from nbs/index.ipynb; with --check
only tell whether they are up to date.

Hidden cells are dropped, `#| echo: false` leaves the output of a cell and not its code. Links and
pictures in the notebook are relative to nbs/, as Jupyter wants them; in the README they are
relative to the repository's root, as GitHub wants them. setup.py makes them absolute for PyPI."""

import posixpath
import re
import sys
from pathlib import Path

import nbformat
from execnb.nbio import nb2str, read_nb
from nbconvert import MarkdownExporter
from nbdev.processors import FilterDefaults, add_links

INDEX = Path('nbs/index.ipynb')
IMAGES = 'nbs/index_images'  # holds nothing else
CODE_OR_LINK = re.compile(
    r'(?P<code>```.*?```|`[^`\n]*`)|(?P<before>\]\(|src=")(?P<target>[^)"#:\s]+)(?=[)"#\s])',
    re.DOTALL,
)

ALT = re.compile(r'^#\| fig-alt: (.*(?:\n#\|   .*)*)', re.MULTILINE)


def alternative(source: str) -> str:
    "The text of a cell's directive `fig-alt`: what its figure shows, for those who do not see it."
    found = ALT.search(source)
    return found[1].replace('\n#|   ', ' ') if found else ''


class Readme(FilterDefaults):
    """nbdev's processors but the links to a documentation site: a README links to files that lie
    beside it."""

    def base_procs(self):
        return [p for p in super().base_procs() if p is not add_links]


def from_root(markdown: str) -> str:
    "Relative links of a notebook in nbs/ as seen from the root; code is left alone."

    def move(m):
        return m['code'] or m['before'] + posixpath.normpath(
            posixpath.join(INDEX.parent.as_posix(), m['target'])
        )

    return CODE_OR_LINK.sub(move, markdown)


def render(index: Path = INDEX) -> dict[str, bytes]:
    "The README and its pictures: path from the root -> content."
    nb = read_nb(index)
    texts = {c.id: alternative(c.source) for c in nb.cells}
    Readme()(nb)
    nb.cells = [c for c in nb.cells if c.cell_type != 'raw']
    alternatives = [
        texts[c.id]
        for c in nb.cells
        for output in c.get('outputs', [])
        if 'image/png' in output.get('data', {})
    ]
    for c in nb.cells:
        if c.cell_type == 'markdown':
            c.source = from_root(c.source)
        elif re.match(r'(#\|.*\n)*#\|\s*echo:\s*false', c.source):
            c.metadata['transient'] = {'remove_source': True}
        else:
            c.source = re.sub(r'\A(#\|.*\n)+', '', c.source)
        for output in c.get('outputs', []):
            shown = output.get('data', {})
            if 'text/markdown' in shown:
                shown['text/markdown'] = from_root(''.join(shown['text/markdown']))
    nb.metadata['language_info'] = {'name': 'python'}
    names = {'unique_key': 'index', 'output_files_dir': IMAGES}
    body, resources = MarkdownExporter().from_notebook_node(
        nbformat.reads(nb2str(nb), as_version=4), resources=names
    )
    for text in alternatives:
        body = body.replace('![png]', f'![{text}]', 1)
    body = re.sub(r'<style scoped>.*?</style>\n?', '', body, flags=re.DOTALL)
    body = re.sub(r'(```.*?```)|\n([ \t]*\n)+', lambda m: m[1] or '\n\n', body, flags=re.DOTALL)
    front = nb.frontmatter_
    head = f'# {front["title"]}\n\n' + (
        f'> {front["description"]}\n\n' if 'description' in front else ''
    )
    return {'README.md': (head + body.strip() + '\n').encode(), **resources['outputs']}


def main(check: bool) -> int:
    files = render()
    stale = {str(p) for p in Path(IMAGES).glob('*')} - files.keys()
    changed = [
        p
        for p, content in files.items()
        if not Path(p).is_file() or Path(p).read_bytes() != content
    ]
    if check:
        if changed or stale:
            print('out of date: ' + ', '.join(sorted({*changed, *stale})) + '; run: make readme')
        return bool(changed or stale)
    for p in changed:
        Path(p).parent.mkdir(exist_ok=True)
        Path(p).write_bytes(files[p])
    for p in stale:
        Path(p).unlink()
    return 0


if __name__ == '__main__':
    sys.exit(main('--check' in sys.argv[1:]))
