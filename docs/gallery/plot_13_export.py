"""
Shipping a map
==============

A fitted map leaves Python as one file: safetensors for fairsteer itself, an ONNX graph
for any runtime. Reading either runs no code. Here a service that knows nothing of
fairsteer, or of scikit-learn, applies the map.
"""

import tempfile
from pathlib import Path
from time import perf_counter

import matplotlib.pyplot as plt
import numpy as np
import onnxruntime

from fairsteer import FairSteeringTransformer, persistence
from fairsteer.datasets import make_biased_groups
from fairsteer.export import export_onnx, read_onnx_codes

X, y, group = make_biased_groups(20_000, 32, groups=["A", "B"], shift=2, random_state=0)
X = X.astype(np.float32)
steer = FairSteeringTransformer().fit(X, y, sensitive_features=group)

with tempfile.TemporaryDirectory() as folder:
    files = Path(folder) / "map.safetensors", Path(folder) / "map.onnx"
    persistence.save(steer, files[0])
    export_onnx(steer, files[1])
    again = persistence.load(files[0])
    codes = read_onnx_codes(files[1])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        files[1], options, providers=["CPUExecutionProvider"]
    )
    print({file.name: f"{file.stat().st_size / 1000:.0f} kB" for file in files}, codes)

# %%
# The same rows come out, to the last digit of float32.

code = np.array([codes[one] for one in group])
U = steer.transform(X, sensitive_features=group)
(served,) = session.run(None, {"X": X, "group": code})
print("loaded again:", (again.transform(X, sensitive_features=group) == U).all())
print("served:      ", f"{np.abs(served - U).max():.0e}")

# %%
# And how long a row takes, by the size of the request.

sizes, ways = [1, 10, 100, 1000, 10_000], {"fairsteer": [], "onnxruntime": []}
for n in sizes:
    calls = (
        ("fairsteer", lambda n=n: steer.transform(X[:n], sensitive_features=group[:n])),
        ("onnxruntime", lambda n=n: session.run(None, {"X": X[:n], "group": code[:n]})),
    )
    for name, call in calls:
        times = []
        for _ in range(9):
            start = perf_counter()
            call()
            times.append(perf_counter() - start)
        ways[name].append(1e6 * np.median(times) / n)

figure, ax = plt.subplots(figsize=(6, 3.4))
for (name, values), marker in zip(ways.items(), "os", strict=True):
    ax.loglog(sizes, values, marker + "-", label=name)
ax.set(xlabel="rows in a request", ylabel="microseconds a row")
ax.legend()
plt.show()
