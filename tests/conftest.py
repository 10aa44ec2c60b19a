"""What holds for every process of the tests. One thread: small networks are not faster on more, and
tests that share a machine with other work stay steady. No folder of decoded images, no windows, no
proxy on the way to servers of the tests. Programs and kernels are those of tests/programs.py."""

import os
import shutil
from multiprocessing import get_context
from urllib.request import Request, urlopen

import programs
import pytest

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('DCWH_CACHE', '')  # nothing is left in the home of whoever runs them
for name in ('no_proxy', 'NO_PROXY'):
    os.environ[name] = ','.join(filter(None, (os.environ.get(name), '127.0.0.1')))

get_context('forkserver').set_forkserver_preload([*programs.IMPORTED])  # workers, from Python 3.14
os.environ['PATH'] = f'{programs.folder()}:{os.environ["PATH"]}'
os.environ['JUPYTER_PATH'] = str(programs.folder())

SMALLEST = {  # settings of a run of a second, on images of 8 pixels
    'backbone': 'small',
    'weights': 'none',
    'image_size': 8,
    'resize': 8,
    'flip': False,
    'epochs': 1,
    'batch_size': 4,
    'workers': 0,
}


LONG = {  # tests of more than ten seconds
    'test_runs_and_prints_what_it_says',
    'test_is_clean[mypy]',
    'test_reports_are_made_where_images_are',
    'test_reports_are_whole_and_identical',
    'test_what_torch_makes_of_the_graphs',
    'test_wheel_makes_a_run_and_a_report_in_any_folder',
    'test_named_runs_are_laid_over_each_other',
    'test_papermill_from_the_repository_root',
}


@pytest.hookimpl(trylast=True)  # when those of other marks are out
def pytest_collection_modifyitems(items):
    "Two workers begin with half of the tests each. Long ones come first there: none ends alone."
    long = [item for item in items if LONG & {item.name, item.originalname}]
    short = [item for item in items if not LONG & {item.name, item.originalname}]
    middle = len(items) // 2 - len(long[::2])
    items[:] = [*long[::2], *short[:middle], *long[1::2], *short[middle:]]


@pytest.fixture(scope='session')
def begun():
    "Programs and kernels that tests start have imported everything: tests/programs.py."
    programs.start()


@pytest.fixture(scope='module')
def chromium(tmp_path_factory):
    """Headless Chromium that can reach 127.0.0.1 and nothing else, with a log of all that its
    page asks for."""
    from selenium import webdriver

    program = next(
        filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None
    )
    driver = shutil.which('chromedriver')
    if not program or not driver:
        pytest.fail(
            f'{"Chromium" if not program else "chromedriver"} is not there. '
            'On Debian: apt-get install chromium chromium-driver, or make test-all',
            pytrace=False,
        )
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (
        'headless=new',
        'no-sandbox',
        'disable-dev-shm-usage',
        'window-size=1280,900',
        'host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1',
        f'user-data-dir={tmp_path_factory.mktemp("chromium")}',
    ):
        options.add_argument(f'--{flag}')
    options.set_capability('goog:loggingPrefs', {'performance': 'ALL', 'browser': 'ALL'})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture
def bucket():
    "An S3-compatible server on this machine, with an empty bucket."
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer('127.0.0.1', 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    reset = Request(f'http://{host}:{port}/moto-api/reset', method='POST')
    urlopen(reset).close()  # servers of one process share their buckets
    keys = {'aws_access_key_id': 'a', 'aws_secret_access_key': 'b', 'region_name': 'us-east-1'}
    boto3.client('s3', endpoint_url=f'http://{host}:{port}', **keys).create_bucket(Bucket='photos')
    yield (
        {
            'endpoint': f'http://{host}:{port}',
            'allow_http': 'true',
            'region': 'us-east-1',
            'access_key_id': 'a',
            'secret_access_key': 'b',
        },
        server,
    )
    server.stop()
