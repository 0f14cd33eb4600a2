"""Networks against PyTorch itself: logits and input gradients, on random images and on digits."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddjax
from ddjax import data
from tests.torch_import.networks import digits, published

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'ddjax[torch]'")
nn, F = torch.nn, torch.nn.functional
# PyTorch warns of its own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore")


class Aliased(nn.Module):
    """Units whose rectifier works in place: the shortcut reads what it wrote."""

    def __init__(self):
        super().__init__()
        self.stem, self.relu = nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(inplace=True)
        self.norm, self.conv = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.head = nn.Linear(64, 10)

    def forward(self, images):
        hidden = self.norm(self.stem(images))
        hidden = self.conv(self.relu(hidden)) + hidden
        hidden += 1
        return self.head(hidden.view(hidden.size(0), -1))


class Windows(nn.Module):
    """Convolutions and pools of all kinds, concatenated."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(
            [
                nn.Conv2d(1, 4, 3, stride=2, padding=1, padding_mode="reflect"),
                nn.Conv2d(1, 4, (2, 4), padding="same", padding_mode="circular"),
                nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4),
                nn.Conv2d(4, 6, 3, stride=(1, 2), padding=1, groups=2, padding_mode="replicate"),
            ]
        )
        self.pools = nn.ModuleList(
            [
                nn.MaxPool2d(3, 2, 1, ceil_mode=True),
                nn.MaxPool2d(2, 1, dilation=2),
                nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
                nn.AvgPool2d(2, divisor_override=3),
                nn.AdaptiveAvgPool2d((3, 1)),
                nn.AdaptiveMaxPool2d(2),
            ]
        )
        self.register_buffer("mean", torch.tensor([[[[0.3]]]]), persistent=False)
        self.head = nn.Linear(484, 10)

    def forward(self, images):
        small, wide = self.convs[0](images - self.mean), self.convs[1](images / torch.tensor(0.5))
        wide = torch.cat([self.convs[2](wide), F.interpolate(small, scale_factor=2)], 1)[:, 2:6]
        found = [pool(wide).flatten(1) for pool in self.pools]
        return self.head(torch.cat([*found, torch.flatten(self.convs[3](small), 1)], -1))


class Functions(nn.Module):
    """Functions of each value, and normalizations."""

    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True), nn.LayerNorm([8, 8])])
        self.conv, self.prelu, self.head = nn.Conv2d(1, 4, 1, padding=1), nn.PReLU(), nn.Linear(4, 10)

    def forward(self, images):
        x = self.conv(images)[..., 1:9, 1:-1]
        x = sum(norm(x) for norm in self.norms)
        functions = [
            F.celu, F.elu, F.gelu, F.hardsigmoid, F.hardswish, F.hardtanh, F.leaky_relu, F.logsigmoid, F.mish, F.relu6,
            F.selu, F.silu, F.softplus, F.softsign, self.prelu, torch.exp, torch.cos, torch.abs, torch.tanh,
            lambda x: F.gelu(x, approximate="tanh"), lambda x: x.clamp(min=-0.5), lambda x: torch.where(x > 0, x, x**2),
            lambda x: torch.log_softmax(x, 1), lambda x: x / x.pow(2).sum(1, keepdim=True).sqrt(),
        ]  # fmt: skip
        return self.head(torch.stack([function(x) for function in functions]).mean((0, -2, -1)))


class Transformer(nn.Module):
    """Patches, a token for the class, and a layer with attention."""

    def __init__(self):
        super().__init__()
        self.patches, self.token = nn.Conv2d(1, 8, 4, 4), nn.Parameter(torch.randn(1, 1, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
        self.head = nn.Linear(8, 10)

    def forward(self, images):
        patches = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(images.shape[0], -1, -1), patches], 1)
        return self.head(self.layer(tokens)[:, 0])


NETWORKS = {"aliased": Aliased, "windows": Windows, "functions": Functions, "transformer": Transformer}


def make(network, seed=0):
    """A network whose statistics are not those of a fresh one."""
    torch.manual_seed(seed)
    module = network()
    for name, tensor in module.named_buffers():
        if name.endswith("running_mean"):
            tensor.copy_(0.1 * torch.randn_like(tensor))
        if name.endswith("running_var"):
            tensor.copy_(0.1 + 0.1 * torch.rand_like(tensor))
    return module


@pytest.fixture(scope="module")
def imported():
    """Each network, before and after."""
    modules = {name: make(network) for name, network in NETWORKS.items()}
    return {name: (module, ddjax.from_torch(module, digits(2))) for name, module in modules.items()}


def by_torch(module, images):
    """Logits, and the input gradient of the sum of their squares."""
    inputs = torch.from_numpy(np.array(images.transpose(0, 3, 1, 2), order="C")).requires_grad_()
    logits = module.eval()(inputs)
    (gradient,) = torch.autograd.grad((logits**2).sum(), inputs)
    return logits.detach().numpy(), gradient.numpy().transpose(0, 2, 3, 1)


@jax.jit
def by_jax(logits_fn, images):
    logits, pull = jax.vjp(logits_fn, images)
    return logits, pull(2 * logits)[0]


def assert_same(module, logits_fn, images):
    for ours, theirs, tolerance in zip(by_jax(logits_fn, images), by_torch(module, images), (1e-5, 1e-4), strict=True):
        assert np.all(np.abs(theirs).reshape(len(images), -1).max(1) > 1e-3), "a dead network tells nothing"
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * max(1, np.abs(theirs).max()))


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_and_input_gradients(imported, name):
    module, logits_fn = imported[name]
    images = np.concatenate([np.random.default_rng(1).random((3, 8, 8, 1), np.float32), digits(5)])
    assert_same(module, logits_fn, images)


def test_two_sets_of_weights_share_one_program(imported):
    other = make(Aliased, seed=1)
    images, logits_fn = jnp.asarray(digits(8)), ddjax.from_torch(other, (8, 8, 1))
    by_jax(imported["aliased"][1], images)
    compiled = by_jax._cache_size()
    found = by_jax(logits_fn, images)[0]
    assert by_jax._cache_size() == compiled
    np.testing.assert_allclose(found, by_torch(other, digits(8))[0], rtol=1e-4, atol=1e-5)
    assert set(logits_fn.args[0]) == {name for name in other.state_dict() if "num_batches" not in name}


def test_module_is_left_as_it_was():
    module = make(lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3)))
    module[2].eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    logits_fn = ddjax.from_torch(module, (5,))
    assert [part.training for part in module.modules()] == [True, True, True, False, True]
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())
    inputs = np.random.default_rng(2).random((6, 5), np.float32)
    with torch.no_grad():
        wanted = module.eval()(torch.from_numpy(inputs)).numpy()
    np.testing.assert_allclose(logits_fn(jnp.asarray(inputs)), wanted, rtol=1e-4, atol=1e-5)


def test_attack_on_an_imported_network(imported):
    _, logits_fn = imported["aliased"]
    images = jnp.asarray(digits(4))
    labels = jnp.argmax(by_jax(logits_fn, jnp.asarray(digits(8)))[0][:4], 1)
    attack = jax.jit(lambda f, x, y: ddjax.pgd(f, x, y, epsilon=0.5, num_steps=10, key=jax.random.key(0)))
    assert np.asarray(attack(logits_fn, images, labels).success).any()


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.register_buffer("count", torch.zeros(()))

    def forward(self, inputs):
        return self.function(self, inputs)


def count(module, inputs):
    module.count += 1
    return inputs


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda self, x: torch.fft.fft(x).real, "which ddjax does not support; it supports _adaptive_avg_pool2d, "),
        (lambda self, x: x.view(8, 4), "the module fails for a batch of 1: shape"),
        (lambda self, x: x - x.mean(0), "the logits of an example alone and in a batch differ by"),
        (lambda self, x: (x, 2 * x), "return the logits alone, but it has 1 inputs and 2 outputs"),
        (lambda self, x: x[:, 0], r"the module must return logits \[B, K\], got torch.Size\(\[8\]\)"),
        (lambda self, x: x if x.sum() > 0 else -x, "PyTorch cannot export the module: "),
        (lambda self, x: x[:, :, 0, 0], "PyTorch cannot export the module: "),
        (count, "the module changes its buffers in evaluation mode: count"),
    ],
)
def test_refuses(function, message):
    with pytest.raises(ValueError, match=message):
        ddjax.from_torch(Function(function), (4,))


def test_refuses_what_is_no_module_or_no_example():
    with pytest.raises(ValueError, match=r"needs a torch.nn.Module, got function"):
        ddjax.from_torch(digits, (8, 8, 1))
    with pytest.raises(ValueError, match="the example must be inputs"):
        ddjax.from_torch(nn.Linear(2, 2), ())


def test_tells_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"from_torch needs PyTorch: pip install 'ddjax\[torch\]'"):
        ddjax.from_torch(None, (8, 8, 1))


class Unit(nn.Module):
    """Of the residual network of alpha-beta-CROWN, without batch normalization."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride)) if stride > 1 else nn.Sequential()

    def forward(self, x):
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 2, 1)
        self.layer1 = nn.Sequential(Unit(8, 16, 2), Unit(16, 16, 1))
        self.linear1, self.linear2 = nn.Linear(1024, 100), nn.Linear(100, 10)

    def forward(self, x):
        x = self.layer1(F.relu(self.conv1(x)))
        return self.linear2(F.relu(self.linear1(x.view(x.size(0), -1))))


def test_published_residual_network():
    module = Residual()
    module.load_state_dict({name: torch.from_numpy(array) for name, array in published("resnet2b.pth").items()})
    try:
        test = data.load("cifar10", "test")
    except data.DatasetUnavailableError as error:
        pytest.skip(f"needs CIFAR-10: {error}")
    logits_fn = ddjax.from_torch(module, data.to_float(test.images[:8]))
    assert_same(module, logits_fn, data.to_float(test.images[:8]))
    mean, std = jnp.array([0.4914, 0.4822, 0.4465]), jnp.array([0.2471, 0.2435, 0.2616])
    logits_fn = ddjax.normalized(logits_fn, mean, std)
    predict = jax.jit(lambda images: jnp.argmax(logits_fn(images), 1))
    parts = [np.asarray(predict(data.to_float(part))) for part in np.split(test.images, 5)]
    # Its authors tell 69.25 %; a prepared CIFAR-10 whose images are JPEGs has 68.70.
    assert np.mean(np.concatenate(parts) == test.labels) == pytest.approx(0.6925, abs=0.006)
