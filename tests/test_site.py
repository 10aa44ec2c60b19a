"""The website: it is built without a warning, every link in it leads somewhere, and a browser
shows all of it on a phone, asking no other machine."""

import json
import re
import subprocess
import sys
import threading
from configparser import ConfigParser
from functools import partial
from html import unescape
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pandas as pd
import pytest
import torch

import dcwh

pytestmark = pytest.mark.whole
ROOT = Path(__file__).parents[1]
PHONE, DESK = (390, 844), (1280, 900)
ORDER = 'Start', 'Guides', 'The method', 'The machinery', 'Results', 'Reference', 'Project'

# what a reader sees on a page, when its formulas stand: those that do not, and the rest
LOOK = r"""
const RAW = /\$[^$\s][^$]*\$|\\[([]|\\[a-zA-Z]{2,}|\b(log|sum|max|min)_\w|\w[_^]\{/g;
const done = arguments[0];
const wide = e => e.getBoundingClientRect().width > 0;
const said = () => {
  const walker = document.createTreeWalker(document.querySelector('article'), NodeFilter.SHOW_TEXT);
  const texts = [];
  while (walker.nextNode())
    if (!walker.currentNode.parentElement.closest('code, pre, script, style, mjx-container, .sig'))
      texts.push(walker.currentNode.data);
  return texts.join(' ');
};
const look = () => done({
  formulas: document.querySelectorAll('.math').length,
  missing: [...document.querySelectorAll('.math')].filter(
    e => !e.querySelector('mjx-container') || !wide(e.querySelector('mjx-container'))
      || e.querySelector('mjx-merror')).map(e => e.textContent),
  raw: said().match(RAW) || [],
  torn: [...document.querySelectorAll('article p, article li')].map(e => e.textContent).filter(
    text => /^\s*\|.*\|\s*$/m.test(text)),
  pictures: document.images.length,
  silent: [...document.querySelectorAll('article img')].filter(
    i => !/\w+ \w+/.test(i.alt)).map(i => [i.src, i.alt]),
  blank: [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src),
  width: document.documentElement.scrollWidth,
  small: [...document.querySelectorAll('.cell_output img')].filter(
    i => i.getBoundingClientRect().width < Math.min(i.naturalWidth, 600)).map(i => i.src),
  long: [...document.querySelectorAll('mjx-container:not([display])')].filter(
    e => e.getBoundingClientRect().width > 350).map(e => e.closest('p, li').textContent),
});
const set = e => e.querySelector('mjx-container') && wide(e.querySelector('mjx-container'));
const wait = left => left && ![...document.querySelectorAll('.math')].every(set)
  ? setTimeout(wait, 100, left - 1) : look();
wait(200);
"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        "Says nothing."


class Site:
    "The pages in a folder, and the address that they are served at."

    def __init__(self, folder, port):
        self.folder, self.url = folder, f'http://127.0.0.1:{port}/'
        self.pages = sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*.html'))

    def text(self, page):
        return (self.folder / page).read_text(encoding='utf-8')


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "Built without warnings, which are errors, and served on this machine."
    folder = tmp_path_factory.mktemp('site')
    done = subprocess.run(
        [sys.executable, ROOT / 'docs/build.py', folder],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    handler = partial(Quiet, directory=folder / 'html')
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Site(folder / 'html', server.server_port)
        server.shutdown()


class Targets(HTMLParser):
    "The ids of a page, and what it links to or loads."

    def __init__(self, text):
        super().__init__()
        self.ids, self.links = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given[name] for name in ('id', 'name') if given.get(name)}
        self.links += [given[name] for name in ('href', 'src') if given.get(name)]


def test_every_link_leads_somewhere(site):
    found = {page: Targets(site.text(page)) for page in site.pages}
    repository = ConfigParser(delimiters=['='])
    repository.read(ROOT / 'settings.ini')
    files = repository['DEFAULT']['git_url'] + '/blob/main/'
    broken, checked = [], 0
    for page, link in ((page, link) for page, targets in found.items() for link in targets.links):
        if link.startswith(files) and not (ROOT / link.removeprefix(files)).exists():
            broken.append((page, link))
        if urlsplit(link).scheme:
            continue
        whole = urlsplit(urljoin(page, link))
        target, anchor, checked = unquote(whole.path) or page, unquote(whole.fragment), checked + 1
        ids = found[target].ids if target in found else {anchor}
        if not (site.folder / target).is_file() or (anchor and anchor not in ids):
            broken.append((page, link))
    assert checked > 1000 and broken == []


@pytest.fixture(scope='module')
def seen(site, chromium):
    "Every page as a phone shows it: what it holds, and what it asked for."
    show(chromium, *PHONE)
    facts = {}
    for page in site.pages:
        logs(chromium)
        chromium.get_log('browser')
        chromium.get(site.url + page)
        facts[page] = chromium.execute_async_script(LOOK)
        facts[page]['errors'] = [line['message'] for line in chromium.get_log('browser')]
        facts[page]['asked'] = logs(chromium)
    return facts


def show(browser, width, height):
    size = {'width': width, 'height': height, 'deviceScaleFactor': 1, 'mobile': False}
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', size)


def logs(browser):
    "The addresses that pages have asked for."
    said = [json.loads(line['message'])['message'] for line in browser.get_log('performance')]
    sent = [
        m['params']['request']['url'] for m in said if m['method'] == 'Network.requestWillBeSent'
    ]
    return [url for url in sent if not url.startswith(('data:', 'blob:', 'chrome'))]


def only(seen, what):
    "The pages on which something is that should not be."
    return {page: facts[what] for page, facts in seen.items() if facts[what]}


def test_pages_open_without_errors(seen):
    assert len(seen) > 70 and only(seen, 'errors') == {}


def test_formulas_stand(seen):
    assert seen['notebooks/03_loss.html']['formulas'] > 30
    assert only(seen, 'missing') == {} and only(seen, 'raw') == {}


def test_formulas_in_lines_are_no_wider_than_a_phone(seen):
    assert only(seen, 'long') == {}


def test_tables_are_tables(seen):
    assert only(seen, 'torn') == {}


def test_figures_are_shown(seen):
    assert only(seen, 'blank') == {}
    reports = [*(ROOT / 'reports').glob('*/*.ipynb')]
    assert seen['gallery.html']['pictures'] == len(reports) > 16
    assert seen['notebooks/tour.html']['pictures'] > 2


def test_figures_can_be_read_on_a_phone(seen):
    assert only(seen, 'small') == {}


def test_figures_have_alternative_texts(seen):
    assert only(seen, 'silent') == {}


def test_no_page_is_wider_than_a_phone(seen):
    assert {p: facts['width'] for p, facts in seen.items() if facts['width'] > PHONE[0]} == {}


def test_nothing_is_asked_of_another_machine(seen):
    hosts = {urlsplit(url).hostname for facts in seen.values() for url in facts['asked']}
    assert hosts == {'127.0.0.1'}


def until(browser, what):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 60, 0.1).until(lambda _: what())


@pytest.mark.parametrize(
    ('word', 'page'),
    [
        ('vertex_loss', 'reference/loss.html'),
        ('lancedb', 'notebooks/18_search.html'),
        ('center', 'glossary.html'),
    ],
)
def test_search_finds(word, page, site, chromium):
    show(chromium, *DESK)
    chromium.get(site.url + 'index.html')
    box = chromium.find_element('css selector', 'input[name=q]')
    box.send_keys(word)
    box.submit()
    links = 'return [...document.querySelectorAll("#search-results a")].map(a => a.href)'
    until(chromium, lambda: any(page in link for link in chromium.execute_script(links)))


def found(site, browser, words):
    "The links that a search lists, once it has ended."
    show(browser, *DESK)
    browser.get(f'{site.url}search.html?q={words}')
    summary = 'return document.querySelector(".search-summary")?.textContent || ""'
    until(browser, lambda: re.search('found [0-9]+ pages', browser.execute_script(summary)))
    links = 'return [...document.querySelectorAll("#search-results li > a")].map(a => a.href)'
    return [link.removeprefix(site.url) for link in browser.execute_script(links)]


def test_search_lists_matching_titles_first(site, chromium):
    assert found(site, chromium, 'own images')[0].startswith('guides/own_images.html')


def test_search_ignores_terms_of_one_letter(site, chromium):
    assert found(site, chromium, 't-interval')
    marked = 'return [...document.querySelectorAll(".highlighted")].map(e => e.textContent)'
    until(chromium, lambda: chromium.execute_script(marked))
    assert {text.lower() for text in chromium.execute_script(marked)} == {'interval'}


@pytest.mark.parametrize('word', ['quantile', 'spread', 'margin'])
def test_summaries_of_the_search_have_no_tex(word, site, chromium):
    assert found(site, chromium, word)
    until(chromium, lambda: chromium.find_elements('css selector', 'p.context'))
    said = [p.text for p in chromium.find_elements('css selector', 'p.context')]
    assert said and [text for text in said if re.search(r'\\[a-zA-Z]{2,}|\\[([]', text)] == []


def test_dark_mode(site, chromium):
    show(chromium, *DESK)
    chromium.get(site.url + 'notebooks/03_loss.html')
    colour = 'return getComputedStyle(document.body)["background-color"]'
    shades = {}
    for _ in range(3):  # of the system, light, dark
        chromium.find_element('css selector', '.theme-toggle-content button').click()
        theme = chromium.execute_script('return document.body.dataset.theme')
        shades[theme] = chromium.execute_script(colour)
    assert set(shades) == {'auto', 'light', 'dark'}
    light, dark = (sum(map(int, re.findall(r'\d+', shades[t])[:3])) for t in ('light', 'dark'))
    assert light > 700 and dark < 120


def test_navigation_is_in_the_order_of_a_reader(site, chromium):
    show(chromium, *DESK)
    chromium.get(site.url)
    captions = chromium.find_elements('css selector', '.sidebar-tree .caption-text')
    assert tuple(c.get_attribute('textContent') for c in captions) == ORDER
    links = chromium.find_elements('css selector', '.sidebar-tree a.reference')
    assert [link.get_attribute('textContent') for link in links[:2]] == ['Start', 'A tour']


def test_every_notebook_and_report_is_a_page_in_the_navigation(site):
    navigation = site.text('index.html').split('sidebar-tree')[1]
    for path in sorted((ROOT / 'nbs').glob('[0-9]*.ipynb')):
        assert f'notebooks/{path.stem}.html' in navigation
    for path in (ROOT / 'reports').glob('*/*.ipynb'):
        assert f'href="reports/{path.parent.name}/{path.stem}.html"' in site.text('gallery.html')


def test_reference_has_every_public_name(site):
    ids = {page: Targets(site.text(page)).ids for page in site.pages}
    overview = site.text('reference/index.html')
    for name in set(dcwh.__all__) - {'__version__'}:
        assert f'dcwh.{name}</span>' in overview
    for path in sorted((ROOT / 'dcwh').glob('[a-z]*.py')):
        names = re.search(r'^__all__ = (\[.*?\])', path.read_text(), re.MULTILINE | re.DOTALL)
        if names and path.stem != 'cli':
            page = ids[f'reference/{path.stem}.html']
            public = {f'dcwh.{path.stem}.{name}' for name in eval(names[1])}
            assert public - page <= {'dcwh.counting.tl'}  # a module that may be absent


def text_of(html):
    return ' '.join(re.sub(r'<[^>]+>', ' ', html).split())


def test_reference_has_tables_of_parameters(site):
    said = text_of(site.text('reference/loss.html'))
    assert 'cube_loss ( h , margin = 1.0 )' in said
    assert 'margin float 1.0 half side of the cube' in said
    assert 'Returns Tensor , scalar: mean over images of the summed excess' in said
    assert 'Raises ValueError where h or margin cannot be.' in said
    said = text_of(site.text('reference/config.html'))
    assert 'head_lr float factor on it for hash layer and criterion' in said
    said = text_of(site.text('reference/commands.html'))
    assert '--bits option 16 code length' in said and 'dcwh index build' in said


def test_results_are_those_of_the_tables(site):
    said = text_of(site.text('claims.html'))
    for row in pd.read_csv(ROOT / 'reports/claims.csv').itertuples():
        assert f'{row.claim} {row.verdict}' in said
    rows = pd.read_csv(ROOT / 'reports/digit-pairs.csv')
    maps = rows.loc[(rows['method'] == 'greedyhash') & (rows['bits'] == 48), 'map']
    (shown,) = re.findall(
        r'digit-pairs, full, .*? greedyhash (.*?) csq', text_of(site.text('results.html'))
    )[:1]
    assert f'{maps.mean():.3f} ± ' in shown and f'({len(maps)})' in shown


def test_cards_show_the_numbers_of_their_reports(site):
    said = text_of(site.text('gallery.html'))
    shown = re.findall(r'dcwh , (\d+) bits mAP (0\.\d{4})', said)
    reports = [*(ROOT / 'reports').glob('*/*.ipynb')]
    headlines = [re.search(r'\*\*mAP (\S+)\*\* for (\d+) bits', p.read_text()) for p in reports]
    assert sorted(shown) == sorted((h[2], h[1]) for h in headlines)


def test_the_front_page_says_what_we_found(site):
    said = text_of(site.text('index.html'))
    assert (
        'No model has been trained to the end on a GPU' in said
        and 'What we could reproduce' in said
    )
    _, _, found = (ROOT / 'README.md').read_text().partition('## What we found')
    findings = re.findall(r'^- (\*\*.*)', found, re.MULTILINE)
    assert findings
    for finding in findings:
        assert bare(finding) in bare(unescape(said))


def bare(text):
    return re.sub(r'\W', '', text)


def test_the_loop_of_the_front_page_trains():
    loop = re.search(r'```python\n(.*?)```', (ROOT / 'docs/index.md').read_text(), re.DOTALL)[1]
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 48)
    loader = [(torch.randn(16, 5), torch.randint(100, (16,))) for _ in range(2)]
    before = model.weight.detach().clone()
    exec(loop, {'dcwh': dcwh, 'torch': torch, 'model': model, 'loader': loader, 'epochs': 2})
    assert not torch.equal(before, model.weight)
