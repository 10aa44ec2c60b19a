"""What encoding costs beyond the network itself, and what half the precision and another runtime
save.

make benchmark ARGS="-k encoding"

512 images of 64 pixels, uint8 in memory, in batches of 64, and then one image alone, as a query
comes; on one thread; random weights, 48 bits. The measure is the backbone alone (evaluation
mode, no gradients) on batches that are floats, normalised and channels last beforehand. Seconds
are those of the processor, which on one thread are those of the clock unless something else
wants the core; least of four rounds, of twenty for one image. The table is
benchmarks/encoding.csv."""

from time import process_time

import pytest
import torch

from dcwh.model import HashModel
from dcwh.sharing import OnnxModel, export_onnx

ROUNDS, BATCH, SIDE = {512: 4, 1: 20}, 64, 64  # images in memory -> rounds
pytestmark = pytest.mark.benchmark(timer=process_time)
BACKBONES = ('timm/tf_efficientnet_lite0', 'resnet18')


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='module', params=BACKBONES)
def model(request):
    torch.manual_seed(0)
    return HashModel(request.param, 48, 'none', image_size=SIDE).eval()


@pytest.fixture(scope='module')
def onnx(model, tmp_path_factory):
    return OnnxModel(export_onnx(model, tmp_path_factory.mktemp('onnx') / 'model.onnx'))


@pytest.fixture(params=ROUNDS, ids='{} images'.format)
def images(request):
    return torch.randint(
        256,
        (request.param, 3, SIDE, SIDE),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(0),
    )


@pytest.fixture
def measure(benchmark, model, images):
    def measured(f, name):
        benchmark.extra_info.update(
            backbone=model._hub_mixin_config['backbone'], name=name, images=len(images)
        )
        return benchmark.pedantic(f, rounds=ROUNDS[len(images)], warmup_rounds=1)

    return measured


def test_backbone_alone(measure, model, images):
    batches = [
        ((x.float() / 255 - model.mean) / model.std).contiguous(memory_format=torch.channels_last)
        for x in images.split(BATCH)
    ]
    with torch.inference_mode():
        measure(lambda: [model.backbone(x) for x in batches], 'backbone alone')


def test_encode(measure, model, images):
    assert len(measure(lambda: model.encode(images, batch_size=BATCH), 'encode')) == len(images)


def test_larger_batches(measure, model, images):
    if len(images) > BATCH:
        assert len(
            measure(lambda: model.encode(images, batch_size=256), 'encode, batch_size=256')
        ) == len(images)
    else:
        pytest.skip('one image is one batch')


def test_half_precision(measure, model, images):
    assert len(
        measure(
            lambda: model.encode(images, batch_size=BATCH, precision='bf16'),
            "encode, precision='bf16'",
        )
    ) == len(images)


def test_onnx(measure, onnx, images):
    assert len(measure(lambda: onnx.encode(images, batch_size=BATCH), 'OnnxModel.encode')) == len(
        images
    )
