r"""The sample task's reward, composed of registered parts: a right answer, shown in a box, without looping.

Copy this file, change the parts, and name it in REWARD_FUNC_PATH. Each part's value is logged under its name.
Look at the scores before the run:

    python -m common.reward_functions dry-run --reward gspo/reward_func.py --data DATA.parquet

More building blocks: `python -m common.reward_functions list`, explained in docs/rewards.md.

>>> compute_score(solution_str=r"27 + 35 = 62, so \boxed{62}.", ground_truth="62")["score"]
1.0
>>> compute_score(solution_str="62", ground_truth="62")["score"]
0.9
>>> compute_score(solution_str=r"\boxed{61}", ground_truth="62")["score"]
0.1
"""

from __future__ import annotations

from common.reward_functions.composition import compose

compute_score = compose(
    {
        "parts": [
            # What matters: the final answer, judged as mathematics (1/2 = 0.5 = 50%).
            {"reward": "math", "weight": 0.9},
            # A little for the form that makes answers easy to find.
            {"reward": "boxed_format", "weight": 0.1},
            # Long generations tend to loop: up to 0.2 off for an answer that only repeats itself.
            {"reward": "repetition_penalty", "weight": 0.2},
        ],
        "clip": [0.0, 1.0],
    }
)
