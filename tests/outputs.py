"""What the cells of a notebook print, as text that can be compared between two executions.

Numbers may differ a little: another processor adds in another order. What belongs to one execution
is left out: times, folders, ports, places in memory, progress bars and logs (stderr). Of a figure
only its presence counts."""

import math
import re
from html import unescape

NUMBER = re.compile(r'(?<![\w.])[-+]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?(?!\w)')
FIGURE = '[figure]\n'
RELATIVE, ABSOLUTE = 0.02, 0.02  # how far a number may be from the committed one
LOOSE = 0.06  # and one of a short training, on another processor
BARS = r'\x1b\[[0-9;]*m|[^\r\n]*\r(?!\n)|.*\d+%\|.*'  # colours, and lines that are written over
OWN = [  # of one execution alone, or of one processor
    r'\bidentity\W+[0-9a-f]{16}\b',  # of a model, whose last bits differ
    r'\b0x[0-9a-f]+\b',
    r'\bhttps?://(?:127\.0\.0\.1|localhost):\d+',
    r'(?<![\w…])/(?:tmp|var|root|home|private)/[\w./-]*',
    r'\b\d+(?:\.\d+)? ?(?:s|ms|µs|seconds?|minutes?|min)\b',
]


def text(output: dict) -> str:
    "What a reader sees of one output."
    if output['output_type'] == 'stream':
        return ''.join(output['text'])
    data = output.get('data', {})
    if any(kind.startswith('image/') for kind in data):
        return FIGURE
    for kind in ('text/markdown', 'text/html', 'text/plain'):
        if kind in data:
            shown = ''.join(data[kind])
            plain = re.sub(r'<style.*?</style>|<[^>]+>', ' ', shown, flags=re.DOTALL)
            return unescape(plain if kind == 'text/html' else shown) + '\n'
    return ''


def comparable(outputs: list[dict]) -> str:
    "All that a cell gives: what it prints, then texts and tables, then figures."
    printed = [text(o) for o in outputs if o.get('name') == 'stdout']
    shown = [text(o) for o in outputs if o['output_type'] != 'stream']
    whole = ''.join(printed) + '\n' + ''.join(sorted(shown, key=FIGURE.__eq__))
    kept = re.sub(BARS, '', whole, flags=re.MULTILINE)
    return ' '.join(re.sub('|'.join(OWN), '…', kept).split())


def same(committed: str, given: str) -> bool:
    "Whether two texts differ in nothing but the last digits of numbers."
    return _alike(committed, given, RELATIVE, ABSOLUTE, counts=True)


def same_but_counts(committed: str, given: str) -> bool:
    "Whether they differ in nothing but whole numbers, and decimals of a training."
    return _alike(committed, given, LOOSE, LOOSE, counts=False)


def _alike(committed: str, given: str, relative: float, absolute: float, counts: bool) -> bool:
    if NUMBER.split(committed) != NUMBER.split(given):
        return False
    pairs = zip(NUMBER.findall(committed), NUMBER.findall(given), strict=True)
    values = [[float(number.replace(',', '')) for number in pair] for pair in pairs]
    compared = [pair for pair in values if counts or not all(map(float.is_integer, pair))]
    return all(math.isclose(*pair, rel_tol=relative, abs_tol=absolute) for pair in compared)
