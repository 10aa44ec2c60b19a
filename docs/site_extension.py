"""What the site needs beside Sphinx's extensions: MathJax's files, links from names in the text
to the reference, and from pages to their files."""

import json
import re
import shutil
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

FONTS = 'output/chtml/fonts/woff-v2'
TELLING = re.compile(r'[a-z]+(_[a-z0-9]+)+|[A-Z]\w+')  # not `train` or `load`: they are words, too
LINKED_FROM = 'notebooks/', 'guides/', 'index', 'start', 'reference/'


def copy_mathjax(app: Sphinx, error: Exception | None) -> None:
    "Its program and its fonts, from the installed package."
    if error or app.builder.format != 'html':
        return
    source, target = Path(app.config.math_files), Path(app.outdir) / '_static/mathjax'
    (target / FONTS).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / 'tex-chtml.js', target)
    shutil.copytree(source / FONTS, target / FONTS, dirs_exist_ok=True)


def link_names(app: Sphinx, doctree: nodes.document, page: str) -> None:
    "A name of the package that stands as code becomes a link to the reference."
    if not page.startswith(LINKED_FROM):
        return
    domain = app.env.get_domain('py')
    homes: dict[str, list] = {}
    for full, entry in domain.objects.items():
        homes.setdefault(full.rpartition('.')[2], []).append(entry)
    for literal in list(doctree.findall(nodes.literal)):
        name = literal.astext().removeprefix('dcwh.').removesuffix('()')
        found = homes.get(name, [])
        if len(found) != 1 or not TELLING.fullmatch(name) or inside_link(literal):
            continue
        entry = found[0]
        target = app.builder.get_relative_uri(page, entry.docname) + '#' + entry.node_id
        link = nodes.reference('', '', refuri=target, internal=True, classes=['name'])
        literal.replace_self(link)
        link += literal


def inside_link(node: nodes.Node) -> bool:
    "Also in a heading, and in a signature."
    while node := node.parent:
        if isinstance(node, nodes.reference | nodes.title):
            return True
    return False


def show_origin(app: Sphinx, page: str, template: str, context: dict, _: nodes.document) -> None:
    "The button that shows a page's source leads to the file it was made from, if there is one."
    origins = json.loads((Path(app.srcdir) / 'origins.json').read_text(encoding='utf-8'))
    if page in origins:
        context['theme_source_view_link'] = f'{app.config.repository}/{origins[page]}'


def setup(app: Sphinx) -> dict:
    app.add_config_value('math_files', '', 'env')
    app.add_config_value('repository', '', 'html')
    app.connect('html-page-context', show_origin)
    app.connect('build-finished', copy_mathjax)
    app.connect('doctree-resolved', link_names)
    return {'parallel_read_safe': True, 'parallel_write_safe': True}
