"""A notebook as a page: nbdev's directives are followed, code that only sets up is folded, links
to files that are no page lead to the repository."""

import ast
import base64
import posixpath
import re
from pathlib import Path

import nbformat
from readme import CODE_OR_LINK, alternative

DIRECTIVE = re.compile(r'^#\s*\|\s*(\S+).*\n?', re.MULTILINE)
PICTURES = '.png', '.jpg', '.jpeg', '.svg'


def slug(heading: str) -> str:
    "The anchor of a heading, as Jupyter writes it."
    return heading.strip().replace(' ', '-')


class Links:
    "Relative links of a file of the repository, as its page on the site wants them."

    def __init__(self, root: Path, pages: dict[str, str], repository: str) -> None:
        self.root, self.repository = root, repository
        self.pages = pages  # file of the repository -> page of the site
        self.pictures: set[str] = set()  # that pages show

    def target(self, target: str, file: str) -> str:
        "Of a link in a file. Raises ValueError where it leads nowhere."
        path = posixpath.normpath(posixpath.join(posixpath.dirname(file), target))
        there = self.root / path
        if path not in self.pages:
            if not there.exists():
                raise ValueError(f'a link in {file} leads to {path}, which is not there')
            if there.suffix not in PICTURES:
                return f'{self.repository}/{"tree" if there.is_dir() else "blob"}/main/{path}'
            self.pictures.add(path)
        return posixpath.relpath(
            self.pages.get(path, path), posixpath.dirname(self.pages[file]) or '.'
        )

    def moved(self, markdown: str, file: str) -> str:
        "Text of a file whose links work on the site; code is left alone."

        def move(found: re.Match) -> str:
            return found['code'] or found['before'] + self.target(found['target'], file)

        return CODE_OR_LINK.sub(move, markdown)


def only_imports(code: str) -> bool:
    "Whether a cell does nothing else than import, also in an `if` or a `try` around it."
    try:
        body = ast.parse(code).body
    except SyntaxError:
        return False
    around = [s for s in body if isinstance(s, ast.If | ast.Try)]
    inner = [s for block in around for s in block.body]
    rest = [s for s in body + inner if s not in around]
    return bool(rest) and all(isinstance(s, ast.Import | ast.ImportFrom) for s in rest)


def targets(node: ast.stmt) -> list[str]:
    "The names that an assignment at the top of a module sets."
    if isinstance(node, ast.AnnAssign):
        return [ast.unparse(node.target)] if node.value else []
    if not isinstance(node, ast.Assign):
        return []
    several = isinstance(node.targets[0], ast.Tuple)  # A, B = 1, 2
    return [ast.unparse(target) for target in (node.targets[0].elts if several else node.targets)]


def defined(code: str) -> list[str]:
    "The names that an exported cell defines at its top."
    body = ast.parse(code).body
    names = [n for s in body for n in ([s.name] if hasattr(s, 'name') else targets(s))]
    return list(dict.fromkeys(names))  # overloads define a name several times


def mark(name: str) -> str:
    "Where a name is exported: a target, in which capitals do not count."
    return 'source-' + re.sub(r'([A-Z])', r'-\1', name)


def heading_of(names: list[str], module: str, known: set[str]) -> nbformat.NotebookNode | None:
    "A line above an exported cell: what it exports, each with its place in the reference."
    names = [f'{module}.{name}' for name in names if f'{module}.{name}' in known]
    if not names:
        return None
    marks = '\n'.join(f'({mark(name)})=' for name in names)
    links = ' '.join(f'[`{name.rpartition(".")[2]}`](#{name})' for name in names)
    return nbformat.v4.new_markdown_cell(f'{marks}\n{{.exported}}\nExported: {links}')


def folded(cell: nbformat.NotebookNode, label: str) -> None:
    "The code of a cell is folded under a label; what it gives is shown."
    cell.metadata['tags'] = [*cell.metadata.get('tags', []), 'hide-input']
    cell.metadata.setdefault('mystnb', {})
    cell.metadata['mystnb'] |= {'code_prompt_show': label, 'code_prompt_hide': label}


def alternatives(path: Path) -> dict[str, str]:
    "The alternative texts of a notebook's figures, by the ids of their cells."
    cells = nbformat.read(path, as_version=4).cells
    return {cell.id: alternative(cell.source) for cell in cells if cell.cell_type == 'code'}


def code_cells(
    cell: nbformat.NotebookNode, module: str, known: set[str], quiet: bool
) -> list[nbformat.NotebookNode]:
    "What becomes of a cell of code."
    directives = DIRECTIVE.findall(cell.source)
    cell.source = DIRECTIVE.sub('', cell.source).strip()
    if 'hide' in directives or not cell.source:
        return []
    if only_imports(cell.source):
        folded(cell, 'Imports')
    elif quiet and 'Parameters' not in cell.source:
        folded(cell, 'Code')
    elif 'export' in directives:
        cell.metadata['tags'] = [*cell.metadata.get('tags', []), 'exported']
        above = heading_of(defined(cell.source), module, known)
        return [above, cell] if above else [cell]
    return [cell]


def page(
    path: Path,
    links: Links,
    known: set[str],  # public names, such as dcwh.loss.DCWHLoss
    title: str = '',  # instead of the notebook's
    template: Path | None = None,  # of a report, whose code is folded
) -> nbformat.NotebookNode:
    "A notebook as Sphinx reads it."
    notebook = nbformat.read(path, as_version=4)
    file = path.relative_to(links.root).as_posix()
    module = f'dcwh.{re.sub(r"^[0-9]+_", "", path.stem)}'
    texts = alternatives(template or path)
    cells = []
    for cell in notebook.cells:
        if cell.cell_type == 'markdown':
            cell.source = links.moved(cell.source, file)
            cells.append(cell)
        elif cell.cell_type == 'code':
            for output in cell.outputs:
                shown = output.get('data', {})
                if 'text/markdown' in shown:
                    shown['text/markdown'] = links.moved(shown['text/markdown'], file)
            if texts.get(cell.id):
                cell.metadata['mystnb'] = {'image': {'alt': texts[cell.id]}}
            cells += code_cells(cell, module, known, template is not None)
    if title:
        cells[0].source = re.sub(r'\A# .*', f'# {title}', cells[0].source)
    notebook.cells = cells
    notebook.metadata['language_info'] = {'name': 'python', 'pygments_lexer': 'ipython3'}
    return notebook


def pictures(notebook: nbformat.NotebookNode) -> list[tuple[bytes, str]]:
    "All pictures that a notebook shows, each with the ending of its file."
    return [
        (base64.b64decode(output.data[kind]), kind.partition('/')[2])
        for cell in notebook.cells
        for output in cell.get('outputs', [])
        for kind in ('image/png', 'image/jpeg')
        if kind in output.get('data', {})
    ]
