"""Every method as a GPU wants it: two graphs a run, no step that waits, any precision, replicas."""

from contextlib import nullcontext
from copy import deepcopy
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensor, FakeTensorMode
from torch.nn.functional import one_hot
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dcwh import baselines
from dcwh import criterion as criterion_module
from dcwh.loss import DCWHLoss
from dcwh.methods import METHODS, Squashed
from dcwh.optimizer import TwoStep

IMAGES, CLASSES, BITS, BATCH, EPOCHS = 20, 5, 8, 10, 6
OWN_CENTRES = [name for name in METHODS if name.startswith('dcwh')]


def built(name, **changed):
    "The criterion of a method, always the same."
    settings = {
        'bits': BITS,
        'sigma': 1.5,
        'cube_margin': 1.0,
        'cube_weight': 1.0,
        'vertex_weight': 0.1,
        'centres_start': 'vertices',
        'refine_after': 0.5,
        'centres': 'running',
        'centres_every': 1,
        'centres_hold': 0.0,
        'method_settings': {'shortest': 4} if name == 'dcwh-nested' else {},
    }
    config = SimpleNamespace(**settings | METHODS[name].settings | changed)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    return METHODS[name].build(config, CLASSES, IMAGES, generator)


def labelled(several=False):
    "Outputs that a network might have learned, and labels."
    g = torch.Generator().manual_seed(1)
    y = torch.arange(IMAGES) % CLASSES
    corners = torch.randn(CLASSES, BITS, generator=g).sign()
    h = 1.5 * corners[y] + 0.3 * torch.randn(IMAGES, BITS, generator=g)
    return h, one_hot(y, CLASSES).bool() | one_hot(y // 2, CLASSES).bool() if several else y


def driven(criterion, call, several=False, dtype=torch.float32, epochs=EPOCHS):
    "Losses, terms and gradients of a run, as a trainer has them, and the facts of the last epoch."
    outputs, labels = labelled(several)
    g, losses, grads = torch.Generator().manual_seed(2), [], []
    for epoch in range(epochs):
        criterion.begin_epoch(epoch, epochs)
        for index in torch.randperm(IMAGES, generator=g).split(BATCH):
            h = (outputs[index] + 0.1 * epoch).to(dtype).requires_grad_()
            value = call(h, labels[index], index)
            learned = [p for p in criterion.parameters() if p.requires_grad]
            grads.append(torch.autograd.grad(value, [h, *learned]))
            losses.append(torch.stack([value.detach(), *criterion.last.values()]))
        facts = criterion.end_epoch(lambda: (outputs.to(dtype), labels))
    return torch.stack(losses), grads, facts


@pytest.fixture
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def same_as_eager(name, several, backend, **changed):
    "A compiled run has the losses, terms, gradients, facts and state of one that is not."
    eager, compiled = built(name, **changed), built(name, **changed)
    graph = torch.compile(compiled, dynamic=False, fullgraph=True, backend=backend)
    expected, got = driven(eager, eager, several), driven(compiled, graph, several)
    torch.testing.assert_close(got[:2], expected[:2], rtol=1e-5, atol=1e-6)
    assert got[2] == {
        name: fact if isinstance(fact, str) else pytest.approx(fact)
        for name, fact in expected[2].items()
    }
    assert compiled.last.keys() == eager.last.keys()
    torch.testing.assert_close(compiled.state_dict(), eager.state_dict(), rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures('fresh')
@pytest.mark.parametrize('name', METHODS)
def test_two_graphs_a_run(name):
    counter = CompileCounterWithBackend('aot_eager')
    same_as_eager(name, False, counter)
    assert counter.frame_count == (2 if name in [*OWN_CENTRES, 'idcwh'] else 1)


@pytest.mark.whole
@pytest.mark.usefixtures('fresh')
@pytest.mark.parametrize('name', METHODS)
def test_two_graphs_of_several_labels(name):
    counter = CompileCounterWithBackend('aot_eager')
    same_as_eager(name, True, counter)
    assert counter.frame_count <= 2


@pytest.mark.usefixtures('fresh')
@pytest.mark.parametrize(
    'name',
    [pytest.param(name, marks=[] if name == 'ce' else pytest.mark.whole) for name in METHODS],
)
def test_what_torch_makes_of_the_graphs(name):  # of ce, its one term and its loss must stay two
    same_as_eager(name, False, 'inductor')


@pytest.mark.usefixtures('fresh')
def test_the_exact_rule_has_two_graphs():
    counter = CompileCounterWithBackend('eager')
    same_as_eager('dcwh', True, counter, centres='exact', centres_every=2)
    assert counter.frame_count == 2


@pytest.mark.usefixtures('fresh')
@pytest.mark.parametrize('in_place', [False, True])
def test_compiled_in_place_or_driven_through_what_compile_returns(in_place):
    counter, eager, criterion = CompileCounterWithBackend('eager'), built('dcwh'), built('dcwh')
    if in_place:
        criterion.compile(dynamic=False, backend=counter)
    else:
        criterion = torch.compile(criterion, dynamic=False, backend=counter)
    got, expected = driven(criterion, criterion), driven(eager, eager)
    torch.testing.assert_close(got[:2], expected[:2])
    assert counter.frame_count == 2 and not torch._dynamo.utils.counters['graph_break']


@pytest.mark.usefixtures('fresh')
@pytest.mark.parametrize('name', ['dcwh', 'dpsh', 'ce'])
def test_a_graph_of_half_precision(name):
    eager, compiled = built(name).bfloat16(), built(name).bfloat16()
    graph = torch.compile(compiled, dynamic=False, fullgraph=True, backend='eager')
    with torch.autocast('cpu', dtype=torch.bfloat16):
        got = driven(compiled, graph, dtype=torch.bfloat16, epochs=2)
        expected = driven(eager, eager, dtype=torch.bfloat16, epochs=2)
    torch.testing.assert_close(got[:2], expected[:2])


class OnCPU(TorchDispatchMode):
    "Notes every operation that takes or gives a tensor of the CPU: it copies, and may wait."

    def __init__(self):
        super().__init__()
        self.noted = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, given)) if isinstance(t, torch.Tensor)]
        if any(t.device.type == 'cpu' for t in tensors):
            self.noted.append(str(func))
        return given


def without_values(name, several, device):
    "A criterion and a batch of tensors that have no values, and raise where one is asked for."
    fake, criterion = FakeTensorMode(), built(name)
    with FakeCopyMode(fake):
        criterion, (h, y) = deepcopy((criterion, labelled(several)))
    with fake:
        for module in criterion.modules():
            for name, p in module._parameters.items():
                if p is not None:
                    module._parameters[name] = nn.Parameter(p.detach().to(device), p.requires_grad)
            for name, buffer in module._buffers.items():
                module._buffers[name] = buffer.to(device)
            for name in getattr(module, 'kept', ()):
                setattr(module, name, getattr(module, name).to(device))
        return fake, criterion, (h.to(device), y.to(device), torch.arange(IMAGES, device=device))


@pytest.mark.filterwarnings('ignore:.*CUDA is not available')
@pytest.mark.parametrize('several', [False, True])
@pytest.mark.parametrize('name', METHODS)
def test_a_step_on_a_gpu_stays_there(name, several):
    fake, criterion, batch = without_values(name, several, 'cuda')
    with fake, OnCPU() as on_cpu:
        criterion.begin_epoch(1, 3)
        value = criterion(*batch)
    assert on_cpu.noted == [] and value.device.type == 'cuda' and value.shape == ()
    assert all(term.device.type == 'cuda' for term in criterion.last.values())


@pytest.mark.parametrize('several', [False, True])
@pytest.mark.parametrize('name', METHODS)
def test_no_step_asks_for_a_value(name, several, monkeypatch):
    for module in (criterion_module, baselines):
        monkeypatch.setattr(module, 'looked_at', lambda t: False)
    fake, criterion, (h, y, index) = without_values(name, several, 'cpu')
    with fake:  # raises where a shape, a branch or a number depends on values
        criterion.begin_epoch(1, 3)
        criterion(h.requires_grad_(), y, index).backward()
    assert h.grad.shape == h.shape and isinstance(h.grad, FakeTensor)


@pytest.mark.parametrize('name', METHODS)
def test_end_of_an_epoch_without_a_batch(name):
    running = METHODS[name].settings.get('centres', 'running') == 'running'
    sums = name.startswith('dcwh') and running
    for criterion in (built(name), Squashed(built(name))):
        for _ in range(2):
            if sums or name == 'dsdh':
                with pytest.raises(ValueError, match='^end_epoch was called and no batch[^\n]*$'):
                    criterion.end_epoch()
            else:
                assert isinstance(criterion.end_epoch(), dict)
            criterion.begin_epoch(1, 3)
    h, y = labelled()
    criterion(h, y, torch.arange(IMAGES))
    assert criterion.end_epoch().keys() == criterion.end_epoch().keys()  # the same step again


@pytest.mark.parametrize('wrong', [None, 3, lambda: None, lambda: 3, lambda: (1, 2), lambda: (1,)])
@pytest.mark.parametrize('squash', [None, 0.0, 1.0])
def test_end_of_an_epoch_with_the_wrong_outputs(wrong, squash):
    criterion = TwoStep(DCWHLoss(CLASSES, BITS), rule='exact')
    if squash is not None:
        criterion = Squashed(criterion, squash)
    with pytest.raises(ValueError, match=r'^(the exact rule of centres needs|h is int)[^\n]*$'):
        criterion.end_epoch(wrong)


TOLERANCE = {torch.float16: 5e-3, torch.bfloat16: 2e-2, torch.float32: 1e-5, torch.float64: 1e-5}


def is_close_to_float32(name, several, own, given, inside=None):
    "A criterion of one precision, outputs of another, inside autocast of a third."
    full, criterion = built(name), built(name).to(own)
    expected, _, facts = driven(full, full, several, epochs=2)
    autocast = torch.autocast('cpu', dtype=inside) if inside else nullcontext()
    with autocast:
        got, grads, told = driven(criterion, criterion, several, given, 2)
    near = {'rtol': max(TOLERANCE[own], TOLERANCE[given])}
    near['atol'] = near['rtol'] / 5
    assert got.dtype == (torch.float64 if given == torch.float64 else torch.float32)
    torch.testing.assert_close(got[:, 0].float(), expected[:, 0], **near)
    assert all(g.isfinite().all() for step in grads for g in step) and told.keys() == facts.keys()
    assert grads[-1][0].dtype == given and grads[-1][0].norm() > 0
    if full.centres is not None:
        torch.testing.assert_close(criterion.centres.float(), full.centres, **near)
    outputs = labelled()[0].to(given)
    logits = criterion.logits(outputs)
    assert logits is None or logits.isfinite().all()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        within = criterion.logits(outputs)
    assert logits is None or torch.equal(within, logits) and within.dtype == logits.dtype


@pytest.mark.parametrize('name', METHODS)
def test_precisions_of_a_criterion_and_of_outputs(name):
    half, bf16, single, double = TOLERANCE
    for own, given, inside in (
        (half, half, None),
        (bf16, bf16, bf16),
        (single, half, bf16),
        (bf16, single, None),
        (single, double, bf16),
        (double, bf16, None),
    ):
        is_close_to_float32(name, False, own, given, inside)
    is_close_to_float32(name, True, bf16, bf16)


@pytest.mark.whole
@pytest.mark.parametrize('several', [False, True])
@pytest.mark.parametrize('name', METHODS)
def test_every_precision(name, several):
    for own, given, inside in product(TOLERANCE, TOLERANCE, (None, torch.float16, torch.bfloat16)):
        is_close_to_float32(name, several, own, given, inside)


@pytest.mark.parametrize('cast', ['half', 'bfloat16', 'double'])
def test_what_is_kept_keeps_its_precision(cast):
    dcwh, hashnet, dsdh = (built(name) for name in ('dcwh', 'hashnet', 'dsdh'))
    h, y = labelled()
    for criterion in (dcwh, hashnet, dsdh):
        criterion.begin_epoch(1, 4)
        criterion(h, y, torch.arange(IMAGES))
    sums, slope = dcwh.sums.clone(), hashnet.slope.clone()
    for criterion in (dcwh, hashnet, dsdh):
        getattr(criterion, cast)()
    assert dcwh.sums.dtype == hashnet.slope.dtype == torch.float64 and slope > 1
    assert torch.equal(dcwh.sums, sums) and torch.equal(hashnet.slope, slope)
    memory = dsdh.memory
    assert memory.labels.dtype == memory.seen.dtype == torch.bool and memory.seen.all()
    assert torch.equal(memory.labels.int().argmax(1), y)
    assert dcwh.to('cpu') is dcwh and dcwh.collapsed.dtype == torch.int64


@pytest.mark.parametrize('name', METHODS)
def test_a_backward_after_the_next_epoch_has_begun(name):
    criterion, (h, y), index = built(name), labelled(), torch.arange(IMAGES)
    criterion.begin_epoch(0, 2)
    expected = torch.autograd.grad(criterion(h.requires_grad_(), y, index), h)
    late = criterion(h, y, index)
    criterion.end_epoch(lambda: (h.detach(), y))
    criterion.begin_epoch(1, 2)
    criterion(2 * h.detach(), y, index)
    assert torch.equal(torch.autograd.grad(late, h)[0], expected[0])


def replica(criterion, device='cpu'):
    "What DataParallel makes of a criterion for one of its devices; this is torch's replicate."
    copies = {module: module._replicate_for_data_parallel() for module in criterion.modules()}
    for module, copy in copies.items():
        for name, child in module._modules.items():
            setattr(copy, name, copies[child])
        for name, p in module._parameters.items():
            setattr(copy, name, None if p is None else p * 1)
        for name, buffer in module._buffers.items():
            setattr(copy, name, buffer.to(device))
    return copies[criterion]


@pytest.mark.parametrize('several', [False, True])
@pytest.mark.parametrize('name', METHODS)
def test_a_replica_shares_what_is_remembered(name, several):
    alone, shared = built(name), built(name)
    expected, _, facts = driven(alone, alone, several, epochs=2)
    losses = []

    class Parallel:  # a replica for every batch, and what the trainer asks of the original
        parameters, begin_epoch, end_epoch = shared.parameters, shared.begin_epoch, shared.end_epoch

    def call(h, y, index):
        copy = replica(shared)
        value = copy(h, y, index)
        losses.append(value.detach())
        Parallel.last = copy.last
        return value

    got, _, told = driven(Parallel, call, several, epochs=2)
    assert torch.equal(got, expected) and told == facts
    for name, tensor in alone.state_dict().items():
        assert torch.equal(shared.state_dict()[name], tensor)


def test_a_replica_elsewhere_says_that_its_memory_is_lost():
    h, y = (t.to('meta') for t in labelled())
    for name in ('dpsh', 'dsdh'):
        with pytest.raises(ValueError, match='^this replica on meta [^\n]*the memory is on cpu'):
            replica(built(name), 'meta')(h, y, torch.arange(IMAGES, device='meta'))


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', ['dcwh', 'dpsh', 'csq', 'ce', 'hashnet'])
def test_lightning_in_bf16_alone(name, tmp_path):
    import lightning

    class Hashing(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network, self.criterion = nn.Linear(BITS, BITS), built(name)

        def on_train_epoch_start(self):
            self.criterion.begin_epoch(self.current_epoch, 2)

        def on_train_epoch_end(self):
            self.facts = self.criterion.end_epoch()

        def training_step(self, batch, _):
            x, y, index = batch
            assert x.dtype == self.network.weight.dtype == torch.bfloat16
            self.loss = self.criterion(self.network(x), y, index)
            return self.loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    images = torch.utils.data.TensorDataset(*labelled(), torch.arange(IMAGES))
    hashing = Hashing()
    lightning.Trainer(
        precision='bf16-true',
        accelerator='cpu',
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    ).fit(hashing, torch.utils.data.DataLoader(images, BATCH))
    criterion = hashing.criterion
    assert hashing.loss.isfinite() and hashing.loss.dtype == torch.float32
    if name == 'dcwh':
        assert criterion.centres.dtype == torch.bfloat16 and criterion.sums.dtype == torch.float64
        assert not torch.equal(criterion.centres, built(name).bfloat16().centres)
