"""Packaging from settings.ini, the one place where names, versions and requirements stand."""

import re
from configparser import ConfigParser
from pathlib import Path
from shlex import split

from setuptools import setup

ini = ConfigParser(delimiters=['='])
ini.read('settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']

extras = {name: split(cfg[f'{name}_requirements']) for name in cfg['extras'].split()}
extras['dev'] = split(cfg['dev_requirements']) + [r for reqs in extras.values() for r in reqs]

# PyPI has no files beside the README: its relative links and pictures become absolute
# (code, the first alternative, is left alone)
there = cfg['git_url'] + '/{}/' + cfg['branch'] + '/'
readme = re.sub(
    r'```.*?```|`[^`\n]*`|(!?)\[[^]]*\]\((?!#|\w+:)',
    lambda m: m[0] + ('' if m[0][0] == '`' else there.format('raw' if m[1] else 'blob')),
    Path('README.md').read_text(encoding='utf-8'),
    flags=re.DOTALL,
)

# files that travel in the package; dcwh.files.shipped finds them, here and there
shipped = {
    'recipes': 'data/recipes',
    'superclasses': 'data/superclasses',
    'templates': 'nbs/templates',
    'published': 'data',
}

setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    keywords=cfg['keywords'],
    author=cfg['author'],
    author_email=cfg['author_email'],
    url=cfg['git_url'],
    license='Apache-2.0',
    long_description=readme,
    long_description_content_type='text/markdown',
    python_requires=f'>={cfg["min_python"]}',
    packages=['dcwh', *(f'dcwh.{name}' for name in shipped)],
    package_dir={'dcwh': 'dcwh', **{f'dcwh.{name}': folder for name, folder in shipped.items()}},
    package_data={
        'dcwh': ['py.typed'],
        'dcwh.recipes': ['*.yaml'],
        'dcwh.superclasses': ['*.csv'],
        'dcwh.templates': ['*.ipynb'],
        'dcwh.published': ['published.csv'],
    },
    options={'editable_wheel': {'mode': 'compat'}},  # found before a folder called dcwh
    include_package_data=False,
    zip_safe=False,
    install_requires=split(cfg['requirements']),
    extras_require=extras,
    entry_points={
        'console_scripts': cfg['console_scripts'].split(),
        'nbdev': ['dcwh=dcwh._modidx:d'],
    },
    classifiers=[
        'Development Status :: 3 - Alpha',
        'Intended Audience :: Science/Research',
        'Programming Language :: Python :: 3',
    ],
)
