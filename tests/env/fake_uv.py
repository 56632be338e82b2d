"""Stands in for uv: records its arguments, "installs" each pin as a .dist-info folder, and empty modules.

Run by the tests' fake `uv` as: python fake_uv.py <repository> <arguments of uv>. FAKE_UV_FAIL makes an
installation fail with that text.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

MODULES = ["torch", "transfer_queue", "verl", "transformers", "vllm", "ray", "tensordict", "peft"]
MODULES += ["wandb", "gradio", "math_verify"]
TORCH = """
import shutil
class version:
    cuda = "13.0"
class cuda:
    is_available = staticmethod(lambda: bool(shutil.which("nvidia-smi")))
    device_count = staticmethod(lambda: 1)
"""


def main() -> int:
    root, arguments = Path(sys.argv[1]), sys.argv[2:]
    sys.path.insert(0, str(root))
    from common.check_env.environment import REQUIREMENTS, pins, requirement_lines

    if arguments == ["--version"]:
        version = next(
            version for name, version, _ in requirement_lines(REQUIREMENTS / "uv.txt") if name == "uv"
        )
        print(f"uv {version} (fake)")
        return 0
    with Path(os.environ["FAKE_UV_RECORD"]).open("a", encoding="utf-8") as record:
        record.write("\t".join(arguments) + "\n")
    python = Path(arguments[arguments.index("--python") + 1])
    (site,) = python.parents[1].glob("lib/python3*/site-packages")
    if arguments[1] == "uninstall":
        for name in arguments[4:]:
            for folder in site.glob(f"{name.replace('-', '_')}-*.dist-info"):
                shutil.rmtree(folder)
        return 0
    if os.environ.get("FAKE_UV_FAIL") or any(word.startswith("flash-attn") for word in arguments):
        print(os.environ.get("FAKE_UV_FAIL", "error: no wheels with a matching tag"))
        return 2
    files = [Path(word) for word in arguments if word.endswith(".txt")]
    for name, version in pins(files).items():
        for old in site.glob(f"{name.replace('-', '_')}-*.dist-info"):
            shutil.rmtree(old)
        folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        folder.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    for module in MODULES:
        (site / module).mkdir(exist_ok=True)
        (site / module / "__init__.py").write_text(TORCH if module == "torch" else "")
    if not (site / "packaging").exists():
        (site / "packaging").symlink_to(os.environ["FAKE_UV_PACKAGING"], target_is_directory=True)
    print(f"Installed {len(files)} files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
