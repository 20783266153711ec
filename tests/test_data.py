"""Data sets: what they hold, where they are looked for, and what is said when something is wrong.

No test leaves this machine: downloads come from a server on the loopback address. Tests that need the real
MNIST run where VNCA_DATA holds it.
"""

import gzip
import hashlib
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vnca import data

REAL = Path(os.environ.get("VNCA_DATA", "nowhere")).expanduser().absolute()
real_binarized = pytest.mark.skipif(
    not (REAL / "binarized_mnist").is_dir(), reason="VNCA_DATA holds no binarized_mnist folder"
)
real_mnist = pytest.mark.skipif(not (REAL / "MNIST/raw").is_dir(), reason="VNCA_DATA holds no MNIST/raw folder")

ROWS = {"train": 30, "valid": 11, "test": 12}


def amat(rows):
    return b"".join(b" ".join(b"%d" % value for value in row) + b"\n" for row in rows)


def files_in(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def binarized(split="train", **options):
    return data.load("binarized-mnist", split, **options)


@pytest.fixture(autouse=True)
def away(tmp_path, monkeypatch):
    """Every test has a cache of its own, no VNCA_DATA, no proxy, and sources where nobody answers."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("VNCA_DATA", raising=False)
    monkeypatch.setattr(data, "BINARIZED_SOURCES", ("http://127.0.0.1:9/{split}.amat",))
    return tmp_path


@pytest.fixture
def cache(away):
    return away / "xdg" / "vnca"


@pytest.fixture
def rows(monkeypatch):
    """A small binarized set takes the real one's place: its sizes and digests are put into the module."""
    rng = np.random.default_rng(0)
    rows = {split: rng.integers(0, 2, (count, 784), dtype=np.uint8) for split, count in ROWS.items()}
    digests = {split: data.content_digest(np.packbits(value, axis=1)) for split, value in rows.items()}
    monkeypatch.setattr(data, "BINARIZED_ROWS", ROWS)
    monkeypatch.setattr(data, "BINARIZED_DIGESTS", digests)
    return rows


@pytest.fixture
def root(tmp_path, rows):
    """A folder laid out as VNCA_DATA is."""
    folder = tmp_path / "root" / "binarized_mnist"
    folder.mkdir(parents=True)
    for split, value in rows.items():
        (folder / f"binarized_mnist_{split}.amat.gz").write_bytes(gzip.compress(amat(value)))
    return folder.parent


class Server:
    """Serves ``files`` {path: bytes}; of those in ``cut`` it sends half and hangs up. ``asked`` lists the GETs."""

    def __init__(self):
        self.files, self.cut, self.asked = {}, set(), []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.answer(send=False)

            def do_GET(self):
                server.asked.append(self.path)
                self.answer(send=True)

            def answer(self, send):
                if self.path not in server.files:
                    self.send_error(404)
                    return
                content = server.files[self.path]
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if send:
                    self.wfile.write(content[: len(content) // 2] if self.path in server.cut else content)

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server(monkeypatch):
    server = Server()
    sources = tuple(f"{server.url}/{mirror}/{{split}}.amat" for mirror in ("first", "second"))
    monkeypatch.setattr(data, "BINARIZED_SOURCES", sources)
    yield server
    server.http.shutdown()
    server.http.server_close()


# ------------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("arguments", "valid"),
    [
        (("digit", "train"), data.NAMES),
        (("digits", "validation"), data.SPLITS),
        (("binarised-mnist", "train", None, "digits"), data.NAMES),
        (("digits", "train", None, "mnist"), data.FALLBACKS),
    ],
)
def test_what_does_not_exist_is_named_with_what_does(arguments, valid, capsys):
    with pytest.raises(ValueError) as caught:
        data.load(*arguments)
    assert all(value in str(caught.value) for value in valid)
    assert any(repr(value) in str(caught.value) for value in arguments)
    assert capsys.readouterr().out == ""  # a misspelt name is never answered with other data


def test_import_does_not_load_torchvision_or_scikit_learn():
    code = "import sys, vnca.data; print({'torchvision', 'sklearn', 'scipy'} & set(sys.modules))"
    where = {**os.environ, "PYTHONPATH": str(Path(data.__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", code], env=where, capture_output=True).stdout.strip() == b"set()"


# ----------------------------------------------------------------------------------------------- digits


@pytest.mark.parametrize(("split", "count"), [("train", 1297), ("valid", 250), ("test", 250), ("train+valid", 1547)])
def test_digits_have_the_geometry_of_mnist(split, count):
    dataset = data.load("digits", split)
    images, labels = dataset.tensors
    assert (dataset.name, dataset.split, len(dataset)) == ("digits", split, count)
    assert images.shape == (count, 1, 28, 28) and images.dtype == torch.float32
    assert labels.shape == (count,) and labels.dtype == torch.int64
    assert images.min() == 0 and 0.99 < images.max() <= 1
    assert labels.unique().tolist() == list(range(10))
    box = images[..., 4:24, 4:24]
    assert torch.equal(torch.nn.functional.pad(box, (4, 4, 4, 4)), images)  # a border of four zeros
    used = (box > 0).any(dim=0)[0]
    assert used.any(dim=0).all() and used.any(dim=1).all()  # and the box is used up to its sides


def test_digits_splits_are_disjoint_and_reproducible():
    splits = {split: data.load("digits", split).tensors for split in data.SPLITS}
    seen = [{image.numpy().tobytes() for image in splits[split][0]} for split in ("train", "valid", "test")]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 1797
    for part, again in zip(splits["test"], data.load("digits", "test").tensors, strict=True):
        assert torch.equal(part, again)
    for both, train, valid in zip(splits["train+valid"], splits["train"], splits["valid"], strict=True):
        assert torch.equal(both, torch.cat([train, valid]))


def test_digits_labels_belong_to_their_images():
    train, labels = data.load("digits", "train").tensors
    test, expected = data.load("digits", "test").tensors
    nearest = torch.cdist(test.flatten(1), train.flatten(1)).argmin(dim=1)
    assert (labels[nearest] == expected).float().mean() > 0.95


# --------------------------------------------------------------------------------------------- binarize


@given(arrays(np.uint8, (3, 1, 4, 5), elements=st.integers(0, 1)), st.integers(0, 2**32))
def test_binarize_leaves_binary_pixels_alone(pixels, seed):
    images = torch.from_numpy(pixels).float()
    assert torch.equal(data.binarize(images, seed), images)


def test_binarize_draws_each_pixel_with_its_grey_value():
    grey = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0])
    drawn = data.binarize(grey.expand(40_000, 1, 1, 5))
    assert drawn.unique().tolist() == [0, 1]
    torch.testing.assert_close(drawn.mean(dim=0)[0, 0], grey, atol=0.012, rtol=0)  # over 4 standard errors


def test_binarize_never_sets_a_black_pixel_even_where_the_draw_is_exactly_zero():
    draws = torch.rand(600, 1, 28, 28, generator=torch.Generator().manual_seed(12))
    assert (draws == 0).any()  # a draw of chance 2**-24: this seed has one
    assert not data.binarize(torch.zeros(600, 1, 28, 28), seed=12).any()


def test_binarize_is_fixed_by_its_seed_and_leaves_torch_alone():
    images = torch.rand(6, 1, 28, 28, dtype=torch.float64)
    before = torch.get_rng_state()
    drawn = data.binarize(images)
    assert torch.equal(before, torch.get_rng_state())
    assert drawn.dtype == images.dtype
    assert torch.equal(drawn, data.binarize(images, seed=0))
    assert torch.equal(drawn[:2], data.binarize(images[:2]))
    assert not torch.equal(drawn, data.binarize(images, seed=1))


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (torch.zeros(28, 28), r"\(28, 28\)"),
        (torch.zeros(2, 3, 28, 28), r"\(2, 3, 28, 28\)"),
        (torch.zeros(2, 1, 28, 28, dtype=torch.uint8), "uint8"),
        (torch.full((2, 1, 4, 4), 255.0), "divide"),
        (torch.full((2, 1, 4, 4), -0.01), "0, 1"),
        (torch.full((2, 1, 4, 4), float("nan")), "0, 1"),
    ],
)
def test_binarize_refuses_what_is_not_a_grey_image(images, told):
    with pytest.raises(ValueError, match=told):
        data.binarize(images)


# ------------------------------------------------------------------------------- the format and the digest


@given(arrays(np.uint8, st.tuples(st.integers(1, 4), st.just(784)), elements=st.integers(0, 1)))
def test_amat_text_and_packed_bits_give_the_pixels_back(pixels):
    parsed = data.parse_amat(amat(pixels))
    assert parsed.dtype == np.uint8 and np.array_equal(parsed, pixels)
    assert np.array_equal(np.unpackbits(np.packbits(parsed, axis=1), axis=1), pixels)


@given(arrays(np.uint8, st.tuples(st.integers(1, 8), st.just(98))), st.randoms(use_true_random=False))
def test_the_digest_forgets_the_order_of_the_rows_and_nothing_else(packed, random):
    order = list(range(len(packed)))
    random.shuffle(order)
    digest = data.content_digest(packed)
    assert data.content_digest(packed[order]) == digest
    changed = packed.copy()
    changed[random.randrange(len(packed)), random.randrange(98)] ^= 1 << random.randrange(8)
    assert data.content_digest(changed) != digest
    assert data.content_digest(np.concatenate([packed, packed[:1]])) != digest


@pytest.mark.parametrize("ending", [b"\r\n", b" \n", b"\n"])
def test_amat_line_endings_do_not_matter(rows, ending):
    text = amat(rows["test"]).replace(b"\n", ending)
    assert np.array_equal(data.parse_amat(text), rows["test"])
    assert np.array_equal(data.parse_amat(text.removesuffix(ending)), rows["test"])


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda lines: [], "empty"),
        (lambda lines: [*lines[:2], lines[2][:-200], *lines[3:]], "line 3 has 684 values instead of 784"),
        (lambda lines: [*lines[:4], lines[4] + b" 1"], "line 5 has 785 values instead of 784"),
        (lambda lines: [lines[0], b"2" + lines[1][1:]], "line 2 holds something other than 0 and 1"),
        (lambda lines: [lines[0][:1] + b"," + lines[0][2:]], "line 1 holds something other than 0 and 1"),
        (lambda lines: [b"<!DOCTYPE html>", *lines], "line 1 has 2 values"),
    ],
)
def test_a_wrong_line_is_named(rows, spoil, told):
    with pytest.raises(ValueError, match=told):
        data.parse_amat(b"\n".join(spoil(amat(rows["test"]).splitlines())))


# --------------------------------------------------------------------------- binarized-mnist: where it is found


@pytest.mark.parametrize("folder", ["", "binarized_mnist"])
@pytest.mark.parametrize("packing", ["plain", "gzip"])
@pytest.mark.parametrize("given_by", ["argument", "environment", "cache"])
def test_binarized_files_are_found(rows, tmp_path, cache, monkeypatch, folder, packing, given_by):
    place = cache if given_by == "cache" else tmp_path / "place"
    (place / folder).mkdir(parents=True)
    for split, value in rows.items():
        path = place / folder / f"binarized_mnist_{split}.amat"
        if packing == "plain":
            path.write_bytes(amat(value))
        else:
            path.with_suffix(".amat.gz").write_bytes(gzip.compress(amat(value)))
    if given_by == "environment":
        monkeypatch.setenv("VNCA_DATA", str(place))
    root = place if given_by == "argument" else None
    for _ in range(2):  # from the file, then from the cache
        for split, count in ROWS.items():
            images, labels = binarized(split, root=root).tensors
            assert images.shape == (count, 1, 28, 28) and images.dtype == torch.float32
            assert np.array_equal(images.flatten(1).numpy(), rows[split])  # in the file's order
            assert labels.dtype == torch.int64 and labels.tolist() == [-1] * count


def test_root_comes_before_the_environment(rows, root, tmp_path, monkeypatch):
    monkeypatch.setenv("VNCA_DATA", str(root))
    (tmp_path / "binarized_mnist_test.amat").write_bytes(amat(rows["test"][::-1]))
    images = binarized("test", root=tmp_path).tensors[0]
    assert np.array_equal(images.flatten(1).numpy(), rows["test"][::-1])


def test_train_and_valid_together(rows, root):
    images = binarized("train+valid", root=root).tensors[0]
    assert np.array_equal(images.flatten(1).numpy(), np.concatenate([rows["train"], rows["valid"]]))


def test_nothing_is_written_outside_the_cache(root, cache):
    before = files_in(root)
    binarized("train+valid", root=root)
    assert files_in(root) == before
    assert len(files_in(cache)) == 2


def test_the_cache_is_used_and_belongs_to_its_file(rows, root, monkeypatch):
    binarized("test", root=root)
    monkeypatch.setattr(data, "parse_amat", lambda text: pytest.fail("the cache was not used"))
    binarized("test", root=root)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(root.parent / "xdg"))
    monkeypatch.setattr(data, "BINARIZED_ROWS", ROWS)
    monkeypatch.setattr(data, "BINARIZED_DIGESTS", {"test": data.content_digest(np.packbits(rows["test"], axis=1))})
    other = rows["test"][::-1]
    (root / "binarized_mnist/binarized_mnist_test.amat.gz").write_bytes(gzip.compress(amat(other)))
    assert np.array_equal(binarized("test", root=root).tensors[0].flatten(1).numpy(), other)


@pytest.mark.parametrize("spoil", [lambda b: b[:-1], lambda b: b"", lambda b: bytes([b[0] ^ 8]) + b[1:]])
def test_a_spoilt_cache_is_built_again(rows, root, cache, spoil):
    binarized("test", root=root)
    (cached,) = (cache / "binarized_mnist").iterdir()
    whole = cached.read_bytes()
    cached.write_bytes(spoil(whole))
    assert np.array_equal(binarized("test", root=root).tensors[0].flatten(1).numpy(), rows["test"])
    assert cached.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_said_and_not_fatal(rows, root, cache):
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="could not be written"):
        images = binarized("test", root=root).tensors[0]
    assert np.array_equal(images.flatten(1).numpy(), rows["test"])


@pytest.mark.parametrize("fails", ["write", "rename"])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, fails):
    target = tmp_path / "file"
    data._write_whole(target, b"old")

    def no_space(*arguments, **options):
        raise OSError("No space left on device")

    monkeypatch.setattr(*((os, "replace") if fails == "rename" else (Path, "write_bytes")), no_space)
    with pytest.raises(OSError, match="No space left"):
        data._write_whole(target, b"new")
    monkeypatch.undo()
    assert files_in(tmp_path) == ["file"] and target.read_bytes() == b"old"


# ---------------------------------------------------------------------- binarized-mnist: files that are wrong


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda rows: gzip.compress(amat(rows))[:-30], "end"),
        (lambda rows: b"\x1f\x8b" + b"nonsense" * 20, "compression|gzip"),
        (lambda rows: amat(rows[:-1]), "11 images instead of 12"),
        (lambda rows: amat(rows)[:-100], "line 12 has 734 values instead of 784"),
        (lambda rows: amat(1 - rows), "not those of the test split"),
        (lambda rows: b"<html>404</html>", "line 1"),
        (lambda rows: b"", "empty"),
        (lambda rows: b"MATLAB 5.0 MAT-file" + bytes(200), "right file"),
        (lambda rows: b"PK\x03\x04" + bytes(50), "zip"),
    ],
)
def test_a_wrong_file_is_named_with_what_to_do(rows, tmp_path, cache, spoil, told):
    path = tmp_path / "binarized_mnist_test.amat"
    path.write_bytes(spoil(rows["test"]))
    with pytest.raises(data.DataError, match=told) as caught:
        binarized("test", root=tmp_path)
    assert str(path) in str(caught.value) and "Delete it" in str(caught.value)
    assert "\n" not in str(caught.value) and caught.value.__suppress_context__
    assert files_in(cache) == []


def test_a_wrong_file_leads_to_the_fallback_and_is_named_in_its_line(rows, tmp_path, capsys):
    path = tmp_path / "binarized_mnist_test.amat"
    path.write_bytes(amat(1 - rows["test"]))
    assert binarized("test", root=tmp_path, fallback="digits").name == "digits"
    assert str(path) in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------ no network


def test_no_network_gives_one_line_that_names_the_digits(cache):
    with pytest.raises(data.DataError) as caught:
        binarized()
    told = str(caught.value)
    for part in ("binarized-mnist", "no source answered", 'load("digits"', "binarized_mnist_train.amat", "127.0.0.1"):
        assert part in told
    assert "\n" not in told
    assert caught.value.__cause__ is None and caught.value.__context__ is None
    assert files_in(cache) == []


def test_no_network_names_the_folder_that_was_looked_at(cache, monkeypatch, tmp_path):
    monkeypatch.setenv("VNCA_DATA", str(tmp_path / "mistyped"))
    with pytest.raises(data.DataError, match=f"that VNCA_DATA names, now {tmp_path / 'mistyped'}"):
        binarized()


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "kmnist"])
def test_no_network_for_torchvision_sets(name, monkeypatch):
    from torchvision import datasets

    monkeypatch.setattr(getattr(datasets, data.TORCHVISION_CLASSES[name]), "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(data.DataError, match=f"^{name} .*no source answered.*digits") as caught:
        data.load(name, "train")
    assert caught.value.__cause__ is None and caught.value.__context__ is None


def test_a_silent_host_is_not_waited_for(monkeypatch):
    awake = threading.Event()

    def wait(*arguments):
        awake.wait()
        raise TimeoutError

    monkeypatch.setattr(data, "_open", wait)
    monkeypatch.setattr(data, "ANSWER_SECONDS", 0.05)
    with pytest.raises(data.DataError, match="127.0.0.1: no answer in 0.05 s"):
        binarized()
    awake.set()


def test_the_fallback_says_what_was_taken(rows, root, capsys):
    assert binarized("valid", root=root, fallback="digits").name == "binarized-mnist"
    assert capsys.readouterr().out == "Data: binarized-mnist, valid: 11 images of 28 x 28.\n"
    dataset = binarized("valid", fallback="digits")
    assert (dataset.name, dataset.split, len(dataset)) == ("digits", "valid", 250)
    told = capsys.readouterr()
    assert told.out == (
        "Data: digits, valid: 250 images of 28 x 28, the built-in set, "
        "because binarized-mnist (valid) could not be downloaded: no source answered.\n"
    )
    assert told.err == ""
    binarized("valid", root=root)
    assert capsys.readouterr().out == ""


# ------------------------------------------------------------------------------------------------- downloads


def packed_as(form, rows, split, tmp_path):
    if form == "amat":
        return amat(rows[split])
    path = tmp_path / form
    if form == "matlab":
        from scipy.io import savemat

        savemat(path, {"X": rows[split]}, appendmat=False, do_compression=True)
    else:
        with path.open("wb") as file:
            np.savez_compressed(file, **{f"{key}_data": value.astype(np.float32) for key, value in rows.items()})
    return path.read_bytes()


@pytest.mark.parametrize("form", ["amat", "matlab", "npz"])
def test_a_download_is_kept_packed(rows, server, cache, tmp_path, capsys, form):
    server.files["/first/test.amat"] = packed_as(form, rows, "test", tmp_path)
    for _ in range(2):
        assert np.array_equal(binarized("test").tensors[0].flatten(1).numpy(), rows["test"])
    assert server.asked == ["/first/test.amat"]
    assert files_in(cache) == ["test.bits"]
    assert capsys.readouterr() == ("", "")  # no bar where there is no terminal


def test_the_next_source_is_tried(rows, server, cache):
    server.files |= {"/first/test.amat": amat(1 - rows["test"]), "/second/test.amat": amat(rows["test"])}
    assert np.array_equal(binarized("test").tensors[0].flatten(1).numpy(), rows["test"])
    assert server.asked == ["/first/test.amat", "/second/test.amat"]
    assert files_in(cache) == ["test.bits"]


def test_every_source_that_fails_is_told_and_nothing_is_left(rows, server, cache):
    server.files["/first/test.amat"] = amat(rows["test"])
    server.cut.add("/first/test.amat")
    with pytest.raises(data.DataError, match="no source gave a usable file") as caught:
        binarized("test")
    assert "the download stopped after 9,408 of 18,816 bytes" in str(caught.value)
    assert "404" in str(caught.value) and "digits" in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__context__ is None
    assert files_in(cache) == []


def test_a_wrong_download_is_not_kept(rows, server, cache):
    server.files["/first/test.amat"] = amat(rows["test"][:-1])
    with pytest.raises(data.DataError, match="11 images instead of 12"):
        binarized("test")
    assert files_in(cache) == []


def test_an_unwritable_cache_folder_is_named(away, server):
    (away / "xdg").write_text("a file where the folder should be")
    with pytest.raises(data.DataError, match="XDG_CACHE_HOME"):
        binarized("test")
    assert server.asked == []


@pytest.fixture
def homeless(monkeypatch):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    monkeypatch.delenv("XDG_CACHE_HOME")


@pytest.mark.parametrize("name", ["binarized-mnist", "mnist"])
def test_without_a_home_folder_there_are_the_digits_and_advice(name, homeless, capsys):
    assert len(data.load("digits", "valid")) == 250
    with pytest.raises(data.DataError, match="no home folder for the cache. Point XDG_CACHE_HOME"):
        data.load(name, "test")
    assert data.load(name, "test", fallback="digits").name == "digits"
    assert "because there is no home folder for the cache" in capsys.readouterr().out


@pytest.mark.parametrize("given_by", ["root", "VNCA_DATA"])
def test_the_home_of_nobody_is_named(given_by, monkeypatch):
    if given_by == "VNCA_DATA":
        monkeypatch.setenv("VNCA_DATA", "~nouser/x")
    assert len(data.load("digits", "valid")) == 250
    with pytest.raises(data.DataError, match="is '~nouser/x', and there is no such user. Let VNCA_DATA"):
        binarized("test", root="~nouser/x" if given_by == "root" else None)


# ----------------------------------------------------------------------------------------------- torchvision


def idx(values):
    header = [0, 0, 8, values.ndim]
    return bytes(header) + np.array(values.shape, ">u4").tobytes() + values.tobytes()


@pytest.fixture(scope="module")
def idx_files():
    """The four files of a set in torchvision's layout: image i is grey i % 251, its label i % 10."""
    files = {}
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        number = np.arange(count)
        images = np.broadcast_to((number % 251).astype(np.uint8)[:, None, None], (count, 28, 28))
        files[f"{part}-images-idx3-ubyte"] = idx(images)
        files[f"{part}-labels-idx1-ubyte"] = idx((number % 10).astype(np.uint8))
    return files


@pytest.fixture
def kmnist(idx_files, server, monkeypatch):
    """torchvision's KMNIST, its mirror and checksums pointing to ``idx_files`` on the local server."""
    from torchvision import datasets

    packed = {f"{name}.gz": gzip.compress(content, 1) for name, content in idx_files.items()}
    server.files |= {f"/{name}": content for name, content in packed.items()}
    resources = [(name, hashlib.md5(content).hexdigest()) for name, content in packed.items()]
    monkeypatch.setattr(datasets.KMNIST, "mirrors", [f"{server.url}/gone/", f"{server.url}/"])
    monkeypatch.setattr(datasets.KMNIST, "resources", resources)
    return server


def test_torchvision_sets_are_downloaded_once_and_split(kmnist, cache, capsys):
    splits = {split: data.load("kmnist", split).tensors for split in data.SPLITS}
    assert len([path for path in kmnist.asked if "gone" not in path]) == 4
    assert len(files_in(cache / "KMNIST/raw")) == 4
    assert capsys.readouterr() == ("", "")
    for split, numbers in {"train": (0, 50_000), "valid": (50_000, 60_000), "test": (0, 10_000)}.items():
        images, labels = splits[split]
        number = torch.arange(*numbers)
        assert images.shape == (len(number), 1, 28, 28) and images.dtype == torch.float32
        assert torch.equal(images[:, 0, 14, 14], (number % 251) / 255)
        assert labels.dtype == torch.int64 and torch.equal(labels, number % 10)
    assert torch.equal(splits["train+valid"][0], torch.cat([splits["train"][0], splits["valid"][0]]))


def test_torchvision_files_in_root_are_read_where_they_are(idx_files, tmp_path, cache):
    raw = tmp_path / "place/FashionMNIST/raw"
    raw.mkdir(parents=True)
    for name, content in idx_files.items():
        (raw / name).write_bytes(content)
    assert len(data.load("fashion-mnist", "valid", root=tmp_path / "place")) == 10_000
    assert files_in(tmp_path / "place") == sorted(idx_files) and files_in(cache) == []


@pytest.mark.parametrize("keep", [0, 12, 16 + 784 * 500 + 3, 16 + 784 * 500])
def test_a_truncated_idx_file_is_named(idx_files, tmp_path, keep):
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    for name, content in idx_files.items():
        (raw / name).write_bytes(content)
    (raw / "t10k-images-idx3-ubyte").write_bytes(idx_files["t10k-images-idx3-ubyte"][:keep])
    with pytest.raises(data.DataError, match="truncated or wrong") as caught:
        data.load("mnist", "test", root=tmp_path)
    assert str(raw) in str(caught.value) and "Delete them" in str(caught.value)


def test_an_idx_file_with_too_few_images_is_named(idx_files, tmp_path):
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    for name, content in idx_files.items():
        (raw / name).write_bytes(content)
    (raw / "t10k-images-idx3-ubyte").write_bytes(idx(np.zeros((9_999, 28, 28), np.uint8)))
    with pytest.raises(data.DataError, match=r"\(9999, 28, 28\)"):
        data.load("mnist", "test", root=tmp_path)


def test_a_torchvision_file_with_a_wrong_checksum_is_not_kept(kmnist, cache):
    kmnist.files["/train-images-idx3-ubyte.gz"] = gzip.compress(b"something else")
    with pytest.raises(data.DataError, match="truncated or wrong"):
        data.load("kmnist", "train")
    assert files_in(cache) == []


# ------------------------------------------------------------------------------------------ the real data sets


@real_binarized
@pytest.mark.parametrize(("split", "count", "mean"), [("valid", 10_000, 0.13113), ("test", 10_000, 0.13251)])
def test_the_real_binarized_mnist(split, count, mean):
    images = binarized(split, root=REAL).tensors[0]
    assert images.shape == (count, 1, 28, 28)
    assert images.unique().tolist() == [0, 1]
    assert images.mean().item() == pytest.approx(mean, abs=5e-6)


@real_binarized
def test_the_real_binarized_mnist_has_60_000_images_to_train_on():
    images = binarized("train+valid", root=REAL).tensors[0]
    assert images.shape == (60_000, 1, 28, 28)
    assert images[:50_000].mean(dtype=torch.float64).item() == pytest.approx(0.13056, abs=5e-6)


@real_mnist
def test_the_real_mnist():
    images, labels = data.load("mnist", "train+valid", root=REAL).tensors
    assert images.mean(dtype=torch.float64).item() == pytest.approx(0.13066, abs=5e-6)
    assert labels[:5].tolist() == [5, 0, 4, 1, 9]


@real_mnist
@real_binarized
def test_binarized_images_are_draws_of_mnist():
    grey, _ = data.load("mnist", "test", root=REAL).tensors
    binary = binarized("test", root=REAL).tensors[0][:20].flatten(1).double()
    probability = grey.flatten(1).double().clamp(1e-6, 1 - 1e-6)
    scores = binary @ probability.log().T + (1 - binary) @ (1 - probability).log().T  # (20, 10000) nats
    best = scores.topk(2, dim=1).values
    assert (best[:, 0] > -300).all() and (best[:, 0] > best[:, 1] + 5).all()  # one image each, and surely


def test_an_array_is_no_tensor_to_binarize():
    with pytest.raises(ValueError, match="images are a torch.Tensor, not a ndarray"):
        data.binarize(np.zeros((2, 1, 28, 28), dtype=np.float32))
