"""Settings of Sphinx. docs/build.py gathers the pages and starts it."""

import sys
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS), str(DOCS.parent / 'workflow')]

ini = ConfigParser(delimiters=['='])
ini.read(DOCS.parent / 'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']

project = cfg['lib_name']
author = cfg['author']
copyright = cfg['copyright']  # noqa: A001 as Sphinx calls it
release = cfg['version']
language = 'en'
smartquotes = False  # or two hyphens of an option become a dash

extensions = ['myst_nb', 'sphinx.ext.mathjax', 'site_extension']
nb_execution_mode = 'off'
nb_merge_streams = True
nb_render_markdown_format = 'gfm'  # tables in outputs
nb_mime_priority_overrides = [('html', 'text/markdown', 2)]
myst_enable_extensions = ['attrs_block', 'colon_fence', 'dollarmath']
myst_heading_anchors = 4
myst_heading_slug_func = 'notebooks.slug'
myst_links_external_new_tab = False

# MathJax comes with a package and is copied into the site: no page asks another machine
math_files = str(Path(find_spec('sphinx-mathjax-offline').origin).parent / 'static/mathjax')
mathjax_path = 'mathjax/tex-chtml.js'

repository = f'{cfg["git_url"]}/blob/{cfg["branch"]}'
html_theme = 'furo'
html_title = project
html_favicon = 'static/icon.svg'
html_baseurl = cfg['doc_host'] + cfg['doc_baseurl'] + '/'
html_static_path = ['static']
html_css_files = ['site.css']
html_js_files = [('search.js', {'defer': 'defer'})]  # after Sphinx's own
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
pygments_style = 'friendly'
pygments_dark_style = 'github-dark'
python_maximum_signature_line_length = 75
python_display_short_literal_types = True
toc_object_entries_show_parents = 'hide'
add_module_names = False
html_theme_options = {
    'light_css_variables': {'color-brand-primary': '#0b5fa5', 'color-brand-content': '#0b5fa5'},
    'dark_css_variables': {'color-brand-primary': '#7cb8ec', 'color-brand-content': '#7cb8ec'},
}
