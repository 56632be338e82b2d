"""Run programs that a model wrote, behind every guard this machine allows, or on Sandbox Fusion."""

from common.reward_functions.sandbox.host import Limits, Outcome, SandboxError, run_python, status

__all__ = ["Limits", "Outcome", "SandboxError", "run_python", "status"]
