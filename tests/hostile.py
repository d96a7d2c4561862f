"""Hostile state files: how they are made, and that they are refused."""

import io
import json
import zipfile

import numpy as np
import pytest

from nbnorm import BatchNormState, StateFileError

NAMES = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked", "num_samples_tracked",
         "num_batches_skipped"]  # fmt: skip


def refused(path, *texts):
    with pytest.raises(StateFileError) as caught:
        BatchNormState.load(path)
    message = str(caught.value)
    _, found, reason = message.partition(f"{path.name}: ")  # the path of a test has the words of its name
    assert found
    assert len(message) < 200
    assert caught.value.__cause__ is not None
    assert [text for text in texts if text not in reason] == []


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def build(path, pairs, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in pairs:
            archive.writestr(zipfile.ZipInfo(name), data, method)


def npy(array, **options):
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asanyarray(array), **options)
    return file.getvalue()


def described(found, **changes):
    """The members with another description; what is changed to `...` is left out."""
    about = json.loads(found["nbnorm.json"]) | changes
    return {"nbnorm.json": json.dumps({k: v for k, v in about.items() if v is not ...}).encode()}
