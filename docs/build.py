"""Build the website into docs/_build/html, offline: python docs/build.py [FOLDER]

Sphinx reads one folder, so pages are gathered in FOLDER/source: the notebooks as they are kept,
the pages of docs/ and the project's own Markdown, and what is made from modules and tables."""

import json
import re
import sys
from collections.abc import Callable
from configparser import ConfigParser
from pathlib import Path

import nbformat
from sphinx.cmd.build import main as sphinx

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(DOCS), str(ROOT / 'workflow')]

import notebooks  # noqa: E402 of this folder
import reference  # noqa: E402
import result_tables  # noqa: E402 of workflow/

NOT_PAGES = 'nbs/index.ipynb', 'nbs/templates/'  # the README, and what reports are made from
PLACES = {  # where files of the repository, or folders of them, are on the site
    'CONTRIBUTING.md': 'contributing.md',
    'CHANGELOG.md': 'changelog.md',
    'workflow/README.md': 'guides/grids.md',
    'data/README.md': 'guides/data.md',
    'docs/': '',
    'dcwh': 'reference/index.md',  # the folder of modules: their reference
    'nbs/tutorials/': 'guides/',
    'nbs/': 'notebooks/',
    'reports/': 'reports/',
}


def place(path: str) -> str:
    "The page that a file of the repository becomes."
    start = next(start for start in PLACES if path.startswith(start))
    return path.replace(start, PLACES[start], 1)


def files(folder: str, pattern: str) -> list[str]:
    "Files of the repository, without checkpoints and what was built."
    found = [path.relative_to(ROOT) for path in sorted((ROOT / folder).rglob(pattern))]
    return [p.as_posix() for p in found if not any(part[0] in '._' for part in p.parts)]


class Site:
    "The pages of the site by their path, as text or bytes."

    def __init__(self) -> None:
        ini = ConfigParser(delimiters=['='])
        ini.read(ROOT / 'settings.ini', encoding='utf-8')
        found = files('nbs', '*.ipynb') + files('reports', '*.ipynb')
        self.notebooks = [path for path in found if not path.startswith(NOT_PAGES)]
        self.texts = [path for path in PLACES if path.endswith('.md')] + files('docs', '*.md')
        pages = {path: place(path) for path in [*self.notebooks, *self.texts, 'dcwh']}
        self.links = notebooks.Links(ROOT, pages, ini['DEFAULT']['git_url'])
        self.modules = reference.modules(ROOT / 'dcwh')
        self.known = {f'{m.name}.{name}' for m in self.modules for name in m.definitions()}
        self.results = result_tables.recorded(ROOT / 'reports')
        self.made: dict[str, Callable[[], str]] = {
            'docs/results.md': self.results_tables,
            'docs/claims.md': lambda: result_tables.claims_page(
                ROOT / 'reports/claims.csv', ROOT / 'nbs/experiments/claims.ipynb'
            ),
            'docs/gallery.md': self.gallery,
            'docs/index.md': self.findings,
        }
        self.files: dict[str, bytes] = {}

    def add(self, path: str, content: str | bytes) -> None:
        self.files[path] = content.encode() if isinstance(content, str) else content

    def add_notebooks(self) -> None:
        for path in self.notebooks:
            template, title = None, ''
            if path.startswith('reports/'):
                one = path.count('/') == 2  # the report of one run, not the comparison
                template = ROOT / 'nbs/templates' / ('run.ipynb' if one else 'compare.ipynb')
                title = title_of(path) if one else ''
            page = notebooks.page(ROOT / path, self.links, self.known, title, template)
            self.add(place(path), nbformat.writes(page))

    def add_texts(self) -> None:
        for path in self.texts:
            text = self.links.moved((ROOT / path).read_text(encoding='utf-8'), path)
            if path in self.made:
                before, _, after = re.split('<!-- (?:made by the website|end) -->', text)
                text = before + self.made[path]() + after
            self.add(place(path), text)

    def add_reference(self) -> None:
        self.add('reference/index.md', reference.overview_page(ROOT / 'dcwh'))
        self.add('reference/commands.md', reference.commands_page())
        for module in self.modules:
            self.add(f'reference/{module.title}.md', reference.module_page(module, place))

    def findings(self) -> str:
        unseen = result_tables.unseen_finding(ROOT / 'reports')
        return f'{result_tables.findings(self.results)}\n{unseen}'

    def results_tables(self) -> str:
        parts = ['## What to see', result_tables.findings(self.results)]
        for task, run in result_tables.tasks(self.results).items():
            protocol, *what = result_tables.facts(*task[1:], run)
            heading = f'## {task[0]}, {protocol}, {run["image_size"]} px'
            parts += [heading, ' · '.join(what)]
            parts += [result_tables.task_table(self.results, task)]
        return '\n\n'.join(parts)

    def gallery(self) -> str:
        "Cards for each set, and the list of pages for the navigation."
        cards, pages = [], []
        for name, task in result_tables.REPORTS.items():
            paths = {bits: f'reports/{name}/dcwh-{bits}.ipynb' for bits in result_tables.LENGTHS}
            made = {bits: path for bits, path in paths.items() if path in self.notebooks}
            if not made:
                continue
            heading = ', '.join([name, *filter(None, task)])
            cards.append(f'## {heading}\n\n::::::{{container}} cards small')
            cards += [self.card(path, f'{bits} bits') for bits, path in made.items()]
            cards.append('::::::')
            pages += map(place, made.values())
        tree = ['```{toctree}', ':hidden:', '', *pages, '```']
        return '\n\n'.join(cards) + '\n\n' + '\n'.join(tree)

    def card(self, path: str, bits: str) -> str:
        "A report in the gallery: the last of its pictures, its code length, its own mAP."
        report = nbformat.read(ROOT / path, as_version=4)
        image, kind = notebooks.pictures(report)[-1]
        name = f'gallery/{path.split("/")[1]}-{Path(path).stem}.{kind}'
        self.add(name, image)
        said = f'{title_of(path)}: queries and what they find'
        return (
            f':::::{{container}} card\n[![{said}]({name})]({place(path)})\n\n'
            f'[`dcwh`, {bits}]({place(path)})\n\nmAP {stated(report)}\n:::::'
        )

    def add_pictures(self) -> None:
        "Those that pages show."
        for path in self.links.pictures:
            self.add(path, (ROOT / path).read_bytes())

    def write(self, folder: Path) -> None:
        "Only what has changed, so that Sphinx reads only that again; nothing else stays."
        for path, content in self.files.items():
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            if not file.is_file() or file.read_bytes() != content:
                file.write_bytes(content)
        for file in folder.rglob('*'):
            if file.is_file() and file.relative_to(folder).as_posix() not in self.files:
                file.unlink()


def stated(report: nbformat.NotebookNode) -> str:
    "The mAP in the headline of a report."
    shown = [output.get('data', {}) for cell in report.cells for output in cell.get('outputs', [])]
    (number,) = re.findall(
        r'^\*\*mAP[^*]* (\d\.\d+)\*\*',
        '\n'.join(data.get('text/markdown', '') for data in shown),
        re.MULTILINE,
    )
    return number


def title_of(path: str) -> str:
    "Of a report, by its path: reports/digits/dcwh-16.ipynb."
    _, dataset, name = path.removesuffix('.ipynb').split('/')
    method, _, bits = name.rpartition('-')
    return f'{method} on {dataset}, {bits} bits'


def gather(folder: Path) -> None:
    "All sources of the site."
    site = Site()
    site.add_notebooks()
    site.add_texts()
    site.add_reference()
    site.add_pictures()
    origins = {place(path).rpartition('.')[0]: path for path in site.notebooks + site.texts}
    site.add('origins.json', json.dumps(origins))
    site.write(folder)


def main(folder: Path) -> int:
    gather(folder / 'source')
    strict = '-W', '--keep-going', '-q', '-a'  # all pages: each has the whole navigation
    places = folder / 'source', folder / 'html'
    return sphinx([*strict, '-c', str(DOCS), '-d', str(folder / 'doctrees'), *map(str, places)])


if __name__ == '__main__':
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else DOCS / '_build').resolve()))
