"""Fitted maps in the forms that other programs run: ONNX graphs, affine maps of steering servers, control vectors.

No form keeps what the transformer was fitted from; :mod:`fairsteer.persistence` does. Reading either back runs no
code.
"""

from fairsteer.export._affine import export_affine, read_affine, read_affine_file
from fairsteer.export._gguf import export_control_vector, read_control_vector
from fairsteer.export._onnx import export_onnx, read_onnx_codes

__all__ = [
    "export_affine",
    "export_control_vector",
    "export_onnx",
    "read_affine",
    "read_affine_file",
    "read_control_vector",
    "read_onnx_codes",
]
