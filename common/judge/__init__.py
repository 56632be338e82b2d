"""A language model behind an API as a judge: of PPO's answers (ppo/api_reward.py) and of the evaluator's.

from common.judge import Judge, load_settings, shared_service
python -m common.judge check --config ppo/api_reward_config.yaml
"""

from common.judge.failures import CallFailed, JudgeError
from common.judge.judge import Judge, Verdict
from common.judge.service import Service, shared_service
from common.judge.settings import Settings, load_settings, make_settings

__all__ = [
    "CallFailed",
    "Judge",
    "JudgeError",
    "Service",
    "Settings",
    "Verdict",
    "load_settings",
    "make_settings",
    "shared_service",
]
