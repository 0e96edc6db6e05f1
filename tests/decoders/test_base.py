"""The Decoder noun: modules, encoders, and what it refuses."""

import pytest
import torch

from memfold.decoders.base import Decoder, FunctionDecoder, as_decoder
from memfold.types import InputError
from tests.decoders.worlds import latents, linear
from tests.oracles import unchecked


def test_a_module_is_a_decoder():
    net = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Tanh()).double()
    decoder = as_decoder(net)
    assert isinstance(decoder, Decoder)
    assert as_decoder(decoder) is decoder
    torch.testing.assert_close(decoder(latents()), net(latents()))
    assert not decoder.has_encoder


def test_encoder():
    decoder, a, b = linear((1.0,) * 8)
    full = FunctionDecoder(decoder, encode=lambda x: (x - b) @ a, latent_shape=(8,))
    assert full.has_encoder
    torch.testing.assert_close(full.encode(full(latents())), latents())
    with pytest.raises(InputError, match="no encoder; pass encode=, or search with find_latents"):
        as_decoder(decoder).encode(torch.ones(1, 20))


def test_wrong_shapes_are_refused():
    decoder = FunctionDecoder(lambda z: z, latent_shape=(2, 3))
    with pytest.raises(
        InputError, match=r"z has shape \(1, 8\), but the model takes \(batch, 2, 3\)"
    ):
        decoder(torch.ones(1, 8))
    with pytest.raises(InputError, match=r"z has shape \(8,\); pass a batch of latents"):
        decoder(torch.ones(8))
    with pytest.raises(InputError, match=r"returned shape \(2, 8\) for 4 latents"):
        FunctionDecoder(lambda z: z[:2])(latents())


@pytest.mark.parametrize("layer", [torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5)])
def test_modules_that_mix_samples_are_refused(layer):
    net = torch.nn.Sequential(torch.nn.Linear(8, 8), layer)
    with pytest.raises(InputError, match=r"'1' is in training mode.*call \.eval\(\)"):
        as_decoder(net)
    as_decoder(net.eval())


def test_no_callable():
    with unchecked(), pytest.raises(InputError, match="str is no decoder"):
        FunctionDecoder("model")
