"""No address of a GPU kernel holds a 32-bit product with a row's width: latents x width may pass 2**31.

Read from Triton's own types: every kernel is lowered to TTIR, without a GPU and without compiling it further.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

pytest.importorskip("triton")

LOWER = """
import json
from triton._C.libtriton import ir, passes
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend
from monosem.kernels.gpu.compile import CAPABILITY, Shape, modules

def ttir(spec):
    target = GPUTarget("cuda", CAPABILITY, 32)
    backend = make_backend(target)
    source = ASTSource(spec.kernel, dict(spec.signature), dict(spec.constants))
    options = backend.parse_options({"num_warps": spec.warps})
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    code, libraries = backend.get_codegen_implementation(options), backend.get_module_map()
    made = source.make_ir(target, options, code, libraries, context)
    inline = ir.pass_manager(context)
    passes.common.add_inliner(inline)
    inline.run(made, "inline")
    return str(made)

shapes = [Shape(WIDTH, n, 24, 512) for n in (4096, 65536)]
specs = [spec for module in modules() for shape in shapes for spec in module.specs(shape)]
print(json.dumps({f"{number} {spec.label}": ttir(spec) for number, spec in enumerate(specs)}))
"""
WIDTH = 2309
"""A prime, which is no block size: the width of a row is the only constant with this value."""
STRIDES = {"n", "d", "k", "stride", "groups"}
"""Arguments that are widths of rows."""

_RESULT = re.compile(r"^\s*(%[\w#]+)(?::\d+)? = ([\w.]+)(.*)$")
_NAMES = re.compile(r"%[\w#]+")
CARRIES = ("arith.muli", "arith.addi", "arith.subi", "arith.extsi", "tt.splat", "tt.broadcast", "tt.expand_dims",
           "tt.reshape")  # fmt: skip
"""Operations whose result is an offset if what they take is one."""


def narrow_products(ttir: str) -> list[str]:
    """Lines with a 32-bit product of a row's width from which an address is made."""
    widths = {name for name in _NAMES.findall(ttir) if name[1:] in STRIDES}
    products: dict[str, str] = {}
    found = []
    for line in ttir.splitlines():
        match = _RESULT.match(line)
        if not match:
            continue
        name, operation, rest = match.groups()
        operands, kind = _NAMES.findall(rest.partition(" loc(")[0]), rest.partition(" loc(")[0].rpartition(" : ")[2]
        if (operation == "arith.constant" and re.search(rf"\b{WIDTH}\b", rest)) or (
            operation in ("tt.splat", "tt.broadcast", "tt.expand_dims", "arith.extsi") and operands[0] in widths
        ):
            widths.add(name)
        elif operation == "arith.muli" and "i32" in kind and widths & set(operands):
            products[name] = line.strip()
        elif operation in CARRIES and (from_product := [products[o] for o in operands if o in products]):
            products[name] = from_product[0]
        elif operation == "tt.addptr" and operands[1] in products:
            found.append(products[operands[1]])
    return found


@pytest.fixture(scope="module")
def lowered() -> dict[str, str]:
    """The inlined TTIR of every kernel."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    code = LOWER.replace("WIDTH", str(WIDTH))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_no_offset_of_a_row_is_32_bits(lowered: dict[str, str]) -> None:
    assert len(lowered) > 50 and not any("tt.call" in ttir for ttir in lowered.values())
    narrow = {label: found for label, ttir in lowered.items() if (found := narrow_products(ttir))}
    assert not narrow
