"""What holds for every process of the tests. One thread: small networks are not faster on more, and
tests that share a machine with other work stay steady. No folder of decoded images, no windows, no
proxy on the way to servers of the tests. And what processes of tests/forked.py have imported."""

import os
from multiprocessing import get_context

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('DCWH_CACHE', '')  # nothing is left in the home of whoever runs them
os.environ['MPLBACKEND'] = 'agg'
for name in ('no_proxy', 'NO_PROXY'):
    os.environ[name] = ','.join(filter(None, (os.environ.get(name), '127.0.0.1')))

IMPORTED = [
    *('torch._dynamo', 'torchvision', 'accelerate', 'numba', 'pandas', 'seaborn'),
    *('sklearn.datasets', 'sklearn.manifold', 'nbformat', 'nbdev.test', 'torchmetrics'),
    *('dcwh.experiment', 'dcwh.search', 'dcwh.sources'),
]
get_context('forkserver').set_forkserver_preload(IMPORTED)
