"""Files of strangers: every one is refused with a short sentence, in no time, in no memory, and runs nothing.

All are read in one other process, with limits that a file which is believed would break.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from fairsteer import FairSteeringTransformer, persistence
from fairsteer.export._array_pickle import dumps

st = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
pytest.importorskip("resource", reason="the system has no limits to set")

_SECONDS = 5
_MEGABYTES = 32

_READER = f"""
import json, os, resource, signal, sys, time, tracemalloc
import numpy as np
from fairsteer import persistence
from fairsteer.export import read_affine, read_affine_file

def late(*_):
    raise SystemExit("too late")

def read(name):
    if name.endswith(".pkl"):
        return read_affine_file(name)
    if name.endswith(".folder"):
        return read_affine(name)
    if name.endswith(".onnx"):
        from fairsteer.export import read_onnx_codes
        return read_onnx_codes(name)
    return persistence.load(name)

def causes(error):
    while error is not None:
        yield type(error).__name__
        error = error.__cause__ or error.__context__

signal.signal(signal.SIGPROF, late)  # of CPU time: other programs may be busy
for good in sys.argv[1].split(","):
    read(good)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 512 * 2**20,) * 2)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20,) * 2)
tracemalloc.start()
modules = set(sys.modules)
results = {{}}
for name in sorted(os.listdir(".")):
    if not name.startswith("bad "):
        continue
    tracemalloc.reset_peak()
    before, start = tracemalloc.get_traced_memory()[0], time.process_time()
    signal.setitimer(signal.ITIMER_PROF, {_SECONDS})
    try:
        read(name)
        outcome, text, why = "loaded", "", []
    except (ValueError, OSError) as error:
        outcome, text, why = type(error).__name__, str(error), list(causes(error))
    except BaseException as error:
        outcome, text, why = type(error).__name__, str(error)[:200], []
    signal.setitimer(signal.ITIMER_PROF, 0)
    results[name] = dict(
        outcome=outcome, text=text[:1000], length=len(text), why=why, seconds=time.process_time() - start,
        megabytes=(tracemalloc.get_traced_memory()[1] - before) / 2**20,
        imported=sorted(module for module in set(sys.modules) - modules if not module.startswith(("encodings", "_"))),
    )
    modules = set(sys.modules)
sys.stdout.write(json.dumps(results))
"""


# ---- pickles: A_ and B_ are what is asked for

_NAMES = b"cnumpy._core.multiarray\n_reconstruct\n"
_ARRAY = _NAMES + b"cnumpy\nndarray\nK\x00\x85C\x01b\x87R"
_DTYPE = (
    b"cnumpy\ndtype\nX\x02\x00\x00\x00f8\x89\x88\x87R"
    b"(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
)


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def _array(shape: bytes, numbers: bytes, dtype: bytes = _DTYPE) -> bytes:
    return _ARRAY + b"(K\x01" + shape + dtype + b"\x89" + numbers + b"tb"


def _bytes(n: int) -> bytes:
    return b"B" + struct.pack("<I", n) + bytes(n)


def _in_dict(value: bytes, name: str = "A_") -> bytes:
    return b"\x80\x04}" + _text(name) + value + b"s."


def _nested(n: int) -> bytes:
    """Tuples of the tuple before, twice: 2**n of them if they are looked at one by one."""
    return b")\x94" + b"".join(b"h" + bytes([i]) + b"\x86\x94" for i in range(n))


_PICKLES = {
    "tuples within tuples": _in_dict(_nested(60)),
    "tuples as a name": b"\x80\x04}" + _nested(60) + b"Ns.",
    "tuples by copies": _in_dict(b")" + b"2\x86" * 80),
    "tuples as a name by copies": b"\x80\x04}" + b")" + b"2\x86" * 80 + b"Ns.",
    "tuples behind a value that goes": b"\x80\x04})" + b"".join(b"N0q%ch%c\x86" % (i, i) for i in range(80)) + b"Ns.",
    "tuples in a set": _in_dict(b"\x8f(" + _nested(60) + b"\x90"),
    "tuples in a frozen set": _in_dict(b"(" + _nested(60) + b"\x91"),
    "tuples by numbered places": b"(dp0\n(tp1\n"
    + b"".join(b"(g%d\ng%d\ntp%d\n" % (i, i, i + 1) for i in range(1, 60))
    + b"Ns.",
    "tuples as a type": _in_dict(_array(b"K\x01\x85", b"C\x00", _nested(40))),
    "tuples as a shape": _in_dict(_array(_nested(40), b"C\x00")),
    "tuples as arguments": _in_dict(b"cnumpy\ndtype\n" + _nested(40) + b"R"),
    "tuples as numbers": _in_dict(_array(b"K\x01\x85", _nested(40))),
    "copies of a megabyte": b"\x80\x04}("
    + _bytes(2**20)
    + b"q\x000"
    + b"".join(_text(f"{i:03}") + _array(b"J\x00\x00\x02\x00\x85", b"h\x00") for i in range(20))
    + b"u.",
    "one megabyte in many arrays": b"\x80\x04}("
    + _text("A_")
    + _array(b"J\x00\x00\x02\x00\x85", _bytes(2**20) + b"q\x00")
    + b"".join(_text(f"{i:03}") + _array(b"J\x00\x00\x02\x00\x85", b"h\x00") for i in range(20))
    + b"u.",
    "many opcodes": _in_dict(b"N0" * 200_000 + b"N"),
    "many values": _in_dict(b"(" + b"N" * 500_000 + b"t"),
    "many marks": b"\x80\x04" + b"(" * 10**6 + b".",
    "deep lists": b"\x80\x04" + b"]" * 50_000 + b"a" * 49_999 + b".",
    "deep tuples": _in_dict(b")" + b"\x85" * 50_000),
    "a far place": _in_dict(b"Nr\xff\xff\xff\x7f"),
    "a far place in text": b"(dV\nNp99999999999\ns.",
    "a place that is none": b"(dV\nNp-1\ns.",
    "an empty place": _in_dict(b"h\x63"),
    "claimed bytes": _in_dict(b"\x8e" + struct.pack("<Q", 2**62)),
    "claimed bytes of 32 bits": _in_dict(b"B\xff\xff\xff\xff"),
    "claimed text": _in_dict(b"\x8d" + struct.pack("<Q", 2**62)),
    "claimed byte array": _in_dict(b"\x96" + struct.pack("<Q", 2**62)),
    "claimed integer": _in_dict(b"\x8b\xff\xff\xff\x7f"),
    "claimed frame": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"}.",
    "a long integer": _in_dict(b"I" + b"9" * 10**6 + b"\n"),
    "a long name": _in_dict(b"c" + b"x" * 10**6 + b"\ny\n"),
    "a claimed shape": _in_dict(_array(b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86", _bytes(8))),
    "a negative shape": _in_dict(_array(b"J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86", _bytes(8))),
    "a shape of text": _in_dict(_array(_text("1") + b"\x85", _bytes(8))),
    "a shape of truths": _in_dict(_array(b"\x88\x85", _bytes(8))),
    "a shape of many": _in_dict(_array(b"(" + b"K\x01" * 900 + b"t", _bytes(8))),
    "a shape that is none": _in_dict(_array(b"K\x01", _bytes(8))),
    "numbers of a wide type": _in_dict(
        _array(b"K\x01\x85", _bytes(8), _DTYPE.replace(b"\x02\x00\x00\x00f8", b"\x0b\x00\x00\x00V2000000000"))
    ),
    "numbers that are text": _in_dict(_array(b"K\x01\x85", _text("12345678"))),
    "objects": pickle.dumps({"A_": np.array([[None]], dtype=object)}),
    "an array without numbers": _in_dict(_ARRAY),
    "a type alone": _in_dict(_DTYPE),
    "a state for a function": _in_dict(_NAMES + b"}" + _text("__defaults__") + b"Nsb"),
    "attributes for a function": _in_dict(_NAMES + b"N}" + _text("_call") + b"Ns\x86b"),
    "a function": _in_dict(_NAMES),
    "a call of the array": _in_dict(b"cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85R"),
    "a call of a value": _in_dict(b"})R"),
    "a new array": _in_dict(b"cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85\x81"),
    "a new array with words": _in_dict(b"cnumpy\nndarray\n)}\x92"),
    "an instance": b"(inumpy\nndarray\n.",
    "an object of the stack": b"(cnumpy\nndarray\no.",
    "an extension": _in_dict(b"\x82\x01"),
    "another file": _in_dict(b"Pelsewhere\n"),
    "a buffer from elsewhere": _in_dict(b"\x97"),
    "a buffer's array without type": _in_dict(b"cnumpy._core.numeric\n_frombuffer\n(" + _bytes(8) + b"tR"),
    "a system call": pickle.dumps({"A_": np.eye(2), "B_": pytest.raises})[:-1]
    + b"cos\nsystem\n"
    + _text("touch executed")
    + b"\x85R.",
    "a call by name": b"\x80\x04" + b"\x8c\x05posix\x8c\x06system\x93" + _text("touch executed") + b"\x85R.",
    "a name of a name": b"\x80\x04\x8c\x05numpy\x8c\x0bndarray.dump\x93.",
    "numpy's own loader": b"cnumpy\nload\n" + _text("executed") + b"\x85R.",
    "text": b"Vhello\n.",
    "nothing": b"",
    "only an end": b".",
    "itself": b"\x80\x04}\x94" + _text("A_") + b"h\x00s.",
    "other keys": _in_dict(_array(b"K\x01K\x01\x86", _bytes(8)), "weights"),
    "a list of arrays": b"\x80\x04](" + _array(b"K\x01K\x01\x86", _bytes(8)) + b"e.",
}


# ---- maps


def _groups(*tagged: Any) -> Any:
    return {"dtype": "object", "labels": list(tagged)}


def _deep(n: Any) -> Any:
    return "[" * n + "]" * n


def _header(**changes: Any) -> Any:
    """Change of a saved map's header by paths of names."""

    def change(header: Any) -> None:
        for path, value in changes.items():
            *keys, last = path.split("__")
            block = header
            for key in keys:
                block = block[key]
            block[last] = value

    return change


_WIDE = {"dtype": "<U1000000000", "labels": [{"str": "a"}, {"str": "b"}]}
_SMALL = [{"str": "(small groups)" + "'" * i} for i in range(2)]

_HEADERS = {
    "text of a claimed width": _header(
        saved__moments__groups=_WIDE, saved__model__groups=_WIDE, saved__ideal__groups=_WIDE
    ),
    "classes of a claimed width": _header(saved__moments__classes=_WIDE),
    "a number of a claimed width": _header(saved__params__strength={"numpy": "<U2000000000", "value": {"str": "1"}}),
    "labels of a claimed shape": _header(
        saved__moments__groups={"dtype": "(99999,99999)<f8", "labels": [{"int": 0}, {"int": 1}]}
    ),
    "labels of many types": _header(saved__moments__groups={"dtype": "f8," * 10**5, "labels": []}),
    "empty tuples that merge": _header(
        saved__moments__groups=_groups({"tuple": []}, {"int": 1}),
        saved__params__small_subgroups={"str": "merge"},
        saved__params__min_subgroup_size={"int": 10**6},
    ),
    "names of the merged group": _header(
        saved__moments__groups=_groups(*_SMALL),
        saved__params__small_subgroups={"str": "merge"},
        saved__params__min_subgroup_size={"int": 2**62},
    ),
    "features": _header(saved__moments__n_features=10**12),
    "columns": _header(saved__n_features_in=10**15),
    "columns of groups": _header(saved__encoder__n_columns=10**15),
    "deep labels": _header(saved__moments__groups=json.loads(_deep(900))),
    "many labels": _header(saved__moments__groups={"dtype": "object", "labels": [{"int": i} for i in range(10**5)]}),
    "many labels that are one": _header(saved__moments__groups={"dtype": "object", "labels": [{"int": 1}] * 10**5}),
    "many positions": _header(saved__sensitive_positions=list(range(10**5))),
    "a long choice": _header(saved__moments__covariance="tied" * 10**6),
    "a long version": _header(format_version="3" * 10**6),
    "a long kind": _header(kind="Fair" * 10**6),
    "a long parameter": _header(saved__params__intervention={"str": "x" * 10**6}),
    "a large exponent": _header(saved__params__strength={"float": "0x1p999999999"}),
    "a long number": _header(saved__params__strength={"float": "0x1" + "0" * 10**6 + "p0"}),
    "text as a number": _header(saved__params__tol={"str": "1e-6"}),
    "text as a strength": _header(saved__params__strength={"str": "1"}),
    "a list as a parameter": _header(saved__params__max_iter=[1]),
    "a number as the divergence": _header(saved__ideal__kl_divergence="1"),
    "a function as columns": _header(saved__params__sensitive_columns={"str": "os.system"}),
    "another estimator": _header(kind="Pipeline"),
}


def _raw(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def _tensor(shape: Any, dtype: str = "F64", offsets: Any = (0, 0)) -> Any:
    tensor = {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}
    return json.dumps({"a": tensor, "__metadata__": {"fairsteer": "00000000{}"}}).encode()


_MAPS = {
    "a long header": struct.pack("<Q", 2**62) + b"{}",
    "a header beyond the file": struct.pack("<Q", 10**6) + b"{}",
    "a header that is no JSON": _raw(b"{" * 1000),
    "a deep header": _raw(_deep(10**5).encode()),
    "a claimed array": _raw(_tensor([2**31, 2**31])),
    "an array that overflows": _raw(_tensor([2**32, 2**32])),
    "an empty claimed array": _raw(_tensor([0, 2**62])),
    "an array of an unknown type": _raw(_tensor([4], "F4096", (0, 4)), b"1234"),
    "an array of half a byte": _raw(_tensor([2], "BF16", (0, 4)), b"1234"),
    "a deep text": _raw(json.dumps({"__metadata__": {"fairsteer": "00000000" + _deep(10**5)}}).encode()),
    "a long integer": _raw(
        json.dumps({"__metadata__": {"fairsteer": '00000000{"format_version": ' + "9" * 10**6 + "}"}}).encode()
    ),
    "a zip": b"PK\x03\x04" + bytes(1000),
    "a pickle": pickle.dumps({"A_": np.eye(2)}),
    "empty": b"",
}

_INDICES = {
    "deep": _deep(10**5),
    "other folders": '{"files": {"../bad nothing.pkl": [{"str": "a"}]}}',
    "absolute": '{"files": {"/etc/passwd": [{"str": "a"}]}}',
    "empty tuples": '{"files": {"group-0.pkl": [{"tuple": []}]}}',
    "claimed width": '{"files": {"group-0.pkl": [{"numpy": "<U2000000000", "value": {"int": 1}}]}}',
    "a long integer": '{"files": {"group-0.pkl": [{"int": ' + "9" * 10**6 + "}]}}",
    "a long text": '{"files": {"group-0.pkl": "' + "x" * 10**6 + '"}}',
    "no list": "[]",
}


@pytest.fixture(scope="module")
def results(make_data: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("hostile")
    X, y, group = make_data()
    persistence.save(FairSteeringTransformer().fit(X, y, sensitive_features=group), folder / "good.safetensors")
    content = (folder / "good.safetensors").read_bytes()
    (folder / "good.pkl").write_bytes(dumps({"A_": np.eye(2), "B_": np.zeros(2)}))
    text = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]["fairsteer"][8:]
    for name, change in _HEADERS.items():
        header = json.loads(text)
        change(header)
        arrays, changed = st.load(content), json.dumps(header)
        checksum = persistence._file.checksum(changed, arrays)
        (folder / f"bad {name}.header").write_bytes(st.save(arrays, metadata={"fairsteer": checksum + changed}))
    for kind, files in (("pkl", _PICKLES), ("map", _MAPS)):
        for name, hostile in files.items():
            (folder / f"bad {name}.{kind}").write_bytes(hostile)
    for name, index in _INDICES.items():
        (folder / f"bad {name}.folder").mkdir()
        (folder / f"bad {name}.folder" / "groups.json").write_text(index, encoding="utf-8")
        (folder / f"bad {name}.folder" / "group-0.pkl").write_bytes((folder / "good.pkl").read_bytes())
    before = {path.name for path in folder.iterdir()}
    done = subprocess.run(
        [sys.executable, "-c", _READER, "good.safetensors,good.pkl"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert {path.name for path in folder.iterdir()} == before, "something was executed"
    return json.loads(done.stdout)


_ALL = [
    *(f"{name}.pkl" for name in _PICKLES),
    *(f"{name}.header" for name in _HEADERS),
    *(f"{name}.map" for name in _MAPS),
    *(f"{name}.folder" for name in _INDICES),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", _ALL)
def test_a_hostile_file_is_refused_at_once(results: Any, name: Any) -> None:
    result = results[f"bad {name}"]
    assert result["outcome"] == "ValueError", result["text"]
    assert "MemoryError" not in result["why"]
    assert result["length"] < 600, "a message of pages"
    assert result["text"].isprintable()
    assert result["seconds"] < _SECONDS
    assert result["megabytes"] < _MEGABYTES
    assert result["imported"] == []


@pytest.mark.slow
def test_the_limits_hold_what_a_believer_would_break() -> None:
    """The standard library, unguarded, does what the pickles say: otherwise the test above proves nothing."""
    program = (
        "import pickle, resource, signal, sys\n"
        "signal.alarm(2)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**30,) * 2)\n"
        "pickle.loads(sys.stdin.buffer.read())\n"
    )
    for name in ("tuples as a name", "a far place"):
        done = subprocess.run([sys.executable, "-c", program], input=_PICKLES[name], capture_output=True, check=False)
        assert done.returncode < 0 or b"MemoryError" in done.stderr, name
