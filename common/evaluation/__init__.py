"""The evaluator behind test.sh: any model or checkpoint, scored with the training reward. See docs/evaluation.md."""
