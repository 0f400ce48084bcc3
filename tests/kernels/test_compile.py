"""Every kernel compiles for sm_80 and sm_90, and without spilling there; no GPU is needed.

Run as a script, this file calls the public functions of CALLS with the launches replaced: what
would have been launched is compiled instead, in the types, alignments and constants that a real
call gives it. The tests run it twice, for half of the kernels each, and read its reports. A new
kernel needs a line in CALLS that reaches it, and nothing else.

Triton's passes down to TTGIR are the same for sm_80 and sm_90 but for products and descriptors; a
kernel without either is compiled once to there, which is half of the work.
"""

import ast
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compile_calls import MORE_CALLS, inputs, sort_everywhere

REPO = Path(__file__).resolve().parents[2]
CAPABILITIES = (80, 90)
OF_A_GPU = ("tt.dot", "ttng.", "tt.descriptor")  # what TTGIR says in ways of its own for each
PARTS = 2
# Stack bytes per thread that are accepted, by a pattern of labels, with the reason.
SPILLS_ALLOWED: dict[str, int] = {
    # a few values, for one more program per SM
    "kernels.projection.forward.project_fwd_kernel": 64,
    # odd widths alone, for a third program per scheduler
    r"kernels.photometric.kernel._ssim_gradient_kernel\(.*ALIGN=1": 48,
    # a few values of widths that 4 does not divide
    r"kernels.photometric.kernel._ssim_.*MASKED=True.*ALIGN=[12]": 48,
    # of images with masks alone, by sm_80's compiler
    r"kernels.photometric.kernel._ssim_maps_kernel\(.*MASKED=True": 72,
    # a few values used once, for two programs per SM
    "kernels.binning.sort_passes.sweep_kernel": 48,
    # sm_80's compiler will have it so
    "kernels.binning.depth_order._order_kernel": 48,
    # a few values, for two programs per scheduler
    "kernels.decoder.forward.decode_fwd_kernel": 24,
    # three products in place of one, which no training takes, by sm_80's compiler
    r"kernels.decoder.backward.*PRECISION=tf32x3": 544,
}


def render(**options: Any) -> None:
    from kernels import rasterization

    images, alphas, _ = rasterization(backend="triton", **inputs(**options))
    (images.sum() + alphas.sum()).backward()


def render_plain() -> None:
    render()


def render_masked() -> None:
    import torch

    leaf = torch.zeros(128, 2, requires_grad=True)
    render(mask_logits=leaf, render_mode="RGB+ED", absgrad=True, contributions=True)


def render_deterministic() -> None:
    import torch

    colors = torch.zeros(128, 5, requires_grad=True)
    flags = {"sh_degree": None, "deterministic": True, "absgrad": True}
    render(colors=colors, backgrounds=torch.zeros(1, 5), **flags)


def render_published() -> None:
    import torch

    from bench.ablation.published_backward import published_gradients

    with published_gradients():
        render(mask_logits=torch.zeros(128, 2, requires_grad=True))


def project_gaussians(**changes: Any) -> None:
    """As a trainer does: raw parameters, SH in two tensors, sampled masks; changed as told."""
    import torch

    from kernels import RasterInputs, RenderSettings, project

    leaf = lambda *shape: torch.zeros(*shape, requires_grad=True)  # noqa: E731
    t = inputs(colors=leaf(128, 1, 3), colors_rest=leaf(128, 15, 3), raw=True)
    t |= {"mask_logits": leaf(128, 2)} | changes
    settings = RenderSettings(**{k: t.pop(k) for k in RenderSettings._fields if k in t})
    out = project(RasterInputs(**t), settings)
    (out.means2d.sum() + out.values.sum()).backward()


def project_low_degree() -> None:
    project_gaussians(sh_degree=1, mask_words=torch.zeros(2, dtype=torch.int32))


def project_covariances() -> None:
    """Everything rare at once: several cameras, their gradients, covariances, antialiasing."""
    leaf = lambda *shape: torch.zeros(*shape, requires_grad=True)  # noqa: E731
    project_gaussians(
        viewmats=leaf(2, 4, 4), Ks=torch.zeros(2, 3, 3), covars=leaf(128, 3, 3), antialiased=True,
        colors=leaf(128, 16, 3), colors_rest=None, masks=leaf(128), mask_logits=None, raw=False,
    )  # fmt: skip


def project_cameras() -> None:
    viewmats = torch.zeros(2, 4, 4, requires_grad=True)
    for by_camera in (False, True):
        options = {"antialiased": True, "masks_by_camera": by_camera}
        project_gaussians(viewmats=viewmats, Ks=torch.zeros(2, 3, 3), **options)


def bin_received() -> None:
    """Records whose keys are formed anew."""
    from kernels import Records, bin_tiles

    for n_rows in (None, torch.zeros(1, dtype=torch.int32)):
        bin_tiles(Records(torch.zeros(128, 16), None, n_rows, 1, 128, 80, 56))


def sort_in_launches() -> None:
    """What is one launch where many programs run at once, and else several."""
    from kernels import caches
    from kernels.binning import sorting

    before = sorting.programs_at_once
    for n_programs in (0, 132):
        sorting.programs_at_once = lambda _device, n=n_programs: n
        caches.clear()  # a second call of a kind would be recorded
        sort_everywhere()
        render_plain()
    sorting.programs_at_once = before


def step_adam() -> None:
    from kernels import FusedAdam, count_row_steps

    params = [torch.zeros(128, n, requires_grad=True) for n in (3, 45, 1)]
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer, rates = FusedAdam(params), torch.zeros(3, 2)
    steps, seen = torch.zeros(128, dtype=torch.int32), torch.zeros(128, 1)
    for skip in (None, torch.zeros(1, dtype=torch.int32)):
        optimizer.apply(rates, skip=skip)
        count_row_steps(steps, seen, betas=(0.9, 0.999), skip=skip, backend="triton")
    optimizer.param_groups[0]["by_row"], optimizer.rows = True, torch.zeros(128, 2)
    optimizer.apply(rates, skip=skip)


def add_statistics() -> None:
    from kernels import add_gradient_norms, count_views

    v, radii, sums = torch.zeros(2, 128, 2), torch.zeros(2, 128, 2).int(), torch.zeros(128)
    for skip in (None, torch.zeros(1, dtype=torch.int32)):
        out = sums, sums.clone()
        add_gradient_norms(v, radii, *out, width=80, height=56, skip=skip, backend="triton")
    count_views(radii, backend="triton")


def report() -> None:
    from kernels import add_losses, report_step

    counts, sums = torch.zeros(4, dtype=torch.int32), torch.zeros(8)
    for missing in (None, counts[:1]):
        report_step(counts[:2], counts[:2], counts[1:2], missing=missing, backend="triton")
    for skip in (None, counts[:1]):
        add_losses(sums[:4], sums[:1], sums[3:5], 2, skip=skip, backend="triton")


def explore() -> None:
    from kernels import add_langevin_noise, add_regularizer_gradients

    means, quats, opacities = torch.zeros(128, 3), torch.zeros(128, 4), torch.zeros(128)
    ids, seed = torch.zeros(128, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
    for skip in (None, torch.zeros(1, dtype=torch.int32)):
        add_langevin_noise(
            means, quats, means, opacities, ids, seed=seed, lr=torch.zeros(1), noise_lr=1.0,
            skip=skip, backend="triton",
        )  # fmt: skip
    weights: dict[str, Any] = {"lambda_opacity": 0.1, "lambda_scale": 0.1, "backend": "triton"}
    for shares in (None, opacities):
        add_regularizer_gradients(opacities, means, opacities, means, shares=shares, **weights)


def compare_images() -> None:
    """Widths by what divides them; float targets, and values alone."""
    from kernels.photometric.kernel import photometric

    for width in (52, 50, 51):
        colors = torch.zeros(40, width, 3)
        photometric(colors, torch.zeros(40, width, 3, dtype=torch.uint8), 0.2, True)
    photometric(colors, colors, 0.2, True)
    photometric(colors, colors, 0.2, False)


CALLS: list[Callable[[], None]] = [
    render_plain,
    render_masked,
    render_deterministic,
    render_published,
    project_gaussians,
    project_low_degree,
    project_covariances,
    project_cameras,
    bin_received,
    sort_in_launches,
    step_adam,
    add_statistics,
    report,
    explore,
    compare_images,
    *MORE_CALLS,
]


def record_launches(calls: list[Callable[[], None]]) -> dict[str, tuple[Any, dict, dict, dict]]:
    """Label -> (kernel, signature, constants with their positions, attributes and options)."""
    import torch
    from triton.runtime.jit import JITFunction

    from kernels import backend
    from kernels.runtime import launch

    found: dict[str, tuple[Any, dict, dict, dict]] = {}
    types = {
        torch.float32: "*fp32", torch.float16: "*fp16", torch.int64: "*i64", torch.int32: "*i32",
        torch.int16: "*i16", torch.uint8: "*u8", torch.bool: "*i1",
    }  # fmt: skip

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {"num_warps": 4}
        kwargs.pop("cooperative", None)
        options |= {k: kwargs.pop(k) for k in ("num_warps", "maxnreg") if k in kwargs}
        values = dict(zip(self.arg_names, args, strict=False)) | kwargs
        signature, constants, attributes = {}, {}, {}
        for k, parameter in enumerate(self.params):
            value, name = values[parameter.name], parameter.name
            special = not parameter.do_not_specialize
            if isinstance(value, torch.Tensor):
                signature[name] = types[value.dtype]
                if value.data_ptr() % 16 == 0:
                    attributes[(k,)] = [["tt.divisibility", 16]]
            elif parameter.is_constexpr or value is None:
                signature[name], constants[(k,)] = "constexpr", value
            elif isinstance(value, float):
                signature[name] = "fp32"
            elif special and value == 1:
                signature[name], constants[(k,)] = "constexpr", 1
            else:
                signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
                if special and value % 16 == 0:
                    attributes[(k,)] = [["tt.divisibility", 16]]
        names = {self.arg_names[k]: v for (k,), v in constants.items()}
        shown = ", ".join(f"{n}={v}" for n, v in names.items())
        label = f"{self.fn.__module__}.{self.fn.__name__}({shown})"
        details = {"constants": constants, "attributes": attributes}
        key = label
        while key in found and found[key][1] != signature:
            key += "'"
        found[key] = (self, signature, details, options)

    original = launch.launch

    def replaced(kernel: Any, grid: Any, *args: Any, **kwargs: Any) -> None:
        kernel[grid](*args, **kwargs)

    JITFunction.run = run  # pyright: ignore[reportAttributeAccessIssue]
    # Other modules import it by name, but only when the first call needs them.
    launch.launch = replaced
    backend.interprets = lambda: True  # tensors on the CPU will do: nothing runs
    torch.empty = torch.zeros
    torch.empty_like = torch.zeros_like
    for call in calls:
        call()
    assert not any(m.__dict__.get("launch") is original for m in list(sys.modules.values()) if m)
    return found


def resources(binary: bytes) -> dict[str, int]:
    """Registers and stack bytes per thread of a cubin; nothing without cuobjdump."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        return {}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        text = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    usage = re.search(r"REG:(\d+).*?STACK:(\d+).*?SHARED:(\d+)", text)
    assert usage is not None, text
    return {"registers": int(usage[1]), "stack": int(usage[2])}


def compiled(source: Any, capability: int, options: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Resources, seconds and TTGIR of a kernel, or the error instead."""
    import triton
    from triton.backends.compiler import GPUTarget

    start = time.perf_counter()
    try:
        kernel = triton.compile(source, GPUTarget("cuda", capability, 32), options)
        report: dict[str, Any] = resources(kernel.asm["cubin"])
        report["shared"], ttgir = kernel.metadata.shared, kernel.asm["ttgir"]
    except Exception as error:  # noqa: BLE001
        report, ttgir = {"error": f"{type(error).__name__}: {error}"}, ""
    return report | options | {"seconds": round(time.perf_counter() - start, 2)}, ttgir


def main(part: int) -> None:
    """Compile every PARTS-th kernel and print a JSON report."""
    from triton.compiler import ASTSource

    reports: dict[int, dict[str, dict[str, Any]]] = {capability: {} for capability in CAPABILITIES}
    launches = [*record_launches(CALLS).items()][part::PARTS]
    with tempfile.TemporaryDirectory() as folder:
        for label, (kernel, signature, details, options) in launches:
            source = ASTSource(kernel, signature, details["constants"], details["attributes"])
            report, ttgir = compiled(source, 90, options)
            reports[90][label] = report
            if ttgir and not any(word in ttgir for word in OF_A_GPU):
                source = Path(folder) / "kernel.ttgir"
                source.write_text(ttgir.replace('"cuda:90"', '"cuda:80"'))
                source = str(source)
            reports[80][label] = compiled(source, 80, options)[0]
    print(json.dumps(reports, indent=1))


@pytest.fixture(scope="module")
def reports() -> dict[int, dict[str, dict[str, Any]]]:
    """What `main` reports for every capability; Triton may not interpret there."""
    environment = os.environ | {"PYTHONPATH": str(REPO), "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("TRITON_INTERPRET", None)
    jobs = [
        subprocess.Popen(
            [sys.executable, __file__, str(part)],
            env=environment, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for part in range(PARTS)
    ]  # fmt: skip
    results: dict[int, dict[str, dict[str, Any]]] = {}
    for job in jobs:
        out, err = job.communicate(timeout=1800)
        assert job.returncode == 0, err
        for capability, found in json.loads(out).items():
            results[int(capability)] = results.get(int(capability), {}) | found
    return results


def kernel_names() -> set[str]:
    """All @triton.jit functions of kernels/ whose name ends in _kernel, as module.function."""
    names = set()
    for path in sorted((REPO / "kernels").rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel"):
                if any("jit" in ast.unparse(d) for d in node.decorator_list):
                    module = ".".join(path.relative_to(REPO).with_suffix("").parts)
                    names.add(f"{module.removesuffix('.__init__')}.{node.name}")
    return names


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_kernels_compile(reports: dict, capability: int) -> None:
    errors = {k: r["error"] for k, r in reports[capability].items() if "error" in r}
    assert not errors, "\n".join(f"{k}: {e}" for k, e in errors.items())
    compiled = {label.split("(")[0] for label in reports[capability]}
    missing = kernel_names() - compiled
    assert not missing, f"no line of CALLS reaches {sorted(missing)}"


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_kernels_do_not_spill(reports: dict, capability: int) -> None:
    spills = {}
    for label, r in reports[capability].items():
        if "stack" not in r:
            pytest.skip("this Triton comes without cuobjdump")
        allowed = [limit for text, limit in SPILLS_ALLOWED.items() if re.search(text, label)]
        if r["stack"] > max(allowed, default=0):
            spills[label] = r
    assert not spills, "\n".join(f"{k}: {r}" for k, r in spills.items())


if __name__ == "__main__":
    main(int(sys.argv[1]))
