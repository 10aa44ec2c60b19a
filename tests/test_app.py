"""The page in a real browser: headless Chromium drops files on it, filters, clicks, and asks
nobody but this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
from PIL import Image
from programs import free_port

from dcwh.codes import Codes
from dcwh.model import HashModel
from dcwh.parts import Folder
from dcwh.sources import digits

pytestmark = pytest.mark.whole
SHOWN = 18  # results, as the page opens
DCWH = Path(sys.executable).with_name('dcwh')


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "A page on an index of 300 digits, whose codes are signs of random projections of the pixels."
    from dcwh.app import serve
    from dcwh.search import CodeIndex

    root, source = tmp_path_factory.mktemp('images'), digits()
    for i in range(300):
        (root / str(source.labels[i])).mkdir(exist_ok=True)
        Image.fromarray(source.images[i]).save(root / f'{source.labels[i]}/{i:03}.png')
    names = sorted(p.relative_to(root).as_posix() for p in root.glob('*/*.png'))
    torch.manual_seed(0)
    encoder = HashModel(torch.nn.Flatten(), 48, image_size=8, mean=(0.3,) * 3)
    packed = encoder.encode([root / n for n in names]).packed
    index = CodeIndex.build(
        Codes(packed, 48, None, np.array(names), encoder.identity()),
        metadata={'label': np.array([n[0] for n in names])},
        root=str(root),
    )
    blocks = serve(index, encoder, port=(port := free_port()), wait=False)
    yield f'http://127.0.0.1:{port}/', index, encoder, root
    blocks.close()


class Visitor:
    "Sees the page, and does what a hand does."

    def __init__(self, browser, url):
        self.browser = browser
        self.logs()
        browser.get(url)
        self.until(lambda: self.note.startswith('Drop an image') and len(self.captions) == SHOWN)

    def until(self, what, seconds=30):
        from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
        from selenium.webdriver.support.ui import WebDriverWait

        try:
            WebDriverWait(self.browser, seconds, 0.1, [StaleElementReferenceException]).until(
                lambda _: what()
            )
        except TimeoutException:
            pytest.fail(
                f'after {seconds} s the page says {self.note!r} and shows {self.captions[:3]} …'
            )

    def all(self, selector):
        return self.browser.find_elements('css selector', selector)

    def text(self, selector):
        return ' '.join(
            self.browser.execute_script(
                'return [...document.querySelectorAll(arguments[0])].map(e => e.innerText.trim())',
                selector,
            )
        )

    def drop(self, path):
        self.all('#query input[type=file]')[0].send_keys(str(path))

    def click(self, position):
        self.all('#results .thumbnail-item')[position].click()

    def logs(self):
        return [
            json.loads(line['message'])['message'] for line in self.browser.get_log('performance')
        ]

    @property
    def note(self):
        return self.text('#note p')

    @property
    def captions(self):
        return self.browser.execute_script(
            "return [...document.querySelectorAll('#results .caption-label')]"
            '.map(e => e.innerText.trim())'
        )

    @property
    def pictures(self):
        return self.browser.execute_script("""
        return [...document.querySelectorAll('#results img')].map(i => {
        const c = document.createElement('canvas');
        c.width = i.naturalWidth; c.height = i.naturalHeight;
        const drawn = c.getContext('2d');
        drawn.drawImage(i, 0, 0);
        if (!i.complete) return [];
        const values = [...drawn.getImageData(0, 0, c.width, c.height).data];
        return values.filter((_, n) => n % 4 == 0) })""")


@pytest.fixture
def visitor(chromium, site):
    return Visitor(chromium, site[0])


def expected(index, codes, k=SHOWN, **where):
    distances, ids = index.search(codes, k, where or None)
    return [
        f'{d} bit{"s" * (d != 1)} · {i[0]}'
        for d, i in zip(distances[0].tolist(), ids[0], strict=True)
    ], ids[0].tolist()


def test_says_what_the_index_is(visitor, site):
    assert visitor.browser.title == 'Image search'
    assert (
        '300 images · 48 bits' in visitor.text('#title')
        and 'index flat' in visitor.text('#title')
        and site[2].identity() in visitor.text('#title')
    )
    assert not visitor.all('#back')[0].is_enabled()


def test_an_uploaded_image_finds_itself(visitor, site):
    _, index, encoder, root = site
    file = root / '3/013.png'
    visitor.drop(file)
    visitor.until(lambda: visitor.note == f'{SHOWN} images nearest to your image.')
    captions, ids = expected(index, encoder.encode([file]))
    assert (
        visitor.captions == captions
        and captions[0] == '0 bits · 3'
        and ids[0] == '3/013.png'
        and captions[-1][0] != '0'
    )
    visitor.until(lambda: all(visitor.pictures))
    assert all(
        (
            np.reshape(shown, (160, 160))[::20, ::20]
            == np.asarray(Image.open(root / name).convert('L'))
        ).all()
        for shown, name in zip(visitor.pictures, ids, strict=True)
    )


def test_filter_by_label(visitor, site):
    _, index, encoder, root = site
    visitor.drop(root / '3/013.png')
    visitor.until(lambda: 'your image' in visitor.note)
    for label in ('7', '9'):
        visitor.all('#only-0 input')[0].click()
        visitor.until(lambda: visitor.all('[role=option]'))
        next(o for o in visitor.all('[role=option]') if o.text.strip(' ✓') == label).click()
        visitor.until(lambda end=f'{label}.': visitor.note.endswith(end))
    assert visitor.note == f'{SHOWN} images nearest to your image, of those with label 7 or 9.'
    assert (
        visitor.captions
        == expected(index, encoder.encode([root / '3/013.png']), label=['7', '9'])[0]
    )
    assert {c[-1] for c in visitor.captions} <= {'7', '9'}


def test_a_click_goes_on_and_back(visitor, site):
    _, index, encoder, root = site
    visitor.drop(root / '0/000.png')
    visitor.until(lambda: 'your image' in visitor.note)
    first, ids = expected(index, encoder.encode([root / '0/000.png']))
    trail = [visitor.note]
    for position in (5, 5, 9):
        visitor.click(position)
        captions, went = expected(index, index.codes_of([ids[position]]))
        then = f'{SHOWN} images nearest to {ids[position]}.', captions
        visitor.until(lambda then=then: (visitor.note, visitor.captions) == then)
        trail.append(visitor.note)
        ids = went
    for note in trail[-2::-1]:
        visitor.until(lambda: visitor.all('#back')[0].is_enabled())
        visitor.all('#back')[0].click()
        visitor.until(lambda note=note: visitor.note == note)
    visitor.until(lambda: visitor.captions == first)
    visitor.until(lambda: not visitor.all('#back')[0].is_enabled())


def test_what_is_no_image_is_refused_in_a_sentence(visitor, site, tmp_path):
    root = site[3]
    visitor.drop(root / '1/001.png')
    visitor.until(lambda: 'your image' in visitor.note)
    before = visitor.captions
    bad = {'not an image': b'hello', 'damaged': (root / '1/001.png').read_bytes()[:70]}
    Image.fromarray(np.full((8, 8), 30000, np.uint16)).save(tmp_path / 'deep.png')
    bad['more than 8 bits'] = (tmp_path / 'deep.png').read_bytes()
    for word, data in bad.items():
        (tmp_path / 'bad.png').write_bytes(data)
        visitor.drop(tmp_path / 'bad.png')
        visitor.until(lambda word=word: word in visitor.text('#note .refused'))
        assert (
            visitor.captions == before
            and 'Traceback' not in visitor.browser.page_source
            and not visitor.text('.toast-body')
        )
    (tmp_path / 'huge.png').write_bytes(bytes(21 * 1024**2))
    visitor.drop(tmp_path / 'huge.png')
    visitor.until(lambda: 'size' in visitor.text('.toast-body'))
    visitor.drop(root / '2/002.png')
    visitor.until(lambda: 'nearest to your image' in visitor.note and visitor.captions != before)
    assert visitor.captions[0] == '0 bits · 2'


def test_a_file_that_is_gone_leaves_a_grey_place(visitor, site):
    _, index, encoder, root = site
    captions, ids = expected(index, encoder.encode([root / '4/004.png']))
    data = (root / ids[2]).read_bytes()
    (root / ids[2]).unlink()
    try:
        visitor.drop(root / '4/004.png')
        visitor.until(lambda: f'1 of them cannot be read any more: {ids[2]}.' in visitor.note)
    finally:
        (root / ids[2]).write_bytes(data)
    visitor.until(lambda: all(visitor.pictures))
    grey = [len(set(shown)) == 1 for shown in visitor.pictures]
    assert visitor.captions == captions and grey[2] and sum(grey) == 1


def test_nothing_is_asked_of_another_machine(visitor, site):
    visitor.browser.get_log('browser')
    visitor.browser.get(site[0])
    visitor.until(lambda: len(visitor.captions) == SHOWN)
    visitor.drop(site[3] / '5/005.png')
    visitor.until(lambda: 'your image' in visitor.note)
    visitor.click(3)
    visitor.until(lambda: '.png' in visitor.note)
    asked = [
        m['params']['request']['url']
        for m in visitor.logs()
        if m['method'] == 'Network.requestWillBeSent'
    ]
    assert len(asked) > 20 and {
        urlsplit(url).hostname for url in asked if not url.startswith(('data:', 'blob:'))
    } == {'127.0.0.1'}
    assert [line for line in visitor.browser.get_log('browser') if line['level'] == 'SEVERE'] == []
    blocked = visitor.browser.execute_async_script("""const done = arguments[0];
        document.addEventListener('securitypolicyviolation', e => done(e.blockedURI), {once: true});
        setTimeout(() => done(''), 5000);
        document.body.append(Object.assign(new Image(), {src: 'https://example.org/a.png'}));""")
    assert blocked == 'https://example.org/a.png'  # and nothing could be


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "An index and a model in a folder, made by `dcwh encode` and `index build`, each a process."
    folder, source = tmp_path_factory.mktemp('shell'), digits()
    for i in range(30):
        (folder / 'photos' / str(source.labels[i])).mkdir(parents=True, exist_ok=True)
        Image.fromarray(source.images[i]).save(folder / f'photos/{source.labels[i]}/{i:03}.png')
    HashModel('small', 16, 'none', image_size=16).save_pretrained(folder / 'model')
    commands = (
        ('encode', 'model', 'photos', '--out', 'photos.npz'),
        ('index', 'build', 'photos.index', 'photos.npz', '--images', 'photos'),
    )
    for words in commands:
        subprocess.run([DCWH, *words], cwd=folder, check=True, capture_output=True)
    return folder


def of_its_own(folder):
    """The environment of a page that keeps its files in a folder: not where those of this
    process are."""
    return {k: v for k, v in os.environ.items() if k != 'GRADIO_TEMP_DIR'} | {'TMPDIR': str(folder)}


def answered(page, port, path='', **more):
    "What a page says as soon as it is there."
    for _ in range(6000):
        try:
            return (
                urlopen(Request(f'http://127.0.0.1:{port}/{path}', **more), timeout=5)
                .read()
                .decode()
            )
        except URLError:
            time.sleep(0.01)
        assert page.poll() is None, page.stdout.read()


@pytest.mark.parametrize(
    'number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name
)
def test_from_a_shell(number, photos, tmp_path):
    """`dcwh serve` ends by Ctrl-C and by the signals of systemd and of a terminal that is
    closed; what visitors sent is gone."""
    port = free_port()
    body = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        b'mine\r\n--x--\r\n'
    )
    words = [DCWH, 'serve', 'photos.index', '--model', 'model', '--port', str(port)]
    before = signal.signal(number, signal.SIG_DFL)  # else it is ignored where these tests ignore it
    with subprocess.Popen(
        words,
        cwd=photos,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=of_its_own(tmp_path),
    ) as page:
        signal.signal(number, before)
        try:
            said = answered(page, port)  # the signal comes while it is still opening
            assert '30 images' in said and '16 bits' in said
            (up,) = json.loads(
                answered(
                    page,
                    port,
                    'gradio_api/upload',
                    data=body,
                    headers={'Content-Type': 'multipart/form-data; boundary=x'},
                )
            )
            assert Path(up).read_bytes() == b'mine' and tmp_path in Path(up).parents
        finally:
            page.send_signal(number)
        try:
            assert page.wait(300) == 0
        finally:
            page.kill()  # or a page that does not hear it would be waited for without end
    assert not Path(up).exists() and not list(tmp_path.glob('dcwh-page-*'))


def test_what_a_killed_page_left_goes_with_the_next(photos, tmp_path):
    for end in (signal.SIGKILL, signal.SIGTERM):
        port = free_port()
        words = [DCWH, 'serve', 'photos.index', '--model', 'model', '--port', str(port)]
        with subprocess.Popen(
            words,
            cwd=photos,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=of_its_own(tmp_path),
        ) as page:
            try:
                answered(page, port)
            finally:
                page.send_signal(end)
            try:
                page.wait(300)
            finally:
                page.kill()
        assert len(list(tmp_path.glob('dcwh-page-*'))) == (end == signal.SIGKILL)


def test_another_page_can_neither_upload_nor_ask(visitor, site):
    "A page of another origin, in the same browser."
    visitor.browser.get('data:text/html,<title>elsewhere</title>')
    for path in ('gradio_api/upload', 'gradio_api/queue/join', 'gradio_api/reset'):
        said = visitor.browser.execute_async_script(
            """const [url, done] = arguments;
            const body = new FormData(); body.append('files', new Blob(['mine']), 'a.png');
            fetch(url, {method: 'POST', body})
                .then(r => done(r.status)).catch(() => done('refused'))""",
            site[0] + path,
        )
        assert said in ('refused', 403), path
    kept = Path(os.environ['GRADIO_TEMP_DIR'])
    assert not [f for f in kept.rglob('a.png') if f.read_bytes() == b'mine']


def test_images_that_lie_in_a_bucket(site, bucket, monkeypatch):
    """The page shows images of an object store where it is told to, and nothing else of it; an
    index alone cannot tell it to."""
    from dcwh.app import BLANK, ImageSearch

    _, index, encoder, root = site
    options, _ = bucket
    for name, value in options.items():
        monkeypatch.setenv(f'AWS_{name.upper()}', value)
    files = Folder('s3://photos/in')
    with pytest.raises(FileNotFoundError, match='s3://photos/in/0/000.png is not there'):
        ImageSearch(index, encoder, files.place)
    names = [str(name) for name in index.ids[:3]]
    for name in names[:2]:
        files.write(name, (root / name).read_bytes())
    files.write(names[2], b'no image')
    Folder('s3://photos').write('secret.png', (root / names[0]).read_bytes())
    there, here = ImageSearch(index, encoder, files.place), ImageSearch(index, encoder)
    for name in names[:2]:
        assert there.picture(name).tobytes() == here.picture(name).tobytes()
    for name in (names[2], str(index.ids[3]), '../secret.png', '/secret.png'):
        assert there.picture(name) is BLANK
    told = replace(index, root=files.place)
    with pytest.raises(FileNotFoundError, match='give root'):
        ImageSearch(told, encoder)
