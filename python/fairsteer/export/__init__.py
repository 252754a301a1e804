"""Fitted maps in the forms that other programs run: ONNX graphs, and the affine maps of steering servers.

Neither form keeps what the transformer was fitted from; :mod:`fairsteer.persistence` does. Reading either back runs no
code.
"""

from fairsteer.export._affine import export_affine, read_affine, read_affine_file
from fairsteer.export._onnx import export_onnx, read_onnx_codes

__all__ = ["export_affine", "export_onnx", "read_affine", "read_affine_file", "read_onnx_codes"]
